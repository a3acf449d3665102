package app

import (
	"context"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/lifeboat-fleet/lifeboat/fleet/fleettest/certtest"
	"github.com/lifeboat-fleet/lifeboat/fleet/fleettest/natstest"
)

func TestHealthAndMetricsOverTLS(t *testing.T) {
	ca := certtest.New(t, "ca")
	file := filepath.Join(t.TempDir(), "lifeboat.yaml")
	require.NoError(t, os.WriteFile(file, fmt.Appendf(nil, "nats: {url: %q}\nstore: {bucket: backups, endpoint: \"http://127.0.0.1:1\"}\n",
		natstest.New(t).URL()), 0o600))
	ctx, cancel := context.WithCancel(t.Context())
	started, done := make(chan string, 1), make(chan error, 1)
	web := ca.WebConfig(t)
	go func() {
		done <- Run(ctx, Options{
			ConfigPath: file, HTTPAddr: "127.0.0.1:0", WebConfigFile: web, ScratchDir: t.TempDir(), Logger: slog.New(slog.NewTextHandler(t.Output(), nil)),
			Started: func(addr string) { started <- addr },
		})
	}()
	defer func() {
		cancel()
		assert.NoError(t, <-done)
	}()
	certtest.TryListener(t, ca, <-started, "/metrics")
}
