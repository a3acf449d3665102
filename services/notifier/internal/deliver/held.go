package deliver

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"time"

	"go.opentelemetry.io/otel/trace"
	"google.golang.org/protobuf/encoding/protojson"

	"github.com/lifeboat-fleet/lifeboat/fleet/bus"
	"github.com/lifeboat-fleet/lifeboat/fleet/tracing"
	lifeboatv1 "github.com/lifeboat-fleet/lifeboat/proto/lifeboat/v1"
	"github.com/lifeboat-fleet/lifeboat/services/notifier/internal/route"
)

// heldGroup is what time intervals held of one group, and is due.
type heldGroup struct {
	deliveries []*lifeboatv1.Delivery
	seqs       []uint64
	traces     []trace.SpanContext
	stored     time.Time
}

// asleep is what is known of what is held for one receiver: nothing that was stored before a sequence is due before a moment, as this
// configuration has it.
type asleep struct {
	c     *compiled
	next  uint64
	until time.Time
}

// sleepMost is how long what is held is taken on trust: an interval may end earlier than was reckoned (route.Tree.Until), and a stream that
// was restored counts from an earlier sequence.
const sleepMost = time.Minute

// add notes one that is held until a moment.
func (a *asleep) add(seq uint64, until time.Time) {
	a.next = max(a.next, seq+1)
	if until.Before(a.until) {
		a.until = until
	}
}

// reckoning finds when what is held comes out, seen from one moment. Thousands may be held by the same intervals.
type reckoning struct {
	tree *route.Tree
	now  time.Time
	ends map[string]time.Time
}

// due is when a delivery comes out; not after now: at once.
func (r *reckoning) due(out *lifeboatv1.Delivery) time.Time {
	by := intervals(out)
	end, known := r.ends[by]
	if !known {
		var ok bool
		if end, ok = r.tree.Until(r.now, out.GetMuteTimeIntervals(), out.GetActiveTimeIntervals()); !ok {
			end = r.now.Add(sleepMost)
		}
		r.ends[by] = end
	}
	if at := out.GetHeldUntil().AsTime(); at.After(end) { // 1970 without one
		return at
	}
	return end
}

// intervals names the time intervals that hold a delivery.
func intervals(d *lifeboatv1.Delivery) string {
	return hash(strings.Join(d.GetMuteTimeIntervals(), "\x00"), strings.Join(d.GetActiveTimeIntervals(), "\x00"))
}

var errDue = errors.New("something is due")

// sleeps says whether nothing of what is held for a receiver is due. It reads only what has come since it was last looked at.
func (d *Deliverer) sleeps(ctx context.Context, c *compiled, receiver string, r *reckoning) (bool, error) {
	a, ok := d.asleep[receiver]
	if !ok || a.c != c || !r.now.Before(a.until) {
		return false, nil
	}
	err := d.o.Bus.ScanFrom(ctx, bus.StreamAlerts, bus.HeldSubject(receiver), a.next, func(m *bus.Message) error {
		_, out, err := newItem(m)
		if err != nil {
			return errDue // to be buried
		}
		at := r.due(out)
		if !at.After(r.now) {
			return errDue
		}
		a.add(m.Seq, at)
		return nil
	})
	switch {
	case errors.Is(err, errDue):
		return false, nil
	case err != nil:
		return false, fmt.Errorf("reading what is held for %s: %w", receiver, err)
	}
	d.asleep[receiver] = a
	return true, nil
}

