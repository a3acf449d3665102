package chattest_test

import (
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/lifeboat-fleet/lifeboat/fleet/fleettest/chattest"
)

// reply is what the API answers.
type reply struct {
	OK       bool
	Error    string
	TS       string
	Channel  string
	URL      string
	status   int
	after    string
	Messages map[string]any `json:"message"`
}

// ask calls a method with a token in the header and a form, as most clients do.
func ask(t *testing.T, s *chattest.Server, method, token string, fields map[string]string) reply {
	t.Helper()
	form := url.Values{}
	for k, v := range fields {
		form.Set(k, v)
	}
	return request(t, s.SlackAPIURL()+method, token, "application/x-www-form-urlencoded", form.Encode())
}

func request(t *testing.T, address, token, kind, body string) (r reply) {
	t.Helper()
	req, err := http.NewRequestWithContext(t.Context(), http.MethodPost, address, strings.NewReader(body))
	require.NoError(t, err)
	req.Header.Set("Content-Type", kind)
	if token != "" {
		req.Header.Set("Authorization", "Bearer "+token)
	}
	resp, err := (&http.Client{Transport: &http.Transport{DisableKeepAlives: true}}).Do(req)
	require.NoError(t, err)
	defer func() { _ = resp.Body.Close() }()
	raw, err := io.ReadAll(resp.Body)
	require.NoError(t, err)
	require.NoError(t, json.Unmarshal(raw, &r), "%s", raw)
	r.status, r.after = resp.StatusCode, resp.Header.Get("Retry-After")
	return r
}

func TestSlackTokens(t *testing.T) {
	t.Parallel()
	s := chattest.New(t)
	bot := s.SlackBotToken()
	assert.True(t, strings.HasPrefix(bot, "xoxb-"))
	assert.True(t, ask(t, s, "auth.test", bot, nil).OK)
	assert.True(t, ask(t, s, "auth.test", "", map[string]string{"token": bot}).OK, "the token may stand in the form")
	assert.Equal(t, "not_authed", ask(t, s, "auth.test", "", nil).Error)
	assert.Equal(t, "invalid_auth", ask(t, s, "auth.test", "xoxb-1", nil).Error)
	assert.Equal(t, "not_allowed_token_type", ask(t, s, "chat.postMessage", s.SlackAppToken(), nil).Error)
	assert.Equal(t, "not_allowed_token_type", ask(t, s, "apps.connections.open", bot, nil).Error)
	assert.Equal(t, "unknown_method", ask(t, s, "chat.nope", bot, nil).Error)
	s.RevokeToken()
	assert.Equal(t, "token_revoked", ask(t, s, "auth.test", bot, nil).Error)
	fresh := s.RenewToken()
	assert.NotEqual(t, bot, fresh)
	assert.True(t, ask(t, s, "auth.test", fresh, nil).OK)
	assert.Equal(t, "token_revoked", ask(t, s, "auth.test", bot, nil).Error)
}

