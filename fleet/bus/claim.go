package bus

import (
	"context"
	"errors"
	"fmt"
	"time"

	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/timestamppb"

	"github.com/lifeboat-fleet/lifeboat/fleet/config"
	lifeboatv1 "github.com/lifeboat-fleet/lifeboat/proto/lifeboat/v1"
)

// commitWindow is how long the holder of a claim may take to write its commit point after it announced it.
const commitWindow = 20 * time.Second

// ErrClaimLost means that a later delivery of the job, or another job of the target, has taken the claim: what was
// prepared must not be committed.
var ErrClaimLost = errors.New("another delivery has claimed this target; this one must not commit")

// Claim is the right to commit one job's result for a target. It fences a worker that was given up for dead.
//
// JetStream alone cannot: a message whose heartbeats stopped is delivered again, and a worker that was only paused comes
// back and goes on. So the right to commit is a last value per target and kind of work, written with an expected
// sequence, in three phases:
//
//	running     written when a delivery begins. Whoever wrote last holds the claim; everybody before has lost it.
//	committing  written by the holder just before the commit point. It fails if the claim was taken meanwhile. From
//	            then on the holder has commitWindow to finish, by its own clock, and gives up after that.
//	released    written after the commit point, or after a failure.
//
// A delivery that finds "committing" waits until that value has stood unchanged for the whole window, by its own clock,
// before it takes the claim: no clocks are compared. A crash in any phase costs at most that wait. Storage has its own
// fence beneath this one: data is replaced only if it is still what the delivery saw when it began.
type Claim struct {
	bus     *Bus
	subject string
	seq     uint64
	state   *lifeboatv1.ClaimState
}

// Claim takes the claim of a target for one delivery of a job.
func (b *Bus) Claim(ctx context.Context, w config.Work, target string, m *Message) (*Claim, error) {
	c := &Claim{bus: b, subject: ClaimSubject(target, w), state: &lifeboatv1.ClaimState{
		JobId: m.ID(), Attempt: m.Attempt, Worker: b.actor, Phase: lifeboatv1.ClaimState_PHASE_RUNNING,
	}}
	last := &lifeboatv1.ClaimState{}
	seq, _, err := b.Last(ctx, StreamJobs, c.subject, last)
	if err != nil {
		return nil, fmt.Errorf("reading claim: %w", err)
	}
	if last.GetPhase() == lifeboatv1.ClaimState_PHASE_COMMITTING {
		if !wait(ctx, commitWindow) {
			return nil, fmt.Errorf("waiting for %s to finish committing: %w", last.GetWorker(), ctx.Err())
		}
		now, _, err := b.Last(ctx, StreamJobs, c.subject, last)
		if err != nil {
			return nil, fmt.Errorf("reading claim: %w", err)
		}
		if now != seq && last.GetPhase() == lifeboatv1.ClaimState_PHASE_COMMITTING {
			return nil, fmt.Errorf("%w: %s began to commit", ErrClaimLost, last.GetWorker())
		}
		seq = now
	}
	if err := c.write(ctx, seq); err != nil {
		return nil, err
	}
	return c, nil
}

// Confirm says whether the claim is still held, for work that is done in many small steps and ends between two of them. It
// returns ErrClaimLost when the claim was taken.
func (c *Claim) Confirm(ctx context.Context) error { return c.write(ctx, c.seq) }

// Commit announces the commit point and returns the context to write it under. It returns ErrClaimLost when the claim
// was taken. Nothing may be committed after the returned context ended.
func (c *Claim) Commit(ctx context.Context) (context.Context, context.CancelFunc, error) {
	// The window counts from before the announcement, so that a slow announcement makes it shorter, never longer.
	until := time.Now().Add(commitWindow)
	c.state.Phase = lifeboatv1.ClaimState_PHASE_COMMITTING
	c.state.CommitUntil = timestamppb.New(until)
	if err := c.write(ctx, c.seq); err != nil {
		return nil, nil, err
	}
	// A margin for a request that is still on its way when the context ends.
	window, cancel := context.WithDeadline(ctx, until.Add(-commitWindow/4))
	return window, cancel, nil
}

// Release gives the claim up. Losing it to somebody else in the meantime is no error.
func (c *Claim) Release(ctx context.Context) error {
	c.state.Phase = lifeboatv1.ClaimState_PHASE_RELEASED
	c.state.CommitUntil = nil
	if err := c.write(ctx, c.seq); err != nil && !errors.Is(err, ErrClaimLost) {
		return err
	}
	return nil
}

func (c *Claim) write(ctx context.Context, expect uint64) error {
	seq, err := c.bus.PutState(ctx, State{
		Outgoing: Outgoing{Subject: c.subject, Message: proto.Clone(c.state)}, Expect: expect,
	})
	if errors.Is(err, ErrConflict) {
		return fmt.Errorf("%w: %w", ErrClaimLost, err)
	}
	if err != nil {
		return fmt.Errorf("writing claim: %w", err)
	}
	c.seq = seq
	return nil
}
