package silence

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"net/http"
	"net/http/httptest"
	"net/url"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/slack-go/slack"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/lifeboat-fleet/lifeboat/fleet/config"
	"github.com/lifeboat-fleet/lifeboat/fleet/fleettest/chattest"
)

// chatBench is a bench with Slack beside it.
type chatBench struct {
	*bench
	chat *chattest.Server
}

func newChatBench(t *testing.T, alertmanagers ...string) *chatBench {
	t.Helper()
	chat := chattest.NewWith(t, chattest.Options{NoLimits: true})
	b := &chatBench{newBench(t, alertmanagers...), chat}
	api := chat.SlackAPIURL()
	b.o.AllowedResponsePrefix = strings.TrimSuffix(api, "api/") + "response/"
	b.file("signing", chat.SlackSigningSecret())
	b.secrets = append(b.secrets, "/response/", chat.SlackAppToken(), "ticket=")
	b.set(func(c *config.Config) { c.Notifier.Interactions.SlackAPIURL = api })
	return b
}

func (b *chatBench) serveSlack() string {
	site := b.serve()
	b.chat.SetInteractionsURL(site + SlackPath)
	return site + SlackPath
}

// post posts a message with buttons and returns its ts. A value that is a string is not a button's value of ours.
func (b *chatBench) post(values map[string]any) string {
	b.t.Helper()
	var elements []slack.BlockElement
	for action, value := range values {
		text, ok := value.(string)
		if !ok {
			raw, err := json.Marshal(value)
			require.NoError(b.t, err)
			text = string(raw)
		}
		elements = append(elements, slack.NewButtonBlockElement(action, text, slack.NewTextBlockObject(slack.PlainTextType, action, false, false)))
	}
	api := slack.New(b.chat.SlackBotToken(), slack.OptionAPIURL(b.chat.SlackAPIURL()),
		slack.OptionHTTPClient(&http.Client{Transport: &http.Transport{DisableKeepAlives: true}}))
	_, ts, err := api.PostMessageContext(b.t.Context(), b.chat.SlackChannel(), slack.MsgOptionText("DiskFull", false),
		slack.MsgOptionBlocks(slack.NewSectionBlock(slack.NewTextBlockObject(slack.PlainTextType, "DiskFull", false, false), nil, nil),
			slack.NewActionBlock("lifeboat", elements...)))
	require.NoError(b.t, err)
	return ts
}

// said waits for so many answers in the channel and to the person alone, and returns the last of each.
func (b *chatBench) said(inChannel, alone int) (public, private chattest.Message) {
	b.t.Helper()
	require.Eventually(b.t, func() bool {
		all := b.answers()
		whispers := b.chat.Ephemerals()
		if len(all) < inChannel || len(whispers) < alone {
			return false
		}
		if inChannel > 0 {
			public = all[len(all)-1]
		}
		if alone > 0 {
			private = whispers[len(whispers)-1]
		}
		return true
	}, time.Minute, 20*time.Millisecond)
	return public, private
}

// answers are the messages in the channel that have no buttons.
func (b *chatBench) answers() (out []chattest.Message) {
	for _, m := range b.chat.Messages() {
		if !strings.Contains(string(m.Raw), "lifeboat") {
			out = append(out, m)
		}
	}
	return out
}

func hour() map[string]any {
	return map[string]any{"r": "ops", "m": disk(), "c": "[FIRING:1] DiskFull", "d": 3600}
}

