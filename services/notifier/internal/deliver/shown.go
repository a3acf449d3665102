package deliver

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"time"

	"google.golang.org/protobuf/types/known/timestamppb"

	"github.com/lifeboat-fleet/lifeboat/fleet/bus"
	lifeboatv1 "github.com/lifeboat-fleet/lifeboat/proto/lifeboat/v1"
	"github.com/lifeboat-fleet/lifeboat/services/notifier/internal/fold"
	"github.com/lifeboat-fleet/lifeboat/services/notifier/internal/notice"
)

// fresh says whether a group gets a message of its own rather than a change of the one that it has: when it begins to fire after all
// had ended. In the other cases who sends the change also says in the channel what fires, for an edit is noticed by nobody.
func fresh(g *told) bool {
	return g.result.Begins && !slices.ContainsFunc(g.state.GetAlerts(), func(a *lifeboatv1.Told) bool { return a.GetToldStatus() == firing })
}

// events says whether a group's news are nothing but events. These are no state that a message could show: each gets one of its own, and
// the group keeps the one that it has.
func events(g *told) bool {
	return !slices.ContainsFunc(g.result.Tell, func(c fold.Change) bool { return c.Kind != fold.Happens })
}

// place is the message that a group's news change; the zero Ref: they are posted.
func place(g *told) notice.Ref {
	if fresh(g) || events(g) {
		return notice.Ref{}
	}
	return refOf(g.state)
}

func refOf(g *lifeboatv1.Group) notice.Ref {
	m := g.GetMessage()
	if m.GetId() == "" {
		return notice.Ref{}
	}
	return notice.Ref{Channel: m.GetChannel(), ID: m.GetId(), Posted: m.GetPostedAt().AsTime(), Thread: int(m.GetThreadMessages())}
}

func messageOf(r notice.Ref) *lifeboatv1.ChatMessage {
	if r.ID == "" {
		return nil
	}
	return &lifeboatv1.ChatMessage{
		Channel: r.Channel, Id: r.ID, PostedAt: timestamppb.New(r.Posted), ThreadMessages: int32(r.Thread), //nolint:gosec // few
	}
}

// believed is how long an alert is taken to fire on of which nothing is heard. Its end may never come: Alertmanager does not tell that of
// what was silenced meanwhile, nor with send_resolved off.
const believed = 24 * time.Hour

// stillFires is how many alerts of a group fire that the message of its news does not show: they came in another part of the webhook, or
// what is told now was put by until now. What Alertmanager said has ended as a whole fires no more.
func (g *told) stillFires(now time.Time) int {
	shown, nameless := map[string]bool{}, 0
	show := func(a *lifeboatv1.Alert) {
		if shown[a.GetFingerprint()] = true; a.GetFingerprint() == "" && a.GetStatus() == firing {
			nameless++
		}
	}
	for _, c := range g.result.Tell {
		show(c.Alert)
	}
	for _, a := range g.result.Unchanged {
		show(a)
	}
	var ended time.Time
	for _, d := range g.deliveries {
		n := d.GetNotification()
		at := n.GetReceivedAt().AsTime()
		if n.GetOrigin() == "alertmanager" && n.GetStatus() == "resolved" && n.GetTruncatedAlerts() == 0 && at.After(ended) {
			ended = at
		}
	}
	oldest, count := now.Add(-max(believed, 2*g.policy.Repeat)), 0
	for _, a := range g.result.Group.GetAlerts() {
		began := a.GetToldAt()
		if all := a.GetChanges(); len(all) > 0 {
			began = all[len(all)-1]
		}
		recent := began.AsTime().After(oldest) || a.GetToldAt().AsTime().After(oldest)
		if a.GetStatus() == firing && !shown[a.GetFingerprint()] && recent && began.AsTime().After(ended) {
			count++
		}
	}
	return max(count-nameless, 0)
}

// outdated is the message of a group of which a digest told news. It has to show them too, or what has ended is red there for ever.
type outdated struct {
	subject string
	notice  notice.Notice
	ref     notice.Ref
	// toldAt is the group's once the digest is recorded; with another one the message is somebody else's business.
	toldAt time.Time
	// left says that the group has another message now, so that nobody else changes this one.
	left  bool
	tries int
}

// maxOutdated bounds what is kept of them in memory: each holds what it will show.
const maxOutdated = 400

// outdate notes that a group's message has to be brought up to date.
func (t *turn) outdate(g *told, n notice.Notice) {
	n.Quiet, n.Mentions = true, nil
	t.outdated = t.outdated[max(len(t.outdated)-maxOutdated+1, 0):]
	t.outdated = append(t.outdated, outdated{subject: g.subject, notice: n, ref: refOf(g.state), toldAt: g.result.Group.GetToldAt().AsTime()})
}

// current forgets that, because newer news change the group's message. One that they leave behind, because they are posted, still has to
// be brought up to date: all that it shows has ended.
func (t *turn) current(g *told) {
	if events(g) {
		return
	}
	left := fresh(g)
	for i := range t.outdated {
		o := &t.outdated[i]
		o.left = o.left || left && o.subject == g.subject
	}
	t.outdated = slices.DeleteFunc(t.outdated, func(o outdated) bool { return o.subject == g.subject && !o.left })
}

// freshen brings messages up to date as far as there is room for it. It returns when to go on; 0: there is nothing left to do. People have
// been told, so nothing waits for this, and what goes wrong is only logged.
func (t *turn) freshen(ctx context.Context) (wait time.Duration) {
	for len(t.outdated) > 0 && ctx.Err() == nil && t.key != "" {
		o := &t.outdated[0]
		err := t.update(ctx, o)
		if busy, ok := errors.AsType[*busyError](err); ok {
			return busy.wait
		}
		if err != nil {
			t.d.o.Logger.WarnContext(ctx, "could not bring a group's message up to date after a digest", slog.String("receiver", t.name), slog.Any("err", err))
			if o.tries++; o.tries < outdatedTries {
				return lookAgain
			}
		}
		t.outdated = t.outdated[1:]
	}
	return 0
}

// outdatedTries is how often it is tried to bring a message up to date.
const outdatedTries = 3

func (t *turn) update(ctx context.Context, o *outdated) error {
	now := &lifeboatv1.Group{}
	if _, _, err := t.d.o.Bus.Last(ctx, bus.StreamAlerts, o.subject, now); err != nil {
		return fmt.Errorf("reading what %s was told: %w", t.name, err)
	}
	if !o.left && (now.GetMessage().GetId() != o.ref.ID || !now.GetToldAt().AsTime().Equal(o.toldAt)) {
		return nil
	}
	_, err := t.sendPart(ctx, o.notice, o.ref)
	if after, told := bus.RetryDelay(err); told {
		if failed := t.d.o.Budgets.Pause(ctx, t.key+updatesKey, t.d.o.Now().Add(after), err.Error()); failed != nil {
			return fmt.Errorf("pausing the changes of %s: %w", t.name, failed)
		}
	}
	return err
}

// freshenFor is how long the end of a turn is put off for that: the head looks as if it waited.
const freshenFor = 5 * time.Minute

// freshenAll waits for room until all messages are up to date, as long as nothing else has come.
func (t *turn) freshenAll(ctx context.Context) {
	for since := t.d.o.Now(); t.d.o.Now().Sub(since) < freshenFor; {
		wait := t.freshen(ctx)
		if wait == 0 || wait > time.Minute || t.sleep(ctx, min(wait, time.Second)) != nil {
			return
		}
		if err := t.backlog.read(ctx, t.d.o.Bus); err != nil || !t.backlog.empty() {
			return
		}
	}
}
