package deliver

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"time"

	"github.com/lifeboat-fleet/lifeboat/fleet/bus"
	"github.com/lifeboat-fleet/lifeboat/fleet/config"
	"github.com/lifeboat-fleet/lifeboat/fleet/tracing"
	lifeboatv1 "github.com/lifeboat-fleet/lifeboat/proto/lifeboat/v1"
	"github.com/lifeboat-fleet/lifeboat/services/notifier/internal/budget"
	"github.com/lifeboat-fleet/lifeboat/services/notifier/internal/notice"
)

const (
	// lookAgain is how often the holder of a head looks at what came behind it, and whose time has come.
	lookAgain = 5 * time.Second
	// noticeable is how long a wait for room must be before people are told of it.
	noticeable = 10 * time.Second
)

// queue works off one receiver's deliveries. It is used for one head at a time.
type queue struct {
	d    *Deliverer
	name string
	// backlog is what the last turn left.
	backlog *backlog
	// failures in a row, and until when the chat is left alone because of them.
	failures  int64
	notBefore time.Time
	// edits brings up to date the messages of groups that a digest told news of.
	edits *edits
	// unsaved are groups that were told and whose state could not be written, by subject.
	unsaved map[string]unsaved
	// doubted is until when something may have been told without a record of it.
	doubted time.Time
	// troubled says that the budget may still name trouble that is over.
	troubled bool
	// others is when those that are not critical had their turn, since critical ones have been sent before them.
	others time.Time
}

// busyError says that nothing may be sent now.
type busyError struct{ wait time.Duration }

func (e *busyError) Error() string {
	return fmt.Sprintf("no room for another message for %s", e.wait.Round(time.Millisecond))
}

// asBusy says whether an error is a busyError, and until when there is no room.
func asBusy(err error) (wait time.Duration, ok bool) {
	busy, ok := errors.AsType[*busyError](err)
	if !ok {
		return 0, false
	}
	return max(busy.wait, time.Millisecond), true
}

// chatError is what a chat answered. Every other error is about NATS, or ours, and says nothing about the chat.
type chatError struct{ err error }

func (e *chatError) Error() string { return e.err.Error() }
func (e *chatError) Unwrap() error { return e.err }

// turn is the time from when a head was taken to when it is done.
type turn struct {
	*queue
	c        *compiled
	receiver config.Receiver
	sender   Sender
	key      string
	rule     budget.Rule
	head     *item
	headDone bool
	// begun are the items of the unit of which a part was sent.
	begun []*item
	// sent says that the chat took something.
	sent bool
	// outdated are messages of groups that the unit's digest told news of.
	outdated []*outdated
	// posted is the event's message of which a part failed, and of which unit it is: the group keeps no note of it.
	posted   notice.Ref
	postedOf string
	// quiet is a change that tells nobody anything: it leaves more room to others.
	quiet bool
}

// handle does the head, and before it what is more urgent. It returns when the head is done: nil, or bus.Terminal to make it a
// dead letter; any other error is NATS's, or a stop, and the head comes again.
func (q *queue) handle(ctx context.Context, m *bus.Message) (err error) {
	q.d.giveWay(ctx)
	t := &turn{queue: q}
	var d *lifeboatv1.Delivery
	if t.head, d, err = newItem(m); err != nil {
		return err
	}
	t.head.head, t.head.decoded = true, d
	ctx = tracing.Note(ctx, slog.String("receiver", q.name), slog.String("delivery_id", t.head.id), slog.String("target", t.head.target))
	if m.Delivery > 1 {
		q.doubted = q.d.o.Now()
	}
	if err = t.prepare(ctx); err != nil {
		return err
	}
	if !q.backlog.continues(m) {
		q.backlog = nil
	}
	return t.run(ctx)
}

// prepare reads the configuration and the receiver's address, either of which somebody may have mended.
func (t *turn) prepare(ctx context.Context) (err error) {
	if t.c, err = t.d.current(); err != nil {
		return err
	}
	if t.receiver, t.sender, err = t.c.receiver(t.name, t.head.stored, t.d.o.Now()); err != nil {
		return err
	}
	t.rule = budget.RuleOf(t.receiver.Limit)
	if t.key, err = t.sender.Key(); err != nil {
		// The file of the address cannot be read. Nothing can be sent, but the fallback can take over.
		t.key = ""
		if !t.d.o.Now().Before(t.notBefore) {
			t.fail(ctx, fmt.Errorf("preparing receiver %s: %w", t.name, err))
		}
	}
	return nil
}

