package bus

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/nats-io/nats.go/jetstream"
	"google.golang.org/protobuf/types/known/emptypb"

	"github.com/lifeboat-fleet/lifeboat/fleet/config"
)

const (
	// slotAckWait is how long after its last heartbeat the slot of a dead holder goes to the next one.
	slotAckWait = 30 * time.Second
	// slotGiveBack is how long it is tried to give a slot back; later it goes to the next one by itself.
	slotGiveBack = 5 * time.Second
	// slotPatience is how long a waiter waits before it looks whether all tokens are there.
	slotPatience = 10 * time.Second
	// slotPull is how long the server keeps a waiter in its line. One that asks again stands at the end.
	slotPull = time.Hour
)

// Slot is one of the places for jobs of a kind that may run at once in the whole fleet.
//
// The places are tokens: last values of the stream of jobs that a durable consumer hands out like jobs. Who has one holds it with
// heartbeats; the server lets the others wait in line. Freeing it is giving it back; of a holder that died it comes back by
// itself. A holder whose heartbeats were not confirmed in time has lost it: the message of its job is lost in the same way.
type Slot struct {
	bus   *Bus
	work  config.Work
	index int
	msg   jetstream.Msg
	stop  context.CancelFunc
	// beating tells when the last confirmed heartbeat was.
	beating chan time.Time
}

// Slot waits for a place among the n that jobs of this kind have in the fleet, and returns it. 0: there is no limit, and the
// slot is one of nothing. It creates what is missing; a token of a number that is too high goes away when it is taken or freed.
func (b *Bus) Slot(ctx context.Context, w config.Work, n int) (*Slot, error) {
	b.setSlots(w, n)
	if n <= 0 {
		return &Slot{}, nil
	}
	retry := Exponential(200*time.Millisecond, 10*time.Second)
	for attempt := int64(1); ; attempt++ {
		s, err := b.slot(ctx, w, n)
		if err == nil {
			return s, nil
		}
		if ctx.Err() != nil {
			return nil, fmt.Errorf("waiting for one of the fleet's %d slots for %s: %w", n, w, context.Cause(ctx))
		}
		if errors.Is(err, ErrDenied) {
			return nil, fmt.Errorf("waiting for one of the fleet's %d slots for %s: %w", n, w, err)
		}
		b.log.WarnContext(ctx, "waiting for a slot was interrupted, trying again", slog.String("work", string(w)), slog.Any("err", err))
		if !wait(ctx, retry(attempt)) {
			return nil, fmt.Errorf("waiting for one of the fleet's %d slots for %s: %w", n, w, context.Cause(ctx))
		}
	}
}

func slotConsumer(w config.Work) string { return "slots-" + string(w) }

func (b *Bus) slot(ctx context.Context, w config.Work, n int) (s *Slot, err error) {
	durable := slotConsumer(w)
	err = b.guarded(ctx, func(guarded context.Context) (err error) {
		cons, err := b.slotLine(guarded, w, n)
		if err != nil {
			return err
		}
		it, err := cons.Messages(jetstream.PullMaxMessages(1), jetstream.PullExpiry(slotPull), jetstream.PullHeartbeat(pullBeat))
		if err != nil {
			return fmt.Errorf("subscribing: %w", err)
		}
		waiting, clock := watchClock(guarded, slotAckWait)
		defer clock.stop()
		waiting, leave := b.keepLine(waiting, cons, w, n)
		defer leave()
		s, err = b.takeSlot(waiting, clock, it, w, n)
		clock.end(it)
		return err
	}, api("CONSUMER.CREATE", StreamJobs, durable), api("CONSUMER.CREATE", StreamJobs, durable, ">"),
		api("CONSUMER.MSG.NEXT", StreamJobs, durable), api("CONSUMER.INFO", StreamJobs, durable))
	if err != nil {
		b.forgetSlots(w)
		if s != nil { // it came in the moment of the refusal
			err = errors.Join(err, s.Free(context.WithoutCancel(ctx)))
		}
		return nil, err
	}
	return s, nil
}