func TestSlackPostsEditsAndThreads(t *testing.T) {
	t.Parallel()
	c := newClock()
	var seen []chattest.Message
	s := chattest.NewWith(t, chattest.Options{
		NoLimits: true, Now: c.now, EditWindow: time.Hour, Channels: []string{"C0SECOND"},
		OnMessage: func(m chattest.Message) { seen = append(seen, m) },
	})
	bot, here := s.SlackBotToken(), s.SlackChannel()
	post := func(fields map[string]string) reply { return ask(t, s, "chat.postMessage", bot, fields) }
	update := func(fields map[string]string) reply { return ask(t, s, "chat.update", bot, fields) }
	red := `[{"color":"#d32f2f","blocks":[` + section("strip") + `]}]`
	first := post(map[string]string{"channel": here, "text": "one", "blocks": `[` + section("*one*") + `]`, "attachments": red})
	require.True(t, first.OK, first.Error)
	assert.Equal(t, here, first.Channel)
	asJSON := request(t, s.SlackAPIURL()+"chat.postMessage", bot, "application/json; charset=utf-8", `{"channel":"C0SECOND","text":"two"}`)
	require.True(t, asJSON.OK, asJSON.Error)
	assert.NotEqual(t, first.TS, asJSON.TS, "no two have the same ts, not even within one moment")

	thread := post(map[string]string{"channel": here, "text": "detail", "thread_ts": first.TS, "reply_broadcast": "true"})
	require.True(t, thread.OK, thread.Error)
	assert.Equal(t, "thread_not_found", post(map[string]string{"channel": here, "text": "x", "thread_ts": "1.000001"}).Error)
	assert.Equal(t, "thread_not_found", post(map[string]string{"channel": "C0SECOND", "text": "x", "thread_ts": first.TS}).Error)
	assert.Equal(t, "channel_not_found", post(map[string]string{"channel": "C0NOPE", "text": "x"}).Error)
	assert.Equal(t, "no_text", post(map[string]string{"channel": here}).Error)
	assert.Equal(t, "msg_too_long", post(map[string]string{"channel": here, "text": strings.Repeat("x", 40_001)}).Error)
	assert.Equal(t, "invalid_blocks_format", post(map[string]string{"channel": here, "text": "x", "blocks": "{"}).Error)
	assert.Equal(t, "invalid_blocks", post(map[string]string{"channel": here, "text": "x", "blocks": `[{"type":"nope"}]`}).Error)
	assert.Equal(t, "invalid_attachments", post(map[string]string{"channel": here, "text": "x", "attachments": `[{"color":"octarine","text":"x"}]`}).Error)

	// Attachments that an edit does not name stay; blocks do not.
	require.True(t, update(map[string]string{"channel": here, "ts": first.TS, "text": "edited"}).OK)
	ms := s.Messages()
	require.Len(t, ms, 3)
	assert.Equal(t, "edited\nstrip", ms[0].Text)
	assert.Equal(t, "#d32f2f", ms[0].Colour)
	assert.Equal(t, 1, ms[0].Edited)
	require.True(t, update(map[string]string{"channel": here, "ts": first.TS, "text": "again", "attachments": "[]"}).OK)
	assert.Equal(t, "again", s.Messages()[0].Text)
	assert.Equal(t, first.TS, ms[2].ThreadTS)
	assert.True(t, ms[2].Broadcast)
	assert.Len(t, seen, 5, "posts and edits are told")
	assert.Equal(t, "message_not_found", update(map[string]string{"channel": here, "ts": "1.000001", "text": "x"}).Error)
	assert.Equal(t, "message_not_found", update(map[string]string{"channel": "C0SECOND", "ts": first.TS, "text": "x"}).Error)
	c.pass(2 * time.Hour)
	assert.Equal(t, "edit_window_closed", update(map[string]string{"channel": here, "ts": first.TS, "text": "x"}).Error)

	s.Delete(first.TS)
	assert.Equal(t, "message_not_found", update(map[string]string{"channel": here, "ts": first.TS, "text": "x"}).Error)
	orphan := post(map[string]string{"channel": here, "text": "orphan", "thread_ts": first.TS})
	require.True(t, orphan.OK)
	assert.Empty(t, s.Messages()[2].ThreadTS, "the reply to a deleted message stands in the channel")
	s.BreakChannel(here, "is_archived")
	assert.Equal(t, "is_archived", post(map[string]string{"channel": here, "text": "x"}).Error)
	s.BreakChannel(here, "")
	assert.True(t, post(map[string]string{"channel": here, "text": "x"}).OK)
	require.True(t, ask(t, s, "chat.postEphemeral", bot, map[string]string{"channel": here, "user": "U1", "text": "psst"}).OK)
	assert.Len(t, s.Ephemerals(), 1)
	assert.Equal(t, "U1", s.Ephemerals()[0].User)
	for _, m := range s.Messages() {
		assert.NotContains(t, string(m.Raw), bot)
	}
}

