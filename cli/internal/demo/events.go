package demo

import (
	"context"
	"fmt"
	"sync"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"

	"github.com/lifeboat-fleet/lifeboat/fleet/bus"
	lifeboatv1 "github.com/lifeboat-fleet/lifeboat/proto/lifeboat/v1"
)

// events follows the audit log from its beginning and keeps what it saw.
type events struct {
	nc *nats.Conn
	cc jetstream.ConsumeContext

	mu   sync.Mutex
	all  []*lifeboatv1.Event
	more chan struct{} // closed and replaced when an event comes
}

func follow(ctx context.Context, url string) (*events, error) {
	nc, err := nats.Connect(url)
	if err != nil {
		return nil, fmt.Errorf("connecting to NATS: %w", err)
	}
	e := &events{nc: nc, more: make(chan struct{})}
	js, err := jetstream.New(nc)
	if err != nil {
		nc.Close()
		return nil, fmt.Errorf("opening JetStream: %w", err)
	}
	cons, err := consumer(ctx, js)
	if err == nil {
		e.cc, err = cons.Consume(e.add)
	}
	if err != nil {
		nc.Close()
		return nil, fmt.Errorf("following the events: %w", err)
	}
	return e, nil
}

// consumer waits for the stream, which the services create when they start.
func consumer(ctx context.Context, js jetstream.JetStream) (jetstream.Consumer, error) {
	tick := time.NewTicker(50 * time.Millisecond)
	defer tick.Stop()
	for {
		cons, err := js.OrderedConsumer(ctx, bus.StreamEvents, jetstream.OrderedConsumerConfig{})
		if err == nil {
			return cons, nil
		}
		select {
		case <-ctx.Done():
			return nil, err
		case <-tick.C:
		}
	}
}

func (e *events) add(m jetstream.Msg) {
	ev := &lifeboatv1.Event{}
	if err := bus.Decode(m.Data(), ev); err != nil {
		ev = &lifeboatv1.Event{Noun: "undecodable", Message: err.Error()}
	}
	e.mu.Lock()
	defer e.mu.Unlock()
	e.all = append(e.all, ev)
	close(e.more)
	e.more = make(chan struct{})
}

// wait returns the first event that fits, past or to come.
func (e *events) wait(ctx context.Context, what string, fits func(*lifeboatv1.Event) bool) (*lifeboatv1.Event, error) {
	seen := 0
	for {
		e.mu.Lock()
		fresh, more := e.all[seen:], e.more
		seen = len(e.all)
		e.mu.Unlock()
		for _, ev := range fresh {
			if fits(ev) {
				return ev, nil
			}
		}
		select {
		case <-more:
		case <-ctx.Done():
			return nil, fmt.Errorf("waiting for %s: %w", what, ctx.Err())
		}
	}
}

func (e *events) count(noun, verb string) int {
	e.mu.Lock()
	defer e.mu.Unlock()
	n := 0
	for _, ev := range e.all {
		if ev.GetNoun() == noun && ev.GetVerb() == verb {
			n++
		}
	}
	return n
}

// publishJob publishes an empty payload, as `nats pub SUBJECT ”` does, again while the stream refuses it because a job
// of the subject waits or runs.
func (e *events) publishJob(ctx context.Context, subject string) error {
	js, err := jetstream.New(e.nc)
	if err != nil {
		return fmt.Errorf("opening JetStream: %w", err)
	}
	tick := time.NewTicker(100 * time.Millisecond)
	defer tick.Stop()
	for {
		_, err := js.Publish(ctx, subject, nil)
		if err == nil {
			return nil
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("publishing %s: %w", subject, err)
		case <-tick.C:
		}
	}
}

func (e *events) close() {
	e.cc.Stop()
	e.nc.Close()
}
