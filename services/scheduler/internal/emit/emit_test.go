package emit

import (
	"context"
	"errors"
	"fmt"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/timestamppb"

	"github.com/lifeboat-fleet/lifeboat/fleet/bus"
	lifeboatv1 "github.com/lifeboat-fleet/lifeboat/proto/lifeboat/v1"
)

const hourly = "0 * * * *"

func tickIs(want string) func(*lifeboatv1.ScheduleState) bool {
	return func(s *lifeboatv1.ScheduleState) bool { return at(s) == want }
}

// Downtime from 03:00 to 08:30, with a schedule of every hour.
func TestCatchUpAfterDowntime(t *testing.T) {
	for name, c := range map[string]struct {
		settings string
		emitted  []string
		missed   []string
	}{
		"latest":              {"overlap: skip", []string{"08:00:00"}, []string{"down 4 04:00:00 07:00:00"}},
		"latest in a window":  {"catch_up_window: 10m", nil, []string{"down 5 04:00:00 08:00:00"}},
		"all":                 {"catch_up: all", []string{"04:00:00", "05:00:00", "06:00:00", "07:00:00", "08:00:00"}, nil},
		"all, two at most":    {"catch_up: all, catch_up_max: 2", []string{"07:00:00", "08:00:00"}, []string{"down 3 04:00:00 06:00:00"}},
		"all of three hours":  {"catch_up: all, catch_up_window: 3h", []string{"06:00:00", "07:00:00", "08:00:00"}, []string{"down 2 04:00:00 05:00:00"}},
		"none":                {"catch_up: none", nil, []string{"down 5 04:00:00 08:00:00"}},
		"none, in a blackout": {"catch_up: none, blackout: [{times: [{start_time: '05:30', end_time: '06:30'}]}]", nil, []string{"down 4 04:00:00 08:00:00", "blackout 1 06:00:00 06:00:00"}},
	} {
		t.Run(name, func(t *testing.T) {
			l := newLab(t, "08:30:00")
			l.decided(hourly, "03:00:00", nil)
			l.start(parse(t, fmt.Sprintf("schedule: %q, %s", hourly, c.settings)))
			for i, want := range c.emitted {
				l.eventually(want, func() bool { tick, _, _ := l.job(); return tick == want })
				s := l.settled("recorded", tickIs("08:00:00"))
				assert.Equal(t, c.emitted[i+1:], append([]string{}, pendingOf(s)...), "the others wait")
				l.end()
			}
			s := l.settled("decided", tickIs("08:00:00"))
			assert.Empty(t, s.GetPending())
			assert.ElementsMatch(t, c.missed, l.missed())
			tick, _, _ := l.job()
			assert.Empty(t, tick, "nothing more is emitted")
		})
	}
}

func TestATickThatFindsAJobIsSkippedAndTheJobNamed(t *testing.T) {
	l := newLab(t, "03:59:59")
	_, err := l.bus.Publish(t.Context(), bus.Outgoing{Subject: "lifeboat.job.snapshot.t-0", Message: &lifeboatv1.Job{RequestedBy: "a person"}})
	require.NoError(t, err)
	_, _, id := l.job()
	require.NotEmpty(t, id)
	l.start(parse(t, fmt.Sprintf("schedule: %q", hourly)))
	s := l.settled("skipped", tickIs("04:00:00"))
	assert.Equal(t, lifeboatv1.ScheduleState_OUTCOME_MISSED, s.GetOutcome())
	require.Len(t, s.GetMissed(), 1)
	assert.Equal(t, id, s.GetMissed()[0].GetJobId())
	assert.Equal(t, []string{"overlap 1 04:00:00 04:00:00"}, l.missed())
	e := l.events("tick", "missed")[0]
	assert.Equal(t, id, e.GetAttributes()["overlap_job"])
	assert.Equal(t, "overlap", e.GetAttributes()["reason"])
	assert.Contains(t, e.GetMessage(), id)
}

