package fold_test

import (
	"cmp"
	"fmt"
	"math/rand/v2"
	"slices"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/timestamppb"

	lifeboatv1 "github.com/lifeboat-fleet/lifeboat/proto/lifeboat/v1"
	"github.com/lifeboat-fleet/lifeboat/services/notifier/internal/fold"
)

// queued is an arrival and when it enters the queue.
type queued struct {
	fold.Arrival
	from time.Time
}

// world is what happens to a few alerts, and the people who are told of it.
type world struct {
	t      *testing.T
	random *rand.Rand
	p      fold.Policy
	queue  []queued
	// truth is the newest status of each alert; events are those that happened.
	truth  map[string]string
	events map[string]int
	// belief is what people were told last, toldEvents how often each event.
	belief     map[string]string
	toldEvents map[string]int
	// crashed says that something may have been told twice.
	crashed bool
	group   *lifeboatv1.Group
	now     time.Time
}

func newWorld(t *testing.T, seed uint64) *world {
	t.Helper()
	r := rand.New(rand.NewPCG(seed, 1))
	w := &world{
		t: t, random: r, now: noon, truth: map[string]string{}, events: map[string]int{}, belief: map[string]string{}, toldEvents: map[string]int{},
		p: fold.Policy{Repeat: []time.Duration{0, time.Hour}[r.IntN(2)], Flaps: []int{-1, 2, 4}[r.IntN(3)], Window: 10 * time.Minute},
	}
	for i := range 1 + r.IntN(5) {
		w.alert(fmt.Sprintf("alert-%d", i))
	}
	for i := range r.IntN(4) {
		w.send(fmt.Sprintf("event-%d", i%2), "event", at(float64(i)), at(float64(i)+r.Float64()), false)
		w.events[fmt.Sprintf("event-%d@%d", i%2, at(float64(i)).UnixNano())]++
	}
	slices.SortStableFunc(w.queue, func(a, b queued) int { return a.from.Compare(b.from) })
	return w
}

func (w *world) chance(percent int) bool { return w.random.IntN(100) < percent }

func (w *world) seconds(from, to int) time.Duration {
	return time.Duration(from+w.random.IntN(to-from))*time.Second + time.Duration(w.random.IntN(1000))*time.Microsecond
}

// send lets Alertmanager tell us of a state, once or more often.
func (w *world) send(fingerprint, status string, starts, when time.Time, ordered bool) {
	copies := 1 + w.random.IntN(2)*w.random.IntN(3)
	for range copies {
		received := when
		if !ordered {
			received = received.Add(w.seconds(0, 15))
		}
		a := &lifeboatv1.Alert{Fingerprint: fingerprint, Status: status}
		if !starts.IsZero() {
			a.StartsAt = timestamppb.New(starts)
		}
		if status == "resolved" {
			a.EndsAt = timestamppb.New(when)
		}
		w.queue = append(w.queue, queued{fold.Arrival{Alert: a, Received: received}, received})
	}
}

// alert lives through a few episodes.
func (w *world) alert(fingerprint string) {
	timeless, first := w.chance(20), len(w.queue)
	when := noon.Add(w.seconds(0, 600))
	// starts is the episode's, as Alertmanager has it.
	starts := when
	episodes := 1 + w.random.IntN(8)
	for i := range episodes {
		last := i == episodes-1
		if timeless {
			starts = time.Time{}
		}
		unseen := w.chance(10)
		if !unseen || last {
			w.send(fingerprint, "firing", starts, when, timeless)
			w.truth[fingerprint] = "firing"
			if w.chance(30) {
				when = when.Add(w.seconds(120, 4000))
				w.send(fingerprint, "firing", starts, when, timeless)
			}
		}
		if last && w.chance(50) {
			break
		}
		when = when.Add(w.seconds(1, 400))
		if w.chance(10) && !timeless {
			starts = starts.Add(-w.seconds(1, 60)) // what another Prometheus says, as of the next notification
			when = when.Add(time.Minute)
		}
		if last || !w.chance(10) {
			w.send(fingerprint, "resolved", starts, when, timeless)
			w.truth[fingerprint] = "resolved"
		}
		when = when.Add(w.seconds(1, 400))
		if w.chance(30) {
			when = when.Add(2 * time.Minute) // Prometheus was cut off: the same one fires on
			continue
		}
		starts = when
	}
	if w.chance(30) {
		w.mute(w.queue[first:])
	}
}

// mute holds back what was received within an interval.
func (w *world) mute(arrivals []queued) {
	from := noon.Add(w.seconds(0, 1800))
	to := from.Add(w.seconds(60, 1800))
	for i := range arrivals {
		if a := &arrivals[i]; a.Received.After(from) && a.Received.Before(to) {
			a.from, a.Muted = to, true
		}
	}
}

