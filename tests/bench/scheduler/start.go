package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"sync"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"

	"github.com/lifeboat-fleet/lifeboat/fleet/bus"
	"github.com/lifeboat-fleet/lifeboat/fleet/config"
	"github.com/lifeboat-fleet/lifeboat/fleet/fleettest/bintest"
	lifeboatv1 "github.com/lifeboat-fleet/lifeboat/proto/lifeboat/v1"
	"github.com/lifeboat-fleet/lifeboat/tests/bench/internal/testbed"
)

// The raw side of a job's way: a stream and a consumer of it with the settings of the jobs'.
const (
	rawStream  = "BENCH_RAW"
	rawDurable = "raw"
	rawSubject = "bench.raw.job"
	// What the handler says that it began.
	rawBegun = "bench.raw.begun"
)

// start measures the way of a job to a worker, and that of a message to a handler, in turn. The job is a verification of a bucket
// without a snapshot.
func (b *bench) start(ctx context.Context, f *figures) error {
	t, err := b.NewTarget(b.S3.Endpoint, "consul: {address: 'http://127.0.0.1:8500'}")
	if err != nil {
		return err
	}
	w, err := b.StartWorker(ctx, t, string(config.WorkVerify))
	if err != nil {
		return err
	}
	defer w.Stop()
	// The first thing that the worker does with a job is to ask who had the claim last.
	begun, stop, err := b.moments("$JS.API.DIRECT.GET."+bus.StreamJobs+"."+bus.ClaimSubject(t.Name, config.WorkVerify), always)
	if err != nil {
		return err
	}
	defer stop()
	claimed, stop, err := b.moments(bus.ClaimSubject(t.Name, config.WorkVerify), func(data []byte) (time.Time, bool) {
		claim := &lifeboatv1.ClaimState{}
		running := bus.Decode(data, claim) == nil && claim.GetPhase() == lifeboatv1.ClaimState_PHASE_RUNNING
		return time.Now(), running
	})
	if err != nil {
		return err
	}
	defer stop()
	handled, stop, err := b.moments(rawBegun, func(data []byte) (time.Time, bool) {
		at := time.Time{}
		failed := at.UnmarshalText(data)
		return at, failed == nil
	})
	if err != nil {
		return err
	}
	defer stop()
	seen, stop, err := b.moments(rawBegun, always)
	if err != nil {
		return err
	}
	defer stop()
	stopHandler, err := b.rawHandler(ctx)
	if err != nil {
		return err
	}
	defer stopHandler()
	var ratios []float64
	for i := range b.rounds {
		ways, err := b.ways(ctx, bus.StreamJobs, bus.JobSubject(config.WorkVerify, t.Name), begun, claimed)
		if err != nil {
			return fmt.Errorf("a job's way: %w", err)
		}
		raw, err := b.ways(ctx, rawStream, rawSubject, handled, seen)
		if err != nil {
			return fmt.Errorf("a raw message's way: %w", err)
		}
		handler := ms(quantile(raw[0], 0.5))
		// What is seen of the worker comes the same way back as what is seen of the raw handler.
		back := ms(quantile(raw[1], 0.5)) - handler
		started := ms(quantile(ways[0], 0.5)) - back
		fmt.Fprintf(b.Out, "round %d, p50: job published to handler %.3f ms (its first request seen here after %.3f, its claim after %.3f); "+
			"raw publish to handler %.3f ms (its message seen here after %.3f)\n", i+1, started, ms(quantile(ways[0], 0.5)),
			ms(quantile(ways[1], 0.5)), handler, ms(quantile(raw[1], 0.5)))
		ratios = append(ratios, started/handler)
	}
	fmt.Fprintf(b.Out, "ratios of the rounds: %.2f\n", ratios)
	f.StartRatio = testbed.Median(ratios)
	return nil
}

// moments listens to a subject; at gives the moment that a message tells of, if it does.
func (b *bench) moments(subject string, at func(data []byte) (time.Time, bool)) (<-chan time.Time, func(), error) {
	moments := make(chan time.Time, 100)
	sub, err := b.Conn.Subscribe(subject, func(m *nats.Msg) {
		if t, ok := at(m.Data); ok {
			moments <- t
		}
	})
	if err != nil {
		return nil, nil, fmt.Errorf("listening to %s: %w", subject, err)
	}
	return moments, func() { _ = sub.Unsubscribe() }, nil
}

