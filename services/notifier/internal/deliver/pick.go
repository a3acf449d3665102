package deliver

import (
	"cmp"
	"slices"
	"time"

	"github.com/lifeboat-fleet/lifeboat/services/notifier/internal/render"
)

const (
	// soonCritical and soonOther are how long it may take until every group has had its own message; beyond that they are merged.
	soonCritical = time.Minute
	soonOther    = 30 * time.Second
	// stale is how old the oldest may be before those that are not critical are merged.
	stale = time.Minute
)

// unit is what is sent together: the deliveries of one group, or a digest of several.
type unit struct {
	items    []*item
	digest   bool
	critical bool
}

// pick chooses what is sent next. The head is in the backlog, so there is something.
func (t *turn) pick() unit {
	if critical := groups(t.backlog.critical()); len(critical) > 0 {
		return t.choose(critical, true, t.soon(len(critical), soonCritical))
	}
	others := groups(t.backlog.all())
	// Who waited long gets a digest; what just came is told in full.
	old := t.d.o.Now().Sub(others[0][0].received) >= stale
	return t.choose(others, false, !old && t.soon(len(others), soonOther))
}

func (t *turn) choose(groups [][]*item, critical, each bool) unit {
	for _, g := range groups {
		if i := slices.IndexFunc(g, func(it *item) bool { return it.alone }); i >= 0 {
			return unit{items: g[i : i+1], critical: critical}
		}
	}
	if each || len(groups) == 1 {
		return unit{items: t.whole(groups[0]), critical: critical}
	}
	u := unit{digest: true, critical: critical}
	for _, g := range groups[:min(len(groups), render.MaxDigest)] {
		u.items = append(u.items, t.whole(g)...)
	}
	return u
}

// whole adds what waits of the same group in the other lane, so that its alerts are seen in their order.
func (t *turn) whole(g []*item) []*item {
	all := slices.Clone(g)
	for _, it := range t.backlog.all() {
		if it.group == g[0].group && !it.alone && !slices.Contains(all, it) {
			all = append(all, it)
		}
	}
	slices.SortFunc(all, func(a, b *item) int { return cmp.Compare(a.seq, b.seq) })
	return all
}

// soon says whether so many messages can be sent within a time.
func (t *turn) soon(messages int, within time.Duration) bool {
	if t.rule.Messages <= 0 {
		return true
	}
	return time.Duration(messages)*t.rule.Per/time.Duration(t.rule.Messages) <= within
}

// groups are the items of each group, the group first whose oldest item came first.
func groups(items []*item) [][]*item {
	var out [][]*item
	index := map[string]int{}
	for _, it := range items {
		i, ok := index[it.group]
		if !ok {
			i = len(out)
			index[it.group] = i
			out = append(out, nil)
		}
		out[i] = append(out[i], it)
	}
	return out
}
