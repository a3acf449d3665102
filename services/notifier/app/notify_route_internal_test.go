package app

import (
	"bytes"
	"encoding/json"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/lifeboat-fleet/lifeboat/fleet/config"
	"github.com/lifeboat-fleet/lifeboat/fleet/service"
)

const routesFile = `notifier:
  receivers:
    - {name: ops, slack: {webhook_url_file: a}, time_zone: Asia/Shanghai}
    - {name: db, dingtalk: {webhook_url_file: b}, time_zone: Asia/Shanghai}
    - {name: web, slack: {webhook_url_file: c}}
  time_intervals:
    - {name: nights, time_intervals: [{times: [{start_time: "00:00", end_time: "08:00"}], location: Asia/Shanghai}]}
    - {name: office, time_intervals: [{weekdays: ["monday:friday"]}]}
  route:
    receiver: ops
    mentions: {critical: [here]}
    routes:
      - matchers: ['team="db"', 'severity=~"critical|warning"']
        receiver: db
        continue: true
        mentions: {critical: [all], "*": ["+86-13800000000"]}
        repeat_interval: 2h
        mute_time_intervals: [nights]
        routes:
          - {matchers: ['kind!=""'], receiver: db}
      - {matchers: ['team="db"', 'severity="critical"'], receiver: ops}
      - {matchers: ['team="web"'], receiver: web, active_time_intervals: [office]}
      - {matchers: ['team="db"'], receiver: db, repeat_interval: 30m}
`

// notify runs `lifeboat notify` on a file, with FILE in the output for its name.
func notify(t *testing.T, file string, args ...string) (stdout, stderr string, code int) {
	t.Helper()
	path := filepath.Join(t.TempDir(), "lifeboat.yaml")
	require.NoError(t, os.WriteFile(path, []byte(file), 0o600))
	var out, errs bytes.Buffer
	cmd := NotifyCommand()
	cmd.SetArgs(append(args, "-c", path))
	cmd.SetOut(&out)
	cmd.SetErr(&errs)
	code = service.Main(cmd)
	return strings.ReplaceAll(out.String(), path, "FILE"), strings.ReplaceAll(errs.String(), path, "FILE"), code
}

func TestRouteShowsTheWay(t *testing.T) {
	out, stderr, code := notify(t, routesFile, "route", "team=db", "severity=critical", "--at", "2026-11-20T10:00:00+08:00")
	assert.Equal(t, 0, code, stderr)
	assert.Equal(t, []string{
		`LINE ROUTE RESULT`,
		`10 route {} matches; see below`,
		`13 routes[0] {team="db",severity=~"critical|warning"} takes it for db; continue: the next ones are looked at too`,
		`20 routes[0] {kind!=""} no: kind!="", but there is no kind`,
		`21 routes[1] {team="db",severity="critical"} takes it for ops`,
		`22 routes[2] {team="web"} not looked at: notifier.route.routes[1] took the alert, without continue`,
		`23 routes[3] {team="db"} not looked at: notifier.route.routes[1] took the alert, without continue`,
		``,
		`RECEIVER MENTIONS REPEAT AT 2026-11-20 10:00 +0800`,
		`db all 2h0m delivers`,
		`ops here 1h0m delivers`,
	}, squeezed(out))
}

func TestRouteSaysWhatIsMuted(t *testing.T) {
	out, _, code := notify(t, routesFile, "route", "team=db", "severity=warning", "--at", "2026-11-19T18:00:00Z")
	assert.Equal(t, 0, code)
	lines := squeezed(out)
	assert.Equal(t, []string{
		`RECEIVER MENTIONS REPEAT AT 2026-11-19 18:00 UTC`,
		`db +86-13800000000 2h0m db is told by notifier.route.routes[3]`,
		`db - 30m delivers`,
	}, lines[len(lines)-3:])
	assert.Contains(t, lines, `21 routes[1] {team="db",severity="critical"} no: severity="critical", but severity is "warning"`)

	out, _, _ = notify(t, routesFile, "route", "team=web", "--at", "2026-11-21T01:00:00+09:00")
	assert.Contains(t, out, "delivers\n", "it is Friday in UTC")
	out, _, _ = notify(t, routesFile, "route", "team=web", "--at", "2026-11-21T12:00:00Z")
	assert.Contains(t, out, "muted: outside its active time intervals, office, until 2026-11-23 00:00 UTC")
	only := strings.Replace(routesFile, "      - {matchers: ['team=\"db\"'], receiver: db, repeat_interval: 30m}\n", "", 1)
	out, _, _ = notify(t, only, "route", "team=db", "severity=warning", "--at", "2026-11-19T18:00:00Z")
	assert.Contains(t, out, "muted by time interval nights until 2026-11-20 08:00 CST")
}