// run folds at random times, with crashes, until nothing is left.
func (w *world) run() {
	for len(w.queue) > 0 {
		w.now = w.now.Add(w.seconds(1, []int{10, 120, 1800}[w.random.IntN(3)]))
		if next := w.queue[0].from; next.After(w.now) {
			w.now = next
		}
		n := 0
		for n < len(w.queue) && !w.queue[n].from.After(w.now) {
			n++
		}
		n = 1 + w.random.IntN(n)
		batch := slices.Clone(w.queue[:n])
		w.random.Shuffle(n, func(i, j int) { // two lanes
			if w.random.IntN(2) == 0 {
				batch[i], batch[j] = batch[j], batch[i]
			}
		})
		slices.SortStableFunc(batch, func(a, b queued) int { return cmp.Compare(a.Received.Unix()/60, b.Received.Unix()/60) })
		w.fold(n, batch)
	}
}

func (w *world) fold(n int, batch []queued) {
	arrivals := make([]fold.Arrival, 0, n)
	for _, q := range batch {
		arrivals = append(arrivals, q.Arrival)
	}
	before := proto.CloneOf(w.group)
	res := fold.Fold(w.group, arrivals, w.p, w.now)
	require.True(w.t, proto.Equal(before, w.group))
	counted(w.t, arrivals, res)
	require.Equal(w.t, res, fold.Fold(w.group, arrivals, w.p, w.now), "the same again")
	w.hear(res)
	for _, h := range res.Held {
		require.True(w.t, h.Until.After(w.now.Truncate(time.Millisecond)))
		i := slices.IndexFunc(arrivals, func(a fold.Arrival) bool { return a.Alert == h.Alert })
		w.queue = append(w.queue, queued{arrivals[i], h.Until})
	}
	switch w.random.IntN(10) {
	case 0: // killed before the state was stored: all comes again
		w.crashed = true
		for i := range w.queue {
			w.queue[i].Muted = false
		}
	case 1: // killed before the arrivals were acknowledged
		w.group = res.Group
	default:
		w.group = res.Group
		w.queue = w.queue[n:]
	}
	slices.SortStableFunc(w.queue, func(a, b queued) int { return a.from.Compare(b.from) })
}

// hear is what people make of what they are told.
func (w *world) hear(res fold.Result) {
	begins := false
	for _, c := range res.Tell {
		fingerprint := c.Alert.GetFingerprint()
		begins = begins || c.Kind == fold.Fires
		if c.Kind == fold.Happens {
			w.toldEvents[fmt.Sprintf("%s@%d", fingerprint, c.Alert.GetStartsAt().AsTime().UnixNano())]++
			continue
		}
		believed := w.belief[fingerprint]
		w.belief[fingerprint] = c.Alert.GetStatus()
		if w.crashed {
			continue
		}
		switch c.Kind {
		case fold.Repeats, fold.Resolves:
			require.Equal(w.t, "firing", believed, "%s %s", fingerprint, c.Kind)
		case fold.Passes:
			require.NotEqual(w.t, "firing", believed, fingerprint)
		case fold.Fires, fold.Happens:
		}
	}
	require.Equal(w.t, begins, res.Begins)
}

// end compares what people believe with what is.
func (w *world) end() {
	for fingerprint, status := range w.truth {
		if status == "firing" {
			require.Equal(w.t, "firing", w.belief[fingerprint], "%s fires, and nobody knows", fingerprint)
		} else {
			require.NotEqual(w.t, "firing", w.belief[fingerprint], "%s has ended, and nobody knows", fingerprint)
		}
	}
	for e := range w.events {
		require.Positive(w.t, w.toldEvents[e], e)
		if !w.crashed {
			require.Equal(w.t, 1, w.toldEvents[e], e)
		}
	}
	for _, told := range w.group.GetAlerts() {
		require.False(w.t, told.GetWaits(), told.GetFingerprint())
		if told.GetToldStatus() == "" || told.GetToldStatus() == "resolved" {
			require.Equal(w.t, "resolved", told.GetStatus())
			continue
		}
		require.Equal(w.t, told.GetStatus(), told.GetToldStatus())
	}
}

func TestNobodyIsLeftWithAWrongBelief(t *testing.T) {
	base := uint64(time.Now().UnixNano())
	t.Logf("seeds from %d", base)
	for i := range uint64(1500) {
		seed := base + i
		if !t.Run(fmt.Sprint("seed ", seed), func(t *testing.T) {
			w := newWorld(t, seed)
			w.run()
			w.end()
		}) {
			return
		}
	}
}

func FuzzNobodyIsLeftWithAWrongBelief(f *testing.F) {
	f.Add(uint64(1))
	f.Fuzz(func(t *testing.T, seed uint64) {
		w := newWorld(t, seed)
		w.run()
		w.end()
	})
}
