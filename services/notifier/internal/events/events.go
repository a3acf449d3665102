// Package events makes the fleet's own events into notifications, those that notifier.events names: that a drill passed is worth a
// line in a channel, though nothing fires.
//
// It reads the audit log by one durable consumer that all notifiers share. An event is acknowledged after its notification is stored,
// so none is lost while no notifier runs, and a crash between the two stores the same notification again, under the same id.
package events

import (
	"context"
	"fmt"
	"log/slog"
	"slices"
	"strings"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/promauto"

	"github.com/lifeboat-fleet/lifeboat/fleet/bus"
	"github.com/lifeboat-fleet/lifeboat/fleet/config"
	lifeboatv1 "github.com/lifeboat-fleet/lifeboat/proto/lifeboat/v1"
)

const (
	// Durable is the consumer's name on the stream of events.
	Durable = "notifier-events"
	ackWait = 30 * time.Second
	// grace is how long an event that is being stored may take after a stop.
	grace = 10 * time.Second
	// deleteTimeout is how long a stop may wait for it.
	deleteTimeout = 5 * time.Second
)

// Bus is what this package needs of it.
type Bus interface {
	// Consume works messages off until the context ends.
	Consume(ctx context.Context, c bus.Consumer) error
	// Publish stores a message durably; one whose ID is stored already is no error.
	Publish(ctx context.Context, o bus.Outgoing) (seq uint64, err error)
	// DeleteConsumer forgets how far a consumer has come; one that is not there is no error.
	DeleteConsumer(ctx context.Context, stream, durable string) error
}

// Options of Events.
type Options struct {
	Bus Bus
	// Config is the configuration in force; Changed gets a value when that is another one.
	Config     func() *config.Config
	Changed    <-chan struct{}
	Logger     *slog.Logger
	Registerer prometheus.Registerer
	Now        func() time.Time
}

// Events routes events.
type Events struct {
	o     Options
	taken *prometheus.CounterVec
}

// New makes it; Run starts it.
func New(o Options) *Events {
	return &Events{o: o, taken: promauto.With(o.Registerer).NewCounterVec(prometheus.CounterOpts{
		Name: "lifeboat_routed_events_total", Help: "The fleet's own events that were handed to the routes, by event (noun.verb).",
	}, []string{"event"})}
}

// Run takes events until the context ends. An error means that it can never work, such as a permission that is missing.
func (e *Events) Run(ctx context.Context) error {
	for ctx.Err() == nil {
		subjects := e.subjects(ctx)
		if err := e.until(ctx, subjects); err != nil && ctx.Err() == nil {
			return fmt.Errorf("routing events: %w", err)
		}
	}
	return nil
}

// until takes the events of these subjects, until the configuration names other ones.
func (e *Events) until(ctx context.Context, subjects []string) error {
	ctx, cancel := context.WithCancel(ctx)
	watched := make(chan struct{})
	go func() {
		defer close(watched)
		defer cancel()
		for {
			select {
			case <-ctx.Done():
				return
			case <-e.o.Changed:
				if !slices.Equal(subjects, e.subjects(ctx)) {
					return
				}
			}
		}
	}()
	defer func() {
		cancel()
		<-watched
	}()
	if len(subjects) == 0 {
		e.forget(ctx)
		<-ctx.Done()
		return nil
	}
	return e.o.Bus.Consume(ctx, bus.Consumer{
		Stream: bus.StreamEvents, Durable: Durable, Filter: subjects[0], Also: subjects[1:], OnlyNew: true,
		AckWait: ackWait, Grace: grace, Handle: e.handle,
	})
}

// forget removes the consumer: events that happen while none are named must not come all at once when some are named again.
func (e *Events) forget(ctx context.Context) {
	backoff := bus.Exponential(time.Second, time.Minute)
	for attempt := int64(1); ; attempt++ {
		err := e.delete(ctx)
		if err == nil || ctx.Err() != nil {
			return
		}
		e.o.Logger.WarnContext(ctx, "could not remove the consumer of events, trying again", slog.Any("err", err))
		timer := time.NewTimer(backoff(attempt))
		select {
		case <-ctx.Done():
			timer.Stop()
			return
		case <-timer.C:
		}
	}
}

// delete waits for the answer, whatever happens meanwhile: a consumer that is made while the server still removes the one of the same name
// inherits how far that had come.
func (e *Events) delete(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), deleteTimeout)
	defer cancel()
	return e.o.Bus.DeleteConsumer(ctx, bus.StreamEvents, Durable)
}

// subjects are those of the events that are named, sorted, without those that another one has in it: the server refuses filters that
// overlap.
func (e *Events) subjects(ctx context.Context) []string {
	named := e.o.Config().Notifier.Events
	var out []string
	for _, pattern := range named {
		noun, verb, _ := strings.Cut(pattern, ".")
		switch {
		case never(noun):
			e.o.Logger.WarnContext(ctx, "events about alerts and the configuration are not routed", slog.String("event", pattern))
		case verb == "*" || !slices.Contains(named, noun+".*"):
			out = append(out, bus.EventSubject(noun, verb, "*"))
		}
	}
	slices.Sort(out)
	return slices.Compact(out)
}

// never are the events that deliveries themselves make, and those of a configuration that may be the reason for them.
func never(noun string) bool { return noun == "alert" || noun == "config" }

func (e *Events) handle(ctx context.Context, m *bus.Message) error {
	ev := &lifeboatv1.Event{}
	if err := bus.Decode(m.Data, ev); err != nil {
		return bus.Terminal("event_malformed", fmt.Errorf("reading the event: %w", err))
	}
	complete(ev, m)
	if never(ev.GetNoun()) {
		return nil
	}
	n := notification(ev, e.o.Now())
	if _, err := e.o.Bus.Publish(ctx, bus.Outgoing{Subject: bus.SubjectReceived, Message: n, ID: n.GetId()}); err != nil {
		return fmt.Errorf("handing event %s to the routes: %w", ev.GetId(), err)
	}
	e.taken.WithLabelValues(ev.GetNoun() + "." + ev.GetVerb()).Inc()
	return nil
}
