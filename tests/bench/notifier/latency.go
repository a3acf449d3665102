package main

import (
	"context"
	"fmt"
	"strings"
	"sync"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"

	"github.com/lifeboat-fleet/lifeboat/fleet/bus"
	"github.com/lifeboat-fleet/lifeboat/fleet/fleettest/chattest"
	"github.com/lifeboat-fleet/lifeboat/tests/bench/internal/testbed"
)

// arrivals are when the messages of named alerts came to the chat.
type arrivals struct {
	mu    sync.Mutex
	want  map[string]chan time.Time
	clock func() time.Time
}

func newArrivals() *arrivals { return &arrivals{want: map[string]chan time.Time{}, clock: time.Now} }

// expect gives a channel that is told when an alert's message comes. Names have the same length, and none begins another.
func (a *arrivals) expect(name string) <-chan time.Time {
	c := make(chan time.Time, 1)
	a.mu.Lock()
	defer a.mu.Unlock()
	a.want[name] = c
	return c
}

func (a *arrivals) arrived(m chattest.Message) {
	now := a.clock()
	for word := range strings.FieldsSeq(m.Title) {
		a.mu.Lock()
		c := a.want[word]
		delete(a.want, word)
		a.mu.Unlock()
		if c != nil {
			c <- now
			return
		}
	}
}

// way posts one webhook and gives how long it took to the chat.
func (b *bench) way(ctx context.Context, n *notifier, a *arrivals, i int) (time.Duration, error) {
	name := fmt.Sprintf("Way%08d", i)
	body := b.webhook(name, "warning", b.alerts)
	came := a.expect(name)
	begun := time.Now()
	if err := n.post(ctx, body); err != nil {
		return 0, err
	}
	select {
	case at := <-came:
		return at.Sub(begun), nil
	case <-time.After(patience):
		return 0, fmt.Errorf("the message of %s did not come", name)
	case <-ctx.Done():
		return 0, ctx.Err()
	}
}

// latency measures the way of one webhook, and that of one raw message, in turn.
func (b *bench) latency(ctx context.Context, f *figures) error {
	a := newArrivals()
	n, err := b.start(ctx, free, chattest.Options{NoLimits: true, Keep: 1, OnMessage: a.arrived})
	if err != nil {
		return err
	}
	defer n.stop() //nolint:contextcheck // it must end also when the context has
	if err = b.makeRaw(ctx); err != nil {
		return err
	}
	handled, stop, err := b.rawHandler(ctx)
	if err != nil {
		return err
	}
	defer stop()
	var ratios []float64
	for i := range b.rounds {
		var ways, raws []time.Duration
		for j := range b.singles {
			way, err := b.way(ctx, n, a, i*b.singles+j)
			if err != nil {
				return err
			}
			ways = append(ways, way)
		}
		for range b.singles {
			body := b.webhook("Raw", "warning", b.alerts)
			begun := time.Now()
			if _, err := b.JetStream.Publish(ctx, rawSubject, body); err != nil {
				return err
			}
			raws = append(raws, (<-handled).Sub(begun))
		}
		fmt.Fprintf(b.Out, "round %d: webhook to chat p50 %.2f ms, p99 %.2f ms; raw publish to handler p50 %.3f ms, p99 %.3f ms\n", i+1,
			ms(quantile(ways, 0.5)), ms(quantile(ways, 0.99)), ms(quantile(raws, 0.5)), ms(quantile(raws, 0.99)))
		ratios = append(ratios, float64(quantile(ways, 0.5))/float64(quantile(raws, 0.5)))
	}
	fmt.Fprintf(b.Out, "ratios of the rounds: %.1f\n", ratios)
	f.Latency = testbed.Median(ratios)
	return nil
}

// rawHandler consumes the raw messages on a connection of its own, one at a time as the notifier does, and tells when it got each.
func (b *bench) rawHandler(ctx context.Context) (handled <-chan time.Time, stop func(), err error) {
	nc, err := nats.Connect(b.NATS.URL)
	if err != nil {
		return nil, nil, err
	}
	js, err := jetstream.New(nc)
	if err != nil {
		nc.Close()
		return nil, nil, err
	}
	theirs, err := b.JetStream.Consumer(ctx, bus.StreamAlerts, "notifier-route")
	if err != nil {
		nc.Close()
		return nil, nil, err
	}
	settings := theirs.CachedInfo().Config
	settings.Durable, settings.Name, settings.FilterSubject = "raw", "raw", rawSubject
	cons, err := js.CreateOrUpdateConsumer(ctx, rawStream, settings)
	if err != nil {
		nc.Close()
		return nil, nil, fmt.Errorf("making the raw consumer: %w", err)
	}
	out := make(chan time.Time, 1)
	running, err := cons.Consume(func(m jetstream.Msg) {
		out <- time.Now()
		_ = m.Ack() // it would come again, and be seen
	}, jetstream.PullMaxMessages(1))
	if err != nil {
		nc.Close()
		return nil, nil, err
	}
	return out, func() { running.Stop(); nc.Close() }, nil
}

// underLoad measures the ways of webhooks that come at a rate, whether the ones before have arrived or not.
func (b *bench) underLoad(ctx context.Context, f *figures) error {
	a := newArrivals()
	n, err := b.start(ctx, free, chattest.Options{NoLimits: true, Keep: 1, OnMessage: a.arrived})
	if err != nil {
		return err
	}
	defer n.stop() //nolint:contextcheck // it must end also when the context has
	var spreads []float64
	made := 0
	for i := range b.rounds {
		ways, err := b.flood(ctx, n, a, &made)
		if err != nil {
			return err
		}
		p50, p99 := quantile(ways, 0.5), quantile(ways, 0.99)
		fmt.Fprintf(b.Out, "round %d: %d webhooks at %d/s to chat: p50 %.2f ms, p99 %.2f ms, most %.2f ms\n", i+1, len(ways), b.rate, ms(p50), ms(p99), ms(quantile(ways, 1)))
		spreads = append(spreads, float64(p99)/float64(p50))
	}
	fmt.Fprintf(b.Out, "p99/p50 of the rounds: %.1f\n", spreads)
	f.Spread = testbed.Median(spreads)
	return nil
}

func (b *bench) flood(ctx context.Context, n *notifier, a *arrivals, made *int) ([]time.Duration, error) {
	total := int(b.load.Seconds() * float64(b.rate))
	ways := make([]time.Duration, total)
	errs := make([]error, total)
	var wg sync.WaitGroup
	tick := time.NewTicker(time.Second / time.Duration(b.rate))
	defer tick.Stop()
	for i := range total {
		select {
		case <-tick.C:
		case <-ctx.Done():
			return nil, ctx.Err()
		}
		id := *made
		*made++
		wg.Go(func() { ways[i], errs[i] = b.way(ctx, n, a, id) })
	}
	wg.Wait()
	for _, err := range errs {
		if err != nil {
			return nil, err
		}
	}
	return ways, nil
}