// release brings back what is held for a receiver and due. What a time interval held of a group comes back as one; of alerts that came
// and went meanwhile nobody is told, but for the record. What flaps comes back as it was put by: the group's state knows which is the newest.
func (d *Deliverer) release(ctx context.Context, c *compiled, receiver string) error {
	r := &reckoning{tree: c.tree, now: d.o.Now(), ends: map[string]time.Time{}}
	if quiet, err := d.sleeps(ctx, c, receiver, r); err != nil || quiet {
		return err
	}
	delete(d.asleep, receiver)
	rest := asleep{c: c, until: r.now.Add(sleepMost)}
	all := map[string]*heldGroup{}
	var order []string
	var unreadable []*bus.Message
	var why []error
	err := d.o.Bus.ScanFrom(ctx, bus.StreamAlerts, bus.HeldSubject(receiver), 1, func(m *bus.Message) error {
		it, out, err := newItem(m)
		if err != nil {
			unreadable, why = append(unreadable, m), append(why, err)
			return nil
		}
		if at := r.due(out); at.After(r.now) {
			rest.add(m.Seq, at)
			return nil
		}
		out.Id = it.id
		// Each interval ends by itself, and one that lasts must not keep back what another one held.
		name := it.group + " " + intervals(out)
		if out.GetHeldUntil() != nil {
			name = strconv.FormatUint(m.Seq, 10)
		}
		g := all[name]
		if g == nil {
			g = &heldGroup{stored: m.Stored}
			all[name] = g
			order = append(order, name)
		}
		g.deliveries, g.seqs = append(g.deliveries, out), append(g.seqs, m.Seq)
		g.traces = append(g.traces, it.trace)
		return nil
	})
	if err != nil {
		return fmt.Errorf("reading what is held for %s: %w", receiver, err)
	}
	var errs []error
	for i, m := range unreadable {
		errs = append(errs, d.buryHeld(ctx, m, why[i]))
	}
	for _, name := range order {
		// One that cannot be brought back does not keep the others.
		if err := d.bringBack(ctx, all[name]); err != nil {
			errs = append(errs, err)
		}
		if ctx.Err() != nil {
			break
		}
	}
	if err := errors.Join(errs...); err != nil || ctx.Err() != nil {
		return err // it is all looked at again
	}
	d.asleep[receiver] = rest
	return nil
}

// buryHeld makes what is held and cannot be read a dead letter: no consumer takes it, so that nobody else would ever say that it is there.
func (d *Deliverer) buryHeld(ctx context.Context, m *bus.Message, why error) error {
	err := d.o.Bus.DeadLetter(ctx, "malformed", &lifeboatv1.DeadLetter{
		Id: m.DeadID(), Subject: m.Subject, Payload: m.Data, Reason: why.Error(), Attempts: 1,
	})
	if err != nil {
		return fmt.Errorf("storing a dead letter: %w", err)
	}
	if err := d.dead(ctx, m, why); err != nil {
		return fmt.Errorf("recording a dead letter: %w", err)
	}
	if err := d.o.Bus.Delete(ctx, bus.StreamAlerts, m.Seq); err != nil && !errors.Is(err, bus.ErrNoMessage) {
		return fmt.Errorf("removing what was held and cannot be read: %w", err)
	}
	return nil
}

// maxBack is about how large a delivery gets that is made of several: NATS takes 1 MiB by default.
const maxBack = 400 << 10

// bringBack puts what was held of a group back into the queue: of each alert how it is now and, if it has ended, how it began, so that one
// which came and went is known for that.
func (d *Deliverer) bringBack(ctx context.Context, g *heldGroup) error {
	last := g.deliveries[len(g.deliveries)-1]
	goesOn := g.traces[len(g.traces)-1]
	ctx, span := tracing.Start(tracing.In(ctx, goesOn), "bring back", trace.WithLinks(tracing.Links(goesOn, g.traces...)...))
	defer span.End()
	frame := withAlerts(last, nil)
	frame.HeldUntil, frame.Mentions = nil, nil
	if held := slices.Concat(last.GetMuteTimeIntervals(), last.GetActiveTimeIntervals()); len(held) > 0 {
		frame.HeldFor = "held by time interval " + strings.Join(held, ", ")
	}
	alerts := 0
	for _, one := range g.deliveries {
		alerts += len(one.GetNotification().GetAlerts())
		for _, who := range one.GetMentions() {
			if !slices.Contains(frame.GetMentions(), who) {
				frame.Mentions = append(frame.Mentions, who)
			}
		}
		if at := one.GetNotification().GetReceivedAt(); at.AsTime().After(frame.GetNotification().GetReceivedAt().AsTime()) {
			frame.Notification.ReceivedAt = at
		}
	}
	var all []bus.Outgoing
	for i, some := range chunks(g.states()) {
		out := withAlerts(frame, some)
		out.Id = fmt.Sprintf("%s.back-%d-%d", last.GetId(), g.seqs[len(g.seqs)-1], i)
		all = append(all, bus.Outgoing{Subject: subjectOf(out), Message: out, ID: out.GetId()})
		alerts -= len(some)
	}
	if err := d.o.Bus.PublishAll(ctx, all); err != nil {
		return fmt.Errorf("bringing back what was held for %s: %w", last.GetReceiver(), err)
	}
	if alerts > 0 {
		if err := d.superseded(ctx, g, alerts); err != nil {
			return err
		}
	}
	for _, seq := range g.seqs {
		if err := d.o.Bus.Delete(ctx, bus.StreamAlerts, seq); err != nil && !errors.Is(err, bus.ErrNoMessage) {
			return fmt.Errorf("removing what was held for %s: %w", last.GetReceiver(), err)
		}
	}
	return nil
}

