package timetable

import (
	"math/rand/v2"
	"slices"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/lifeboat-fleet/lifeboat/fleet/config"
)

func at(t *testing.T, s string) time.Time {
	t.Helper()
	v, err := time.Parse(time.RFC3339, s)
	require.NoError(t, err)
	return v
}

func TestZoneDecidesTheTick(t *testing.T) {
	schedule, err := config.ParseSchedule("0 4 * * *", "Asia/Shanghai")
	require.NoError(t, err)
	e := Entry[string]{Schedule: schedule}
	e.Decided(at(t, "2026-11-21T00:00:00Z"))
	assert.True(t, e.Next.Equal(at(t, "2026-11-21T20:00:00Z")), "04:00 in Shanghai is 20:00 UTC of the day before, got %s", e.Next)
}

// Entries come in the order of their times, whatever is taken out and put in between.
func TestPopIsInOrder(t *testing.T) {
	seed := rand.Uint64()
	t.Logf("seed %d", seed)
	r := rand.New(rand.NewPCG(seed, 1))
	base := at(t, "2026-01-01T00:00:00Z")
	until := base.Add(400 * time.Second)
	var table Table[int]
	all := make([]*Entry[int], 500)
	for i := range all {
		all[i] = &Entry[int]{Value: i, At: base.Add(time.Duration(r.IntN(1000)) * time.Second)}
		table.Add(all[i])
	}
	never := &Entry[int]{Value: -1}
	table.Add(never)
	var want []time.Time
	for _, e := range all {
		switch r.IntN(3) {
		case 0:
			require.True(t, table.Remove(e))
			assert.False(t, table.Remove(e), "it is not in any more")
			continue
		case 1:
			require.True(t, table.Remove(e))
			e.At = base.Add(time.Duration(r.IntN(1000)) * time.Second)
			table.Add(e)
		}
		if !e.At.After(until) {
			want = append(want, e.At)
		}
	}
	slices.SortFunc(want, time.Time.Compare)
	left := table.Len() - len(want)
	var got []time.Time
	for {
		e, ok := table.Pop(until)
		if !ok {
			break
		}
		assert.False(t, table.Remove(e), "what was taken is not in the table")
		got = append(got, e.At)
	}
	assert.Equal(t, want, got)
	next, ok := table.Next()
	require.True(t, ok)
	assert.True(t, next.After(until))
	assert.Equal(t, left, table.Len())
	_, ok = table.Pop(base.AddDate(100, 0, 0))
	assert.True(t, ok)
	for table.Len() > 1 {
		_, ok = table.Pop(base.AddDate(100, 0, 0))
		require.True(t, ok)
	}
	_, ok = table.Next()
	assert.False(t, ok, "an entry without a time is never looked at")
}
