package bus

import (
	"context"
	"errors"
	"fmt"
	"strconv"
	"strings"
	"sync"
	"time"

	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/timestamppb"

	"github.com/lifeboat-fleet/lifeboat/fleet/config"
	lifeboatv1 "github.com/lifeboat-fleet/lifeboat/proto/lifeboat/v1"
)

const (
	// commitWindow is how long the holder of a claim may take to write its commit point after it announced it.
	commitWindow = 20 * time.Second
	// commitPoll is how often whoever waits for the end of that window looks whether it is over earlier.
	commitPoll = time.Second
	// A claim that somebody writes between the reading and the writing is read again, so many times.
	claimTries = 8
)

var (
	// ErrClaimLost means that a later delivery of the job, or another job of the target, has taken the claim: what was
	// prepared must not be committed.
	ErrClaimLost = errors.New("another delivery has claimed this target; this one must not commit")
	// ErrCancelled means that somebody does not want the job any more: it ends without a dead letter.
	ErrCancelled = errors.New("the job was cancelled")
	// ErrExhausted means that all attempts of a job have begun, and none of them came to an end: whatever it does ends its worker.
	ErrExhausted = errors.New("all attempts of the job have begun")
	// ErrCommitting means that a job is just being committed, so that it can no longer be cancelled.
	ErrCommitting = errors.New("the job is being committed right now; it ends within seconds")
)

// Claim is the right to go on with one job of a target, and to commit its result. It fences a worker that was given up for dead,
// counts the attempts, and is how a job is cancelled.
//
// JetStream alone cannot: a message whose heartbeats stopped is delivered again, and a worker that was only paused comes
// back and goes on. So the right is a last value per target and kind of work, written with an expected sequence:
//
//	running      written when a delivery begins, with the number of its attempt. Whoever wrote last holds the claim; everybody
//	             before has lost it.
//	committing   written by the holder just before the commit point. It fails if the claim was taken meanwhile. From
//	             then on the holder has commitWindow to finish, by its own clock, and gives up after that.
//	released     written by the holder after the commit point, or after a failure.
//	handed back  written by the holder when it was stopped: the next delivery does not count as another attempt.
//	cancelled    written by CancelJob, whoever holds the claim, unless that is committing. The holder has lost it then, and every
//	             further delivery of the job ends at its first step. A claim by another job replaces it.
//
// Who has authority: the server, by the expected sequence of each write. A holder that reads its claim (Hold) learns early what
// its next write would be told. A delivery that finds "committing" waits until that value is replaced, or has stood unchanged for the
// whole window by its own clock, before it takes the claim: no clocks are compared.
//
// What survives a crash. Of the holder, in any phase: the next delivery takes the claim, after at most the window, and counts an
// attempt more, so that a job that kills its worker becomes a dead letter in the end. Of CancelJob after it wrote "cancelled" and
// before it deleted the message, or of a holder that was cancelled: the next delivery of the message ends it. Of NATS's data: the claim is gone with the jobs, the
// holder's next write fails, and its job with it. Storage has its own fence beneath this one: data is replaced only if it is still
// what the delivery saw when it began.
//
// A holder that was cancelled works on until it notices, by Hold or at its commit. Its message stays until then, and with it the next job
// of the target away.
type Claim struct {
	bus     *Bus
	subject string
	// mu guards what follows: Hold reads beside the work.
	mu    sync.Mutex
	seq   uint64
	state *lifeboatv1.ClaimState
}

