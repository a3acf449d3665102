// Package emit turns ticks into jobs.
//
// There is no leader. Every replica keeps the same timetable and tries to emit every tick; the server lets one win. A
// tick is one atomic batch of two messages into one stream:
//
//   - the schedule's state, a last value that names the tick and is written only if nobody wrote it since it was read;
//   - the job, which the stream refuses while one of the same subject waits or runs.
//
// So three things are one transaction: that this tick was emitted, that no other replica emitted it, and that no job was
// waiting. What each outcome means:
//
//	stored            the tick is emitted, once.
//	ErrConflict       another replica decided it; its state is read and the timetable moves behind it. If there is no
//	                  state any more, NATS lost its data: an anchor is written, and the schedule starts again from now.
//	ErrBusy           a job waits or runs: the state is written alone, with "missed: overlap", an event says so, and the
//	                  state notes that the event is there. Whoever finds the note missing writes both.
//	anything else     nothing is known. The tick stays due and is tried again: had it been stored, the next try ends
//	                  with ErrConflict and finds it emitted.
//
// What survives a crash: before the batch, nothing was decided and any replica does it; after it, everything is in the
// stream. A scheduler that starts after a while emits the newest tick that passed and records the ones before it as
// missed with the reason "down". When a target is first seen, or its schedule changed, an anchor is written, so that a
// tick which passes before the first emission is not forgotten.
package emit

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"go.opentelemetry.io/otel"
	"golang.org/x/sync/errgroup"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/timestamppb"

	"github.com/lifeboat-fleet/lifeboat/fleet/bus"
	"github.com/lifeboat-fleet/lifeboat/fleet/config"
	lifeboatv1 "github.com/lifeboat-fleet/lifeboat/proto/lifeboat/v1"
	"github.com/lifeboat-fleet/lifeboat/services/scheduler/internal/timetable"
)

const (
	// The wall clock is looked at this often at least: a timer does not notice a clock that was set or a machine that
	// slept.
	maxSleep = 30 * time.Second
	// How many ticks are decided at once.
	parallel = 16
	// Delay before a tick that could not be decided is tried again.
	retryAfter = time.Second
)

// Reasons of a missed tick.
const (
	reasonDown    = "down"
	reasonOverlap = "overlap"
)

// Bus is what the emitter needs of the bus.
type Bus interface {
	Last(ctx context.Context, stream, subject string, into proto.Message) (seq uint64, at time.Time, err error)
	PutState(ctx context.Context, s bus.State) (seq uint64, err error)
	PutStateWith(ctx context.Context, s bus.State, with bus.Outgoing) (seq uint64, err error)
	Emit(ctx context.Context, e *lifeboatv1.Event) error
}

// Options of an emitter.
type Options struct {
	Bus        Bus
	Config     func() *config.Config
	Changed    <-chan struct{}
	Logger     *slog.Logger
	Registerer prometheus.Registerer
	Now        func() time.Time
}

// Emitter emits the ticks of all targets.
type Emitter struct {
	Options
	metrics *metrics

	mu    sync.Mutex
	table timetable.Table[key]
	known map[key]*entry
}

// key names a schedule.
type key struct{ target, schedule string }

// entry is a schedule with what the stream says about it.
type entry struct {
	timetable.Entry[key]
	schedule config.Schedule
	zone     string
	seq      uint64
	// unrecorded is a state whose missed ticks may not be in the audit log yet.
	unrecorded *lifeboatv1.ScheduleState
}

// New returns an emitter.
func New(o Options) *Emitter {
	return &Emitter{Options: o, metrics: newMetrics(o.Registerer), known: map[key]*entry{}}
}

// Run emits ticks until the context ends.
func (e *Emitter) Run(ctx context.Context) error {
	for ctx.Err() == nil {
		sleep := e.round(ctx)
		t := time.NewTimer(sleep)
		select {
		case <-ctx.Done():
		case <-e.Changed:
		case <-t.C:
		}
		t.Stop()
	}
	return nil
}

// round does everything that is due now and says how long nothing more will be.
func (e *Emitter) round(ctx context.Context) time.Duration {
	failed := e.load(ctx)
	now := e.Now().Round(0) // the wall clock alone: schedules are about it
	var g errgroup.Group
	g.SetLimit(parallel)
	var mu sync.Mutex
	for _, due := range e.popDue(now) {
		g.Go(func() error {
			err := e.decide(ctx, due, now)
			mu.Lock()
			defer mu.Unlock()
			if err != nil && ctx.Err() == nil {
				failed = true
				e.Logger.WarnContext(ctx, "could not emit a tick, trying again", slog.String("target", due.Key.target),
					slog.String("schedule", due.Key.schedule), slog.Any("err", err))
			}
			e.put(due)
			return nil
		})
	}
	_ = g.Wait() // the functions return nil
	if failed {
		return retryAfter
	}
	e.mu.Lock()
	defer e.mu.Unlock()
	next, ok := e.table.Next()
	if !ok {
		return maxSleep
	}
	return min(max(next.Sub(e.Now().Round(0)), 0), maxSleep)
}

