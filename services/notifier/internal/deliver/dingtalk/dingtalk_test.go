package dingtalk_test

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"net/url"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"go.uber.org/goleak"

	"github.com/lifeboat-fleet/lifeboat/fleet/bus"
	"github.com/lifeboat-fleet/lifeboat/fleet/config"
	"github.com/lifeboat-fleet/lifeboat/fleet/fleettest/chattest"
	"github.com/lifeboat-fleet/lifeboat/services/notifier/internal/deliver/dingtalk"
	"github.com/lifeboat-fleet/lifeboat/services/notifier/internal/deliver/webhook"
	"github.com/lifeboat-fleet/lifeboat/services/notifier/internal/notice"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// free takes for a budget that never ends.
func free(context.Context, notice.Call) error { return nil }

func send(t *testing.T, s *dingtalk.Sender, n notice.Notice) error {
	t.Helper()
	ref, err := s.Send(t.Context(), n, notice.Ref{}, free)
	assert.Zero(t, ref, "a robot's messages cannot be edited")
	return err
}

// robot is a sender for a robot of the chat, with its own clock.
func robot(t *testing.T, chat *chattest.Server, style string, now func() time.Time) *dingtalk.Sender {
	t.Helper()
	client := webhook.New(config.TLS{})
	t.Cleanup(client.Close)
	return dingtalk.New(dingtalk.Options{
		Address: func() (string, error) { return chat.DingTalkURL(), nil },
		Secret:  func() (string, error) { return chat.DingTalkSecret(), nil },
		Poster:  client, Now: now, Style: style,
	})
}

// recorder is a poster that keeps what it is given, and answers in turn; at the end it takes everything.
type recorder struct {
	answers []answer
	bodies  [][]byte
	queries []url.Values
}

type answer struct {
	status int
	body   string
	err    error
}

func (r *recorder) Post(_ context.Context, address string, body []byte) (int, http.Header, []byte, error) {
	u, err := url.Parse(address)
	if err != nil {
		return 0, nil, nil, err
	}
	r.bodies, r.queries = append(r.bodies, body), append(r.queries, u.Query())
	a := answer{status: http.StatusOK, body: `{"errcode":0,"errmsg":"ok"}`}
	if len(r.answers) > 0 {
		a, r.answers = r.answers[0], r.answers[1:]
	}
	return a.status, nil, []byte(a.body), a.err
}

const token = "s3cret-token"

func recorded(r *recorder, style string) *dingtalk.Sender {
	return dingtalk.New(dingtalk.Options{
		Address: func() (string, error) { return "https://oapi.dingtalk.com/robot/send?access_token=" + token, nil },
		Poster:  r, Now: time.Now, Style: style,
	})
}

func code(c int) answer {
	return answer{status: 200, body: fmt.Sprintf(`{"errcode":%d,"errmsg":"m %s"}`, c, token)}
}

func refused(msg string) answer {
	return answer{status: 200, body: fmt.Sprintf(`{"errcode":310000,"errmsg":%q}`, msg)}
}

