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
	"go.opentelemetry.io/otel"
	"go.opentelemetry.io/otel/propagation"
	"go.opentelemetry.io/otel/trace"

	lifeboatv1 "github.com/lifeboat-fleet/lifeboat/proto/lifeboat/v1"
)

// Consumer describes how the messages of one subject are worked off. Several processes with the same Durable share the
// work.
type Consumer struct {
	Stream  string
	Durable string
	Filter  string
	// AckWait is how long after the last heartbeat of a dead worker its message goes to another one. Heartbeats are
	// sent every third of it.
	AckWait time.Duration
	// Concurrency is how many messages this process handles at once; 1 when zero.
	Concurrency int
	// Ordered hands out one message at a time over the whole fleet, in order: a message that waits for its retry holds
	// up the ones behind it.
	Ordered bool
	// MaxAttempts makes a message a dead letter after so many deliveries; 0: no limit.
	MaxAttempts int64
	// GiveUpAfter makes a message a dead letter at this age; 0: no limit.
	GiveUpAfter time.Duration
	// Backoff is the delay before the attempt that follows the given one. Nil: 1s doubling to 1m.
	Backoff func(attempt int64) time.Duration
	Handle  Handler
	// OnDead is told after a message became a dead letter, to emit an event. It may be nil. After an error, or a crash, it
	// is called again for the same message, which stays until then.
	OnDead func(context.Context, *Message, error) error
}

// Consume works messages off until the context ends. It returns nil then, and an error only when the consumer can never
// work, such as a filter that overlaps another consumer's, or an ErrDenied at the start. While NATS is away it waits, and also
// when a permission is taken away later.
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
	if c.Ordered {
		cfg.MaxAckPending = 1
	}
	var wg sync.WaitGroup
	defer wg.Wait()
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	errs := make(chan error, max(c.Concurrency, 1))
	for range max(c.Concurrency, 1) {
		wg.Go(func() { errs <- b.consumeLoop(ctx, c, cfg) })
	}
	return <-errs
}

// deniedWithin is how soon after the start a denied permission shows.
const deniedWithin = 5 * time.Second

