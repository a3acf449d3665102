package chattest_test

import (
	"bufio"
	"crypto/hmac"
	"crypto/sha256"
	"encoding/base64"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"strconv"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/lifeboat-fleet/lifeboat/fleet/fleettest/chattest"
)

func do(t *testing.T, method, address, body string) (int, string, http.Header) {
	t.Helper()
	req, err := http.NewRequestWithContext(t.Context(), method, address, strings.NewReader(body))
	require.NoError(t, err)
	resp, err := (&http.Client{Transport: &http.Transport{DisableKeepAlives: true}}).Do(req)
	require.NoError(t, err)
	defer func() { _ = resp.Body.Close() }()
	b, err := io.ReadAll(resp.Body)
	require.NoError(t, err)
	return resp.StatusCode, string(b), resp.Header
}

// clock is moved by the test.
type clock struct{ ns atomic.Int64 }

func newClock() *clock {
	c := &clock{}
	c.ns.Store(time.Date(2026, 11, 21, 4, 0, 0, 0, time.UTC).UnixNano())
	return c
}
func (c *clock) now() time.Time       { return time.Unix(0, c.ns.Load()) }
func (c *clock) pass(d time.Duration) { c.ns.Add(int64(d)) }
func section(text string) string {
	return fmt.Sprintf(`{"type":"section","text":{"type":"mrkdwn","text":%q}}`, text)
}
func blocks(bs ...string) string { return `{"blocks":[` + strings.Join(bs, ",") + `]}` }
func sign(at time.Time, secret string) url.Values {
	stamp := strconv.FormatInt(at.UnixMilli(), 10)
	mac := hmac.New(sha256.New, []byte(secret))
	mac.Write([]byte(stamp + "\n" + secret))
	return url.Values{"timestamp": {stamp}, "sign": {base64.StdEncoding.EncodeToString(mac.Sum(nil))}}
}

func TestSlackRules(t *testing.T) {
	t.Parallel()
	s := chattest.NewWith(t, chattest.Options{SlackPerSecond: 1e6, SlackBurst: 1e6})
	long := func(n int) string { return strings.Repeat("x", n) }
	for name, c := range map[string]struct {
		body string
		want string
	}{
		"text":             {`{"text":"hi"}`, "200 ok"},
		"not JSON":         {`hi`, "400 invalid_payload"},
		"nothing":          {`{}`, "400 no_text"},
		"section":          {blocks(section(long(3000))), "200 ok"},
		"section too long": {blocks(section(long(3001))), "400 invalid_blocks"},
		"header too long":  {blocks(`{"type":"header","text":{"type":"plain_text","text":"` + long(151) + `"}}`), "400 invalid_blocks"},
		"51 blocks":        {blocks(strings.Split(strings.Repeat(`{"type":"divider"} `, 51), " ")[:51]...), "400 invalid_blocks"},
		"unknown block":    {blocks(`{"type":"nope"}`), "400 invalid_blocks"},
		"all too long":     {blocks(section(long(3000)), section(long(3000)), section(long(3000)), section(long(3000)), section(long(3000))), "400 msg_blocks_too_long"},
		"text too long":    {`{"text":"` + long(40001) + `"}`, "400 invalid_blocks"},
	} {
		code, body, _ := do(t, http.MethodPost, s.SlackURL(), c.body)
		assert.Equal(t, c.want, fmt.Sprint(code, " ", body), name)
	}
	code, body, _ := do(t, http.MethodPost, s.SlackURL()+"x", `{"text":"hi"}`)
	assert.Equal(t, "403 invalid_token", fmt.Sprint(code, " ", body))
	code, _, _ = do(t, http.MethodPost, strings.Replace(s.SlackURL(), "/T", "/U", 1), `{"text":"hi"}`)
	assert.Equal(t, http.StatusNotFound, code)
	assert.Len(t, s.Messages(), 2)
}

func TestSlackThrottles(t *testing.T) {
	t.Parallel()
	c := newClock()
	s := chattest.NewWith(t, chattest.Options{SlackBurst: 2, Now: c.now})
	post := func() (int, string) {
		code, _, h := do(t, http.MethodPost, s.SlackURL(), `{"text":"hi"}`)
		return code, h.Get("Retry-After")
	}
	for range 2 {
		code, _ := post()
		assert.Equal(t, http.StatusOK, code)
	}
	code, after := post()
	assert.Equal(t, http.StatusTooManyRequests, code)
	assert.Equal(t, "1", after)
	c.pass(time.Second)
	code, _ = post()
	assert.Equal(t, http.StatusOK, code)
}

