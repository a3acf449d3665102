package bus

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"strings"
	"sync"
	"time"

	"github.com/cenkalti/backoff/v5"
	"github.com/nats-io/nats.go/jetstream"

	"github.com/lifeboat-fleet/lifeboat/fleet/tracing"
	lifeboatv1 "github.com/lifeboat-fleet/lifeboat/proto/lifeboat/v1"
)

// Consumer describes how the messages of one subject are worked off. Several processes with the same Durable share the
// work.
type Consumer struct {
	Stream  string
	Durable string
	Filter  string
	// Also are further subjects that it takes; all of them come in one order.
	Also []string
	// OnlyNew makes a consumer that is created begin with the messages that come afterwards. It is for streams that keep what was read.
	OnlyNew bool
	// AckWait is how long after the last heartbeat of a dead worker its message goes to another one. Heartbeats are
	// sent every third of it.
	AckWait time.Duration
	// Concurrency is how many messages this process handles at once; 1 when zero.
	Concurrency int
	// Ordered hands out one message at a time over the whole fleet, in order: a message that waits for its retry holds
	// up the ones behind it.
	Ordered bool
	// Grace is how long a handler may go on after the service was told to stop: it gets no further messages, but its context
	// ends, with the cause ErrStopping, only when the time is over. Heartbeats go on meanwhile. 0: it ends at once.
	Grace time.Duration
	// Drain, when it is closed, ends the taking of messages and nothing else: handlers go on for as long as they need, and Consume
	// returns when the last of them has. A stop that comes meanwhile is one as always, with Grace. Nil: never.
	Drain <-chan struct{}
	// MaxAttempts makes a message a dead letter after so many attempts; 0: no limit.
	MaxAttempts int64
	// CountsByClaim is for handlers that take a Claim: it counts the attempts, not the deliveries. One that was handed back,
	// or never began, is none; one that ended with the process is.
	CountsByClaim bool
	// GiveUpAfter makes a message a dead letter at this age; 0: no limit.
	GiveUpAfter time.Duration
	// Backoff is the delay before the attempt that follows the given one. Nil: 1s doubling to 1m.
	Backoff func(attempt int64) time.Duration
	Handle  Handler
	// OnDead is told after a message became a dead letter, to emit an event. It may be nil. After an error, or a crash, it
	// is called again for the same message, which stays until then.
	OnDead func(context.Context, *Message, error) error
}

// Consume works messages off until the context ends, or Drain is closed, and all handlers have returned. It returns nil then, and an error only
// when the consumer can never work, such as a filter that overlaps another consumer's, or an ErrDenied at the start. While NATS
// is away it waits, and also when a permission is taken away later.
func (b *Bus) Consume(ctx context.Context, c Consumer) error {
	if c.Backoff == nil {
		c.Backoff = Exponential(time.Second, time.Minute)
	}
	cfg := jetstream.ConsumerConfig{
		Durable: c.Durable, FilterSubject: c.Filter, AckPolicy: jetstream.AckExplicitPolicy, AckWait: c.AckWait,
		// The server must never give up by itself: an exhausted message would stay in the work queue, unseen, and
		// block its subject. We count attempts and move it to the dead letters.
		MaxDeliver: -1, MaxAckPending: 1000,
	}
	if len(c.Also) > 0 {
		cfg.FilterSubject, cfg.FilterSubjects = "", append([]string{c.Filter}, c.Also...)
	}
	if c.OnlyNew {
		cfg.DeliverPolicy = jetstream.DeliverNewPolicy
	}
	if c.CountsByClaim {
		// A message that waits for its retry counts as pending. Those that were handed back because no worker here is of their
		// zone must not use up what others' may have.
		cfg.MaxAckPending = -1
	}
	if c.Ordered {
		cfg.MaxAckPending = 1
	}
	stopping, cancel := context.WithCancel(ctx)
	var draining, wg sync.WaitGroup
	defer draining.Wait()
	pulling := until(stopping, &draining, c.Drain)
	working, end := graceful(stopping, pulling, c.Grace)
	defer end()
	defer wg.Wait()
	defer cancel()
	loops := max(c.Concurrency, 1)
	errs := make(chan error, loops)
	for range loops {
		wg.Go(func() { errs <- b.consumeLoop(pulling, working, c, cfg) })
	}
	for range loops { // a drain ends them one by one; an error of one is the end of all
		if err := <-errs; err != nil {
			return err
		}
	}
	return nil
}