// always is now.
func always([]byte) (time.Time, bool) { return time.Now(), true }

// rawHandler starts a process that consumes the raw messages as the workers consume jobs.
func (b *bench) rawHandler(ctx context.Context) (stop func(), err error) {
	jobs, err := b.JetStream.Stream(ctx, bus.StreamJobs)
	if err != nil {
		return nil, err
	}
	settings := jobs.CachedInfo().Config
	settings.Name, settings.Subjects = rawStream, []string{rawSubject}
	if _, err = b.JetStream.CreateStream(ctx, settings); err != nil {
		return nil, fmt.Errorf("making the raw stream: %w", err)
	}
	theirs, err := b.JetStream.Consumer(ctx, bus.StreamJobs, "backup-"+string(config.WorkVerify))
	if err != nil {
		return nil, err
	}
	consumer := theirs.CachedInfo().Config
	consumer.Durable, consumer.Name, consumer.FilterSubject = rawDurable, rawDurable, rawSubject
	if _, err = b.JetStream.CreateConsumer(ctx, rawStream, consumer); err != nil {
		return nil, fmt.Errorf("making the raw consumer: %w", err)
	}
	self, err := os.Executable()
	if err != nil {
		return nil, err
	}
	p, err := bintest.Start(self, b.Path("raw.log"), nil, "-handle", b.NATS.URL)
	if err != nil {
		return nil, err
	}
	return func() { _ = p.Stop() }, nil
}

// handle is that process: it says on rawBegun when it got each message, by its clock. It ends with its context.
func handle(ctx context.Context, url string) error {
	nc, err := nats.Connect(url)
	if err != nil {
		return err
	}
	defer nc.Close()
	js, err := jetstream.New(nc)
	if err != nil {
		return err
	}
	c, err := js.Consumer(ctx, rawStream, rawDurable)
	if err != nil {
		return err
	}
	var wg sync.WaitGroup
	defer wg.Wait()
	for range 2 { // as many at once as a worker by default
		it, err := c.Messages(jetstream.PullMaxMessages(1))
		if err != nil {
			return err
		}
		wg.Go(func() {
			defer it.Stop()
			for {
				m, err := it.Next(jetstream.NextContext(ctx))
				if err != nil {
					return
				}
				now := time.Now()
				if nc.Publish(rawBegun, []byte(now.Format(time.RFC3339Nano))) != nil || m.DoubleAck(ctx) != nil {
					return
				}
			}
		})
	}
	return nil
}

// ways times one round of messages, each published when the one before it is done, until each of the moments.
func (b *bench) ways(ctx context.Context, stream, subject string, until ...<-chan time.Time) ([][]time.Duration, error) {
	ctx, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	s, err := b.JetStream.Stream(ctx, stream)
	if err != nil {
		return nil, err
	}
	took := make([][]time.Duration, len(until))
	for range max(b.jobs/b.rounds, 1) {
		for _, c := range until {
			for len(c) > 0 { // of a claim that was looked at again
				<-c
			}
		}
		published := time.Now()
		if _, err = b.JetStream.Publish(ctx, subject, nil); err != nil {
			return nil, fmt.Errorf("publishing to %s: %w", subject, err)
		}
		for i, c := range until {
			select {
			case at := <-c:
				took[i] = append(took[i], at.Sub(published))
			case <-time.After(time.Minute):
				return nil, fmt.Errorf("nobody began with %s within a minute", subject)
			case <-ctx.Done():
				return nil, ctx.Err()
			}
		}
		if err = gone(ctx, s, subject); err != nil {
			return nil, err
		}
	}
	return took, nil
}

// gone waits until a message was worked off.
func gone(ctx context.Context, s jetstream.Stream, subject string) error {
	tick := time.NewTicker(5 * time.Millisecond)
	defer tick.Stop()
	for {
		_, err := s.GetLastMsgForSubject(ctx, subject)
		if errors.Is(err, jetstream.ErrMsgNotFound) {
			return nil
		}
		if err != nil {
			return fmt.Errorf("waiting for the end of %s: %w", subject, err)
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("waiting for the end of %s: %w", subject, ctx.Err())
		case <-tick.C:
		}
	}
}