func (t *turn) run(ctx context.Context) error {
	if t.backlog == nil && t.key != "" && !t.d.o.Now().Before(t.notBefore) {
		// The usual case: there is room, and nothing has to be weighed.
		u := unit{items: []*item{t.head}, critical: t.head.critical}
		err := t.do(ctx, u)
		if err == nil {
			return t.well(ctx)
		}
		if err = t.judge(ctx, u, err); err != nil {
			return err
		}
	}
	if t.backlog == nil {
		t.backlog = newBacklog(t.name)
	}
	for !t.headDone {
		if err := ctx.Err(); err != nil {
			return context.Cause(ctx)
		}
		if err := t.step(ctx); err != nil {
			return err
		}
	}
	if t.backlog.empty() {
		t.backlog = nil
		return t.well(ctx)
	}
	return nil
}

// step looks at the whole queue and does the one thing that is most urgent.
func (t *turn) step(ctx context.Context) error {
	if err := t.prepare(ctx); err != nil {
		return err
	}
	if err := t.refresh(ctx); err != nil {
		return err
	}
	if err := t.expire(ctx); err != nil || t.headDone {
		return err
	}
	if wait := t.notBefore.Sub(t.d.o.Now()); wait > 0 || t.key == "" {
		return t.sleep(ctx, max(wait, time.Millisecond))
	}
	u := t.pick()
	before := t.sent
	t.sent = false
	if err := t.do(ctx, u); err != nil {
		t.sent = before
		return t.judge(ctx, u, err)
	}
	if t.sent {
		t.succeeded()
		if u.critical && t.others.IsZero() {
			t.others = t.d.o.Now()
		}
	}
	t.sent, t.begun = t.sent || before, nil
	return nil
}

// succeeded notes that the chat takes something: what it did not take before gets one more chance at once, and is the culprit
// when that fails, too.
func (t *turn) succeeded() {
	if t.failures == 0 {
		return
	}
	t.failures = 0
	for _, it := range t.backlog.all() {
		if it.failed >= asideFrom && !it.suspect {
			it.suspect, it.aside = true, time.Time{}
		}
	}
}

// tryOthers lets others go before a unit that has failed often.
func (t *turn) tryOthers(u unit) {
	for _, it := range u.items {
		if it.failed++; it.failed < asideFrom && !it.suspect {
			continue
		}
		it.aside = t.d.o.Now().Add(min(asideFirst<<min(max(it.failed-asideFrom, 0), 4), asideMost))
		it.alone = it.alone || (it.suspect && len(u.items) > 1)
	}
}

// refresh reads what has come, and finds the head in it.
func (t *turn) refresh(ctx context.Context) error {
	if err := t.backlog.read(ctx, t.d.o.Bus); err != nil {
		return err
	}
	for _, it := range t.backlog.all() {
		if it.seq == t.head.seq {
			if it == t.head {
				return nil
			}
			it.head, it.attempt = true, t.head.attempt
			it.alone, it.stays = it.alone || t.head.alone, it.stays || t.head.stays
			it.failed, it.aside, it.suspect = max(it.failed, t.head.failed), t.head.aside, it.suspect || t.head.suspect
			t.head = it
			return nil
		}
	}
	// Somebody removed it by hand, or it is in a lane's part that was not read. It is done first then.
	t.backlog.lanes[1].items = append([]*item{t.head}, t.backlog.lanes[1].items...)
	return nil
}

// judge decides what an error of a unit means: nil to go on with the turn, an error to end it.
func (t *turn) judge(ctx context.Context, u unit, err error) error {
	if busy, ok := errors.AsType[*busyError](err); ok {
		if busy.wait >= noticeable {
			t.others = time.Time{}
			if err = t.explain(ctx); err != nil {
				return err
			}
		}
		return t.sleep(ctx, busy.wait)
	}
	refused, ok := errors.AsType[*chatError](err)
	if !ok {
		return err
	}
	reason, terminal := bus.TerminalReason(refused.err)
	if !terminal {
		t.d.metrics.failed.WithLabelValues(t.name, short(refused.err)).Inc()
		// The answer may have been lost, and not the message.
		t.doubted, t.troubled = t.d.o.Now(), true
		if _, told := bus.RetryDelay(refused.err); !told {
			t.tryOthers(u)
		}
		return t.failed(ctx, refused.err)
	}
	t.begun = nil
	t.d.metrics.failed.WithLabelValues(t.name, reason).Inc()
	if len(u.items) > 1 {
		// It may be one of them that the chat does not take.
		for _, it := range u.items {
			it.alone = true
		}
		t.d.o.Logger.WarnContext(ctx, "a message of several deliveries was refused; sending them one by one",
			slog.String("receiver", t.name), slog.Int("deliveries", len(u.items)), slog.Any("err", refused.err))
		return nil
	}
	if on, err := t.handOn(ctx, u.items[0], refused.err.Error()); on || err != nil {
		return err
	}
	if u.items[0].head {
		return refused.err
	}
	return t.bury(ctx, u.items[0], reason, refused.err)
}