// until is a context that ends with ctx, or when a channel is closed. It holds up the group until it has ended.
func until(ctx context.Context, wg *sync.WaitGroup, closed <-chan struct{}) context.Context {
	ctx, cancel := context.WithCancel(ctx)
	select {
	case <-closed: // before anything begins
		cancel()
		return ctx
	default:
	}
	wg.Go(func() {
		defer cancel()
		select {
		case <-ctx.Done():
		case <-closed:
		}
	})
	return ctx
}

// graceful is a context that outlives ctx by the time of grace, and ends then with the cause ErrStopping. Pulling ends with ctx too, a
// moment later or long before: a handler that was told to end must not get the message that it hands back.
func graceful(ctx, pulling context.Context, grace time.Duration) (working context.Context, end func()) {
	working, stop := context.WithCancelCause(context.WithoutCancel(ctx))
	over := make(chan struct{})
	var wg sync.WaitGroup
	wg.Go(func() {
		select {
		case <-ctx.Done():
		case <-over:
			return
		}
		<-pulling.Done()
		t := time.NewTimer(grace)
		defer t.Stop()
		select {
		case <-t.C:
		case <-over:
		}
		stop(ErrStopping)
	})
	return working, func() {
		close(over)
		wg.Wait()
		stop(nil)
	}
}

// deniedWithin is how soon after the start a denied permission shows.
const deniedWithin = 5 * time.Second

// consumeLoop keeps one pull subscription alive through reconnects and deleted consumers.
// It pulls until ctx ends, and handlers run in working.
func (b *Bus) consumeLoop(ctx, working context.Context, c Consumer, cfg jetstream.ConsumerConfig) error {
	retry := Exponential(200*time.Millisecond, 10*time.Second)
	worked := false
	for attempt := int64(1); ctx.Err() == nil; attempt++ {
		begin := time.Now()
		err := b.guarded(ctx, func(guarded context.Context) error {
			return b.pull(guarded, working, c, cfg, func() { attempt, worked = 1, true })
		}, api("CONSUMER.CREATE", c.Stream, c.Durable), api("CONSUMER.CREATE", c.Stream, c.Durable, ">"),
			api("CONSUMER.MSG.NEXT", c.Stream, c.Durable))
		if ctx.Err() != nil {
			return nil //nolint:nilerr // a stop is how this ends; the error is only its echo
		}
		var apiErr *jetstream.APIError
		if errors.As(err, &apiErr) && apiErr.Code == 400 {
			return fmt.Errorf("consumer %s on %s: %w", c.Durable, c.Stream, err)
		}
		denied := errors.Is(err, ErrDenied)
		worked = worked || (denied && time.Since(begin) > deniedWithin)
		if denied && !worked {
			return fmt.Errorf("consumer %s on %s: %w", c.Durable, c.Stream, err)
		}
		b.log.WarnContext(ctx, "consumer interrupted, trying again", slog.String("consumer", c.Durable), slog.Any("err", err))
		if !wait(ctx, retry(attempt)) {
			return nil
		}
	}
	return nil
}

// pull hands out messages until the guarded context ends. Handlers run in working: neither a stop nor a permission that is taken
// away ends them at once.
func (b *Bus) pull(guarded, working context.Context, c Consumer, cfg jetstream.ConsumerConfig, healthy func()) error {
	setup, cancel := context.WithTimeout(guarded, publishTimeout)
	defer cancel()
	cons, err := b.js.CreateOrUpdateConsumer(setup, c.Stream, cfg)
	if err != nil {
		return fmt.Errorf("creating consumer: %w", err)
	}
	// One message at a time: a prefetching worker would hoard jobs that idle ones could do.
	it, err := cons.Messages(jetstream.PullMaxMessages(1), jetstream.PullExpiry(30*time.Second), jetstream.PullHeartbeat(pullBeat))
	if err != nil {
		return fmt.Errorf("subscribing: %w", err)
	}
	pulling, clock := watchClock(guarded, c.AckWait)
	defer clock.stop()
	for {
		m, err := clock.next(pulling, it)
		if err != nil {
			n := clock.end(it)
			b.metrics.handled.WithLabelValues(c.Durable, outcomeHandedBack).Add(float64(n))
			return fmt.Errorf("waiting for a message: %w", err)
		}
		healthy()
		b.deliver(working, c, m)
	}
}

