package emit

import (
	"fmt"
	"math/rand/v2"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"google.golang.org/protobuf/types/known/timestamppb"

	"github.com/lifeboat-fleet/lifeboat/fleet/config"
	lifeboatv1 "github.com/lifeboat-fleet/lifeboat/proto/lifeboat/v1"
)

// clock is a time of 2026-11-21, UTC.
func clock(t *testing.T, s string) time.Time {
	t.Helper()
	if s == "" {
		return time.Time{}
	}
	v, err := time.Parse(time.DateTime, "2026-11-21 "+s)
	require.NoError(t, err)
	return v
}

func clocks(t *testing.T, all []string) []time.Time {
	t.Helper()
	var times []time.Time
	for _, s := range all {
		times = append(times, clock(t, s))
	}
	return times
}

func show(ticks []time.Time) []string {
	var all []string
	for _, tick := range ticks {
		all = append(all, tick.UTC().Format("15:04:05"))
	}
	return all
}

func showMissed(missed tally) map[string]string {
	all := map[string]string{}
	for _, m := range missed {
		all[m.reason] = fmt.Sprintf("%d %s", m.count, show([]time.Time{m.from, m.to}))
	}
	return all
}

// pause is one from a time to another, or without an end.
func pause(t *testing.T, since, until string) *lifeboatv1.Pause {
	t.Helper()
	p := &lifeboatv1.Pause{Since: timestamppb.New(clock(t, since))}
	if until != "" {
		p.Until = timestamppb.New(clock(t, until))
	}
	return p
}

func never(time.Time) bool { return false }