// Claim takes the claim of a target for one delivery of a job, and sets the message's Attempt. It returns ErrCancelled when the
// job was cancelled, and a Terminal ErrExhausted when the consumer's MaxAttempts have begun before.
func (b *Bus) Claim(ctx context.Context, w config.Work, target string, m *Message) (*Claim, error) {
	c := &Claim{bus: b, subject: ClaimSubject(target, w)}
	last := &lifeboatv1.ClaimState{}
	for try := 1; ; try++ {
		seq, _, err := b.Last(ctx, StreamJobs, c.subject, last)
		if err != nil {
			return nil, fmt.Errorf("reading claim: %w", err)
		}
		if last.GetPhase() == lifeboatv1.ClaimState_PHASE_COMMITTING {
			if seq, err = c.outwait(ctx, seq, last); err != nil {
				return nil, err
			}
		}
		if err = c.follow(last, m); err != nil {
			return nil, err
		}
		seq, err = b.PutState(ctx, State{Outgoing: Outgoing{Subject: c.subject, Message: c.state}, Expect: seq})
		if errors.Is(err, ErrConflict) && try < claimTries {
			// Somebody wrote, or a replica that lags behind answered the reading.
			if !wait(ctx, time.Duration(try)*20*time.Millisecond) {
				return nil, ctx.Err()
			}
			last = &lifeboatv1.ClaimState{}
			continue
		}
		if err != nil {
			return nil, fmt.Errorf("writing claim: %w", err)
		}
		c.seq = seq
		return c, nil
	}
}

// follow makes the state that comes after the last one, for a delivery of m.
func (c *Claim) follow(last *lifeboatv1.ClaimState, m *Message) error {
	if err := m.Outlived(last); err != nil {
		return err
	}
	m.Attempt = 1
	if last.GetJobId() == m.ID() {
		switch last.GetPhase() {
		case lifeboatv1.ClaimState_PHASE_HANDED_BACK:
			m.Attempt = max(last.GetAttempt(), 1)
		default:
			m.Attempt = last.GetAttempt() + 1
		}
	}
	if m.maxAttempts > 0 && m.Attempt > m.maxAttempts {
		m.Attempt = m.maxAttempts
		return Terminal("gave_up", fmt.Errorf("%w: the last of %d, by %s, did not come to an end", ErrExhausted, m.maxAttempts, last.GetWorker()))
	}
	c.state = &lifeboatv1.ClaimState{
		JobId: m.ID(), Attempt: m.Attempt, Worker: c.bus.actor, Phase: lifeboatv1.ClaimState_PHASE_RUNNING,
		StartedAt: timestamppb.Now(),
	}
	return nil
}

// Outlived says why a delivery that has waited must not begin, by the last state of its job's claim: ErrCancelled when the job was
// cancelled, ErrClaimLost when a later job of the target has begun, for which this one's message had to go; nil otherwise.
func (m *Message) Outlived(last *lifeboatv1.ClaimState) error {
	switch id := last.GetJobId(); {
	case id == m.ID() && last.GetPhase() == lifeboatv1.ClaimState_PHASE_CANCELLED:
		return fmt.Errorf("%w by %s", ErrCancelled, last.GetCancelledBy())
	case id != m.ID() && sequence(id) > m.Seq:
		return fmt.Errorf("%w: job %s has followed it", ErrClaimLost, id)
	}
	return nil
}

// sequence is the place in the stream of the message that a job's id is of. The claim is in the same stream, and is lost only with it.
func sequence(id string) uint64 {
	_, digits, _ := strings.Cut(id, "-")
	seq, err := strconv.ParseUint(digits, 10, 64)
	if err != nil {
		return 0
	}
	return seq
}

// outwait waits until nobody can be committing any more under the state of the given sequence, and reads what is there then.
func (c *Claim) outwait(ctx context.Context, seq uint64, last *lifeboatv1.ClaimState) (uint64, error) {
	worker, until := last.GetWorker(), time.Now().Add(commitWindow)
	for {
		over := !time.Now().Before(until)
		if !over && !wait(ctx, min(commitPoll, time.Until(until))) {
			return 0, fmt.Errorf("waiting for %s to finish committing: %w", worker, ctx.Err())
		}
		proto.Reset(last)
		now, _, err := c.bus.Last(ctx, StreamJobs, c.subject, last)
		if err != nil {
			return 0, fmt.Errorf("reading claim: %w", err)
		}
		if now > seq && last.GetPhase() == lifeboatv1.ClaimState_PHASE_COMMITTING {
			return 0, fmt.Errorf("%w: %s began to commit", ErrClaimLost, last.GetWorker())
		}
		if now > seq || over {
			return now, nil
		}
	}
}

// Confirm says whether the claim is still held, for work that is done in many small steps and ends between two of them. It
// returns ErrClaimLost when the claim was taken, and ErrCancelled when the job was cancelled.
func (c *Claim) Confirm(ctx context.Context) error {
	return c.write(ctx, func(*lifeboatv1.ClaimState) {})
}

