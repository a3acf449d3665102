package emit

import (
	"fmt"
	"log/slog"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/timestamppb"

	"github.com/lifeboat-fleet/lifeboat/fleet/bus"
	"github.com/lifeboat-fleet/lifeboat/fleet/config"
	lifeboatv1 "github.com/lifeboat-fleet/lifeboat/proto/lifeboat/v1"
)

// One target of which the worker cannot tell leaves no other one unconfirmed for ever: those were forgotten.
func TestAnAnswerThatFailsKeepsTheOtherQuestions(t *testing.T) {
	line := fmt.Sprintf("schedule: %q", hourly)
	cfg := parse(t, line, line, line)
	synctest.Test(t, func(t *testing.T) {
		m, c := newMemory(1), &wallClock{}
		var broken atomic.Pointer[string]
		var there atomic.Bool
		m.ask = func(target string, _ time.Time) (*lifeboatv1.History, error) {
			if !there.Load() {
				return nil, bus.ErrNoWorker
			}
			if broken.CompareAndSwap(nil, &target); *broken.Load() == target {
				return nil, errBroken
			}
			return &lifeboatv1.History{Target: target}, nil
		}
		c.set(t, "03:10:00")
		startReplica(t, m, cfg, c.Now)
		time.Sleep(time.Minute) //nolint:forbidigo // of a clock that is not real
		there.Store(true)
		time.Sleep(time.Minute) //nolint:forbidigo // as above
		m.mu.Lock()
		defer m.mu.Unlock()
		for i := range 3 {
			name, s := fmt.Sprintf("t-%d", i), &lifeboatv1.ScheduleState{}
			require.NoError(t, bus.Decode(m.last[bus.ScheduleSubject(name, "snapshot")].Data, s))
			assert.Equal(t, name == *broken.Load(), s.GetUnconfirmed(), name)
		}
	})
}

// NATS loses its data twice, and a worker answers the question about the first time after the second: what ran between the two is not
// in the answer, and was run again.
func TestAnAnswerAboutAnEarlierAnchor(t *testing.T) {
	cfg := parse(t, fmt.Sprintf("schedule: %q, catch_up: all", hourly))
	synctest.Test(t, func(t *testing.T) {
		m, c := newMemory(1), &wallClock{}
		answer := make(chan struct{})
		m.ask = func(target string, before time.Time) (*lifeboatv1.History, error) {
			<-answer
			h := &lifeboatv1.History{Target: target, SnapshotTick: timestamppb.New(clock(t, "03:00:00"))}
			if ran := clock(t, "04:00:00"); before.After(ran) {
				h.SnapshotTick = timestamppb.New(ran)
			}
			return h, nil
		}
		c.set(t, "03:10:00")
		startReplica(t, m, cfg, c.Now)
		time.Sleep(51 * time.Minute) //nolint:forbidigo // of a clock that is not real
		m.lose()
		time.Sleep(time.Hour) //nolint:forbidigo // as above
		close(answer)
		for range 3 {
			time.Sleep(time.Minute) //nolint:forbidigo // as above
			m.endJobs()
		}
		synctest.Wait()
		var ticks []time.Time
		for _, j := range m.jobs {
			ticks = append(ticks, j.GetTick().AsTime())
		}
		assert.Equal(t, []string{"04:00:00", "05:00:00"}, show(ticks))
		assert.False(t, m.state(t).GetUnconfirmed())
	})
}

// An entry that a reload replaced while it was worked on took the schedule back with the line before, and the new one stood back for it.
func TestTwoReloadsInARow(t *testing.T) {
	first, second, third := parse(t, "schedule: '@every 20s'"), parse(t, "schedule: '@daily'"), parse(t, "schedule: '@every 30s'")
	for seed := range uint64(20) {
		synctest.Test(t, func(t *testing.T) {
			m, c := newMemory(seed), &wallClock{}
			m.slow = 300 * time.Millisecond
			c.set(t, "03:10:00")
			r := startReplica(t, m, first, c.Now)
			time.Sleep(15 * time.Second) //nolint:forbidigo // of a clock that is not real
			r.reload(second)
			time.Sleep(10 * time.Millisecond) //nolint:forbidigo // as above
			r.reload(third)
			time.Sleep(10 * time.Second) //nolint:forbidigo // as above
			assert.Equal(t, "@every 30s", m.state(t).GetSchedule(), "seed %d", seed)
		})
	}
}

