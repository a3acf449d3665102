// Package canary proves on a schedule that each receiver works: it sends a message through the whole way that an alert takes, and
// says when that was not delivered.
//
// What is known of a canary is only in the audit log, so that it survives a restart and is the same in every replica:
//
//	canary.sent.<receiver>       it is in the stream of alerts, at this sequence
//	alert.delivered, alert.dead  what the queue says about it; its delivery_id begins with the name that the sequence gives it
//	canary.delivered.<receiver>  the receiver's chat took it
//	canary.late.<receiver>       10 minutes have passed, or it became a dead letter; once, until one is delivered again
//
// Every replica does everything. Two that see the same tick publish notifications of the same id, and the stream keeps one; the same
// holds for the events. A replica that comes to a tick later than a minute after it does nothing, because the stream remembers ids for a
// few minutes only; the next tick will do.
package canary

import (
	"context"
	"fmt"
	"log/slog"
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/promauto"
	"go.opentelemetry.io/otel/trace"
	"golang.org/x/sync/errgroup"

	"github.com/lifeboat-fleet/lifeboat/fleet/bus"
	"github.com/lifeboat-fleet/lifeboat/fleet/config"
	"github.com/lifeboat-fleet/lifeboat/fleet/tracing"
	lifeboatv1 "github.com/lifeboat-fleet/lifeboat/proto/lifeboat/v1"
)

const (
	// lateAfter is how long a canary may take: longer than a robot that was too fast is blocked is long enough to worry.
	lateAfter = 10 * time.Minute
	// grace is how long after its tick a canary may still be published. It is well below the time for which the stream knows ids.
	grace = time.Minute
	// recheck is how often the clock is read at least: it may be set, and a machine may have slept.
	recheck = 30 * time.Second
	// again is how long after an error it is tried again.
	again = 5 * time.Second
)

// Bus is what this package needs of it.
type Bus interface {
	Follow(ctx context.Context, f bus.Follower) error
	// Publish returns the sequence of the message that has the id, whoever published it.
	Publish(ctx context.Context, o bus.Outgoing) (seq uint64, err error)
	Emit(ctx context.Context, e *lifeboatv1.Event) error
	History(ctx context.Context, stream string, filters []string, since time.Time, each func(*bus.Message) error) error
}

// Options of Canaries.
type Options struct {
	Bus Bus
	// Config is the configuration in force; Changed gets a value when that is another one.
	Config     func() *config.Config
	Changed    <-chan struct{}
	Logger     *slog.Logger
	Registerer prometheus.Registerer
	Now        func() time.Time
}

// Canaries sends them and follows what becomes of them.
type Canaries struct {
	o       Options
	metrics *metrics

	mu    sync.Mutex
	state *state

	// times are the receivers' schedules, as the loop of Run knows them.
	times map[string]*timetable
	seen  *config.Config
}

// New makes it; Run starts it.
func New(o Options) *Canaries {
	return &Canaries{o: o, metrics: newMetrics(o.Registerer), state: newState(), times: map[string]*timetable{}}
}

type metrics struct {
	delivered *prometheus.GaugeVec
	sent      *prometheus.GaugeVec
	late      *prometheus.GaugeVec
}

func newMetrics(reg prometheus.Registerer) *metrics {
	f := promauto.With(reg)
	return &metrics{
		delivered: f.NewGaugeVec(prometheus.GaugeOpts{
			Name: "lifeboat_canary_delivered_timestamp_seconds", Help: "When a receiver's chat last took a canary.",
		}, []string{"receiver"}),
		sent: f.NewGaugeVec(prometheus.GaugeOpts{
			Name: "lifeboat_canary_sent_timestamp_seconds", Help: "The tick of a receiver's last canary that was sent.",
		}, []string{"receiver"}),
		late: f.NewGaugeVec(prometheus.GaugeOpts{
			Name: "lifeboat_canary_late", Help: "1 while a receiver's canary was not delivered in time.",
		}, []string{"receiver"}),
	}
}

// Run sends and follows until the context ends.
func (c *Canaries) Run(ctx context.Context) error {
	news := make(chan struct{}, 1)
	caughtUp := make(chan struct{})
	g, ctx := errgroup.WithContext(ctx)
	g.Go(func() error {
		return c.o.Bus.Follow(ctx, bus.Follower{
			Stream: bus.StreamEvents, Filters: filters(),
			Message: func(ctx context.Context, m *bus.Message) {
				if c.take(ctx, m) {
					select {
					case news <- struct{}{}:
					default:
					}
				}
			},
			Reset: func() {
				c.mu.Lock()
				defer c.mu.Unlock()
				c.state = newState()
			},
			CaughtUp: func() { close(caughtUp) },
		})
	})
	g.Go(func() error {
		// Nothing is said before all last events have been seen: what was sent may have been delivered.
		select {
		case <-caughtUp:
			c.loop(ctx, news)
		case <-ctx.Done():
		}
		return nil
	})
	return g.Wait()
}

