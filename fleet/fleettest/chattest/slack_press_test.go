package chattest_test

import (
	"context"
	"crypto/hmac"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"net/url"
	"strconv"
	"testing"
	"time"

	"github.com/gorilla/websocket"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"go.uber.org/goleak"

	"github.com/lifeboat-fleet/lifeboat/fleet/fleettest/chattest"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// withButton posts a message with a button and returns its ts.
func withButton(t *testing.T, s *chattest.Server) string {
	t.Helper()
	r := ask(t, s, "chat.postMessage", s.SlackBotToken(), map[string]string{
		"channel": s.SlackChannel(), "text": "x",
		"blocks": `[{"type":"actions","block_id":"row","elements":[{"type":"button","action_id":"ack","value":"{\"a\":1}","text":{"type":"plain_text","text":"Ack"}}]}]`,
	})
	require.True(t, r.OK, r.Error)
	return r.TS
}

// pressed is what an app reads of an interaction.
type pressed struct {
	Type        string
	User        struct{ ID, Username, Name string }
	Channel     struct{ ID string }
	Message     struct{ TS, Text string }
	TriggerID   string `json:"trigger_id"`
	ResponseURL string `json:"response_url"`
	Actions     []struct {
		ActionID string `json:"action_id"`
		BlockID  string `json:"block_id"`
		Value    string
	}
}

func TestAPressIsPostedAndSigned(t *testing.T) {
	t.Parallel()
	s := chattest.NewWith(t, chattest.Options{NoLimits: true})
	ts := withButton(t, s)
	require.ErrorContains(t, s.Press(t.Context(), "ada", ts, "ack"), "neither a Socket Mode connection nor a request URL")
	var got pressed
	status := http.StatusOK
	app := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		body, err := io.ReadAll(r.Body)
		assert.NoError(t, err)
		stamp, err := strconv.ParseInt(r.Header.Get("X-Slack-Request-Timestamp"), 10, 64)
		assert.NoError(t, err)
		assert.WithinDuration(t, time.Now(), time.Unix(stamp, 0), 5*time.Second)
		mac := hmac.New(sha256.New, []byte(s.SlackSigningSecret()))
		fmt.Fprintf(mac, "v0:%d:%s", stamp, body)
		assert.Equal(t, "v0="+hex.EncodeToString(mac.Sum(nil)), r.Header.Get("X-Slack-Signature"))
		form, err := url.ParseQuery(string(body))
		assert.NoError(t, err)
		assert.NoError(t, json.Unmarshal([]byte(form.Get("payload")), &got))
		w.WriteHeader(status)
	}))
	t.Cleanup(app.Close)
	s.SetInteractionsURL(app.URL)
	require.NoError(t, s.Press(t.Context(), "ada", ts, "ack"))
	assert.Equal(t, "block_actions", got.Type)
	assert.Equal(t, chattest.SlackUserID("ada"), got.User.ID)
	assert.Equal(t, "ada", got.User.Username)
	assert.Equal(t, s.SlackChannel(), got.Channel.ID)
	assert.Equal(t, ts, got.Message.TS)
	require.Len(t, got.Actions, 1)
	assert.Equal(t, "ack", got.Actions[0].ActionID)
	assert.Equal(t, "row", got.Actions[0].BlockID)
	assert.JSONEq(t, `{"a":1}`, got.Actions[0].Value)
	assert.NotEmpty(t, got.TriggerID)

	// The response_url: only that person sees it, or the message is replaced; five times.
	code, _, _ := do(t, http.MethodPost, got.ResponseURL, `{"text":"done"}`)
	assert.Equal(t, http.StatusOK, code)
	require.Len(t, s.Ephemerals(), 1)
	assert.Equal(t, chattest.SlackUserID("ada"), s.Ephemerals()[0].User)
	code, _, _ = do(t, http.MethodPost, got.ResponseURL, `{"text":"replaced","replace_original":true}`)
	assert.Equal(t, http.StatusOK, code)
	assert.Equal(t, "replaced", s.Messages()[0].Text)
	assert.Equal(t, 1, s.Messages()[0].Edited)
	for range 3 {
		do(t, http.MethodPost, got.ResponseURL, `{"text":"again"}`)
	}
	code, _, _ = do(t, http.MethodPost, got.ResponseURL, `{"text":"too often"}`)
	assert.Equal(t, http.StatusNotFound, code)

	require.ErrorContains(t, s.Press(t.Context(), "ada", ts, "ack"), `no button "ack"`, "it was replaced")
	require.ErrorContains(t, s.Press(t.Context(), "ada", "1.000001", "ack"), "no message")
	status = http.StatusInternalServerError
	require.ErrorContains(t, s.Press(t.Context(), "ada", withButton(t, s), "ack"), "500")
}

func TestSocketMode(t *testing.T) {
	t.Parallel()
	s := chattest.NewWith(t, chattest.Options{NoLimits: true})
	ts := withButton(t, s)
	opened := ask(t, s, "apps.connections.open", s.SlackAppToken(), nil)
	require.True(t, opened.OK, opened.Error)
	conn, resp, err := websocket.DefaultDialer.DialContext(t.Context(), opened.URL, http.Header{"Origin": {"https://api.slack.com"}})
	require.NoError(t, err)
	defer func() { _ = conn.Close() }()
	_ = resp.Body.Close()
	_, resp, err = websocket.DefaultDialer.DialContext(t.Context(), opened.URL, nil)
	require.ErrorIs(t, err, websocket.ErrBadHandshake, "an address may be used once")
	_ = resp.Body.Close()
	var hello struct{ Type string }
	require.NoError(t, conn.ReadJSON(&hello))
	assert.Equal(t, "hello", hello.Type)
	require.NoError(t, s.WaitSockets(t.Context(), 1))

	type envelope struct {
		Type, Reason string
		EnvelopeID   string `json:"envelope_id"`
		Payload      pressed
	}
	press := func() chan error {
		done := make(chan error, 1)
		go func() { done <- s.Press(t.Context(), "ada", ts, "ack") }()
		return done
	}
	done := press()
	var e envelope
	require.NoError(t, conn.ReadJSON(&e))
	assert.Equal(t, "interactive", e.Type)
	assert.Equal(t, "ack", e.Payload.Actions[0].ActionID)
	require.NoError(t, conn.WriteJSON(map[string]string{"envelope_id": e.EnvelopeID}))
	require.NoError(t, <-done)

	// Nobody acknowledges.
	ctx, cancel := context.WithCancel(t.Context())
	late := make(chan error, 1)
	go func() { late <- s.Press(ctx, "ada", ts, "ack") }()
	require.NoError(t, conn.ReadJSON(&e))
	cancel()
	require.ErrorContains(t, <-late, "did not acknowledge")

	s.DropSockets()
	require.NoError(t, conn.ReadJSON(&e))
	assert.Equal(t, "disconnect", e.Type)
	require.ErrorContains(t, s.Press(t.Context(), "ada", ts, "ack"), "neither")
}
