package fold

import (
	"cmp"
	"slices"
	"time"

	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/timestamppb"

	lifeboatv1 "github.com/lifeboat-fleet/lifeboat/proto/lifeboat/v1"
)

const (
	// maxAlerts and maxBytes bound the state of a group: NATS takes messages of 1 MiB, and the title and the chat's message need room.
	maxAlerts = 4000
	maxBytes  = 850 << 10
	// remembered is how long it is known that an alert has ended. Out of order, nothing comes later than that.
	remembered = 24 * time.Hour
)

// prune forgets what ended long ago, and then as much as the size demands. What is forgotten is told again when it comes again:
// never too little.
func prune(all []*lifeboatv1.Told, now time.Time) []*lifeboatv1.Told {
	all = slices.DeleteFunc(slices.Clone(all), func(t *lifeboatv1.Told) bool {
		return t.GetStatus() != firing && !t.GetWaits() && now.Sub(lastOf(t)) > remembered
	})
	bytes := 0
	for _, t := range all {
		bytes += jsonSize(t)
	}
	for keep := maxChanges / 2; bytes > maxBytes && keep > 0; keep /= 2 {
		for i, t := range all {
			if bytes <= maxBytes {
				break
			}
			if len(t.GetChanges()) <= keep {
				continue
			}
			bytes -= jsonSize(t)
			t = proto.CloneOf(t) // it may be shared
			all[i] = t
			t.Changes = t.GetChanges()[max(len(t.GetChanges())-keep, 0):]
			bytes += jsonSize(t)
		}
	}
	surplus := max(len(all)-maxAlerts, 0)
	if surplus == 0 && bytes <= maxBytes {
		return all
	}
	order := slices.Clone(all)
	slices.SortStableFunc(order, func(a, b *lifeboatv1.Told) int {
		return cmp.Or(cmp.Compare(worth(a), worth(b)), lastOf(a).Compare(lastOf(b)))
	})
	gone := map[*lifeboatv1.Told]bool{}
	for _, t := range order {
		if len(gone) >= surplus && bytes <= maxBytes {
			break
		}
		gone[t] = true
		bytes -= jsonSize(t)
	}
	return slices.DeleteFunc(all, func(t *lifeboatv1.Told) bool { return gone[t] })
}

// worth is what is forgotten last: that something waits to be told, and what fires.
func worth(t *lifeboatv1.Told) int {
	switch {
	case t.GetWaits():
		return 2
	case t.GetStatus() == firing:
		return 1
	}
	return 0
}

// lastOf is when an alert was told last, or came, if that is later.
func lastOf(t *lifeboatv1.Told) time.Time {
	told, came := clock(t.GetToldAt()), since(t)
	if came.After(told) {
		return came
	}
	return told
}

// jsonSize is at least the length of the ProtoJSON.
func jsonSize(t *lifeboatv1.Told) int {
	// The fields' names, the statuses, quotes and commas, each with the space that protojson may put behind it.
	n := 104
	if t.GetWaits() {
		n += 14
	}
	for _, c := range t.GetFingerprint() {
		if n++; c < ' ' || c == '"' || c == '\\' || c > '~' {
			n += 5
		}
	}
	n += stampSize(t.GetStartsAt()) + stampSize(t.GetToldAt())
	for _, c := range t.GetChanges() {
		n += stampSize(c) + 2
	}
	return n
}

// stampSize is the length of a time: "2026-11-21T14:02:03.123456789Z", with as many digits as it needs, in threes.
func stampSize(t *timestamppb.Timestamp) int {
	switch {
	case t == nil:
		return 0
	case t.GetNanos() == 0:
		return 22
	case t.GetNanos()%1e6 == 0:
		return 26
	}
	return 32
}
