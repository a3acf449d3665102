package worker_test

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/nats-io/nats.go/jetstream"
	"github.com/prometheus/client_golang/prometheus"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/lifeboat-fleet/lifeboat/fleet/bus"
	"github.com/lifeboat-fleet/lifeboat/fleet/config"
	"github.com/lifeboat-fleet/lifeboat/fleet/fleettest/s3test"
	lifeboatv1 "github.com/lifeboat-fleet/lifeboat/proto/lifeboat/v1"
	"github.com/lifeboat-fleet/lifeboat/services/backup/internal/catalog"
	"github.com/lifeboat-fleet/lifeboat/services/backup/internal/worker"
)

// What waits for its turn when the service begins to stop is handed back at once; what has begun goes on.
func TestWhatHasNotBegunIsHandedBackAtOnce(t *testing.T) {
	f := newFleet(t)
	names := []string{"t-0", "t-1"}
	f.targets(names, func(c *config.Config) { c.Workers.FleetConcurrency.Snapshot = 1 })
	g := newGate()
	f.sourceOf = g.open
	var w *worker.Worker
	fire := f.hire(hand{name: "worker", works: []config.Work{config.WorkSnapshot}, concurrency: 2, worker: &w})
	for _, name := range names {
		f.publish(config.WorkSnapshot, name, "")
	}
	g.waitFor(t, 1)
	require.Eventually(t, func() bool { return w.Running() == 2 }, time.Minute, 10*time.Millisecond)
	assert.Equal(t, 2, w.Drain())
	require.Eventually(t, func() bool { return w.Drained().HandedBack > 0 }, time.Minute, 10*time.Millisecond)
	var waited string
	for _, name := range names {
		if f.claim(name).GetAttempt() == 0 {
			waited = name
		}
	}
	e := f.event("job", "handed-back", waited)
	assert.Equal(t, "worker", e.GetAttributes()["worker"])
	assert.Equal(t, "0", e.GetAttributes()["attempt"])
	assert.Equal(t, int32(1), g.inside.Load(), "the other one goes on")
	g.release <- struct{}{}
	require.Eventually(t, func() bool { return w.Drained().Finished == 1 }, time.Minute, 10*time.Millisecond)
	fire()
	f.hire(hand{name: "next", works: []config.Work{config.WorkSnapshot}})
	g.waitFor(t, 1)
	close(g.release)
	assert.Equal(t, "next", f.event("snapshot", "committed", waited).GetActor())
}

// Whoever cancels a job that runs ends its work within seconds; that is told when it has ended, and is no failure.
func TestACancelledJobEnds(t *testing.T) {
	f := newFleet(t)
	g := newGate()
	f.sourceOf = g.open
	f.work()
	f.publish(config.WorkSnapshot, target, `{"tick":"2026-11-21T04:00:00Z"}`)
	g.waitFor(t, 1)
	id, was, err := f.events.CancelJob(t.Context(), config.WorkSnapshot, target, "", "a test")
	require.NoError(t, err)
	assert.Equal(t, "worker", was.GetWorker())
	e := f.event("job", "stopped", target)
	assert.Equal(t, id, e.GetJobId())
	assert.Equal(t, "snapshot", e.GetAttributes()["work"])
	assert.Equal(t, "1", e.GetAttributes()["attempt"])
	assert.Equal(t, "2026-11-21T04:00:00Z", e.GetAttributes()["tick"])
	assert.Zero(t, g.inside.Load())
	close(g.release)
	f.snapshot() // there is room for the next one
	assert.Zero(t, f.count("snapshot", "failed"))
	assert.Zero(t, f.count("snapshot", "interrupted"))
	require.Len(t, f.snapshots(), 1)
}

// A job that waits for another worker's commit when the service begins to stop does not begin any more.
func TestADrainWhileAnotherWorkerCommits(t *testing.T) {
	f := newFleet(t)
	f.publish(config.WorkSnapshot, target, "")
	earlier := &bus.Message{Subject: bus.JobSubject(config.WorkSnapshot, target), Seq: 1, Stored: time.Now().Add(-time.Hour), Delivery: 1}
	c, err := f.events.Claim(t.Context(), config.WorkSnapshot, target, earlier)
	require.NoError(t, err)
	_, done, err := c.Commit(t.Context())
	require.NoError(t, err)
	defer done()
	var w *worker.Worker
	f.hire(hand{name: "worker", works: []config.Work{config.WorkSnapshot}, worker: &w})
	require.Eventually(t, func() bool { return w.Running() == 1 }, time.Minute, 10*time.Millisecond)
	w.Drain()
	require.NoError(t, c.Release(t.Context()))
	f.event("job", "handed-back", target)
	assert.Equal(t, lifeboatv1.ClaimState_PHASE_HANDED_BACK, f.claim(target).GetPhase())
	assert.Zero(t, f.count("snapshot", "started"))
}

