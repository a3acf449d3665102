package main

import (
	"bufio"
	"context"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"sync"
	"sync/atomic"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"

	"github.com/lifeboat-fleet/lifeboat/fleet/bus"
	"github.com/lifeboat-fleet/lifeboat/fleet/fleettest/chattest"
	"github.com/lifeboat-fleet/lifeboat/tests/bench/internal/testbed"
)

// atOnce is how many connections post, and how many raw publishes are in flight.
const atOnce = 16

// The raw side's stream, with the settings of the alerts'.
const (
	rawStream  = "BENCH_RAW"
	rawSubject = "bench.raw"
)

// acceptance measures how many webhooks are taken in a second.
func (b *bench) acceptance(ctx context.Context, f *figures) error {
	n, err := b.start(ctx, free, chattest.Options{NoLimits: true, Keep: 1})
	if err != nil {
		return err
	}
	defer n.stop() //nolint:contextcheck // it must end also when the context has
	if err = b.makeRaw(ctx); err != nil {
		return err
	}
	var ratios []float64
	for i := range b.rounds {
		raw, err := b.rawRate(ctx)
		if err != nil {
			return err
		}
		taken, err := b.acceptRate(ctx, n)
		if err != nil {
			return err
		}
		size := len(b.webhook("Size", "warning", b.alerts))
		fmt.Fprintf(b.Out, "round %d: %.0f webhooks/s of %d alerts (%d bytes) accepted and persisted, %.0f raw synchronous publishes/s of the same bytes\n",
			i+1, taken, b.alerts, size, raw)
		ratios = append(ratios, taken/raw)
		if err := b.drained(ctx); err != nil {
			return err
		}
	}
	fmt.Fprintf(b.Out, "ratios of the rounds: %.2f\n", ratios)
	f.Accept = testbed.Median(ratios)
	return nil
}

// makeRaw makes the stream of the raw side.
func (b *bench) makeRaw(ctx context.Context) error {
	s, err := b.JetStream.Stream(ctx, bus.StreamAlerts)
	if err != nil {
		return err
	}
	settings := s.CachedInfo().Config
	settings.Name, settings.Subjects = rawStream, []string{rawSubject}
	_ = b.JetStream.DeleteStream(ctx, rawStream) // that of a part before
	if _, err = b.JetStream.CreateStream(ctx, settings); err != nil {
		return fmt.Errorf("making the raw stream: %w", err)
	}
	return nil
}

// during runs do by 16 goroutines for a while, and gives how often it was done in a second. Each goroutine has what begin makes.
func (b *bench) during(ctx context.Context, begin func(context.Context) (do func([]byte) error, end func(), err error)) (float64, error) {
	// They are made before: making them would be measured.
	bodies := make([][]byte, 40_000)
	for i := range bodies {
		bodies[i] = b.webhook("Accept", "warning", b.alerts)
	}
	var next, done atomic.Int64
	var wg sync.WaitGroup
	errs := make(chan error, atOnce)
	begun := time.Now()
	for range atOnce {
		wg.Go(func() {
			do, end, err := begin(ctx)
			if err != nil {
				errs <- err
				return
			}
			defer end()
			for time.Since(begun) < b.accept {
				i := int(next.Add(1)) - 1
				if i >= len(bodies) {
					return
				}
				if err := do(bodies[i]); err != nil {
					errs <- err
					return
				}
				done.Add(1)
			}
		})
	}
	wg.Wait()
	took := time.Since(begun)
	select {
	case err := <-errs:
		return 0, err
	default:
	}
	return float64(done.Load()) / took.Seconds(), nil
}

func (b *bench) acceptRate(ctx context.Context, n *notifier) (float64, error) {
	return b.during(ctx, n.dial)
}

// dial opens a connection that posts webhooks one after the other. It writes and reads the bytes itself: the client of net/http takes as
// much of the processor as all that is measured.
func (n *notifier) dial(ctx context.Context) (post func([]byte) error, end func(), err error) {
	u, err := url.Parse(n.hook)
	if err != nil {
		return nil, nil, err
	}
	var d net.Dialer
	conn, err := d.DialContext(ctx, "tcp", u.Host)
	if err != nil {
		return nil, nil, fmt.Errorf("connecting to the notifier: %w", err)
	}
	in := bufio.NewReader(conn)
	var out []byte
	return func(body []byte) error {
		out = fmt.Appendf(out[:0], "POST %s HTTP/1.1\r\nHost: %s\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n", u.Path, u.Host, len(body))
		if _, err := conn.Write(append(out, body...)); err != nil {
			return fmt.Errorf("posting a webhook: %w", err)
		}
		resp, err := http.ReadResponse(in, nil)
		if err != nil {
			return fmt.Errorf("reading the answer to a webhook: %w", err)
		}
		defer resp.Body.Close()
		if _, err := io.Copy(io.Discard, resp.Body); err != nil {
			return fmt.Errorf("reading the answer to a webhook: %w", err)
		}
		if resp.StatusCode != http.StatusOK {
			return fmt.Errorf("the webhook was answered with %s", resp.Status)
		}
		return nil
	}, func() { _ = conn.Close() }, nil
}

func (b *bench) rawRate(ctx context.Context) (float64, error) {
	nc, err := nats.Connect(b.NATS.URL)
	if err != nil {
		return 0, err
	}
	defer nc.Close()
	js, err := jetstream.New(nc)
	if err != nil {
		return 0, err
	}
	return b.during(ctx, func(ctx context.Context) (func([]byte) error, func(), error) {
		return func(body []byte) error {
			_, err := js.Publish(ctx, rawSubject, body)
			return err
		}, func() {}, nil
	})
}

// drained waits until everything that was taken has been delivered, so that rounds do not meet.
func (b *bench) drained(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	tick := time.NewTicker(200 * time.Millisecond)
	defer tick.Stop()
	for {
		s, err := b.JetStream.Stream(ctx, bus.StreamAlerts)
		if err != nil {
			return err
		}
		waiting := uint64(0)
		for _, filter := range []string{bus.SubjectReceived, bus.DeliverySubject(">")} {
			info, err := s.Info(ctx, jetstream.WithSubjectFilter(filter))
			if err != nil {
				return err
			}
			for _, n := range info.State.Subjects {
				waiting += n
			}
		}
		if waiting == 0 {
			return nil
		}
		select {
		case <-tick.C:
		case <-ctx.Done():
			return fmt.Errorf("%d messages were not delivered within %s", waiting, patience)
		}
	}
}
