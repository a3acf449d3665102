package deliver

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"slices"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sync/errgroup"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/timestamppb"

	"github.com/lifeboat-fleet/lifeboat/fleet/bus"
	"github.com/lifeboat-fleet/lifeboat/fleet/config"
	lifeboatv1 "github.com/lifeboat-fleet/lifeboat/proto/lifeboat/v1"
	"github.com/lifeboat-fleet/lifeboat/services/notifier/internal/fold"
)

// stateTries is how often a group's state is written that somebody else wrote meanwhile.
const stateTries = 4

// settle records a group that was told, or that had no news: what flaps is put by, the state is written, and each delivery ends with
// its event. Only then they leave the stream.
func (t *turn) settle(ctx context.Context, u unit, g *told) error {
	if err := t.hold(ctx, g); err != nil {
		return err
	}
	left, err := t.tellEnds(ctx, g)
	if err != nil {
		return err
	}
	events := make([]*lifeboatv1.Event, len(g.items))
	for i, it := range g.items {
		events[i] = t.event(u, g, it, g.deliveries[i])
	}
	// That a delivery ended is true whether the state can be written or not, and its event is stored once: neither waits for the other.
	var both errgroup.Group
	both.SetLimit(atOnce)
	both.Go(func() error { return t.write(ctx, g, left) })
	for i := range events {
		both.Go(func() error { return t.record(u.of(ctx, g.items[i]), g.items[i], events[i], kind(u)) })
	}
	if err := both.Wait(); err != nil {
		return err
	}
	t.count(ctx, g)
	for _, it := range g.items {
		if err := t.remove(ctx, it); err != nil {
			return err
		}
	}
	return nil
}

// atOnce is how many records of a unit are written at once.
const atOnce = 16

// hold puts by the alerts that flap, until they are told in sum. Each keeps when it was received, for that decides which state is newer.
func (t *turn) hold(ctx context.Context, g *told) error {
	type moments struct{ until, received int64 }
	alike := map[moments][]fold.Held{}
	for _, h := range g.result.Held {
		at := moments{h.Until.UnixNano(), h.Received.UnixNano()}
		alike[at] = append(alike[at], h)
	}
	last := g.deliveries[len(g.deliveries)-1]
	var all []bus.Outgoing
	for _, held := range alike {
		alerts := make([][]*lifeboatv1.Alert, 0, len(held))
		for _, h := range held {
			alerts = append(alerts, []*lifeboatv1.Alert{h.Alert})
		}
		for _, some := range chunks(alerts) {
			d := withAlerts(last, some)
			d.Notification.ReceivedAt = timestamppb.New(held[0].Received)
			d.HeldUntil, d.MuteTimeIntervals, d.ActiveTimeIntervals = timestamppb.New(held[0].Until), nil, nil
			// The server drops a second message of an id: it has to name what is in it, not only until when.
			what := []string{held[0].Until.String(), held[0].Received.String()}
			for _, a := range some {
				what = append(what, stateKey(a), a.GetStatus(), a.GetStartsAt().String())
			}
			d.Id = fmt.Sprintf("%s.until-%s", last.GetId(), hash(what...))
			all = append(all, bus.Outgoing{Subject: bus.HeldSubject(t.name), Message: d, ID: d.GetId()})
		}
	}
	if len(all) == 0 {
		return nil
	}
	if err := t.d.o.Bus.PublishAll(ctx, all); err != nil {
		return fmt.Errorf("putting by what flaps: %w", err)
	}
	return nil
}

// withAlerts is a copy of a delivery with other alerts, which are shared.
func withAlerts(d *lifeboatv1.Delivery, alerts []*lifeboatv1.Alert) *lifeboatv1.Delivery {
	own := d.GetNotification().GetAlerts()
	d.Notification.Alerts = nil // there may be thousands
	out := proto.CloneOf(d)
	d.Notification.Alerts, out.Notification.Alerts = own, alerts
	return out
}

// write stores what the receiver knows now. When somebody else wrote meanwhile, which only a holder that was given up for dead does, the
// same news are folded into that.
func (t *turn) write(ctx context.Context, g *told, left *handed) error {
	if !g.result.Changed && len(g.result.Tell) == 0 && !left.changed {
		return nil
	}
	for try := 1; ; try++ {
		next := g.result.Group
		next.Message = g.state.GetMessage()
		next.GroupKey = g.deliveries[0].GetNotification().GetGroupKey()
		next.DeliveryId, next.MessagesSent = "", 0
		left.store(next)
		_, err := t.d.o.Bus.PutState(ctx, bus.State{Outgoing: bus.Outgoing{Subject: g.subject, Message: next}, Expect: g.seq})
		if err == nil {
			delete(t.unsaved, g.subject)
			return nil
		}
		if !errors.Is(err, bus.ErrConflict) || try == stateTries {
			t.keep(g, next)
			return fmt.Errorf("recording what %s was told: %w", t.name, err)
		}
		message := g.state.GetMessage()
		if err := t.load(ctx, g); err != nil {
			return err
		}
		if message != nil {
			g.state.Message = message
		}
		// Into another state it may be that other alerts flap.
		if err := t.hold(ctx, g); err != nil {
			return err
		}
	}
}

// unsaved is what a group's receiver knows and the stream does not, because NATS did not take it.
type unsaved struct {
	// seq is the sequence of the state that it follows.
	seq   uint64
	group *lifeboatv1.Group
	// items are the deliveries that were told.
	items map[uint64]bool
}

