package retention

import (
	"fmt"
	"slices"
)

// guard holds the plan when the newest snapshot has shrunk by more than percent. present are positions, newest first.
func (p *Plan) guard(percent int, present []int) {
	if len(present) == 0 {
		return
	}
	newest := p.Verdicts[present[0]].Snapshot
	var worst Snapshot
	var by float64
	for _, i := range present[:p.sinceConfirmed(present)] {
		if s := p.Verdicts[i].Snapshot; shrunk(newest, s) > by {
			worst, by = s, shrunk(newest, s)
		}
	}
	if by <= float64(percent) {
		return
	}
	now, unit := measure(newest, worst)
	then, _ := measure(worst, newest)
	p.Shrunk = newest.ID
	p.Held = fmt.Sprintf("the newest snapshot %s holds %d %s, %.0f %% less than the %d of %s: nothing is deleted until "+
		"somebody confirms that this is right", newest.ID, now, unit, by, then, worst.ID)
}

// sinceConfirmed is how many of present, newest first, there are since the newest confirmed one, including it.
func (p *Plan) sinceConfirmed(present []int) int {
	n := slices.IndexFunc(present, func(i int) bool { return p.Verdicts[i].ShrinkConfirmed })
	if n < 0 {
		return len(present)
	}
	return n + 1
}

// keepConfirmation keeps the newest confirmed snapshot while an older and larger one stays: without the confirmation the
// guard would take the newest ones for shrunk again.
func (p *Plan) keepConfirmation(present []int) {
	n := p.sinceConfirmed(present)
	if n == 0 || !p.Verdicts[present[n-1]].ShrinkConfirmed {
		return
	}
	confirmed := &p.Verdicts[present[n-1]]
	for _, i := range present[n:] {
		if older := p.Verdicts[i]; len(older.Reasons) > 0 && shrunk(confirmed.Snapshot, older.Snapshot) > 0 {
			confirmed.Reasons = append(confirmed.Reasons, shrinkConfirmed)
			return
		}
	}
}

// shrunk is by how many percent one snapshot holds less than another; zero when it does not.
func shrunk(s, than Snapshot) float64 {
	now, _ := measure(s, than)
	then, _ := measure(than, s)
	if then <= 0 || now >= then {
		return 0
	}
	return 100 * float64(then-now) / float64(then)
}

// measure is what a snapshot is compared with another by: its count, or its size when one of the counts is not known.
func measure(s, with Snapshot) (n int64, unit string) {
	if s.Count < 0 || with.Count < 0 {
		return s.Bytes, "bytes"
	}
	if s.Unit == "" {
		return s.Count, "keys"
	}
	return s.Count, s.Unit
}