func (e *Emitter) popDue(now time.Time) []*entry {
	e.mu.Lock()
	defer e.mu.Unlock()
	var due []*entry
	for _, t := range e.table.PopDue(now) {
		// An entry that a reload removed or replaced is dropped here.
		if en, ok := e.known[t.Key]; ok && &en.Entry == t {
			due = append(due, en)
		}
	}
	return due
}

func (e *Emitter) put(en *entry) {
	e.mu.Lock()
	defer e.mu.Unlock()
	e.table.Add(&en.Entry)
}

// load makes the timetable follow the configuration. It reports whether some schedule could not be loaded yet.
func (e *Emitter) load(ctx context.Context) (failed bool) {
	wanted := map[key]bool{}
	for _, t := range e.Config().Targets {
		for _, schedule := range t.Schedules() {
			k := key{t.Name, schedule.Name}
			wanted[k] = true
			if have, ok := e.known[k]; ok && have.schedule == schedule && have.zone == t.TimeZone {
				continue
			}
			en, err := e.loadEntry(ctx, k, schedule, t.TimeZone)
			if err != nil {
				failed = true
				if ctx.Err() == nil {
					e.Logger.WarnContext(ctx, "could not load a schedule, trying again", slog.String("target", t.Name),
						slog.String("schedule", schedule.Name), slog.Any("err", err))
				}
				continue
			}
			e.known[k] = en
			e.put(en)
		}
	}
	for k := range e.known {
		if !wanted[k] {
			delete(e.known, k)
		}
	}
	e.metrics.schedules.Set(float64(len(e.known)))
	return failed
}

// loadEntry makes an entry of a schedule and adopts what the stream says about it.
func (e *Emitter) loadEntry(ctx context.Context, k key, schedule config.Schedule, zone string) (*entry, error) {
	cron, err := config.ParseSchedule(schedule.Line, zone)
	if err != nil {
		return nil, err
	}
	en := &entry{Entry: timetable.Entry[key]{Key: k, Schedule: cron}, schedule: schedule, zone: zone}
	return en, e.adopt(ctx, en, func(s *lifeboatv1.ScheduleState) bool {
		return s.GetTick() != nil && s.GetSchedule() == schedule.Line && s.GetTimeZone() == zone
	})
}

// adopt moves an entry behind the newest decided tick, if what the stream holds is valid, and writes an anchor otherwise.
func (e *Emitter) adopt(ctx context.Context, en *entry, valid func(*lifeboatv1.ScheduleState) bool) error {
	for {
		state, err := e.read(ctx, en)
		if err != nil {
			return err
		}
		if valid(state) {
			en.Decided(state.GetTick().AsTime())
			en.unrecorded = state
			return e.record(ctx, en)
		}
		now := e.Now().Round(0)
		en.seq, err = e.Bus.PutState(ctx, e.state(en, &lifeboatv1.ScheduleState{
			Tick: timestamppb.New(now), Outcome: lifeboatv1.ScheduleState_OUTCOME_ANCHOR,
		}))
		if errors.Is(err, bus.ErrConflict) {
			continue // another replica anchored it
		}
		if err != nil {
			return err
		}
		en.Decided(now)
		return nil
	}
}

// read fetches the state and remembers its sequence.
func (e *Emitter) read(ctx context.Context, en *entry) (*lifeboatv1.ScheduleState, error) {
	state := &lifeboatv1.ScheduleState{}
	seq, _, err := e.Bus.Last(ctx, bus.StreamJobs, bus.ScheduleSubject(en.Key.target, en.Key.schedule), state)
	if err != nil {
		return nil, fmt.Errorf("reading the schedule's state: %w", err)
	}
	en.seq = seq
	return state, nil
}

func (e *Emitter) state(en *entry, s *lifeboatv1.ScheduleState) bus.State {
	if s.GetSchedule() == "" { // a state of another schedule, written by a replica with another file, keeps its own
		s.Schedule, s.TimeZone = en.schedule.Line, en.zone
	}
	s.DecidedAt = timestamppb.New(e.Now())
	return bus.State{
		Outgoing: bus.Outgoing{Subject: bus.ScheduleSubject(en.Key.target, en.Key.schedule), Message: s}, Expect: en.seq,
	}
}

