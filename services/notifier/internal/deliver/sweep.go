package deliver

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"strings"
	"time"

	"google.golang.org/protobuf/proto"

	"github.com/lifeboat-fleet/lifeboat/fleet/bus"
	"github.com/lifeboat-fleet/lifeboat/fleet/config"
	lifeboatv1 "github.com/lifeboat-fleet/lifeboat/proto/lifeboat/v1"
	"github.com/lifeboat-fleet/lifeboat/services/notifier/internal/budget"
)

const (
	// sweepEvery is how often what is held is looked at, and what waits is counted.
	sweepEvery = 5 * time.Second
	// forgetEvery is how often states of groups are looked at that nobody needs any more.
	forgetEvery = time.Hour
	// A group is forgotten when all of it has been told to be resolved for a day, or when it has not been heard of for a month.
	forgetResolved = 24 * time.Hour
	forgetSilent   = 30 * 24 * time.Hour
)

// sweep brings back what was held, forgets old groups and measures what waits, until the context ends. Every replica does it: what
// is brought back has an id, and is taken away only after it is stored.
func (d *Deliverer) sweep(ctx context.Context) error {
	ticker := time.NewTicker(sweepEvery)
	defer ticker.Stop()
	var forgot time.Time
	for {
		if err := d.sweepOnce(ctx, &forgot); err != nil && ctx.Err() == nil {
			d.o.Logger.WarnContext(ctx, "could not look at what is held; will look again", slog.Any("err", err))
		}
		select {
		case <-ctx.Done():
			return nil
		case <-ticker.C:
		}
	}
}

func (d *Deliverer) sweepOnce(ctx context.Context, forgot *time.Time) error {
	waiting, err := d.o.Bus.Subjects(ctx, bus.StreamAlerts, "lifeboat.alert.>")
	if err != nil {
		return err
	}
	c, err := d.current()
	if err != nil {
		return err
	}
	d.measure(ctx, c, waiting)
	var errs []error
	for subject := range waiting {
		if receiver, ok := strings.CutPrefix(subject, bus.HeldSubject("")); ok {
			errs = append(errs, d.release(ctx, c, receiver))
		}
	}
	if now := d.o.Now(); now.Sub(*forgot) >= forgetEvery {
		*forgot = now
		errs = append(errs, d.forget(ctx, now))
	}
	return errors.Join(errs...)
}

// heldGroup is what is held of one group.
type heldGroup struct {
	deliveries []*lifeboatv1.Delivery
	seqs       []uint64
	waits      bool
}

// release brings back what is held for a receiver, a group at a time. Of a group whose alerts came and went meanwhile nobody is told,
// but for the record.
func (d *Deliverer) release(ctx context.Context, c *compiled, receiver string) error {
	now := d.o.Now()
	all := map[string]*heldGroup{}
	var order []string
	err := d.o.Bus.ScanFrom(ctx, bus.StreamAlerts, bus.HeldSubject(receiver), 1, func(m *bus.Message) error {
		it, out, err := newItem(m)
		if err != nil {
			d.o.Logger.ErrorContext(ctx, "what is held cannot be read", slog.String("receiver", receiver), slog.Uint64("seq", m.Seq), slog.Any("err", err))
			return nil
		}
		_, muted := c.tree.Muted(now, out.GetMuteTimeIntervals(), out.GetActiveTimeIntervals())
		g := all[it.group]
		if g == nil {
			g = &heldGroup{}
			all[it.group] = g
			order = append(order, it.group)
		}
		if muted || out.GetHeldUntil().AsTime().After(now) {
			g.waits = true
			return nil
		}
		g.deliveries, g.seqs = append(g.deliveries, out), append(g.seqs, m.Seq)
		return nil
	})
	if err != nil {
		return fmt.Errorf("reading what is held for %s: %w", receiver, err)
	}
	for _, group := range order {
		// What still waits of a group is told with the rest of it.
		if g := all[group]; !g.waits {
			if err := d.bringBack(ctx, g); err != nil {
				return err
			}
		}
	}
	return nil
}

// maxBack is about how large a delivery gets that is made of several: NATS takes 1 MiB by default.
const maxBack = 400 << 10