// slotLine makes the line and its tokens, unless this process has done so for this number.
func (b *Bus) slotLine(ctx context.Context, w config.Work, n int) (jetstream.Consumer, error) {
	b.mu.Lock()
	line := b.slots[w]
	b.mu.Unlock()
	if line.consumer != nil && line.filled == n {
		return line.consumer, nil
	}
	ctx, cancel := context.WithTimeout(ctx, publishTimeout)
	defer cancel()
	cons, err := b.js.CreateOrUpdateConsumer(ctx, StreamJobs, jetstream.ConsumerConfig{
		Durable: slotConsumer(w), FilterSubject: slotPrefix(w) + "*", AckPolicy: jetstream.AckExplicitPolicy, AckWait: slotAckWait,
		MaxDeliver: -1, MaxAckPending: -1,
	})
	if err != nil {
		return nil, fmt.Errorf("creating consumer: %w", err)
	}
	if err = b.EnsureSlots(ctx, w, n); err != nil {
		return nil, err
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	line = b.slots[w]
	line.filled, line.consumer = n, cons
	b.slots[w] = line
	return cons, nil
}

// takeSlot waits in line for a token.
func (b *Bus) takeSlot(ctx context.Context, clock *clock, it jetstream.MessagesContext, w config.Work, n int) (*Slot, error) {
	for {
		m, err := clock.next(ctx, it)
		if err != nil {
			return nil, fmt.Errorf("waiting for a token: %w", err)
		}
		index, err := strconv.Atoi(strings.TrimPrefix(m.Subject(), slotPrefix(w)))
		if err != nil || index >= n {
			if err = b.guarded(ctx, m.DoubleAck, m.Reply()); err != nil {
				return nil, fmt.Errorf("taking token %s away: %w", m.Subject(), err)
			}
			continue
		}
		return b.hold(ctx, w, index, m), nil
	}
}

// keepLine looks from time to time, without leaving the line, whether it is still the same one and has its tokens: NATS may have lost
// them. The context ends when it is not.
func (b *Bus) keepLine(ctx context.Context, cons jetstream.Consumer, w config.Work, n int) (waiting context.Context, leave func()) {
	since := cons.CachedInfo().Created
	waiting, cancel := context.WithCancelCause(ctx)
	var wg sync.WaitGroup
	wg.Go(func() {
		for wait(waiting, slotPatience) {
			if err := b.checkLine(waiting, cons, since, w, n); err != nil {
				cancel(err)
				return
			}
		}
	})
	return waiting, func() {
		cancel(nil)
		wg.Wait()
	}
}

var errLineLost = errors.New("NATS lost the line in which this process waited, or it was made anew")

func (b *Bus) checkLine(ctx context.Context, cons jetstream.Consumer, since time.Time, w config.Work, n int) error {
	ctx, cancel := context.WithTimeout(ctx, publishTimeout)
	defer cancel()
	info, err := cons.Info(ctx)
	if errors.Is(err, jetstream.ErrConsumerNotFound) || errors.Is(err, jetstream.ErrStreamNotFound) || (err == nil && !info.Created.Equal(since)) {
		return errLineLost
	}
	if err == nil {
		err = b.EnsureSlots(ctx, w, n)
	}
	if err != nil && !errors.Is(err, ErrDenied) {
		b.log.WarnContext(ctx, "could not see whether the line for a slot is still there", slog.String("work", string(w)), slog.Any("err", err))
		return nil
	}
	return err
}

func (b *Bus) hold(ctx context.Context, w config.Work, index int, m jetstream.Msg) *Slot {
	held, stop := context.WithCancel(context.WithoutCancel(ctx))
	s := &Slot{bus: b, work: w, index: index, msg: m, stop: stop, beating: make(chan time.Time, 1)}
	go func() { s.beating <- b.heartbeat(held, func(error) { stop() }, m, slotAckWait) }()
	return s
}

// Free gives the slot to the next one in line. It does so once; a slot that was lost is somebody else's already.
func (s *Slot) Free(ctx context.Context) error {
	m := s.msg
	if m == nil {
		return nil
	}
	s.msg = nil
	s.stop()
	left := slotAckWait - passed(<-s.beating, time.Now())
	if left <= 0 {
		return nil
	}
	if n := s.bus.slotsOf(s.work); n > 0 && s.index >= n {
		settle, cancel := context.WithTimeout(ctx, publishTimeout)
		defer cancel()
		if err := s.bus.guarded(settle, m.DoubleAck, m.Reply()); err != nil {
			return fmt.Errorf("taking token %s away: %w", m.Subject(), err)
		}
		return nil
	}
	// A connection that is just changing servers is back at once, and the next one in line need not wait for AckWait.
	for until := time.Now().Add(min(slotGiveBack, left/2)); ; {
		err := s.bus.nak(m, 0)
		if err == nil {
			return nil
		}
		if time.Now().After(until) || !wait(ctx, slotGiveBack/50) {
			return fmt.Errorf("freeing slot %s: %w", m.Subject(), err)
		}
	}
}

// EnsureSlots stores the tokens that are missing of the first n. Surplus ones go away when they are taken or freed.
func (b *Bus) EnsureSlots(ctx context.Context, w config.Work, n int) error {
	b.setSlots(w, n)
	if n <= 0 {
		return nil
	}
	there, err := b.Subjects(ctx, StreamJobs, slotPrefix(w)+"*")
	if err != nil {
		return err
	}
	for i := range n {
		subject := SlotSubject(w, i)
		if there[subject] > 0 {
			continue
		}
		if _, err := b.Publish(ctx, Outgoing{Subject: subject, Message: &emptypb.Empty{}}); err != nil && !errors.Is(err, ErrBusy) {
			return err
		}
	}
	return nil
}

// slotLine is what this process knows of the slots of one kind of work.
type slotLine struct {
	// now is how many the configuration has; filled is how many have been seen to, behind that consumer.
	now, filled int
	consumer    jetstream.Consumer
}

func (b *Bus) setSlots(w config.Work, n int) {
	b.mu.Lock()
	defer b.mu.Unlock()
	line := b.slots[w]
	line.now = n
	b.slots[w] = line
}

func (b *Bus) slotsOf(w config.Work) int {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.slots[w].now
}

func (b *Bus) forgetSlots(w config.Work) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.slots[w] = slotLine{now: b.slots[w].now}
}
