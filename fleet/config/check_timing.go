package config

import (
	"time"
)

// Limits of what a target may ask for, and of what is looked at.
const (
	maxCatchUp          = 1000
	maxFleetConcurrency = 1000
	maxSplay            = 24 * time.Hour
	// blackoutHorizon is how far ahead a tick outside all blackouts is looked for.
	blackoutHorizon = 2 * 366 * 24 * time.Hour
)

// checkTargets checks each target and that their names are different. Their problems come in the order of the file.
func (cfg *Config) checkTargets(clocks *clocks) []problem {
	first := make(map[string]int, len(cfg.Targets))
	for i := range cfg.Targets {
		if _, dup := first[cfg.Targets[i].Name]; !dup {
			first[cfg.Targets[i].Name] = i
		}
	}
	cfg.index = first
	return inParts(len(cfg.Targets), checkedItems, func(from, to int) []problem {
		c := &checker{clocks: clocks}
		for i := from; i < to; i++ {
			t := &cfg.Targets[i]
			key := indexed("targets", i)
			if at := first[t.Name]; at != i {
				c.add(key+".name", "%q is already the name of targets[%d]", t.Name, at)
			}
			c.target(key, *t)
			if own := cfg.Encryption.IdentityFile; own != "" && t.Drill.Escrow.IdentityFile == own {
				c.add(key+".drill.escrow.identity_file", "is encryption.identity_file itself: a drill with it proves nothing about another key")
			}
		}
		return c.found
	})
}

func (c *checker) workers(w Workers) {
	for _, work := range Works() {
		if n := w.FleetConcurrency.Of(work); n < 0 || n > maxFleetConcurrency {
			c.add("workers.fleet_concurrency."+string(work), "is %d; it is 1 to %d, or 0 for no limit", n, maxFleetConcurrency)
		}
	}
}

// timing checks when a target's jobs run, and where.
func (c *checker) timing(key string, t Target) {
	c.catchUp(key, t)
	c.oneOf(key+".overlap", t.Overlap, OverlapSkip, OverlapQueue)
	if t.Zone != "" && !ValidName(t.Zone) {
		c.add(key+".zone", "%q: a zone is lower-case letters, digits and dashes, as --zone of its workers", t.Zone)
	}
	switch {
	case t.Splay < 0:
		c.add(key+".splay", "must not be negative")
	case t.Splay > maxSplay:
		c.add(key+".splay", "is %s; more than a day would move ticks to other days", t.Splay)
	case t.Splay%time.Second != 0:
		c.add(key+".splay", "is %s; ticks are moved by whole seconds", t.Splay)
	}
	if t.TimeZone == "Local" {
		c.add(key+".time_zone", "use an IANA name; Local differs from machine to machine")
	}
	shared := c.clocks.of(t.TimeZone)
	if shared.err != nil {
		c.add(key+".time_zone", "%v", shared.err)
		return // every schedule would say it again
	}
	var lines map[string]timetable
	if len(t.Blackout) > 0 {
		lines = map[string]timetable{}
	}
	for _, s := range t.Schedules() {
		schedule, err := c.clocks.parse(s.Line, t.TimeZone)
		if err != nil {
			c.add(key+"."+s.Key, "%q: %v", s.Line, err)
		} else if lines != nil {
			lines[s.Line] = timetable{schedule: schedule}
		}
	}
	if escrow := t.Drill.Escrow.Schedule; escrow != "" && escrow == t.Drill.Schedule {
		c.add(key+".drill.escrow.schedule", "is that of drill.schedule: two drills of a target never run at once, so one of them would be missed each time")
	}
	if len(t.Blackout) > 0 {
		t.clock = &clock{zone: shared.zone, loc: shared.loc, lines: lines} // the shared one may be written by others now
		c.blackouts(key+".blackout", t)
	}
}

// catchUp checks what becomes of ticks that passed while no scheduler ran.
func (c *checker) catchUp(key string, t Target) {
	c.oneOf(key+".catch_up", t.CatchUp, CatchUpLatest, CatchUpAll, CatchUpNone)
	switch {
	case t.CatchUpWindow < 0:
		c.add(key+".catch_up_window", "must not be negative")
	case t.CatchUpWindow > 0 && t.CatchUp == CatchUpNone:
		c.add(key+".catch_up_window", "goes with catch_up: latest or all; with none no tick is caught up with")
	}
	switch {
	case t.CatchUpMax < 0 || t.CatchUpMax > maxCatchUp:
		c.add(key+".catch_up_max", "is %d; it is 1 to %d", t.CatchUpMax, maxCatchUp)
	case t.CatchUpMax != 0 && t.CatchUp != CatchUpAll:
		c.add(key+".catch_up_max", "goes with catch_up: all; otherwise at most one tick is caught up with")
	}
}

// blackouts checks that each schedule has ticks outside of them. The target has a clock.
func (c *checker) blackouts(key string, t Target) {
	for i := range t.Blackout {
		b := &t.Blackout[i]
		at := indexed(key, i)
		if l := b.Location; l != nil && l.Location != nil && l.String() == "Local" {
			c.add(at+".location", "use an IANA name; Local differs from machine to machine")
		}
		if b.Times == nil && b.Weekdays == nil && b.DaysOfMonth == nil && b.Months == nil && b.Years == nil {
			c.add(at, "is all of the time: say which times, weekdays, days_of_month, months or years, or use paused: true")
			return
		}
	}
	now := time.Now()
	for _, s := range t.Schedules() {
		if _, parsed := t.clock.lines[s.Line]; parsed && !t.runs(s, now) {
			c.add(key, "holds every tick of %s (%s) in the next two years: it would never run", s.Key, s.Line)
		}
	}
}

// runs says whether a schedule has a tick outside the blackouts within blackoutHorizon, or none at all so soon. It goes from one
// change of the blackouts to the next, because a line may have a million ticks until then.
func (t Target) runs(s Schedule, now time.Time) bool {
	timetable, err := t.Timetable(s)
	if err != nil {
		return true
	}
	looked := false
	for at := timetable.Next(now); !at.IsZero() && at.Sub(now) < blackoutHorizon; {
		if !t.BlackedOut(at) {
			return true
		}
		looked = true
		at = timetable.Next(t.nextChange(at).Add(-time.Second))
	}
	return !looked
}

// nextChange is a moment after at until which no blackout begins or ends: the next edge of one of their times, midnight, or a
// transition of a zone.
func (t Target) nextChange(at time.Time) time.Time {
	next := at.Add(24 * time.Hour)
	earlier := func(edge time.Time) {
		if edge.After(at) && edge.Before(next) {
			next = edge
		}
	}
	for i := range t.Blackout {
		loc := t.clock.loc
		if l := t.Blackout[i].Location; l != nil && l.Location != nil {
			loc = l.Location
		}
		local := at.In(loc)
		minute := func(m int) {
			earlier(time.Date(local.Year(), local.Month(), local.Day(), 0, m, 0, 0, loc))
		}
		minute(24 * 60)
		for _, r := range t.Blackout[i].Times {
			minute(r.StartMinute)
			minute(r.EndMinute)
		}
		if _, end := local.ZoneBounds(); !end.IsZero() {
			earlier(end)
		}
	}
	return next
}