func TestDingTalkRules(t *testing.T) {
	t.Parallel()
	c := newClock()
	s := chattest.NewWith(t, chattest.Options{DingTalkPerMinute: 20, Now: c.now})
	post := func(at time.Time, secret, body string) string {
		code, answer, _ := do(t, http.MethodPost, s.DingTalkURL()+"&"+sign(at, secret).Encode(), body)
		assert.Equal(t, http.StatusOK, code, "errors come with 200")
		return strings.Split(strings.TrimPrefix(answer, `{"errcode":`), ",")[0]
	}
	good := `{"msgtype":"markdown","markdown":{"title":"t","text":"x"}}`
	assert.Equal(t, "0", post(c.now(), s.DingTalkSecret(), good))
	assert.Equal(t, "0", post(c.now().Add(-59*time.Minute), s.DingTalkSecret(), `{"msgtype":"text","text":{"content":"x"}}`))
	assert.Equal(t, "310000", post(c.now().Add(-61*time.Minute), s.DingTalkSecret(), good))
	assert.Equal(t, "310000", post(c.now(), "wrong", good))
	assert.Equal(t, "40035", post(c.now(), s.DingTalkSecret(), `{"msgtype":"markdown","markdown":{"title":"t"}}`))
	assert.Equal(t, "40035", post(c.now(), s.DingTalkSecret(), `x`))
	assert.Equal(t, "460101", post(c.now(), s.DingTalkSecret(), good+strings.Repeat(" ", 20_000)))
	_, answer, _ := do(t, http.MethodPost, s.DingTalkURL()+"x", good)
	assert.Contains(t, answer, "300005")
	c.pass(time.Minute)
	for range 20 {
		assert.Equal(t, "0", post(c.now(), s.DingTalkSecret(), good))
	}
	assert.Equal(t, "130101", post(c.now(), s.DingTalkSecret(), good))
	c.pass(9 * time.Minute)
	assert.Equal(t, "130101", post(c.now(), s.DingTalkSecret(), good), "blocked for ten minutes")
	c.pass(time.Minute)
	assert.Equal(t, "0", post(c.now(), s.DingTalkSecret(), good))
}

func TestFaults(t *testing.T) {
	t.Parallel()
	s := chattest.New(t)
	s.FailNext(chattest.Slack, 1, chattest.Fault{Status: 503, Body: "down"})
	s.FailNext(chattest.Slack, 1, chattest.Fault{Status: 502, Body: "lost", Accept: true})
	code, body, _ := do(t, http.MethodPost, s.SlackURL(), `{"text":"a"}`)
	assert.Equal(t, "503 down", fmt.Sprint(code, " ", body))
	assert.Empty(t, s.Messages())
	code, _, _ = do(t, http.MethodPost, s.SlackURL(), `{"text":"b"}`)
	assert.Equal(t, http.StatusBadGateway, code)
	assert.Len(t, s.Messages(), 1)
	s.FailAll(chattest.Slack, chattest.Fault{Status: 500})
	code, _, _ = do(t, http.MethodPost, s.SlackURL(), `{"text":"c"}`)
	assert.Equal(t, http.StatusInternalServerError, code)
	s.Heal(chattest.Slack)
	code, _, _ = do(t, http.MethodPost, s.SlackURL(), `{"text":"d"}`)
	assert.Equal(t, http.StatusOK, code)
	assert.Equal(t, 4, s.Requests(chattest.Slack))
}

func TestPageShowsMessagesAndEscapesThem(t *testing.T) {
	t.Parallel()
	s := chattest.New(t)
	do(t, http.MethodPost, s.SlackURL(), blocks(section("<!channel> *b* <https://x/?a=1&amp;b=2|link> &lt;script&gt;<javascript:x|y>")))
	q := sign(time.Now(), s.DingTalkSecret()).Encode()
	do(t, http.MethodPost, s.DingTalkURL()+"&"+q,
		`{"msgtype":"markdown","markdown":{"title":"t","text":"**b** [l](https://y) [j](javascript:x) <script>z</script>"}}`)
	_, page, h := do(t, http.MethodGet, s.PageURL(), "")
	assert.Contains(t, h.Get("Content-Security-Policy"), "default-src 'none'")
	for _, want := range []string{
		`<mark class="mention">!channel</mark>`, "<b>b</b>", `<a href="https://x/?a=1&amp;b=2" rel="noreferrer">link</a>`,
		"&lt;script&gt;", "<strong>b</strong>", `<a href="https://y">l</a>`, "DingTalk 钉钉",
	} {
		assert.Contains(t, page, want)
	}
	for _, bad := range []string{"<script>z", `"javascript:`} {
		assert.NotContains(t, page, bad)
	}
	req, err := http.NewRequestWithContext(t.Context(), http.MethodGet, s.PageURL()+"changes", nil)
	require.NoError(t, err)
	resp, err := (&http.Client{Transport: &http.Transport{DisableKeepAlives: true}}).Do(req)
	require.NoError(t, err)
	defer func() { _ = resp.Body.Close() }()
	line, err := bufio.NewReader(resp.Body).ReadString('\n')
	require.NoError(t, err)
	assert.Equal(t, "data: changed\n", line)
}