// A replica that stands back before another configuration was told what the bucket knows, could do nothing with it, and looked at it
// again without a pause.
func TestStandingBackWithAnAnswerIsQuiet(t *testing.T) {
	l := newLab(t, "03:30:00")
	l.decided(hourly, "03:00:00", nil)
	l.answers(map[string]*lifeboatv1.History{target: l.history("03:00:00")})
	var looks atomic.Int64
	startReplica(t, l.connect("scheduler"), parse(t, fmt.Sprintf("schedule: %q", hourly)), func() time.Time {
		looks.Add(1)
		return l.Now()
	})
	l.set(t, "03:59:58")
	s, seq := l.state(target)
	l.eventually("it has read the state", func() bool { return looks.Load() > 5 })
	other, _ := proto.Clone(s).(*lifeboatv1.ScheduleState)
	other.Schedule, other.Unconfirmed, other.AnchoredAt = halfHourly, true, s.GetTick()
	other.Tick, other.DecidedAt = timestamppb.New(clock(t, "03:45:00")), timestamppb.New(l.Now())
	l.write(target, other, seq)
	l.set(t, "04:00:00")
	looks.Store(0)
	done := time.After(3 * time.Second)
	<-done
	assert.Less(t, looks.Load(), int64(100))
	now, _ := l.state(target)
	assert.Equal(t, halfHourly, now.GetSchedule(), "it stands back")
}

// A pause that has ended is still needed for the ticks in it that nobody has decided: they were run when a confirmation, which decides
// no tick, or a decision that took some time dropped it.
func TestAnEndedPauseStaysForItsTicks(t *testing.T) {
	cfg := parse(t, fmt.Sprintf("schedule: %q", hourly))
	en, err := newEntry(key{target, "snapshot"}, &spec{Schedule: cfg.Targets[0].Schedules()[0]}, &cfg.Targets[0])
	require.NoError(t, err)
	en.pause = &lifeboatv1.Pause{Since: timestamppb.New(clock(t, "03:30:00")), Until: timestamppb.New(clock(t, "05:30:00"))}
	for tick, kept := range map[string]bool{"03:00:00": true, "04:00:00": true, "05:00:00": false} {
		s := en.state(verdict{tick: clock(t, tick)}, clock(t, "05:30:01"))
		assert.Equal(t, kept, s.GetPause() != nil, tick)
	}
	assert.NotNil(t, en.state(verdict{tick: clock(t, "05:00:00")}, clock(t, "05:29:59")).GetPause())
}

// A series that is kept for every target would grow with the fleet, and outlive the targets. Those that tell of each schedule are made
// when they are asked for.
func TestMetricsDoNotGrowWithTheFleet(t *testing.T) {
	line := "schedule: '@every 1m'"
	cfg, reg := parse(t, line, line, line), prometheus.NewRegistry()
	synctest.Test(t, func(t *testing.T) {
		m, c := newMemory(1), &wallClock{}
		replicaWith(t, m, cfg, c.Now, slog.New(slog.DiscardHandler), reg)
		time.Sleep(150 * time.Second) //nolint:forbidigo // of a clock that is not real
		synctest.Wait()
		require.Len(t, m.jobs, 3)
	})
	all, err := reg.Gather()
	require.NoError(t, err)
	series := map[string]int{}
	for _, family := range all {
		series[family.GetName()] = len(family.GetMetric())
	}
	assert.Equal(t, map[string]int{
		"lifeboat_schedules": 1, "lifeboat_ticks_emitted_total": 1, "lifeboat_ticks_missed_total": 1, "lifeboat_tick_lateness_seconds": 1,
		"lifeboat_next_tick_timestamp_seconds": 3, "lifeboat_schedule_paused": 3, "lifeboat_schedule_interval_seconds": 3,
	}, series)
}

// A tick that a clock which ran ahead had queued was run behind the pause that its moment is in.
func TestAQueuedTickInAnEndedPauseIsPaused(t *testing.T) {
	table, err := config.ParseSchedule(hourly, "")
	require.NoError(t, err)
	tick, now := clock(t, "05:00:00"), clock(t, "05:30:00")
	v := view{schedule: table, next: clock(t, "06:00:00"), tick: tick, pending: []time.Time{tick}}
	v.pause = &lifeboatv1.Pause{Since: timestamppb.New(clock(t, "04:50:00")), Until: timestamppb.New(clock(t, "05:10:00"))}
	d := decide(v, policy{catchUp: config.CatchUpLatest, most: 1, blackout: never}, now, false)
	assert.True(t, d.emit.IsZero())
	assert.Empty(t, d.pending)
	assert.Equal(t, lifeboatv1.ScheduleState_OUTCOME_MISSED, d.outcome)
	require.NotNil(t, d.missed.of(reasonPaused))
}
