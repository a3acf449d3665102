package deliver

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"strings"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/lifeboat-fleet/lifeboat/fleet/bus"
	"github.com/lifeboat-fleet/lifeboat/fleet/config"
)

// Run routes and delivers until the context ends.
func (d *Deliverer) Run(ctx context.Context) error {
	g, ctx := errgroup.WithContext(ctx)
	g.Go(func() error {
		return d.o.Bus.Consume(ctx, bus.Consumer{
			Stream: bus.StreamAlerts, Durable: "notifier-route", Filter: bus.SubjectReceived, AckWait: ackWait,
			Backoff: bus.Exponential(time.Second, time.Minute), Handle: d.route, OnDead: d.dead,
		})
	})
	g.Go(func() error { return d.supervise(ctx) })
	g.Go(func() error { return d.sweep(ctx) })
	return g.Wait()
}

// supervise keeps one consumer for each receiver that is configured and for each that still has deliveries which nobody takes. The one
// of a receiver that is not configured puts its deliveries into the dead letters, where they are seen, when no other notifier has taken
// them for unknownFor; it keeps running because a message that is being routed now may still arrive.
func (d *Deliverer) supervise(ctx context.Context) error {
	ctx, cancel := context.WithCancel(ctx)
	failed := make(chan error, 1)
	running := map[string]*worker{}
	defer func() {
		cancel()
		for _, w := range running {
			w.stop()
		}
	}()
	ticker := time.NewTicker(relist)
	defer ticker.Stop()
	for {
		d.ensure(ctx, running, failed)
		select {
		case <-ctx.Done():
			return nil
		case err := <-failed:
			return err
		case <-d.o.Changed:
		case <-ticker.C:
		}
	}
}

// worker is the consumer of one receiver.
type worker struct {
	cancel context.CancelFunc
	done   chan struct{}
}

func (w *worker) stop() {
	w.cancel()
	<-w.done
}

// ensure starts what is missing.
func (d *Deliverer) ensure(ctx context.Context, running map[string]*worker, failed chan<- error) {
	for _, name := range d.receivers(ctx, d.o.Config()) {
		if running[name] == nil {
			running[name] = d.start(ctx, name, failed)
		}
	}
}

// receivers are those of the configuration, and those of the stream whose oldest delivery nobody takes: a notifier with a newer
// configuration takes its own, and is not to share them with one that can only give them back.
func (d *Deliverer) receivers(ctx context.Context, cfg *config.Config) []string {
	names := make([]string, 0, len(cfg.Notifier.Receivers))
	for _, r := range cfg.Notifier.Receivers {
		names = append(names, r.Name)
	}
	subjects, err := d.o.Bus.Subjects(ctx, bus.StreamAlerts, bus.DeliverySubject(">"))
	if err != nil {
		if ctx.Err() == nil {
			d.o.Logger.WarnContext(ctx, "could not list waiting deliveries; will look again", slog.Any("err", err))
		}
		return names
	}
	for subject := range subjects {
		name := strings.TrimSuffix(strings.TrimPrefix(subject, bus.DeliverySubject("")), ".critical")
		if !config.ValidName(name) {
			d.o.Logger.ErrorContext(ctx, "deliveries wait for what cannot be a receiver", slog.String("subject", subject))
			continue
		}
		if !slices.Contains(names, name) && d.orphaned(ctx, name, subject) {
			names = append(names, name)
		}
	}
	return names
}

// orphaned says whether the oldest delivery of a subject has waited for so long that no other notifier takes it.
func (d *Deliverer) orphaned(ctx context.Context, name, subject string) bool {
	c, err := d.current()
	if err != nil {
		return false // whoever routes says so
	}
	m, err := d.o.Bus.First(ctx, bus.StreamAlerts, subject)
	switch {
	case err == nil:
		return c.orphaned(name, m.Stored, d.o.Now())
	case !errors.Is(err, bus.ErrNoMessage) && ctx.Err() == nil:
		d.o.Logger.WarnContext(ctx, "could not look at waiting deliveries; will look again", slog.String("subject", subject), slog.Any("err", err))
	}
	return false
}

func (d *Deliverer) start(ctx context.Context, name string, failed chan<- error) *worker {
	ctx, cancel := context.WithCancel(ctx)
	w := &worker{cancel: cancel, done: make(chan struct{})}
	q := &queue{d: d, name: name, edits: newEdits(d, name)}
	edited := make(chan struct{})
	go func() {
		defer close(edited)
		q.edits.run(ctx)
	}()
	go func() {
		defer close(w.done)
		defer func() { <-edited }()
		err := d.o.Bus.Consume(ctx, bus.Consumer{
			Stream: bus.StreamAlerts, Durable: "deliver-" + name, Filter: bus.DeliverySubject(name), Also: []string{bus.CriticalSubject(name)},
			// Who holds the head owns the queue (doc.go).
			Ordered: true, AckWait: ackWait,
			// The queue itself waits for the chat. What comes back here has failed at NATS.
			Backoff: bus.Exponential(200*time.Millisecond, 10*time.Second),
			Handle:  q.handle, OnDead: d.dead,
		})
		if err != nil {
			select {
			case failed <- fmt.Errorf("receiver %s: %w", name, err):
			default:
			}
		}
	}()
	return w
}
