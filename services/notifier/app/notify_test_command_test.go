package app_test

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/spf13/cobra"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/lifeboat-fleet/lifeboat/fleet/fleettest/chattest"
	"github.com/lifeboat-fleet/lifeboat/fleet/service"
	"github.com/lifeboat-fleet/lifeboat/services/notifier/app"
)

// notify runs `lifeboat notify` with a context.
func notify(ctx context.Context, args ...string) (out, errs string, code int) {
	var stdout, stderr bytes.Buffer
	cmd := &cobra.Command{Use: "lifeboat", SilenceErrors: true, SilenceUsage: true}
	cmd.AddCommand(app.NotifyCommand()) //nolint:contextcheck // ExecuteContext gives it to the command
	cmd.SetOut(&stdout)
	cmd.SetErr(&stderr)
	if args[0] == "__complete" {
		args = append([]string{"__complete", "notify"}, args[1:]...)
	} else {
		args = append([]string{"notify"}, args...)
	}
	cmd.SetArgs(args)
	err := cmd.ExecuteContext(ctx)
	if err != nil {
		fmt.Fprintln(&stderr, "Error:", err)
	}
	return stdout.String(), stderr.String(), service.ExitCode(err)
}

// previewConfig has a receiver of each kind in both languages. None of its secrets exists, and neither does its NATS.
const previewConfig = `
nats: {url: "nats://127.0.0.1:1"}
alertmanager: {urls: ["http://127.0.0.1:1"]}
notifier:
  template_files: ["*.tmpl"]
  runbooks: {base_url: "https://runbooks.example.com", suffix: ".md"}
  interactions:
    listen: 127.0.0.1:0
    external_url: https://lifeboat.example.com
    link_secret_file: none/link
    slack_signing_secret_file: none/signing
  receivers:
    - {name: slack-en, slack: {webhook_url_file: none/url}}
    - {name: slack-zh, slack: {webhook_url_file: none/url}, language: zh, time_zone: Asia/Shanghai}
    - {name: bot-en, slack: {bot_token_file: none/token, channel: C0123456789}}
    - {name: ding-en, dingtalk: {webhook_url_file: none/url, secret_file: none/secret}}
    - {name: ding-zh, dingtalk: {webhook_url_file: none/url, secret_file: none/secret}, language: zh, time_zone: Asia/Shanghai}
    - {name: card-zh, dingtalk: {webhook_url_file: none/url, secret_file: none/secret, style: action_card}, language: zh}
    - {name: slack-own, slack: {webhook_url_file: none/url}, title: '{{ template "own.title" . }}', text: '{{ range .Alerts }}own {{ .Labels.alertname }}{{ end }}'}
    - {name: ding-own, dingtalk: {webhook_url_file: none/url}, text: '{{ range .Alerts }}own {{ .Labels.alertname }}{{ end }}'}
  route:
    receiver: slack-en
    routes:
      - {receiver: ding-en, matchers: ['team="db"'], mentions: {critical: ["13800138000"]}}
`

func previewFile(t *testing.T) (dir, file string) {
	t.Helper()
	dir = t.TempDir()
	for name, content := range map[string]string{
		"lifeboat.yaml": previewConfig, "own.tmpl": `{{ define "own.title" }}OWN {{ .Status }}{{ end }}`,
		"recorded.json": hook("Recorded", "firing", "critical", map[string]string{"summary": "as Alertmanager posted it"}),
		"broken.json":   `{"version": "3"}`,
	} {
		require.NoError(t, os.WriteFile(filepath.Join(dir, name), []byte(content), 0o600))
	}
	return dir, filepath.Join(dir, "lifeboat.yaml")
}

// shown are the messages that a preview printed. Each is one that the chat itself would take.
func shown(t *testing.T, receiver, out string) (all []string) {
	t.Helper()
	dec := json.NewDecoder(strings.NewReader(out))
	for {
		var raw json.RawMessage
		err := dec.Decode(&raw)
		if errors.Is(err, io.EOF) {
			require.NotEmpty(t, all, "nothing was printed")
			return all
		}
		require.NoError(t, err, out)
		var b bytes.Buffer
		require.NoError(t, json.Compact(&b, raw))
		if strings.HasPrefix(receiver, "slack") || strings.HasPrefix(receiver, "bot") {
			assert.Empty(t, chattest.CheckSlack(b.Bytes()), "%s: %s", receiver, out)
		} else {
			assert.Zero(t, chattest.CheckDingTalk(b.Bytes()), "%s: %s", receiver, out)
		}
		all = append(all, b.String())
	}
}