// consumeLoop keeps one pull subscription alive through reconnects and deleted consumers.
func (b *Bus) consumeLoop(ctx context.Context, c Consumer, cfg jetstream.ConsumerConfig) error {
	retry := Exponential(200*time.Millisecond, 10*time.Second)
	worked := false
	for attempt := int64(1); ctx.Err() == nil; attempt++ {
		begin := time.Now()
		err := b.guarded(ctx, func(guarded context.Context) error {
			return b.pull(ctx, guarded, c, cfg, func() { attempt, worked = 1, true })
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

// pull hands out messages until the guarded context ends. Handlers run in ctx: a permission that is taken away ends no work.
func (b *Bus) pull(ctx, guarded context.Context, c Consumer, cfg jetstream.ConsumerConfig, healthy func()) error {
	setup, cancel := context.WithTimeout(guarded, publishTimeout)
	defer cancel()
	cons, err := b.js.CreateOrUpdateConsumer(setup, c.Stream, cfg)
	if err != nil {
		return fmt.Errorf("creating consumer: %w", err)
	}
	// One message at a time: a prefetching worker would hoard jobs that idle ones could do.
	it, err := cons.Messages(jetstream.PullMaxMessages(1), jetstream.PullExpiry(30*time.Second))
	if err != nil {
		return fmt.Errorf("subscribing: %w", err)
	}
	defer it.Stop()
	for {
		m, err := it.Next(jetstream.NextContext(guarded))
		if err != nil {
			return fmt.Errorf("waiting for a message: %w", err)
		}
		healthy()
		b.deliver(ctx, c, m)
	}
}

// deliver runs the handler under heartbeats and settles the message.
func (b *Bus) deliver(ctx context.Context, c Consumer, jm jetstream.Msg) {
	meta, err := jm.Metadata()
	if err != nil {
		b.log.ErrorContext(ctx, "message without JetStream metadata", slog.String("subject", jm.Subject()), slog.Any("err", err))
		return
	}
	m := &Message{
		Subject: jm.Subject(), Data: jm.Data(), Header: jm.Headers(), Seq: meta.Sequence.Stream,
		Stored: meta.Timestamp, Attempt: int64(meta.NumDelivered), //nolint:gosec // a delivery count fits
	}
	parent := propagation.TraceContext{}.Extract(ctx, propagation.HeaderCarrier(m.Header))
	parent, span := otel.Tracer("lifeboat/bus").Start(parent, "consume "+c.Durable, trace.WithSpanKind(trace.SpanKindConsumer))
	defer span.End()

	work, stop := context.WithCancelCause(parent)
	defer stop(nil)
	beating := make(chan struct{})
	go func() {
		defer close(beating)
		b.heartbeat(work, stop, jm, c.AckWait)
	}()
	b.metrics.inFlight.WithLabelValues(c.Durable).Inc()
	begin := time.Now()
	err = c.Handle(work, m)
	b.metrics.seconds.WithLabelValues(c.Durable).Observe(time.Since(begin).Seconds())
	b.metrics.inFlight.WithLabelValues(c.Durable).Dec()
	lost := errors.Is(context.Cause(work), ErrLostMessage)
	stop(nil)
	<-beating
	if err != nil {
		span.RecordError(err)
	}
	// Settling must still happen while the service stops, so it has its own deadline.
	settle, cancel := context.WithTimeout(context.WithoutCancel(parent), publishTimeout)
	defer cancel()
	outcome, err := b.settle(settle, c, jm, m, err, lost, ctx.Err() != nil)
	b.metrics.handled.WithLabelValues(c.Durable, outcome).Inc()
	if err != nil {
		b.log.WarnContext(settle, "could not settle a message; it will be delivered again",
			slog.String("subject", m.Subject), slog.String("outcome", outcome), slog.Any("err", err))
	}
}

// settle decides what becomes of a message: acknowledged, tried again, handed back, or dead.
func (b *Bus) settle(
	ctx context.Context, c Consumer, jm jetstream.Msg, m *Message, failed error, lost, stopping bool,
) (outcome string, err error) {
	terminal, isTerminal := errors.AsType[*terminalError](failed)
	exhausted := (c.MaxAttempts > 0 && m.Attempt >= c.MaxAttempts) ||
		(c.GiveUpAfter > 0 && time.Since(m.Stored) >= c.GiveUpAfter)
	switch {
	case failed == nil:
		return "ack", b.guarded(ctx, jm.DoubleAck, jm.Reply())
	case lost || errors.Is(failed, ErrClaimLost):
		// Somebody else has it, and works on it. The server takes a nak or a term of an old delivery for one of the new
		// one, so this delivery says nothing more; if the other one dies, the server redelivers by itself.
		return "lost", nil
	case isTerminal || (exhausted && !stopping):
		reason := "gave_up"
		if isTerminal {
			reason = terminal.reason
		}
		return "dead", b.bury(ctx, c, jm, m, reason, failed)
	case stopping:
		return "handed_back", jm.Nak()
	}
	delay := c.Backoff(m.Attempt)
	if retry, ok := errors.AsType[*retryError](failed); ok {
		delay = retry.after
	}
	b.log.WarnContext(ctx, "will try again", slog.String("consumer", c.Durable), slog.String("subject", m.Subject),
		slog.Int64("attempt", m.Attempt), slog.Duration("after", delay), slog.Any("err", failed))
	return "retry", jm.NakWithDelay(delay)
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
		if nak := jm.NakWithDelay(c.Backoff(m.Attempt)); nak != nil {
			err = errors.Join(err, nak)
		}
		return fmt.Errorf("storing a dead letter: %w", err)
	}
	if c.OnDead != nil {
		if err := c.OnDead(ctx, m, failed); err != nil {
			return errors.Join(fmt.Errorf("recording a dead letter: %w", err), jm.NakWithDelay(c.Backoff(m.Attempt)))
		}
	}
	return jm.TermWithReason(reason)
}

// heartbeat tells the server that the work goes on, and cancels the work when the server has not confirmed that for two
// thirds of AckWait: after a whole AckWait the message is given to somebody else.
func (b *Bus) heartbeat(ctx context.Context, lost context.CancelCauseFunc, jm jetstream.Msg, ackWait time.Duration) {
	ticker := time.NewTicker(ackWait / 3)
	defer ticker.Stop()
	confirmed := time.Now()
	for {
		select {
		case <-ctx.Done():
			return
		case <-ticker.C:
		}
		sent := time.Now()
		beat, cancel := context.WithTimeout(ctx, ackWait/6)
		// InProgress of the library sends and forgets; a request gets the server's answer.
		_, err := b.nc.RequestWithContext(beat, jm.Reply(), []byte("+WPI"))
		cancel()
		switch {
		case err == nil:
			confirmed = sent
		case ctx.Err() != nil:
			return
		case time.Since(confirmed) >= ackWait*2/3:
			b.metrics.lost.Inc()
			lost(ErrLostMessage)
			return
		}
	}
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