func TestAPressInSlackSilences(t *testing.T) {
	t.Parallel()
	am := alertmanager(t)
	b := newChatBench(t, am.URL)
	b.serveSlack()
	fire(t, am.URL, disk())
	four := map[string]any{"r": "ops", "m": disk(), "c": "c", "d": 4 * 3600}
	ack := map[string]any{"r": "beijing", "m": map[string]string{"alertname": "ConsulDown"}, "c": "ConsulDown", "d": 0}
	ts := b.post(map[string]any{"lifeboat_silence_1": hour(), "lifeboat_silence_4": four, "lifeboat_ack": ack})

	require.NoError(t, b.chat.Press(t.Context(), "ann", ts, "lifeboat_silence_1"))
	public, _ := b.said(1, 0)
	all := silences(t, am.URL)
	require.Len(t, all, 1)
	who := "ann (" + chattest.SlackUserID("ann") + ")"
	assert.Equal(t, who, all[0].CreatedBy)
	assert.Equal(t, "[FIRING:1] DiskFull", all[0].Comment)
	assert.WithinDuration(t, time.Now().Add(time.Hour), all[0].EndsAt, time.Minute)
	assert.Regexp(t, `^Silenced for 1h by ann \(U[0-9A-F]+\) until ([0-9-]+ )?[0-9]{2}:[0-9]{2} UTC: `+all[0].ID+`$`, public.Text)
	assert.Contains(t, string(public.Raw), `"thread_ts":"`+ts+`"`)
	assert.Contains(t, string(public.Raw), `"replace_original":false`)
	require.Eventually(t, func() bool { return len(suppressed(t, am.URL)["etcd-prod"]) == 1 }, time.Minute, 50*time.Millisecond)
	require.Len(t, b.recorded(), 1)
	assert.Equal(t, map[string]string{"receiver": "ops", "user": chattest.SlackUserID("ann"), "way": "slack"}, map[string]string{
		"receiver": b.recorded()[0].GetAttributes()["receiver"], "user": b.recorded()[0].GetAttributes()["user"], "way": b.recorded()[0].GetAttributes()["way"],
	})

	require.NoError(t, b.chat.Press(t.Context(), "ann", ts, "lifeboat_silence_1"))
	_, private := b.said(1, 1)
	assert.Contains(t, private.Text, "Already silenced by "+who)
	assert.Equal(t, chattest.SlackUserID("ann"), private.User)
	assert.Len(t, silences(t, am.URL), 1, "pressed twice")

	require.NoError(t, b.chat.Press(t.Context(), "bob", ts, "lifeboat_ack"))
	public, _ = b.said(2, 1)
	assert.Regexp(t, `^已确认并静默 2h，操作人 bob \(U[0-9A-F]+\)，至 ([0-9-]+ )?[0-9]{2}:[0-9]{2} CST：`, public.Text, "the words and the clock of the receiver")
	assert.Len(t, silences(t, am.URL), 2)
	assert.Equal(t, 2, b.counted(waySlack, "created"))
	assert.Equal(t, 1, b.counted(waySlack, "existing"))
}

func TestAPressThatFailsIsToldToThePersonAlone(t *testing.T) {
	t.Parallel()
	b := newChatBench(t, "http://127.0.0.1:1")
	b.serveSlack()
	ts := b.post(map[string]any{
		"lifeboat_silence_1": hour(), "lifeboat_silence_2": map[string]any{"r": "ops", "m": nil, "c": "<!channel>", "d": 3600},
		"lifeboat_silence_3": "not JSON", "lifeboat_silence_4": map[string]any{"m": disk(), "d": int64(1) << 60},
	})
	for i, want := range []string{
		"Not silenced: no Alertmanager of alertmanager.urls took the silence: http://127.0.0.1:1: ", "a silence without labels would match every alert",
		"the button cannot be read", "a silence lasts from a second to 31 days",
	} {
		require.NoError(t, b.chat.Press(t.Context(), "ann", ts, fmt.Sprintf("lifeboat_silence_%d", i+1)))
		_, private := b.said(0, i+1)
		assert.Contains(t, private.Text, want)
	}
	assert.Empty(t, b.answers())
	assert.Equal(t, 1, b.counted(waySlack, "failed"))
	assert.Equal(t, 3, b.counted(waySlack, "refused"))
}

