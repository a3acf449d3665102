package bus_test

import (
	"context"
	"errors"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/lifeboat-fleet/lifeboat/fleet/bus"
	"github.com/lifeboat-fleet/lifeboat/fleet/config"
	lifeboatv1 "github.com/lifeboat-fleet/lifeboat/proto/lifeboat/v1"
)

func message(seq uint64) *bus.Message {
	return &bus.Message{Subject: bus.JobSubject(config.WorkSnapshot, "etcd-prod"), Seq: seq, Stored: time.Unix(1_790_000_000, 0), Delivery: 1}
}

func claimOf(t *testing.T, b *bus.Bus) *lifeboatv1.ClaimState {
	t.Helper()
	s := &lifeboatv1.ClaimState{}
	_, _, err := b.Last(t.Context(), bus.StreamJobs, bus.ClaimSubject("etcd-prod", config.WorkSnapshot), s)
	require.NoError(t, err)
	return s
}

func TestAttemptsAreDeliveriesThatBegan(t *testing.T) {
	_, b := fleet(t)
	claim := func(m *bus.Message) *bus.Claim {
		c, err := b.Claim(t.Context(), config.WorkSnapshot, "etcd-prod", m)
		require.NoError(t, err)
		return c
	}
	m := message(7)
	first := claim(m)
	assert.Equal(t, int64(1), m.Attempt)
	require.NoError(t, first.HandBack(t.Context()))
	second := claim(m)
	assert.Equal(t, int64(1), m.Attempt, "it was handed back")
	assert.WithinDuration(t, time.Now(), claimOf(t, b).GetStartedAt().AsTime(), 10*time.Second)
	require.NoError(t, second.Release(t.Context()))
	third := claim(m)
	assert.Equal(t, int64(2), m.Attempt, "it failed")
	claim(m)
	assert.Equal(t, int64(3), m.Attempt, "its worker is gone")
	require.NoError(t, third.HandBack(t.Context()), "giving back what is lost is no error")
	assert.Equal(t, lifeboatv1.ClaimState_PHASE_RUNNING, claimOf(t, b).GetPhase(), "and changes nothing")
	next := message(8)
	claim(next)
	assert.Equal(t, int64(1), next.Attempt, "another job")
}

// A delivery that waited while its message was removed finds a later job of the target, and must not take the claim from it.
func TestAJobThatIsGoneTakesNoClaimFromALaterOne(t *testing.T) {
	_, b := fleet(t)
	later, err := b.Claim(t.Context(), config.WorkSnapshot, "etcd-prod", message(10))
	require.NoError(t, err)
	_, err = b.Claim(t.Context(), config.WorkSnapshot, "etcd-prod", message(9))
	require.ErrorIs(t, err, bus.ErrClaimLost)
	require.NoError(t, later.Confirm(t.Context()))
	require.NoError(t, later.Release(t.Context()))
	_, err = b.Claim(t.Context(), config.WorkSnapshot, "etcd-prod", message(9))
	require.ErrorIs(t, err, bus.ErrClaimLost)
	_, err = b.Claim(t.Context(), config.WorkSnapshot, "etcd-prod", message(11))
	require.NoError(t, err)
}

// What fails before the claim is no attempt, and is tried again less and less often.
func TestWhatCannotBeClaimedIsTriedLessAndLessOften(t *testing.T) {
	_, b := fleet(t)
	waits := make(chan int64)
	c := jobs(func(context.Context, *bus.Message) error { return errors.New("the claim is denied") })
	c.CountsByClaim, c.MaxAttempts, c.AckWait = true, 2, time.Minute
	c.Backoff = func(n int64) time.Duration {
		waits <- n
		return time.Millisecond
	}
	start(t, b, c)
	_, err := b.Publish(t.Context(), job("etcd-prod"))
	require.NoError(t, err)
	for _, want := range []int64{1, 2, 3, 4, 5, 5} {
		assert.Equal(t, want, receive(t, waits))
	}
}

func TestAHeldClaimEndsWhenAnotherTakesIt(t *testing.T) {
	s, b := fleet(t)
	c, err := b.Claim(t.Context(), config.WorkSnapshot, "etcd-prod", message(7))
	require.NoError(t, err)
	held, stop := c.Hold(t.Context(), 20*time.Millisecond)
	defer stop()
	// Its own writes are no loss.
	require.NoError(t, c.Confirm(t.Context()))
	window, done, err := c.Commit(held)
	require.NoError(t, err)
	defer done()
	require.NoError(t, c.Release(t.Context()))
	select {
	case <-held.Done():
		require.NoError(t, context.Cause(held))
	case <-time.After(300 * time.Millisecond):
	}
	require.NoError(t, window.Err())
	_, err = connect(t, s.URL(), "other").Claim(t.Context(), config.WorkSnapshot, "etcd-prod", message(7))
	require.NoError(t, err)
	receive(t, held.Done())
	require.ErrorIs(t, context.Cause(held), bus.ErrClaimLost)
	require.ErrorContains(t, context.Cause(held), "other")
}