// Commit announces the commit point and returns the context to write it under. It returns ErrClaimLost when the claim
// was taken, and ErrCancelled when the job was cancelled. Nothing may be committed after the returned context ended.
func (c *Claim) Commit(ctx context.Context) (context.Context, context.CancelFunc, error) {
	// The window counts from before the announcement, so that a slow announcement makes it shorter, never longer.
	until := time.Now().Add(commitWindow)
	err := c.write(ctx, func(s *lifeboatv1.ClaimState) {
		s.Phase, s.CommitUntil = lifeboatv1.ClaimState_PHASE_COMMITTING, timestamppb.New(until)
	})
	if err != nil {
		return nil, nil, err
	}
	// A margin for a request that is still on its way when the context ends.
	window, cancel := context.WithDeadline(ctx, until.Add(-commitWindow/4))
	return window, cancel, nil
}

// Release gives the claim up. Losing it to somebody else in the meantime is no error.
func (c *Claim) Release(ctx context.Context) error {
	return c.end(ctx, lifeboatv1.ClaimState_PHASE_RELEASED)
}

// HandBack gives the claim up instead of Release, when the work was stopped and goes to another process: the next delivery of the
// job is not another attempt. Losing the claim to somebody else in the meantime is no error.
func (c *Claim) HandBack(ctx context.Context) error {
	return c.end(ctx, lifeboatv1.ClaimState_PHASE_HANDED_BACK)
}

func (c *Claim) end(ctx context.Context, phase lifeboatv1.ClaimState_Phase) error {
	err := c.write(ctx, func(s *lifeboatv1.ClaimState) { s.Phase, s.CommitUntil = phase, nil })
	if errors.Is(err, ErrClaimLost) || errors.Is(err, ErrCancelled) {
		return nil
	}
	return err
}

// write replaces the claim's state by a changed one.
func (c *Claim) write(ctx context.Context, change func(*lifeboatv1.ClaimState)) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	next := proto.CloneOf(c.state)
	change(next)
	for try := 1; ; try++ {
		seq, err := c.bus.PutState(ctx, State{Outgoing: Outgoing{Subject: c.subject, Message: next}, Expect: c.seq})
		if err == nil {
			c.seq, c.state = seq, next
			return nil
		}
		if !errors.Is(err, ErrConflict) {
			return fmt.Errorf("writing claim: %w", err)
		}
		// The server may have stored an earlier write of ours whose answer was lost.
		last := &lifeboatv1.ClaimState{}
		now, _, reading := c.bus.Last(ctx, StreamJobs, c.subject, last)
		if reading != nil {
			return fmt.Errorf("%w: %w (and it could not be read: %w)", ErrClaimLost, err, reading)
		}
		if now > c.seq && c.owns(last) && try < claimTries {
			c.seq = now
			continue
		}
		if taken := c.taken(last); taken != nil {
			return taken
		}
		return fmt.Errorf("%w: %w", ErrClaimLost, err)
	}
}

// owns says whether a state was written by this claim.
func (c *Claim) owns(s *lifeboatv1.ClaimState) bool {
	return s.GetJobId() == c.state.GetJobId() && s.GetWorker() == c.state.GetWorker() && s.GetAttempt() == c.state.GetAttempt() &&
		s.GetStartedAt().AsTime().Equal(c.state.GetStartedAt().AsTime()) && s.GetPhase() != lifeboatv1.ClaimState_PHASE_CANCELLED
}

// taken says what a state means that is newer than this claim's; nil when it is this claim's own.
func (c *Claim) taken(s *lifeboatv1.ClaimState) error {
	switch {
	case c.owns(s):
		return nil
	case s.GetPhase() == lifeboatv1.ClaimState_PHASE_CANCELLED && s.GetJobId() == c.state.GetJobId():
		return fmt.Errorf("%w by %s", ErrCancelled, s.GetCancelledBy())
	}
	return fmt.Errorf("%w: %s has it for job %s", ErrClaimLost, s.GetWorker(), s.GetJobId())
}
