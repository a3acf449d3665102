package bus_test

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/lifeboat-fleet/lifeboat/fleet/bus"
	"github.com/lifeboat-fleet/lifeboat/fleet/config"
	lifeboatv1 "github.com/lifeboat-fleet/lifeboat/proto/lifeboat/v1"
)

// What fits into the time of grace ends as if nothing was: its context goes on, its heartbeats too, and it is acknowledged. What is
// published meanwhile is left to others.
func TestAStopLetsWorkEndAndTakesNoMore(t *testing.T) {
	s, b := fleet(t)
	begun, finish, ended := make(chan string, 3), make(chan struct{}), make(chan error, 1)
	c := jobs(func(ctx context.Context, m *bus.Message) error {
		begun <- m.Subject
		<-finish
		ended <- ctx.Err()
		return nil
	})
	c.Grace, c.Concurrency = time.Minute, 3
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- b.Consume(ctx, c) }()
	_, err := b.Publish(t.Context(), job("etcd-prod"))
	require.NoError(t, err)
	receive(t, begun)
	cancel()

	others := make(chan string, 3)
	other := c
	other.Handle = func(_ context.Context, m *bus.Message) error {
		others <- m.Subject
		return nil
	}
	start(t, connect(t, s.URL(), "other"), other)
	_, err = b.Publish(t.Context(), job("consul-kv"))
	require.NoError(t, err)
	assert.Equal(t, "lifeboat.job.snapshot.consul-kv", receive(t, others))
	select {
	case <-time.After(5 * time.Second): // two and a half times AckWait: only heartbeats keep the job here
	case subject := <-others:
		assert.Fail(t, "given to another worker", subject)
	case err = <-done:
		assert.Fail(t, "Consume returned before its handler", err)
	}
	close(finish)
	require.NoError(t, receive(t, done))
	require.NoError(t, receive(t, ended), "the handler's context did not end")
	_, err = b.Publish(t.Context(), job("etcd-prod"))
	require.NoError(t, err, "acknowledged before Consume returned")
}

func TestWhatDoesNotFitIntoTheGraceIsHandedBackAtOnce(t *testing.T) {
	s, b := fleet(t)
	begun, ended := make(chan int64, 1), make(chan error, 1)
	c := jobs(nil)
	c.Grace, c.AckWait, c.MaxAttempts, c.CountsByClaim = time.Second, time.Minute, 1, true
	c.Handle = func(ctx context.Context, m *bus.Message) error {
		claim, err := b.Claim(ctx, config.WorkSnapshot, "etcd-prod", m)
		if err != nil {
			return err
		}
		begun <- m.Attempt
		<-ctx.Done()
		ended <- context.Cause(ctx)
		return errors.Join(context.Cause(ctx), claim.HandBack(context.WithoutCancel(ctx)))
	}
	stop := start(t, b, c)
	_, err := b.Publish(t.Context(), job("etcd-prod"))
	require.NoError(t, err)
	assert.Equal(t, int64(1), receive(t, begun))
	stopped := time.Now()
	stop()
	require.ErrorIs(t, receive(t, ended), bus.ErrStopping)
	assert.GreaterOrEqual(t, time.Since(stopped), time.Second)

	again := make(chan *bus.Message, 1)
	other := connect(t, s.URL(), "other")
	c.Handle = func(ctx context.Context, m *bus.Message) error {
		claim, err := other.Claim(ctx, config.WorkSnapshot, "etcd-prod", m)
		if err != nil {
			return err
		}
		again <- m
		return claim.Release(ctx)
	}
	start(t, other, c)
	m := receive(t, again) // well before AckWait
	// It may have come once more to the one that stopped, whose pull was on its way, and have been handed back at once.
	assert.GreaterOrEqual(t, m.Delivery, int64(2))
	assert.Equal(t, int64(1), m.Attempt, "what was handed back is no attempt")
}

// A message that is on its way to a worker in the moment in which it stops is given back, not left until AckWait is over.
func TestAMessagePulledInTheMomentOfTheStopIsHandedBack(t *testing.T) {
	s, b := fleet(t)
	seed := uint64(time.Now().UnixNano())
	t.Log("seed", seed)
	random := rand.New(rand.NewPCG(seed, 1))
	other := connect(t, s.URL(), "other")
	for i := range 60 {
		target := fmt.Sprintf("t-%d", i)
		handled := make(chan string, 2)
		c := jobs(func(_ context.Context, m *bus.Message) error {
			handled <- m.Subject
			return nil
		})
		c.AckWait, c.Durable, c.Filter = time.Minute, "race-"+target, bus.JobSubject(config.WorkSnapshot, target)
		stop := start(t, b, c)
		var wg sync.WaitGroup
		delay := time.Duration(random.IntN(3000)) * time.Microsecond
		wg.Go(func() {
			<-time.After(20*time.Millisecond + delay) // the pull is there; a moment of the test's choosing around the publish
			stop()
		})
		<-time.After(21 * time.Millisecond)
		_, err := other.Publish(t.Context(), job(target))
		require.NoError(t, err)
		wg.Wait()
		stopOther := start(t, other, c)
		assert.Equal(t, bus.JobSubject(config.WorkSnapshot, target), receive(t, handled), "stopped after %s", delay)
		stopOther()
	}
}

