package slack_test

import (
	"context"
	"encoding/json"
	"fmt"
	"net/http"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/lifeboat-fleet/lifeboat/fleet/fleettest/chattest"
	"github.com/lifeboat-fleet/lifeboat/services/notifier/internal/deliver/slack"
	"github.com/lifeboat-fleet/lifeboat/services/notifier/internal/notice"
)

// clock is moved by the test.
type clock struct{ ns atomic.Int64 }

func newClock() *clock {
	c := &clock{}
	c.ns.Store(time.Date(2026, 11, 21, 4, 0, 0, 0, time.UTC).UnixNano())
	return c
}
func (c *clock) now() time.Time       { return time.Unix(0, c.ns.Load()) }
func (c *clock) pass(d time.Duration) { c.ns.Add(int64(d)) }

func robot(t *testing.T, o chattest.Options) (*slack.Sender, *chattest.Server) {
	t.Helper()
	chat := chattest.NewWith(t, o)
	return slack.New(botOptions(chat)), chat
}

func botOptions(chat *chattest.Server) slack.Options {
	return slack.Options{
		Receiver: "ops", BotToken: func() (string, error) { return chat.SlackBotToken(), nil }, Channel: chat.SlackChannel(),
		APIURL: chat.SlackAPIURL(),
	}
}

// group is a notice of alerts, by name and whether they fire.
func group(status notice.Status, items ...notice.Item) notice.Notice {
	return notice.Notice{Status: status, Title: fmt.Sprintf("[%s] Etcd", status), Severity: "critical", Words: notice.English(), Items: items}
}

func fires(name string) notice.Item {
	return notice.Item{
		Firing: true, Name: name, Summary: name + " is bad", Description: "Everything about " + name, Starts: time.Unix(1, 0),
		Labels: []notice.Label{{Name: "instance", Value: name + ":9090"}}, Runbook: "https://rb.example.com/" + name,
	}
}

func ended(name string) notice.Item {
	it := fires(name)
	it.Firing, it.Ends = false, time.Unix(60, 0)
	return it
}

func told(it notice.Item) notice.Item {
	it.Told = true
	return it
}

func TestAGroupHasOneMessageThatChanges(t *testing.T) {
	t.Parallel()
	c := newClock()
	chat := chattest.NewWith(t, chattest.Options{NoLimits: true, Now: c.now})
	o := botOptions(chat)
	o.Now = c.now
	s, counted := slack.New(o), &calls{}
	first := group(notice.Firing, fires("A"))
	first.Mentions = []string{"here"}
	ref, err := s.Send(t.Context(), first, notice.Ref{}, counted.take)
	require.NoError(t, err)
	ms := chat.Messages()
	require.Len(t, ms, 2)
	main, thread := ms[0], ms[1]
	assert.Equal(t, notice.Ref{Channel: chat.SlackChannel(), ID: main.TS, Posted: c.now(), Thread: 1}, ref)
	assert.Equal(t, "🔴 [firing] Etcd", main.Title)
	assert.Equal(t, "#d32f2f", main.Colour)
	assert.Contains(t, main.Text, "<!here>")
	assert.Equal(t, main.TS, thread.ThreadTS)
	assert.Contains(t, thread.Text, "instance = A:9090\nEverything about A", "details are in the thread")
	assert.NotContains(t, thread.Text, "<!here>", "people are rung once")
	assert.False(t, thread.Broadcast)

	// Another alert joins: an edit rings nobody, so the thread's reply does, and is seen in the channel.
	c.pass(time.Minute)
	second := group(notice.Firing, told(fires("A")), fires("B"))
	second.Mentions = []string{"here"}
	ref, err = s.Send(t.Context(), second, ref, counted.take)
	require.NoError(t, err)
	assert.Equal(t, notice.Ref{Channel: chat.SlackChannel(), ID: main.TS, Posted: c.now().Add(-time.Minute), Thread: 2}, ref)
	ms = chat.Messages()
	require.Len(t, ms, 3)
	assert.Equal(t, 1, ms[0].Edited)
	assert.Contains(t, ms[0].Text, "B is bad")
	assert.True(t, ms[2].Broadcast)
	assert.Contains(t, ms[2].Text, "FIRING:1* <!here>")
	assert.Contains(t, ms[2].Text, "Everything about B")
	assert.NotContains(t, ms[2].Text, "Everything about A", "what was told is not told again")

	ref, err = s.Send(t.Context(), group(notice.Resolved, ended("A"), ended("B")), ref, counted.take)
	require.NoError(t, err)
	ms = chat.Messages()
	require.Len(t, ms, 4)
	assert.Equal(t, "✅ [resolved] Etcd", ms[0].Title)
	assert.Equal(t, "#2eb886", ms[0].Colour, "resolved turns it green")
	assert.False(t, ms[3].Broadcast, "good news wakes nobody")
	assert.Contains(t, ms[3].Text, "RESOLVED:2")
	assert.Equal(t, 3, ref.Thread)
	want := []notice.Call{notice.Post, notice.Post, notice.Update, notice.Post, notice.Update, notice.Post}
	assert.Equal(t, want, counted.taken, "every request is taken from the budget, edits from their own")

	// Nothing is new: the message is brought up to date, and the thread stays as it is.
	_, err = s.Send(t.Context(), group(notice.Resolved, told(ended("A")), told(ended("B"))), ref, free)
	require.NoError(t, err)
	assert.Len(t, chat.Messages(), 4)
}

