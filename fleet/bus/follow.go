package bus

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"time"

	"github.com/nats-io/nats.go/jetstream"
)

// Follower watches subjects of a stream without taking part in its work.
type Follower struct {
	Stream string
	// Filters are the subjects to watch. They must not overlap.
	Filters []string
	// Message is called for the last message of every subject and then for each new one, in the stream's order. After
	// an interruption the last messages may come again; and if there was none yet before it, only the last message of
	// each subject that came meanwhile.
	Message func(context.Context, *Message)
	// Reset is called before the first message of a stream that was made anew, because NATS lost its data: what was seen
	// before is of another stream, and sequences begin again. It may be nil.
	Reset func()
	// CaughtUp is called once when all that was there at the start has been seen, also when that was nothing.
	CaughtUp func()
}

// Follow calls f until the context ends, and returns nil then. While NATS is away it waits. It returns an ErrDenied when this
// user may not read the stream; once it has caught up, it waits for that too.
func (b *Bus) Follow(ctx context.Context, f Follower) error {
	retry := Exponential(200*time.Millisecond, 10*time.Second)
	caughtUp := false
	once := func() {
		if !caughtUp {
			caughtUp = true
			f.CaughtUp()
		}
	}
	var created time.Time
	for attempt := int64(1); ctx.Err() == nil; attempt++ {
		err := b.guarded(ctx, func(ctx context.Context) error { return b.follow(ctx, f, &created, once) },
			api("CONSUMER.CREATE", f.Stream, ">"), api("CONSUMER.MSG.NEXT", f.Stream, ">"))
		if ctx.Err() != nil {
			return nil //nolint:nilerr // a stop is how this ends; the error is only its echo
		}
		if errors.Is(err, ErrDenied) && !caughtUp {
			return fmt.Errorf("following stream %s: %w", f.Stream, err)
		}
		b.log.WarnContext(ctx, "following interrupted, trying again", slog.String("stream", f.Stream), slog.Any("err", err))
		if !wait(ctx, retry(attempt)) {
			return nil
		}
	}
	return nil
}

func (b *Bus) follow(ctx context.Context, f Follower, created *time.Time, caughtUp func()) error {
	setup, cancel := context.WithTimeout(ctx, publishTimeout)
	defer cancel()
	s, err := b.stream(setup, f.Stream)
	if err != nil {
		return err
	}
	if now := s.CachedInfo().Created; !now.Equal(*created) {
		if !created.IsZero() && f.Reset != nil {
			f.Reset()
		}
		*created = now
	}
	ctx, stop := context.WithCancelCause(ctx)
	defer stop(nil)
	go b.watchCreation(ctx, f.Stream, *created, stop)
	cons, err := b.js.OrderedConsumer(setup, f.Stream, jetstream.OrderedConsumerConfig{
		FilterSubjects: f.Filters, DeliverPolicy: jetstream.DeliverLastPerSubjectPolicy,
	})
	if err != nil {
		return fmt.Errorf("creating an ordered consumer: %w", err)
	}
	if cons.CachedInfo().NumPending == 0 {
		caughtUp()
	}
	it, err := cons.Messages()
	if err != nil {
		return fmt.Errorf("subscribing: %w", err)
	}
	defer it.Stop()
	for {
		jm, err := it.Next(jetstream.NextContext(ctx))
		if err != nil {
			return fmt.Errorf("waiting for a message: %w", errors.Join(err, context.Cause(ctx)))
		}
		meta, err := jm.Metadata()
		if err != nil {
			return fmt.Errorf("reading a message's metadata: %w", err)
		}
		f.Message(ctx, &Message{
			Subject: jm.Subject(), Data: jm.Data(), Header: jm.Headers(), Seq: meta.Sequence.Stream,
			Stored: meta.Timestamp, Attempt: 1,
		})
		if meta.NumPending == 0 {
			caughtUp()
		}
	}
}

// How often a follower looks whether its stream is still the same one.
const creationInterval = 5 * time.Second

// watchCreation stops a follower when its stream was made anew. The library does not notice: its ordered consumer goes on
// waiting for the sequence after the last one that it saw, and would be deaf until the new stream is as long as the old.
func (b *Bus) watchCreation(ctx context.Context, stream string, created time.Time, stop context.CancelCauseFunc) {
	for wait(ctx, creationInterval) {
		asking, cancel := context.WithTimeout(ctx, publishTimeout)
		s, err := b.stream(asking, stream)
		cancel()
		if err == nil && !s.CachedInfo().Created.Equal(created) {
			stop(fmt.Errorf("stream %s was made anew", stream))
			return
		}
	}
}

// Subjects counts the messages of a stream for each subject that matches the filter.
func (b *Bus) Subjects(ctx context.Context, stream, filter string) (map[string]uint64, error) {
	ctx, cancel := context.WithTimeout(ctx, publishTimeout)
	defer cancel()
	s, err := b.stream(ctx, stream)
	if err != nil {
		return nil, err
	}
	info, err := s.Info(ctx, jetstream.WithSubjectFilter(filter))
	if err != nil {
		return nil, fmt.Errorf("listing the subjects of stream %s: %w", stream, err)
	}
	if info == nil {
		return nil, errors.New("the server sent no stream information")
	}
	return info.State.Subjects, nil
}