// A snapshot whose commit is all that succeeded in its last attempt exists, and is not told of as failed.
func TestASnapshotThatExistsHasNotFailed(t *testing.T) {
	f := newFleet(t)
	var w *worker.Worker
	f.hire(hand{name: "worker", works: []config.Work{config.WorkVerify}, worker: &w})
	m := &bus.Message{Subject: bus.JobSubject(config.WorkSnapshot, target), Seq: 77, Stored: time.Now(), Attempt: 3}
	require.NoError(t, f.catalog.Commit(t.Context(), &lifeboatv1.Manifest{Format: catalog.Format, Id: m.ID(), Target: target, Data: &lifeboatv1.Data{Key: "there"}}))
	require.NoError(t, w.OnDead(t.Context(), m, errors.New("publishing the event: no answer")))
	assert.Equal(t, m.ID(), f.event("snapshot", "committed", target).GetSnapshotId())
	assert.Zero(t, f.count("snapshot", "failed"))
	m.Seq++
	require.NoError(t, w.OnDead(t.Context(), m, errors.New("connection refused")))
	assert.Equal(t, m.ID(), f.event("snapshot", "failed", target).GetJobId())
}

// A prune says why an attempt ended, like the other kinds of work.
func TestAPruneThatFailsIsToldOf(t *testing.T) {
	f := newFleet(t)
	proxy := f.behind(s3test.NewProxy(t, f.s3))
	proxy.Handle(s3test.Always("ListObjectVersions", s3test.Answer(http.StatusBadRequest, "InvalidRequest")))
	f.target(func(c *config.Target) { c.Retention.Last = 1 })
	f.work()
	f.publish(config.WorkPrune, target, "")
	assert.NotEmpty(t, f.event("prune", "interrupted", target).GetMessage())
	assert.Equal(t, "3", f.event("prune", "failed", target).GetAttributes()["attempts"])
}

// A worker that has not read the new configuration yet must not reject the first job of a new target.
func TestTheFirstJobOfANewTargetWaitsForTheConfiguration(t *testing.T) {
	f := newFleet(t)
	f.hire(hand{name: "worker", works: []config.Work{config.WorkSnapshot}, patience: time.Minute})
	f.publish(config.WorkSnapshot, "new", "")
	js, err := jetstream.New(f.nc)
	require.NoError(t, err)
	require.Eventually(t, func() bool {
		cons, err := js.Consumer(t.Context(), bus.StreamJobs, "backup-snapshot")
		return err == nil && cons.CachedInfo().Delivered.Consumer > 2
	}, time.Minute, 20*time.Millisecond)
	f.targets([]string{"new"}, nil)
	assert.Equal(t, "1", f.event("snapshot", "committed", "new").GetAttributes()["attempt"])
	assert.Empty(t, f.ends("job", "rejected"))
}

// Events of a job say for which tick it was, and which attempt; what died says who asked for it.
func TestEventsSayAttemptAndTick(t *testing.T) {
	f := newFleet(t)
	f.target(func(c *config.Target) { c.Retention.Last = 1 })
	f.work()
	f.snapshot() // for the prune
	const job = `{"tick":"2026-11-21T04:00:00Z","requestedBy":"scheduler"}`
	said := map[string]string{"attempt": "1", "tick": "2026-11-21T04:00:00Z"}
	for _, work := range config.Works() {
		f.publish(work, target, job)
		require.Eventually(t, func() bool { return f.count("snapshot", "committed") == 2 }, time.Minute, 20*time.Millisecond)
		f.event(string(work), map[config.Work]string{config.WorkSnapshot: "committed"}[work]+map[bool]string{true: "passed"}[work != config.WorkSnapshot], target)
	}
	for _, kind := range []string{
		"snapshot.started", "snapshot.committed", "verify.started", "verify.passed", "drill.started", "drill.passed", "prune.started", "prune.passed",
		"source.well", "snapshot.deleted",
	} {
		noun, verb, _ := strings.Cut(kind, ".")
		e := f.event(noun, verb, target)
		assert.Subset(t, e.GetAttributes(), said, kind)
		assert.Equal(t, "scheduler", e.GetRequestedBy(), kind)
	}
	report := f.snapshots()[0].Drills[0]
	assert.Equal(t, "2026-11-21T04:00:00Z", report.GetTick().AsTime().Format(time.RFC3339))

	f.sourceOf = func(context.Context, string) (io.Reader, error) { return nil, errors.New("connection refused") }
	f.publish(config.WorkSnapshot, target, job)
	e := f.event("snapshot", "failed", target)
	assert.Equal(t, "scheduler", e.GetRequestedBy())
	assert.Subset(t, e.GetAttributes(), map[string]string{"attempt": "3", "attempts": "3", "tick": "2026-11-21T04:00:00Z"})
}

