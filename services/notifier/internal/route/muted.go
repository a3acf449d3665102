package route

import (
	"slices"
	"strings"
	"time"
)

// farthest is how far ahead the end of a time interval is looked for: one may name a month.
const farthest = 367

// Muted says whether a route with these time intervals holds back what it takes at a moment, and by which interval: the name of
// the one that mutes, or those of which one would have to be active, with commas between. Locations are the intervals' own, UTC
// when they name none.
//
// A name that is not in the configuration does not hold anything back: what was held under an older configuration comes out
// rather than never.
func (t *Tree) Muted(at time.Time, mute, active []string) (by string, muted bool) {
	for _, name := range mute {
		if i, ok := t.intervals[name]; ok && i.Contains(at) {
			return name, true
		}
	}
	for _, name := range active {
		if i, ok := t.intervals[name]; !ok || i.Contains(at) {
			return "", false
		}
	}
	return strings.Join(active, ", "), len(active) > 0
}

// Until is when a route with these time intervals, which is muted at a moment, delivers again. It is false when it does so
// within a year nowhere, and may be late by an hour where the clocks are changed.
func (t *Tree) Until(at time.Time, mute, active []string) (end time.Time, ok bool) {
	if _, muted := t.Muted(at, mute, active); !muted {
		return at, true
	}
	names := slices.Concat(mute, active)
	for day := range farthest {
		for _, when := range t.edges(at, day, names) {
			if _, muted := t.Muted(when, mute, active); !muted {
				return when, true
			}
		}
	}
	return time.Time{}, false
}

// edges are the moments after at, of one day counted from its, when one of the intervals may begin or end: midnight and the
// edges of its times, on the clock of its location.
func (t *Tree) edges(at time.Time, day int, names []string) []time.Time {
	var all []time.Time
	for _, name := range names {
		for _, i := range t.intervals[name].TimeIntervals {
			local := at.UTC()
			if i.Location != nil {
				local = at.In(i.Location.Location)
			}
			minutes := []int{0}
			for _, r := range i.Times {
				minutes = append(minutes, r.StartMinute, r.EndMinute)
			}
			for _, m := range minutes {
				when := time.Date(local.Year(), local.Month(), local.Day()+day, 0, m, 0, 0, local.Location())
				if when.After(at) {
					all = append(all, when)
				}
			}
		}
	}
	slices.SortFunc(all, time.Time.Compare)
	return all
}

// Pick chooses one hit for each receiver, in the order of their first ones: the first route that is not muted at a moment, so
// that a muted one never holds back what another one delivers. When all are, it is the one that delivers again first.
func Pick(t *Tree, hits []Hit, at time.Time) []Hit {
	var chosen []Hit
	for _, h := range hits {
		i := slices.IndexFunc(chosen, func(c Hit) bool { return c.Receiver == h.Receiver })
		switch {
		case i < 0:
			chosen = append(chosen, h)
		case t.sooner(at, h, chosen[i]):
			chosen[i] = h
		}
	}
	return chosen
}

// sooner says whether a delivers before b does.
func (t *Tree) sooner(at time.Time, a, b Hit) bool {
	if _, muted := t.Muted(at, b.Mute, b.Active); !muted {
		return false
	}
	if slices.Equal(a.Mute, b.Mute) && slices.Equal(a.Active, b.Active) {
		return false
	}
	endA, okA := t.Until(at, a.Mute, a.Active)
	endB, okB := t.Until(at, b.Mute, b.Active)
	return okA && (!okB || endA.Before(endB))
}
