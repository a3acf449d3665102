package app_test

import (
	"context"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/lifeboat-fleet/lifeboat/fleet/fleettest/certtest"
	"github.com/lifeboat-fleet/lifeboat/fleet/fleettest/natstest"
	"github.com/lifeboat-fleet/lifeboat/services/notifier/app"
)

// serve runs a notifier with all its addresses on a host, and returns them and its log.
func serve(t *testing.T, host, webConfigFile string) (app.Addresses, *buffer) {
	t.Helper()
	dir, logs := t.TempDir(), &buffer{}
	secured := ""
	if webConfigFile != "" {
		secured = fmt.Sprintf("web_config_file: %q, ", webConfigFile)
	}
	for name, text := range map[string]string{
		"link-secret": "0123456789abcdef0123456789abcdef", "lifeboat.yaml": fmt.Sprintf(`
nats: {url: %q}
alertmanager: {urls: ["http://127.0.0.1:1"]}
notifier:
  {%slisten: "%s:0", interactions: {%slisten: "%s:0", external_url: "https://alerts.example.com", link_secret_file: link-secret}}
`, natstest.New(t).URL(), secured, host, secured, host),
	} {
		require.NoError(t, os.WriteFile(filepath.Join(dir, name), []byte(text), 0o600))
	}
	ctx, cancel := context.WithCancel(t.Context())
	up, done := make(chan app.Addresses, 1), make(chan error, 1)
	go func() {
		done <- app.Run(ctx, app.Options{
			ConfigPath: filepath.Join(dir, "lifeboat.yaml"), HTTPAddr: host + ":0", WebConfigFile: webConfigFile,
			Logger: slog.New(slog.NewTextHandler(logs, nil)), Started: func(a app.Addresses) { up <- a },
		})
	}()
	t.Cleanup(func() {
		cancel()
		assert.NoError(t, <-done)
	})
	select {
	case a := <-up:
		return a, logs
	case err := <-done:
		done <- err
		require.NoError(t, err)
	}
	return app.Addresses{}, nil
}

func TestEveryListenerOverTLS(t *testing.T) {
	ca := certtest.New(t, "ca")
	at, logs := serve(t, "127.0.0.1", ca.WebConfig(t))
	for name, l := range map[string]struct{ addr, path string }{
		"health": {at.Health, "/metrics"}, "webhooks": {at.Webhooks, "/api/v1/alertmanager"}, "pages": {at.Interactions, "/silence"},
	} {
		t.Run(name, func(t *testing.T) { certtest.TryListener(t, ca, l.addr, l.path) })
	}
	assert.NotContains(t, logs.String(), "without protection")
}

func TestOpenListenersAreSaidOnce(t *testing.T) {
	_, logs := serve(t, "0.0.0.0", "")
	said := logs.String()
	for _, listener := range []string{`listener="health and metrics"`, "listener=webhooks", "listener=pages"} {
		assert.Equal(t, 1, strings.Count(said, listener), "%s in %s", listener, said)
	}
	assert.Equal(t, 3, strings.Count(said, "without protection"))
	_, logs = serve(t, "127.0.0.1", "")
	assert.NotContains(t, logs.String(), "without protection")
}
