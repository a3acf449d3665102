package slack_test

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"go.uber.org/goleak"

	"github.com/lifeboat-fleet/lifeboat/fleet/bus"
	"github.com/lifeboat-fleet/lifeboat/fleet/config"
	"github.com/lifeboat-fleet/lifeboat/fleet/fleettest/chattest"
	"github.com/lifeboat-fleet/lifeboat/services/notifier/internal/deliver/slack"
	"github.com/lifeboat-fleet/lifeboat/services/notifier/internal/deliver/webhook"
	"github.com/lifeboat-fleet/lifeboat/services/notifier/internal/notice"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// calls counts what was taken from the budget.
type calls struct {
	taken []notice.Call
	// refuse the n-th call, counted from 1.
	refuse int
}

var errNoRoom = errors.New("no room now")

func (c *calls) take(_ context.Context, call notice.Call) error {
	if c.taken = append(c.taken, call); len(c.taken) == c.refuse {
		return errNoRoom
	}
	return nil
}

func free(context.Context, notice.Call) error { return nil }

func hook(t *testing.T, o chattest.Options) (*slack.Sender, *chattest.Server) {
	t.Helper()
	chat := chattest.NewWith(t, o)
	client := webhook.New(config.TLS{})
	t.Cleanup(client.Close)
	return slack.New(slack.Options{
		Receiver: "ops", WebhookURL: func() (string, error) { return chat.SlackURL(), nil }, Poster: client,
	}), chat
}

func last(t *testing.T, chat *chattest.Server) chattest.Message {
	t.Helper()
	ms := chat.Messages()
	require.NotEmpty(t, ms)
	return ms[len(ms)-1]
}

// answers is a poster that gives one answer after another, and the last one for ever.
type answers struct {
	all  []answer
	sent []string
}

type answer struct {
	status int
	header http.Header
	body   string
	err    error
}

func (a *answers) Post(_ context.Context, _ string, body []byte) (int, http.Header, []byte, error) {
	now := a.all[min(len(a.sent), len(a.all)-1)]
	a.sent = append(a.sent, string(body))
	return now.status, now.header, []byte(now.body), now.err
}

const secretURL = "https://hooks.example/services/T1/B1/secret"

func TestAWebhooksAnswersAreClassified(t *testing.T) {
	t.Parallel()
	for name, c := range map[string]struct {
		answer answer
		want   string // "", retry, terminal with its reason, or a delay
		posts  int
	}{
		"ok":                 {answer{status: 200, body: "ok"}, "", 1},
		"ok as JSON":         {answer{status: 200, body: `{"ok":true}`}, "", 1},
		"429":                {answer{status: 429, header: http.Header{"Retry-After": {"7"}}, body: "rate_limited"}, "7s", 1},
		"429 without a time": {answer{status: 429}, "30s", 1},
		"429 for ever":       {answer{status: 429, header: http.Header{"Retry-After": {"999999"}}}, "1h0m0s", 1},
		"429 at once":        {answer{status: 429, header: http.Header{"Retry-After": {"0"}}}, "1s", 1},
		"ratelimited as 200": {answer{status: 200, body: `{"ok":false,"error":"ratelimited"}`}, "30s", 1},
		"internal_error":     {answer{status: 200, body: `{"ok":false,"error":"internal_error"}`}, "retry", 1},
		"fatal_error":        {answer{status: 200, body: `{"ok":false,"error":"fatal_error"}`}, "retry", 1},
		"500":                {answer{status: 500, body: "<html>"}, "retry", 1},
		"500 with a word":    {answer{status: 500, body: "invalid_token"}, "retry", 1},
		"503":                {answer{status: 503, body: "rollup_error"}, "retry", 1},
		"408":                {answer{status: 408}, "retry", 1},
		"network":            {answer{err: errors.New("connection refused")}, "retry", 1},
		"invalid_token":      {answer{status: 403, body: "invalid_token"}, "5m0s", 1},
		"no_service":         {answer{status: 404, body: "no_service"}, "5m0s", 1},
		"no_active_hooks":    {answer{status: 404, body: "no_active_hooks"}, "5m0s", 1},
		"action_prohibited":  {answer{status: 403, body: "action_prohibited"}, "terminal slack_action_prohibited", 1},
		"no channel":         {answer{status: 404, body: "channel_not_found"}, "terminal slack_channel_not_found", 1},
		"archived":           {answer{status: 410, body: "channel_is_archived"}, "terminal slack_channel_is_archived", 1},
		// What stands between us and Slack is mended by somebody; none of it says that the message is wrong.
		"404 of a proxy":         {answer{status: 404, body: "no such page"}, "retry", 1},
		"403 of a proxy":         {answer{status: 403, body: "<html>blocked"}, "retry", 1},
		"407 of a proxy":         {answer{status: 407}, "retry", 1},
		"a proxy that says ok":   {answer{status: 403, body: "ok"}, "retry", 1},
		"redirect":               {answer{status: 302, body: secretURL}, "retry", 1},
		"a page to log in at":    {answer{status: 200, body: "<html>please log in"}, "retry", 1},
		"nothing":                {answer{status: 200}, "retry", 1},
		"400 of a proxy":         {answer{status: 400, body: "<html>"}, "terminal slack_400", 1},
		"413 of a proxy":         {answer{status: 413, body: "<html>"}, "terminal slack_413", 2},
		"503 that says how long": {answer{status: 503, header: http.Header{"Retry-After": {"60"}}, body: "<html>"}, "1m0s", 1},
		"503 with a date":        {answer{status: 503, header: http.Header{"Retry-After": {"Sat, 21 Nov 2026 07:28:00 GMT"}}}, "30s", 1},
		// The form is tried twice: in full, and plainly. A smaller one may pass a proxy as well.
		"invalid_payload": {answer{status: 400, body: "invalid_payload"}, "terminal slack_invalid_payload", 2},
		"invalid_blocks":  {answer{status: 400, body: "invalid_blocks"}, "terminal slack_invalid_blocks", 2},
		"no_text":         {answer{status: 200, body: `{"ok":false,"error":"no_text"}`}, "terminal slack_no_text", 2},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			poster, counted := &answers{all: []answer{c.answer}}, &calls{}
			s := slack.New(slack.Options{WebhookURL: func() (string, error) { return secretURL, nil }, Poster: poster})
			_, err := s.Send(t.Context(), example("A", 1), notice.Ref{}, counted.take)
			assert.Equal(t, c.want, kind(err))
			assert.NotContains(t, fmt.Sprint(err), "secret")
			assert.Len(t, poster.sent, c.posts)
			assert.Len(t, counted.taken, c.posts, "every request is taken from the budget")
			throttled := c.answer.status == 429 || strings.Contains(c.answer.body, "ratelimited")
			assert.Equal(t, throttled, errors.Is(err, notice.ErrThrottled))
		})
	}
}

