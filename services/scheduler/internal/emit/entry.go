package emit

import (
	"time"

	"google.golang.org/protobuf/types/known/durationpb"
	"google.golang.org/protobuf/types/known/timestamppb"

	"github.com/lifeboat-fleet/lifeboat/fleet/bus"
	"github.com/lifeboat-fleet/lifeboat/fleet/config"
	lifeboatv1 "github.com/lifeboat-fleet/lifeboat/proto/lifeboat/v1"
	"github.com/lifeboat-fleet/lifeboat/services/scheduler/internal/timetable"
)

const (
	// A schedule of another configuration is left to the replica that has it, until it is overdue by so much ...
	overdueAfter = time.Minute
	// ... or nothing was decided for so long.
	abandonedAfter = 24 * time.Hour
	// A schedule that is there again counts from a little before now: a tick that another replica, which never lost it, is about
	// to decide right now stays due.
	againFrom = 5 * time.Second
	// How often a tick that waits for a job's end is tried, growing with the time it waits.
	pendingMin, pendingMax = 500 * time.Millisecond, 10 * time.Second
)

// key names a schedule.
type key struct{ target, schedule string }

// spec is a schedule as the configuration has it. Targets with the same one share it.
type spec struct {
	config.Schedule
	zone  string
	splay time.Duration
}

// same says whether a state is about this line, in this zone, with this splay.
func (s *spec) same(state *lifeboatv1.ScheduleState) bool {
	return state.GetSchedule() == s.Line && state.GetTimeZone() == s.zone && state.GetSplay().AsDuration() == s.splay
}

// entry is a schedule with what the stream says about it. There are as many as targets, so it keeps no message that says nothing
// special. All fields but those under the emitter's lock belong to whoever has taken the entry.
type entry struct {
	timetable.Entry[*entry]
	key  key
	spec *spec
	// seq is the sequence of the state, tick the newest decided tick in it.
	seq     uint64
	tick    time.Time
	pending []time.Time
	pause   *lifeboatv1.Pause
	outcome lifeboatv1.ScheduleState_Outcome
	// waits is since when the pending ticks are as they are.
	waits time.Time
	// unrecorded is a state whose missed ticks may not be in the audit log yet.
	unrecorded *lifeboatv1.ScheduleState
	// anchored is when the schedule's state was found missing; zero once a worker was asked what the bucket knows.
	anchored time.Time
	// known is a worker's answer that nothing was made of yet.
	known *answer
	// other is the state of another configuration that is in force.
	other *lifeboatv1.ScheduleState

	// unread: the state must be read. fresh: the configuration named this schedule just now, so it takes the place of what the
	// state holds. absent: there is no state. removing: it was taken out of the configuration. gone: that is written.
	unread, fresh, absent, removing, gone bool

	// Under the emitter's lock: target is what the configuration says now, taken that somebody works on the entry, queued that it
	// is in the queue of what can wait, asking that a worker is being asked, told what one said.
	target                *config.Target
	told                  *answer
	taken, queued, asking bool
}

func newEntry(k key, s *spec, t *config.Target) (*entry, error) {
	table, err := t.Timetable(s.Schedule)
	if err != nil {
		return nil, err
	}
	en := &entry{key: k, spec: s, target: t, unread: true, fresh: true}
	en.Value, en.Schedule = en, table
	return en, nil
}

func (en *entry) view() view {
	return view{schedule: en.Schedule, next: en.Next, tick: en.tick, pending: en.pending, pause: en.pause}
}

// waitsFor says that something is to be done that is not about a tick's time.
func (en *entry) waitsFor() bool {
	return en.unread || en.absent || en.removing || en.unrecorded != nil || en.known != nil || (en.other != nil && en.fresh)
}

