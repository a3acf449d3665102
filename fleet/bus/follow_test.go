package bus_test

import (
	"context"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/testutil"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/lifeboat-fleet/lifeboat/fleet/bus"
	"github.com/lifeboat-fleet/lifeboat/fleet/config"
	"github.com/lifeboat-fleet/lifeboat/fleet/fleettest/bintest"
	"github.com/lifeboat-fleet/lifeboat/fleet/fleettest/natstest"
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

// Through kills of NATS a follower hears every message once and in order, also those of one subject that came while it was deaf.
func TestAFollowerHearsAllThroughInterruptions(t *testing.T) {
	server, err := bintest.StartNATS(t.Context(), t.TempDir())
	require.NoError(t, err)
	t.Cleanup(func() { assert.NoError(t, server.Kill()) })
	b, sender := connect(t, server.URL, "test"), connect(t, server.URL, "sender")
	require.NoError(t, b.EnsureStreams(t.Context()))
	heard, caughtUp := make(chan string, 1000), make(chan struct{})
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() {
		done <- b.Follow(ctx, bus.Follower{
			Stream: bus.StreamEvents, Filters: []string{"lifeboat.event.snapshot.*.*"}, CaughtUp: func() { close(caughtUp) },
			Message: func(_ context.Context, m *bus.Message) {
				e := &lifeboatv1.Event{}
				if bus.Decode(m.Data, e) == nil {
					heard <- e.GetId()
				}
			},
		})
	}()
	receive(t, caughtUp) // from here on all is heard, and not only the newest of each subject
	var sent, got []string
	for round := range 4 {
		if round > 0 {
			require.NoError(t, server.Kill())
			require.NoError(t, server.Restart(t.Context()))
		}
		for i := range 5 {
			id := fmt.Sprintf("%d-%d", round, i)
			sent = append(sent, id)
			require.Eventually(t, func() bool {
				return sender.Emit(t.Context(), &lifeboatv1.Event{Id: id, Noun: "snapshot", Verb: "committed", Target: "a"}) == nil
			}, time.Minute, 20*time.Millisecond)
		}
		if round%2 == 1 { // in the other rounds it is killed while they are on their way
			for len(got) < len(sent) {
				select {
				case id := <-heard:
					got = append(got, id)
				case <-time.After(time.Minute):
					require.Fail(t, "messages are missing", "heard %v of %v", got, sent)
				}
			}
		}
	}
	assert.Equal(t, sent, got)
	cancel()
	require.NoError(t, receive(t, done))
	assert.Empty(t, heard)
}

// A follower whose stream nobody answers for says so, counts, ends when it is told to, and hears the stream that is made anew.
func TestAFollowerSaysThatItIsDeaf(t *testing.T) {
	s := natstest.New(t)
	reg := prometheus.NewRegistry()
	b, err := bus.Connect(bus.Options{Config: config.NATS{URL: s.URL()}, Actor: "test", Logger: slog.New(slog.DiscardHandler), Registerer: reg})
	require.NoError(t, err)
	t.Cleanup(func() { assert.NoError(t, b.Close()) })
	require.NoError(t, b.EnsureStreams(t.Context()))
	js := raw(t, s.URL())
	heard, reset, trouble, caughtUp := make(chan string, 10), make(chan struct{}, 1), make(chan error, 100), make(chan struct{})
	follow := func() (stop func(), done chan error) {
		ctx, cancel := context.WithCancel(t.Context())
		done = make(chan error, 1)
		caughtUp = make(chan struct{})
		caught := caughtUp
		go func() {
			done <- b.Follow(ctx, bus.Follower{
				Stream: bus.StreamEvents, Filters: []string{"lifeboat.event.snapshot.*.*"}, CaughtUp: func() { close(caught) },
				Message:     func(_ context.Context, m *bus.Message) { heard <- m.Subject },
				Reset:       func() { reset <- struct{}{} },
				Interrupted: func(err error) { trouble <- err },
			})
		}()
		return cancel, done
	}
	deaf := func(n int) {
		t.Helper()
		want := fmt.Sprintf("# HELP lifeboat_nats_streams_unfollowed Parts of this process that should follow a stream and cannot: they do not hear "+
			"what happens.\n# TYPE lifeboat_nats_streams_unfollowed gauge\nlifeboat_nats_streams_unfollowed{stream=%q} %d\n", bus.StreamEvents, n)
		require.NoError(t, testutil.GatherAndCompare(reg, strings.NewReader(want), "lifeboat_nats_streams_unfollowed"))
	}
	stop, done := follow()
	receive(t, caughtUp)
	deaf(0)
	require.NoError(t, js.DeleteStream(t.Context(), bus.StreamEvents))
	require.Error(t, receive(t, trouble))
	deaf(1)
	require.NoError(t, b.EnsureStreams(t.Context()))
	require.NoError(t, b.Emit(t.Context(), &lifeboatv1.Event{Noun: "snapshot", Verb: "failed", Target: "a"}))
	assert.Equal(t, "lifeboat.event.snapshot.failed.a", receive(t, heard))
	receive(t, reset)
	for err := range trouble {
		if err == nil {
			break
		}
	}
	deaf(0)

	require.NoError(t, js.DeleteStream(t.Context(), bus.StreamEvents))
	require.Error(t, receive(t, trouble))
	stop()
	require.NoError(t, receive(t, done))
	deaf(0)
}