// pullBeat is how often the server tells who waits for a message that it still knows of that. After two that did not come the waiter
// asks again: a server that was killed says nothing, and its successor knows of nobody.
const pullBeat = 5 * time.Second

// deliver runs the handler under heartbeats and settles the message.
func (b *Bus) deliver(ctx context.Context, c Consumer, jm jetstream.Msg) {
	meta, err := jm.Metadata()
	if err != nil {
		b.log.ErrorContext(ctx, "message without JetStream metadata", slog.String("subject", jm.Subject()), slog.Any("err", err))
		return
	}
	m := &Message{
		Subject: jm.Subject(), Data: jm.Data(), Header: jm.Headers(), Seq: meta.Sequence.Stream, Stored: meta.Timestamp,
		Behind: meta.NumPending, Delivery: int64(meta.NumDelivered), maxAttempts: c.MaxAttempts, //nolint:gosec // a delivery count fits
	}
	if !c.CountsByClaim {
		m.Attempt = m.Delivery
	}
	parent, span := m.begin(ctx, c.Durable)

	work, stop := context.WithCancelCause(parent)
	defer stop(nil)
	beating := make(chan time.Time, 1)
	go func() { beating <- b.heartbeat(work, stop, jm, c.AckWait) }()
	b.metrics.inFlight.WithLabelValues(c.Durable).Inc()
	begin := time.Now()
	err = c.Handle(work, m)
	b.metrics.seconds.WithLabelValues(c.Durable).Observe(time.Since(begin).Seconds())
	b.metrics.inFlight.WithLabelValues(c.Durable).Dec()
	ended := context.Cause(work)
	stop(nil)
	d := delivery{jm: jm, m: m, ended: ended, gone: passed(<-beating, time.Now()) >= c.AckWait}
	defer tracing.End(span, err)
	// Settling must still happen while the service stops, so it has its own deadline.
	settle, cancel := context.WithTimeout(context.WithoutCancel(parent), publishTimeout)
	defer cancel()
	outcome, err := b.settle(settle, c, d, err)
	b.metrics.handled.WithLabelValues(c.Durable, outcome).Inc()
	if err != nil {
		b.log.WarnContext(settle, "could not settle a message; it will be delivered again",
			slog.String("subject", m.Subject), slog.String("outcome", outcome), slog.Any("err", err))
	}
}

// maxUnbegun limits how long a job waits that could not be claimed: it may have been handed back often before.
const maxUnbegun = 5

// What became of a message, as the metric says it.
const (
	outcomeAck        = "ack"
	outcomeCancelled  = "cancelled"
	outcomeLost       = "lost"
	outcomeDead       = "dead"
	outcomeHandedBack = "handed_back"
	outcomeRetry      = "retry"
)

// delivery is one that its handler has returned from.
type delivery struct {
	jm jetstream.Msg
	m  *Message
	// ended is why the handler's context ended while it ran; nil when it did not.
	ended error
	// gone says that the server may have given the message to somebody else.
	gone bool
}