func TestRouteForScripts(t *testing.T) {
	out, _, code := notify(t, routesFile, "route", "team=db", "severity=warning", "--receivers")
	assert.Equal(t, []any{0, "db,db\n"}, []any{code, out}, "as amtool: one for each route")
	_, stderr, code := notify(t, routesFile, "route", "team=db", "severity=critical", "--expect", "db,ops", "--receivers")
	assert.Equal(t, []any{0, ""}, []any{code, stderr})
	_, stderr, code = notify(t, routesFile, "route", "team=db", "--expect", "ops")
	assert.Equal(t, []any{1, "Error: the receivers are db, and not ops\n"}, []any{code, stderr})

	out, _, code = notify(t, routesFile, "route", "team=db", "severity=warning", "-o", "json", "--at", "2026-11-19T18:00:00Z")
	assert.Equal(t, 0, code)
	var got routed
	require.NoError(t, json.Unmarshal([]byte(out), &got))
	assert.Equal(t, map[string]string{"team": "db", "severity": "warning"}, got.Labels)
	require.Len(t, got.Routes, 6)
	assert.Equal(t, routeStep{
		Key: "notifier.route.routes[0]", Line: 13, Matchers: `{team="db",severity=~"critical|warning"}`, Looked: true, Matched: true, Takes: true, Continue: true,
		Why: "takes it for db; continue: the next ones are looked at too",
	}, got.Routes[1])
	require.Len(t, got.Receivers, 2)
	first, second := got.Receivers[0], got.Receivers[1]
	assert.Equal(t, []any{"db", true, "nights", false, 7200.0}, []any{first.Receiver, first.Muted, first.MutedBy, first.Tells, first.RepeatSeconds})
	assert.Equal(t, "2026-11-20T00:00:00Z", first.Until.UTC().Format("2006-01-02T15:04:05Z07:00"))
	assert.Equal(t, []any{"notifier.route.routes[3]", false, true, []string{}}, []any{second.Key, second.Muted, second.Tells, second.Mentions})
}

func TestWrongUsageOfRoute(t *testing.T) {
	for name, c := range map[string]struct {
		args []string
		want string
	}{
		"not a label":      {[]string{"severity"}, `"severity" is not a label such as severity=critical`},
		"a matcher":        {[]string{"severity!=info"}, "is a matcher"},
		"two values":       {[]string{"a=b", "a=c"}, "given twice"},
		"not a time":       {[]string{"--at", "tomorrow"}, "--at"},
		"not an output":    {[]string{"-o", "yaml"}, "table or json"},
		"two outputs":      {[]string{"-o", "json", "--receivers"}, "--receivers"},
		"an unknown flag":  {[]string{"--label", "a=b"}, "unknown flag"},
		"a quote too many": {[]string{`a="b`}, "is not a label"},
	} {
		t.Run(name, func(t *testing.T) {
			out, stderr, code := notify(t, routesFile, append([]string{"route"}, c.args...)...)
			assert.Equal(t, 2, code)
			assert.Contains(t, stderr, c.want)
			assert.Empty(t, out)
		})
	}
	_, stderr, code := notify(t, "notifier: {}\n", "route", "a=b")
	assert.Equal(t, 2, code)
	assert.Contains(t, stderr, "FILE has no notifier.route, so no alert goes anywhere")
	_, stderr, code = notify(t, "notifier: {route: {receiver: x}}\n", "route", "a=b")
	assert.Equal(t, 2, code)
	assert.Contains(t, stderr, "FILE:1:30: notifier.route.receiver: no receiver is named")
}

