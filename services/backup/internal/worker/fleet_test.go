package worker_test

import (
	"context"
	"errors"
	"fmt"
	"io"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/nats-io/nats.go/jetstream"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/lifeboat-fleet/lifeboat/fleet/bus"
	"github.com/lifeboat-fleet/lifeboat/fleet/config"
	lifeboatv1 "github.com/lifeboat-fleet/lifeboat/proto/lifeboat/v1"
	"github.com/lifeboat-fleet/lifeboat/services/backup/internal/worker"
)

// targets replaces the targets by copies of the first one with these names; change may be nil.
func (f *fleet) targets(names []string, change func(*config.Config)) {
	next := *f.config.Load()
	next.Targets = nil
	for _, name := range names {
		t := f.config.Load().Targets[0]
		t.Name = name
		next.Targets = append(next.Targets, t)
	}
	if change != nil {
		change(&next)
	}
	f.config.Store(&next)
}

// claim is what the claim of a target's snapshots says; empty when there is none.
func (f *fleet) claim(name string) *lifeboatv1.ClaimState {
	f.t.Helper()
	c := &lifeboatv1.ClaimState{}
	_, _, err := f.events.Last(f.t.Context(), bus.StreamJobs, bus.ClaimSubject(name, config.WorkSnapshot), c)
	require.NoError(f.t, err)
	return c
}

// ends is how many events of a kind each target has.
func (f *fleet) ends(noun, verb string) map[string]int {
	f.t.Helper()
	subjects, err := f.events.Subjects(f.t.Context(), bus.StreamEvents, bus.EventSubject(noun, verb, "*"))
	require.NoError(f.t, err)
	n := map[string]int{}
	for subject, count := range subjects {
		n[subject[strings.LastIndex(subject, ".")+1:]] = int(count)
	}
	return n
}

// gate is a source that counts how many read it at once, and lets them go on one by one.
type gate struct {
	release chan struct{}
	inside  atomic.Int32

	mu   sync.Mutex
	most int32
}

func newGate() *gate { return &gate{release: make(chan struct{})} }

func (g *gate) open(ctx context.Context, name string) (io.Reader, error) {
	n := g.inside.Add(1)
	defer g.inside.Add(-1)
	g.mu.Lock()
	g.most = max(g.most, n)
	g.mu.Unlock()
	select {
	case <-g.release:
		return strings.NewReader(export + name), nil
	case <-ctx.Done():
		return nil, context.Cause(ctx)
	}
}

func (g *gate) highest() int32 {
	g.mu.Lock()
	defer g.mu.Unlock()
	return g.most
}

func (g *gate) waitFor(t *testing.T, n int32) {
	t.Helper()
	require.Eventually(t, func() bool { return g.inside.Load() == n }, time.Minute, 5*time.Millisecond, "%d are to run at once", n)
}

// A job of a zone goes to a worker of that zone; one of no zone to any; one of a zone without a worker waits, and uses up no attempt.
func TestJobsGoToWorkersOfTheirZone(t *testing.T) {
	f := newFleet(t)
	zones := map[string]string{"of-a": "a", "of-b": "b", "of-c": "c", "of-none": ""}
	f.targets([]string{"of-a", "of-b", "of-c", "of-none"}, func(c *config.Config) {
		for i := range c.Targets {
			c.Targets[i].Zone = zones[c.Targets[i].Name]
		}
	})
	only := []config.Work{config.WorkSnapshot}
	f.hire(hand{name: "worker-a", zone: "a", works: only})
	f.hire(hand{name: "worker-b", zone: "b", works: only})
	f.publish(config.WorkSnapshot, "of-c", "")
	for round := range 5 {
		for _, name := range []string{"of-a", "of-b", "of-none"} {
			f.publish(config.WorkSnapshot, name, "")
		}
		require.Eventually(t, func() bool {
			n := f.ends("snapshot", "committed")
			return n["of-a"] > round && n["of-b"] > round && n["of-none"] > round
		}, time.Minute, 20*time.Millisecond)
		assert.Equal(t, "worker-a", f.event("snapshot", "committed", "of-a").GetActor())
		assert.Equal(t, "worker-b", f.event("snapshot", "committed", "of-b").GetActor())
	}
	js, err := jetstream.New(f.nc)
	require.NoError(t, err)
	require.Eventually(t, func() bool { // it was offered again and again
		cons, err := js.Consumer(t.Context(), bus.StreamJobs, "backup-snapshot")
		if err != nil {
			return false
		}
		return cons.CachedInfo().Delivered.Consumer >= 15+8
	}, time.Minute, 20*time.Millisecond)
	assert.Zero(t, f.claim("of-c").GetAttempt())
	assert.Zero(t, f.ends("snapshot", "started")["of-c"])
	assert.Zero(t, f.ends("job", "rejected")["of-c"])

	f.hire(hand{name: "worker-c", zone: "c", works: only})
	e := f.event("snapshot", "committed", "of-c")
	assert.Equal(t, "worker-c", e.GetActor())
	assert.Equal(t, "1", e.GetAttributes()["attempt"])
}