// NATS goes away while a claim is held: nothing can be read, and that is no loss. The claim is still there afterwards.
func TestAClaimThatCannotBeReadIsNotLost(t *testing.T) {
	s, b := fleet(t)
	c, err := b.Claim(t.Context(), config.WorkSnapshot, "etcd-prod", message(7))
	require.NoError(t, err)
	held, stop := c.Hold(t.Context(), 50*time.Millisecond)
	defer stop()
	s.Stop()
	select {
	case <-held.Done():
		require.NoError(t, context.Cause(held))
	case <-time.After(2 * time.Second):
	}
	require.NoError(t, s.Restart())
	require.Eventually(t, func() bool { return b.Ready(t.Context()) == nil }, time.Minute, 50*time.Millisecond)
	require.NoError(t, c.Confirm(t.Context()))
	require.NoError(t, held.Err())
}

// A running job is cancelled: its work ends, it cannot commit, it leaves no dead letter, and the next job may be stored.
func TestARunningJobIsCancelled(t *testing.T) {
	s, b := fleet(t)
	begun, ended, committed := make(chan struct{}), make(chan error, 1), make(chan error, 1)
	other := connect(t, s.URL(), "worker")
	c := jobs(func(ctx context.Context, m *bus.Message) error {
		claim, err := other.Claim(ctx, config.WorkSnapshot, "etcd-prod", m)
		if err != nil {
			return err
		}
		held, stop := claim.Hold(ctx, 50*time.Millisecond)
		defer stop()
		close(begun)
		<-held.Done()
		ended <- context.Cause(held)
		_, _, err = claim.Commit(ctx)
		committed <- err
		return errors.Join(context.Cause(held), claim.Release(ctx))
	})
	c.CountsByClaim, c.MaxAttempts, c.AckWait = true, 1, time.Minute
	c.OnDead = func(context.Context, *bus.Message, error) error {
		assert.Fail(t, "a dead letter")
		return nil
	}
	stop := start(t, other, c)
	_, err := b.Publish(t.Context(), job("etcd-prod"))
	require.NoError(t, err)
	receive(t, begun)
	_, _, err = b.CancelJob(t.Context(), config.WorkSnapshot, "etcd-prod", "20261121T000000.000Z-1", "cli ada@host")
	require.ErrorIs(t, err, bus.ErrNoMessage, "another job than the one that was meant")
	id, was, err := b.CancelJob(t.Context(), config.WorkSnapshot, "etcd-prod", "", "cli ada@host")
	require.NoError(t, err)
	assert.Equal(t, id, was.GetJobId())
	assert.Equal(t, "worker", was.GetWorker())
	require.ErrorIs(t, receive(t, ended), bus.ErrCancelled)
	require.ErrorIs(t, receive(t, committed), bus.ErrCancelled)
	stop()
	_, err = b.Publish(t.Context(), job("etcd-prod"))
	require.NoError(t, err)
	assert.Equal(t, "cli ada@host", claimOf(t, b).GetCancelledBy())
	cons, err := raw(t, s.URL()).Consumer(t.Context(), bus.StreamJobs, "test")
	require.NoError(t, err)
	assert.Zero(t, cons.CachedInfo().NumAckPending, "the cancelled delivery is settled")
}

// The one that cancels dies between its two writes: whoever gets the job ends it.
func TestACancelledJobThatIsStillThereEndsItself(t *testing.T) {
	s, b := fleet(t)
	seq, err := b.Publish(t.Context(), job("etcd-prod"))
	require.NoError(t, err)
	m, err := stored(t, s.URL(), seq)
	require.NoError(t, err)
	_, err = b.PutState(t.Context(), bus.State{Outgoing: bus.Outgoing{
		Subject: bus.ClaimSubject("etcd-prod", config.WorkSnapshot), Message: &lifeboatv1.ClaimState{
			JobId: m.ID(), Phase: lifeboatv1.ClaimState_PHASE_CANCELLED, CancelledBy: "ada",
		},
	}})
	require.NoError(t, err)
	refused := make(chan error, 1)
	c := jobs(func(ctx context.Context, m *bus.Message) error {
		_, taken := b.Claim(ctx, config.WorkSnapshot, "etcd-prod", m)
		refused <- taken
		return taken
	})
	c.AckWait, c.CountsByClaim = time.Minute, true
	start(t, b, c)
	err = receive(t, refused)
	require.ErrorIs(t, err, bus.ErrCancelled)
	require.ErrorContains(t, err, "ada")
	require.Eventually(t, func() bool {
		_, err = b.Publish(t.Context(), job("etcd-prod"))
		return err == nil
	}, time.Minute, 10*time.Millisecond, "the subject is free: %v", &err)
}

