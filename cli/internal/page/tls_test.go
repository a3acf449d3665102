package page

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
)

// Both addresses take a web configuration file.
func TestEveryListenerOverTLS(t *testing.T) {
	ca := certtest.New(t, "ca")
	web := ca.WebConfig(t)
	file := filepath.Join(t.TempDir(), "lifeboat.yaml")
	require.NoError(t, os.WriteFile(file, fmt.Appendf(nil, "nats: {url: \"nats://127.0.0.1:1\"}\nstore: {bucket: none}\n"+
		"page: {listen: \"127.0.0.1:0\", web_config_file: %q}\n", web), 0o600))
	ctx, cancel := context.WithCancel(t.Context())
	up, done := make(chan Addresses, 1), make(chan error, 1)
	go func() {
		done <- Run(ctx, Options{
			ConfigPath: file, HTTPAddr: "127.0.0.1:0", WebConfigFile: web, Logger: slog.New(slog.NewTextHandler(t.Output(), nil)),
			Started: func(a Addresses) { up <- a },
		})
	}()
	defer func() {
		cancel()
		assert.NoError(t, <-done)
	}()
	at := <-up
	t.Run("page", func(t *testing.T) { certtest.TryListener(t, ca, at.Page, "/") })
	t.Run("health", func(t *testing.T) { certtest.TryListener(t, ca, at.Health, "/metrics") })
}