// adopt takes over what the stream says: the timetable moves behind the newest decided tick.
func (en *entry) adopt(s *lifeboatv1.ScheduleState, seq uint64, now time.Time) {
	en.seq, en.unread = seq, false
	en.other, en.absent = nil, false
	en.pause, en.unrecorded, en.pending = s.GetPause(), nil, nil
	if s.GetTick() == nil {
		// Nobody decided anything, or NATS lost it: the schedule counts from now, and the bucket is asked about the time before.
		en.absent, en.outcome = true, lifeboatv1.ScheduleState_OUTCOME_ANCHOR
		en.anchored, en.tick = now, now
		en.Decided(now)
		return
	}
	en.tick, en.outcome = s.GetTick().AsTime(), s.GetOutcome()
	en.anchored = time.Time{}
	if s.GetUnconfirmed() {
		en.anchored = en.tick
		if s.GetAnchoredAt() != nil {
			en.anchored = s.GetAnchoredAt().AsTime()
		}
	}
	for _, p := range s.GetPending() {
		en.pending = append(en.pending, p.AsTime())
	}
	en.waits = s.GetDecidedAt().AsTime()
	if len(s.GetMissed()) > 0 && !s.GetRecorded() {
		en.unrecorded = s
	}
	en.Decided(en.tick)
	removed := s.GetOutcome() == lifeboatv1.ScheduleState_OUTCOME_REMOVED
	if !en.spec.same(s) || (removed && (en.fresh || en.removing)) {
		en.other = s
		return
	}
	en.fresh = false
}

// schedule sets when the entry is to be looked at again.
func (en *entry) schedule(now time.Time) {
	en.At = en.Next
	if len(en.pending) > 0 {
		again := now.Add(min(max(now.Sub(en.waits)/8, pendingMin), pendingMax))
		if en.At.IsZero() || again.Before(en.At) {
			en.At = again
		}
	}
	if en.other != nil {
		en.At = en.takeOver()
	}
}

// takeOver is when the schedule of another configuration counts as abandoned.
func (en *entry) takeOver() time.Time {
	at := en.other.GetDecidedAt().AsTime().Add(abandonedAfter)
	if en.other.GetOutcome() == lifeboatv1.ScheduleState_OUTCOME_REMOVED {
		return en.other.GetDecidedAt().AsTime() // nobody has it any more
	}
	v, err := en.otherView()
	if err != nil || v.next.IsZero() {
		return at
	}
	if overdue := v.next.Add(overdueAfter); overdue.Before(at) {
		return overdue
	}
	return at
}

// otherView is the schedule that a state of another configuration is about.
func (en *entry) otherView() (view, error) {
	of := config.Target{Name: en.key.target, TimeZone: en.other.GetTimeZone(), Splay: en.other.GetSplay().AsDuration()}
	table, err := of.Timetable(config.Schedule{Name: en.key.schedule, Line: en.other.GetSchedule()})
	if err != nil {
		return view{}, err
	}
	v := en.view()
	v.schedule, v.next = table, table.Next(en.tick)
	return v, nil
}

// state begins a state of this schedule; the caller says what was decided.
func (en *entry) state(d verdict, now time.Time) *lifeboatv1.ScheduleState {
	s := &lifeboatv1.ScheduleState{
		Tick: timestamppb.New(d.tick), Outcome: d.outcome, Schedule: en.spec.Line, TimeZone: en.spec.zone,
		DecidedAt: timestamppb.New(now), Missed: d.missed.proto(), Pause: en.pause,
	}
	if en.spec.splay > 0 {
		s.Splay = durationpb.New(en.spec.splay)
	}
	for _, p := range d.pending {
		s.Pending = append(s.Pending, timestamppb.New(p))
	}
	if until := en.pause.GetUntil(); until != nil && !until.AsTime().After(now) {
		if next := en.Schedule.Next(d.tick); next.IsZero() || !next.Before(until.AsTime()) {
			s.Pause = nil // it ended, and all its ticks are decided
		}
	}
	if !en.anchored.IsZero() {
		s.Unconfirmed, s.AnchoredAt = true, timestamppb.New(en.anchored)
	}
	return s
}

// put says how a state is written: in place of the one that was read.
func (en *entry) put(s *lifeboatv1.ScheduleState) bus.State {
	return bus.State{Outgoing: bus.Outgoing{Subject: bus.ScheduleSubject(en.key.target, en.key.schedule), Message: s}, Expect: en.seq}
}

// written takes over a state that this replica wrote.
func (en *entry) written(s *lifeboatv1.ScheduleState, seq uint64, now time.Time) {
	en.fresh = false
	en.adopt(s, seq, now)
}
