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

func TestDueWalksOverPassedTicks(t *testing.T) {
	schedule, err := config.ParseSchedule("0 * * * *", "")
	require.NoError(t, err)
	e := Entry[string]{Schedule: schedule}
	e.Decided(at(t, "2026-11-21T03:10:00Z"))

	_, ok := e.Due(at(t, "2026-11-21T03:59:59Z"))
	assert.False(t, ok, "nothing is due before the tick")

	due, ok := e.Due(at(t, "2026-11-21T04:00:00Z"))
	require.True(t, ok)
	assert.Equal(t, Due{Tick: at(t, "2026-11-21T04:00:00Z"), From: at(t, "2026-11-21T04:00:00Z")}, due)

	due, ok = e.Due(at(t, "2026-11-21T07:30:00Z"))
	require.True(t, ok)
	assert.Equal(t, at(t, "2026-11-21T07:00:00Z"), due.Tick, "the newest tick")
	assert.Equal(t, int64(3), due.Passed)
	assert.Equal(t, at(t, "2026-11-21T04:00:00Z"), due.From)

	e.Decided(due.Tick)
	assert.Equal(t, at(t, "2026-11-21T08:00:00Z"), e.Next)
}

func TestZoneDecidesTheTick(t *testing.T) {
	schedule, err := config.ParseSchedule("0 4 * * *", "Asia/Shanghai")
	require.NoError(t, err)
	e := Entry[string]{Schedule: schedule}
	e.Decided(at(t, "2026-11-21T00:00:00Z"))
	assert.True(t, e.Next.Equal(at(t, "2026-11-21T20:00:00Z")), "04:00 in Shanghai is 20:00 UTC of the day before, got %s", e.Next)
}

func TestPopDueIsInOrder(t *testing.T) {
	seed := rand.Uint64()
	t.Logf("seed %d", seed)
	r := rand.New(rand.NewPCG(seed, 1))
	base := at(t, "2026-01-01T00:00:00Z")
	var table Table[int]
	var want []time.Time
	for i := range 500 {
		next := base.Add(time.Duration(r.IntN(1000)) * time.Second)
		table.Add(&Entry[int]{Key: i, Next: next})
		if !next.After(base.Add(400 * time.Second)) {
			want = append(want, next)
		}
	}
	table.Add(&Entry[int]{Key: -1}) // one that has ended
	slices.SortFunc(want, time.Time.Compare)
	var got []time.Time
	for _, e := range table.PopDue(base.Add(400 * time.Second)) {
		got = append(got, e.Next)
	}
	assert.Equal(t, want, got)
	next, ok := table.Next()
	require.True(t, ok)
	assert.True(t, next.After(base.Add(400*time.Second)))
	assert.Equal(t, 501-len(want), table.Len())
}
