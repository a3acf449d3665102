package service_test

import (
	"bytes"
	"context"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"go.uber.org/goleak"

	"github.com/lifeboat-fleet/lifeboat/fleet/fleettest/certtest"
	"github.com/lifeboat-fleet/lifeboat/fleet/service"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// buffer is a log.
type buffer struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (b *buffer) Write(p []byte) (int, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.b.Write(p)
}

func (b *buffer) String() string {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.b.String()
}

// serve runs a service that does nothing, and returns its address and its log.
func serve(t *testing.T, listen, webConfigFile string) (addr string, logs *buffer) {
	t.Helper()
	logs = &buffer{}
	ctx, cancel := context.WithCancel(t.Context())
	started, done := make(chan string, 1), make(chan error, 1)
	go func() {
		done <- service.Run(ctx, service.Options{
			Name: "lifeboat-test", Logger: slog.New(slog.NewTextHandler(logs, nil)), Listen: listen, WebConfigFile: webConfigFile,
			Registry: service.NewRegistry(), Started: func(addr string) { started <- addr },
		})
	}()
	t.Cleanup(func() {
		cancel()
		assert.NoError(t, <-done)
	})
	return <-started, logs
}

// Health and metrics of every service take a web configuration file.
func TestHealthAndMetricsOverTLS(t *testing.T) {
	ca := certtest.New(t, "ca")
	addr, logs := serve(t, "127.0.0.1:0", ca.WebConfig(t))
	for _, path := range []string{"/healthz", "/readyz", "/metrics"} {
		certtest.TryListener(t, ca, addr, path)
	}
	assert.NotContains(t, logs.String(), "without protection")
}

func TestABrokenWebConfigurationEndsTheStart(t *testing.T) {
	file := filepath.Join(t.TempDir(), "web.yml")
	require.NoError(t, os.WriteFile(file, []byte("tls: {}\n"), 0o600))
	err := service.Run(t.Context(), service.Options{
		Name: "lifeboat-test", Logger: slog.New(slog.DiscardHandler), Listen: "127.0.0.1:0", WebConfigFile: file, Registry: service.NewRegistry(),
	})
	require.ErrorContains(t, err, "--web-config-file")
	require.ErrorContains(t, err, file)
	assert.Equal(t, service.ExitUsage, service.ExitCode(err))
}

func TestOpenHealthIsAWarningOnce(t *testing.T) {
	_, logs := serve(t, "0.0.0.0:0", "")
	said := logs.String()
	assert.Equal(t, 1, strings.Count(said, "without protection"), said)
	assert.Contains(t, said, `listener="health and metrics"`)
	assert.Contains(t, said, "--web-config-file")
	_, logs = serve(t, "127.0.0.1:0", "")
	assert.NotContains(t, logs.String(), "without protection")
}
