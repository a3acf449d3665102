package emit

import (
	"math/rand/v2"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"
	"google.golang.org/protobuf/types/known/timestamppb"

	"github.com/lifeboat-fleet/lifeboat/fleet/bus"
	"github.com/lifeboat-fleet/lifeboat/fleet/config"
	lifeboatv1 "github.com/lifeboat-fleet/lifeboat/proto/lifeboat/v1"
)

// bucket is a fleet's worker that runs the job of the memory's target, and what it left in the bucket.
type bucket struct {
	mu   sync.Mutex
	t    *testing.T
	m    *memory
	ran  map[time.Time]int
	last time.Time
}

// run does the job that is there.
func (b *bucket) run() {
	b.m.mu.Lock()
	defer b.m.mu.Unlock()
	subject := bus.JobSubject(config.WorkSnapshot, target)
	found := b.m.last[subject]
	if found == nil {
		return
	}
	delete(b.m.last, subject)
	j := &lifeboatv1.Job{}
	require.NoError(b.t, bus.Decode(found.Data, j))
	b.mu.Lock()
	defer b.mu.Unlock()
	b.ran[j.GetTick().AsTime()]++
	if tick := j.GetTick().AsTime(); tick.After(b.last) {
		b.last = tick
	}
}

func (b *bucket) ask(target string, before time.Time) (*lifeboatv1.History, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	h := &lifeboatv1.History{Target: target}
	for tick := range b.ran {
		if tick.Before(before) && (h.SnapshotTick == nil || tick.After(h.GetSnapshotTick().AsTime())) {
			h.SnapshotTick = timestamppb.New(tick)
		}
	}
	return h, nil
}

// NATS loses its data again and again, under three replicas, on a bus that is slow and breaks. No tick runs twice, and each runs or is
// recorded as missed.
func TestNATSThatLosesItsDataAgainAndAgain(t *testing.T) {
	const every = time.Minute
	cfg := parse(t, "schedule: '@every 1m', catch_up: all, catch_up_max: 50, overlap: queue")
	seed := rand.Uint64()
	t.Logf("seed %d", seed)
	losses, ticks := 0, 0
	for round := range uint64(20) {
		synctest.Test(t, func(t *testing.T) {
			m, r := newMemory(seed+round), rand.New(rand.NewPCG(seed+round, 13))
			m.slow, m.fails = 300*time.Millisecond, 12
			b := &bucket{t: t, m: m, ran: map[time.Time]int{}}
			m.ask = b.ask
			var replicas []*replica
			for range 3 {
				c := &wallClock{offset: time.Duration(r.IntN(100)) * time.Millisecond}
				replicas = append(replicas, quietReplica(t, m, cfg, c.Now))
			}
			time.Sleep(2 * every) //nolint:forbidigo // of a clock that is not real
			b.run()
			first := b.last
			require.NotZero(t, first)
			for range 60 {
				time.Sleep(time.Duration(r.IntN(90_000)) * time.Millisecond) //nolint:forbidigo // as above
				if r.IntN(3) > 0 {
					b.run()
				}
				if s := m.state(t); r.IntN(6) == 0 && s.GetTick() != nil && !s.GetUnconfirmed() && len(s.GetPending()) == 0 {
					m.lose()
					losses++
				}
			}
			for range 60 {
				time.Sleep(20 * time.Second) //nolint:forbidigo // as above
				b.run()
			}
			for _, replica := range replicas {
				replica.stop()
			}
			for tick := first; !tick.After(b.last); tick = tick.Add(every) {
				ticks++
				require.LessOrEqual(t, b.ran[tick], 1, "%s ran twice, round %d", tick, round)
				require.True(t, b.ran[tick] == 1 || m.wasMissed(tick), "%s neither ran nor was it recorded, round %d", tick, round)
			}
		})
	}
	t.Logf("%d losses, %d ticks", losses, ticks)
}

// wasMissed says whether an event tells of a missed tick.
func (m *memory) wasMissed(tick time.Time) bool {
	for _, e := range m.events {
		for _, reason := range []string{reasonDown, reasonOverlap} {
			from, _ := time.Parse(time.RFC3339, e.GetAttributes()[reason+"_from"])
			to, _ := time.Parse(time.RFC3339, e.GetAttributes()[reason+"_to"])
			if !tick.Before(from) && !tick.After(to) {
				return true
			}
		}
	}
	return false
}