// The schedule of every case is hourly.
func TestDecide(t *testing.T) {
	hourly, err := config.ParseSchedule("0 * * * *", "")
	require.NoError(t, err)
	latest := policy{catchUp: config.CatchUpLatest, most: 10, blackout: never}
	with := func(change func(*policy)) policy {
		p := latest
		change(&p)
		return p
	}
	all := with(func(p *policy) { p.catchUp, p.window, p.most = config.CatchUpAll, 24*time.Hour, 3 })
	allQueue := with(func(p *policy) { p.catchUp, p.window, p.most, p.queue = config.CatchUpAll, 24*time.Hour, 3, true })
	none := with(func(p *policy) { p.catchUp = config.CatchUpNone })
	queue := with(func(p *policy) { p.queue = true })
	dark := with(func(p *policy) { p.blackout = func(at time.Time) bool { return at.Hour() == 4 || at.Hour() == 5 } })
	const (
		emitted = lifeboatv1.ScheduleState_OUTCOME_EMITTED
		missed  = lifeboatv1.ScheduleState_OUTCOME_MISSED
		queued  = lifeboatv1.ScheduleState_OUTCOME_QUEUED
	)
	type reasons = map[string]string
	for name, c := range map[string]struct {
		p          policy
		last, now  string
		pending    []string
		pause      *lifeboatv1.Pause
		busy       bool
		outcome    lifeboatv1.ScheduleState_Outcome
		tick, emit string
		left       []string
		missed     reasons
	}{
		"nothing is due": {p: latest, last: "03:10:00", now: "03:59:59", tick: "03:10:00"},
		"a tick":         {p: latest, last: "03:10:00", now: "04:00:00", outcome: emitted, tick: "04:00:00", emit: "04:00:00"},
		"latest after hours": {
			p: latest, last: "03:00:00", now: "07:30:00", outcome: emitted, tick: "07:00:00", emit: "07:00:00",
			missed: reasons{"down": "3 [04:00:00 06:00:00]"},
		},
		"latest, too late for its window": {
			p: with(func(p *policy) { p.window = 10 * time.Minute }), last: "03:00:00", now: "07:30:00", outcome: missed, tick: "07:00:00",
			missed: reasons{"down": "4 [04:00:00 07:00:00]"},
		},
		"all after hours, three at most": {
			p: all, last: "03:00:00", now: "08:30:00", outcome: emitted, tick: "08:00:00", emit: "06:00:00",
			left: []string{"07:00:00", "08:00:00"}, missed: reasons{"down": "2 [04:00:00 05:00:00]"},
		},
		"all within its window": {
			p:    with(func(p *policy) { p.catchUp, p.window, p.most = config.CatchUpAll, 2*time.Hour, 10 }),
			last: "03:00:00", now: "08:00:00", outcome: emitted, tick: "08:00:00", emit: "06:00:00",
			left: []string{"07:00:00", "08:00:00"}, missed: reasons{"down": "2 [04:00:00 05:00:00]"},
		},
		"none after hours": {p: none, last: "03:00:00", now: "05:01:01", outcome: missed, tick: "05:00:00", missed: reasons{"down": "2 [04:00:00 05:00:00]"}},
		"none, a minute late": {
			p: none, last: "03:00:00", now: "05:01:00", outcome: emitted, tick: "05:00:00", emit: "05:00:00",
			missed: reasons{"down": "1 [04:00:00 04:00:00]"},
		},
		"overlap is skipped": {
			p: latest, last: "03:00:00", now: "04:00:00", busy: true, outcome: missed, tick: "04:00:00",
			missed: reasons{"overlap": "1 [04:00:00 04:00:00]"},
		},
		"overlap is queued": {p: queue, last: "03:00:00", now: "04:00:00", busy: true, outcome: queued, tick: "04:00:00", left: []string{"04:00:00"}},
		"one is queued, a second one is not": {
			p: queue, last: "04:00:00", now: "05:00:00", pending: []string{"04:00:00"}, busy: true, outcome: missed, tick: "05:00:00",
			left: []string{"04:00:00"}, missed: reasons{"overlap": "1 [05:00:00 05:00:00]"},
		},
		"what is queued waits":                   {p: queue, last: "04:00:00", now: "04:10:00", pending: []string{"04:00:00"}, busy: true, tick: "04:00:00", left: []string{"04:00:00"}},
		"what is queued runs when the job ended": {p: queue, last: "04:00:00", now: "04:10:00", pending: []string{"04:00:00"}, outcome: emitted, tick: "04:00:00", emit: "04:00:00"},
		"what is queued goes out, and the next one takes its place": {
			p: queue, last: "04:00:00", now: "05:00:00", pending: []string{"04:00:00"}, outcome: emitted, tick: "05:00:00", emit: "04:00:00",
			left: []string{"05:00:00"},
		},
		"with skip nothing takes the place": {
			p: latest, last: "04:00:00", now: "05:00:00", pending: []string{"04:00:00"}, outcome: emitted, tick: "05:00:00", emit: "04:00:00",
			missed: reasons{"overlap": "1 [05:00:00 05:00:00]"},
		},
		"all, and a job is in the way: late ones wait, the one in time does not": {
			p: all, last: "03:00:00", now: "06:00:00", busy: true, outcome: queued, tick: "06:00:00",
			left: []string{"04:00:00", "05:00:00"}, missed: reasons{"overlap": "1 [06:00:00 06:00:00]"},
		},
		"all with queue, while others wait": {
			p: allQueue, last: "05:00:00", now: "08:30:00", pending: []string{"04:00:00", "05:00:00"}, busy: true, outcome: queued, tick: "08:00:00",
			left: []string{"04:00:00", "05:00:00", "06:00:00"}, missed: reasons{"down": "2 [07:00:00 08:00:00]"},
		},
		"paused by the configuration": {
			p: with(func(p *policy) { p.paused = true }), last: "03:00:00", now: "05:00:00", outcome: missed, tick: "05:00:00",
			missed: reasons{"paused": "2 [04:00:00 05:00:00]"},
		},
		"paused without an end": {
			p: latest, last: "03:00:00", now: "05:00:00", pause: pause(t, "03:30:00", ""), outcome: missed, tick: "05:00:00",
			missed: reasons{"paused": "2 [04:00:00 05:00:00]"},
		},
		"a pause that ended": {
			p: latest, last: "03:00:00", now: "06:30:00", pause: pause(t, "03:30:00", "05:30:00"), outcome: emitted, tick: "06:00:00", emit: "06:00:00",
			missed: reasons{"paused": "2 [04:00:00 05:00:00]"},
		},
		"a pause that ends at a tick does not cover it": {
			p: latest, last: "03:00:00", now: "05:00:00", pause: pause(t, "03:30:00", "05:00:00"), outcome: emitted, tick: "05:00:00", emit: "05:00:00",
			missed: reasons{"paused": "1 [04:00:00 04:00:00]"},
		},
		"a pause of a moment after the tick still stops it": {
			p: latest, last: "03:00:00", now: "04:00:02", pause: pause(t, "04:00:01", ""), outcome: missed, tick: "04:00:00",
			missed: reasons{"paused": "1 [04:00:00 04:00:00]"},
		},
		"a pause stops what waits": {
			p: queue, last: "04:00:00", now: "04:10:00", pending: []string{"04:00:00"}, pause: pause(t, "04:05:00", ""), outcome: missed, tick: "04:00:00",
			missed: reasons{"paused": "1 [04:00:00 04:00:00]"},
		},
		"blackout": {
			p: dark, last: "03:00:00", now: "05:00:00", outcome: missed, tick: "05:00:00", missed: reasons{"blackout": "2 [04:00:00 05:00:00]"},
		},
		"blackouts in a time without a scheduler": {
			p: dark, last: "02:00:00", now: "07:30:00", outcome: emitted, tick: "07:00:00", emit: "07:00:00",
			missed: reasons{"blackout": "2 [04:00:00 05:00:00]", "down": "2 [03:00:00 06:00:00]"},
		},
		"a late tick does not run into a blackout, but behind it": {
			p: dark, last: "02:00:00", now: "04:30:00", outcome: queued, tick: "04:00:00", left: []string{"03:00:00"}, missed: reasons{"blackout": "1 [04:00:00 04:00:00]"},
		},
		"what waits does not run in a blackout": {p: dark, last: "04:00:00", now: "04:30:00", pending: []string{"03:00:00"}, tick: "04:00:00", left: []string{"03:00:00"}},
	} {
		t.Run(name, func(t *testing.T) {
			last := clock(t, c.last)
			v := view{schedule: hourly, next: hourly.Next(last), tick: last, pending: clocks(t, c.pending), pause: c.pause}
			d := decide(v, c.p, clock(t, c.now), c.busy)
			assert.Equal(t, c.outcome, d.outcome)
			assert.Equal(t, c.tick, show([]time.Time{d.tick})[0])
			assert.Equal(t, clock(t, c.emit), d.emit)
			assert.Equal(t, c.left, show(d.pending))
			if c.missed == nil {
				c.missed = reasons{}
			}
			assert.Equal(t, c.missed, showMissed(d.missed))
			assert.Equal(t, c.outcome == 0, d.empty())
		})
	}
}