// Of twenty targets one always fails, and one has a job again as soon as the last one ended. Every other has its turn all the same,
// and the greedy one has one turn to each of theirs.
func TestEveryTargetHasItsTurn(t *testing.T) {
	f := newFleet(t)
	names := make([]string, 20)
	for i := range names {
		names[i] = fmt.Sprintf("t-%02d", i)
	}
	failing, greedy, others := names[0], names[1], names[2:]
	f.targets(names, nil)
	f.sourceOf = func(_ context.Context, name string) (io.Reader, error) {
		if name == failing {
			return nil, errors.New("connection refused")
		}
		return strings.NewReader(export + name), nil
	}
	only := []config.Work{config.WorkSnapshot}
	f.hire(hand{name: "one", works: only})
	f.hire(hand{name: "two", works: only})
	ctx, stop := context.WithCancel(t.Context())
	var wg sync.WaitGroup
	for _, name := range []string{failing, greedy} {
		wg.Go(func() {
			for ctx.Err() == nil {
				_, err := f.events.Publish(ctx, bus.Outgoing{Subject: bus.JobSubject(config.WorkSnapshot, name), Message: &lifeboatv1.Job{}})
				if err != nil && !errors.Is(err, bus.ErrBusy) && ctx.Err() == nil {
					assert.NoError(t, err)
				}
			}
		})
	}
	defer func() { stop(); wg.Wait() }()
	require.Eventually(t, func() bool { return f.ends("snapshot", "committed")[greedy] > 0 }, time.Minute, 10*time.Millisecond)
	for round := range 4 {
		before := f.ends("snapshot", "committed")[greedy]
		for _, name := range others {
			f.publish(config.WorkSnapshot, name, "")
		}
		require.Eventually(t, func() bool {
			n := f.ends("snapshot", "committed")
			for _, name := range others {
				if n[name] <= round {
					return false
				}
			}
			return true
		}, 60*time.Second, 5*time.Millisecond, "round %d: somebody has no turn", round)
		turns := f.ends("snapshot", "committed")[greedy] - before
		t.Logf("round %d: the greedy target had %d turns beside %d others", round, turns, len(others))
		// They are published one after the other, and it may run between any two; but never twice for one of them.
		assert.Less(t, turns, len(others))
	}
	assert.Positive(t, f.ends("snapshot", "failed")[failing], "it ran all the time too")
}

// What a worker cannot begin stays in the queue, for one that idles.
func TestAWorkerHoardsNothing(t *testing.T) {
	f := newFleet(t)
	names := []string{"t-0", "t-1", "t-2", "t-3", "t-4", "t-5"}
	f.targets(names, nil)
	g := newGate()
	f.sourceOf = g.open
	only := []config.Work{config.WorkSnapshot}
	f.hire(hand{name: "first", works: only, concurrency: 2})
	for _, name := range names {
		f.publish(config.WorkSnapshot, name, "")
	}
	g.waitFor(t, 2)
	f.hire(hand{name: "second", works: only, concurrency: 2})
	g.waitFor(t, 4)
	workers := map[string]int{}
	for _, name := range names {
		workers[f.claim(name).GetWorker()]++
	}
	assert.Equal(t, map[string]int{"first": 2, "second": 2, "": 2}, workers)
	close(g.release)
	require.Eventually(t, func() bool { return len(f.ends("snapshot", "committed")) == len(names) }, time.Minute, 20*time.Millisecond)
}