// A drill worker that was given up for dead writes no report: its successor's is the one that counts.
func TestADrillThatLostItsClaimWritesNoReport(t *testing.T) {
	f := newFleet(t)
	proxy := f.behind(s3test.NewProxy(t, f.s3))
	f.work()
	m := f.snapshot()
	f.stop()
	message := &bus.Message{Subject: bus.JobSubject(config.WorkDrill, target), Seq: 77, Stored: time.Now(), Delivery: 1}
	successor := *message
	var once sync.Once
	proxy.Handle(func(r *http.Request) s3test.Fault {
		if s3test.Key(r) == m.GetData().GetKey() {
			once.Do(func() {
				if _, err := f.events.Claim(t.Context(), config.WorkDrill, target, &successor); err != nil {
					t.Error(err)
				}
			})
		}
		return s3test.Pass()
	})
	w := worker.New(worker.Options{
		Config: f.config.Load, Objects: f.objects, Catalog: f.catalog, Bus: f.connect("given up"), ScratchDir: t.TempDir(),
		Logger: slog.New(slog.NewTextHandler(t.Output(), nil)), Registerer: prometheus.NewRegistry(), Clock: time.Now,
		Drill: worker.DrillOptions{ConsulBinary: f.consul},
	})
	require.ErrorIs(t, w.Handler(config.WorkDrill)(t.Context(), message), bus.ErrClaimLost)
	assert.Equal(t, int64(2), successor.Attempt)
	assert.Empty(t, f.snapshots()[0].Drills)
	assert.Zero(t, f.count("drill", "passed"))
}

// Work of hours notices within seconds that another delivery has its claim, also where it reads one thing for very long, and leaves
// nothing behind.
func TestLongWorkThatLostItsClaimStops(t *testing.T) {
	for work, op := range map[config.Work]string{config.WorkVerify: "GetObject", config.WorkPrune: "ListObjectVersions"} {
		t.Run(string(work), func(t *testing.T) {
			f := newFleet(t)
			f.target(func(c *config.Target) { c.Retention.Last = 1 })
			f.work()
			f.snapshot()
			f.stop()
			proxy := f.behind(s3test.NewProxy(t, f.s3))
			proxy.Handle(func(r *http.Request) s3test.Fault {
				if s3test.Op(r) == op && !strings.HasSuffix(s3test.Key(r), ".json") {
					return s3test.Hang()
				}
				return s3test.Pass()
			})
			w := worker.New(worker.Options{
				Config: f.config.Load, Objects: f.objects, Catalog: f.catalog, Remover: f.objects, Bus: f.connect("given up"),
				Logger: slog.New(slog.NewTextHandler(t.Output(), nil)), Registerer: prometheus.NewRegistry(), Clock: time.Now,
			})
			message := &bus.Message{Subject: bus.JobSubject(work, target), Seq: 77, Stored: time.Now(), Delivery: 1}
			successor, done := *message, make(chan error, 1)
			go func() { done <- w.Handler(work)(t.Context(), message) }()
			require.Eventually(t, func() bool { return proxy.Hanging() > 0 }, time.Minute, 10*time.Millisecond)
			_, err := f.events.Claim(t.Context(), work, target, &successor)
			require.NoError(t, err)
			select {
			case err = <-done:
				require.ErrorIs(t, err, bus.ErrClaimLost)
			case <-time.After(time.Minute):
				require.Fail(t, "it goes on")
			}
			assert.Equal(t, message.ID(), f.event(string(work), "interrupted", target).GetJobId())
			assert.Zero(t, f.count(string(work), "passed"))
			proxy.Handle(nil)
			assert.Empty(t, f.snapshots()[0].Marks)
		})
	}
}