func TestOneTickIsQueuedBehindAJob(t *testing.T) {
	l := newLab(t, "03:59:59")
	_, err := l.bus.Publish(t.Context(), bus.Outgoing{Subject: "lifeboat.job.snapshot.t-0", Message: &lifeboatv1.Job{RequestedBy: "a person"}})
	require.NoError(t, err)
	_, _, id := l.job()
	r := l.start(parse(t, fmt.Sprintf("schedule: %q, overlap: queue", hourly)))
	s := l.settled("queued", tickIs("04:00:00"))
	assert.Equal(t, lifeboatv1.ScheduleState_OUTCOME_QUEUED, s.GetOutcome())
	assert.Equal(t, []string{"04:00:00"}, pendingOf(s))
	l.set(t, "05:00:00")
	r.reload(nil)
	s = l.settled("no room for a second one", tickIs("05:00:00"))
	assert.Equal(t, []string{"04:00:00"}, pendingOf(s))
	assert.Equal(t, []string{"overlap 1 05:00:00 05:00:00"}, l.missed())
	assert.Equal(t, id, s.GetMissed()[0].GetJobId())
	l.end()
	l.eventually("the queued one runs", func() bool { tick, _, _ := l.job(); return tick == "04:00:00" })
	s = l.settled("it is out of the queue", func(s *lifeboatv1.ScheduleState) bool { return len(s.GetPending()) == 0 })
	assert.Equal(t, "05:00:00", at(s), "the newest decided tick stays")
	l.end()
	l.set(t, "06:00:00")
	r.reload(nil)
	l.eventually("the next one runs as usual", func() bool { tick, _, _ := l.job(); return tick == "06:00:00" })
	assert.Len(t, l.missed(), 1)
}

// A person pauses while the scheduler decides: whoever writes first has decided, and nobody's write is lost.
func TestPauseRacesWithATick(t *testing.T) {
	l := newLab(t, "03:30:00")
	l.decided("@every 1s", "03:29:58", nil)
	l.start(parse(t, "schedule: '@every 1s', overlap: skip"))
	pausing := func(change func(*lifeboatv1.ScheduleState)) {
		for {
			s, seq := l.state("t-0")
			change(s)
			_, err := l.put("t-0", s, seq)
			if err == nil {
				return
			}
			require.ErrorIs(t, err, bus.ErrConflict)
		}
	}
	counted := int64(0)
	last := clock(t, "03:29:58")
	count := func(s *lifeboatv1.ScheduleState) { counted = int64(s.GetTick().AsTime().Sub(last) / time.Second) }
	for round := range 3 {
		l.eventually("it fires", func() bool { _, seq, _ := l.job(); return seq > 0 })
		l.end()
		var since time.Time
		pausing(func(s *lifeboatv1.ScheduleState) {
			since = l.Now()
			s.Pause = &lifeboatv1.Pause{Since: timestamppb.New(since), By: "me"}
			if round == 2 {
				s.Pause.Until = timestamppb.New(since.Add(2 * time.Second))
			}
		})
		if _, seq, _ := l.job(); seq > 0 { // emitted before the pause was written
			l.end()
		}
		s := l.settled("paused ticks are recorded", func(s *lifeboatv1.ScheduleState) bool {
			return len(s.GetMissed()) == 1 && s.GetMissed()[0].GetReason() == reasonPaused && s.GetTick().AsTime().After(since.Add(time.Second))
		})
		require.NotNil(t, s.GetPause(), "the pause is kept")
		assert.Equal(t, "me", s.GetPause().GetBy())
		_, seq, _ := l.job()
		assert.Zero(t, seq, "nothing is emitted in a pause")
		if round < 2 {
			pausing(func(s *lifeboatv1.ScheduleState) { s.Pause = nil })
		}
	}
	l.eventually("a pause with an end ends by itself", func() bool { _, seq, _ := l.job(); return seq > 0 })
	s := l.settled("and is gone", func(s *lifeboatv1.ScheduleState) bool { return s.GetPause() == nil })
	count(s)
	t.Logf("%d ticks", counted)
}

func TestWhatAConfigurationPausesIsRecorded(t *testing.T) {
	l := newLab(t, "03:59:59")
	r := l.start(parse(t, fmt.Sprintf("schedule: %q, paused: true", hourly)))
	l.settled("paused", tickIs("04:00:00"))
	assert.Equal(t, []string{"paused 1 04:00:00 04:00:00"}, l.missed())
	r.reload(parse(t, fmt.Sprintf("schedule: %q", hourly)))
	l.set(t, "05:00:00")
	r.reload(nil)
	l.eventually("it runs again", func() bool { tick, _, _ := l.job(); return tick == "05:00:00" })
}

