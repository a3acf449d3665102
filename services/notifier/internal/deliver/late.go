package deliver

import (
	"cmp"
	"context"
	"fmt"
	"slices"
	"strconv"
	"sync"

	"google.golang.org/protobuf/proto"

	"github.com/lifeboat-fleet/lifeboat/fleet/bus"
	lifeboatv1 "github.com/lifeboat-fleet/lifeboat/proto/lifeboat/v1"
)

// expire hands on what has waited for too long here, and puts what has waited for too long anywhere into the dead letters.
func (t *turn) expire(ctx context.Context) error {
	now, limit := t.d.o.Now(), t.c.cfg.Notifier.GiveUpAfter
	trouble := sync.OnceValue(func() string { return t.trouble(ctx) })
	// The head comes last: when it is a dead letter, the turn is over.
	head := error(nil)
	for _, it := range t.backlog.all() {
		// What was held, or handed on to here, began to wait only then.
		switch age := now.Sub(it.stored); {
		case age >= limit:
			why := fmt.Errorf("not delivered within %s: %s", limit, cmp.Or(trouble(), "no room for it"))
			if it.head {
				head = bus.Terminal("gave_up", why)
			} else if err := t.bury(ctx, it, "gave_up", why); err != nil {
				return err
			}
		case t.receiver.Fallback != "" && !it.stays && age >= t.receiver.FallbackAfter:
			on, err := t.handOn(ctx, it, trouble())
			if err != nil {
				return err
			}
			it.stays = !on
		}
	}
	return head
}

// trouble is why deliveries come late; empty when that is not known.
func (t *turn) trouble(ctx context.Context) string {
	if t.key == "" {
		return "the receiver's address cannot be read"
	}
	state, err := t.d.o.Budgets.State(ctx, t.key, t.rule)
	if err != nil {
		return ""
	}
	return state.Trouble
}

// handOn gives a delivery to the fallback, if there is one. What has been there already stays here.
func (t *turn) handOn(ctx context.Context, it *item, why string) (done bool, err error) {
	to := t.receiver.Fallback
	if to == "" {
		return false, nil
	}
	d, err := it.delivery()
	if err != nil {
		return false, err
	}
	if slices.Contains(d.GetHandedFrom(), to) {
		return false, nil
	}
	ctx = context.WithoutCancel(it.in(ctx))
	if err := t.noteHanded(ctx, it.group, d.GetNotification().GetAlerts(), to); err != nil {
		return false, err
	}
	on := proto.CloneOf(d)
	on.Id, on.Receiver = it.id+"."+to, to
	on.HandedFrom, on.HandedReason = append(on.HandedFrom, t.name), cmp.Or(why, "no room for it")
	if _, err := t.d.o.Bus.Publish(ctx, bus.Outgoing{Subject: subjectOf(on), Message: on, ID: on.GetId()}); err != nil {
		return false, fmt.Errorf("handing on from %s to %s: %w", t.name, to, err)
	}
	e := &lifeboatv1.Event{
		Id: endID(it), Noun: "alert", Verb: "handed-on", Target: target(d.GetNotification().GetAlerts()),
		Message:    fmt.Sprintf("%s did not take it (%s); %s takes over", t.name, on.GetHandedReason(), to),
		Attributes: t.attributes(it, d, max(t.d.o.Now().Sub(it.received), 0)),
	}
	e.Attributes["to"] = to
	if err := t.d.o.Bus.Emit(ctx, e); err != nil {
		return false, fmt.Errorf("recording that %s takes over: %w", to, err)
	}
	t.d.metrics.handedOn.WithLabelValues(t.name).Inc()
	return true, t.remove(ctx, it)
}

// bury makes a delivery that is not the head a dead letter. The letter is stored first, under an id that a second try has as well.
func (t *turn) bury(ctx context.Context, it *item, reason string, why error) error {
	ctx = context.WithoutCancel(it.in(ctx))
	m := &bus.Message{Subject: it.subject, Data: it.data, Seq: it.seq, Stored: it.stored, Attempt: it.attempt}
	err := t.d.o.Bus.DeadLetter(ctx, reason, &lifeboatv1.DeadLetter{
		Id: m.DeadID(), Subject: m.Subject, Payload: m.Data, Reason: why.Error(), Attempts: it.attempt, Headers: bus.TraceHeader(it.trace),
	})
	if err != nil {
		return fmt.Errorf("storing a dead letter: %w", err)
	}
	if err := t.d.dead(ctx, m, why); err != nil {
		return err
	}
	return t.remove(ctx, it)
}

// dead records that a message was put aside.
func (d *Deliverer) dead(ctx context.Context, m *bus.Message, why error) error {
	out := &lifeboatv1.Delivery{}
	if m.Subject == bus.SubjectReceived {
		n := &lifeboatv1.Notification{}
		if bus.Decode(m.Data, n) == nil {
			out.Notification = n
		}
	} else if bus.Decode(m.Data, out) != nil {
		out = &lifeboatv1.Delivery{}
	}
	alerts := out.GetNotification().GetAlerts()
	return d.o.Bus.Emit(ctx, &lifeboatv1.Event{
		Id: m.DeadID(), Noun: "alert", Verb: "dead", Target: target(alerts), Message: why.Error(),
		Attributes: map[string]string{
			"receiver": out.GetReceiver(), "delivery_id": cmp.Or(out.GetId(), m.ID()), "alerts": strconv.Itoa(len(alerts)),
			"lag_seconds": strconv.FormatFloat(d.o.Now().Sub(m.Stored).Seconds(), 'f', 3, 64), "attempts": strconv.FormatInt(m.Attempt, 10),
			"origin": out.GetNotification().GetOrigin(), "alertname": commonLabel(alerts, "alertname"), "dead_id": m.DeadID(),
		},
	})
}