// interaction is a form body as Slack posts it.
func interaction(t *testing.T, payload map[string]any) []byte {
	t.Helper()
	raw, err := json.Marshal(payload)
	require.NoError(t, err)
	return []byte(url.Values{"payload": {string(raw)}}.Encode())
}

func pressOf(action, response string) map[string]any {
	value, _ := json.Marshal(hour())
	return map[string]any{
		"type": "block_actions", "user": map[string]any{"id": "U0123", "name": "ann"}, "response_url": response,
		"actions": []any{map[string]any{"type": "button", "action_id": action, "block_id": "b", "value": string(value)}},
	}
}

func TestOnlySlackMayPress(t *testing.T) {
	t.Parallel()
	am := alertmanager(t)
	b := newChatBench(t, am.URL)
	address := b.serveSlack()
	now := time.Now()
	body := interaction(t, pressOf("lifeboat_silence_1", ""))
	good := func() http.Header { return b.chat.SignSlack(body, now) }
	with := func(name, value string) http.Header {
		h := good()
		h.Set(name, value)
		return h
	}
	without := func(name string) http.Header {
		h := good()
		h.Del(name)
		return h
	}
	large := bytes.Repeat([]byte("x"), maxInteraction+1)
	for name, c := range map[string]struct {
		body   []byte
		header http.Header
		code   int
	}{
		"no signature":        {body, without("X-Slack-Signature"), 401},
		"no time":             {body, without("X-Slack-Request-Timestamp"), 401},
		"another signature":   {body, with("X-Slack-Signature", "v0="+strings.Repeat("0", 64)), 401},
		"half a signature":    {body, with("X-Slack-Signature", good().Get("X-Slack-Signature")[:20]), 401},
		"another version":     {body, with("X-Slack-Signature", strings.Replace(good().Get("X-Slack-Signature"), "v0=", "v1=", 1)), 401},
		"another time":        {body, with("X-Slack-Request-Timestamp", "1"), 401},
		"no number":           {body, with("X-Slack-Request-Timestamp", "now"), 401},
		"another body":        {append(bytes.Clone(body), '&'), good(), 401},
		"six minutes old":     {body, b.chat.SignSlack(body, now.Add(-6*time.Minute)), 401},
		"six minutes too new": {body, b.chat.SignSlack(body, now.Add(6*time.Minute)), 401},
		"huge":                {large, b.chat.SignSlack(large, now), 413},
		"no payload":          {[]byte("a=b"), b.chat.SignSlack([]byte("a=b"), now), 400},
		"no form":             {[]byte("%zz"), b.chat.SignSlack([]byte("%zz"), now), 400},
		"wrong types":         {[]byte("payload=%7B%22actions%22%3A1%7D"), b.chat.SignSlack([]byte("payload=%7B%22actions%22%3A1%7D"), now), 400},
	} {
		code, answer, _ := do(t, http.MethodPost, address, string(c.body), c.header)
		assert.Equal(t, c.code, code, "%s: %s", name, answer)
	}
	code, _, _ := do(t, http.MethodGet, address, "", good())
	assert.Equal(t, http.StatusMethodNotAllowed, code)
	require.NoError(t, b.jobs.wait(t.Context()))
	assert.Empty(t, silences(t, am.URL))
	assert.Equal(t, 14, b.counted(waySlack, "refused"))

	// Of two secrets either is good, while one is replaced by the other.
	b.file("signing", "another-secret\n"+b.chat.SlackSigningSecret())
	code, answer, _ := do(t, http.MethodPost, address, string(body), good())
	require.Equal(t, http.StatusOK, code, answer)
	require.NoError(t, b.jobs.wait(t.Context()))
	require.Len(t, silences(t, am.URL), 1)

	b.set(func(c *config.Config) { c.Notifier.Interactions.SlackSigningSecretFile = "/nowhere/signing" })
	code, _, _ = do(t, http.MethodPost, address, string(body), good())
	assert.Equal(t, http.StatusServiceUnavailable, code)
	b.set(func(c *config.Config) { c.Notifier.Interactions.SlackSigningSecretFile = "" })
	code, _, _ = do(t, http.MethodPost, address, string(body), good())
	assert.Equal(t, http.StatusNotFound, code)
}

