package etcd

import (
	"slices"
	"strings"

	"github.com/lifeboat-fleet/lifeboat/services/backup/internal/restore"
)

// Selection says what of a snapshot is restored into a cluster.
type Selection struct {
	// Prefixes limits it to keys that begin with one of them; everything when empty. They are those of the snapshot,
	// and each has to fit a key of it.
	Prefixes []string
	// Rename gives keys another beginning. Of several that fit a key the one with the longest Old applies. Keys that come to the same
	// name are Failed, each of them. Each Old has to fit a selected key.
	Rename []restore.Rename
	// Leases restores keys of leases too, with new leases of the same ids and with all of their time, which begins then. Nobody may
	// hold them any more: such a key is gone again soon, which is what it was for.
	Leases bool
}

// firstKey is the lowest key there can be.
const firstKey = "\x00"

// span is the keys from lo on and below hi. An empty hi is no bound.
type span struct{ lo, hi string }

func spanOf(prefix string) span { return span{max(prefix, firstKey), after(prefix)} }

// after is the lowest key above all that begin with a prefix; empty when there is none.
func after(prefix string) string {
	b := []byte(prefix)
	for i, c := range slices.Backward(b) {
		if c < 0xff {
			b[i]++
			return string(b[:i+1])
		}
	}
	return ""
}

func (s span) holds(key string) bool { return key >= s.lo && (s.hi == "" || key < s.hi) }

// segment is a span of the snapshot's keys that all get the same names at the destination, in the same order.
type segment struct {
	span
	old, new string
}

// to is a key's name at the destination.
func (s segment) to(key string) string { return s.new + strings.TrimPrefix(key, s.old) }

// dest is the span at the destination that the segment's keys will be in.
func (s segment) dest() span {
	d := span{lo: max(s.to(s.lo), firstKey)}
	switch {
	case s.hi == after(s.old): // also where neither is bounded
		d.hi = after(s.new)
	default:
		d.hi = s.to(s.hi)
	}
	return d
}

// whole says whether it is everything that the snapshot holds.
func (s Selection) whole() bool { return len(s.Prefixes) == 0 || slices.Contains(s.Prefixes, "") }

// segments cut the selected keys where a selection or a rename begins or ends. They are in order, and no two overlap.
func (s Selection) segments() []segment {
	spans := []span{spanOf("")}
	if !s.whole() {
		spans = spans[:0]
		for _, p := range s.Prefixes {
			spans = append(spans, spanOf(p))
		}
	}
	var cuts []string
	for _, sp := range spans {
		cuts = append(cuts, sp.lo, sp.hi)
	}
	for _, r := range s.Rename {
		sp := spanOf(r.Old)
		cuts = append(cuts, sp.lo, sp.hi)
	}
	slices.Sort(cuts)
	cuts = slices.Compact(slices.DeleteFunc(cuts, func(c string) bool { return c == "" }))
	var all []segment
	for i, lo := range cuts {
		if !slices.ContainsFunc(spans, func(sp span) bool { return sp.holds(lo) }) {
			continue
		}
		seg := segment{span: span{lo: lo}}
		if i+1 < len(cuts) {
			seg.hi = cuts[i+1]
		}
		for _, r := range s.Rename {
			if spanOf(r.Old).holds(lo) && len(r.Old) >= len(seg.old) {
				seg.old, seg.new = r.Old, r.New
			}
		}
		all = append(all, seg)
	}
	return all
}

// cover is where the selected keys will be at the destination, in order and without overlaps: what is there and not in the snapshot
// is what a restore leaves.
func (s Selection) cover() []span {
	if s.whole() {
		return []span{spanOf("")}
	}
	var all []span
	for _, seg := range s.segments() {
		all = append(all, seg.dest())
	}
	slices.SortFunc(all, func(a, b span) int { return strings.Compare(a.lo, b.lo) })
	merged := all[:0]
	for _, sp := range all {
		if n := len(merged); n > 0 && (merged[n-1].hi == "" || sp.lo <= merged[n-1].hi) {
			if merged[n-1].hi != "" && (sp.hi == "" || sp.hi > merged[n-1].hi) {
				merged[n-1].hi = sp.hi
			}
			continue
		}
		merged = append(merged, sp)
	}
	return merged
}
