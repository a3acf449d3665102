package retention_test

import (
	"fmt"
	"math/rand/v2"
	"slices"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/lifeboat-fleet/lifeboat/fleet/config"
	"github.com/lifeboat-fleet/lifeboat/services/backup/internal/retention"
)

// world is one random history and policy.
type world struct {
	now    time.Time
	zone   *time.Location
	policy config.Retention
	all    []retention.Snapshot
}

func zones(t *testing.T) []*time.Location {
	t.Helper()
	var all []*time.Location
	for _, name := range []string{"UTC", "Asia/Shanghai", "Europe/Berlin", "America/New_York", "Australia/Lord_Howe", "Asia/Beirut"} {
		zone, err := time.LoadLocation(name)
		require.NoError(t, err)
		all = append(all, zone)
	}
	return all
}

func randomPolicy(r *rand.Rand) config.Retention {
	some := func(n int) int { return max(0, r.IntN(2*n)-n) }
	return config.Retention{
		Last: some(8), Hourly: some(10), Daily: some(10), Weekly: some(6), Monthly: some(6), Yearly: some(4),
		Within: config.Period(time.Duration(some(60)) * 24 * time.Hour), ShrinkGuard: r.IntN(101),
	}
}

func randomWorld(r *rand.Rand, zones []*time.Location) world {
	// Steps from minutes to weeks, so that each rule has periods with many snapshots and periods without.
	step := []time.Duration{7 * time.Minute, time.Hour, 9 * time.Hour, 40 * time.Hour, 300 * time.Hour}[r.IntN(5)]
	w := world{
		// Around the end of summer time of the northern zones.
		now: time.Date(2026, 10, 25, 4, 0, 0, 0, time.UTC).Add(time.Duration(r.Int64N(int64(200 * time.Hour)))), zone: zones[r.IntN(len(zones))],
		policy: randomPolicy(r),
	}
	t := w.now.Add(time.Duration(r.IntN(5)) * step)
	odd := r.IntN(10) // how often something is out of the ordinary
	unusual := func() bool { return r.IntN(30) < odd }
	count := int64(1000)
	for i := range r.IntN(60) {
		s := retention.Snapshot{
			ID: fmt.Sprintf("s%02d", 60-i), At: t, Count: count, Bytes: count * 10, Damaged: unusual(), Proven: unusual(), Pinned: unusual(),
			Locked: unusual(), ShrinkConfirmed: unusual(),
		}
		if unusual() {
			s.Count = -1
		}
		if unusual() {
			count = r.Int64N(2000)
		}
		w.all = append(w.all, s)
		if r.IntN(10) > 0 {
			t = t.Add(-time.Duration(r.Int64N(int64(2*step)) / int64(time.Minute) * int64(time.Minute)))
		}
	}
	slices.Reverse(w.all)
	return w
}

// each runs a check on many random worlds and prints the seed of the one that fails.
func each(t *testing.T, check func(*testing.T, *rand.Rand, world)) {
	t.Helper()
	all := zones(t)
	base := uint64(time.Now().UnixNano())
	held, deleting := 0, 0
	for n := range uint64(3000) {
		r := rand.New(rand.NewPCG(base, n))
		w := randomWorld(r, all)
		if p := w.decide(); p.Held != "" {
			held++
		} else if len(p.Delete()) > 0 {
			deleting++
		}
		func() {
			defer func() {
				if t.Failed() {
					t.Logf("seed %d, %d: %+v", base, n, w)
				}
			}()
			check(t, r, w)
		}()
	}
	t.Logf("seed %d: of 3000 plans %d were held and %d deleted something", base, held, deleting)
	require.Greater(t, held, 100, "the histories must be of all kinds")
	require.Greater(t, deleting, 500, "the histories must be of all kinds")
}

func (w world) decide() retention.Plan { return retention.Decide(w.now, w.zone, w.policy, w.all) }

// without is what is left after the plan was carried out.
func (w world) without(ids []string) world {
	w.all = slices.DeleteFunc(slices.Clone(w.all), func(s retention.Snapshot) bool { return slices.Contains(ids, s.ID) })
	return w
}

// Guarantee 6: retention never deletes the newest good snapshot, the newest proven one, a pinned or a locked one, whatever
// the policy and the history are.
func TestGuarantee6TheProtectedAreNeverDeleted(t *testing.T) {
	each(t, func(t *testing.T, _ *rand.Rand, w world) {
		t.Helper()
		deleted := w.decide().Delete()
		var good, proven, provenGood *retention.Snapshot
		for i, s := range w.all {
			if s.Pinned || s.Locked || s.At.After(w.now) {
				require.NotContains(t, deleted, s.ID)
			}
			if s.At.After(w.now) {
				continue
			}
			if s.Proven {
				proven = &w.all[i]
			}
			if !s.Damaged {
				good = &w.all[i]
			}
			if s.Proven && !s.Damaged {
				provenGood = &w.all[i]
			}
		}
		for _, s := range []*retention.Snapshot{good, proven, provenGood} {
			if s != nil {
				require.NotContains(t, deleted, s.ID)
			}
		}
		if len(w.all) > 0 {
			require.Less(t, len(deleted), len(w.all), "one always remains")
		}
	})
}