// Whatever the policy and the moments, every tick ends as emitted, as pending or as missed, once.
func TestNoDecisionLosesOrDoublesATick(t *testing.T) {
	seed := rand.Uint64()
	t.Logf("seed %d", seed)
	r := rand.New(rand.NewPCG(seed, 5))
	schedule, err := config.ParseSchedule("*/10 * * * *", "")
	require.NoError(t, err)
	total := 0
	for range 300 {
		p := policy{
			catchUp: []string{config.CatchUpLatest, config.CatchUpAll, config.CatchUpNone}[r.IntN(3)], most: 1 + r.IntN(5),
			window: time.Duration(r.IntN(3)) * time.Hour, queue: r.IntN(2) == 0, blackout: never,
		}
		dark := r.IntN(2) == 0
		p.blackout = func(at time.Time) bool { return dark && at.Hour()%3 == 0 }
		start := clock(t, "00:00:00")
		v := view{schedule: schedule, next: schedule.Next(start), tick: start}
		emitted, missed := map[time.Time]bool{}, int64(0)
		now := start
		for range 60 {
			now = now.Add(time.Duration(r.IntN(5400)) * time.Second)
			if r.IntN(5) == 0 {
				now = now.Add(-time.Hour) // the clock is set back
			}
			v.pause = nil
			if r.IntN(4) == 0 {
				v.pause = &lifeboatv1.Pause{Since: timestamppb.New(now.Add(-time.Hour)), Until: timestamppb.New(now.Add(time.Duration(r.IntN(7200)-3600) * time.Second))}
			}
			d := decide(v, p, now, false)
			if !d.emit.IsZero() && r.IntN(2) == 0 {
				d = decide(v, p, now, true)
				require.True(t, d.emit.IsZero(), "nothing is emitted beside another job")
			}
			if d.empty() {
				require.Equal(t, v.tick, d.tick)
				continue
			}
			if !d.emit.IsZero() {
				require.False(t, emitted[d.emit], "%s was emitted twice", d.emit)
				emitted[d.emit] = true
			}
			for _, m := range d.missed {
				missed += m.count
				require.False(t, m.from.After(m.to))
			}
			require.False(t, d.tick.Before(v.tick), "the newest decided tick never goes back")
			v.pending, v.tick, v.next = d.pending, d.tick, schedule.Next(d.tick)
			require.LessOrEqual(t, len(v.pending), max(p.most, 1))
		}
		ticks := int64(v.tick.Sub(start) / (10 * time.Minute))
		require.Equal(t, ticks, int64(len(emitted)+len(v.pending))+missed, "%+v", p)
		total += int(ticks)
	}
	t.Logf("%d ticks", total)
}