// superseded records the states that nobody is told of because newer ones followed while they were held.
func (d *Deliverer) superseded(ctx context.Context, g *heldGroup, alerts int) error {
	last := g.deliveries[len(g.deliveries)-1]
	err := d.o.Bus.Emit(ctx, &lifeboatv1.Event{
		Id:   fmt.Sprintf("end-%s-held-%d", last.GetId(), g.seqs[len(g.seqs)-1]),
		Noun: "alert", Verb: "folded", Target: target(last.GetNotification().GetAlerts()),
		Message: fmt.Sprintf("nothing in it was news for %s: %d superseded while it was held", last.GetReceiver(), alerts),
		Attributes: map[string]string{
			"receiver": last.GetReceiver(), "delivery_id": last.GetId(), "alerts": strconv.Itoa(alerts),
			"lag_seconds": strconv.FormatFloat(max(d.o.Now().Sub(g.stored), 0).Seconds(), 'f', 3, 64),
			"origin":      last.GetNotification().GetOrigin(), "route": last.GetRoute(),
		},
	})
	if err != nil {
		return fmt.Errorf("recording what was superseded: %w", err)
	}
	d.metrics.folded.WithLabelValues(last.GetReceiver(), "superseded").Add(float64(alerts))
	return nil
}

// stateKey tells alerts apart: by their fingerprints or, without one, by their labels; events by when they happened as well.
func stateKey(a *lifeboatv1.Alert) string {
	key := a.GetFingerprint()
	if key == "" {
		key = "labels " + fmt.Sprint(a.GetLabels()) // in order
	}
	if a.GetStatus() == "event" {
		key += " " + a.GetStartsAt().String()
	}
	return key
}

// states are of each alert the last state and, if that is its end, the first one that fired, side by side. All are brought back as received
// together: one that ended and fired on with the same start would otherwise be taken for ended.
func (g *heldGroup) states() [][]*lifeboatv1.Alert {
	var all [][]*lifeboatv1.Alert
	at := map[string]int{}
	began := map[string]*lifeboatv1.Alert{}
	for _, one := range g.deliveries {
		for _, a := range one.GetNotification().GetAlerts() {
			key := stateKey(a)
			if _, known := at[key]; !known {
				at[key] = len(all)
				all = append(all, nil)
			}
			if a.GetStatus() == firing && began[key] == nil {
				began[key] = a
			}
			if first := began[key]; first != nil && a.GetStatus() == "resolved" {
				all[at[key]] = []*lifeboatv1.Alert{first, a}
			} else {
				all[at[key]] = []*lifeboatv1.Alert{a}
			}
		}
	}
	return all
}

// chunks parts them so that each part fits into a message.
func chunks(states [][]*lifeboatv1.Alert) [][]*lifeboatv1.Alert {
	var out [][]*lifeboatv1.Alert
	size := 0
	for _, one := range states {
		s := 0
		for _, a := range one {
			data, _ := protojson.Marshal(a) // publishing says what is wrong with it
			s += len(data)
		}
		if len(out) == 0 || size+s > maxBack {
			out, size = append(out, nil), 0
		}
		size += s
		out[len(out)-1] = append(out[len(out)-1], one...)
	}
	return out
}
