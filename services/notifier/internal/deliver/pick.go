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
	// starving is when those that are not critical get one message every othersEvery, however many critical ones wait.
	starving    = 5 * time.Minute
	othersEvery = time.Minute
	// asideFrom is how often a unit fails until others are tried before it, for asideFirst and up to asideMost.
	asideFrom  = 3
	asideFirst = 15 * time.Second
	asideMost  = 2 * time.Minute
)

// unit is what is sent together: the deliveries of one group, or a digest of several.
type unit struct {
	items    []*item
	digest   bool
	critical bool
	// reserve says that it may use what is kept for critical messages.
	reserve bool
}

// pick chooses what is sent next. The head is in the backlog, so there is something.
func (t *turn) pick() unit {
	critical, all := t.ready(t.backlog.critical()), t.ready(t.backlog.all())
	if len(all) == 0 {
		// Everything failed lately: then it is the chat.
		critical, all = t.backlog.critical(), t.backlog.all()
	}
	if u, ok := t.resume(len(critical) > 0); ok {
		return u
	}
	now := t.d.o.Now()
	if len(critical) == 0 || len(critical) == len(all) {
		t.others = time.Time{}
	} else if !t.others.IsZero() && now.Sub(t.others) >= othersEvery && now.Sub(all[len(critical)].stored) >= starving {
		// Criticals that never cease must not keep everything else waiting for ever.
		t.others = now
		u := t.choose(groups(all[len(critical):]), false, false)
		u.reserve = true
		return u
	}
	if critical := groups(critical); len(critical) > 0 {
		return t.choose(critical, true, t.soon(len(critical), soonCritical))
	}
	others := groups(all)
	// Who waited long gets a digest; what just came is told in full.
	old := t.d.o.Now().Sub(others[0][0].received) >= stale
	return t.choose(others, false, !old && t.soon(len(others), soonOther))
}

// ready are those that the chat did not refuse to take again and again while it takes others.
func (t *turn) ready(items []*item) []*item {
	now := t.d.o.Now()
	return slices.DeleteFunc(slices.Clone(items), func(it *item) bool { return it.aside.After(now) })
}

// resume is the unit of which a part has been sent: with another one it would begin anew.
func (t *turn) resume(critical bool) (unit, bool) {
	if len(t.begun) == 0 {
		return unit{}, false
	}
	u, waiting := unit{}, t.backlog.all()
	for _, b := range t.begun {
		i := slices.IndexFunc(waiting, func(it *item) bool { return it.seq == b.seq })
		if i < 0 || waiting[i].alone != b.alone || waiting[i].aside.After(t.d.o.Now()) {
			t.begun = nil
			return unit{}, false
		}
		u.items = append(u.items, waiting[i])
		u.critical = u.critical || waiting[i].critical
	}
	u.digest = len(groups(u.items)) > 1
	return u, u.critical || !critical
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
