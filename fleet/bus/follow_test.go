package bus_test

import (
	"context"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/lifeboat-fleet/lifeboat/fleet/bus"
	"github.com/lifeboat-fleet/lifeboat/fleet/fleettest/bintest"
	lifeboatv1 "github.com/lifeboat-fleet/lifeboat/proto/lifeboat/v1"
)

// A follower of a NATS that lost its data hears the new stream from its first message, and is told that it is another one.
func TestAFollowerHearsAStreamThatWasMadeAnew(t *testing.T) {
	dir := t.TempDir()
	server, err := bintest.StartNATS(t.Context(), dir)
	require.NoError(t, err)
	t.Cleanup(func() { assert.NoError(t, server.Kill()) })
	b := connect(t, server.URL, "test")
	require.NoError(t, b.EnsureStreams(t.Context()))
	emit := func(verb string) error {
		return b.Emit(t.Context(), &lifeboatv1.Event{Noun: "snapshot", Verb: verb, Target: "etcd-prod"})
	}
	for range 20 {
		require.NoError(t, emit("committed"))
	}
	heard, reset := make(chan string, 100), make(chan struct{}, 1)
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() {
		done <- b.Follow(ctx, bus.Follower{
			Stream: bus.StreamEvents, Filters: []string{"lifeboat.event.snapshot.*.*"}, CaughtUp: func() {},
			Message: func(_ context.Context, m *bus.Message) { heard <- m.Subject },
			Reset:   func() { reset <- struct{}{} },
		})
	}()
	t.Cleanup(func() { cancel(); assert.NoError(t, <-done) })
	assert.Equal(t, "lifeboat.event.snapshot.committed.etcd-prod", receive(t, heard))

	require.NoError(t, server.Kill())
	require.NoError(t, os.RemoveAll(filepath.Join(dir, "data")))
	require.NoError(t, server.Restart(t.Context()))
	require.Eventually(t, func() bool { return b.EnsureStreams(t.Context()) == nil }, time.Minute, 50*time.Millisecond)
	require.Eventually(t, func() bool { return emit("failed") == nil }, time.Minute, 50*time.Millisecond)
	assert.Equal(t, "lifeboat.event.snapshot.failed.etcd-prod", receive(t, heard), "its sequence is 1, below the last one heard")
	receive(t, reset)
}