func TestSlackLimitsEachChannelAndEdits(t *testing.T) {
	t.Parallel()
	c := newClock()
	s := chattest.NewWith(t, chattest.Options{SlackBurst: 2, Now: c.now, Channels: []string{"C0SECOND"}})
	post := func(channel string) reply {
		return ask(t, s, "chat.postMessage", s.SlackBotToken(), map[string]string{"channel": channel, "text": "x"})
	}
	first := post(s.SlackChannel())
	require.True(t, post(s.SlackChannel()).OK)
	limited := post(s.SlackChannel())
	assert.Equal(t, http.StatusTooManyRequests, limited.status)
	assert.Equal(t, "1", limited.after)
	assert.Equal(t, "ratelimited", limited.Error)
	assert.True(t, post("C0SECOND").OK, "each channel has its own")
	c.pass(time.Second)
	assert.True(t, post(s.SlackChannel()).OK)
	edit := func() reply {
		return ask(t, s, "chat.update", s.SlackBotToken(), map[string]string{"channel": s.SlackChannel(), "ts": first.TS, "text": "y"})
	}
	for range 50 {
		require.True(t, edit().OK)
	}
	limited = edit()
	assert.Equal(t, http.StatusTooManyRequests, limited.status)
	assert.Equal(t, "60", limited.after)
	c.pass(time.Minute)
	assert.True(t, edit().OK)
}

func TestSlackBlocksOfButtons(t *testing.T) {
	t.Parallel()
	button := func(id, label, value string) string {
		return fmt.Sprintf(`{"type":"button","action_id":%q,"value":%q,"text":{"type":"plain_text","text":%q}}`, id, value, label)
	}
	actions := func(bs ...string) string {
		return `{"blocks":[{"type":"actions","elements":[` + strings.Join(bs, ",") + `]}]}`
	}
	long := func(n int) string { return strings.Repeat("x", n) }
	var many []string
	for i := range 26 {
		many = append(many, button(fmt.Sprint(i), "b", ""))
	}
	for name, c := range map[string]struct{ body, want string }{
		"good":             {actions(button("a", long(75), long(2000)), button("b", "b", "")), ""},
		"25":               {actions(many[:25]...), ""},
		"26":               {actions(many...), "invalid_blocks"},
		"none":             {actions(), "invalid_blocks"},
		"label":            {actions(button("a", long(76), "")), "invalid_blocks"},
		"no label":         {actions(button("a", "", "")), "invalid_blocks"},
		"value":            {actions(button("a", "b", long(2001))), "invalid_blocks"},
		"id":               {actions(button(long(256), "b", "")), "invalid_blocks"},
		"same id":          {actions(button("a", "b", ""), button("a", "c", "")), "invalid_blocks"},
		"mrkdwn":           {actions(`{"type":"button","text":{"type":"mrkdwn","text":"b"}}`), "invalid_blocks"},
		"url":              {actions(`{"type":"button","url":"https://` + long(3000) + `","text":{"type":"plain_text","text":"b"}}`), "invalid_blocks"},
		"style":            {actions(`{"type":"button","style":"loud","text":{"type":"plain_text","text":"b"}}`), "invalid_blocks"},
		"same block id":    {`{"blocks":[{"type":"divider","block_id":"x"},{"type":"divider","block_id":"x"}]}`, "invalid_blocks"},
		"empty attachment": {`{"text":"x","attachments":[{"color":"#123456"}]}`, "invalid_attachments"},
		"blocks of attachments count": {
			`{"attachments":[{"blocks":[` + strings.TrimSuffix(strings.Repeat(`{"type":"divider"},`, 51), ",") + `]}]}`, "invalid_blocks",
		},
		"101 attachments": {`{"attachments":[` + strings.TrimSuffix(strings.Repeat(`{"text":"x"},`, 101), ",") + `]}`, "too_many_attachments"},
	} {
		assert.Equal(t, c.want, chattest.CheckSlack([]byte(c.body)), name)
	}
}

