package backlog

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"go.uber.org/goleak"

	"github.com/lifeboat-fleet/lifeboat/fleet/bus"
	"github.com/lifeboat-fleet/lifeboat/fleet/config"
	"github.com/lifeboat-fleet/lifeboat/fleet/fleettest/natstest"
	lifeboatv1 "github.com/lifeboat-fleet/lifeboat/proto/lifeboat/v1"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

func gathered(t *testing.T, reg *prometheus.Registry) map[string]float64 {
	t.Helper()
	families, err := reg.Gather()
	require.NoError(t, err)
	all := map[string]float64{}
	for _, f := range families {
		for _, m := range f.GetMetric() {
			all[f.GetName()+" "+m.GetLabel()[0].GetValue()] = m.GetGauge().GetValue()
		}
	}
	return all
}

// Jobs that a worker works on run, by the claim that names them; all others wait, whatever was claimed before. Both when there are few and
// when there are many. Those of a worker that is silent at two looks wait too.
func TestWaitingAndRunning(t *testing.T) {
	server := natstest.New(t)
	b, err := bus.Connect(bus.Options{
		Config: config.NATS{URL: server.URL()}, Actor: "test", Logger: slog.New(slog.DiscardHandler), Registerer: prometheus.NewRegistry(),
	})
	require.NoError(t, err)
	t.Cleanup(func() { assert.NoError(t, b.Close()) })
	require.NoError(t, b.EnsureStreams(t.Context()))
	reg := prometheus.NewRegistry()
	now := time.Now().Add(time.Hour)
	l := New(Options{Bus: b, Logger: slog.New(slog.DiscardHandler), Registerer: reg, Now: func() time.Time { return now }})
	assert.Empty(t, gathered(t, reg), "nothing is known yet")
	look := func() map[string]float64 {
		t.Helper()
		last, _, err := l.look(t.Context())
		require.NoError(t, err)
		l.last = last
		return gathered(t, reg)
	}
	assert.Len(t, look(), 12, "three of each kind of work, also without a job")

	publish := func(work config.Work, target string) (id string) {
		t.Helper()
		subject := bus.JobSubject(work, target)
		_, err := b.Publish(t.Context(), bus.Outgoing{Subject: subject, Message: &lifeboatv1.Job{}})
		require.NoError(t, err)
		seq, at, err := b.Last(t.Context(), bus.StreamJobs, subject, &lifeboatv1.Job{})
		require.NoError(t, err)
		return (&bus.Message{Seq: seq, Stored: at}).ID()
	}
	claim := func(work config.Work, target, id string, phase lifeboatv1.ClaimState_Phase) {
		t.Helper()
		_, err := b.PutState(t.Context(), bus.State{Outgoing: bus.Outgoing{
			Subject: bus.ClaimSubject(target, work), Message: &lifeboatv1.ClaimState{JobId: id, Phase: phase, Worker: "worker"},
		}})
		require.NoError(t, err)
	}
	working, kill := context.WithCancel(t.Context())
	gone := make(chan error, 1)
	go func() {
		gone <- b.Announce(working, bus.Service{Name: "lifeboat-backup", Metadata: map[string]string{"actor": "worker"}})
	}()
	require.Eventually(t, func() bool {
		workers, err := b.Workers(t.Context())
		return err == nil && len(workers) == 1
	}, time.Minute, time.Millisecond)
	claim(config.WorkSnapshot, "running", publish(config.WorkSnapshot, "running"), lifeboatv1.ClaimState_PHASE_RUNNING)
	claim(config.WorkSnapshot, "committing", publish(config.WorkSnapshot, "committing"), lifeboatv1.ClaimState_PHASE_COMMITTING)
	claim(config.WorkSnapshot, "retrying", publish(config.WorkSnapshot, "retrying"), lifeboatv1.ClaimState_PHASE_RELEASED)
	publish(config.WorkSnapshot, "waiting")
	publish(config.WorkDrill, "waiting")
	claim(config.WorkDrill, "waiting", "an earlier one", lifeboatv1.ClaimState_PHASE_RUNNING)
	want := func(running, waiting float64) {
		t.Helper()
		have := look()
		assert.InDelta(t, running, have["lifeboat_jobs_running snapshot"], 0)
		assert.InDelta(t, waiting, have["lifeboat_jobs_waiting snapshot"], 0)
		assert.InDelta(t, 3600, have["lifeboat_jobs_oldest_waiting_seconds snapshot"], 60)
		assert.InDelta(t, 1, have["lifeboat_jobs_waiting drill"], 0)
		assert.InDelta(t, 0, have["lifeboat_jobs_running drill"], 0)
		assert.InDelta(t, 0, have["lifeboat_jobs_oldest_waiting_seconds verify"], 0)
	}
	want(2, 2)
	for i := range fewJobs {
		publish(config.WorkSnapshot, fmt.Sprintf("t-%d", i))
	}
	want(2, fewJobs+2)

	// One that was killed leaves its claims behind.
	kill()
	require.NoError(t, <-gone)
	want(2, fewJobs+2)
	want(0, fewJobs+4)
}

