package bus_test

import (
	"context"
	"fmt"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/lifeboat-fleet/lifeboat/fleet/bus"
	"github.com/lifeboat-fleet/lifeboat/fleet/config"
	"github.com/lifeboat-fleet/lifeboat/fleet/fleettest/bintest"
	lifeboatv1 "github.com/lifeboat-fleet/lifeboat/proto/lifeboat/v1"
)

// cluster is three servers with three replicas of each stream, and a connection to each of them.
func cluster(t *testing.T) ([]*bintest.NATS, []*bus.Bus) {
	t.Helper()
	servers, err := bintest.StartNATSCluster(t.Context(), t.TempDir(), 3, bintest.PlainCluster(""))
	t.Cleanup(func() {
		for _, s := range servers {
			assert.NoError(t, s.Kill())
		}
	})
	require.NoError(t, err)
	all := make([]*bus.Bus, 0, len(servers))
	for i, s := range servers {
		b, _ := dial(t, config.NATS{URL: s.URL + "," + servers[(i+1)%3].URL, Replicas: 3})
		all = append(all, b)
	}
	require.Eventually(t, func() bool { err = all[0].EnsureStreams(t.Context()); return err == nil }, 60*time.Second, 100*time.Millisecond, "%v", &err)
	return servers, all
}

// Every replica answers a reading, also one that has not yet stored what was acknowledged a moment ago. That is no lost claim.
func TestAClaimIsNotLostToAReplicaThatLagsBehind(t *testing.T) {
	_, all := cluster(t)
	m := message(7)
	for i := range 300 {
		c, err := all[i%3].Claim(t.Context(), config.WorkSnapshot, "etcd-prod", m)
		require.NoError(t, err, "turn %d", i)
		held, stop := c.Hold(t.Context(), time.Millisecond)
		require.NoError(t, c.Confirm(t.Context()), "turn %d", i)
		require.NoError(t, held.Err(), "turn %d", i)
		stop()
		require.NoError(t, c.HandBack(t.Context()))
	}
	assert.Equal(t, int64(1), m.Attempt)
	publishStates(t, all[0], 0, 7000)
	for _, b := range all {
		var n int
		assert.Eventually(t, func() bool {
			n = 0
			return b.Scan(t.Context(), bus.StreamJobs, bus.ScheduleSubject("*", "*"), func(*bus.Message) error { n++; return nil }) == nil && n == 7000
		}, time.Minute, 50*time.Millisecond, "%d", &n)
	}
}

// Each server of a cluster is killed and comes back, while more want a slot than there are: never more have one.
// While a cluster stores a message it refuses another one with the same id, of which it is not known whether it will be needed.
func TestReplicasThatSayTheSameAtOnceSayItOnce(t *testing.T) {
	_, all := cluster(t)
	for i := range 100 {
		var wg sync.WaitGroup
		for _, b := range all {
			for range 3 {
				wg.Go(func() {
					assert.NoError(t, b.Emit(t.Context(), &lifeboatv1.Event{Id: fmt.Sprint("same-", i), Noun: "tick", Verb: "missed", Target: "etcd-prod"}))
				})
			}
		}
		wg.Wait()
	}
	n := 0
	require.NoError(t, all[0].History(t.Context(), bus.StreamEvents, []string{bus.EventSubject("tick", "missed", "*")}, time.Time{},
		func(*bus.Message) error { n++; return nil }))
	assert.Equal(t, 100, n)
}

func TestSlotsOutliveServers(t *testing.T) {
	t.Parallel()
	servers, all := cluster(t)
	var mu sync.Mutex
	now, most, times := 0, 0, 0
	stop := make(chan struct{})
	var wg sync.WaitGroup
	for i := range 6 {
		wg.Go(func() {
			for {
				select {
				case <-stop:
					return
				default:
				}
				s, err := all[i%3].Slot(t.Context(), config.WorkSnapshot, 2)
				if !assert.NoError(t, err) { //nolint:testifylint // not in the test's goroutine
					return
				}
				mu.Lock()
				now, times = now+1, times+1
				most = max(most, now)
				mu.Unlock()
				<-time.After(10 * time.Millisecond) // the work
				mu.Lock()
				now--
				mu.Unlock()
				assert.NoError(t, s.Free(t.Context()))
			}
		})
	}
	done := func() int {
		mu.Lock()
		defer mu.Unlock()
		return times
	}
	for _, s := range servers {
		before := done()
		require.Eventually(t, func() bool { return done() > before+10 }, 60*time.Second, 20*time.Millisecond, "slots are given")
		require.NoError(t, s.Kill())
		require.NoError(t, s.Restart(t.Context()))
	}
	before := done()
	require.Eventually(t, func() bool { return done() > before+50 }, 90*time.Second, 20*time.Millisecond, "slots are given")
	close(stop)
	ended := make(chan struct{})
	go func() {
		wg.Wait()
		close(ended)
	}()
	select {
	case <-ended:
	case <-time.After(60 * time.Second):
		require.Fail(t, "somebody waits for a slot though all are free")
	}
	assert.LessOrEqual(t, most, 2)
}

// The server that hands out the jobs is killed: its successor knows nobody who waits, and they notice.
func TestConsumersOutliveServers(t *testing.T) {
	t.Parallel()
	servers, all := cluster(t)
	handled := make(chan string, 10)
	for _, b := range all {
		start(t, b, jobs(func(_ context.Context, m *bus.Message) error {
			handled <- m.Subject
			return nil
		}))
	}
	js := raw(t, servers[0].URL+","+servers[1].URL+","+servers[2].URL)
	for range 2 {
		var leader string
		require.Eventually(t, func() bool {
			cons, err := js.Consumer(t.Context(), bus.StreamJobs, "test")
			if err != nil || cons.CachedInfo().NumWaiting != 3 {
				return false
			}
			leader = cons.CachedInfo().Cluster.Leader
			return leader != ""
		}, 60*time.Second, 50*time.Millisecond, "all of them wait")
		for _, s := range servers {
			if s.Name != leader {
				continue
			}
			require.NoError(t, s.Kill())
			publisher := all[0]
			var err error
			require.Eventually(t, func() bool {
				_, err = publisher.Publish(t.Context(), job("etcd-prod"))
				return err == nil
			}, time.Minute, 50*time.Millisecond, "%v", &err)
			receive(t, handled)
			require.NoError(t, s.Restart(t.Context()))
		}
	}
}

// The server of a connection hangs (SIGSTOP): nothing says so, and the connection goes to another one.
func TestAHangingServerIsLeft(t *testing.T) {
	t.Parallel()
	servers, all := cluster(t)
	_, err := all[0].Publish(t.Context(), job("before"))
	require.NoError(t, err)
	require.NoError(t, servers[0].Signal(syscall.SIGSTOP))
	t.Cleanup(func() { _ = servers[0].Signal(syscall.SIGCONT) })
	require.Eventually(t, func() bool {
		_, err = all[0].Publish(t.Context(), bus.Outgoing{Subject: "lifeboat.alert.received", Message: &lifeboatv1.Notification{}})
		return err == nil
	}, time.Minute, 50*time.Millisecond, "%v", &err)
}
