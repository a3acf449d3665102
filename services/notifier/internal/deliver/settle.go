package deliver

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"slices"
	"strconv"
	"time"

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
	if err := t.write(ctx, g); err != nil {
		return err
	}
	t.count(ctx, g)
	for i, it := range g.items {
		if err := t.record(ctx, u, g, it, g.deliveries[i]); err != nil {
			return err
		}
		if err := t.remove(ctx, it); err != nil {
			return err
		}
	}
	return nil
}

// hold puts by the alerts that flap, until they are told in sum.
func (t *turn) hold(ctx context.Context, g *told) error {
	until := map[time.Time][]*lifeboatv1.Alert{}
	for _, h := range g.result.Held {
		until[h.Until] = append(until[h.Until], h.Alert)
	}
	last := g.deliveries[len(g.deliveries)-1]
	for at, alerts := range until {
		d := proto.CloneOf(last)
		d.Id = fmt.Sprintf("%s.until-%d", last.GetId(), at.Unix())
		d.Notification.Alerts = alerts
		d.HeldUntil, d.MuteTimeIntervals, d.ActiveTimeIntervals = timestamppb.New(at), nil, nil
		if _, err := t.d.o.Bus.Publish(ctx, bus.Outgoing{Subject: bus.HeldSubject(t.name), Message: d, ID: d.GetId()}); err != nil {
			return fmt.Errorf("putting by what flaps: %w", err)
		}
	}
	return nil
}

// write stores what the receiver knows now. When somebody else wrote meanwhile, which only a holder that was given up for dead does, the
// same news are folded into that.
func (t *turn) write(ctx context.Context, g *told) error {
	if !g.result.Changed && len(g.result.Tell) == 0 {
		return nil
	}
	for try := 1; ; try++ {
		next := g.result.Group
		if g.state.GetMessage() != nil {
			next.Message = g.state.GetMessage()
		}
		next.GroupKey = g.deliveries[0].GetNotification().GetGroupKey()
		next.DeliveryId, next.MessagesSent = "", 0
		_, err := t.d.o.Bus.PutState(ctx, bus.State{Outgoing: bus.Outgoing{Subject: g.subject, Message: next}, Expect: g.seq})
		if err == nil {
			return nil
		}
		if !errors.Is(err, bus.ErrConflict) || try == stateTries {
			return fmt.Errorf("recording what %s was told: %w", t.name, err)
		}
		message := g.state.GetMessage()
		if err := t.load(ctx, g); err != nil {
			return err
		}
		if message != nil {
			g.state.Message = message
		}
	}
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

// record emits the event of a delivery that is done. It has the same id however it ended: after a crash between the event and the
// deletion the second one is dropped by the server.
func (t *turn) record(ctx context.Context, u unit, g *told, it *item, d *lifeboatv1.Delivery) error {
	now := t.d.o.Now()
	lag := max(now.Sub(it.received), 0)
	e := &lifeboatv1.Event{
		Id: endID(it), Noun: "alert", Verb: "delivered", Target: target(d.GetNotification().GetAlerts()), Attributes: t.attributes(it, d, lag),
		Message: fmt.Sprintf("%s was told of %d alerts", t.name, it.alerts),
	}
	e.Attributes["kind"] = kind(u)
	if u.digest {
		e.Attributes["digest"] = endID(u.items[0])
	}
	if n := len(g.result.Held); n > 0 {
		// They are counted when they are told.
		e.Attributes["held"] = strconv.Itoa(heldOf(g, d))
	}
	if len(g.result.Tell) == 0 {
		e.Verb, e.Message = "folded", fmt.Sprintf("nothing in it was news for %s: %s", t.name, reasons(g))
		delete(e.Attributes, "kind")
	}
	if err := t.d.o.Bus.Emit(ctx, e); err != nil {
		return fmt.Errorf("recording a delivery: %w", err)
	}
	if e.GetVerb() == "delivered" {
		t.d.metrics.lag.WithLabelValues(t.name).Observe(lag.Seconds())
		t.d.o.Logger.InfoContext(ctx, "delivered", slog.String("receiver", t.name), slog.String("delivery_id", it.id),
			slog.Int("alerts", it.alerts), slog.Duration("lag", lag), slog.String("kind", kind(u)))
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
	out := ""
	for _, reason := range slices.Sorted(maps.Keys(g.result.Folded)) {
		out += fmt.Sprintf("%d %s, ", g.result.Folded[reason], reason)
	}
	if n := len(g.result.Held); n > 0 {
		out += fmt.Sprintf("%d flap and are told later, ", n)
	}
	return out[:max(len(out)-2, 0)]
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