func TestADryRunPrintsWhatTheChatWouldTake(t *testing.T) {
	t.Parallel()
	dir, file := previewFile(t)
	for _, receiver := range []string{"slack-en", "slack-zh", "bot-en", "ding-en", "ding-zh", "card-zh", "slack-own", "ding-own"} {
		for _, args := range [][]string{
			{},
			{"--resolved"},
			{"--label", "alertname=DiskFull", "-l", "severity=critical", "-a", `summary="a <b> & *c* @all"`, "-a", "description=d"},
			{"--webhook", filepath.Join(dir, "recorded.json")},
		} {
			out, errs, code := notify(t.Context(), append([]string{"test", "-c", file, "--receiver", receiver, "--dry-run"}, args...)...)
			require.Zero(t, code, "%s %v: %s", receiver, args, errs)
			all := strings.Join(shown(t, receiver, out), "\n")
			assert.NotContains(t, all, "none/")
			switch {
			case len(args) == 2 && args[0] == "--webhook":
				assert.Contains(t, all, "Recorded", receiver)
			case len(args) > 2:
				assert.Contains(t, all, "DiskFull", receiver)
			default:
				assert.Contains(t, all, "LifeboatTest", receiver)
			}
		}
	}
}

func TestADryRunIsWhatTheReceiverGets(t *testing.T) {
	t.Parallel()
	_, file := previewFile(t)
	run := func(args ...string) string {
		out, errs, code := notify(t.Context(), append([]string{"test", "-c", file, "--dry-run"}, args...)...)
		require.Zero(t, code, errs)
		return out
	}
	english, chinese := run("--receiver", "slack-en"), run("--receiver", "slack-zh")
	assert.Contains(t, english, "Silence 1h")
	assert.NotContains(t, chinese, "Silence 1h")
	assert.Contains(t, chinese, "静默")
	assert.Contains(t, chinese, "CST", "the receiver's time zone")
	assert.Contains(t, english, "https://runbooks.example.com/lifeboat-test.md")
	assert.Contains(t, run("--receiver", "slack-own"), "OWN firing")
	assert.Contains(t, run("--receiver", "slack-own", "--resolved"), "OWN resolved")
	assert.Contains(t, run("--receiver", "slack-en", "--resolved"), "RESOLVED")

	// The bot's message and what stands in its thread, with the channel.
	bot := shown(t, "bot-en", run("--receiver", "bot-en"))
	require.Len(t, bot, 2)
	assert.Contains(t, bot[0], `"channel":"C0123456789"`)
	assert.Contains(t, bot[0], "lifeboat_silence_1")
	assert.Contains(t, bot[1], `"thread_ts":"1.000001"`)
	assert.NotContains(t, strings.Join(bot, ""), `"token"`)

	// The links have the form of real ones and are different each time: they are signed with a secret that nobody has.
	card := run("--receiver", "card-zh")
	assert.Contains(t, card, "https://lifeboat.example.com/silence?t=")
	assert.NotEqual(t, card, run("--receiver", "card-zh"))

	// Mentions are those of the route that leads to it.
	assert.Contains(t, run("--receiver", "ding-en", "-l", "team=db", "-l", "severity=critical"), "@13800138000")
	assert.NotContains(t, run("--receiver", "ding-en", "-l", "team=db"), "13800138000")
	assert.NotContains(t, run("--receiver", "ding-en", "-l", "team=db", "-l", "severity=critical", "--resolved"), "13800138000")
}

