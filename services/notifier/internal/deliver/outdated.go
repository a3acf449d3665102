package deliver

import (
	"context"
	"fmt"
	"log/slog"
	"slices"
	"sync"
	"time"

	"github.com/lifeboat-fleet/lifeboat/fleet/bus"
	lifeboatv1 "github.com/lifeboat-fleet/lifeboat/proto/lifeboat/v1"
	"github.com/lifeboat-fleet/lifeboat/services/notifier/internal/budget"
	"github.com/lifeboat-fleet/lifeboat/services/notifier/internal/notice"
)

// outdated is the message of a group of which a digest told news. It has to show them too, or what has ended is red there for ever.
type outdated struct {
	subject string
	notice  notice.Notice
	ref     notice.Ref
	// toldAt is the group's since the digest is recorded; with another one the message is somebody else's business.
	toldAt time.Time
	// left says that the group has another message now, so that nobody else changes this one.
	left bool
	// since is when the digest was told.
	since time.Time
}

// maxOutdated bounds what is kept of them in memory: each holds what it will show.
const maxOutdated = 400

// edits brings outdated messages up to date, beside the queue: people have been told, and nothing that they have still to be told may wait
// for it. It is a receiver's own, and its list is gone with the process.
type edits struct {
	d    *Deliverer
	name string
	kick chan struct{}

	mu   sync.Mutex
	list []*outdated
	// now is the one that is being sent, and done is closed when that has come to an end.
	now  *outdated
	done chan struct{}
}

func newEdits(d *Deliverer, name string) *edits {
	return &edits{d: d, name: name, kick: make(chan struct{}, 1)}
}

// add notes that messages have to be brought up to date.
func (e *edits) add(ctx context.Context, all []*outdated) {
	if len(all) == 0 {
		return
	}
	e.mu.Lock()
	e.list = append(e.list, all...)
	dropped := max(len(e.list)-maxOutdated, 0)
	e.list = slices.Delete(e.list, 0, dropped)
	e.mu.Unlock()
	if dropped > 0 {
		e.d.o.Logger.WarnContext(ctx, "more groups' messages than fit into memory are out of date after a digest; the oldest stay as they are",
			slog.String("receiver", e.name), slog.Int("messages", dropped))
	}
	select {
	case e.kick <- struct{}{}:
	default:
	}
}

// overtake forgets what is outdated of a group, because newer news are about to be told. left: they are posted, and nobody else changes the
// message that the group had: it still has to be brought up to date. A change of the group's message that is on its way is waited for, or it
// could come after the newer one.
func (e *edits) overtake(subject string, left bool) {
	e.mu.Lock()
	for _, o := range e.list {
		o.left = o.left || left && o.subject == subject
	}
	e.list = slices.DeleteFunc(e.list, func(o *outdated) bool { return o.subject == subject && !o.left })
	var done chan struct{}
	if e.now != nil && e.now.subject == subject {
		done = e.done
	}
	e.mu.Unlock()
	if done != nil {
		<-done // within sendTimeout
	}
}

// next takes the first one up; nil when there is none.
func (e *edits) next() *outdated {
	e.mu.Lock()
	defer e.mu.Unlock()
	if len(e.list) == 0 {
		return nil
	}
	e.now, e.done = e.list[0], make(chan struct{})
	return e.now
}

// end puts down the one that was taken up, and forgets it unless it is to be tried again: last of all, so that others have their turn.
func (e *edits) end(o *outdated, again bool) {
	e.mu.Lock()
	defer e.mu.Unlock()
	close(e.done)
	e.now = nil
	if i := slices.Index(e.list, o); i >= 0 {
		e.list = slices.Delete(e.list, i, i+1)
		if again {
			e.list = append(e.list, o)
		}
	}
}

// run works the list off until the context ends.
func (e *edits) run(ctx context.Context) {
	failures := int64(0)
	backoff := bus.Exponential(time.Second, 2*time.Minute)
	for {
		o := e.next()
		if o == nil {
			if !e.pause(ctx, -1) {
				return
			}
			continue
		}
		busy, err := e.edit(ctx, o)
		again := busy > 0
		switch {
		case err != nil:
			failures++
			busy, again = backoff(failures), e.goesOn(ctx, o, err)
		case busy == 0:
			failures = 0
		}
		e.end(o, again)
		if !e.pause(ctx, busy) {
			return
		}
	}
}

// goesOn says whether a change that failed is tried again.
func (e *edits) goesOn(ctx context.Context, o *outdated, err error) bool {
	if ctx.Err() != nil {
		return true
	}
	_, terminal := bus.TerminalReason(err)
	giveUp := time.Duration(0)
	if c, failed := e.d.current(); failed == nil {
		giveUp = c.cfg.Notifier.GiveUpAfter
	}
	again := !terminal && e.d.o.Now().Sub(o.since) < giveUp
	e.d.o.Logger.WarnContext(ctx, "could not bring a group's message up to date after a digest",
		slog.String("receiver", e.name), slog.Bool("again", again), slog.Any("err", err))
	return again
}

// pause waits for a time, or for something to do when that is negative. It is false at the end.
func (e *edits) pause(ctx context.Context, wait time.Duration) bool {
	var timer <-chan time.Time
	kick := e.kick
	if wait >= 0 {
		t := time.NewTimer(min(wait, lookAgain))
		defer t.Stop()
		timer, kick = t.C, nil
	}
	select {
	case <-ctx.Done():
		return false
	case <-timer:
	case <-kick:
	}
	return true
}

// edit changes one message, if its group has no newer news. busy: there is no room before then.
func (e *edits) edit(ctx context.Context, o *outdated) (busy time.Duration, err error) {
	now := &lifeboatv1.Group{}
	if _, _, err = e.d.o.Bus.Last(ctx, bus.StreamAlerts, o.subject, now); err != nil {
		return 0, fmt.Errorf("reading what %s was told: %w", e.name, err)
	}
	e.mu.Lock()
	left := o.left
	e.mu.Unlock()
	if !left && (now.GetMessage().GetId() != o.ref.ID || !now.GetToldAt().AsTime().Equal(o.toldAt)) {
		return 0, nil
	}
	c, err := e.d.current()
	if err != nil {
		return 0, err
	}
	r, ok := c.receivers[e.name]
	if !ok {
		return 0, bus.Terminal("unknown_receiver", fmt.Errorf("no receiver is named %q any more", e.name))
	}
	t := &turn{queue: &queue{d: e.d, name: e.name}, c: c, receiver: r, sender: c.senders[e.name], rule: budget.RuleOf(r.Limit), quiet: true}
	if t.key, err = t.sender.Key(); err != nil {
		return 0, fmt.Errorf("preparing receiver %s: %w", e.name, err)
	}
	_, err = t.sendPart(ctx, o.notice, o.ref)
	if room, ok := asBusy(err); ok {
		return room, nil
	}
	if after, told := bus.RetryDelay(err); told {
		if failed := e.d.o.Budgets.Pause(ctx, t.key+updatesKey, e.d.o.Now().Add(after), err.Error()); failed != nil {
			return 0, fmt.Errorf("pausing the changes of %s: %w", e.name, failed)
		}
	}
	return 0, err
}