func TestRouteOffersTheLabelsOfTheRoutes(t *testing.T) {
	path := filepath.Join(t.TempDir(), "lifeboat.yaml")
	require.NoError(t, os.WriteFile(path, []byte(routesFile), 0o600))
	var buf bytes.Buffer
	cmd := NotifyCommand()
	cmd.SetArgs([]string{"__complete", "route", "-c", path, ""})
	cmd.SetOut(&buf)
	cmd.SetErr(&buf)
	require.Equal(t, 0, service.Main(cmd))
	for _, label := range []string{`severity="critical"`, `severity="warning"`, `team="db"`, `team="web"`} {
		assert.Contains(t, buf.String(), label+"\n")
	}
}

func squeezed(text string) []string {
	var lines []string
	for line := range strings.SplitSeq(strings.TrimSuffix(text, "\n"), "\n") {
		lines = append(lines, strings.Join(strings.Fields(line), " "))
	}
	return lines
}

func TestCheckFindsWhatTheConfigurationsOwnCheckCannot(t *testing.T) {
	dir := t.TempDir()
	write := func(name, text string) {
		require.NoError(t, os.WriteFile(filepath.Join(dir, name), []byte(text), 0o600))
	}
	write("good.tmpl", `{{ define "good" }}x{{ end }}`)
	write("bad.tmpl", "{{ define \"bad\" }}\n{{ nosuch }}{{ end }}")
	write("web.yml", "tls_server_config: {cert_file: x")
	write("limited.yml", "rate_limit: {interval: 1s}\n")
	write("a-file", "")
	load := func(more string) []config.Finding {
		text := "notifier:\n  receivers:\n    - name: a\n      slack: {webhook_url_file: x}\n      title: 'T {{ .Status }}'\n      fallback: b\n" +
			"    - {name: b, slack: {webhook_url_file: x}}\n  route: {receiver: a}\n" + more
		cfg, err := config.Parse(filepath.Join(dir, "lifeboat.yaml"), []byte(text))
		require.NoError(t, err)
		return Check(cfg)
	}
	assert.Empty(t, load("  template_files: [good.tmpl, none/*.tmpl]\n"))
	for name, c := range map[string]struct {
		more, key string
		warning   bool
		want      string
	}{
		"a template":                            {"  template_files: [good.tmpl, bad.tmpl]\n", "notifier.template_files[1]", false, "bad.tmpl"},
		"a web configuration":                   {"  web_config_file: web.yml\n", "notifier.web_config_file", false, "web.yml"},
		"a web configuration of 429s":           {"  web_config_file: limited.yml\n", "notifier.web_config_file", false, "rate_limit"},
		"a web configuration that is elsewhere": {"  web_config_file: gone.yml\n", "notifier.web_config_file", true, "notifier's host"},
		"a folder that is elsewhere":            {"  runbooks: {pages_dir: gone}\n", "notifier.runbooks.pages_dir", true, "no folder"},
		"a folder that is none":                 {"  runbooks: {pages_dir: a-file}\n", "notifier.runbooks.pages_dir", true, "is not a folder"},
	} {
		t.Run(name, func(t *testing.T) {
			found := load(c.more)
			require.Len(t, found, 1)
			assert.Equal(t, []any{c.key, c.warning}, []any{found[0].Key, found[0].Warning})
			assert.Contains(t, found[0].Message, c.want)
		})
	}
	cfg, err := config.Parse(filepath.Join(dir, "lifeboat.yaml"), []byte(`
notifier:
  receivers:
    - {name: a, slack: {webhook_url_file: x}, title: '{{ .Status', text: "{{ nosuch }}"}
    - {name: b, slack: {webhook_url_file: x}}
  route: {receiver: a, routes: [{receiver: a}, {matchers: [a=b], receiver: a}]}
`))
	require.NoError(t, err)
	var keys []string
	for _, f := range Check(cfg) {
		keys = append(keys, f.Key)
	}
	assert.ElementsMatch(t, []string{
		"notifier.route.routes[1]", "notifier.receivers[0].name", "notifier.receivers[1].name", "notifier.receivers[0].title", "notifier.receivers[0].text",
	}, keys)
}
