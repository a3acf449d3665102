package deliver

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"slices"
	"strings"
	"time"

	"github.com/prometheus/client_golang/prometheus"

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
	waiting, err := d.o.Bus.Subjects(ctx, bus.StreamAlerts, bus.DeliverySubject(">"))
	if err != nil {
		return err
	}
	held, err := d.o.Bus.Subjects(ctx, bus.StreamAlerts, bus.HeldSubject(">"))
	if err != nil {
		return err
	}
	maps.Copy(waiting, held)
	c, err := d.current()
	if err != nil {
		return err
	}
	d.measure(ctx, c, waiting)
	var errs []error
	for subject := range held {
		errs = append(errs, d.release(ctx, c, strings.TrimPrefix(subject, bus.HeldSubject(""))))
	}
	if now := d.o.Now(); now.Sub(*forgot) >= forgetEvery {
		*forgot = now
		errs = append(errs, d.forget(ctx, now))
	}
	return errors.Join(errs...)
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
	if len(g.GetHandedTo())+len(g.GetHandedMore()) > 0 {
		return false
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
	d.forgetRemoved(c)
	budgets := map[string]budget.Shown{}
	for _, r := range c.cfg.Notifier.Receivers {
		subjects := []string{bus.CriticalSubject(r.Name), bus.DeliverySubject(r.Name)}
		n, oldest, known := uint64(0), time.Duration(0), true
		d.measured[r.Name] = true
		for _, s := range subjects {
			if waiting[s] == 0 {
				continue
			}
			n += waiting[s]
			first, err := d.o.Bus.First(ctx, bus.StreamAlerts, s)
			switch {
			case err == nil:
				oldest = max(oldest, now.Sub(first.Stored))
			case !errors.Is(err, bus.ErrNoMessage): // else it was delivered meanwhile
				known = false
			}
		}
		m.waiting.WithLabelValues(r.Name).Set(float64(n))
		if known { // else it stays what it was: 0 would say that nothing waits
			m.oldest.WithLabelValues(r.Name).Set(oldest.Seconds())
		}
		m.held.WithLabelValues(r.Name).Set(float64(waiting[bus.HeldSubject(r.Name)]))
		if b, ok := d.shown(ctx, c, r); ok {
			budgets[r.Name] = b
		}
	}
	d.o.Budgets.Show(budgets)
}

// forgetRemoved takes the gauges of receivers back that a reload has removed.
func (d *Deliverer) forgetRemoved(c *compiled) {
	m := d.metrics
	for name := range d.measured {
		if slices.ContainsFunc(c.cfg.Notifier.Receivers, func(r config.Receiver) bool { return r.Name == name }) {
			continue
		}
		for _, g := range []*prometheus.GaugeVec{m.waiting, m.oldest, m.paused, m.held} {
			g.DeleteLabelValues(name)
		}
		delete(d.measured, name)
	}
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
