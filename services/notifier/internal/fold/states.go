package fold

import (
	"encoding/hex"
	"hash/fnv"
	"maps"
	"slices"
	"time"

	"google.golang.org/protobuf/types/known/timestamppb"

	lifeboatv1 "github.com/lifeboat-fleet/lifeboat/proto/lifeboat/v1"
)

// The states of an alert. Whatever else a sender may call it fires: it is told rather than lost.
const (
	firing   = "firing"
	resolved = "resolved"
	event    = "event"
)

const (
	// disorder is how late a webhook may come after a newer one, or a duplicate after the first. Alertmanagers of a cluster wait 15 s
	// for each other (cluster.peer-timeout).
	disorder = time.Minute
	// grain is how exact times are kept, for the size of the state. It does not concern startsAt.
	grain = time.Millisecond
	// maxChanges is how many changes of one alert are kept.
	maxChanges = 128
)

// state is an arrival as far as it is compared.
type state struct {
	fingerprint string
	status      string
	// starts is the zero time when the sender gave none.
	starts, ends, received time.Time
}

func stateOf(a Arrival, now time.Time) state {
	s := state{
		fingerprint: a.Alert.GetFingerprint(), status: a.Alert.GetStatus(), starts: clock(a.Alert.GetStartsAt()), ends: clock(a.Alert.GetEndsAt()),
		received: a.Received.Truncate(grain),
	}
	if s.fingerprint == "" {
		s.fingerprint = fingerprint(a.Alert.GetLabels())
	}
	if s.status != resolved && s.status != event {
		s.status = firing
	}
	// A clock that is wrong must not make an arrival the newest one for ever.
	if now = now.Truncate(grain); a.Received.IsZero() || s.received.After(now) {
		s.received = now
	}
	return s
}

// clock reads a time; what stands for none is the zero time.
func clock(t *timestamppb.Timestamp) time.Time {
	if t == nil || !t.IsValid() {
		return time.Time{}
	}
	return t.AsTime()
}

func stamp(t time.Time) *timestamppb.Timestamp {
	if t.IsZero() {
		return nil
	}
	return timestamppb.New(t)
}

// fingerprint stands for the one that a sender left out. It is derived from the labels, as Alertmanager's is.
func fingerprint(labels map[string]string) string {
	h := fnv.New64a()
	for _, name := range slices.Sorted(maps.Keys(labels)) {
		_, _ = h.Write([]byte(name + "\xff" + labels[name] + "\xff")) // never fails
	}
	return hex.EncodeToString(h.Sum(nil))
}

// key is what has one newest state: an alert, or a single event.
type key struct {
	fingerprint string
	event       bool
	// starts is an event's, in nanoseconds; 0 for alerts.
	starts int64
}

func keyOf(fingerprint, status string, starts time.Time) key {
	k := key{fingerprint: fingerprint, event: status == event}
	if k.event && !starts.IsZero() {
		k.starts = starts.UnixNano()
	}
	return k
}

// same says whether an arrival is the state that is known, once more.
func (s state) same(t *lifeboatv1.Told) bool {
	if s.status != t.GetStatus() {
		return false
	}
	known := clock(t.GetStartsAt())
	switch later := s.received.Sub(since(t)); {
	case s.status == event || s.starts.Equal(known) || s.starts.IsZero() || known.IsZero():
		return true
	case s.starts.After(known):
		return false
	case t.GetWaits():
		return true // it was put back, and keeps its own startsAt
	case s.status == firing:
		// It fires on, as another Prometheus sees it.
		return later > disorder
	}
	return s.ends.After(known)
}

// newer says whether an arrival follows the state that is known.
func (s state) newer(t *lifeboatv1.Told) bool {
	known, later := clock(t.GetStartsAt()), s.received.Sub(since(t))
	fires, fired := s.status == firing, t.GetStatus() == firing
	switch {
	case s.starts.IsZero() || known.IsZero():
		return later >= 0
	case s.starts.After(known) && fires && !fired:
		// Even if that the earlier one ended was received much later.
		return true
	case later < -disorder:
		return false
	case s.starts.After(known):
		return true
	case fires:
		return !fired && later > disorder
	}
	// It ends what fires: it has the same startsAt, or lasted until after that one.
	return fired && (s.starts.Equal(known) || s.ends.After(known))
}

// since is when the newest state was received.
func since(t *lifeboatv1.Told) time.Time {
	if n := len(t.GetChanges()); n > 0 {
		return clock(t.GetChanges()[n-1])
	}
	return clock(t.GetToldAt())
}

// follow makes an arrival the newest state.
func (s state) follow(t *lifeboatv1.Told, p Policy) {
	starts := s.starts
	if known := clock(t.GetStartsAt()); !starts.IsZero() && starts.Before(known) {
		starts = known // an earlier one would let the old states of the later one in again
	}
	t.StartsAt, t.Status = stamp(starts), s.status
	var kept []*timestamppb.Timestamp
	if s.status != event && p.Flaps > 0 {
		for _, c := range t.GetChanges() {
			if clock(c).After(s.received.Add(-p.Window)) {
				kept = append(kept, c)
			}
		}
	}
	kept = append(kept, stamp(s.received))
	t.Changes = kept[max(len(kept)-maxChanges, 0):]
}

// again is why an arrival of the state that is known is not told: it came along with the first one, or later.
func (s state) again(t *lifeboatv1.Told) string {
	if s.status == event || s.received.Sub(since(t)) < disorder {
		return Duplicate
	}
	return Repeat
}

// confirms says that an alert has ended, once more and later: it may have fired in between, and what is received of that is out of
// order. That it fires on is not worth a change of the state.
func (s state) confirms(t *lifeboatv1.Told) bool {
	return s.status == resolved && len(t.GetChanges()) > 0 && s.received.After(since(t))
}

// flaps is how often an alert changed within the window before its newest change, if that is too often; else 0.
func flaps(t *lifeboatv1.Told, p Policy) int {
	if p.Flaps <= 0 || t.GetStatus() == event {
		return 0
	}
	n, from := 0, since(t).Add(-p.Window)
	for _, c := range t.GetChanges() {
		if clock(c).After(from) {
			n++
		}
	}
	if n <= p.Flaps {
		return 0
	}
	return n
}