// settle decides what becomes of a message: acknowledged, tried again, handed back, or dead.
func (b *Bus) settle(ctx context.Context, c Consumer, d delivery, failed error) (outcome string, err error) {
	jm, m := d.jm, d.m
	terminal, isTerminal := errors.AsType[*terminalError](failed)
	handBack, isHandBack := errors.AsType[*handBackError](failed)
	exhausted := (c.MaxAttempts > 0 && m.Attempt >= c.MaxAttempts) ||
		(c.GiveUpAfter > 0 && time.Since(m.Stored) >= c.GiveUpAfter)
	stopping := errors.Is(d.ended, ErrStopping)
	switch {
	case d.gone:
		// The server takes whatever an old delivery says for a word of the new one. If that one dies, or there is none, the
		// server delivers again by itself.
		return outcomeLost, nil
	case failed == nil:
		return outcomeAck, b.guarded(ctx, jm.DoubleAck, jm.Reply())
	case errors.Is(failed, ErrCancelled):
		return outcomeCancelled, b.guarded(ctx, jm.DoubleAck, jm.Reply())
	case errors.Is(d.ended, ErrLostMessage) || errors.Is(failed, ErrClaimLost):
		return outcomeLost, nil // somebody else has it, and works on it
	case isHandBack:
		return outcomeHandedBack, b.nak(jm, handBack.after)
	case isTerminal || (exhausted && !stopping):
		reason := "gave_up"
		if isTerminal {
			reason = terminal.reason
		}
		return outcomeDead, b.bury(ctx, c, jm, m, reason, failed)
	case stopping:
		return outcomeHandedBack, b.nak(jm, 0)
	}
	begun := m.Attempt
	if begun == 0 { // what failed before the claim is no attempt, and must not be tried again every two seconds for ever
		begun = min(m.Delivery, maxUnbegun)
	}
	delay := c.Backoff(max(begun, 1))
	if retry, ok := errors.AsType[*retryError](failed); ok {
		delay = retry.after
	}
	b.log.WarnContext(ctx, "will try again", slog.String("consumer", c.Durable), slog.String("subject", m.Subject),
		slog.Int64("attempt", m.Attempt), slog.Duration("after", delay), slog.Any("err", failed))
	return outcomeRetry, b.nak(jm, delay)
}

// nak gives a message back, unless there is no connection: the library would keep the word and say it after it has reconnected, when
// the message may be with somebody else. Unsaid, the message comes back after AckWait.
func (b *Bus) nak(jm jetstream.Msg, after time.Duration) error {
	if err := b.Connected(); err != nil {
		return err
	}
	return jm.NakWithDelay(after)
}

// bury stores the dead letter first and only then removes the message: a crash between the two leaves both, and the
// letter's id, derived from the message, makes the second try the same letter.
func (b *Bus) bury(ctx context.Context, c Consumer, jm jetstream.Msg, m *Message, reason string, failed error) error {
	headers := map[string]string{}
	for k := range m.Header {
		if !strings.HasPrefix(k, "Nats-") {
			headers[k] = m.Header.Get(k)
		}
	}
	err := b.DeadLetter(ctx, reason, &lifeboatv1.DeadLetter{
		Id: m.DeadID(), Subject: m.Subject, Payload: m.Data, Headers: headers,
		Reason: failed.Error(), Attempts: m.Attempt,
	})
	if err != nil {
		if nak := b.nak(jm, c.Backoff(max(m.Attempt, 1))); nak != nil {
			err = errors.Join(err, nak)
		}
		return fmt.Errorf("storing a dead letter: %w", err)
	}
	if c.OnDead != nil {
		if err := c.OnDead(ctx, m, failed); err != nil {
			return errors.Join(fmt.Errorf("recording a dead letter: %w", err), b.nak(jm, c.Backoff(max(m.Attempt, 1))))
		}
	}
	return jm.TermWithReason(reason)
}

// Exponential is a backoff that doubles from first to most, with jitter, as the backoff library computes it.
func Exponential(first, most time.Duration) func(attempt int64) time.Duration {
	return func(attempt int64) time.Duration {
		e := backoff.NewExponentialBackOff()
		e.InitialInterval, e.MaxInterval, e.Multiplier, e.RandomizationFactor = first, most, 2, 0.2
		d := first
		for range min(attempt, 40) {
			d = e.NextBackOff()
		}
		return d
	}
}

// wait sleeps unless the context ends first.
func wait(ctx context.Context, d time.Duration) bool {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
		return true
	case <-ctx.Done():
		return false
	}
}
