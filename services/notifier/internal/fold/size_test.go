package fold_test

import (
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"google.golang.org/protobuf/encoding/protojson"

	lifeboatv1 "github.com/lifeboat-fleet/lifeboat/proto/lifeboat/v1"
	"github.com/lifeboat-fleet/lifeboat/services/notifier/internal/fold"
)

// many are so many alerts of one group, numbered from first.
func many(first, n int, status string, minutes float64) []fold.Arrival {
	all := make([]fold.Arrival, 0, n)
	for i := range n {
		a := came(fmt.Sprintf("%016x", first+i), status, 0, minutes)
		a.Received = a.Received.Add(time.Duration(i) * time.Microsecond)
		all = append(all, a)
	}
	return all
}

// stored checks that a state fits into a message of NATS, and returns its length.
func stored(t *testing.T, g *lifeboatv1.Group) int {
	t.Helper()
	data, err := protojson.Marshal(g)
	require.NoError(t, err)
	require.Less(t, len(data), 900<<10)
	return len(data)
}

func TestAStateOfManyAlerts(t *testing.T) {
	r := start(t)
	res := r.fold(1, many(0, 10000, "firing", 0)...)
	assert.Len(t, res.Tell, 10000)
	assert.Len(t, r.group.GetAlerts(), 4000)
	t.Logf("%d KiB", stored(t, r.group)>>10)
	assert.Empty(t, r.fold(2, many(6000, 4000, "firing", 2)...).Tell, "the newest are known")

	// What has ended goes first.
	r = start(t)
	r.fold(1, many(0, 3000, "firing", 0)...)
	r.fold(2, many(10000, 1000, "firing", 2)...)
	assert.Len(t, r.fold(3, many(10000, 500, "resolved", 3)...).Tell, 500)
	r.fold(4, many(10500, 500, "resolved", 4)...)
	r.fold(5, many(20000, 700, "firing", 5)...)
	assert.Len(t, r.group.GetAlerts(), 4000)
	assert.Empty(t, r.fold(6, many(0, 3000, "firing", 6)...).Tell, "all that fires is known")
	assert.Empty(t, r.fold(6, many(10700, 300, "resolved", 6)...).Tell, "and what ended last")
	assert.Len(t, r.fold(6, many(10000, 1, "resolved", 6)...).Tell, 1, "what ended first is forgotten")
}

func TestAStateOfManyAlertsThatFlap(t *testing.T) {
	r := start(t)
	r.p.Flaps, r.p.Window = 100, 2*time.Hour
	for i := range 10 {
		res := r.fold(float64(2*i), many(0, 4000, []string{"firing", "resolved"}[i%2], float64(2*i))...)
		require.Len(t, res.Tell, 4000)
		stored(t, r.group)
	}
	assert.Len(t, r.group.GetAlerts(), 4000, "they are known, though not how often each changed")

	r = start(t)
	r.p.Flaps = 2
	var res fold.Result
	for i := range 3 {
		res = r.fold(float64(2*i), many(0, 2500, []string{"firing", "resolved"}[i%2], float64(2*i))...)
		stored(t, r.group)
	}
	assert.Len(t, res.Held, 2500, "so many may flap at once")
}

func TestAStateOfOddFingerprints(t *testing.T) {
	r := start(t)
	var all []fold.Arrival
	for i := range 2000 {
		all = append(all, came(strings.Repeat("\x01\"é\u2028", 40)+fmt.Sprint(i), "firing", 0, 0))
	}
	r.fold(0, all...)
	stored(t, r.group)
	r.fold(1, came(strings.Repeat("x", 2<<20), "firing", 0, 0))
	stored(t, r.group)
}

func TestWhatEndedLongAgoIsForgotten(t *testing.T) {
	r := start(t)
	r.fold(0, came("a", "resolved", 0, 0), came("b", "firing", 0, 0), came("e", "event", 0, 0), muted(came("m", "firing", 0, 0)), muted(came("m", "resolved", 0, 1)))
	r.fold(24*60, came("c", "firing", 0, 24*60))
	assert.Len(t, r.group.GetAlerts(), 5)
	r.fold(24*60+1, came("c", "firing", 0, 24*60+1))
	require.Len(t, r.group.GetAlerts(), 2)
	assert.Equal(t, "b", r.group.GetAlerts()[0].GetFingerprint())
	assert.Equal(t, "c", r.group.GetAlerts()[1].GetFingerprint())
}

// BenchmarkFold is a group of 10,000 alerts, of which 4000 are known.
func BenchmarkFold(b *testing.B) {
	all := many(0, 10000, "firing", 0)
	p := fold.Policy{Repeat: time.Hour, Flaps: 4, Window: 10 * time.Minute}
	known := fold.Fold(nil, all, p, at(1)).Group
	b.Run("all-new", func(b *testing.B) {
		for b.Loop() {
			fold.Fold(nil, all, p, at(1))
		}
	})
	b.Run("some-known", func(b *testing.B) {
		for b.Loop() {
			fold.Fold(known, all, p, at(2))
		}
	})
	b.Run("one-of-4000", func(b *testing.B) {
		for b.Loop() {
			fold.Fold(known, all[9999:], p, at(2))
		}
	})
	b.Run("one", func(b *testing.B) {
		for b.Loop() {
			fold.Fold(nil, all[:1], p, at(2))
		}
	})
}
