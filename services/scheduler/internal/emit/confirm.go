package emit

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"time"

	"golang.org/x/sync/errgroup"
	"google.golang.org/protobuf/types/known/timestamppb"

	"github.com/lifeboat-fleet/lifeboat/fleet/bus"
	"github.com/lifeboat-fleet/lifeboat/fleet/config"
	lifeboatv1 "github.com/lifeboat-fleet/lifeboat/proto/lifeboat/v1"
)

const (
	// asked is how many targets are asked about at once.
	asked = 8
	// How long to wait before a worker is asked again that did not answer.
	askMin, askMax = time.Second, 15 * time.Second
)

// confirmLater notes that a worker is to be asked about an entry. The caller holds the lock.
func (e *Emitter) confirmLater(en *entry) {
	if en.anchored.IsZero() || en.asking || en.told != nil || en.known != nil {
		return
	}
	if en.unread || en.absent || en.removing || en.other != nil {
		return // there is no anchor of this schedule in the stream yet, or none any more
	}
	en.asking = true
	q := e.unconfirmed[en.key.target]
	if q.before.IsZero() || en.anchored.Before(q.before) {
		q.before = en.anchored
	}
	q.entries = append(q.entries, en)
	e.unconfirmed[en.key.target] = q
	select {
	case e.ask <- struct{}{}:
	default:
	}
}

// question is what a worker is asked about a target.
type question struct {
	before  time.Time
	entries []*entry
}

// answer is what the bucket knows from before a moment.
type answer struct {
	*lifeboatv1.History
	before time.Time
}

// confirm asks workers about anchors until the context ends. Nothing waits for the answers but the anchors.
func (e *Emitter) confirm(ctx context.Context) {
	backoff := bus.Exponential(askMin, askMax)
	for attempt := int64(0); ctx.Err() == nil; {
		open := e.questions()
		var again <-chan time.Time
		if len(open) > 0 {
			if e.askAll(ctx, open) {
				attempt = 0
				continue
			}
			attempt++
			again = time.After(backoff(attempt))
		}
		select {
		case <-ctx.Done():
		case <-e.ask:
			if again != nil { // a new question does not make a worker come sooner
				select {
				case <-ctx.Done():
				case <-again:
				}
			}
		case <-again:
		}
	}
}

func (e *Emitter) questions() map[string]question {
	e.mu.Lock()
	defer e.mu.Unlock()
	open := e.unconfirmed
	e.unconfirmed = map[string]question{}
	for target, q := range open {
		// A reload's new entry asks for itself.
		if q.entries = slices.DeleteFunc(q.entries, func(en *entry) bool { return !e.wanted(en) }); len(q.entries) == 0 {
			delete(open, target)
			continue
		}
		open[target] = q
	}
	return open
}

// askAll asks about every target. It is false when some question is still open.
func (e *Emitter) askAll(ctx context.Context, open map[string]question) bool {
	// One first: without a worker there is none for the others either, of whom there may be very many.
	all := true
	for target, q := range open {
		err := e.askOne(ctx, target, q)
		if errors.Is(err, bus.ErrNoWorker) || ctx.Err() != nil {
			e.askAgain(open)
			return false
		}
		delete(open, target)
		if err != nil {
			e.askAgain(map[string]question{target: q})
			all = false
		}
		break
	}
	var g errgroup.Group
	g.SetLimit(asked)
	for target, q := range open {
		g.Go(func() error {
			err := e.askOne(ctx, target, q)
			if err != nil {
				e.askAgain(map[string]question{target: q})
			}
			return err
		})
	}
	return g.Wait() == nil && all
}

func (e *Emitter) askOne(ctx context.Context, target string, q question) error {
	h, err := e.Bus.AskHistoryBefore(ctx, target, q.before)
	switch {
	case err == nil:
		e.answer(q, h)
	case !errors.Is(err, bus.ErrNoWorker) && ctx.Err() == nil:
		e.Logger.WarnContext(ctx, "could not learn what the bucket knows of a target, asking again",
			slog.String("target", target), slog.Any("err", err))
	}
	return err
}

