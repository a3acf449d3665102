package emit

import (
	"cmp"
	"slices"
	"time"

	"github.com/robfig/cron/v3"
	"google.golang.org/protobuf/types/known/timestamppb"

	"github.com/lifeboat-fleet/lifeboat/fleet/config"
	lifeboatv1 "github.com/lifeboat-fleet/lifeboat/proto/lifeboat/v1"
)

// Reasons of a missed tick.
const (
	reasonDown     = "down"
	reasonPaused   = "paused"
	reasonBlackout = "blackout"
	reasonOverlap  = "overlap"
	reasonRemoved  = "removed"
)

const (
	// lateAfter is how late a tick may be decided and still count as one that came in time.
	lateAfter = time.Minute
	// maxPassed bounds how many ticks one decision walks over: a schedule of every second, a week behind.
	maxPassed = 1_000_000
)

// policy is what the configuration says about ticks that are not simply emitted.
type policy struct {
	catchUp string
	window  time.Duration
	most    int
	queue   bool
	paused  bool
	// blackout says whether a moment lies in one.
	blackout func(time.Time) bool
}

func policyOf(t *config.Target) policy {
	p := policy{
		catchUp: t.CatchUp, window: t.CatchUpWindow, most: max(t.CatchUpMax, 1), queue: t.Overlap == config.OverlapQueue,
		paused: t.Paused, blackout: func(time.Time) bool { return false },
	}
	if len(t.Blackout) > 0 {
		p.blackout = func(at time.Time) bool { return t.BlackedOut(at) }
	}
	return p
}

// inForce says whether a pause covers a moment.
func inForce(p *lifeboatv1.Pause, at time.Time) bool {
	if p == nil || (p.GetSince() != nil && at.Before(p.GetSince().AsTime())) {
		return false
	}
	return p.GetUntil() == nil || at.Before(p.GetUntil().AsTime())
}

// view is what a decision is made from: a schedule, and what its state says.
type view struct {
	schedule cron.Schedule
	// next is the earliest tick that was not decided, tick the newest that was.
	next, tick time.Time
	pending    []time.Time
	pause      *lifeboatv1.Pause
}

// verdict is a decision. It is one write of the state, with a job in the same batch when emit is set.
type verdict struct {
	tick    time.Time
	emit    time.Time
	pending []time.Time
	missed  tally
	outcome lifeboatv1.ScheduleState_Outcome
}

// empty says that there is nothing to decide.
func (v verdict) empty() bool { return v.outcome == lifeboatv1.ScheduleState_OUTCOME_UNSPECIFIED }

// walked are the ticks that passed, sorted by what becomes of them.
type walked struct {
	// tick is the newest; zero when none passed.
	tick time.Time
	// run are those that the policy wants run, oldest first.
	run    []time.Time
	missed tally
	// more says that it did not come to all of them.
	more bool
}

// walk goes over the ticks from next up to and including until, at the moment now.
func walk(schedule cron.Schedule, next, until, now time.Time, p policy, pause *lifeboatv1.Pause) walked {
	var w walked
	keep := 1
	if p.catchUp == config.CatchUpAll {
		keep = p.most
	}
	for n := 0; !next.IsZero() && !next.After(until); next = schedule.Next(next) {
		if n++; n > maxPassed {
			w.more = true
			break
		}
		w.tick = next
		if reason := stopped(next, p, pause); reason != "" {
			w.missed.add(reason, next)
			continue
		}
		w.run = append(w.run, next)
		if len(w.run) > keep {
			w.missed.add(reasonDown, w.run[0])
			w.run = slices.Delete(w.run, 0, 1)
		}
	}
	w.run = slices.DeleteFunc(w.run, func(tick time.Time) bool {
		late := now.Sub(tick)
		switch {
		case w.more || (p.window > 0 && late > p.window) || (p.catchUp == config.CatchUpNone && late > lateAfter):
			w.missed.add(reasonDown, tick)
		case inForce(pause, now): // it was due before the pause, and would run in it
			w.missed.add(reasonPaused, tick)
		default:
			return false
		}
		return true
	})
	return w
}

// stopped is the reason why a tick is not run at its moment; empty when there is none.
func stopped(tick time.Time, p policy, pause *lifeboatv1.Pause) string {
	switch {
	case p.paused || inForce(pause, tick):
		return reasonPaused
	case p.blackout(tick):
		return reasonBlackout
	}
	return ""
}

