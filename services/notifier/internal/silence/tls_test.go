package silence

import (
	"context"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"

	"github.com/gorilla/websocket"
	"github.com/prometheus/alertmanager/api/v2/client/silence"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/lifeboat-fleet/lifeboat/fleet/config"
	"github.com/lifeboat-fleet/lifeboat/fleet/fleettest/certtest"
	"github.com/lifeboat-fleet/lifeboat/fleet/fleettest/chattest"
)

func TestSilencesOverTLS(t *testing.T) {
	t.Parallel()
	am := alertmanager(t)
	certtest.TryClient(t, strings.TrimPrefix(am.URL, "http://"), func(t *testing.T, addr string, files config.TLS) func(context.Context) error {
		t.Helper()
		b := newBench(t, "https://"+addr)
		b.set(func(c *config.Config) { c.Alertmanager.TLS = files })
		return func(ctx context.Context) error {
			api, err := b.api("https://" + addr)
			require.NoError(t, err)
			_, err = api.GetSilences(silence.NewGetSilencesParamsWithContext(ctx))
			return err
		}
	})
}

// The address of Slack's API may be one's own, and ask for a certificate. Nobody else is shown it, nor Alertmanager's password.
func TestSlacksAPIOverTLS(t *testing.T) {
	t.Parallel()
	chat := chattest.NewWith(t, chattest.Options{NoLimits: true})
	get := func(ctx context.Context, b *bench, url string) error {
		req, err := http.NewRequestWithContext(ctx, http.MethodGet, url, http.NoBody)
		require.NoError(t, err)
		resp, err := b.http.Do(req)
		if err != nil {
			return err
		}
		return resp.Body.Close()
	}
	certtest.TryClient(t, chat.Addr(), func(t *testing.T, addr string, files config.TLS) func(context.Context) error {
		t.Helper()
		b := newBench(t)
		b.set(func(c *config.Config) {
			c.Notifier.Interactions.SlackAPIURL, c.Notifier.Interactions.SlackTLS = "https://"+addr+"/api/", files
		})
		return func(ctx context.Context) error { return get(ctx, b, "https://"+addr+"/api/auth.test") }
	})

	var header http.Header
	other := httptest.NewServer(http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) { header = r.Header }))
	t.Cleanup(other.Close)
	b := newBench(t)
	b.set(func(c *config.Config) {
		c.Alertmanager.Username, c.Alertmanager.PasswordFile = "lifeboat", b.file("am", "alertmanagers-password")
	})
	require.NoError(t, get(t.Context(), b, other.URL))
	assert.Empty(t, header.Get("Authorization"))
}

func TestSocketModeOverTLS(t *testing.T) {
	t.Parallel()
	slack := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		conn, err := (&websocket.Upgrader{}).Upgrade(w, r, nil)
		if err == nil {
			_ = conn.Close() // that it came about is all that is asked
		}
	}))
	t.Cleanup(slack.Close)
	certtest.TryClient(t, strings.TrimPrefix(slack.URL, "http://"), func(_ *testing.T, addr string, files config.TLS) func(context.Context) error {
		return func(ctx context.Context) error {
			d, err := dialer(files)
			if err != nil {
				return err
			}
			conn, resp, err := d.DialContext(ctx, "wss://"+addr+"/", nil)
			if err != nil {
				return err
			}
			_ = resp.Body.Close() // it is empty
			return conn.Close()
		}
	})
}