func TestAHandlerHandsBackWithADelayAndWithoutAnAttempt(t *testing.T) {
	_, b := fleet(t)
	deliveries := make(chan int64, 10)
	c := jobs(func(_ context.Context, m *bus.Message) error {
		assert.Zero(t, m.Attempt, "nobody claimed")
		deliveries <- m.Delivery
		if m.Delivery < 4 {
			return bus.HandBack(200*time.Millisecond, errors.New("another zone"))
		}
		return nil
	})
	c.MaxAttempts, c.CountsByClaim, c.AckWait = 2, true, time.Minute
	start(t, b, c)
	begin := time.Now()
	_, err := b.Publish(t.Context(), job("etcd-prod"))
	require.NoError(t, err)
	for want := range int64(4) {
		assert.Equal(t, want+1, receive(t, deliveries))
	}
	assert.GreaterOrEqual(t, time.Since(begin), 600*time.Millisecond)
	n, err := b.Subjects(t.Context(), bus.StreamDead, "lifeboat.dead.>")
	require.NoError(t, err)
	assert.Empty(t, n)
}

// What waits to be delivered again holds no place: other jobs come through, however many were handed back.
func TestHandedBackJobsDoNotHoldUpOthers(t *testing.T) {
	_, b := fleet(t)
	const many = 1500 // more than the 1,000 that a consumer's default lets be under way
	done := make(chan string, many)
	c := jobs(func(_ context.Context, m *bus.Message) error {
		if m.Subject != bus.JobSubject(config.WorkSnapshot, "mine") {
			return bus.HandBack(time.Minute, errors.New("another zone"))
		}
		done <- m.Subject
		return nil
	})
	c.CountsByClaim, c.AckWait, c.Concurrency = true, time.Minute, 4
	all := make([]bus.Outgoing, 0, many)
	for i := range many {
		all = append(all, bus.Outgoing{Subject: bus.JobSubject(config.WorkSnapshot, fmt.Sprintf("t-%d", i)), Message: &lifeboatv1.Job{}})
	}
	require.NoError(t, b.PublishAll(t.Context(), all))
	start(t, b, c)
	_, err := b.Publish(t.Context(), job("mine"))
	require.NoError(t, err)
	receive(t, done)
}

// A drain takes no more messages, and leaves what is at hand alone for however long that takes; a stop that comes then is one as always.
func TestADrainLetsWorkGoOnWithoutALimit(t *testing.T) {
	for _, stopped := range []bool{false, true} {
		t.Run(fmt.Sprintf("stopped meanwhile: %t", stopped), func(t *testing.T) {
			s, b := fleet(t)
			begun, finish, ended, drain := make(chan string, 3), make(chan struct{}), make(chan error, 1), make(chan struct{})
			c := jobs(func(ctx context.Context, m *bus.Message) error {
				begun <- m.Subject
				select {
				case <-finish:
				case <-ctx.Done():
				}
				ended <- context.Cause(ctx)
				return context.Cause(ctx)
			})
			c.Grace, c.Concurrency, c.Drain = 0, 3, drain // a stop would end it at once
			ctx, cancel := context.WithCancel(t.Context())
			defer cancel()
			done := make(chan error, 1)
			go func() { done <- b.Consume(ctx, c) }()
			_, err := b.Publish(t.Context(), job("etcd-prod"))
			require.NoError(t, err)
			receive(t, begun)
			close(drain)

			others := make(chan string, 3)
			other := c
			other.Drain = nil
			other.Handle = func(_ context.Context, m *bus.Message) error {
				others <- m.Subject
				return nil
			}
			start(t, connect(t, s.URL(), "other"), other)
			_, err = b.Publish(t.Context(), job("consul-kv"))
			require.NoError(t, err)
			assert.Equal(t, "lifeboat.job.snapshot.consul-kv", receive(t, others))
			select {
			case <-time.After(5 * time.Second): // two and a half times AckWait: only heartbeats keep the job here
			case subject := <-others:
				assert.Fail(t, "given to another worker", subject)
			case err = <-done:
				assert.Fail(t, "Consume returned before its handler", err)
			case err = <-ended:
				assert.Fail(t, "the handler's context ended", err)
			}
			if stopped {
				cancel()
				require.ErrorIs(t, receive(t, ended), bus.ErrStopping)
				assert.Equal(t, "lifeboat.job.snapshot.etcd-prod", receive(t, others), "handed back, as always")
			} else {
				close(finish)
				require.NoError(t, receive(t, ended))
			}
			require.NoError(t, receive(t, done))
			require.Eventually(t, func() bool {
				_, err = b.Publish(t.Context(), job("etcd-prod"))
				return err == nil
			}, time.Minute, 20*time.Millisecond, "acknowledged")
		})
	}
}

// Who was told to drain before it began takes nothing.
func TestADrainBeforeTheStartTakesNothing(t *testing.T) {
	_, b := fleet(t)
	drain := make(chan struct{})
	close(drain)
	c := jobs(func(context.Context, *bus.Message) error {
		assert.Fail(t, "it takes a job")
		return nil
	})
	c.Drain, c.Concurrency = drain, 3
	_, err := b.Publish(t.Context(), job("etcd-prod"))
	require.NoError(t, err)
	require.NoError(t, b.Consume(t.Context(), c))
}