func TestAnswersAreClassified(t *testing.T) {
	t.Parallel()
	for name, c := range map[string]struct {
		answer answer
		want   string // "", retry, terminal, or a delay
		says   string
	}{
		"ok":               {code(0), "", ""},
		"busy":             {code(-1), "retry", "errcode -1"},
		"too fast":         {code(130101), "10m0s", "throttles the robot"},
		"too fast, too":    {code(410100), "10m0s", "throttles the robot"},
		"gateway throttle": {answer{status: 200, body: chattest.DingTalkThrottled().Body}, "10m0s", "throttles the robot"},
		"only punish":      {answer{status: 200, body: `{"punish":"deny"}`}, "10m0s", "throttles the robot"},
		"429":              {answer{status: 429}, "10m0s", "throttles the robot"},
		"quota":            {code(90030), "10m0s", "quota"},
		"signature":        {refused("sign not match, more: [https://x]"), "5m0s", "secret_file does not hold"},
		"signature, new":   {refused("description:机器人发送签名不匹配;solution:请确认签名和生成签名的时间戳必须都放在调用的网址中;link:..."), "5m0s", "secret_file does not hold"},
		"keyword":          {refused("keywords not in content"), "5m0s", "keyword"},
		"keyword, new":     {refused("description:关键词不匹配;solution:请确认签名"), "5m0s", "keyword"},
		"time":             {refused("invalid timestamp"), "5m0s", "clock"},
		"address":          {refused("ip 1.2.3.4 not in whitelist"), "5m0s", "listed addresses"},
		"other security":   {refused("no"), "5m0s", "security settings"},
		"no token":         {code(300005), "5m0s", "webhook_url_file"},
		"no token, too":    {code(400101), "5m0s", "webhook_url_file"},
		"robot stopped":    {code(400102), "5m0s", "switch it on"},
		"group gone":       {code(400013), "5m0s", "group is gone"},
		"robot absent":     {code(400106), "5m0s", "add it again"},
		"bad params":       {code(40035), "terminal", "40035"},
		"bad body":         {code(43004), "terminal", "43004"},
		"bad type":         {code(400105), "terminal", "400105"},
		"bad content":      {code(400403), "terminal", "400403"},
		"unknown":          {code(12345), "terminal", "12345"},
		"400":              {answer{status: 400, body: "<html>"}, "terminal", "HTTP 400"},
		"404":              {answer{status: 404, body: "<html>"}, "5m0s", "webhook_url_file"},
		"302":              {answer{status: 302}, "5m0s", "webhook_url_file"},
		"502":              {answer{status: 502, body: "<html>"}, "retry", "HTTP 502"},
		"408":              {answer{status: 408}, "retry", "HTTP 408"},
		"not JSON":         {answer{status: 200, body: "<html>"}, "retry", "not its JSON"},
		"no errcode":       {answer{status: 200, body: "{}"}, "retry", "not its JSON"},
		"network":          {answer{err: errors.New("connection refused")}, "retry", "connection refused"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			r := &recorder{answers: []answer{c.answer}}
			err := send(t, recorded(r, ""), example("A", 1))
			assert.Equal(t, c.want, kind(err))
			if c.says != "" {
				require.ErrorContains(t, err, c.says)
			}
			assert.Equal(t, c.says == "throttles the robot", errors.Is(err, notice.ErrThrottled))
			assert.NotContains(t, fmt.Sprint(err), token)
			assert.Len(t, r.bodies, 1)
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

func TestEveryErrorOfTheRobotIsKnown(t *testing.T) {
	t.Parallel()
	chat := chattest.NewWith(t, chattest.Options{NoLimits: true})
	s := robot(t, chat, "", time.Now)
	for want, codes := range map[string][]int{
		"":         {0},
		"retry":    {-1},
		"10m0s":    {130101, 410100, 90030},
		"5m0s":     {310000, 300005, 400101, 400102, 400013, 400106},
		"terminal": {40035, 43004, 400105, 400403},
	} {
		for _, c := range codes {
			chat.FailNext(chattest.DingTalk, 1, chattest.DingTalkError(c))
			assert.Equal(t, want, kind(send(t, s, example("A", 1))), "%d", c)
		}
	}
	chat.FailNext(chattest.DingTalk, 1, chattest.DingTalkThrottled())
	assert.Equal(t, "10m0s", kind(send(t, s, example("A", 1))))
	assert.Empty(t, chat.Messages())
}

func TestTheSignatureIsNewForEachAttempt(t *testing.T) {
	t.Parallel()
	chat := chattest.New(t)
	now := time.Now()
	s := robot(t, chat, "", func() time.Time { return now })
	require.NoError(t, send(t, s, example("A", 1)))
	now = now.Add(-61 * time.Minute)
	require.ErrorContains(t, send(t, s, example("A", 1)), "clock")
	now = time.Now()
	require.NoError(t, send(t, s, example("A", 1)))

	secret := "SEC-wrong"
	r := &recorder{}
	s = dingtalk.New(dingtalk.Options{
		Address: func() (string, error) { return "https://x/?access_token=" + token, nil },
		Secret:  func() (string, error) { return secret, nil }, Poster: r, Now: func() time.Time { return now },
	})
	r.answers = []answer{{status: 200, body: `{"errcode":310000,"errmsg":"sign not match: SEC-wrong ` + token + `"}`}}
	err := send(t, s, example("A", 1))
	require.ErrorContains(t, err, "secret_file")
	assert.NotContains(t, err.Error(), secret)
	assert.NotContains(t, err.Error(), token)
	now = now.Add(time.Millisecond)
	require.NoError(t, send(t, s, example("A", 1)))
	assert.NotEqual(t, r.queries[0].Get("sign"), r.queries[1].Get("sign"))
	assert.Equal(t, token, r.queries[0].Get("access_token"))
}

func TestTheKeyIsTheRobotsAndNotTheAddress(t *testing.T) {
	t.Parallel()
	key := func(address string) string {
		s := dingtalk.New(dingtalk.Options{Address: func() (string, error) { return address, nil }, Now: time.Now})
		k, err := s.Key()
		require.NoError(t, err)
		assert.Regexp(t, "^dingtalk-[0-9a-f]{16}$", k)
		return k
	}
	one := key("https://oapi.dingtalk.com/robot/send?access_token=abcdef")
	assert.Equal(t, one, key("https://oapi.dingtalk.com/robot/send?timestamp=1&sign=x&access_token=abcdef"))
	assert.NotEqual(t, one, key("https://oapi.dingtalk.com/robot/send?access_token=abcdeg"))
	assert.NotEqual(t, key("https://x/1"), key("https://x/2"))

	unreadable := dingtalk.New(dingtalk.Options{Address: func() (string, error) { return "", errors.New("no such file") }})
	_, err := unreadable.Key()
	require.ErrorContains(t, err, "no such file")
}

func TestTooLongIsHalvedOnce(t *testing.T) {
	t.Parallel()
	n := example(strings.Repeat("long text ", 40), 10)
	taken := 0
	take := func(context.Context, notice.Call) error { taken++; return nil }
	r := &recorder{answers: []answer{code(460101)}}
	_, err := recorded(r, "").Send(t.Context(), n, notice.Ref{}, take)
	require.NoError(t, err)
	require.GreaterOrEqual(t, len(r.bodies), 3)
	assert.Equal(t, len(r.bodies), taken, "every request takes of the budget")
	told := 0
	for _, b := range r.bodies[1:] {
		assert.LessOrEqual(t, len(b), len(r.bodies[0])/2)
		told += count(b, "rb.example.com")
	}
	assert.Equal(t, 10, told, "the halves tell what the whole did")

	r = &recorder{answers: []answer{code(101002), code(460101)}}
	err = send(t, recorded(r, ""), n)
	reason, terminal := bus.TerminalReason(err)
	assert.True(t, terminal)
	assert.Equal(t, "dingtalk_too_long", reason)
	assert.Len(t, r.bodies, 2)

	r = &recorder{answers: []answer{{status: http.StatusRequestEntityTooLarge}, code(130101)}}
	assert.Equal(t, "10m0s", kind(send(t, recorded(r, ""), n)), "what else a half meets is as for the whole")
}

func TestNothingIsSentThatTheBudgetRefuses(t *testing.T) {
	t.Parallel()
	empty := errors.New("no room")
	r := &recorder{}
	_, err := recorded(r, "").Send(t.Context(), example("A", 1), notice.Ref{}, func(_ context.Context, call notice.Call) error {
		assert.Equal(t, notice.Post, call)
		return empty
	})
	require.ErrorIs(t, err, empty)
	assert.Empty(t, r.bodies)
}