func TestAReplayedPressDoesNothing(t *testing.T) {
	t.Parallel()
	am := alertmanager(t)
	b := newChatBench(t, am.URL)
	address := b.serveSlack()
	body := interaction(t, pressOf("lifeboat_silence_1", ""))
	header := b.chat.SignSlack(body, time.Now())
	post := func() {
		code, answer, _ := do(t, http.MethodPost, address, string(body), header)
		require.Equal(t, http.StatusOK, code, answer)
		require.NoError(t, b.jobs.wait(t.Context()))
	}
	post()
	all := silences(t, am.URL)
	require.Len(t, all, 1)
	code, _, _ := do(t, http.MethodDelete, am.URL+"/api/v2/silence/"+all[0].ID, "", nil)
	require.Equal(t, http.StatusOK, code)
	post()
	upper := header.Clone()
	upper.Set("X-Slack-Signature", "v0="+strings.ToUpper(strings.TrimPrefix(header.Get("X-Slack-Signature"), "v0=")))
	header = upper
	post()
	all = silences(t, am.URL)
	require.Len(t, all, 1, "a silence that somebody ended stays ended")
	assert.Equal(t, "expired", all[0].Status.State)

	// Another notifier does not remember the press, but sees the silence.
	second := newChatBench(t, am.URL)
	second.file("signing", b.chat.SlackSigningSecret())
	address = second.serveSlack()
	post()
	require.NoError(t, second.jobs.wait(t.Context()))
	third := newChatBench(t, am.URL)
	third.file("signing", b.chat.SlackSigningSecret())
	address = third.serveSlack()
	post()
	require.NoError(t, third.jobs.wait(t.Context()))
	assert.Len(t, silences(t, am.URL), 2)
}

func TestTheRequestURLIsLimited(t *testing.T) {
	t.Parallel()
	b := newChatBench(t)
	b.at(time.Now())
	address := b.serveSlack()
	for range burst {
		code, _, _ := do(t, http.MethodPost, address, "x", nil)
		require.Equal(t, http.StatusUnauthorized, code)
	}
	lines := strings.Count(b.log.String(), "\n")
	code, _, header := do(t, http.MethodPost, address, "x", nil)
	assert.Equal(t, http.StatusTooManyRequests, code)
	assert.NotEmpty(t, header.Get("Retry-After"))
	assert.Equal(t, lines, strings.Count(b.log.String(), "\n"), "nobody fills the log")
	assert.Equal(t, burst+1, b.counted(waySlack, "refused"))
}

func TestWhatIsNotOursIsLeftAlone(t *testing.T) {
	t.Parallel()
	var asked atomic.Int64
	am := httptest.NewServer(http.HandlerFunc(func(http.ResponseWriter, *http.Request) { asked.Add(1) }))
	t.Cleanup(am.Close)
	b := newChatBench(t, am.URL)
	address := b.serveSlack()
	view := pressOf("lifeboat_silence_1", "")
	view["type"] = "view_submission"
	attachment := pressOf("lifeboat_silence_1", "")
	attachment["type"] = "interactive_message"
	for name, payload := range map[string]map[string]any{
		"another button": pressOf("open_runbook", ""), "another prefix": pressOf("lifeboat_ack_not", ""), "a view": view, "an attachment": attachment,
		"nothing": {"type": "block_actions"}, "no action": {"type": "block_actions", "actions": []any{}},
	} {
		body := interaction(t, payload)
		code, answer, _ := do(t, http.MethodPost, address, string(body), b.chat.SignSlack(body, time.Now()))
		assert.Equal(t, http.StatusOK, code, "%s: %s", name, answer)
		assert.Empty(t, answer, name)
	}
	require.NoError(t, b.jobs.wait(t.Context()))
	assert.Zero(t, asked.Load())
}