func (c *Canaries) loop(ctx context.Context, news <-chan struct{}) {
	// Canaries that were due while this process started are still sent.
	c.replan(ctx, c.o.Now().Add(-grace))
	for {
		timer := time.NewTimer(c.step(ctx))
		select {
		case <-timer.C:
		case <-news:
		case <-c.o.Changed:
		case <-ctx.Done():
			timer.Stop()
			return
		}
		timer.Stop()
		c.replan(ctx, c.o.Now())
	}
}

// step does what is due, and returns how long nothing will be.
func (c *Canaries) step(ctx context.Context) time.Duration {
	wait := recheck
	sooner := func(d time.Duration) { wait = max(min(wait, d), time.Millisecond) }
	now := c.o.Now()
	for name, t := range c.times {
		if err := c.send(ctx, t, now); err != nil && ctx.Err() == nil {
			c.o.Logger.WarnContext(ctx, "could not send a canary; trying again", slog.String("receiver", name), slog.Any("err", err))
			sooner(again)
		}
		sooner(t.wait(now))
	}
	if err := c.tell(ctx, now); err != nil && ctx.Err() == nil {
		c.o.Logger.WarnContext(ctx, "could not record what became of canaries; trying again", slog.Any("err", err))
		sooner(again)
	}
	c.mu.Lock()
	due := c.state.nextLate()
	c.mu.Unlock()
	if due.After(now) {
		sooner(due.Sub(now))
	}
	c.show()
	return wait
}

// send publishes the canary of the newest tick that has come, unless it was sent already.
func (c *Canaries) send(ctx context.Context, t *timetable, now time.Time) error {
	name := t.receiver.Name
	tick, missed := t.due(now)
	if missed {
		c.o.Logger.WarnContext(ctx, "a canary was missed: nobody could send it at its time", slog.String("receiver", name))
	}
	if tick.IsZero() {
		return nil
	}
	c.mu.Lock()
	known := c.state.knows(name, tick)
	c.mu.Unlock()
	if !known {
		n := notification(t.receiver, tick, now)
		var span trace.Span
		ctx, span = tracing.Start(tracing.Note(ctx, slog.String("receiver", name)), "canary")
		defer span.End()
		seq, err := c.o.Bus.Publish(ctx, bus.Outgoing{Subject: bus.SubjectReceived, Message: n, ID: n.GetId()})
		if err != nil {
			return fmt.Errorf("publishing canary %s: %w", n.GetId(), err)
		}
		if err = c.o.Bus.Emit(ctx, sentEvent(name, tick, seq)); err != nil {
			return fmt.Errorf("recording canary %s: %w", n.GetId(), err)
		}
	}
	t.last = tick
	return nil
}

// tell emits the events that the log lacks.
func (c *Canaries) tell(ctx context.Context, now time.Time) error {
	c.mu.Lock()
	since := c.state.doubt(now, c.watches)
	c.mu.Unlock()
	if !since.IsZero() {
		// While nobody followed, or before the canary's own event was there, its outcome may have passed by.
		err := c.o.Bus.History(ctx, bus.StreamEvents, outcomes(), since, func(m *bus.Message) error {
			c.take(ctx, m)
			return nil
		})
		if err != nil {
			return fmt.Errorf("looking for what became of a canary: %w", err)
		}
	}
	c.mu.Lock()
	words := c.state.words(now, c.watches)
	c.mu.Unlock()
	for _, e := range words {
		if err := c.o.Bus.Emit(ctx, e); err != nil {
			return fmt.Errorf("recording that the canary of receiver %s is %s: %w", e.GetTarget(), e.GetVerb(), err)
		}
	}
	return nil
}

// watches says whether a receiver has a canary.
func (c *Canaries) watches(receiver string) bool { return c.times[receiver] != nil }

func (c *Canaries) take(ctx context.Context, m *bus.Message) (news bool) {
	e := &lifeboatv1.Event{}
	if err := bus.Decode(m.Data, e); err != nil {
		c.o.Logger.WarnContext(ctx, "skipping an event that cannot be read", slog.String("subject", m.Subject), slog.Any("err", err))
		return false
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.state.apply(m.Seq, m.Stored, e)
}

// show sets the metrics, of configured canaries only.
func (c *Canaries) show() {
	c.mu.Lock()
	defer c.mu.Unlock()
	for name := range c.times {
		b := c.state.birds[name]
		if b == nil {
			continue
		}
		if !b.deliveredAt.IsZero() {
			c.metrics.delivered.WithLabelValues(name).Set(float64(b.deliveredAt.Unix()))
		}
		if !b.sent.IsZero() {
			c.metrics.sent.WithLabelValues(name).Set(float64(b.sent.Unix()))
		}
		late := 0.0
		if b.isLate() {
			late = 1
		}
		c.metrics.late.WithLabelValues(name).Set(late)
	}
}