func TestTheTestCommandRefusesWrongUsage(t *testing.T) {
	t.Parallel()
	dir, file := previewFile(t)
	for want, args := range map[string][]string{
		`has no receiver "nobody"; it has slack-en, slack-zh`: {"--receiver", "nobody"},
		"--webhook has its own labels":                        {"--receiver", "slack-en", "--webhook", filepath.Join(dir, "recorded.json"), "--resolved"},
		"no such file":                                        {"--receiver", "slack-en", "--webhook", filepath.Join(dir, "none.json")},
		"broken.json":                                         {"--receiver", "slack-en", "--webhook", filepath.Join(dir, "broken.json")},
		"--label":                                             {"--receiver", "slack-en", "--label", "severity!=critical"},
		"--annotation":                                        {"--receiver", "slack-en", "--annotation", "summary"},
		"--timeout":                                           {"--receiver", "slack-en", "--timeout", "0s"},
	} {
		out, errs, code := notify(t.Context(), append([]string{"test", "-c", file, "--dry-run"}, args...)...)
		assert.Equal(t, service.ExitUsage, code, want)
		assert.Contains(t, errs, want)
		assert.Empty(t, out)
	}
	_, errs, _ := notify(t.Context(), "test", "-c", file)
	assert.Contains(t, errs, `required flag(s) "receiver" not set`)
	out, _, _ := notify(t.Context(), "__complete", "test", "-c", file, "--receiver", "")
	assert.Contains(t, out, "slack-en\nslack-zh\nbot-en\n")
	_, errs, code := notify(t.Context(), "test", "-c", file, "--receiver", "slack-en", "--timeout", "200ms")
	assert.Equal(t, service.ExitFailed, code)
	assert.NotEmpty(t, errs)
}

// The whole way: a running notifier tells the chat, and the command says how it ended.
func TestATestIsToldToTheChat(t *testing.T) {
	t.Parallel()
	f := newFleet(t, settings{})
	file := filepath.Join(f.dir, "lifeboat.yaml")
	for i, args := range [][]string{{}, {"--resolved"}, {"-l", "severity=critical"}} {
		out, errs, code := notify(t.Context(), append([]string{"test", "-c", file, "--receiver", "ops-slack"}, args...)...)
		require.Zero(t, code, errs)
		assert.Regexp(t, `^ops-slack was told after [\d.]+ s\n$`, out)
		assert.Len(t, of(f.chat.Messages(), chattest.Slack, "LifeboatTest"), i+1)
	}
	f.write("recorded.json", hook("Recorded", "firing", "warning", nil))
	for range 2 { // the same one twice is two tests
		_, errs, code := notify(t.Context(), "test", "-c", file, "--receiver", "ops-dingtalk", "--webhook", filepath.Join(f.dir, "recorded.json"))
		require.Zero(t, code, errs)
	}
	assert.Len(t, of(f.chat.Messages(), chattest.DingTalk, "Recorded"), 2, "past the routes, which give a warning to Slack")

	f.chat.FailNext(chattest.Slack, 1, chattest.Fault{Status: http.StatusForbidden, Body: "action_prohibited"})
	_, errs, code := notify(t.Context(), "test", "-c", file, "--receiver", "ops-slack")
	assert.Equal(t, service.ExitFailed, code)
	assert.Contains(t, errs, "ops-slack was not told: delivering to ops-slack: Slack answered 403 action_prohibited")
}

func TestATestThatNobodyTakesEndsWithWhatToLookAt(t *testing.T) {
	t.Parallel()
	f := newFleet(t, settings{})
	file := filepath.Join(f.dir, "lifeboat.yaml")
	f.stop()
	_, errs, code := notify(t.Context(), "test", "-c", file, "--receiver", "ops-slack", "--timeout", "500ms")
	assert.Equal(t, service.ExitFailed, code)
	assert.Contains(t, errs, "ops-slack was not told within 500ms: is a notifier running, and does its chat answer? The message stays in the queue")
	assert.Contains(t, errs, "lifeboat notify deliveries --receiver ops-slack")

	// Interrupted by a person.
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan string, 1)
	go func() {
		_, said, _ := notify(ctx, "test", "-c", file, "--receiver", "ops-slack")
		done <- said
	}()
	require.Eventually(t, func() bool {
		n, err := f.bus.Subjects(t.Context(), "LIFEBOAT_ALERTS", "lifeboat.alert.received")
		return err == nil && n["lifeboat.alert.received"] == 2
	}, patience, patience/900)
	cancel()
	assert.Contains(t, <-done, "context canceled; the message is on its way all the same")
	f.start() // what was left is told, and the next test begins with it
	f.waitChat(func(ms []chattest.Message) bool { return len(of(ms, chattest.Slack, "LifeboatTest")) == 2 })
	f.stop()

	f.nats.Stop()
	_, errs, code = notify(t.Context(), "test", "-c", file, "--receiver", "ops-slack", "--timeout", "300ms")
	assert.Equal(t, service.ExitFailed, code)
	assert.Contains(t, errs, "NATS")
	require.NoError(t, f.nats.Restart())
}
