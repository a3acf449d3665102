package deliver

import (
	"context"
	"errors"
	"fmt"
	"maps"

	"github.com/lifeboat-fleet/lifeboat/fleet/bus"
	lifeboatv1 "github.com/lifeboat-fleet/lifeboat/proto/lifeboat/v1"
)

// maxHanded is how many alerts of a group are remembered that were handed on.
const maxHanded = 2000

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
		if g.GetHandedTo() == nil {
			g.HandedTo = map[string]string{}
		}
		for _, a := range alerts {
			switch {
			case a.GetStatus() != firing:
				delete(g.HandedTo, a.GetFingerprint()) // its end is handed on as well
			case len(g.GetHandedTo()) < maxHanded:
				g.HandedTo[a.GetFingerprint()] = to
			}
		}
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
func (t *turn) tellEnds(ctx context.Context, g *told) (left map[string]string, err error) {
	left = maps.Clone(g.state.GetHandedTo())
	ended := map[string][]*lifeboatv1.Alert{}
	for _, a := range g.arrivals {
		to, handed := left[a.Alert.GetFingerprint()]
		if !handed || a.Alert.GetStatus() != "resolved" {
			continue
		}
		delete(left, a.Alert.GetFingerprint())
		if _, known := t.c.receivers[to]; known {
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
