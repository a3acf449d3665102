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
	// Message is called for the last message of every subject and then for each new one, in the stream's order, also after
	// interruptions.
	Message func(context.Context, *Message)
	// Reset is called before the first message of a stream that was made anew, because NATS lost its data: what was seen
	// before is of another stream, and sequences begin again. It may be nil.
	Reset func()
	// CaughtUp is called once when all that was there at the start has been seen, also when that was nothing.
	CaughtUp func()
	// Interrupted is called with the reason when the stream can no longer be followed, again when the reason is another one, and with
	// nil when it can. While the connection is gone, which is Connected's to tell, it may stay silent. It may be nil.
	Interrupted func(error)
}

// Follow calls f until the context ends, and returns nil then. While NATS is away, or nobody leads the stream, it waits. It returns an
// ErrDenied when this user may not read the stream; once it has caught up, it waits for that too.
func (b *Bus) Follow(ctx context.Context, f Follower) error {
	following := &following{Follower: f, b: b}
	b.metrics.deaf.WithLabelValues(f.Stream) // 0 is told too
	defer following.interrupted(nil)
	retry := Exponential(200*time.Millisecond, 10*time.Second)
	for attempt := int64(1); ctx.Err() == nil; attempt++ {
		following.well = false
		err := b.guarded(ctx, following.run, api("CONSUMER.CREATE", f.Stream, ">"), api("CONSUMER.MSG.NEXT", f.Stream, ">"))
		if ctx.Err() != nil {
			return nil // a stop is how this ends; the error is only its echo
		}
		if errors.Is(err, ErrDenied) && !following.caughtUp {
			return fmt.Errorf("following stream %s: %w", f.Stream, err)
		}
		if following.well {
			attempt = 1
		}
		following.interrupted(err)
		b.log.WarnContext(ctx, "following interrupted, trying again", slog.String("stream", f.Stream), slog.Any("err", err))
		if !wait(ctx, retry(attempt)) {
			return nil
		}
	}
	return nil
}

// following is how far a follower has come.
type following struct {
	Follower

	b *Bus
	// created is when the stream was made that seen is of: up to there everything was followed, 0 for nothing.
	created time.Time
	seen    uint64
	// well says that the last attempt got as far as waiting for messages.
	well, caughtUp, deaf bool
}

// interrupted tells that the stream cannot be followed, or with nil that it can, and counts the followers that cannot.
func (f *following) interrupted(err error) {
	if deaf := err != nil; deaf != f.deaf {
		f.b.metrics.deaf.WithLabelValues(f.Stream).Add(map[bool]float64{true: 1, false: -1}[deaf])
		f.deaf = deaf
	} else if !deaf {
		return
	}
	if f.Interrupted != nil {
		f.Interrupted(err)
	}
}

func (f *following) catchUp() {
	if !f.caughtUp {
		f.caughtUp = true
		f.CaughtUp()
	}
}

// from is where to begin: behind what was seen of this stream.
func (f *following) from(s jetstream.Stream) jetstream.OrderedConsumerConfig {
	info := s.CachedInfo()
	// A server that was killed may have lost the newest messages, and gives their sequences to others.
	if !info.Created.Equal(f.created) || info.State.LastSeq < f.seen {
		if !f.created.IsZero() && f.Reset != nil {
			f.Reset()
		}
		f.created, f.seen = info.Created, 0
	}
	// The library would try for ever to make its consumer anew, deaf to the context's end, and say nothing.
	cfg := jetstream.OrderedConsumerConfig{
		FilterSubjects: f.Filters, DeliverPolicy: jetstream.DeliverLastPerSubjectPolicy, MaxResetAttempts: 1,
	}
	if f.seen > 0 {
		cfg.DeliverPolicy, cfg.OptStartSeq = jetstream.DeliverByStartSequencePolicy, f.seen+1
	}
	return cfg
}

func (f *following) run(ctx context.Context) error {
	setup, cancel := context.WithTimeout(ctx, publishTimeout)
	defer cancel()
	s, err := f.b.stream(setup, f.Stream)
	if err != nil {
		return err
	}
	cfg, end := f.from(s), s.CachedInfo().State.LastSeq
	ctx, stop := context.WithCancelCause(ctx)
	defer stop(nil)
	go f.b.watchStream(ctx, f.Stream, s.CachedInfo(), stop)
	cons, err := f.b.js.OrderedConsumer(setup, f.Stream, cfg)
	if err != nil {
		return fmt.Errorf("creating an ordered consumer: %w", err)
	}
	it, err := cons.Messages()
	if err != nil {
		return fmt.Errorf("subscribing: %w", err)
	}
	defer it.Stop()
	f.well = true
	f.interrupted(nil)
	if cons.CachedInfo().NumPending == 0 {
		f.seen = max(f.seen, end) // of another subject, and before the consumer began
		f.catchUp()
	}
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
		f.seen = meta.Sequence.Stream
		if meta.NumPending == 0 {
			f.catchUp()
		}
	}
}

// How often a follower looks whether its stream is still the one that it was.
const creationInterval = 5 * time.Second

// watchStream stops a follower when its stream was made anew or lost its newest messages. The library does not notice: its ordered
// consumer goes on waiting for the sequence after the last one that it saw, and would be deaf until the stream is as long again.
func (b *Bus) watchStream(ctx context.Context, stream string, last *jetstream.StreamInfo, stop context.CancelCauseFunc) {
	for wait(ctx, creationInterval) {
		asking, cancel := context.WithTimeout(ctx, publishTimeout)
		s, err := b.stream(asking, stream)
		cancel()
		if err != nil {
			continue
		}
		now := s.CachedInfo()
		if !now.Created.Equal(last.Created) {
			stop(fmt.Errorf("stream %s was made anew", stream))
			return
		}
		if now.State.LastSeq < last.State.LastSeq {
			stop(fmt.Errorf("stream %s lost its newest messages: it ends at %d, and ended at %d", stream, now.State.LastSeq, last.State.LastSeq))
			return
		}
		last = now
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
