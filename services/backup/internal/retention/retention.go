// Package retention decides which snapshots of a target are kept. It is pure: it reads no clock, no bucket and no network.
//
// A snapshot is kept if any rule keeps it. The rules are those of restic and kopia: the newest so many, the newest of each
// of so many hours, days, weeks, months and years that have one, and everything within a period of the newest. They count
// good snapshots only, so that a damaged one never takes the place of a good one. Besides the rules, some snapshots are
// never deleted, and some states of a target hold back every deletion; both are listed at Decide.
package retention

import (
	"cmp"
	"fmt"
	"slices"
	"time"

	"github.com/lifeboat-fleet/lifeboat/fleet/config"
)

// NoPolicy is Plan.Held of an empty policy.
const NoPolicy = "no retention policy: nothing is deleted"

// defaultShrinkGuard is what an unset shrink_guard means, in percent. The configuration sets it; this is for policies made
// elsewhere.
const defaultShrinkGuard = 40

// Reasons to keep a snapshot that are no rules of the policy.
const (
	newestGood      = "newest good"
	newestProven    = "newest proven by a drill"
	pinned          = "pinned"
	locked          = "locked"
	future          = "dated in the future"
	shrinkConfirmed = "newest confirmed shrink"
)

// Snapshot is what retention needs to know of one.
type Snapshot struct {
	ID string
	// At is when the source was read.
	At time.Time
	// Count is how many keys (or jobs) it holds; -1 when that is not known.
	Count int64
	// Unit is what Count counts; "keys" when empty.
	Unit string
	// Bytes is the raw size, the measure where counts are not known.
	Bytes int64
	// Damaged: its stored data was found not to match its manifest.
	Damaged bool
	// Proven: a drill restored it and passed.
	Proven bool
	Pinned bool
	// Locked: object lock protects its data.
	Locked bool
	// ShrinkConfirmed: somebody has said that it is right that it holds less than those before.
	ShrinkConfirmed bool
}

// Verdict is what becomes of one snapshot.
type Verdict struct {
	Snapshot
	// Reasons to keep it, as "last 3 of 7" or "pinned". Empty: it is to be deleted.
	Reasons []string
}

// Plan is what retention would do now.
type Plan struct {
	// Verdicts are oldest first.
	Verdicts []Verdict
	// Held is why nothing at all may be deleted, in a sentence; empty when the plan stands.
	Held string
	// Shrunk is the snapshot that must be confirmed before anything is deleted; empty when that is not the reason.
	Shrunk string
}

// Delete lists the ids to delete, oldest first; none while the plan is held.
func (p Plan) Delete() []string {
	if p.Held != "" {
		return nil
	}
	return p.Unkept()
}

// Unkept lists the ids that nothing keeps, oldest first, held or not.
func (p Plan) Unkept() []string {
	var ids []string
	for _, v := range p.Verdicts {
		if len(v.Reasons) == 0 {
			ids = append(ids, v.ID)
		}
	}
	return ids
}

// Kept lists the ids that stay, oldest first.
func (p Plan) Kept() []string {
	var ids []string
	for _, v := range p.Verdicts {
		if len(v.Reasons) > 0 || p.Held != "" {
			ids = append(ids, v.ID)
		}
	}
	return ids
}

// Keep adds a reason to keep a snapshot, which may make the difference. It does nothing for an unknown id.
func (p Plan) Keep(id, reason string) {
	for i := range p.Verdicts {
		if p.Verdicts[i].ID == id {
			p.Verdicts[i].Reasons = append(p.Verdicts[i].Reasons, reason)
		}
	}
}

// Decide applies a policy. Days and hours are those of zone; nil means UTC.
//
// Never deleted, whatever the policy: the newest good snapshot, the newest one proven by a drill, pinned ones, locked ones,
// and those dated after now, which no rule counts either: a clock that was wrong once must not push good ones out. A
// damaged snapshot is kept as long as the rules would keep it if it were good, so that a person can look at it.
//
// Nothing at all is deleted (Plan.Held) when the policy is empty, when no snapshot is good, and when the newest one holds
// less by more than policy.ShrinkGuard percent than the largest one since the newest whose shrink was confirmed. The guard
// looks that far back so that it still holds when further snapshots follow the one that shrank; it lets go by itself when
// the source has recovered.
func Decide(now time.Time, zone *time.Location, policy config.Retention, snapshots []Snapshot) Plan {
	if zone == nil {
		zone = time.UTC
	}
	all := slices.SortedStableFunc(slices.Values(snapshots), func(a, b Snapshot) int {
		return cmp.Or(a.At.Compare(b.At), cmp.Compare(a.ID, b.ID))
	})
	p := Plan{Verdicts: make([]Verdict, len(all))}
	// Positions in all, newest first: of those that are not dated in the future, and of the good ones among them.
	var present, good []int
	for i, s := range slices.Backward(all) {
		p.Verdicts[i].Snapshot = s
		if s.At.After(now) {
			continue
		}
		present = append(present, i)
		if !s.Damaged {
			good = append(good, i)
		}
	}
	for i, reasons := range apply(zone, policy, all, good) {
		p.Verdicts[i].Reasons = reasons
	}
	for i, reasons := range apply(zone, policy, all, present) {
		if all[i].Damaged {
			for _, r := range reasons {
				p.Verdicts[i].Reasons = append(p.Verdicts[i].Reasons, r+" (damaged)")
			}
		}
	}
	p.protect(now, present, good)
	p.keepConfirmation(present)
	switch {
	case nothingSet(policy):
		p.Held = NoPolicy
	case len(all) > 0 && len(good) == 0:
		p.Held = fmt.Sprintf("none of the %d snapshots is known to be good: nothing is deleted", len(all))
	default:
		p.guard(cmp.Or(policy.ShrinkGuard, defaultShrinkGuard), present)
	}
	return p
}

// nothingSet says whether no rule can keep anything. Unlike Retention.Empty it takes nonsense below zero for nothing.
func nothingSet(r config.Retention) bool {
	return max(r.Last, r.Hourly, r.Daily, r.Weekly, r.Monthly, r.Yearly) <= 0 && r.Within <= 0
}

// protect adds the reasons that no policy can take away.
func (p Plan) protect(now time.Time, present, good []int) {
	keep := func(i int, reason string) { p.Verdicts[i].Reasons = append(p.Verdicts[i].Reasons, reason) }
	if len(good) > 0 {
		keep(good[0], newestGood)
	}
	proven := func(i int) bool { return p.Verdicts[i].Proven }
	// Usually one and the same. When the newest proven one has rotted since, the newest that has not is worth as much.
	n, g := slices.IndexFunc(present, proven), slices.IndexFunc(good, proven)
	if n >= 0 {
		keep(present[n], newestProven)
	}
	if g >= 0 && good[g] != present[n] {
		keep(good[g], newestProven+" and not damaged")
	}
	for i, v := range p.Verdicts {
		if v.Pinned {
			keep(i, pinned)
		}
		if v.Locked {
			keep(i, locked)
		}
		if v.At.After(now) {
			keep(i, future)
		}
	}
}