func TestAMessageThatCannotBeEditedIsPostedAnew(t *testing.T) {
	t.Parallel()
	for name, lose := range map[string]func(chat *chattest.Server, c *clock, ref *notice.Ref){
		"message_not_found":  func(chat *chattest.Server, _ *clock, ref *notice.Ref) { chat.Delete(ref.ID) },
		"edit_window_closed": func(_ *chattest.Server, c *clock, _ *notice.Ref) { c.pass(2 * time.Hour) },
		"cant_update_message": func(chat *chattest.Server, _ *clock, _ *notice.Ref) {
			chat.FailNext(chattest.SlackUpdate, 1, chattest.Fault{Word: "cant_update_message"})
		},
		"another channel": func(_ *chattest.Server, _ *clock, ref *notice.Ref) { ref.Channel = "C0OTHER00" },
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			c := newClock()
			s, chat := robot(t, chattest.Options{NoLimits: true, Now: c.now, EditWindow: time.Hour})
			ref, err := s.Send(t.Context(), group(notice.Firing, fires("A")), notice.Ref{}, free)
			require.NoError(t, err)
			old := ref.ID
			lose(chat, c, &ref)
			counted := &calls{}
			ref, err = s.Send(t.Context(), group(notice.Firing, told(fires("A")), fires("B")), ref, counted.take)
			require.NoError(t, err)
			assert.NotEqual(t, old, ref.ID)
			assert.Equal(t, 1, ref.Thread)
			ms := chat.Messages()
			m, thread := ms[len(ms)-2], ms[len(ms)-1]
			assert.Equal(t, m.TS, ref.ID)
			assert.Empty(t, m.ThreadTS)
			assert.Equal(t, ref.ID, thread.ThreadTS)
			assert.Contains(t, thread.Text, "Everything about A", "a new message has a whole thread")
			if name != "another channel" {
				assert.Equal(t, []notice.Call{notice.Update, notice.Post, notice.Post}, counted.taken)
			}
		})
	}
}

