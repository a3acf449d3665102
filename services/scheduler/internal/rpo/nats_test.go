package rpo_test

import (
	"context"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/timestamppb"

	"github.com/lifeboat-fleet/lifeboat/fleet/bus"
	"github.com/lifeboat-fleet/lifeboat/fleet/config"
	"github.com/lifeboat-fleet/lifeboat/fleet/fleettest/bintest"
	lifeboatv1 "github.com/lifeboat-fleet/lifeboat/proto/lifeboat/v1"
)

func connect(t *testing.T, url string) *bus.Bus {
	t.Helper()
	b, err := bus.Connect(bus.Options{
		Config: config.NATS{URL: url}, Actor: "lifeboat-scheduler@test", Logger: slog.New(slog.DiscardHandler),
		Registerer: prometheus.NewRegistry(),
	})
	require.NoError(t, err)
	t.Cleanup(func() { assert.NoError(t, b.Close()) })
	return b
}

// count is how many events of a kind the audit log holds.
func count(t *testing.T, b *bus.Bus, noun, verb, target string) uint64 {
	t.Helper()
	n := uint64(0)
	subjects, err := b.Subjects(t.Context(), bus.StreamEvents, bus.EventSubject(noun, verb, target))
	if err != nil {
		return 0 // NATS is not there yet
	}
	for _, c := range subjects {
		n += c
	}
	return n
}

// A NATS that lost its data with the schedulers running, and schedulers that start after that: both say again what is exceeded,
// and both count from what the bucket has as soon as a worker tells.
func TestANATSThatLostItsData(t *testing.T) {
	dir := t.TempDir()
	server, err := bintest.StartNATS(t.Context(), dir)
	require.NoError(t, err)
	t.Cleanup(func() { assert.NoError(t, server.Kill()) })
	b := connect(t, server.URL)
	require.NoError(t, b.EnsureStreams(t.Context()))
	cfg := &config.Config{Targets: []config.Target{
		{Name: "old", RPO: time.Hour}, {Name: "young", RPO: 24 * time.Hour}, {Name: "none", RPO: 24 * time.Hour},
	}}
	first := start(t, connect(t, server.URL), cfg, 0)
	for target, ago := range map[string]time.Duration{"old": 2 * time.Hour, "young": 5 * time.Hour} {
		require.NoError(t, b.Emit(t.Context(), &lifeboatv1.Event{
			Noun: "snapshot", Verb: "committed", Target: target,
			Detail: &lifeboatv1.Event_Manifest{Manifest: &lifeboatv1.Manifest{StartedAt: timestamppb.New(time.Now().Add(-ago))}},
		}))
	}
	require.Eventually(t, func() bool { return count(t, b, "rpo", "exceeded", "old") == 1 }, time.Minute, 20*time.Millisecond)
	require.Eventually(t, func() bool { return len(ages(t, first)) == 3 }, time.Minute, 20*time.Millisecond)

	require.NoError(t, server.Kill())
	require.NoError(t, os.RemoveAll(filepath.Join(dir, "data")))
	require.NoError(t, server.Restart(t.Context()))
	require.Eventually(t, func() bool { return b.EnsureStreams(t.Context()) == nil }, time.Minute, 50*time.Millisecond)
	second := start(t, connect(t, server.URL), cfg, 0)
	require.Eventually(t, func() bool { return len(ages(t, second)) == 3 }, time.Minute, 20*time.Millisecond)
	assert.Less(t, ages(t, second)["young"], 300.0, "it knows of no snapshot yet")
	require.Eventually(t, func() bool { return count(t, b, "rpo", "exceeded", "old") == 1 }, time.Minute, 20*time.Millisecond,
		"the one that knew the snapshot says so into the new stream")

	var asked atomic.Int64
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() {
		done <- b.Announce(ctx, bus.Service{Name: "lifeboat-backup", Version: "1.0.0", Endpoints: map[string]func(context.Context, string, []byte) (proto.Message, error){
			bus.HistorySubject("*"): func(_ context.Context, subject string, _ []byte) (proto.Message, error) {
				asked.Add(1)
				target := subject[strings.LastIndex(subject, ".")+1:]
				h := &lifeboatv1.History{Target: target}
				if ago, ok := map[string]time.Duration{"old": 2 * time.Hour, "young": 5 * time.Hour}[target]; ok {
					h.SnapshotStartedAt = timestamppb.New(time.Now().Add(-ago))
				}
				return h, nil
			},
		}})
	}()
	t.Cleanup(func() { cancel(); assert.NoError(t, <-done) })
	require.Eventually(t, func() bool {
		return ages(t, second)["young"] > 17900 && ages(t, second)["old"] > 7100
	}, time.Minute, 20*time.Millisecond)
	require.Eventually(t, func() bool { return asked.Load() >= 6 }, time.Minute, 20*time.Millisecond, "both ask, for each target")
	assert.InDelta(t, 0, ages(t, second)["none"], 300)
	assert.Equal(t, uint64(1), count(t, b, "rpo", "exceeded", "old"))
	assert.Zero(t, count(t, b, "rpo", "met", "*"))
	assert.Equal(t, uint64(1), count(t, b, "target", "added", "old"))
	assert.Equal(t, uint64(1), count(t, b, "target", "added", "young"))
	assert.Contains(t, []uint64{1, 2}, count(t, b, "target", "added", "none"), "and by the one that knows since when, if it was not the first")
}

// Two replicas on a real server: each thing is said once.
func TestTwoReplicasOnARealServer(t *testing.T) {
	server, err := bintest.StartNATS(t.Context(), t.TempDir())
	require.NoError(t, err)
	t.Cleanup(func() { assert.NoError(t, server.Kill()) })
	b := connect(t, server.URL)
	require.NoError(t, b.EnsureStreams(t.Context()))
	cfg := fileOf(300, time.Second)
	start(t, connect(t, server.URL), cfg, 0)
	start(t, connect(t, server.URL), cfg, 0)
	require.Eventually(t, func() bool { return count(t, b, "rpo", "exceeded", "*") >= 300 }, time.Minute, 20*time.Millisecond)
	for _, target := range cfg.Targets {
		require.NoError(t, b.Emit(t.Context(), &lifeboatv1.Event{Noun: "snapshot", Verb: "committed", Target: target.Name}))
	}
	require.Eventually(t, func() bool { return count(t, b, "rpo", "met", "*") >= 300 }, time.Minute, 20*time.Millisecond)
	require.Eventually(t, func() bool { return count(t, b, "rpo", "exceeded", "*") >= 600 }, time.Minute, 20*time.Millisecond)
	assert.Equal(t, uint64(300), count(t, b, "rpo", "met", "*"))
	assert.Equal(t, uint64(600), count(t, b, "rpo", "exceeded", "*"))
	assert.Equal(t, uint64(300), count(t, b, "target", "added", "*"))
}