// bringBack puts what was held of a group back into the queue: of each alert how it began and how it is now, so that one which came and
// went is known for that.
func (d *Deliverer) bringBack(ctx context.Context, g *heldGroup) error {
	last := g.deliveries[len(g.deliveries)-1]
	frame := proto.CloneOf(last)
	frame.HeldUntil, frame.Mentions = nil, nil
	frame.Notification.ReceivedAt = g.deliveries[0].GetNotification().GetReceivedAt()
	frame.Notification.Alerts = nil
	if held := slices.Concat(last.GetMuteTimeIntervals(), last.GetActiveTimeIntervals()); len(held) > 0 {
		frame.HeldFor = "held by time interval " + strings.Join(held, ", ")
	}
	for _, one := range g.deliveries {
		for _, who := range one.GetMentions() {
			if !slices.Contains(frame.GetMentions(), who) {
				frame.Mentions = append(frame.Mentions, who)
			}
		}
	}
	var all []bus.Outgoing
	for i, alerts := range chunks(g.states()) {
		out := proto.CloneOf(frame)
		out.Id = fmt.Sprintf("%s.back-%d-%d", last.GetId(), g.seqs[len(g.seqs)-1], i)
		out.Notification.Alerts = alerts
		all = append(all, bus.Outgoing{Subject: subjectOf(out), Message: out, ID: out.GetId()})
	}
	if err := d.o.Bus.PublishAll(ctx, all); err != nil {
		return fmt.Errorf("bringing back what was held: %w", err)
	}
	for _, seq := range g.seqs {
		if err := d.o.Bus.Delete(ctx, bus.StreamAlerts, seq); err != nil && !errors.Is(err, bus.ErrNoMessage) {
			return fmt.Errorf("removing what was held: %w", err)
		}
	}
	return nil
}

// states are the first and the last state of each alert, side by side.
func (g *heldGroup) states() [][]*lifeboatv1.Alert {
	var all [][]*lifeboatv1.Alert
	at := map[string]int{}
	for _, one := range g.deliveries {
		for _, a := range one.GetNotification().GetAlerts() {
			i, known := at[a.GetFingerprint()]
			if !known {
				at[a.GetFingerprint()] = len(all)
				all = append(all, []*lifeboatv1.Alert{a})
				continue
			}
			all[i] = append(all[i][:1], a)
		}
	}
	return all
}

// chunks parts them so that each part fits into a message.
func chunks(states [][]*lifeboatv1.Alert) [][]*lifeboatv1.Alert {
	var out [][]*lifeboatv1.Alert
	size := maxBack
	for _, one := range states {
		s := 0
		for _, a := range one {
			s += proto.Size(a)
		}
		if size+s > maxBack {
			out, size = append(out, nil), 0
		}
		size += s
		out[len(out)-1] = append(out[len(out)-1], one...)
	}
	return out
}

// forget deletes the states of groups that are over. One that is written meanwhile is another message, and stays.
func (d *Deliverer) forget(ctx context.Context, now time.Time) error {
	return d.o.Bus.ScanFrom(ctx, bus.StreamAlerts, bus.GroupSubject("*", "*"), 1, func(m *bus.Message) error {
		g := &lifeboatv1.Group{}
		if err := bus.Decode(m.Data, g); err != nil {
			d.o.Logger.ErrorContext(ctx, "the state of a group cannot be read", slog.String("subject", m.Subject), slog.Any("err", err))
		} else if !over(g, now.Sub(m.Stored)) {
			return nil
		}
		if err := d.o.Bus.Delete(ctx, bus.StreamAlerts, m.Seq); err != nil && !errors.Is(err, bus.ErrNoMessage) {
			return fmt.Errorf("forgetting a group: %w", err)
		}
		return nil
	})
}

func over(g *lifeboatv1.Group, age time.Duration) bool {
	if age >= forgetSilent {
		return true
	}
	for _, a := range g.GetAlerts() {
		if a.GetToldStatus() == firing || a.GetStatus() == firing {
			return false
		}
	}
	return age >= forgetResolved
}

// measure sets the gauges of what waits and of what may still be sent.
func (d *Deliverer) measure(ctx context.Context, c *compiled, waiting map[string]uint64) {
	now, m := d.o.Now(), d.metrics
	budgets := map[string]budget.Shown{}
	for _, r := range c.cfg.Notifier.Receivers {
		subjects := []string{bus.CriticalSubject(r.Name), bus.DeliverySubject(r.Name)}
		n, oldest := uint64(0), time.Duration(0)
		for _, s := range subjects {
			if waiting[s] == 0 {
				continue
			}
			n += waiting[s]
			if first, err := d.o.Bus.First(ctx, bus.StreamAlerts, s); err == nil {
				oldest = max(oldest, now.Sub(first.Stored))
			}
		}
		m.waiting.WithLabelValues(r.Name).Set(float64(n))
		m.oldest.WithLabelValues(r.Name).Set(oldest.Seconds())
		m.held.WithLabelValues(r.Name).Set(float64(waiting[bus.HeldSubject(r.Name)]))
		if b, ok := d.shown(ctx, c, r); ok {
			budgets[r.Name] = b
		}
	}
	d.o.Budgets.Show(budgets)
}

// shown measures how long a receiver is left alone, and says which budget is its.
func (d *Deliverer) shown(ctx context.Context, c *compiled, r config.Receiver) (budget.Shown, bool) {
	rule := budget.RuleOf(r.Limit)
	key, err := c.senders[r.Name].Key()
	if err != nil {
		return budget.Shown{}, false // it is said where a message is to be sent
	}
	if state, err := d.o.Budgets.State(ctx, key, rule); err == nil {
		d.metrics.paused.WithLabelValues(r.Name).Set(max(state.PausedUntil.Sub(d.o.Now()), 0).Seconds())
	}
	return budget.Shown{Key: key, Rule: rule}, true
}
