package app

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/lifeboat-fleet/lifeboat/fleet/bus"
	"github.com/lifeboat-fleet/lifeboat/fleet/config"
	"github.com/lifeboat-fleet/lifeboat/fleet/fleettest/natstest"
	"github.com/lifeboat-fleet/lifeboat/fleet/service"
	lifeboatv1 "github.com/lifeboat-fleet/lifeboat/proto/lifeboat/v1"
)

// jobs is NATS with a worker that does as it is told.
type jobs struct {
	t   *testing.T
	dir string
	bus *bus.Bus
}

func newJobs(t *testing.T) *jobs {
	t.Helper()
	server := natstest.New(t)
	j := &jobs{t: t, dir: t.TempDir()}
	yaml := fmt.Sprintf("nats: {url: %q}\nstore: {bucket: none}\ntargets:\n  - name: etcd-prod\n    etcd: {endpoints: [\"http://127.0.0.1:1\"]}\n", server.URL())
	require.NoError(t, os.WriteFile(filepath.Join(j.dir, "lifeboat.yaml"), []byte(yaml), 0o600))
	b, err := bus.Connect(bus.Options{
		Config: config.NATS{URL: server.URL()}, Actor: "worker", Logger: slog.New(slog.DiscardHandler), Registerer: prometheus.NewRegistry(),
	})
	require.NoError(t, err)
	t.Cleanup(func() { assert.NoError(t, b.Close()) })
	require.NoError(t, b.EnsureStreams(t.Context()))
	j.bus = b
	return j
}

// work takes the jobs of one kind until the test ends.
func (j *jobs) work(work config.Work, handle bus.Handler) {
	j.t.Helper()
	ctx, cancel := context.WithCancel(j.t.Context())
	var wg sync.WaitGroup
	wg.Go(func() {
		assert.NoError(j.t, j.bus.Consume(ctx, bus.Consumer{
			Stream: bus.StreamJobs, Durable: "w", Filter: bus.AllJobs(work), AckWait: 2 * time.Second, MaxAttempts: 2,
			Backoff: func(int64) time.Duration { return time.Millisecond }, Handle: handle,
			OnDead: func(ctx context.Context, m *bus.Message, failed error) error {
				return j.bus.Emit(ctx, event(m, string(work), "failed", failed.Error()))
			},
		}))
	})
	j.t.Cleanup(func() { cancel(); wg.Wait() })
}

func event(m *bus.Message, noun, verb, message string) *lifeboatv1.Event {
	return &lifeboatv1.Event{
		Id: noun + "." + verb + "." + m.ID(), Noun: noun, Verb: verb, Target: "etcd-prod", JobId: m.ID(), Message: message,
	}
}

func (j *jobs) lifeboat(args ...string) (stdout, stderr string, code int) {
	j.t.Helper()
	return (&lab{dir: j.dir}).lifeboat(j.t, args...)
}

func TestRunWaitsForTheOutcomeOfItsOwnJob(t *testing.T) {
	j := newJobs(t)
	// Outcomes of earlier jobs, which are not to be taken for this one's.
	old := &bus.Message{Subject: "lifeboat.job.snapshot.etcd-prod", Seq: 1, Stored: time.Now().Add(-time.Hour)}
	require.NoError(t, j.bus.Emit(t.Context(), event(old, "snapshot", "failed", "an old failure")))
	require.NoError(t, j.bus.Emit(t.Context(), event(old, "snapshot", "committed", "an old success")))
	var by string
	j.work(config.WorkSnapshot, func(ctx context.Context, m *bus.Message) error {
		job := &lifeboatv1.Job{}
		if err := bus.DecodeStrict(m.Data, job); err != nil {
			return err
		}
		by = job.GetRequestedBy()
		e := event(m, "snapshot", "interrupted", "the source went away")
		return errors.Join(j.bus.Emit(ctx, e), j.bus.Emit(ctx, event(m, "snapshot", "committed", "42 keys")))
	})
	out, errs, code := j.lifeboat("snapshot", "run", "etcd-prod", "--wait")
	assert.Zero(t, code)
	assert.Equal(t, "snapshot.committed: 42 keys\n", out)
	assert.NotContains(t, errs, "an old")
	assert.True(t, strings.HasPrefix(by, "cli "), by)
}

func TestRunWithWaitFailsWhenTheJobFails(t *testing.T) {
	for work, args := range map[config.Work][]string{
		config.WorkSnapshot: {"snapshot", "run"}, config.WorkDrill: {"drill", "run"}, config.WorkPrune: {"prune"},
	} {
		t.Run(string(work), func(t *testing.T) {
			j := newJobs(t)
			j.work(work, func(context.Context, *bus.Message) error { return bus.Terminal("x", errors.New("the disk is full")) })
			_, errs, code := j.lifeboat(append(args, "etcd-prod", "--wait")...)
			assert.Equal(t, service.ExitFailed, code)
			assert.Contains(t, errs, string(work)+".failed: the disk is full")
		})
	}
}

func TestPruneThatIsHeldIsToldAsSuch(t *testing.T) {
	j := newJobs(t)
	j.work(config.WorkPrune, func(ctx context.Context, m *bus.Message) error {
		return j.bus.Emit(ctx, event(m, "prune", "held", "the newest snapshot shrank"))
	})
	out, _, code := j.lifeboat("prune", "etcd-prod", "--wait")
	assert.Zero(t, code)
	assert.Equal(t, "prune.held: the newest snapshot shrank\n", out)
}

func TestRunWithoutAWorker(t *testing.T) {
	j := newJobs(t)
	_, errs, code := j.lifeboat("snapshot", "run", "etcd-prod", "--wait", "--timeout", "300ms")
	assert.Equal(t, service.ExitFailed, code)
	assert.Contains(t, errs, "no outcome within 300ms")
	_, errs, code = j.lifeboat("snapshot", "run", "etcd-prod")
	assert.Equal(t, service.ExitFailed, code)
	assert.Contains(t, errs, "already waiting or running")
	assert.Contains(t, errs, "nats sub")
}
