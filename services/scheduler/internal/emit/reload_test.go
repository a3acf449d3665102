package emit

import (
	"fmt"
	"testing"

	"github.com/stretchr/testify/assert"
	"google.golang.org/protobuf/types/known/timestamppb"

	lifeboatv1 "github.com/lifeboat-fleet/lifeboat/proto/lifeboat/v1"
)

const halfHourly = "15,45 * * * *"

func lineIs(want string) func(*lifeboatv1.ScheduleState) bool {
	return func(s *lifeboatv1.ScheduleState) bool { return s.GetSchedule() == want }
}

// The old line's ticks up to the change are accounted for, the new one's count from there, and a replica that was not told yet
// leaves the schedule to the one that was.
func TestAChangedLine(t *testing.T) {
	l := newLab(t, "03:30:00")
	l.decided(hourly, "03:00:00", func(s *lifeboatv1.ScheduleState) {
		s.Pending = []*timestamppb.Timestamp{s.GetTick()}
		s.Pause = &lifeboatv1.Pause{Since: timestamppb.New(clock(t, "05:30:00"))}
	})
	old := l.start(parse(t)) // it does not have the target
	l.set(t, "06:10:00")
	changed := parse(t, fmt.Sprintf("schedule: %q, splay: 1h", halfHourly))
	r := l.start(changed)
	s := l.settled("anchored", lineIs(halfHourly))
	assert.Equal(t, lifeboatv1.ScheduleState_OUTCOME_ANCHOR, s.GetOutcome())
	assert.Equal(t, "06:10:0", at(s)[:7])
	assert.NotNil(t, s.GetPause(), "the pause is of the schedule, not of the line")
	assert.Equal(t, "1h0m0s", s.GetSplay().AsDuration().String())
	assert.False(t, s.GetUnconfirmed())
	assert.ElementsMatch(t, []string{"down 3 03:00:00 05:00:00", "paused 1 06:00:00 06:00:00"}, l.missed())
	r.reload(parse(t, fmt.Sprintf("schedule: %q", halfHourly)))
	s = l.settled("another splay is another timetable", func(s *lifeboatv1.ScheduleState) bool { return s.GetSplay() == nil })
	assert.Equal(t, lifeboatv1.ScheduleState_OUTCOME_ANCHOR, s.GetOutcome())
	old.reload(nil)
}

func TestAReplicaWithAnOldLineStandsBack(t *testing.T) {
	l := newLab(t, "03:30:00")
	old, now := parse(t, fmt.Sprintf("schedule: %q", hourly)), parse(t, fmt.Sprintf("schedule: %q", halfHourly))
	l.decided(hourly, "02:00:00", nil)
	b := l.start(old)
	l.settled("it has read the state, and counts as one that was told nothing new", tickIs("03:00:00"))
	l.end()
	a := l.start(old)
	a.reload(now)
	l.settled("anchored", lineIs(halfHourly))
	l.set(t, "03:45:00")
	a.reload(nil)
	l.settled("the new line's tick", tickIs("03:45:00"))
	l.end()
	l.set(t, "04:00:00")
	b.reload(nil)
	l.set(t, "04:15:00")
	a.reload(nil)
	b.reload(nil)
	s := l.settled("the new line's tick", tickIs("04:15:00"))
	assert.Equal(t, lifeboatv1.ScheduleState_OUTCOME_EMITTED, s.GetOutcome())
	l.end()
	assert.Empty(t, l.missed(), "the old line's tick of 04:00 is nobody's")
	a.stop()
	// Nobody is left who has the new line: the old one comes back when that is overdue.
	l.set(t, "04:46:30")
	b.reload(nil)
	s = l.settled("the old line is back", lineIs(hourly))
	assert.Equal(t, lifeboatv1.ScheduleState_OUTCOME_ANCHOR, s.GetOutcome())
	assert.Equal(t, []string{"down 1 04:45:00 04:45:00"}, l.missed())
	l.set(t, "05:00:00")
	b.reload(nil)
	l.settled("and fires", tickIs("05:00:00"))
}

func TestRemovedAndAddedAgain(t *testing.T) {
	l := newLab(t, "03:59:59")
	with, without := parse(t, fmt.Sprintf("schedule: %q", hourly)), parse(t)
	l.decided(hourly, "03:00:00", func(s *lifeboatv1.ScheduleState) {
		s.Pending = []*timestamppb.Timestamp{s.GetTick()}
		s.Pause = &lifeboatv1.Pause{Since: timestamppb.New(clock(t, "12:00:00"))}
	})
	l.write("t-9", &lifeboatv1.ScheduleState{Tick: timestamppb.New(clock(t, "03:00:00")), Schedule: hourly}, 0)
	a, b := l.start(with), l.start(with)
	l.eventually("what waits runs", func() bool { tick, _, _ := l.job(); return tick == "03:00:00" })
	l.end()
	l.settled("a tick", tickIs("04:00:00"))
	l.end()
	a.reload(without)
	s := l.settled("removed", func(s *lifeboatv1.ScheduleState) bool {
		return s.GetOutcome() == lifeboatv1.ScheduleState_OUTCOME_REMOVED
	})
	assert.Equal(t, "04:00:00", at(s), "the tick is kept")
	assert.NotNil(t, s.GetPause(), "and the pause")
	l.set(t, "05:00:00")
	a.reload(nil)
	b.reload(nil)
	l.settled("the other replica still has it", tickIs("05:00:00"))
	l.end()
	b.reload(without)
	l.settled("removed", func(s *lifeboatv1.ScheduleState) bool {
		return s.GetOutcome() == lifeboatv1.ScheduleState_OUTCOME_REMOVED
	})
	l.set(t, "08:30:00")
	a.reload(with)
	s = l.settled("there again", func(s *lifeboatv1.ScheduleState) bool {
		return s.GetOutcome() == lifeboatv1.ScheduleState_OUTCOME_ANCHOR
	})
	assert.Equal(t, "08:29:5", at(s)[:7], "it counts from now")
	assert.False(t, s.GetUnconfirmed())
	assert.Empty(t, l.missed(), "ticks of a schedule that was not there are nobody's")
	other, _ := l.state("t-9")
	assert.Equal(t, lifeboatv1.ScheduleState_OUTCOME_UNSPECIFIED, other.GetOutcome(), "what no configuration had is left alone")
}

func TestRemovingDecidesWhatIsDueAndDropsWhatWaits(t *testing.T) {
	l := newLab(t, "05:30:00")
	l.decided(hourly, "05:00:00", func(s *lifeboatv1.ScheduleState) {
		s.Pending = []*timestamppb.Timestamp{timestamppb.New(clock(t, "04:00:00")), s.GetTick()}
	})
	r := l.start(parse(t, fmt.Sprintf("schedule: %q, catch_up: all", hourly)))
	l.eventually("the first one", func() bool { tick, _, _ := l.job(); return tick == "04:00:00" })
	r.reload(parse(t))
	l.settled("removed", func(s *lifeboatv1.ScheduleState) bool {
		return s.GetOutcome() == lifeboatv1.ScheduleState_OUTCOME_REMOVED
	})
	assert.Equal(t, []string{"removed 1 05:00:00 05:00:00"}, l.missed())
}