func TestWhatWasDoneIsNotDoneAgain(t *testing.T) {
	t.Parallel()
	s, chat := robot(t, chattest.Options{NoLimits: true})
	chat.FailNext(chattest.SlackThread, 1, chattest.Fault{Status: 503})
	n := group(notice.Firing, fires("A"))
	n.Mentions = []string{"here"}
	ref, err := s.Send(t.Context(), n, notice.Ref{}, free)
	assert.Equal(t, "retry", kind(err))
	require.NotEmpty(t, ref.ID, "the message stands")
	assert.Zero(t, ref.Thread)
	ref.Resumed = true
	ref, err = s.Send(t.Context(), n, ref, free)
	require.NoError(t, err)
	ms := chat.Messages()
	require.Len(t, ms, 2)
	assert.Equal(t, ref.ID, ms[1].ThreadTS)
	assert.False(t, ms[1].Broadcast, "the message above is new as well")
	assert.NotContains(t, ms[1].Text, "<!here>")

	// There is no room for the thread.
	counted := &calls{refuse: 2}
	again, err := s.Send(t.Context(), group(notice.Resolved, ended("A")), ref, counted.take)
	require.ErrorIs(t, err, errNoRoom)
	assert.Equal(t, ref, again)
	// There is no room for an edit.
	again, err = s.Send(t.Context(), group(notice.Resolved, ended("A")), ref, (&calls{refuse: 1}).take)
	require.ErrorIs(t, err, errNoRoom)
	assert.Equal(t, ref, again)
	assert.Equal(t, 1+1, chat.Messages()[0].Edited)
}

func TestALostAnswerIsTriedAgain(t *testing.T) {
	t.Parallel()
	s, chat := robot(t, chattest.Options{NoLimits: true})
	chat.FailNext(chattest.SlackPost, 1, chattest.Fault{Word: "fatal_error", Accept: true})
	ref, err := s.Send(t.Context(), group(notice.Firing, fires("A")), notice.Ref{}, free)
	assert.Equal(t, "retry", kind(err))
	assert.Empty(t, ref.ID, "where the message stands is not known: twice is better than never")
	_, err = s.Send(t.Context(), group(notice.Firing, fires("A")), ref, free)
	require.NoError(t, err)
	assert.Len(t, chat.Messages(), 3)
}

func TestABotsAnswersAreClassified(t *testing.T) {
	t.Parallel()
	for name, c := range map[string]struct {
		fault chattest.Fault
		want  string
	}{
		"429":                {chattest.Fault{Status: 429, Header: http.Header{"Retry-After": {"7"}}, Word: "ratelimited"}, "7s"},
		"429 without a time": {chattest.Fault{Status: 429}, "30s"},
		"429 with nonsense":  {chattest.Fault{Status: 429, Header: http.Header{"Retry-After": {"soon"}}}, "30s"},
		"429 for ever":       {chattest.Fault{Status: 429, Header: http.Header{"Retry-After": {"999999"}}}, "1h0m0s"},
		"ratelimited as 200": {chattest.Fault{Word: "ratelimited"}, "30s"},
		"500":                {chattest.Fault{Status: 500, Body: "<html>"}, "retry"},
		"not JSON":           {chattest.Fault{Body: "<html>"}, "retry"},
		"nothing of it":      {chattest.Fault{Body: "{}"}, "retry"},
		"internal_error":     {chattest.Fault{Word: "internal_error"}, "retry"},
		"fatal_error":        {chattest.Fault{Word: "fatal_error"}, "retry"},
		"request_timeout":    {chattest.Fault{Word: "request_timeout"}, "retry"},
		"token_revoked":      {chattest.Fault{Word: "token_revoked"}, "5m0s"},
		"token_expired":      {chattest.Fault{Word: "token_expired"}, "5m0s"},
		"invalid_auth":       {chattest.Fault{Word: "invalid_auth"}, "5m0s"},
		"account_inactive":   {chattest.Fault{Word: "account_inactive"}, "5m0s"},
		"not_authed":         {chattest.Fault{Word: "not_authed"}, "5m0s"},
		"missing_scope":      {chattest.Fault{Word: "missing_scope"}, "5m0s"},
		"not_in_channel":     {chattest.Fault{Word: "not_in_channel"}, "5m0s"},
		"403 of a proxy":     {chattest.Fault{Status: 403, Body: "no"}, "5m0s"},
		"redirect":           {chattest.Fault{Status: 307, Header: http.Header{"Location": {"http://127.0.0.1:1/xoxb-leak"}}}, "5m0s"},
		"channel_not_found":  {chattest.Fault{Word: "channel_not_found"}, "terminal slack_channel_not_found"},
		"is_archived":        {chattest.Fault{Word: "is_archived"}, "terminal slack_is_archived"},
		"restricted_action":  {chattest.Fault{Word: "restricted_action"}, "terminal slack_restricted_action"},
		"no word":            {chattest.Fault{Word: "Bearer xoxb-leak"}, "terminal slack_api"},
		"msg_too_long":       {chattest.Fault{Word: "msg_too_long"}, "terminal slack_msg_too_long"},
		"invalid_blocks":     {chattest.Fault{Word: "invalid_blocks"}, "terminal slack_invalid_blocks"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			s, chat := robot(t, chattest.Options{NoLimits: true})
			chat.FailAll(chattest.SlackPost, c.fault)
			ref, err := s.Send(t.Context(), group(notice.Firing, fires("A")), notice.Ref{}, free)
			assert.Equal(t, c.want, kind(err))
			assert.Empty(t, ref)
			assert.NotContains(t, fmt.Sprint(err), "xoxb")
			assert.NotContains(t, fmt.Sprint(err), chat.SlackBotToken())
			// The same of an edit leaves the message where it stands.
			chat.Heal(chattest.SlackPost)
			before, err := s.Send(t.Context(), group(notice.Firing, fires("A")), notice.Ref{}, free)
			require.NoError(t, err)
			chat.FailAll(chattest.SlackUpdate, c.fault)
			ref, err = s.Send(t.Context(), group(notice.Resolved, ended("A")), before, free)
			assert.Equal(t, c.want, kind(err))
			assert.Equal(t, before, ref)
		})
	}
}