// short is the metric's word for an error after which the chat is tried again.
func short(err error) string {
	_, told := bus.RetryDelay(err)
	switch {
	case errors.Is(err, notice.ErrThrottled):
		return "throttled"
	case told:
		return "parked"
	case errors.Is(err, context.DeadlineExceeded):
		return "timeout"
	}
	return "unavailable"
}

// explain notes that our own limit makes what waits late, if nothing else does.
func (t *turn) explain(ctx context.Context) error {
	state, err := t.d.o.Budgets.State(ctx, t.key, t.rule)
	if err != nil || state.Trouble != "" {
		return err
	}
	t.troubled = true
	return t.d.o.Budgets.Trouble(ctx, t.key, fmt.Sprintf("%s takes %d messages in %s", chat(t.receiver), t.rule.Messages, t.rule.Per))
}

// failed leaves the chat alone for a while: for as long as it says, which every process has to know, or ever longer.
func (t *turn) failed(ctx context.Context, err error) error {
	b := t.d.o.Budgets
	if after, told := bus.RetryDelay(err); told {
		why := err.Error()
		if t.failures++; errors.Is(err, notice.ErrThrottled) {
			why = chat(t.receiver) + " throttled"
		}
		t.d.o.Logger.WarnContext(ctx, "leaving the chat alone", slog.String("receiver", t.name), slog.String("after", after.String()), slog.Any("err", err))
		until := t.d.o.Now().Add(after)
		if err = b.Pause(ctx, t.key, until, why); err != nil {
			return fmt.Errorf("pausing %s: %w", t.name, err)
		}
		if s := t.receiver.Slack; s != nil && s.BotTokenFile != "" {
			// Changes of messages have a budget of their own.
			if err = b.Pause(ctx, t.key+updatesKey, until, why); err != nil {
				return fmt.Errorf("pausing the changes of %s: %w", t.name, err)
			}
		}
		return nil
	}
	t.fail(ctx, err)
	if err = b.Trouble(ctx, t.key, err.Error()); err != nil {
		return fmt.Errorf("recording the trouble of %s: %w", t.name, err)
	}
	return nil
}

// fail notes a failure and how long to wait after it.
func (t *turn) fail(ctx context.Context, err error) {
	t.failures++
	after := bus.Exponential(time.Second, 2*time.Minute)(t.failures)
	t.notBefore = t.d.o.Now().Add(after)
	t.d.o.Logger.WarnContext(ctx, "will try again", slog.String("receiver", t.name), slog.Int64("failures", t.failures),
		slog.String("after", after.Round(time.Millisecond).String()), slog.Any("err", err))
}

// well forgets trouble that is over.
func (t *turn) well(ctx context.Context) error {
	// Only what comes late was in trouble, and only then it costs a look.
	if t.key == "" || !t.sent || (t.failures == 0 && !t.troubled && !t.late(t.head)) {
		return nil
	}
	t.failures = 0
	if err := t.d.o.Budgets.Well(ctx, t.key); err != nil {
		// The next success says it again.
		t.d.o.Logger.WarnContext(ctx, "could not record that a chat is well", slog.String("receiver", t.name), slog.Any("err", err))
		return nil
	}
	t.troubled = false
	return nil
}

// late says whether an item has waited for so long that somebody asks why.
func (t *turn) late(it *item) bool { return t.d.o.Now().Sub(it.received) >= noticeable }

// sleep waits, but not longer than until the queue has to be looked at again.
func (t *turn) sleep(ctx context.Context, wait time.Duration) error {
	timer := time.NewTimer(min(wait, lookAgain))
	defer timer.Stop()
	select {
	case <-timer.C:
		return nil
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}

// chat is the name that people know.
func chat(r config.Receiver) string {
	if r.DingTalk != nil {
		return "DingTalk"
	}
	return "Slack"
}