func TestAnswersGoToSlackAlone(t *testing.T) {
	t.Parallel()
	am := alertmanager(t)
	b := newChatBench(t, am.URL)
	address := b.serveSlack()
	var asked atomic.Int64
	inside := httptest.NewServer(http.HandlerFunc(func(http.ResponseWriter, *http.Request) { asked.Add(1) }))
	t.Cleanup(inside.Close)
	host := strings.TrimPrefix(inside.URL, "http://")
	for _, response := range []string{
		inside.URL, inside.URL + "/response/", "https://hooks.slack.com@" + host + "/", "https://" + host, "https://hooks.slack.com.evil.example.com/",
		"http://hooks.slack.com/", "https://hooks.slack.com:443@" + host, "//hooks.slack.com/", "https://user@hooks.slack.com/", "file:///etc/passwd", "https://hooks.slack.com:8443/x", "\x7f",
	} {
		assert.False(t, b.mayAnswer(response), response)
		body := interaction(t, pressOf("lifeboat_silence_1", response))
		code, _, _ := do(t, http.MethodPost, address, string(body), b.chat.SignSlack(body, time.Now()))
		require.Equal(t, http.StatusOK, code)
	}
	assert.True(t, b.mayAnswer("https://hooks.slack.com/actions/T1/2/3"))
	require.NoError(t, b.jobs.wait(t.Context()))
	assert.Zero(t, asked.Load())
	assert.Len(t, silences(t, am.URL), 1, "the person gets the silence all the same")
	assert.Contains(t, b.log.String(), "response_url is not below")
	assert.NotContains(t, b.log.String(), host)

	// Nor is a redirect followed.
	var tries atomic.Int64
	redirects := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		tries.Add(1)
		http.Redirect(w, r, inside.URL, http.StatusTemporaryRedirect)
	}))
	t.Cleanup(redirects.Close)
	b.o.AllowedResponsePrefix = redirects.URL
	require.Error(t, b.reply(t.Context(), press{response: redirects.URL + "/s3cret"}, &slack.WebhookMessage{}))
	assert.Zero(t, asked.Load())
	assert.Equal(t, int64(1), tries.Load())
}

func TestAnAnswerIsTriedAgain(t *testing.T) {
	t.Parallel()
	b := newBench(t)
	var tries atomic.Int64
	srv := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		if tries.Add(1) == 1 {
			w.WriteHeader(http.StatusBadGateway)
		}
	}))
	b.o.AllowedResponsePrefix = srv.URL
	p := press{response: srv.URL + "/s3cret"}
	require.NoError(t, b.reply(t.Context(), p, &slack.WebhookMessage{Text: "x"}))
	assert.Equal(t, int64(2), tries.Load())
	srv.Close()
	err := b.reply(t.Context(), p, &slack.WebhookMessage{Text: "x"})
	require.Error(t, err)
	assert.NotContains(t, err.Error(), "s3cret")
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	require.Error(t, b.reply(ctx, p, &slack.WebhookMessage{Text: "x"}))
	require.NoError(t, b.reply(t.Context(), press{}, nil), "nowhere to answer")
}

