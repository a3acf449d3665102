package fleetalert

import (
	"context"
	"log/slog"
	"strings"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/lifeboat-fleet/lifeboat/fleet/config"
	"github.com/lifeboat-fleet/lifeboat/fleet/fleettest/bintest"
	"github.com/lifeboat-fleet/lifeboat/fleet/fleettest/certtest"
)

func TestPostingOverTLS(t *testing.T) {
	t.Parallel()
	am, err := bintest.StartAlertmanager(t.Context(), t.TempDir(), "http://127.0.0.1:1/")
	require.NoError(t, err)
	t.Cleanup(func() { assert.NoError(t, am.Kill()) })
	alerts := postable([]Alert{{Name: "LifeboatDrillFailed", Labels: map[string]string{"alertname": "x"}, Firing: true, StartsAt: time.Now()}},
		time.Now(), time.Minute)
	certtest.TryClient(t, strings.TrimPrefix(am.URL, "http://"), func(t *testing.T, addr string, files config.TLS) func(context.Context) error {
		t.Helper()
		a := New(Options{
			Config: func() *config.Config { return &config.Config{Alertmanager: config.Alertmanager{TLS: files}} },
			Logger: slog.New(slog.DiscardHandler), Registerer: prometheus.NewRegistry(), Now: time.Now,
		})
		t.Cleanup(a.http.CloseIdleConnections)
		return func(ctx context.Context) error { return post(ctx, a.http, "https://"+addr, alerts) }
	})
}