// The fleet runs as many as it may, over all workers, and another number after a reload.
func TestTheFleetsConcurrency(t *testing.T) {
	f := newFleet(t)
	names := make([]string, 12)
	for i := range names {
		names[i] = fmt.Sprintf("t-%02d", i)
	}
	limit := func(n int) {
		f.targets(names, func(c *config.Config) { c.Workers.FleetConcurrency.Snapshot = n })
	}
	limit(2)
	g := newGate()
	f.sourceOf = g.open
	for i := range 3 {
		f.hire(hand{name: fmt.Sprint("worker-", i), works: []config.Work{config.WorkSnapshot}, concurrency: 4})
	}
	for _, name := range names {
		f.publish(config.WorkSnapshot, name, "")
	}
	for range 4 {
		g.waitFor(t, 2)
		g.release <- struct{}{}
	}
	assert.Equal(t, int32(2), g.highest(), "never more than two at once")
	g.waitFor(t, 2)
	limit(4)
	g.waitFor(t, 4)
	limit(0)
	g.waitFor(t, 8)
	close(g.release)
	require.Eventually(t, func() bool { return len(f.ends("snapshot", "committed")) == len(names) }, 60*time.Second, 20*time.Millisecond)
}

// waiting hires a worker whose fleet may take one snapshot at a time, and has t-1 wait behind t-0, which runs.
func (f *fleet) waiting(g *gate) *worker.Worker {
	f.t.Helper()
	f.targets([]string{"t-0", "t-1"}, func(c *config.Config) { c.Workers.FleetConcurrency.Snapshot = 1 })
	f.sourceOf = g.open
	var w *worker.Worker
	f.hire(hand{name: "worker", works: []config.Work{config.WorkSnapshot}, concurrency: 2, worker: &w})
	f.publish(config.WorkSnapshot, "t-0", "")
	g.waitFor(f.t, 1)
	f.publish(config.WorkSnapshot, "t-1", "")
	require.Eventually(f.t, func() bool { return w.Running() == 2 }, time.Minute, 10*time.Millisecond)
	return w
}

// A job that is cancelled while it waits for its turn makes room at once, and never begins: not even when a later job of the target
// has the claim by then, which it would take from it.
func TestAJobThatIsCancelledWhileItWaits(t *testing.T) {
	for _, followed := range []bool{false, true} {
		t.Run(fmt.Sprint("followed ", followed), func(t *testing.T) {
			f := newFleet(t)
			g := newGate()
			w := f.waiting(g)
			id, was, err := f.events.CancelJob(t.Context(), config.WorkSnapshot, "t-1", "", "a test")
			require.NoError(t, err)
			assert.Nil(t, was)
			if followed {
				id = f.followed("t-1")
			}
			require.Eventually(t, func() bool { return w.Running() == 1 }, time.Minute, 10*time.Millisecond, "it still waits")
			if !followed {
				e := f.event("job", "stopped", "t-1")
				assert.Equal(t, id, e.GetJobId())
				assert.Equal(t, "0", e.GetAttributes()["attempt"])
			}
			close(g.release)
			require.Eventually(t, func() bool { return f.ends("snapshot", "committed")["t-0"] == 1 }, time.Minute, 20*time.Millisecond)
			assert.Equal(t, id, f.claim("t-1").GetJobId())
			assert.Zero(t, f.ends("snapshot", "started")["t-1"])
		})
	}
}

// followed has a later job of the target take the claim, and returns its id.
func (f *fleet) followed(name string) string {
	f.t.Helper()
	later := &bus.Message{Subject: bus.JobSubject(config.WorkSnapshot, name), Seq: 1_000_000, Stored: time.Now(), Delivery: 1}
	_, err := f.events.Claim(f.t.Context(), config.WorkSnapshot, name, later)
	require.NoError(f.t, err)
	return later.ID()
}

// What a reload did to a target while its job waited counts when its turn comes.
func TestAReloadWhileAJobWaits(t *testing.T) {
	f := newFleet(t)
	g := newGate()
	f.waiting(g)
	f.targets([]string{"t-0", "t-1"}, func(c *config.Config) {
		c.Workers.FleetConcurrency.Snapshot, c.Targets[1].Zone = 1, "elsewhere"
	})
	close(g.release)
	require.Eventually(t, func() bool { return f.ends("snapshot", "committed")["t-0"] == 1 }, time.Minute, 20*time.Millisecond)
	f.hire(hand{name: "there", zone: "elsewhere", works: []config.Work{config.WorkSnapshot}})
	assert.Equal(t, "there", f.event("snapshot", "committed", "t-1").GetActor())
	assert.Empty(t, f.ends("snapshot", "interrupted"))
}