func stored(t *testing.T, url string, seq uint64) (*bus.Message, error) {
	t.Helper()
	st, err := raw(t, url).Stream(t.Context(), bus.StreamJobs)
	require.NoError(t, err)
	m, err := st.GetMsg(t.Context(), seq)
	if err != nil {
		return nil, err
	}
	return &bus.Message{Subject: m.Subject, Seq: m.Sequence, Stored: m.Time}, nil
}

func TestAJobIsNotCancelledWhileItCommits(t *testing.T) {
	t.Parallel()
	s, b := fleet(t)
	_, _, err := b.CancelJob(t.Context(), config.WorkSnapshot, "etcd-prod", "", "ada")
	require.ErrorIs(t, err, bus.ErrNoMessage)
	seq, err := b.Publish(t.Context(), job("etcd-prod"))
	require.NoError(t, err)
	m, err := stored(t, s.URL(), seq)
	require.NoError(t, err)
	c, err := b.Claim(t.Context(), config.WorkSnapshot, "etcd-prod", m)
	require.NoError(t, err)
	_, done, err := c.Commit(t.Context())
	require.NoError(t, err)
	defer done()
	id, was, err := b.CancelJob(t.Context(), config.WorkSnapshot, "etcd-prod", m.ID(), "ada")
	require.ErrorIs(t, err, bus.ErrCommitting)
	assert.Equal(t, m.ID(), id)
	assert.Equal(t, "test", was.GetWorker())
	require.NoError(t, c.Confirm(t.Context()), "the holder has lost nothing")
	// A holder that died there is no reason to refuse for ever.
	require.Eventually(t, func() bool {
		_, _, err = b.CancelJob(t.Context(), config.WorkSnapshot, "etcd-prod", m.ID(), "ada")
		return err == nil
	}, 30*time.Second, time.Second, "%v", &err)
	require.ErrorIs(t, c.Confirm(t.Context()), bus.ErrCancelled)
}

// A job that waits and that nobody has begun is cancelled too, though the claim is of the one before.
func TestAWaitingJobIsCancelled(t *testing.T) {
	_, b := fleet(t)
	before, err := b.Claim(t.Context(), config.WorkSnapshot, "etcd-prod", message(1))
	require.NoError(t, err)
	require.NoError(t, before.Release(t.Context()))
	_, err = b.Publish(t.Context(), job("etcd-prod"))
	require.NoError(t, err)
	id, was, err := b.CancelJob(t.Context(), config.WorkSnapshot, "etcd-prod", "", "ada")
	require.NoError(t, err)
	assert.Nil(t, was)
	assert.Equal(t, id, claimOf(t, b).GetJobId())
	_, err = b.Publish(t.Context(), job("etcd-prod"))
	require.NoError(t, err)
}

// While a commit is under way the next delivery waits; it goes on as soon as that has ended, not only after the whole window.
func TestWhoWaitsForACommitGoesOnWhenItHasEnded(t *testing.T) {
	_, b := fleet(t)
	first, err := b.Claim(t.Context(), config.WorkSnapshot, "etcd-prod", message(7))
	require.NoError(t, err)
	_, done, err := first.Commit(t.Context())
	require.NoError(t, err)
	claimed := make(chan error, 1)
	go func() {
		_, waited := b.Claim(t.Context(), config.WorkSnapshot, "etcd-prod", message(7))
		claimed <- waited
	}()
	select {
	case err = <-claimed:
		require.Fail(t, "claimed during a commit", err)
	case <-time.After(2 * time.Second):
	}
	done()
	require.NoError(t, first.Release(t.Context()))
	begin := time.Now()
	require.NoError(t, receive(t, claimed))
	assert.Less(t, time.Since(begin), 5*time.Second)
}

// A job ends, and the next one of the target begins, between the reading of the job and that of the claim: the claim that was written
// as cancelled then was the next one's, whose worker lost it.
func TestCancellingLeavesTheNextJobAlone(t *testing.T) {
	_, b := fleet(t)
	seq, err := b.Publish(t.Context(), bus.Outgoing{Subject: bus.JobSubject(config.WorkSnapshot, "etcd-prod"), Message: &lifeboatv1.Job{}})
	require.NoError(t, err)
	next := message(seq + 1)
	c, err := b.Claim(t.Context(), config.WorkSnapshot, "etcd-prod", next)
	require.NoError(t, err)
	_, _, err = b.CancelJob(t.Context(), config.WorkSnapshot, "etcd-prod", "", "me")
	require.ErrorIs(t, err, bus.ErrNoMessage)
	assert.Equal(t, next.ID(), claimOf(t, b).GetJobId())
	require.NoError(t, c.Confirm(t.Context()))
}