// Every kind of work is handed back when the service stops, and is the same attempt at the next worker.
func TestEveryKindOfWorkIsHandedBack(t *testing.T) {
	for work, op := range map[config.Work]string{
		config.WorkSnapshot: "HeadObject", config.WorkVerify: "GetObject", config.WorkDrill: "GetObject", config.WorkPrune: "ListObjectVersions",
	} {
		t.Run(string(work), func(t *testing.T) {
			f := newFleet(t)
			f.target(func(c *config.Target) { c.Retention.Last = 1 })
			f.work()
			f.snapshot()
			f.stop()
			proxy := f.behind(s3test.NewProxy(t, f.s3))
			proxy.Handle(func(r *http.Request) s3test.Fault {
				if s3test.Op(r) == op && !strings.HasSuffix(s3test.Key(r), ".json") {
					return s3test.Hang()
				}
				return s3test.Pass()
			})
			before := f.count("snapshot", "committed")
			fire := f.hire(hand{name: "stopped", works: []config.Work{work}})
			f.publish(work, target, "")
			require.Eventually(t, func() bool { return proxy.Hanging() > 0 }, time.Minute, 10*time.Millisecond)
			fire()
			e := f.event("job", "handed-back", target)
			assert.Subset(t, e.GetAttributes(), map[string]string{"work": string(work), "worker": "stopped", "attempt": "1"})
			c := &lifeboatv1.ClaimState{}
			_, _, err := f.events.Last(t.Context(), bus.StreamJobs, bus.ClaimSubject(target, work), c)
			require.NoError(t, err)
			assert.Equal(t, lifeboatv1.ClaimState_PHASE_HANDED_BACK, c.GetPhase())

			proxy.Handle(nil)
			f.hire(hand{name: "next", works: []config.Work{work}})
			verb := "passed"
			if work == config.WorkSnapshot {
				verb = "committed"
				require.Eventually(t, func() bool { return f.count("snapshot", "committed") > before }, time.Minute, 20*time.Millisecond)
			}
			e = f.event(string(work), verb, target)
			assert.Equal(t, "next", e.GetActor())
			assert.Equal(t, "1", e.GetAttributes()["attempt"])
			assert.Zero(t, f.count(string(work), "failed"))
			assert.Zero(t, f.count(string(work), "interrupted"))
		})
	}
}

// A job whose worker died in each of its attempts is a dead letter; but not when the last one died after its snapshot was committed.
func TestAJobThatKilledItsWorkersEnds(t *testing.T) {
	for _, committed := range []bool{false, true} {
		t.Run(fmt.Sprint("committed ", committed), func(t *testing.T) {
			f := newFleet(t)
			f.publish(config.WorkSnapshot, target, "")
			seq, stored, err := f.events.Last(t.Context(), bus.StreamJobs, bus.JobSubject(config.WorkSnapshot, target), &lifeboatv1.Job{})
			require.NoError(t, err)
			m := &bus.Message{Subject: bus.JobSubject(config.WorkSnapshot, target), Seq: seq, Stored: stored}
			for range 3 {
				_, err = f.events.Claim(t.Context(), config.WorkSnapshot, target, m)
				require.NoError(t, err)
			}
			if committed {
				f.sources = nil
				require.NoError(t, f.catalog.Commit(t.Context(), &lifeboatv1.Manifest{
					Format: catalog.Format, Id: m.ID(), Target: target, Data: &lifeboatv1.Data{Key: "there"},
				}))
			}
			f.work()
			if committed {
				assert.Equal(t, m.ID(), f.event("snapshot", "committed", target).GetSnapshotId())
				assert.Zero(t, f.count("snapshot", "failed"))
			} else {
				e := f.event("snapshot", "failed", target)
				assert.Equal(t, "3", e.GetAttributes()["attempts"])
				assert.Equal(t, int64(3), f.deadLetter("lifeboat.dead.job.snapshot."+target).GetAttempts())
				assert.Zero(t, f.count("snapshot", "started"))
			}
			require.Eventually(t, func() bool {
				left, _, err := f.events.Last(t.Context(), bus.StreamJobs, m.Subject, &lifeboatv1.Job{})
				return err == nil && left == 0
			}, time.Minute, 20*time.Millisecond)
		})
	}
}

// The fifth worker may die after it has told how the job ended, and before it could acknowledge it.
func TestAJobThatHasToldHowItEndedHasNotFailed(t *testing.T) {
	for i, work := range []config.Work{config.WorkVerify, config.WorkDrill, config.WorkPrune, config.WorkPrune} {
		attempts := 3
		if i == 3 {
			attempts = 1 // one that could still be repeated is not either
		}
		t.Run(fmt.Sprint(work, " after ", attempts), func(t *testing.T) {
			f := newFleet(t)
			f.publish(work, target, "")
			seq, stored, err := f.events.Last(t.Context(), bus.StreamJobs, bus.JobSubject(work, target), &lifeboatv1.Job{})
			require.NoError(t, err)
			m := &bus.Message{Subject: bus.JobSubject(work, target), Seq: seq, Stored: stored}
			for range attempts {
				_, err = f.events.Claim(t.Context(), work, target, m)
				require.NoError(t, err)
			}
			require.NoError(t, f.events.Emit(t.Context(), &lifeboatv1.Event{
				Id: string(work) + ".passed." + m.ID(), Noun: string(work), Verb: "passed", Target: target, JobId: m.ID(),
			}))
			f.work()
			require.Eventually(t, func() bool {
				left, _, err := f.events.Last(t.Context(), bus.StreamJobs, m.Subject, &lifeboatv1.Job{})
				return err == nil && left == 0
			}, time.Minute, 20*time.Millisecond)
			assert.Zero(t, f.count(string(work), "failed"))
			assert.Zero(t, f.count(string(work), "started"))
		})
	}
}
