package bus

import (
	"context"
	"errors"
	"fmt"
	"time"

	"google.golang.org/protobuf/proto"

	"github.com/lifeboat-fleet/lifeboat/fleet/config"
	lifeboatv1 "github.com/lifeboat-fleet/lifeboat/proto/lifeboat/v1"
)

// Hold is a context for the work under the claim. It ends with the cause ErrClaimLost or ErrCancelled when the claim was taken or
// the job cancelled, which is looked at at every interval. A look that fails says nothing: the claim's next write decides.
func (c *Claim) Hold(ctx context.Context, every time.Duration) (context.Context, context.CancelFunc) {
	held, stop := context.WithCancelCause(ctx)
	done := make(chan struct{})
	go func() {
		defer close(done)
		for wait(held, every) {
			if err := c.look(held); err != nil {
				stop(err)
				return
			}
		}
	}()
	return held, func() {
		stop(nil)
		<-done
	}
}

// look reads the claim. What is not newer than the claim's last write comes from a replica that lags behind.
func (c *Claim) look(ctx context.Context) error {
	last := &lifeboatv1.ClaimState{}
	seq, _, err := c.bus.Last(ctx, StreamJobs, c.subject, last)
	if err != nil {
		return nil // not known is not lost
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if seq <= c.seq {
		return nil
	}
	return c.taken(last)
}

// CancelJob ends the job of a target that waits or runs: it writes the claim as cancelled, so that every delivery of the job ends
// itself. The message of a job that waits is deleted. That of a running one stays until its holder has let go, or the delivery after a
// dead holder's, so that the next job of the target does not begin beside it; who cancels it once more deletes it all the same. by
// says who wants it. When id is not empty, another job than that one is left alone, as if it was not there.
//
// It returns the job's id and the claim that it replaced, whose worker is the one that has to notice; that is nil when no delivery of
// the job has begun. ErrNoMessage: no job is there. ErrCommitting: too late.
func (b *Bus) CancelJob(
	ctx context.Context, w config.Work, target, id, by string,
) (cancelled string, was *lifeboatv1.ClaimState, err error) {
	subject := JobSubject(w, target)
	seq, at, err := b.Last(ctx, StreamJobs, subject, &lifeboatv1.Job{})
	if err != nil {
		return "", nil, err
	}
	there := (&Message{Seq: seq, Stored: at}).ID()
	if seq == 0 || (id != "" && id != there) {
		return "", nil, fmt.Errorf("cancelling %s: %w", subject, ErrNoMessage)
	}
	id = there
	if was, err = b.cancelClaim(ctx, ClaimSubject(target, w), id, by); err != nil {
		return id, was, fmt.Errorf("cancelling job %s: %w", id, err)
	}
	if was.GetPhase() == lifeboatv1.ClaimState_PHASE_RUNNING || was.GetPhase() == lifeboatv1.ClaimState_PHASE_COMMITTING {
		return id, was, nil
	}
	if err = b.Delete(ctx, StreamJobs, seq); err != nil {
		return id, was, fmt.Errorf("cancelling job %s: %w", id, err)
	}
	return id, was, nil
}

func (b *Bus) cancelClaim(ctx context.Context, subject, id, by string) (was *lifeboatv1.ClaimState, err error) {
	for try := 1; ; try++ {
		last := &lifeboatv1.ClaimState{}
		seq, at, err := b.Last(ctx, StreamJobs, subject, last)
		if err != nil {
			return nil, fmt.Errorf("reading claim: %w", err)
		}
		if sequence(last.GetJobId()) > sequence(id) {
			return nil, fmt.Errorf("%w: job %s has followed it", ErrNoMessage, last.GetJobId())
		}
		next := &lifeboatv1.ClaimState{JobId: id, Phase: lifeboatv1.ClaimState_PHASE_CANCELLED, CancelledBy: by}
		was = nil
		if last.GetJobId() == id {
			was = last
			next = proto.CloneOf(last)
			next.Phase, next.CancelledBy, next.CommitUntil = lifeboatv1.ClaimState_PHASE_CANCELLED, by, nil
		}
		if last.GetPhase() == lifeboatv1.ClaimState_PHASE_COMMITTING {
			var open bool
			if open, err = b.windowOpen(ctx, at); err != nil {
				return was, err
			}
			if open {
				return was, fmt.Errorf("%w (%s)", ErrCommitting, last.GetWorker())
			}
		}
		_, err = b.PutState(ctx, State{Outgoing: Outgoing{Subject: subject, Message: next}, Expect: seq})
		if errors.Is(err, ErrConflict) && try < claimTries && wait(ctx, time.Duration(try)*20*time.Millisecond) {
			continue
		}
		if err != nil {
			return was, fmt.Errorf("writing claim: %w", err)
		}
		return was, nil
	}
}

// windowOpen says whether the commit window of a claim that was stored at that time may still be open. Both times are the server's.
func (b *Bus) windowOpen(ctx context.Context, at time.Time) (bool, error) {
	ctx, cancel := context.WithTimeout(ctx, publishTimeout)
	defer cancel()
	s, err := b.stream(ctx, StreamJobs)
	if err != nil {
		return false, err
	}
	return s.CachedInfo().TimeStamp.Sub(at) < commitWindow, nil
}
