package slack_test

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"go.uber.org/goleak"

	"github.com/lifeboat-fleet/lifeboat/fleet/bus"
	"github.com/lifeboat-fleet/lifeboat/fleet/fleettest/chattest"
	"github.com/lifeboat-fleet/lifeboat/services/notifier/internal/deliver/slack"
	"github.com/lifeboat-fleet/lifeboat/services/notifier/internal/deliver/webhook"
	"github.com/lifeboat-fleet/lifeboat/services/notifier/internal/notice"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

func example(text string, items int) notice.Notice {
	n := notice.Notice{Status: notice.Firing, Title: text, More: 3, Truncated: 2, Footer: text}
	for range items {
		n.Items = append(n.Items, notice.Item{
			Firing: true, Name: text, Summary: text, Description: text, Starts: time.Unix(1, 0), Ends: time.Unix(2, 0),
			Labels:  []notice.Label{{Name: text, Value: text}, {Name: "target", Value: "etcd-prod"}},
			Runbook: "https://rb.example.com/a|b>c",
		})
	}
	return n
}

func sender(t *testing.T) (*slack.Sender, *chattest.Server) {
	t.Helper()
	chat := chattest.NewWith(t, chattest.Options{SlackPerSecond: 1e6, SlackBurst: 1e6})
	client := webhook.New()
	t.Cleanup(client.Close)
	return slack.New(func() (string, error) { return chat.SlackURL(), nil }, client), chat
}

// hostile texts try to mention, link, mark up, and to exceed what Slack takes.
func hostile() []string {
	return []string{
		"plain", "<!channel> <@U123> @here", "<https://evil.example|Runbook>", "a & b < c > d &lt;!channel&gt;",
		"*bold* _it_ `code` ~s~\n> quote", strings.Repeat("x", 50_000), strings.Repeat("&", 50_000),
		strings.Repeat("🔴", 20_000), strings.Repeat("钉", 20_000), strings.Repeat("a\n", 10_000), "\x00\x1b[31m", "|>",
	}
}

func TestEveryTextIsAcceptedAndForgesNothing(t *testing.T) {
	t.Parallel()
	s, chat := sender(t)
	for _, text := range hostile() {
		for _, items := range []int{1, 15} {
			require.NoError(t, s.Send(t.Context(), example(text, items)), "%.20q", text)
			ms := chat.Messages()
			m := ms[len(ms)-1]
			var p struct {
				Text   string
				Blocks []struct{ Text struct{ Type, Text string } }
			}
			require.NoError(t, json.Unmarshal(m.Raw, &p))
			for _, b := range p.Blocks {
				if b.Text.Type == "mrkdwn" {
					// The only angle brackets are those of the runbook's link.
					assert.LessOrEqual(t, strings.Count(b.Text.Text, "<"), 1, "%.20q", text)
					assert.NotContains(t, b.Text.Text, "<!", "%.20q", text)
				} else {
					assert.NotContains(t, b.Text.Text, "<", "%.20q", text)
				}
			}
			assert.NotContains(t, p.Text, "<")
			assert.Equal(t, items, strings.Count(m.Text, "*Runbook:*"), "every alert keeps its runbook: %.20q", text)
		}
	}
	assert.NotContains(t, page(t, chat), `class="mention">`)
}

func page(t *testing.T, chat *chattest.Server) string {
	t.Helper()
	req, err := http.NewRequestWithContext(t.Context(), http.MethodGet, chat.PageURL()+"columns", nil)
	require.NoError(t, err)
	resp, err := (&http.Client{Transport: &http.Transport{DisableKeepAlives: true}}).Do(req)
	require.NoError(t, err)
	defer func() { _ = resp.Body.Close() }()
	b, err := io.ReadAll(resp.Body)
	require.NoError(t, err)
	return string(b)
}

func TestNoRunbookIsSaid(t *testing.T) {
	t.Parallel()
	n := example("A", 1)
	n.Items[0].Runbook = ""
	b, err := slack.Encode(n)
	require.NoError(t, err)
	assert.Contains(t, string(b), "No runbook")
	assert.Contains(t, string(b), "and *3 more*")
}

func FuzzEncode(f *testing.F) {
	for _, text := range hostile() {
		f.Add(text, 3)
	}
	f.Fuzz(func(t *testing.T, text string, items int) {
		n := example(text, min(max(items, 0), 15))
		body, err := slack.Encode(n)
		require.NoError(t, err)
		require.Empty(t, chattest.CheckSlack(body))
	})
}

// answer is a poster that gives one answer.
type answer struct {
	status int
	header http.Header
	body   string
	err    error
}

func (a answer) Post(context.Context, string, []byte) (int, http.Header, []byte, error) {
	return a.status, a.header, []byte(a.body), a.err
}

func TestAnswersAreClassified(t *testing.T) {
	t.Parallel()
	for name, c := range map[string]struct {
		answer answer
		want   string // "", retry, terminal, or a delay
	}{
		"ok":                 {answer{status: 200, body: "ok"}, ""},
		"ok as JSON":         {answer{status: 200, body: `{"ok":true}`}, ""},
		"429":                {answer{status: 429, header: http.Header{"Retry-After": {"7"}}, body: "rate_limited"}, "7s"},
		"429 without a time": {answer{status: 429}, "30s"},
		"429 for ever":       {answer{status: 429, header: http.Header{"Retry-After": {"999999"}}}, "1h0m0s"},
		"ratelimited as 200": {answer{status: 200, body: `{"ok":false,"error":"ratelimited"}`}, "30s"},
		"internal_error":     {answer{status: 200, body: `{"ok":false,"error":"internal_error"}`}, "retry"},
		"fatal_error":        {answer{status: 200, body: `{"ok":false,"error":"fatal_error"}`}, "retry"},
		"500":                {answer{status: 500, body: "<html>"}, "retry"},
		"503":                {answer{status: 503, body: "rollup_error"}, "retry"},
		"network":            {answer{err: errors.New("connection refused")}, "retry"},
		"invalid_payload":    {answer{status: 400, body: "invalid_payload"}, "terminal"},
		"invalid_token":      {answer{status: 403, body: "invalid_token"}, "terminal"},
		"action_prohibited":  {answer{status: 403, body: "action_prohibited"}, "terminal"},
		"no channel":         {answer{status: 404, body: "channel_not_found"}, "terminal"},
		"archived":           {answer{status: 410, body: "channel_is_archived"}, "terminal"},
		"other error":        {answer{status: 200, body: `{"ok":false,"error":"no_text"}`}, "terminal"},
		"redirect":           {answer{status: 302, body: "https://hooks.slack.com/services/secret"}, "terminal"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			s := slack.New(func() (string, error) { return "https://x", nil }, c.answer)
			err := s.Send(t.Context(), example("A", 1))
			assert.Equal(t, c.want, kind(err))
			assert.NotContains(t, fmt.Sprint(err), "secret")
		})
	}
}

// kind is what the bus makes of an error.
func kind(err error) string {
	if err == nil {
		return ""
	}
	if _, ok := bus.TerminalReason(err); ok {
		return "terminal"
	}
	if after, ok := bus.RetryDelay(err); ok {
		return after.String()
	}
	return "retry"
}
