package dingtalk_test

import (
	"context"
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
	"github.com/lifeboat-fleet/lifeboat/services/notifier/internal/deliver/dingtalk"
	"github.com/lifeboat-fleet/lifeboat/services/notifier/internal/deliver/webhook"
	"github.com/lifeboat-fleet/lifeboat/services/notifier/internal/notice"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

func example(text string, items int) notice.Notice {
	n := notice.Notice{Status: notice.Firing, Title: text + "!", More: 3, Truncated: 2, Footer: text}
	for range items {
		n.Items = append(n.Items, notice.Item{
			Firing: true, Name: text, Summary: text, Description: text, Starts: time.Unix(1, 0), Ends: time.Unix(2, 0),
			Labels:  []notice.Label{{Name: text, Value: text}, {Name: "target", Value: "etcd-prod"}},
			Runbook: "https://rb.example.com/a(b)c?x=[y]",
		})
	}
	return n
}

func sender(chat *chattest.Server, client *webhook.Client) *dingtalk.Sender {
	return dingtalk.New(dingtalk.Options{
		Address: func() (string, error) { return chat.DingTalkURL(), nil },
		Secret:  func() (string, error) { return chat.DingTalkSecret(), nil },
		Poster:  client, Now: time.Now,
	})
}

// hostile texts try to mention, link, mark up, and to exceed what DingTalk takes.
func hostile() []string {
	return []string{
		"plain", "@13800138000 @all", "[Runbook](https://evil.example)", "<a href=x>y</a><script>alert(1)</script>",
		"![x](https://evil.example/x.png)", "**b** *i* __b__ _i_ `code` ~~s~~", "# heading", "> quote", "- item\n- item",
		"1. item\n2) item", "text\n===\n---\n***", "&lt;b&gt; &amp; \\* \\[", "<https://evil.example>", "[x]: https://evil.example",
		"    indented", "```\ncode\n```", "| a | b |\n|---|---|", strings.Repeat("x", 50_000), strings.Repeat("\"", 50_000),
		strings.Repeat("钉", 20_000), strings.Repeat("a\n", 10_000), "\x00\x1b[31m", "_a_ __b",
	}
}

func TestEveryTextIsAcceptedAndForgesNothing(t *testing.T) {
	t.Parallel()
	chat := chattest.NewWith(t, chattest.Options{DingTalkPerMinute: 1e6})
	client := webhook.New()
	t.Cleanup(client.Close)
	s := sender(chat, client)
	for _, text := range hostile() {
		for _, items := range []int{1, 15} {
			require.NoError(t, s.Send(t.Context(), example(text, items)), "%.20q", text)
			ms := chat.Messages()
			m := ms[len(ms)-1]
			assert.NotContains(t, m.Text, "@", "%.20q", text)
			assert.Equal(t, items, strings.Count(m.Text, "**Runbook:**"), "every alert keeps its runbook: %.20q", text)
			assert.Equal(t, items, strings.Count(m.Text, "]("), "only runbooks are links: %.20q", text)
		}
	}
	got := page(t, chat)
	for _, tag := range []string{"<em", "<code", "<img", "<script", "<ul", "<ol", "<h1", "<h2>text", "<pre", "<table", "evil.example\""} {
		assert.NotContains(t, got, tag)
	}
	assert.Contains(t, got, `href="https://rb.example.com/a%28b%29c?x=%5By%5D"`)
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
	b, err := dingtalk.Encode(n, 20_000)
	require.NoError(t, err)
	assert.Contains(t, string(b), "No runbook")
	assert.Contains(t, string(b), "and **3 more**")
}

func TestWhatDoesNotFitIsCounted(t *testing.T) {
	t.Parallel()
	b, err := dingtalk.Encode(example(strings.Repeat("x", 5000), 15), 3000)
	require.NoError(t, err)
	assert.LessOrEqual(t, len(b), 3000)
	assert.Regexp(t, `and \*\*1[0-9] more\*\*`, string(b))
}

func FuzzEncode(f *testing.F) {
	for _, text := range hostile() {
		f.Add(text, 3)
	}
	f.Fuzz(func(t *testing.T, text string, items int) {
		n := example(text, min(max(items, 0), 15))
		body, err := dingtalk.Encode(n, 20_000)
		require.NoError(t, err)
		require.Zero(t, chattest.CheckDingTalk(body))
	})
}

// answer is a poster that gives one answer.
type answer struct {
	status int
	body   string
	err    error
}

func (a answer) Post(context.Context, string, []byte) (int, http.Header, []byte, error) {
	return a.status, nil, []byte(a.body), a.err
}

func TestAnswersAreClassified(t *testing.T) {
	t.Parallel()
	code := func(c int) answer {
		return answer{status: 200, body: fmt.Sprintf(`{"errcode":%d,"errmsg":"m s3cret-token"}`, c)}
	}
	for name, c := range map[string]struct {
		answer answer
		want   string // "", retry, terminal, or a delay
	}{
		"ok":               {code(0), ""},
		"busy":             {code(-1), "retry"},
		"too fast":         {code(130101), "10m0s"},
		"too fast, too":    {code(410100), "10m0s"},
		"gateway throttle": {answer{status: 200, body: `{"status":1111,"punish":"deny","wait":5}`}, "10m0s"},
		"429":              {answer{status: 429}, "10m0s"},
		"quota":            {code(90030), "5m0s"},
		"signature":        {code(310000), "5m0s"},
		"no token":         {code(300005), "5m0s"},
		"no token, too":    {code(400101), "5m0s"},
		"robot stopped":    {code(400102), "5m0s"},
		"group gone":       {code(400013), "5m0s"},
		"robot absent":     {code(400106), "5m0s"},
		"bad params":       {code(40035), "terminal"},
		"bad body":         {code(43004), "terminal"},
		"bad type":         {code(400105), "terminal"},
		"bad content":      {code(400403), "terminal"},
		"unknown":          {code(12345), "terminal"},
		"too long":         {code(460101), "terminal"},
		"too long, too":    {code(101002), "terminal"},
		"502":              {answer{status: 502, body: "<html>"}, "retry"},
		"404":              {answer{status: 404, body: "<html>"}, "terminal"},
		"not JSON":         {answer{status: 200, body: "<html>"}, "retry"},
		"no errcode":       {answer{status: 200, body: "{}"}, "retry"},
		"network":          {answer{err: errors.New("connection refused")}, "retry"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			s := dingtalk.New(dingtalk.Options{
				Address: func() (string, error) { return "https://x/?access_token=s3cret-token", nil },
				Poster:  c.answer, Now: time.Now,
			})
			err := s.Send(t.Context(), example("A", 1))
			assert.Equal(t, c.want, kind(err))
			assert.NotContains(t, fmt.Sprint(err), "s3cret")
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

// once answers the first try with an error code and takes the second one.
type once struct {
	codes []int
	sizes []int
}

func (o *once) Post(_ context.Context, _ string, body []byte) (int, http.Header, []byte, error) {
	code := o.codes[0]
	o.codes = o.codes[1:]
	o.sizes = append(o.sizes, len(body))
	return 200, nil, fmt.Appendf(nil, `{"errcode":%d}`, code), nil
}

func TestTooLongIsSentAgainShorter(t *testing.T) {
	t.Parallel()
	p := &once{codes: []int{460101, 0}}
	s := dingtalk.New(dingtalk.Options{Address: func() (string, error) { return "https://x", nil }, Poster: p, Now: time.Now})
	require.NoError(t, s.Send(t.Context(), example(strings.Repeat("long ", 2000), 10)))
	assert.Less(t, p.sizes[1], p.sizes[0]/3)
}