// decide says what becomes of the ticks that are due, and of those that wait. busy says that a job waits or runs already.
func decide(v view, p policy, now time.Time, busy bool) verdict {
	w := walk(v.schedule, v.next, now, now, p, v.pause)
	d := verdict{tick: v.tick, missed: w.missed}
	if !w.tick.IsZero() {
		d.tick = w.tick
	}
	queue := slices.DeleteFunc(slices.Clone(v.pending), func(tick time.Time) bool {
		// A tick whose moment was in the pause was queued by a clock that ran ahead.
		paused := p.paused || inForce(v.pause, now) || inForce(v.pause, tick)
		if paused {
			d.missed.add(reasonPaused, tick)
		}
		return paused
	})
	held := p.blackout(now)
	queue = admit(queue, w.run, &d.missed, p, now, busy, held)
	d.pending = queue
	switch {
	case len(queue) > 0 && !busy && !held:
		d.emit, d.pending = queue[0], queue[1:]
		d.outcome = lifeboatv1.ScheduleState_OUTCOME_EMITTED
	case len(queue) > len(v.pending):
		d.outcome = lifeboatv1.ScheduleState_OUTCOME_QUEUED
	case len(d.missed) > 0:
		d.outcome = lifeboatv1.ScheduleState_OUTCOME_MISSED
	}
	return d
}

// admit puts ticks that are to be run behind those that wait. What does not fit is missed.
func admit(queue, run []time.Time, missed *tally, p policy, now time.Time, busy, held bool) []time.Time {
	room, reason := 0, reasonOverlap
	if p.queue {
		room = 1
	}
	switch {
	case held: // one of them runs behind the blackout
		room, reason = 1, reasonBlackout
	case busy:
	case len(queue) == 0:
		room = len(run) // what the policy wants run is run, one after the other
	default:
		room++ // the first one goes out now
	}
	for i, tick := range run {
		caughtUp := p.catchUp == config.CatchUpAll && (i < len(run)-1 || now.Sub(tick) > lateAfter)
		switch {
		case len(queue) < room, caughtUp && len(queue) < p.most:
			queue = append(queue, tick)
		case caughtUp:
			missed.add(reasonDown, tick)
		default:
			missed.add(reason, tick)
		}
	}
	return queue
}

// replaced accounts for the ticks of a schedule that another one takes the place of at the moment now: none of them is run.
func replaced(v view, p policy, now time.Time) tally {
	var missed tally
	for _, tick := range v.pending {
		missed.add(reasonDown, tick)
	}
	for next := v.next; !next.IsZero() && !next.After(now); next = v.schedule.Next(next) {
		missed.add(cmp.Or(stopped(next, p, v.pause), reasonDown), next)
	}
	return missed
}

// caughtUp decides the ticks between the newest one that the bucket knows and the anchor that was written when the state was lost.
// They come before what waits already.
func caughtUp(v view, p policy, known, anchored, now time.Time) (pending []time.Time, missed tally) {
	var w walked
	for next := v.schedule.Next(known); ; next = v.schedule.Next(w.tick) {
		w = walk(v.schedule, next, anchored, now, p, v.pause)
		missed.merge(w.missed...)
		if !w.more {
			break
		}
	}
	most := p.most
	if p.catchUp != config.CatchUpAll {
		most = 1
		if v.tick.After(anchored) { // a newer one was decided already
			most = 0
		}
	}
	for len(w.run) > 0 && len(w.run)+len(v.pending) > most {
		missed.add(reasonDown, w.run[0])
		w.run = w.run[1:]
	}
	return slices.Concat(w.run, v.pending), missed
}

// missedTicks are ticks that are not run, for one reason.
type missedTicks struct {
	reason   string
	count    int64
	from, to time.Time
	job      string
}

// tally counts ticks by the reason why they are not run.
type tally []missedTicks

func (t *tally) add(reason string, tick time.Time) {
	t.merge(missedTicks{reason: reason, count: 1, from: tick, to: tick})
}

func (t *tally) merge(more ...missedTicks) {
	for _, o := range more {
		i := slices.IndexFunc(*t, func(m missedTicks) bool { return m.reason == o.reason })
		if i < 0 {
			*t = append(*t, o)
			continue
		}
		m := &(*t)[i]
		m.count += o.count
		if o.from.Before(m.from) {
			m.from = o.from
		}
		if o.to.After(m.to) {
			m.to = o.to
		}
	}
}

// of is what is counted for a reason; nil when nothing is.
func (t tally) of(reason string) *missedTicks {
	for i := range t {
		if t[i].reason == reason {
			return &t[i]
		}
	}
	return nil
}

func (t tally) proto() []*lifeboatv1.MissedTicks {
	all := make([]*lifeboatv1.MissedTicks, len(t))
	for i, m := range t {
		all[i] = &lifeboatv1.MissedTicks{
			Reason: m.reason, Count: m.count, From: timestamppb.New(m.from), To: timestamppb.New(m.to), JobId: m.job,
		}
	}
	return all
}
