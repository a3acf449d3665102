package emit

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"time"

	"go.opentelemetry.io/otel/attribute"
	"go.opentelemetry.io/otel/trace"
	"google.golang.org/protobuf/types/known/timestamppb"

	"github.com/lifeboat-fleet/lifeboat/fleet/bus"
	"github.com/lifeboat-fleet/lifeboat/fleet/config"
	"github.com/lifeboat-fleet/lifeboat/fleet/tracing"
	lifeboatv1 "github.com/lifeboat-fleet/lifeboat/proto/lifeboat/v1"
)

// maxTurns bounds how often an entry is worked on without a pause.
const maxTurns = 100

var errCrowded = errors.New("others write the schedule's state all the time")

// work does everything that an entry owes now.
func (e *Emitter) work(ctx context.Context, en *entry) {
	ctx = tracing.Note(ctx, slog.String("target", en.key.target), slog.String("schedule", en.key.schedule))
	err := e.turns(ctx, en)
	if err != nil && ctx.Err() == nil {
		e.Logger.WarnContext(ctx, "could not work on a schedule, trying again", slog.String("target", en.key.target),
			slog.String("schedule", en.key.schedule), slog.Any("err", err))
	}
	e.put(en, err != nil)
}

func (e *Emitter) turns(ctx context.Context, en *entry) error {
	e.mu.Lock()
	target := en.target
	e.mu.Unlock()
	for range maxTurns {
		done, err := e.turn(ctx, en, target)
		if errors.Is(err, bus.ErrConflict) {
			en.unread = true
			continue
		}
		if err != nil || done {
			return err
		}
	}
	return errCrowded
}

// turn makes the next write that an entry owes; done when there is none. The order is that of the package comment: what a state
// says is recorded before another one replaces it.
func (e *Emitter) turn(ctx context.Context, en *entry, target *config.Target) (done bool, err error) {
	if en.unread {
		if err = e.read(ctx, en); err != nil {
			return false, err
		}
	}
	if e.superseded(en) {
		// What was read may be of the entry that a reload put in the place of this one, and must not be taken back.
		return true, nil
	}
	if en.unrecorded != nil {
		return false, e.record(ctx, en)
	}
	if en.other != nil {
		return e.besideAnother(ctx, en, target)
	}
	if en.removing && en.absent {
		en.gone = true
		return true, nil
	}
	if en.known != nil {
		return false, e.confirmed(ctx, en, target)
	}
	if written, err := e.decide(ctx, en, target); written || err != nil {
		return false, err
	}
	switch {
	case en.removing:
		return false, e.remove(ctx, en)
	case en.absent:
		return false, e.write(ctx, en, verdict{tick: en.anchored, outcome: lifeboatv1.ScheduleState_OUTCOME_ANCHOR})
	}
	return true, nil
}

// read fetches the state and takes it over.
func (e *Emitter) read(ctx context.Context, en *entry) error {
	state := &lifeboatv1.ScheduleState{}
	seq, _, err := e.Bus.Last(ctx, bus.StreamJobs, bus.ScheduleSubject(en.key.target, en.key.schedule), state)
	if err != nil {
		return fmt.Errorf("reading the schedule's state: %w", err)
	}
	e.adopt(ctx, en, state, seq)
	return nil
}

func (e *Emitter) adopt(ctx context.Context, en *entry, s *lifeboatv1.ScheduleState, seq uint64) {
	now := e.now()
	en.adopt(s, seq, now)
	if ahead := en.tick.Sub(now); ahead > lateAfter {
		e.Logger.WarnContext(ctx, "ticks were decided that are in the future: a clock is or was wrong, and nothing fires until then",
			slog.String("target", en.key.target), slog.String("schedule", en.key.schedule), slog.Time("tick", en.tick),
			slog.Duration("ahead", ahead))
	}
	if en.other != nil && !en.fresh && !en.removing {
		e.Logger.WarnContext(ctx, "another scheduler has another configuration of this schedule, and that one is in force",
			slog.String("target", en.key.target), slog.String("schedule", en.key.schedule),
			slog.String("line", en.other.GetSchedule()), slog.String("time_zone", en.other.GetTimeZone()))
	}
}

// write stores a decision without a job.
func (e *Emitter) write(ctx context.Context, en *entry, d verdict) error {
	s := en.state(d, e.now())
	seq, err := e.Bus.PutState(ctx, en.put(s))
	if err != nil {
		return err
	}
	e.written(en, s, seq)
	return nil
}

func (e *Emitter) written(en *entry, s *lifeboatv1.ScheduleState, seq uint64) {
	en.written(s, seq, e.now())
	for _, m := range s.GetMissed() {
		e.metrics.missed.WithLabelValues(en.key.schedule, m.GetReason()).Add(float64(m.GetCount()))
	}
}