func TestATokenThatIsMendedIsUsed(t *testing.T) {
	t.Parallel()
	s, chat := robot(t, chattest.Options{NoLimits: true})
	chat.RevokeToken()
	_, err := s.Send(t.Context(), group(notice.Firing, fires("A")), notice.Ref{}, free)
	assert.Equal(t, "5m0s", kind(err))
	require.ErrorContains(t, err, "put the present one into bot_token_file")
	chat.RenewToken()
	_, err = s.Send(t.Context(), group(notice.Firing, fires("A")), notice.Ref{}, free)
	require.NoError(t, err)
}

func TestTheFormIsMadePlainBeforeGivingUp(t *testing.T) {
	t.Parallel()
	for _, word := range []string{"msg_too_long", "invalid_blocks", "msg_blocks_too_long", "invalid_attachments", "restricted_action"} {
		t.Run(word, func(t *testing.T) {
			t.Parallel()
			s, chat := robot(t, chattest.Options{NoLimits: true})
			n := group(notice.Firing, fires("A"))
			n.Mentions = []string{"channel"}
			chat.FailNext(chattest.SlackPost, 1, chattest.Fault{Word: word})
			chat.FailNext(chattest.SlackThread, 1, chattest.Fault{Word: word})
			ref, err := s.Send(t.Context(), n, notice.Ref{}, free)
			require.NoError(t, err)
			m := chat.Messages()[0]
			assert.Equal(t, ref.ID, m.TS)
			assert.Empty(t, m.Colour)
			assert.Contains(t, m.Text, "A is bad")
			assert.Contains(t, m.Text, "https://rb.example.com/A")
			// Administrators restrict who may mention a channel: without the mention it is told all the same.
			assert.Equal(t, word != "restricted_action", strings.Contains(m.Text, "<!channel>"))
			// A plain edit takes the blocks and the colour of the message away, or Slack would go on showing these.
			ref, err = s.Send(t.Context(), n, ref, free)
			require.NoError(t, err)
			assert.NotEmpty(t, chat.Messages()[0].Colour)
			chat.FailNext(chattest.SlackUpdate, 1, chattest.Fault{Word: word})
			_, err = s.Send(t.Context(), n, ref, free)
			require.NoError(t, err)
			assert.Empty(t, chat.Messages()[0].Colour)
		})
	}
}