func TestBlackout(t *testing.T) {
	l := newLab(t, "03:59:59")
	r := l.start(parse(t, fmt.Sprintf("schedule: %q, blackout: [{times: [{start_time: '04:00', end_time: '05:30'}]}]", hourly)))
	l.settled("in a blackout", tickIs("04:00:00"))
	l.set(t, "05:00:00")
	r.reload(nil)
	l.settled("in a blackout", tickIs("05:00:00"))
	l.set(t, "06:00:00")
	r.reload(nil)
	l.eventually("behind it", func() bool { tick, _, _ := l.job(); return tick == "06:00:00" })
	assert.Equal(t, []string{"blackout 1 04:00:00 04:00:00", "blackout 1 05:00:00 05:00:00"}, l.missed())
}

// The scheduler died between the state and the event: whoever starts next finds that the event is missing.
func TestACrashBetweenStateAndEventIsRepaired(t *testing.T) {
	l := newLab(t, "04:30:00")
	l.decided(hourly, "04:00:00", func(s *lifeboatv1.ScheduleState) {
		s.Outcome = lifeboatv1.ScheduleState_OUTCOME_MISSED
		s.Missed = []*lifeboatv1.MissedTicks{{
			Reason: reasonOverlap, Count: 1, From: s.GetTick(), To: s.GetTick(), JobId: "20261121T030000.000Z-1",
		}}
	})
	before, _ := l.state("t-0")
	l.start(parse(t, fmt.Sprintf("schedule: %q", hourly)))
	l.start(parse(t, fmt.Sprintf("schedule: %q", hourly)))
	s := l.settled("recorded", func(s *lifeboatv1.ScheduleState) bool { return s.GetRecorded() })
	assert.Equal(t, []string{"overlap 1 04:00:00 04:00:00"}, l.missed(), "once, by two replicas")
	before.Recorded = true
	assert.True(t, proto.Equal(before, s), "only the note is new")
}

// brokenOnce fails one call behind its effect, as a crash or a lost answer does.
type brokenOnce struct {
	*bus.Bus
	fail map[string]bool
}

var errBroken = errors.New("broken by the test")

func (b *brokenOnce) breaks(what string) bool {
	was := b.fail[what]
	delete(b.fail, what)
	return was
}

func (b *brokenOnce) PutStateWith(ctx context.Context, s bus.State, with bus.Outgoing) (uint64, error) {
	seq, err := b.Bus.PutStateWith(ctx, s, with)
	if err == nil && b.breaks("batch") {
		return 0, errBroken
	}
	return seq, err
}

func (b *brokenOnce) Emit(ctx context.Context, e *lifeboatv1.Event) error {
	if b.breaks("before event") {
		return errBroken
	}
	err := b.Bus.Emit(ctx, e)
	if err == nil && b.breaks("event") {
		return errBroken
	}
	return err
}

func TestLostAnswersChangeNothing(t *testing.T) {
	l := newLab(t, "08:30:00")
	l.decided(hourly, "03:00:00", nil)
	b := &brokenOnce{Bus: l.connect("scheduler"), fail: map[string]bool{"batch": true, "before event": true, "event": true}}
	r := startReplica(t, b, parse(t, fmt.Sprintf("schedule: %q", hourly)), l.Now)
	l.settled("recorded", func(s *lifeboatv1.ScheduleState) bool { return s.GetRecorded() })
	r.stop()
	assert.Empty(t, b.fail, "all of it happened")
	assert.Equal(t, []string{"down 4 04:00:00 07:00:00"}, l.missed())
	tick, _, _ := l.job()
	assert.Equal(t, "08:00:00", tick)
}

func TestClockSteps(t *testing.T) {
	l := newLab(t, "04:00:00")
	l.decided(hourly, "03:00:00", nil)
	r := l.start(parse(t, fmt.Sprintf("schedule: %q", hourly)))
	l.settled("a tick", tickIs("04:00:00"))
	l.end()
	l.set(t, "07:10:00")
	r.reload(nil)
	l.settled("forward: the newest runs", tickIs("07:00:00"))
	l.end()
	assert.Equal(t, []string{"down 2 05:00:00 06:00:00"}, l.missed())
	_, before := l.state("t-0")
	l.set(t, "03:30:00")
	r.reload(nil)
	second := l.start(parse(t, fmt.Sprintf("schedule: %q", hourly)))
	for _, back := range []string{"04:00:00", "05:00:00", "06:30:00", "07:00:00", "07:59:58"} {
		l.set(t, back)
		r.reload(nil)
		second.reload(nil)
	}
	l.eventually("the next one that was not decided", func() bool { tick, _, _ := l.job(); return tick == "08:00:00" })
	_, after := l.state("t-0")
	assert.Equal(t, before+1, after, "nothing was written in between")
	assert.Len(t, l.missed(), 1)
}
