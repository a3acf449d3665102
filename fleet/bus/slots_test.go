package bus_test

import (
	"context"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/lifeboat-fleet/lifeboat/fleet/bus"
	"github.com/lifeboat-fleet/lifeboat/fleet/config"
	"github.com/lifeboat-fleet/lifeboat/fleet/fleettest/natstest"
)

// wantSlot waits for a slot beside the test.
func wantSlot(ctx context.Context, b *bus.Bus, n int) <-chan *bus.Slot {
	got := make(chan *bus.Slot, 1)
	go func() {
		if s, err := b.Slot(ctx, config.WorkSnapshot, n); err == nil {
			got <- s
		}
		close(got)
	}()
	return got
}

func slot(t *testing.T, b *bus.Bus, n int) *bus.Slot {
	t.Helper()
	s := receive(t, wantSlot(t.Context(), b, n))
	require.NotNil(t, s)
	return s
}

func none(t *testing.T, waiting <-chan *bus.Slot, why string) {
	t.Helper()
	select {
	case <-waiting:
		require.Fail(t, "got a slot", why)
	case <-time.After(time.Second):
	}
}

func tokens(t *testing.T, b *bus.Bus) int {
	t.Helper()
	all, err := b.Subjects(t.Context(), bus.StreamJobs, "lifeboat.state.slot.snapshot.*")
	require.NoError(t, err)
	return len(all)
}

// waiters waits until so many stand in the server's line.
func waiters(t *testing.T, url string, n int) {
	t.Helper()
	js := raw(t, url)
	require.Eventually(t, func() bool {
		cons, err := js.Consumer(t.Context(), bus.StreamJobs, "slots-snapshot")
		return err == nil && cons.CachedInfo().NumWaiting == n
	}, time.Minute, 5*time.Millisecond)
}

func TestNeverMoreThanTheSlotsInTheWholeFleet(t *testing.T) {
	s, _ := fleet(t)
	var now, most, times atomic.Int64
	var wg sync.WaitGroup
	for _, name := range []string{"a", "b", "c"} {
		b := connect(t, s.URL(), name)
		for range 4 {
			wg.Go(func() {
				for range 10 {
					sl, err := b.Slot(t.Context(), config.WorkSnapshot, 3)
					if !assert.NoError(t, err) { //nolint:testifylint // not in the test's goroutine
						return
					}
					running := now.Add(1)
					for old := most.Load(); running > old && !most.CompareAndSwap(old, running); old = most.Load() {
					}
					times.Add(1)
					<-time.After(2 * time.Millisecond) // the work
					now.Add(-1)
					assert.NoError(t, sl.Free(t.Context()))
				}
			})
		}
	}
	wg.Wait()
	assert.Equal(t, int64(3), most.Load())
	assert.Equal(t, int64(120), times.Load())
}

func TestNoLimitIsNoTraffic(t *testing.T) {
	s, b := fleet(t)
	sl := slot(t, b, 0)
	require.NoError(t, sl.Free(t.Context()))
	assert.Zero(t, tokens(t, b))
	_, err := raw(t, s.URL()).Consumer(t.Context(), bus.StreamJobs, "slots-snapshot")
	require.Error(t, err)
}

// First come, first served, across connections and however long they wait.
func TestTheLineIsInOrder(t *testing.T) {
	t.Parallel()
	s, b := fleet(t)
	held := slot(t, b, 1)
	order := make(chan int, 3)
	var wg sync.WaitGroup
	for i := range 3 {
		other := connect(t, s.URL(), "other")
		wg.Go(func() {
			sl, err := other.Slot(t.Context(), config.WorkSnapshot, 1)
			if assert.NoError(t, err) {
				order <- i
				assert.NoError(t, sl.Free(t.Context()))
			}
		})
		waiters(t, s.URL(), i+1)
	}
	// Longer than a waiter's patience, after which it looks whether its line is still there, and stays in it.
	select {
	case i := <-order:
		require.Fail(t, "got a slot", "%d", i)
	case <-time.After(12 * time.Second):
	}
	require.NoError(t, held.Free(t.Context()))
	assert.Equal(t, []int{0, 1, 2}, []int{receive(t, order), receive(t, order), receive(t, order)})
	wg.Wait()
}