func TestEventsAndDigestsHaveNoThread(t *testing.T) {
	t.Parallel()
	s, chat := robot(t, chattest.Options{NoLimits: true})
	_, err := s.Send(t.Context(), group(notice.Event, ended("A")), notice.Ref{}, free)
	require.NoError(t, err)
	digest := group(notice.Firing, fires("A"), fires("B"))
	digest.Digest = true
	_, err = s.Send(t.Context(), digest, notice.Ref{}, free)
	require.NoError(t, err)
	assert.Len(t, chat.Messages(), 2)
	long := ended("A")
	long.Ends = time.Time{}
	long.Description = strings.Repeat("x", 5000)
	_, err = s.Send(t.Context(), group(notice.Event, long), notice.Ref{}, free)
	require.NoError(t, err)
	ms := chat.Messages()
	require.Len(t, ms, 4)
	assert.Contains(t, strings.ReplaceAll(ms[3].Text, "\n", ""), long.Description, "what was cut is whole in the thread")
}

func TestAHungSlackEndsWithTheContext(t *testing.T) {
	t.Parallel()
	s, chat := robot(t, chattest.Options{})
	chat.FailAll(chattest.SlackPost, chattest.Fault{Hang: true})
	ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
	defer cancel()
	_, err := s.Send(ctx, group(notice.Firing, fires("A")), notice.Ref{}, free)
	require.ErrorIs(t, err, context.DeadlineExceeded)
	assert.Equal(t, "retry", kind(err))
	assert.NotContains(t, err.Error(), "http")
}

func TestTheTokenIsNotSentInClear(t *testing.T) {
	t.Parallel()
	chat := chattest.New(t)
	for _, address := range []string{"http://slack.example/api/", "ftp://127.0.0.1/", "", "::"} {
		o := botOptions(chat)
		if o.APIURL = address; address == "" {
			o.APIURL = "https://127.0.0.1:1/api" // nobody listens
		}
		_, err := slack.New(o).Send(t.Context(), group(notice.Firing, fires("A")), notice.Ref{}, free)
		require.Error(t, err)
		assert.NotContains(t, err.Error(), "xoxb")
		assert.NotContains(t, err.Error(), "/api")
	}
}

func TestTheRealLimitsAreKeptByTheBudgetAndSaidByTheError(t *testing.T) {
	t.Parallel()
	c := newClock()
	s, chat := robot(t, chattest.Options{Now: c.now, SlackBurst: 1})
	ref, err := s.Send(t.Context(), group(notice.Firing, fires("A")), notice.Ref{}, free)
	assert.Equal(t, "1s", kind(err))
	require.ErrorIs(t, err, notice.ErrThrottled)
	require.NotEmpty(t, ref.ID)
	c.pass(time.Second)
	_, err = s.Send(t.Context(), group(notice.Firing, fires("A")), ref, free)
	require.NoError(t, err)
	assert.Len(t, chat.Messages(), 2)
}

func TestButtonsCanBePressedInABotsMessage(t *testing.T) {
	t.Parallel()
	s, chat := robot(t, chattest.Options{NoLimits: true})
	n := group(notice.Firing, fires("A"))
	n.Silence = &notice.Silence{Matchers: map[string]string{"alertname": "A"}, Comment: "c", Buttons: true}
	ref, err := s.Send(t.Context(), n, notice.Ref{}, free)
	require.NoError(t, err)
	raw, err := chat.Interaction("ada", ref.ID, "lifeboat_ack")
	require.NoError(t, err)
	assert.True(t, json.Valid(raw))
}