// kind is what the bus makes of an error.
func kind(err error) string {
	if err == nil {
		return ""
	}
	if reason, ok := bus.TerminalReason(err); ok {
		return "terminal " + reason
	}
	if after, ok := bus.RetryDelay(err); ok {
		return after.String()
	}
	return "retry"
}

func TestAnAlertIsNotLostByItsForm(t *testing.T) {
	t.Parallel()
	poster := &answers{all: []answer{{status: 400, body: "invalid_blocks"}, {status: 200, body: "ok"}}}
	s := slack.New(slack.Options{WebhookURL: func() (string, error) { return secretURL, nil }, Poster: poster})
	n := example("EtcdNoLeader", 2)
	n.Mentions = []string{"here"}
	_, err := s.Send(t.Context(), n, notice.Ref{}, free)
	require.NoError(t, err)
	require.Len(t, poster.sent, 2)
	plain := poster.sent[1]
	assert.NotContains(t, plain, `"blocks"`)
	assert.NotContains(t, plain, `"attachments"`)
	for _, want := range []string{"EtcdNoLeader", `\u003c!here\u003e`, "rb.example.com", "and 3 more"} {
		assert.Contains(t, plain, want)
	}
}

func TestNothingIsSentWithoutRoom(t *testing.T) {
	t.Parallel()
	s, chat := hook(t, chattest.Options{})
	_, err := s.Send(t.Context(), example("A", 1), notice.Ref{}, (&calls{refuse: 1}).take)
	require.ErrorIs(t, err, errNoRoom)
	assert.Empty(t, chat.Messages())
}

func TestKeysAreOfTheWebhookOrTheChannel(t *testing.T) {
	t.Parallel()
	key := func(o slack.Options) string {
		k, err := slack.New(o).Key()
		require.NoError(t, err)
		assert.Regexp(t, `^slack-[0-9a-f]{16}$`, k)
		return k
	}
	is := func(s string) func() (string, error) { return func() (string, error) { return s, nil } }
	a := key(slack.Options{WebhookURL: is(secretURL)})
	assert.Equal(t, a, key(slack.Options{WebhookURL: is(secretURL), Receiver: "another"}), "receivers share a webhook's budget")
	assert.NotEqual(t, a, key(slack.Options{WebhookURL: is(secretURL + "2")}))
	b := key(slack.Options{BotToken: is("xoxb-1"), Channel: "C1"})
	assert.Equal(t, b, key(slack.Options{BotToken: is("xoxb-1"), Channel: "C1"}))
	assert.NotEqual(t, b, key(slack.Options{BotToken: is("xoxb-1"), Channel: "C2"}), "the limit is the channel's")
	assert.NotEqual(t, b, key(slack.Options{BotToken: is("xoxb-2"), Channel: "C1"}))
	broken := slack.New(slack.Options{BotToken: func() (string, error) { return "", errors.New("no such file") }})
	_, err := broken.Key()
	require.ErrorContains(t, err, "reading the bot's token: no such file")
	_, err = slack.New(slack.Options{}).Key()
	require.ErrorContains(t, err, "neither a webhook nor a bot")
}

// example is a notice whose every text is the same.
func example(text string, items int) notice.Notice {
	n := notice.Notice{
		Status: notice.Firing, Title: text, Severity: "critical", More: 3, Truncated: 2, Footer: text, Late: text, Words: notice.English(),
		Silence: &notice.Silence{Matchers: map[string]string{"alertname": text}, Comment: text, Buttons: true},
	}
	for range items {
		n.Items = append(n.Items, notice.Item{
			Firing: true, Name: text, Summary: text, Description: text, Starts: time.Unix(1, 0), Note: text,
			Labels:  []notice.Label{{Name: text, Value: text}, {Name: "target", Value: "etcd-prod"}},
			Runbook: "https://rb.example.com/a|b>c", RunbookDead: text,
			Steps: []notice.Step{{Text: "Look at it."}, {Text: "echo mend", Code: true}},
		})
	}
	return n
}