func TestAWaiterThatLeavesTakesNoTokenWithIt(t *testing.T) {
	s, b := fleet(t)
	other := connect(t, s.URL(), "other")
	for range 30 {
		held := slot(t, b, 1)
		ctx, cancel := context.WithCancel(t.Context())
		waiting := wantSlot(ctx, other, 1)
		waiters(t, s.URL(), 1)
		var wg sync.WaitGroup
		wg.Go(cancel) // in the moment in which the token comes
		require.NoError(t, held.Free(t.Context()))
		if sl := receive(t, waiting); sl != nil {
			require.NoError(t, sl.Free(t.Context()))
		}
		wg.Wait()
	}
	begin := time.Now()
	require.NoError(t, slot(t, b, 1).Free(t.Context()))
	assert.Less(t, time.Since(begin), 5*time.Second, "not after AckWait")
	ctx, cancel := context.WithTimeout(t.Context(), 100*time.Millisecond)
	defer cancel()
	held := slot(t, b, 1)
	_, err := other.Slot(ctx, config.WorkSnapshot, 1)
	require.ErrorIs(t, err, context.DeadlineExceeded)
	require.ErrorContains(t, err, "snapshot")
	require.NoError(t, held.Free(t.Context()))
}

func TestTheNumberOfSlotsChanges(t *testing.T) {
	_, b := fleet(t)
	one, two, three := slot(t, b, 3), slot(t, b, 3), slot(t, b, 3)
	assert.Equal(t, 3, tokens(t, b))
	waiting := wantSlot(t.Context(), b, 5) // raised
	four := receive(t, waiting)
	require.NotNil(t, four)
	assert.Equal(t, 5, tokens(t, b))

	// Lowered to 1 while four are held and a fifth is free.
	waiting = wantSlot(t.Context(), b, 1)
	none(t, waiting, "4 are held")
	for _, held := range []*bus.Slot{four, three, two} {
		require.NoError(t, held.Free(t.Context()))
	}
	none(t, waiting, "the one that is left is held")
	assert.Equal(t, 1, tokens(t, b), "the others are gone")
	require.NoError(t, one.Free(t.Context()))
	require.NoError(t, receive(t, waiting).Free(t.Context()))
}

// A holder's process is killed: its slot comes back after AckWait. One that is told to end gives it back at once.
func TestTheSlotOfADeadHolderComesBack(t *testing.T) {
	t.Parallel()
	s, b := fleet(t)
	polite := spawn(t, s.URL(), workerEnv+"_SLOTS=x")
	polite.says(t, "slot")
	waiting := wantSlot(t.Context(), b, 1)
	waiters(t, s.URL(), 1)
	begin := time.Now()
	require.NoError(t, polite.Process.Signal(syscall.SIGTERM))
	held := receive(t, waiting)
	assert.Less(t, time.Since(begin), 5*time.Second)
	polite.says(t, "freed <nil>")
	require.NoError(t, held.Free(t.Context()))

	killed := spawn(t, s.URL(), workerEnv+"_SLOTS=x")
	killed.says(t, "slot")
	waiting = wantSlot(t.Context(), b, 1)
	waiters(t, s.URL(), 1)
	require.NoError(t, killed.Process.Kill())
	select {
	case held = <-waiting:
	case <-time.After(time.Minute):
		require.Fail(t, "it did not come back")
	}
	require.NoError(t, held.Free(t.Context()))
}

// A holder that stood still for longer than AckWait has lost its slot, and what it does then must not free that of the next one.
func TestAHolderThatStoodStillFreesNothing(t *testing.T) {
	t.Parallel()
	s, b := fleet(t)
	stopped := spawn(t, s.URL(), workerEnv+"_SLOTS=x")
	stopped.says(t, "slot")
	require.NoError(t, stopped.Process.Signal(syscall.SIGSTOP))
	waiting := wantSlot(t.Context(), b, 1)
	var held *bus.Slot
	select {
	case held = <-waiting:
	case <-time.After(time.Minute):
		require.Fail(t, "it did not come back")
	}
	require.NoError(t, stopped.Process.Signal(syscall.SIGCONT))
	require.NoError(t, stopped.Process.Signal(syscall.SIGTERM))
	stopped.says(t, "freed")
	none(t, wantSlot(t.Context(), b, 1), "the other one has it")
	require.NoError(t, held.Free(t.Context()))
}

// NATS comes back without its data: the line and its tokens are made anew, also for who is waiting.
func TestSlotsAreMadeAnewWhenNATSLostThem(t *testing.T) {
	t.Parallel()
	s, b := fleet(t)
	held := slot(t, b, 1)
	waiting := wantSlot(t.Context(), b, 1)
	waiters(t, s.URL(), 1)
	s.Stop()
	empty, err := natstest.Start(t.TempDir(), s.Port())
	require.NoError(t, err)
	t.Cleanup(empty.Stop)
	require.Eventually(t, func() bool { return b.EnsureStreams(t.Context()) == nil }, time.Minute, 50*time.Millisecond)
	next := receive(t, waiting)
	require.NotNil(t, next)
	require.NoError(t, next.Free(t.Context()))
	require.NoError(t, held.Free(t.Context()))
	require.NoError(t, slot(t, b, 1).Free(t.Context()))
}
