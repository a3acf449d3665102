package retention

import (
	"fmt"
	"time"

	"github.com/lifeboat-fleet/lifeboat/fleet/config"
)

// bucket is one of the rules that keep the newest snapshot of each period.
type bucket struct {
	name string
	keep int
	// label names the period that a local time lies in, and is different for different periods.
	label func(time.Time) string
}

func buckets(r config.Retention) []bucket {
	return []bucket{
		// With the offset: when clocks are set back, an hour comes twice, and is two hours.
		{"hourly", r.Hourly, func(t time.Time) string { return t.Format("2006-01-02 15:00 -07:00") }},
		{"daily", r.Daily, func(t time.Time) string { return t.Format(time.DateOnly) }},
		{"weekly", r.Weekly, func(t time.Time) string {
			year, week := t.ISOWeek()
			return fmt.Sprintf("%d-W%02d", year, week)
		}},
		{"monthly", r.Monthly, func(t time.Time) string { return t.Format("2006-01") }},
		{"yearly", r.Yearly, func(t time.Time) string { return t.Format("2006") }},
	}
}

// apply returns the reasons that the policy has to keep some of all. among are positions in all, newest first; the rules
// see no others.
func apply(zone *time.Location, r config.Retention, all []Snapshot, among []int) map[int][]string {
	reasons := map[int][]string{}
	keep := func(i int, format string, args ...any) { reasons[i] = append(reasons[i], fmt.Sprintf(format, args...)) }
	for n, i := range among {
		if n < r.Last {
			keep(i, "last %d of %d", n+1, r.Last)
		}
	}
	for _, b := range buckets(r) {
		seen := map[string]bool{}
		for _, i := range among {
			if len(seen) >= b.keep {
				break
			}
			if label := b.label(all[i].At.In(zone)); !seen[label] {
				seen[label] = true
				keep(i, "%s %s", b.name, label)
			}
		}
	}
	if r.Within > 0 {
		for _, i := range among {
			// Counted back from the newest one, as restic does, not from now: a target that stopped loses nothing by it.
			if all[among[0]].At.Sub(all[i].At) <= time.Duration(r.Within) {
				keep(i, "within %s", r.Within)
			}
		}
	}
	return reasons
}
