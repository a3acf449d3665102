package service_test

import (
	"context"
	"log/slog"
	"os"
	"path/filepath"
	"syscall"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/stretchr/testify/require"

	"github.com/lifeboat-fleet/lifeboat/fleet/service"
)

// A configuration that changes while a service starts, or while it finishes its work after a SIGTERM, comes with a SIGHUP as ever. Once
// that ended the process, and with it the jobs that it had been given time for.
func TestASIGHUPNeverEndsTheProcess(t *testing.T) {
	file := filepath.Join(t.TempDir(), "lifeboat.yaml")
	require.NoError(t, os.WriteFile(file, []byte("store: {bucket: backups}\n"), 0o600))
	live, err := service.LoadLive(file, slog.New(slog.DiscardHandler), prometheus.NewRegistry())
	require.NoError(t, err)
	reloaded := make(chan string, 8)
	live.OnReload = func(_ context.Context, result string, err error) {
		require.NoError(t, err)
		reloaded <- result
	}
	hangUp := func() { require.NoError(t, syscall.Kill(os.Getpid(), syscall.SIGHUP)) }

	hangUp() // before it runs
	ctx, stop := context.WithCancel(t.Context())
	ended := make(chan error, 1)
	go func() { ended <- live.Run(ctx) }()
	select {
	case <-reloaded:
	case <-time.After(time.Minute):
		require.Fail(t, "a SIGHUP that came while it started is forgotten")
	}
	stop()
	require.NoError(t, <-ended)
	hangUp() // and afterwards
	// A signal to the own process that nobody takes has ended it before the next one is answered.
	another, err := service.LoadLive(file, slog.New(slog.DiscardHandler), prometheus.NewRegistry())
	require.NoError(t, err)
	require.NotNil(t, another.Current())
}

// A change between the first reading and the watch is found, as one that comes later.
func TestAChangeBeforeTheWatchBeginsIsFound(t *testing.T) {
	file := filepath.Join(t.TempDir(), "lifeboat.yaml")
	require.NoError(t, os.WriteFile(file, []byte("store: {bucket: before}\n"), 0o600))
	live, err := service.LoadLive(file, slog.New(slog.DiscardHandler), prometheus.NewRegistry())
	require.NoError(t, err)
	changed := live.Changed()
	require.NoError(t, os.WriteFile(file, []byte("store: {bucket: after}\n"), 0o600))
	ctx, stop := context.WithCancel(t.Context())
	ended := make(chan error, 1)
	go func() { ended <- live.Run(ctx) }()
	select {
	case <-changed:
	case <-time.After(time.Minute):
		require.Fail(t, "the change is not found")
	}
	require.Equal(t, "after", live.Current().Store.Bucket)
	stop()
	require.NoError(t, <-ended)
}