// decide emits an entry's due tick, or records why not. The protocol is in the package comment.
func (e *Emitter) decide(ctx context.Context, en *entry, now time.Time) error {
	// The next state replaces the only other place that knows of a missed tick.
	if err := e.record(ctx, en); err != nil {
		return err
	}
	due, ok := en.Due(now)
	if !ok {
		return nil
	}
	ctx, span := otel.Tracer("lifeboat/scheduler").Start(ctx, "tick "+en.Key.target+" "+en.Key.schedule)
	defer span.End()
	state := &lifeboatv1.ScheduleState{
		Tick: timestamppb.New(due.Tick), Outcome: lifeboatv1.ScheduleState_OUTCOME_EMITTED,
	}
	if due.Passed > 0 {
		state.Missed = append(state.Missed, &lifeboatv1.MissedTicks{Reason: reasonDown, Count: due.Passed, From: timestamppb.New(due.From)})
	}
	seq, err := e.Bus.PutStateWith(ctx, e.state(en, state), bus.Outgoing{
		Subject: bus.JobSubject(en.schedule.Work, en.Key.target),
		Message: &lifeboatv1.Job{Tick: timestamppb.New(due.Tick), RequestedBy: "scheduler", Identity: en.schedule.Identity},
	})
	if errors.Is(err, bus.ErrBusy) {
		state.Outcome = lifeboatv1.ScheduleState_OUTCOME_MISSED
		state.Missed = append(state.Missed, &lifeboatv1.MissedTicks{Reason: reasonOverlap, Count: 1, From: state.GetTick()})
		seq, err = e.Bus.PutState(ctx, e.state(en, state))
	}
	if errors.Is(err, bus.ErrConflict) {
		// Without a tick the stream was lost and made anew: the schedule starts again from the present.
		return e.adopt(ctx, en, func(s *lifeboatv1.ScheduleState) bool { return s.GetTick() != nil })
	}
	if err != nil {
		return err
	}
	en.seq = seq
	en.Decided(due.Tick)
	e.metrics.lateness.Observe(e.Now().Sub(due.Tick).Seconds())
	e.count(en, state)
	en.unrecorded = state
	return e.record(ctx, en)
}

func (e *Emitter) count(en *entry, s *lifeboatv1.ScheduleState) {
	if s.GetOutcome() == lifeboatv1.ScheduleState_OUTCOME_EMITTED {
		e.metrics.emitted.WithLabelValues(en.Key.target, en.Key.schedule).Inc()
	}
	for _, m := range s.GetMissed() {
		e.metrics.missed.WithLabelValues(en.Key.target, en.Key.schedule, m.GetReason()).Add(float64(m.GetCount()))
	}
}

// record puts the ticks that a state calls missed into the audit log, and notes in the state that they are there. A
// scheduler that died between the two writes, or one that lost the race to it, finds the note missing and does it; the
// event's id makes the second time the same event.
func (e *Emitter) record(ctx context.Context, en *entry) error {
	s := en.unrecorded
	overlap := s.GetOutcome() == lifeboatv1.ScheduleState_OUTCOME_MISSED
	if s.GetRecorded() || len(s.GetMissed()) == 0 {
		en.unrecorded = nil
		return nil
	}
	if err := e.Bus.Emit(ctx, missedEvent(en, s, overlap)); err != nil {
		return err
	}
	s.Recorded = true
	seq, err := e.Bus.PutState(ctx, e.state(en, s))
	switch {
	case errors.Is(err, bus.ErrConflict):
		// Another replica has noted it, or decided the next tick; the timetable catches up when that is due.
	case err != nil:
		return err
	default:
		en.seq = seq
	}
	en.unrecorded = nil
	return nil
}

func missedEvent(en *entry, s *lifeboatv1.ScheduleState, overlap bool) *lifeboatv1.Event {
	tick := s.GetTick().AsTime()
	ev := &lifeboatv1.Event{
		Id:   fmt.Sprintf("tick.missed.%s.%s.%d", en.Key.target, en.Key.schedule, tick.Unix()),
		Noun: "tick", Verb: "missed", Target: en.Key.target, RequestedBy: "scheduler",
		Attributes: map[string]string{"work": string(en.schedule.Work), "schedule": en.schedule.Name, "tick": tick.UTC().Format(time.RFC3339)},
	}
	for _, m := range s.GetMissed() {
		if m.GetReason() != reasonDown {
			continue
		}
		from := m.GetFrom().AsTime().UTC().Format(time.RFC3339)
		ev.Attributes["down_count"], ev.Attributes["down_from"] = fmt.Sprint(m.GetCount()), from
		ev.Message = fmt.Sprintf("%d ticks of %s from %s on passed while no scheduler ran", m.GetCount(), en.schedule.Name, from)
	}
	if overlap {
		ev.Attributes["reason"] = reasonOverlap
		if ev.GetMessage() != "" {
			ev.Message += "; "
		}
		ev.Message += fmt.Sprintf("the tick of %s at %s was skipped: a job waits or runs", en.schedule.Name, ev.GetAttributes()["tick"])
	}
	return ev
}
