package silence

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"net/http/httptest"
	"net/url"
	"strings"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus/testutil"
	"github.com/slack-go/slack"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/lifeboat-fleet/lifeboat/fleet/config"
	"github.com/lifeboat-fleet/lifeboat/fleet/fleettest/chattest"
)

// connect runs Socket Mode with a token until the returned function is called.
func (b *chatBench) connect(token string) (stop func()) {
	b.t.Helper()
	file := b.file("app", token)
	b.set(func(c *config.Config) { c.Notifier.Interactions.SlackAppTokenFile = file })
	ctx, cancel := context.WithCancel(b.t.Context())
	ended := make(chan error, 1)
	go func() { ended <- b.RunSocketMode(ctx) }()
	var once bool
	stop = func() {
		if once {
			return
		}
		once = true
		cancel()
		select {
		case err := <-ended:
			require.NoError(b.t, err)
		case <-time.After(time.Minute):
			require.Fail(b.t, "RunSocketMode did not end with its context")
		}
	}
	b.t.Cleanup(stop)
	return stop
}

func TestAPressOverSocketModeSilences(t *testing.T) {
	t.Parallel()
	am := alertmanager(t)
	b := newChatBench(t, am.URL)
	stop := b.connect(b.chat.SlackAppToken())
	wait, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	defer cancel()
	require.NoError(t, b.chat.WaitSockets(wait, 1))
	ts := b.post(map[string]any{"lifeboat_silence_1": hour(), "open_runbook": "x"})
	require.NoError(t, b.chat.Press(t.Context(), "ann", ts, "lifeboat_silence_1"))
	public, _ := b.said(1, 0)
	assert.Contains(t, public.Text, "Silenced for 1h by ann ("+chattest.SlackUserID("ann")+") until ")
	require.Len(t, silences(t, am.URL), 1)
	require.NoError(t, b.chat.Press(t.Context(), "ann", ts, "lifeboat_silence_1"))
	b.said(1, 1)
	require.NoError(t, b.chat.Press(t.Context(), "ann", ts, "open_runbook"), "somebody else's button is acknowledged")
	assert.Len(t, silences(t, am.URL), 1)
	assert.Equal(t, 1, b.counted(waySocket, "created"))

	// Slack ends connections every few hours.
	opened := b.chat.Requests(chattest.SlackOpen)
	b.chat.DropSockets()
	require.NoError(t, b.chat.WaitRequests(wait, chattest.SlackOpen, opened+1))
	require.NoError(t, b.chat.WaitSockets(wait, 1))
	require.NoError(t, b.chat.Press(t.Context(), "bob", ts, "lifeboat_silence_1"))
	b.said(2, 1)
	assert.Len(t, silences(t, am.URL), 2)
	assert.InDelta(t, 1, testutil.ToFloat64(b.metrics.connected), 0)
	stop()
	assert.InDelta(t, 0, testutil.ToFloat64(b.metrics.connected), 0)
	assert.Contains(t, b.log.String(), "connected to Slack's Socket Mode")
	assert.NotContains(t, b.log.String(), "no connection", "a connection that comes to its end is no failure")
}

func TestSocketModeTakesANewToken(t *testing.T) {
	t.Parallel()
	b := newChatBench(t)
	b.connect("xapp-1-A0-revoked-token")
	logged := func(text string) {
		t.Helper()
		require.Eventually(t, func() bool { return strings.Contains(b.log.String(), text) }, time.Minute, 10*time.Millisecond, text)
	}
	logged("check the token of notifier.interactions.slack_app_token_file")
	b.file("app", "")
	logged("is empty")
	b.file("app", b.chat.SlackAppToken())
	wait, cancel := context.WithTimeout(t.Context(), 30*time.Second)
	defer cancel()
	require.NoError(t, b.chat.WaitSockets(wait, 1))
}

func TestSocketModeOutlivesSlack(t *testing.T) {
	t.Parallel()
	b := newChatBench(t)
	b.chat.FailNext(chattest.SlackOpen, 1, chattest.Fault{Status: http.StatusInternalServerError, Body: "no"})
	b.chat.FailNext(chattest.SlackOpen, 1, chattest.Fault{Body: `{"ok":true,"url":"ws://127.0.0.1:1/?ticket=s3cret"}`})
	b.secrets = append(b.secrets, "s3cret")
	stop := b.connect(b.chat.SlackAppToken())
	wait, cancel := context.WithTimeout(t.Context(), 30*time.Second)
	defer cancel()
	require.NoError(t, b.chat.WaitSockets(wait, 1))
	assert.GreaterOrEqual(t, strings.Count(b.log.String(), "no connection to Slack's Socket Mode"), 2)
	stop()

	// Hanging, and gone: it ends with its context all the same.
	for _, f := range []chattest.Fault{{Hang: true}, {Status: http.StatusTooManyRequests, Header: http.Header{"Retry-After": {"3600"}}, Body: "no"}} {
		begun := b.chat.Requests(chattest.SlackOpen)
		b.chat.FailAll(chattest.SlackOpen, f)
		stop = b.connect(b.chat.SlackAppToken())
		require.NoError(t, b.chat.WaitRequests(wait, chattest.SlackOpen, begun+1))
		stop()
	}
}

func TestSocketModeNeedsAToken(t *testing.T) {
	t.Parallel()
	b := newBench(t)
	require.ErrorContains(t, b.RunSocketMode(t.Context()), "notifier.interactions.slack_app_token_file is not configured")
}

func TestAFailureHoldsNoToken(t *testing.T) {
	t.Parallel()
	require.NoError(t, failure(nil, "xapp-1"))
	require.NoError(t, failure(context.Canceled, "xapp-1"))
	require.NoError(t, failure(fmt.Errorf("x: %w", errOneConnection), "xapp-1"))
	for _, err := range []error{
		errors.New("bad header Bearer xapp-1"), &url.Error{Op: "parse", URL: "wss://x/?ticket=xapp-1", Err: errors.New("no")},
		&slack.RateLimitedError{RetryAfter: time.Second},
	} {
		got := failure(err, "xapp-1")
		require.Error(t, got)
		assert.NotContains(t, got.Error(), "xapp-1")
	}
	var limited *slack.RateLimitedError
	require.ErrorAs(t, failure(&slack.RateLimitedError{RetryAfter: time.Minute}, "x"), &limited)

	// A client of slack-go asks for one connection only.
	srv := httptest.NewServer(http.HandlerFunc(func(http.ResponseWriter, *http.Request) {}))
	t.Cleanup(srv.Close)
	o := &once{client: &http.Client{Transport: &http.Transport{DisableKeepAlives: true}}}
	req, err := http.NewRequestWithContext(t.Context(), http.MethodGet, srv.URL, http.NoBody)
	require.NoError(t, err)
	resp, err := o.Do(req)
	require.NoError(t, err)
	require.NoError(t, resp.Body.Close())
	_, err = o.Do(req) //nolint:bodyclose // there is none
	require.ErrorIs(t, err, errOneConnection)
}
