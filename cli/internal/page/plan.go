package page

import (
	"time"

	"github.com/lifeboat-fleet/lifeboat/fleet/config"
)

// plan is what the configuration says of a target, prepared once for as long as that configuration is in force.
type plan struct {
	target    *config.Target
	schedules []plannedSchedule
}

// plannedSchedule remembers ticks that were looked for: finding one takes longer than everything else that is done for a schedule.
type plannedSchedule struct {
	config.Schedule
	// key is the schedule's in fleet.schedules.
	key string
	// next is the coming tick; searched says that it was looked for, at what moment.
	next, searched time.Time
	// due is the tick behind the decision with the sequence dueFor.
	due    time.Time
	dueFor uint64
	// gap is the longest time between ticks after the moment gapFrom.
	gap     time.Duration
	gapFrom time.Time
}

// load follows the configuration.
func (f *fleet) load(cfg *config.Config) {
	if f.planned == cfg {
		return
	}
	f.planned, f.plans = cfg, make([]plan, len(cfg.Targets))
	for i := range cfg.Targets {
		t := &cfg.Targets[i]
		f.plans[i].target = t
		for _, s := range t.Schedules() {
			f.plans[i].schedules = append(f.plans[i].schedules, plannedSchedule{Schedule: s, key: t.Name + "." + s.Name})
		}
	}
}

// coming is the next tick that is run; zero when there is none within the horizon.
func (s *plannedSchedule) coming(t *config.Target, now time.Time) time.Time {
	if s.next.After(now) || (s.next.IsZero() && now.Sub(s.searched) < time.Hour) {
		return s.next
	}
	s.next, s.searched = time.Time{}, now
	looked := 0
	for tick := range t.Upcoming(s.Schedule, now, now.Add(horizon)) {
		if looked++; !tick.Blackout {
			s.next = tick.At
			break
		}
		if looked == blackoutLimit {
			break
		}
	}
	return s.next
}

// longestGap is the longest time between ticks after a moment; 0 when there are no two.
func (s *plannedSchedule) longestGap(t *config.Target, from time.Time) time.Duration {
	if !s.gapFrom.Equal(from) {
		s.gap, s.gapFrom = t.LongestGap(s.Schedule, from), from
	}
	return s.gap
}

// overdue says whether a tick should have been decided by now. A schedule that the scheduler has by another line is not judged.
func (s *plannedSchedule) overdue(t *config.Target, d *decision, now time.Time) bool {
	if d.tick.IsZero() || d.line != s.Line {
		return false
	}
	if s.dueFor != d.seq {
		s.due, s.dueFor = d.tick.Add(horizon), d.seq
		for tick := range t.Upcoming(s.Schedule, d.tick, s.due) {
			s.due = tick.At
			break
		}
	}
	return now.Sub(s.due) > overdueAfter
}
