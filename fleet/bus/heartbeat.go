package bus

import (
	"context"
	"errors"
	"sync"
	"time"

	"github.com/nats-io/nats.go/jetstream"
)

// heartbeat tells the server that the work goes on, and cancels the work when the server has not confirmed that for two
// thirds of AckWait: after a whole AckWait the message is given to somebody else. It returns when the last confirmed beat was sent.
//
// A process that was stopped, or whose machine slept, finds on waking that the time is over, and must not send another beat: the
// server would take it for one of the delivery that has the message now.
func (b *Bus) heartbeat(ctx context.Context, lost context.CancelCauseFunc, jm jetstream.Msg, ackWait time.Duration) (confirmed time.Time) {
	ticker := time.NewTicker(ackWait / 3)
	defer ticker.Stop()
	confirmed = time.Now()
	for {
		select {
		case <-ctx.Done():
			return confirmed
		case <-ticker.C:
		}
		sent := time.Now()
		// Without a connection the library would keep the beat, and send it when it is too old.
		if passed(confirmed, sent) < ackWait && b.Connected() == nil {
			beat, cancel := context.WithTimeout(ctx, ackWait/6)
			// InProgress of the library sends and forgets; a request gets the server's answer.
			_, err := b.nc.RequestWithContext(beat, jm.Reply(), []byte("+WPI"))
			cancel()
			if err == nil {
				confirmed = sent
				continue
			}
			if ctx.Err() != nil {
				return confirmed
			}
		}
		if passed(confirmed, time.Now()) >= ackWait*2/3 {
			b.metrics.lost.Inc()
			lost(ErrLostMessage)
			return confirmed
		}
	}
}

// passed is the time between two readings of the clocks, by the one that says more: the monotonic clock stands still while a machine
// sleeps, and the wall clock may be set back.
func passed(from, to time.Time) time.Duration {
	return max(to.Sub(from), to.Round(0).Sub(from.Round(0)))
}

var errStoodStill = errors.New("this process stood still for so long that what it was given meanwhile may be with others")

// clock notices that a process was stopped, or its machine slept, while it waited for messages: one that lay in a buffer all the time is
// no longer its own, and beats for it would be taken for those of the delivery that has it now.
type clock struct {
	mu    sync.Mutex
	last  time.Time
	stood bool
	most  time.Duration
	stop  func()
}

// watchClock looks at the clocks three times in every ackWait. The context ends when two looks were too far apart.
func watchClock(ctx context.Context, ackWait time.Duration) (context.Context, *clock) {
	ctx, cancel := context.WithCancelCause(ctx)
	c := &clock{last: time.Now(), most: ackWait * 2 / 3}
	var wg sync.WaitGroup
	wg.Go(func() {
		for wait(ctx, ackWait/3) {
			if c.stoodStill() {
				cancel(errStoodStill)
				return
			}
		}
	})
	c.stop = func() {
		cancel(nil)
		wg.Wait()
	}
	return ctx, c
}

func (c *clock) stoodStill() bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	now := time.Now()
	c.stood = c.stood || passed(c.last, now) >= c.most
	c.last = now
	return c.stood
}

// next waits for a message. One that comes in the moment in which the context ends is given back.
//
// It asks the iterator once, however long that takes: the library notices only within one call that the server's signs of life for a
// waiting pull are missing.
func (c *clock) next(ctx context.Context, it jetstream.MessagesContext) (jetstream.Msg, error) {
	m, err := it.Next(jetstream.NextContext(ctx))
	switch {
	case c.stoodStill():
		return nil, errStoodStill
	case ctx.Err() != nil:
		if m != nil {
			err = m.Nak()
		}
		return nil, errors.Join(context.Cause(ctx), err)
	}
	return m, err
}

// end ends an iterator, and gives back what is under way to it, unless that is too old. It returns how many messages that were.
func (c *clock) end(it jetstream.MessagesContext) (n int) {
	if c.stoodStill() {
		it.Stop()
		return 0
	}
	return handBackRest(it)
}

// drainTimeout is how long an iterator that ends waits for what the server has sent already.
const drainTimeout = 2 * time.Second

// handBackRest ends an iterator, and gives back what was under way to it: the server takes it for delivered, and would wait for
// AckWait otherwise. It returns how many messages that were.
func handBackRest(it jetstream.MessagesContext) (n int) {
	it.Drain()
	defer it.Stop()
	until := time.Now().Add(drainTimeout)
	for {
		m, err := it.Next(jetstream.NextMaxWait(max(time.Until(until), time.Millisecond)))
		if err != nil {
			return n
		}
		if m.Nak() == nil {
			n++
		}
	}
}