// askAgain keeps questions for the next time.
func (e *Emitter) askAgain(open map[string]question) {
	e.mu.Lock()
	defer e.mu.Unlock()
	if len(e.unconfirmed) == 0 {
		e.unconfirmed = open
		return
	}
	for target, q := range open {
		kept := e.unconfirmed[target]
		if kept.before.IsZero() || q.before.Before(kept.before) {
			kept.before = q.before
		}
		kept.entries = append(kept.entries, q.entries...)
		e.unconfirmed[target] = kept
	}
}

func (e *Emitter) answer(q question, h *lifeboatv1.History) {
	e.mu.Lock()
	defer e.mu.Unlock()
	for _, en := range q.entries {
		en.asking = false
		if e.wanted(en) {
			en.told = &answer{h, q.before}
			e.queue(en)
		}
	}
}

// knownTick is the newest tick of a schedule that left something in the bucket; ok is false for work that leaves nothing, and when
// there is none.
func knownTick(s *spec, h *lifeboatv1.History) (tick time.Time, ok bool) {
	var at *timestamppb.Timestamp
	switch {
	case s.Work == config.WorkSnapshot:
		at = h.GetSnapshotTick()
	case s.Work == config.WorkDrill && s.Identity == config.IdentityEscrow:
		at = h.GetEscrowDrillTick()
	case s.Work == config.WorkDrill:
		at = h.GetDrillTick()
	}
	return at.AsTime(), at != nil
}

// confirmed writes what follows from a worker's answer: the ticks between the newest one in the bucket and the anchor are decided
// by the catch-up policy, and the schedule is a usual one from then on.
func (e *Emitter) confirmed(ctx context.Context, en *entry, target *config.Target) error {
	now := e.now()
	tick, ok := knownTick(en.spec, en.known.History)
	if !en.known.before.Equal(en.anchored) {
		// Another replica was faster to confirm the anchor; or that is not the one that was asked about, and it is asked again.
		en.known = nil
		return nil
	}
	d := verdict{tick: en.tick, pending: en.pending, outcome: en.outcome}
	switch {
	case ok:
		d.pending, d.missed = caughtUp(en.view(), policyOf(target), tick, en.anchored, now)
	case en.known.GetSnapshotId() != "":
		if err := e.Bus.Emit(ctx, anchoredEvent(en)); err != nil {
			return fmt.Errorf("recording an anchor: %w", err)
		}
	}
	if len(d.pending) > len(en.pending) {
		d.outcome = lifeboatv1.ScheduleState_OUTCOME_QUEUED
	}
	s := en.state(d, now)
	s.Unconfirmed, s.AnchoredAt = false, nil
	seq, err := e.Bus.PutState(ctx, en.put(s))
	if err != nil {
		return fmt.Errorf("confirming an anchor: %w", err)
	}
	en.known = nil
	e.written(en, s, seq)
	return nil
}

// anchoredEvent says that a target which is older than what is known of one of its schedules counts from a new beginning. Nothing
// in the bucket tells which of its ticks were decided before.
func anchoredEvent(en *entry) *lifeboatv1.Event {
	from := stamp(en.anchored)
	return &lifeboatv1.Event{
		Id:   fmt.Sprintf("schedule.anchored.%s.%s.%d", en.key.target, en.key.schedule, en.anchored.UnixNano()),
		Noun: "schedule", Verb: "anchored", Target: en.key.target, RequestedBy: "scheduler",
		Attributes: map[string]string{
			"work": string(en.spec.Work), "schedule": en.key.schedule, "from": from, "snapshot": en.known.GetSnapshotId(),
		},
		Message: fmt.Sprintf("the ticks of %s count from %s: NATS knows of none before, although the target has snapshots, and the bucket "+
			"does not tell them; either the schedule is new, or NATS lost its data", en.key.schedule, from),
	}
}
