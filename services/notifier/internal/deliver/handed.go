package deliver

import (
	"bytes"
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"maps"
	"slices"

	"github.com/lifeboat-fleet/lifeboat/fleet/bus"
	lifeboatv1 "github.com/lifeboat-fleet/lifeboat/proto/lifeboat/v1"
)

const (
	// maxHanded is how many alerts of a group are remembered by name that were handed on, maxHandedMore how many further ones by their
	// marks: together as many as Alertmanager may send at once, in a state that NATS takes.
	maxHanded     = 2000
	maxHandedMore = 10_000
)

// mark stands for a fingerprint where there is no room for it.
type mark [4]byte

func markOf(fingerprint string) mark {
	sum := sha256.Sum256([]byte(fingerprint))
	return mark(sum[:len(mark{})])
}

// handed are the receivers that alerts of a group were handed on to while they fired.
type handed struct {
	to      map[string]string
	more    map[mark]string
	changed bool
}

func handedOf(g *lifeboatv1.Group) *handed {
	h := &handed{to: maps.Clone(g.GetHandedTo()), more: map[mark]string{}}
	if h.to == nil {
		h.to = map[string]string{}
	}
	for to, marks := range g.GetHandedMore() {
		for m := range slices.Chunk(marks, len(mark{})) {
			if len(m) == len(mark{}) { // a person may have edited it
				h.more[mark(m)] = to
			}
		}
	}
	return h
}

// note adds an alert, if there is room.
func (h *handed) note(fingerprint, to string) {
	m := markOf(fingerprint)
	_, known := h.to[fingerprint]
	_, marked := h.more[m]
	switch {
	case known || !marked && len(h.to) < maxHanded:
		h.to[fingerprint] = to
	case marked || len(h.more) < maxHandedMore:
		h.more[m] = to
	}
	h.changed = true
}

// take gives who took an alert over, and forgets it.
func (h *handed) take(fingerprint string) (to string, ok bool) {
	if to, ok = h.to[fingerprint]; ok {
		delete(h.to, fingerprint)
	} else if to, ok = h.more[markOf(fingerprint)]; ok {
		delete(h.more, markOf(fingerprint))
	}
	h.changed = h.changed || ok
	return to, ok
}

// store writes them into a group. The same alerts are the same bytes.
func (h *handed) store(g *lifeboatv1.Group) {
	g.HandedTo, g.HandedMore = h.to, nil
	order := slices.SortedFunc(maps.Keys(h.more), func(a, b mark) int { return bytes.Compare(a[:], b[:]) })
	for _, m := range order {
		if g.HandedMore == nil {
			g.HandedMore = map[string][]byte{}
		}
		g.HandedMore[h.more[m]] = append(g.HandedMore[h.more[m]], m[:]...)
	}
}

// noteHanded notes in the group that a fallback is told of alerts that fire. It comes before they are handed on, so that nobody is told
// that something fires whom nobody will tell that it ended.
func (t *turn) noteHanded(ctx context.Context, group string, alerts []*lifeboatv1.Alert, to string) error {
	subject := bus.GroupSubject(t.name, group)
	for try := 1; ; try++ {
		g := &lifeboatv1.Group{}
		seq, _, err := t.d.o.Bus.Last(ctx, bus.StreamAlerts, subject, g)
		if err != nil {
			return fmt.Errorf("reading what %s was told: %w", t.name, err)
		}
		h := handedOf(g)
		for _, a := range alerts {
			if a.GetStatus() == firing {
				h.note(a.GetFingerprint(), to)
			} else {
				h.take(a.GetFingerprint()) // its end is handed on as well
			}
		}
		h.store(g)
		_, err = t.d.o.Bus.PutState(ctx, bus.State{Outgoing: bus.Outgoing{Subject: subject, Message: g}, Expect: seq})
		if errors.Is(err, bus.ErrConflict) && try < stateTries {
			continue
		}
		if err != nil {
			return fmt.Errorf("noting that %s is told in place of %s: %w", to, t.name, err)
		}
		return nil
	}
}

// tellEnds tells the fallbacks that took alerts over that these have ended, and gives what is then left to tell.
func (t *turn) tellEnds(ctx context.Context, g *told) (left *handed, err error) {
	left = handedOf(g.state)
	ended := map[string][]*lifeboatv1.Alert{}
	for _, a := range g.arrivals {
		if a.Alert.GetStatus() != "resolved" {
			continue
		}
		to, ok := left.take(a.Alert.GetFingerprint())
		if _, known := t.c.receivers[to]; ok && known {
			ended[to] = append(ended[to], a.Alert)
		}
	}
	last := g.deliveries[len(g.deliveries)-1]
	for to, alerts := range ended {
		d := withAlerts(last, alerts)
		d.Id, d.Receiver, d.HandedFrom = fmt.Sprintf("%s.%s-ended", last.GetId(), to), to, append(d.GetHandedFrom(), t.name)
		d.HandedReason = t.name + " was told again"
		if _, err := t.d.o.Bus.Publish(ctx, bus.Outgoing{Subject: subjectOf(d), Message: d, ID: d.GetId()}); err != nil {
			return nil, fmt.Errorf("telling %s that what it took over has ended: %w", to, err)
		}
	}
	return left, nil
}
