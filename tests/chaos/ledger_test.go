package chaos

import (
	"fmt"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"google.golang.org/protobuf/types/known/timestamppb"

	"github.com/lifeboat-fleet/lifeboat/fleet/config"
	lifeboatv1 "github.com/lifeboat-fleet/lifeboat/proto/lifeboat/v1"
)

func at(seconds int) time.Time { return time.Unix(1_800_000_000+int64(seconds), 0).UTC() }

// account is a ledger of one schedule that fires at 2, 4, ..., 10 s, and has decided the last of them.
func account(t *testing.T) *ledger {
	t.Helper()
	target := config.Target{Name: "a"}
	table, err := target.Timetable(config.Schedule{Name: "snapshot", Line: "@every 2s"})
	require.NoError(t, err)
	return newLedger([]*schedule{{
		id: scheduleID{"a", "snapshot"}, table: table, anchor: at(1),
		state: &lifeboatv1.ScheduleState{Tick: timestamppb.New(at(10)), Recorded: true},
	}})
}

func snapshot(verb, job string, tick int) *lifeboatv1.Event {
	return &lifeboatv1.Event{
		Id: fmt.Sprint("snapshot.", verb, ".", job), Noun: "snapshot", Verb: verb, Target: "a", JobId: job,
		Attributes: map[string]string{"tick": stamp(at(tick)), "work": "snapshot"},
	}
}

func missed(reason string, count, from, to int) *lifeboatv1.Event {
	return &lifeboatv1.Event{
		Id: fmt.Sprint("tick.missed.", to), Noun: "tick", Verb: "missed", Target: "a",
		Attributes: map[string]string{
			"work": "snapshot", reason + "_count": fmt.Sprint(count), reason + "_from": stamp(at(from)), reason + "_to": stamp(at(to)),
		},
	}
}

// whole is a log in which every tick is told of.
func whole() []*lifeboatv1.Event {
	return []*lifeboatv1.Event{
		snapshot("started", "j2", 2), snapshot("committed", "j2", 2), missed("down", 2, 4, 6),
		snapshot("committed", "j8", 8), missed("overlap", 1, 10, 10),
	}
}

func TestAWholeLogBalances(t *testing.T) {
	l := account(t)
	for _, e := range whole() {
		l.event(e)
	}
	l.close(at(26))
	assert.Empty(t, l.faults, l.report())
	assert.Equal(t, 5, l.counts["ticks"])
	assert.Equal(t, 2, l.counts["ticks emitted"])
	assert.Equal(t, 3, l.counts["ticks missed"])
}

func TestWhatIsWrongIsNamed(t *testing.T) {
	for want, change := range map[string]func(*ledger, []*lifeboatv1.Event) []*lifeboatv1.Event{
		"a tick neither emitted nor missed": func(_ *ledger, all []*lifeboatv1.Event) []*lifeboatv1.Event { return all[:4] },
		"a tick emitted twice": func(_ *ledger, all []*lifeboatv1.Event) []*lifeboatv1.Event {
			return append(all, snapshot("committed", "again", 8))
		},
		"a tick both emitted and missed": func(_ *ledger, all []*lifeboatv1.Event) []*lifeboatv1.Event {
			return append(all, snapshot("committed", "j4", 4))
		},
		"a tick missed twice": func(_ *ledger, all []*lifeboatv1.Event) []*lifeboatv1.Event {
			return append(all, missed("down", 1, 4, 4))
		},
		"a tick that the schedule does not have": func(_ *ledger, all []*lifeboatv1.Event) []*lifeboatv1.Event {
			return append(all, snapshot("committed", "j5", 5))
		},
		"an event counts other ticks than there are": func(_ *ledger, all []*lifeboatv1.Event) []*lifeboatv1.Event {
			all[2] = missed("down", 3, 4, 6)
			return all
		},
		"two runs of a target at once": func(_ *ledger, all []*lifeboatv1.Event) []*lifeboatv1.Event {
			return append([]*lifeboatv1.Event{all[0], all[3]}, append(all[1:3:3], all[4])...)
		},
		"a job did not end": func(_ *ledger, all []*lifeboatv1.Event) []*lifeboatv1.Event {
			return append(append(all[:0:0], all[0]), all[2:]...)
		},
		"a job ended twice": func(_ *ledger, all []*lifeboatv1.Event) []*lifeboatv1.Event {
			return append(all, snapshot("failed", "j8", 8))
		},
		"a job failed without a dead letter": func(_ *ledger, all []*lifeboatv1.Event) []*lifeboatv1.Event {
			all[3] = snapshot("failed", "j8", 8)
			all[3].Attributes["attempts"] = "5"
			return all
		},
		"a dead letter without a reason": func(l *ledger, all []*lifeboatv1.Event) []*lifeboatv1.Event {
			l.deadLetter(&lifeboatv1.DeadLetter{Id: "d"})
			return all
		},
		"a schedule stood still": func(l *ledger, all []*lifeboatv1.Event) []*lifeboatv1.Event {
			l.schedules[0].state.Tick = timestamppb.New(at(8))
			return all
		},
		"an event is in the log twice": func(_ *ledger, all []*lifeboatv1.Event) []*lifeboatv1.Event {
			return append(all, all[2])
		},
	} {
		t.Run(want, func(t *testing.T) {
			l := account(t)
			for _, e := range change(l, whole()) {
				l.event(e)
			}
			l.close(at(26))
			assert.Contains(t, l.faults, want, l.report())
			assert.Contains(t, l.report(), want)
		})
	}
}

func TestAJobThatGaveUpHasItsDeadLetter(t *testing.T) {
	l := account(t)
	all := whole()
	all[3] = snapshot("failed", "j8", 8)
	all[3].Attributes["attempts"] = "5"
	l.deadLetter(&lifeboatv1.DeadLetter{
		Id: "dead-lifeboat.job.snapshot.a-j8", Subject: "lifeboat.job.snapshot.a", Reason: "it did not come to an end",
	})
	for _, e := range all {
		l.event(e)
	}
	l.close(at(26))
	assert.Empty(t, l.faults, l.report())
	assert.Equal(t, 1, l.counts["dead letters"])
}

// What is decided and not yet done is accounted for: queued ticks, and missed ones whose event a stop prevented.
func TestTheLastStateCounts(t *testing.T) {
	l := account(t)
	l.schedules[0].state = &lifeboatv1.ScheduleState{
		Tick: timestamppb.New(at(10)), Pending: []*timestamppb.Timestamp{timestamppb.New(at(8))},
		Missed: []*lifeboatv1.MissedTicks{
			{Reason: "overlap", Count: 1, From: timestamppb.New(at(10)), To: timestamppb.New(at(10))},
		},
	}
	for _, e := range whole()[:3] {
		l.event(e)
	}
	l.close(at(26))
	assert.Empty(t, l.faults, l.report())
}

// Ticks between the ends of a range may have been emitted: then the count says so.
func TestARangeWithATickThatWasEmitted(t *testing.T) {
	l := account(t)
	for _, e := range []*lifeboatv1.Event{missed("down", 4, 2, 10), snapshot("committed", "j6", 6)} {
		l.event(e)
	}
	l.close(at(26))
	assert.Empty(t, l.faults, l.report())
}