func TestATimetableThatIsReplacedIsAccountedFor(t *testing.T) {
	hourly, err := config.ParseSchedule("0 * * * *", "")
	require.NoError(t, err)
	v := view{
		schedule: hourly, next: clock(t, "03:00:00"), tick: clock(t, "02:00:00"), pending: clocks(t, []string{"01:00:00"}),
		pause: pause(t, "04:30:00", "05:30:00"),
	}
	p := policy{catchUp: config.CatchUpLatest, most: 1, blackout: never}
	assert.Equal(t, map[string]string{"down": "4 [01:00:00 06:00:00]", "paused": "1 [05:00:00 05:00:00]"}, showMissed(replaced(v, p, clock(t, "06:30:00"))))
}

func TestWhatTheBucketKnowsIsCaughtUp(t *testing.T) {
	hourly, err := config.ParseSchedule("0 * * * *", "")
	require.NoError(t, err)
	for name, c := range map[string]struct {
		p       policy
		tick    string
		waiting []string
		pending []string
		missed  map[string]string
	}{
		"latest": {
			p: policy{catchUp: config.CatchUpLatest, most: 10}, tick: "06:30:00",
			pending: []string{"06:00:00"}, missed: map[string]string{"down": "2 [04:00:00 05:00:00]"},
		},
		"latest, when a newer one was emitted already": {
			p: policy{catchUp: config.CatchUpLatest, most: 10}, tick: "07:00:00",
			missed: map[string]string{"down": "3 [04:00:00 06:00:00]"},
		},
		"all": {
			p: policy{catchUp: config.CatchUpAll, most: 2}, tick: "07:00:00",
			pending: []string{"05:00:00", "06:00:00"}, missed: map[string]string{"down": "1 [04:00:00 04:00:00]"},
		},
		"all, before what waits": {
			p: policy{catchUp: config.CatchUpAll, most: 2}, tick: "07:00:00", waiting: []string{"07:00:00"},
			pending: []string{"06:00:00", "07:00:00"}, missed: map[string]string{"down": "2 [04:00:00 05:00:00]"},
		},
		"none": {p: policy{catchUp: config.CatchUpNone, most: 10}, tick: "06:30:00", missed: map[string]string{"down": "3 [04:00:00 06:00:00]"}},
	} {
		t.Run(name, func(t *testing.T) {
			c.p.blackout = never
			v := view{schedule: hourly, tick: clock(t, c.tick), pending: clocks(t, c.waiting)}
			pending, missed := caughtUp(v, c.p, clock(t, "03:00:00"), clock(t, "06:30:00"), clock(t, "07:10:00"))
			assert.Equal(t, c.pending, show(pending))
			assert.Equal(t, c.missed, showMissed(missed))
		})
	}
}

// A schedule of every second, a month behind: more than one decision walks over at once, none is lost.
func TestALongDowntimeIsDecidedInParts(t *testing.T) {
	schedule, err := config.ParseSchedule("@every 1s", "")
	require.NoError(t, err)
	start := clock(t, "00:00:00")
	now := start.Add(30 * 24 * time.Hour)
	v := view{schedule: schedule, next: schedule.Next(start), tick: start}
	p := policy{catchUp: config.CatchUpLatest, most: 1, blackout: never}
	var missed, emitted int64
	for {
		d := decide(v, p, now, false)
		for _, m := range d.missed {
			missed += m.count
		}
		v.tick, v.next = d.tick, schedule.Next(d.tick)
		if !d.emit.IsZero() {
			emitted++
			assert.Equal(t, now, d.emit)
		}
		if v.next.After(now) {
			break
		}
	}
	assert.Equal(t, int64(1), emitted)
	assert.Equal(t, int64(30*24*3600-1), missed)
}