func TestNamesForgeNothing(t *testing.T) {
	t.Parallel()
	assert.Equal(t, "Ann (U9) (U1)", author("Ann (U9)", "U1"), "the last id is Slack's")
	assert.Equal(t, "U1", author("", "U1"))
	assert.Empty(t, author("Ann", ""), "nobody")
	b := newBench(t)
	m := b.answer(config.Receiver{}, press{}, request{lasts: time.Hour, author: "<!channel> & <@U1> (U2)"}, made{id: "id", until: time.Now()}, nil)
	assert.Contains(t, m.Text, "&lt;!channel&gt; &amp; &lt;@U1&gt; (U2)")
	b.o.AlertmanagerURL = func() string { return "https://user:pass@alerts.example.com/?x=1" }
	m = b.answer(config.Receiver{}, press{}, request{lasts: time.Hour, author: "Ann (U2)"}, made{id: "id", until: time.Now().Add(48 * time.Hour)}, nil)
	assert.Regexp(t, `until 20[0-9-]+ [0-9:]+ UTC: <https://alerts.example.com/#/silences/id\|id>$`, m.Text)
	for _, bad := range []string{"", "javascript:alert(1)", "//x", "\x7f"} {
		b.o.AlertmanagerURL = func() string { return bad }
		assert.Empty(t, b.alertmanager("id"), bad)
	}
}

func TestTheWorkIsBoundedAndAwaited(t *testing.T) {
	t.Parallel()
	hold, arrived := make(chan struct{}), make(chan struct{}, 2*maxJobs)
	am := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		arrived <- struct{}{}
		select {
		case <-hold:
		case <-r.Context().Done():
		}
		w.Header().Set("Content-Type", "application/json")
		if r.Method == http.MethodPost {
			_, _ = w.Write([]byte(`{"silenceID":"x"}`))
			return
		}
		_, _ = w.Write([]byte("[]"))
	}))
	t.Cleanup(am.Close)
	b := newChatBench(t, am.URL)
	b.at(time.Now())
	post := func(i int) int {
		p := pressOf("lifeboat_silence_1", "")
		p["user"] = map[string]any{"id": fmt.Sprintf("U%d", i), "name": "ann"}
		body := interaction(t, p)
		w := httptest.NewRecorder()
		r := httptest.NewRequestWithContext(t.Context(), http.MethodPost, SlackPath, bytes.NewReader(body))
		r.Header, r.RemoteAddr = b.chat.SignSlack(body, time.Now()), fmt.Sprintf("192.0.2.%d:1", i)
		b.Handler().ServeHTTP(w, r)
		return w.Code
	}
	for i := range maxJobs {
		require.Equal(t, http.StatusOK, post(i))
	}
	assert.Equal(t, http.StatusServiceUnavailable, post(maxJobs), "Slack shows the person that it did not work")
	for range maxJobs {
		<-arrived
	}
	closed := make(chan error)
	go func() { closed <- b.Close(t.Context()) }()
	require.Eventually(t, func() bool { b.jobs.mu.Lock(); defer b.jobs.mu.Unlock(); return b.jobs.closed }, time.Minute, time.Millisecond)
	assert.Equal(t, http.StatusServiceUnavailable, post(200), "closed")
	close(hold)
	require.NoError(t, <-closed)
	assert.Equal(t, maxJobs, b.counted(waySlack, "created"), "what was accepted was done before Close returned")
}

func TestCloseEndsWhatHangs(t *testing.T) {
	t.Parallel()
	b := newBench(t)
	begun := make(chan struct{})
	require.True(t, b.jobs.start(t.Context(), func(ctx context.Context) { close(begun); <-ctx.Done() }))
	<-begun
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	require.ErrorIs(t, b.Close(ctx), context.Canceled)
	require.NoError(t, b.Close(t.Context()), "twice")
}

func TestAPressIsRememberedForAWhile(t *testing.T) {
	t.Parallel()
	s, now := newSeen(), time.Now()
	assert.True(t, s.first("a", now))
	assert.False(t, s.first("a", now.Add(seenFor-time.Second)))
	assert.True(t, s.first("a", now.Add(seenFor)))
	for i := range 2 * maxSeen {
		s.first(fmt.Sprint(i), now)
	}
	assert.LessOrEqual(t, len(s.all), maxSeen)
	assert.True(t, s.first("new", now.Add(2*seenFor)))
	assert.False(t, s.first("new", now.Add(2*seenFor)), "old ones made room")
	s.forget("new")
	assert.True(t, s.first("new", now.Add(2*seenFor)))
}