// decide decides what is due, and what waits.
func (e *Emitter) decide(ctx context.Context, en *entry, target *config.Target) (written bool, err error) {
	now := e.now()
	if (en.Next.IsZero() || en.Next.After(now)) && len(en.pending) == 0 {
		return false, nil
	}
	p, before := policyOf(target), en.Next
	d := decide(en.view(), p, now, false)
	if !d.emit.IsZero() {
		if err = e.emit(ctx, en, d, now); errors.Is(err, bus.ErrBusy) {
			d = decide(en.view(), p, now, true)
			err = e.decline(ctx, en, d)
		}
	} else {
		err = e.decline(ctx, en, d)
	}
	if err != nil || d.empty() {
		return false, err
	}
	if !before.IsZero() && !before.After(d.tick) {
		e.metrics.lateness.Observe(e.now().Sub(d.tick).Seconds())
	}
	return true, nil
}

// decline stores a decision that emits nothing.
func (e *Emitter) decline(ctx context.Context, en *entry, d verdict) (err error) {
	if d.empty() {
		return nil
	}
	if m := d.missed.of(reasonOverlap); m != nil {
		if m.job, err = e.inTheWay(ctx, en); err != nil {
			return err
		}
	}
	return e.write(ctx, en, d)
}

// emit stores a decision and its job in one transaction.
func (e *Emitter) emit(ctx context.Context, en *entry, d verdict, now time.Time) (err error) {
	ctx, span := tracing.Start(ctx, "tick", trace.WithNewRoot(), trace.WithSpanKind(trace.SpanKindProducer))
	defer func() { tracing.End(span, err) }()
	if span.IsRecording() {
		span.SetAttributes(
			attribute.String("lifeboat.target", en.key.target), attribute.String("lifeboat.schedule", en.key.schedule),
			attribute.String("lifeboat.work", string(en.spec.Work)), attribute.String("lifeboat.tick", stamp(d.emit)),
			attribute.Float64("lifeboat.late_seconds", now.Sub(d.emit).Seconds()),
		)
	}
	s := en.state(d, now)
	seq, err := e.Bus.PutStateWith(ctx, en.put(s), bus.Outgoing{
		Subject: bus.JobSubject(en.spec.Work, en.key.target),
		Message: &lifeboatv1.Job{Tick: timestamppb.New(d.emit), RequestedBy: "scheduler", Identity: en.spec.Identity},
	})
	if err != nil {
		return err
	}
	e.written(en, s, seq)
	e.metrics.emitted.WithLabelValues(en.key.schedule).Inc()
	e.Logger.DebugContext(ctx, "emitted a tick", slog.String("tick", stamp(d.emit)))
	return nil
}

// inTheWay is the id of the job that waits or runs; empty when it is gone by now.
func (e *Emitter) inTheWay(ctx context.Context, en *entry) (string, error) {
	seq, at, err := e.Bus.Last(ctx, bus.StreamJobs, bus.JobSubject(en.spec.Work, en.key.target), &lifeboatv1.Job{})
	if err != nil {
		return "", fmt.Errorf("looking for the job in the way: %w", err)
	}
	if seq == 0 {
		return "", nil
	}
	return (&bus.Message{Seq: seq, Stored: at}).ID(), nil
}

// besideAnother deals with a state that another configuration wrote, or whose schedule was taken out and is there again.
func (e *Emitter) besideAnother(ctx context.Context, en *entry, target *config.Target) (done bool, err error) {
	if en.removing {
		en.gone = true // whoever wrote it has it in its configuration, or it is removed already
		return true, nil
	}
	now := e.now()
	if !en.fresh && en.takeOver().After(now) {
		en.known = nil // it is about the other's ticks
		return true, nil
	}
	if !en.fresh {
		// It may have gone on since it was read.
		seq := en.seq
		if err = e.read(ctx, en); err != nil || en.seq != seq || en.other == nil {
			return false, err
		}
	}
	d := verdict{tick: latest(now, en.tick), outcome: lifeboatv1.ScheduleState_OUTCOME_ANCHOR}
	if en.other.GetOutcome() == lifeboatv1.ScheduleState_OUTCOME_REMOVED {
		d.tick = latest(now.Add(-againFrom), en.tick)
		return false, e.write(ctx, en, d)
	}
	v, err := en.otherView()
	if err != nil {
		return false, fmt.Errorf("accounting for the schedule that this one takes the place of: %w", err)
	}
	d.missed = replaced(v, policyOf(target), now)
	return false, e.write(ctx, en, d)
}

func latest(a, b time.Time) time.Time {
	if a.After(b) {
		return a
	}
	return b
}

// remove says that the schedule was taken out of the configuration.
func (e *Emitter) remove(ctx context.Context, en *entry) error {
	d := verdict{tick: en.tick, outcome: lifeboatv1.ScheduleState_OUTCOME_REMOVED}
	for _, tick := range en.pending {
		d.missed.add(reasonRemoved, tick)
	}
	return e.write(ctx, en, d) // the next turn ends it, behind the record
}