// deafBus is a NATS whose permissions are of an older version.
type deafBus struct{ Bus }

func (deafBus) Workers(context.Context) ([]bus.WorkerInfo, error) { return nil, bus.ErrDenied }

// Without permission to ask which workers are there all claims are believed, and the log says so, once.
func TestClaimsAreBelievedWhenNobodyCanBeAsked(t *testing.T) {
	var log bytes.Buffer
	l := New(Options{Bus: deafBus{}, Logger: slog.New(slog.NewTextHandler(&log, nil)), Registerer: prometheus.NewRegistry(), Now: time.Now})
	jobs := []open{{work: config.WorkDrill, target: "a", id: "1"}}
	claims := map[string]claim{bus.ClaimSubject("a", config.WorkDrill): {job: "1", worker: "worker"}}
	for range 3 {
		assert.Equal(t, claims, l.held(t.Context(), jobs, claims))
	}
	assert.Equal(t, 1, bytes.Count(log.Bytes(), []byte("could not ask which workers are there")), "%s", &log)
}

// brokenBus is a NATS that is away.
type brokenBus struct{ asked chan struct{} }

func (b *brokenBus) Scan(context.Context, string, string, func(*bus.Message) error) error {
	b.asked <- struct{}{}
	return errors.New("it is away")
}

func (*brokenBus) First(context.Context, string, string) (*bus.Message, error) {
	return nil, errors.New("it is away")
}

func (*brokenBus) Workers(context.Context) ([]bus.WorkerInfo, error) {
	return nil, errors.New("it is away")
}

// What is not known is absent, and not what was known once.
func TestAbsentWhileNATSIsAway(t *testing.T) {
	reg := prometheus.NewRegistry()
	broken := &brokenBus{asked: make(chan struct{})}
	l := New(Options{Bus: broken, Logger: slog.New(slog.DiscardHandler), Registerer: reg, Now: time.Now})
	l.last = map[config.Work]count{config.WorkSnapshot: {waiting: 3}}
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- l.Run(ctx) }()
	<-broken.asked
	require.Eventually(t, func() bool { return len(gathered(t, reg)) == 0 }, time.Minute, time.Millisecond)
	cancel()
	require.NoError(t, <-done)
}

// slowBus is a NATS whose looks take as long as it says, and fail while it is away.
type slowBus struct {
	takes atomic.Int64
	away  atomic.Bool
	looks atomic.Int64
}

func (b *slowBus) Scan(context.Context, string, string, func(*bus.Message) error) error {
	b.looks.Add(1)
	<-time.After(time.Duration(b.takes.Load()))
	if b.away.Load() {
		return errors.New("it is away")
	}
	return nil
}

func (*slowBus) First(context.Context, string, string) (*bus.Message, error) {
	return nil, bus.ErrNoMessage
}

func (*slowBus) Workers(context.Context) ([]bus.WorkerInfo, error) { return nil, nil }

// A look that failed after long is no costly one: when NATS is back, what waits is known again soon. One that took long and went well is
// let be, but not for ever.
func TestKnownAgainSoonAfterNATSWasAway(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		const long = 20 * time.Second
		reg, slow := prometheus.NewRegistry(), &slowBus{}
		slow.takes.Store(int64(long))
		slow.away.Store(true)
		l := New(Options{Bus: slow, Logger: slog.New(slog.DiscardHandler), Registerer: reg, Now: time.Now})
		ctx, cancel := context.WithCancel(t.Context())
		done := make(chan error, 1)
		go func() { done <- l.Run(ctx) }()
		pass := func(d time.Duration) {
			<-time.After(d)
			synctest.Wait()
		}
		pass(long)
		require.Empty(t, gathered(t, reg))
		slow.away.Store(false)
		slow.takes.Store(0)
		pass(15 * time.Second)
		assert.NotEmpty(t, gathered(t, reg))

		slow.takes.Store(int64(long))
		pass(interval + long)
		looks := slow.looks.Load()
		pass(longest - interval)
		assert.Equal(t, looks, slow.looks.Load())
		pass(interval)
		assert.Equal(t, looks+1, slow.looks.Load())
		cancel()
		<-time.After(long)
		require.NoError(t, <-done)
	})
}