func TestSlackFaultsOfOneMethod(t *testing.T) {
	t.Parallel()
	s := chattest.NewWith(t, chattest.Options{NoLimits: true})
	bot, here := s.SlackBotToken(), s.SlackChannel()
	post := func(thread string) reply {
		fields := map[string]string{"channel": here, "text": "x"}
		if thread != "" {
			fields["thread_ts"] = thread
		}
		return ask(t, s, "chat.postMessage", bot, fields)
	}
	s.FailNext(chattest.SlackThread, 1, chattest.Fault{Word: "internal_error", Accept: true})
	first := post("")
	require.True(t, first.OK)
	assert.Equal(t, "internal_error", post(first.TS).Error)
	assert.Len(t, s.Messages(), 2, "it was taken all the same")
	s.FailNext(chattest.Slack, 1, chattest.Fault{Word: "fatal_error"})
	assert.Equal(t, "fatal_error", post("").Error, "a fault of Slack meets every method")
	s.FailAll(chattest.SlackUpdate, chattest.Fault{Word: "cant_update_message"})
	assert.Equal(t, "cant_update_message", ask(t, s, "chat.update", bot, map[string]string{"channel": here, "ts": first.TS}).Error)
	assert.True(t, post("").OK)
	assert.Equal(t, 5, s.Requests(chattest.Slack))
	assert.Equal(t, 3, s.Requests(chattest.SlackPost))
	assert.Equal(t, 1, s.Requests(chattest.SlackThread))
	code, body, _ := do(t, http.MethodPost, s.SlackURL(), `{"text":"x"}`)
	assert.Equal(t, "200 ok", fmt.Sprint(code, " ", body))
	s.FailNext(chattest.Slack, 1, chattest.Fault{Status: 403, Word: "invalid_token"})
	code, body, _ = do(t, http.MethodPost, s.SlackURL(), `{"text":"x"}`)
	assert.Equal(t, "403 invalid_token", fmt.Sprint(code, " ", body), "the webhook answers with the bare word")
}

func TestASinkKeepsNoMoreThanItIsTold(t *testing.T) {
	t.Parallel()
	var told atomic.Int32
	s := chattest.NewWith(t, chattest.Options{NoLimits: true, Keep: 3, OnMessage: func(chattest.Message) { told.Add(1) }})
	var wg sync.WaitGroup
	for range 4 {
		wg.Go(func() {
			for i := range 25 {
				code, _, _ := do(t, http.MethodPost, s.SlackURL(), fmt.Sprintf(`{"text":"%d"}`, i))
				assert.Equal(t, http.StatusOK, code)
				signed := s.DingTalkURL() + "&" + sign(time.Now(), s.DingTalkSecret()).Encode()
				_, body, _ := do(t, http.MethodPost, signed, `{"msgtype":"text","text":{"content":"x"}}`)
				assert.Contains(t, body, `"errcode":0`)
				assert.True(t, ask(t, s, "chat.postMessage", s.SlackBotToken(), map[string]string{"channel": s.SlackChannel(), "text": "x"}).OK)
			}
		})
	}
	wg.Wait()
	assert.Equal(t, int32(300), told.Load())
	assert.Len(t, s.Messages(), 3)
}

func TestThePageShowsEditsThreadsAndButtons(t *testing.T) {
	t.Parallel()
	s := chattest.NewWith(t, chattest.Options{NoLimits: true})
	bot, here := s.SlackBotToken(), s.SlackChannel()
	first := ask(t, s, "chat.postMessage", bot, map[string]string{
		"channel": here, "text": "x", "attachments": `[{"color":"#2eb886","text":"green"}]`,
		"blocks": `[` + section("```\nkubectl get <b>\n```") + `,{"type":"actions","elements":[{"type":"button","action_id":"<a>","text":{"type":"plain_text","text":"Press <me>"}}]}]`,
	})
	require.True(t, first.OK, first.Error)
	_, page, _ := do(t, http.MethodGet, s.PageURL(), "")
	assert.Contains(t, page, `<article class="green">`)
	assert.Contains(t, page, `<code class="fence">kubectl get &lt;b&gt;</code>`)
	assert.Contains(t, page, `<span class="button" title="&lt;a&gt;">Press &lt;me&gt;</span>`)
	ask(t, s, "chat.postMessage", bot, map[string]string{"channel": here, "text": "the detail", "thread_ts": first.TS})
	ask(t, s, "chat.update", bot, map[string]string{"channel": here, "text": "now", "ts": first.TS})
	ask(t, s, "chat.postEphemeral", bot, map[string]string{"channel": here, "text": "psst", "user": "U1"})
	_, page, _ = do(t, http.MethodGet, s.PageURL(), "")
	assert.Contains(t, page, "(edited 1×)")
	assert.Contains(t, page, "<summary>1 in the thread</summary>")
	assert.Equal(t, 1, strings.Count(page, "the detail"))
	assert.Contains(t, page, "Only visible to U1")
}