func TestAFurtherRuleNeverDeletesMore(t *testing.T) {
	each(t, func(t *testing.T, r *rand.Rand, w world) {
		t.Helper()
		if w.policy.Empty() {
			return // which deletes nothing at all
		}
		more := w
		switch n := 1 + r.IntN(5); r.IntN(7) {
		case 0:
			more.policy.Last += n
		case 1:
			more.policy.Hourly += n
		case 2:
			more.policy.Daily += n
		case 3:
			more.policy.Weekly += n
		case 4:
			more.policy.Monthly += n
		case 5:
			more.policy.Yearly += n
		case 6:
			more.policy.Within += config.Period(time.Duration(n) * 24 * time.Hour)
		}
		require.Subset(t, w.decide().Unkept(), more.decide().Unkept(), "%+v", more.policy)
	})
}

func TestWhatIsLeftStays(t *testing.T) {
	each(t, func(t *testing.T, _ *rand.Rand, w world) {
		t.Helper()
		left := w.without(w.decide().Delete())
		require.Empty(t, left.decide().Delete())
	})
}

func TestRulesAreORed(t *testing.T) {
	each(t, func(t *testing.T, _ *rand.Rand, w world) {
		t.Helper()
		kept := map[string]bool{}
		p, g := w.policy, w.policy.ShrinkGuard
		for _, single := range []config.Retention{
			{Last: p.Last, ShrinkGuard: g},
			{Hourly: p.Hourly, ShrinkGuard: g},
			{Daily: p.Daily, ShrinkGuard: g},
			{Weekly: p.Weekly, ShrinkGuard: g},
			{Monthly: p.Monthly, ShrinkGuard: g},
			{Yearly: p.Yearly, ShrinkGuard: g},
			{Within: p.Within, ShrinkGuard: g},
		} {
			one := w
			one.policy = single
			unkept := one.decide().Unkept()
			for _, s := range w.all {
				kept[s.ID] = kept[s.ID] || !slices.Contains(unkept, s.ID)
			}
		}
		unkept := w.decide().Unkept()
		for _, s := range w.all {
			if slices.Contains(unkept, s.ID) {
				require.False(t, kept[s.ID], "%s is kept by a rule of its own", s.ID)
			}
		}
	})
}

// An oracle that shares nothing with the rules: it looks at each snapshot alone, and asks for the snapshots that would have
// to exist for it to be dropped.
func TestRulesAgainstAnOracle(t *testing.T) {
	each(t, func(t *testing.T, _ *rand.Rand, w world) {
		t.Helper()
		for i := range w.all {
			w.all[i].Damaged, w.all[i].Proven, w.all[i].Pinned, w.all[i].Locked, w.all[i].ShrinkConfirmed = false, false, false, false, false
		}
		var present []retention.Snapshot
		for _, s := range w.all {
			if !s.At.After(w.now) {
				present = append(present, s)
			}
		}
		var want []string
		for i := range present {
			if !kept(w, present, i) {
				want = append(want, present[i].ID)
			}
		}
		require.Equal(t, want, w.decide().Unkept())
	})
}

// kept is the oracle. present are in order, without any from the future.
func kept(w world, present []retention.Snapshot, i int) bool {
	if i == len(present)-1 || i >= len(present)-w.policy.Last {
		return true
	}
	newest := present[len(present)-1].At
	if w.policy.Within > 0 && !present[i].At.Before(newest.Add(-time.Duration(w.policy.Within))) {
		return true
	}
	for _, rule := range []struct {
		keep int
		same func(a, b time.Time) bool
	}{
		{w.policy.Hourly, sameHour},
		{w.policy.Daily, func(a, b time.Time) bool { return a.YearDay() == b.YearDay() && a.Year() == b.Year() }},
		{w.policy.Weekly, func(a, b time.Time) bool { return monday(a).Equal(monday(b)) }},
		{w.policy.Monthly, func(a, b time.Time) bool { return a.Month() == b.Month() && a.Year() == b.Year() }},
		{w.policy.Yearly, func(a, b time.Time) bool { return a.Year() == b.Year() }},
	} {
		newer, superseded := 0, false
		for n := i + 1; n < len(present); n++ {
			mine, other := present[i].At.In(w.zone), present[n].At.In(w.zone)
			superseded = superseded || rule.same(mine, other)
			// Each period counts once: at its last snapshot.
			if n == len(present)-1 || !rule.same(other, present[n+1].At.In(w.zone)) {
				newer++
			}
		}
		if !superseded && newer < rule.keep {
			return true
		}
	}
	return false
}

// sameHour says that two instants show the same hour on the wall, and that no change of the clock lies between them.
func sameHour(a, b time.Time) bool {
	_, before := a.Zone()
	_, after := b.Zone()
	return before == after && a.Day() == b.Day() && a.Month() == b.Month() && a.Year() == b.Year() && a.Hour() == b.Hour()
}

// monday is the day on which the week of t began.
func monday(t time.Time) time.Time {
	back := (int(t.Weekday()) + 6) % 7
	return time.Date(t.Year(), t.Month(), t.Day()-back, 0, 0, 0, 0, time.UTC)
}