// keep remembers a state that could not be written: its deliveries come again, and people must not be told again each time.
func (t *turn) keep(g *told, state *lifeboatv1.Group) {
	if t.unsaved == nil {
		t.unsaved = map[string]unsaved{}
	}
	items := maps.Clone(g.before)
	if items == nil {
		items = map[uint64]bool{}
	}
	if len(g.result.Tell) > 0 {
		for _, it := range g.items {
			items[it.seq] = true
		}
	}
	t.unsaved[g.subject] = unsaved{seq: g.seq, group: state, items: items}
}

func (t *turn) count(ctx context.Context, g *told) {
	m := t.d.metrics
	m.alerts.WithLabelValues(t.name).Add(float64(len(g.result.Tell)))
	for reason, n := range g.result.Folded {
		m.folded.WithLabelValues(t.name, reason).Add(float64(n))
	}
	var begin []*lifeboatv1.Alert
	for _, c := range g.result.Tell {
		if c.Kind == fold.Fires {
			begin = append(begin, c.Alert)
		}
	}
	g.pages.missing(ctx, begin)
}

// event is how a delivery ended. It has the same id however that was: after a crash between the event and the deletion the second
// one is dropped by the server.
func (t *turn) event(u unit, g *told, it *item, d *lifeboatv1.Delivery) *lifeboatv1.Event {
	lag := max(t.d.o.Now().Sub(it.received), 0)
	e := &lifeboatv1.Event{
		Id: endID(it), Noun: "alert", Verb: "delivered", Target: target(d.GetNotification().GetAlerts()), Attributes: t.attributes(it, d, lag),
		Message: fmt.Sprintf("%s was told of %d alerts", t.name, it.alerts),
	}
	e.Attributes["kind"] = kind(u)
	if u.digest {
		e.Attributes["digest"] = endID(u.items[0])
	}
	if len(g.result.Held) > 0 {
		// They are counted when they are told.
		e.Attributes["held"] = strconv.Itoa(heldOf(g, d))
	}
	if len(g.result.Tell) == 0 && !g.before[it.seq] {
		e.Verb, e.Message = "folded", fmt.Sprintf("nothing in it was news for %s: %s", t.name, reasons(g))
		delete(e.Attributes, "kind")
	}
	return e
}

// record emits the event of a delivery that is done.
func (t *turn) record(ctx context.Context, it *item, e *lifeboatv1.Event, kind string) error {
	if err := t.d.o.Bus.Emit(ctx, e); err != nil {
		return fmt.Errorf("recording a delivery: %w", err)
	}
	if e.GetVerb() == "delivered" {
		lag := max(t.d.o.Now().Sub(it.received), 0)
		t.d.metrics.lag.WithLabelValues(t.name).Observe(lag.Seconds())
		t.d.o.Logger.InfoContext(ctx, "delivered", slog.String("receiver", t.name), slog.String("delivery_id", it.id),
			slog.Int("alerts", it.alerts), slog.String("lag", lag.Round(time.Millisecond).String()), slog.String("kind", kind))
	}
	return nil
}

// heldOf is how many of a delivery's alerts were put by.
func heldOf(g *told, d *lifeboatv1.Delivery) int {
	n := 0
	for _, h := range g.result.Held {
		if slices.Contains(d.GetNotification().GetAlerts(), h.Alert) {
			n++
		}
	}
	return n
}

func reasons(g *told) string {
	var all []string
	for _, reason := range slices.Sorted(maps.Keys(g.result.Folded)) {
		all = append(all, fmt.Sprintf("%d %s", g.result.Folded[reason], reason))
	}
	if n := len(g.result.Held); n > 0 {
		all = append(all, fmt.Sprintf("%d flap and are told later", n))
	}
	return strings.Join(all, ", ")
}

// endID names the end of a delivery. One that Alertmanager repeats has the same id as before, but another place in the stream.
func endID(it *item) string { return fmt.Sprintf("end-%s-%d", it.id, it.seq) }

// remove takes a delivery that is done out of the stream. The head is acknowledged when the turn ends.
func (t *turn) remove(ctx context.Context, it *item) error {
	if it.head {
		t.headDone = true
	} else if err := t.d.o.Bus.Delete(ctx, bus.StreamAlerts, it.seq); err != nil && !errors.Is(err, bus.ErrNoMessage) {
		return fmt.Errorf("removing a delivery that is done: %w", err)
	}
	if t.backlog != nil {
		t.backlog.drop([]*item{it})
	}
	return nil
}

func (t *turn) attributes(it *item, d *lifeboatv1.Delivery, lag time.Duration) map[string]string {
	alerts := d.GetNotification().GetAlerts()
	return map[string]string{
		"receiver": t.name, "delivery_id": it.id, "lag_seconds": strconv.FormatFloat(lag.Seconds(), 'f', 3, 64),
		"alerts": strconv.Itoa(it.alerts), "attempts": strconv.FormatInt(it.attempt, 10),
		"origin": d.GetNotification().GetOrigin(), "alertname": commonLabel(alerts, "alertname"), "route": d.GetRoute(),
	}
}

// target is the backup target that all alerts name, if it can stand in a subject; empty for the fleet.
func target(alerts []*lifeboatv1.Alert) string {
	if t := commonLabel(alerts, "target"); config.ValidName(t) {
		return t
	}
	return ""
}

func commonLabel(alerts []*lifeboatv1.Alert, name string) string {
	if len(alerts) == 0 {
		return ""
	}
	v := alerts[0].GetLabels()[name]
	for _, a := range alerts[1:] {
		if a.GetLabels()[name] != v {
			return ""
		}
	}
	return v
}
