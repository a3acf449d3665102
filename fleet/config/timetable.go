package config

import (
	"fmt"
	"hash/fnv"
	"iter"
	"strings"
	"time"

	"github.com/robfig/cron/v3"
)

// Tick is one moment at which a schedule fires.
type Tick struct {
	// At is when it fires: Nominal and the splay's part of this schedule.
	At time.Time
	// Nominal is what the cron line gives in the target's time zone.
	Nominal time.Time
	// Note says what daylight saving did to it, in words; empty on an ordinary day, and for lines about intervals.
	Note string
	// Blackout says that the tick lies in one of the target's blackouts and is not run.
	Blackout bool
}

// Timetable is when a schedule of the target fires: its line in the target's time zone, moved by the schedule's part of the
// target's splay. Only Name, TimeZone and Splay of the target and Name and Line of the schedule matter.
//
// The part is FNV-1a (64 bits) of "<target>/<schedule>" modulo the splay in whole seconds, so that every replica, and every
// start, comes to the same.
func (t Target) Timetable(s Schedule) (cron.Schedule, error) {
	nominal, err := t.nominal(s)
	if err != nil {
		return nil, err
	}
	if offset := t.offset(s); offset > 0 {
		return shifted{nominal, offset}, nil
	}
	return nominal, nil
}

// BlackedOut says whether a moment lies in one of the target's blackouts, which are in the target's time zone unless they name a
// location.
func (t Target) BlackedOut(at time.Time) bool {
	if len(t.Blackout) == 0 {
		return false
	}
	loc, err := t.location()
	if err != nil {
		return false // Load refuses such a zone
	}
	at = at.In(loc)
	for i := range t.Blackout {
		if t.Blackout[i].ContainsTime(at) {
			return true
		}
	}
	return false
}

// Upcoming are the ticks of a schedule after from, up to and including to, in order and in the target's time zone. A line that
// cannot be parsed has none; Load refuses it.
func (t Target) Upcoming(s Schedule, from, to time.Time) iter.Seq[Tick] {
	return func(yield func(Tick) bool) {
		nominal, err := t.nominal(s)
		if err != nil {
			return
		}
		loc, err := t.location()
		if err != nil {
			return
		}
		offset := t.offset(s)
		for at := nominal.Next(from.Add(-offset)); !at.IsZero() && !at.Add(offset).After(to); at = nominal.Next(at) {
			tick := Tick{At: at.Add(offset).In(loc), Nominal: at.In(loc)}
			tick.Blackout = t.BlackedOut(tick.At)
			if wall, ok := nominal.(*wallClock); ok {
				tick.Note = wall.note(at)
			}
			if !yield(tick) {
				return
			}
		}
	}
}

// Over how much LongestGap looks before and after: a year of a monthly line, and a whole week also of one whose ticks are dense, unless
// they are denser than one in four minutes.
const (
	gapTicks = 12
	gapSpan  = 8 * 24 * time.Hour
	gapLimit = 3000
)

// LongestGap is the longest time between two ticks around a moment that lie in no blackout, of the last week and of those to come soon:
// "hourly on weekdays" has one of two days, and a gap that a blackout makes counts while it is under way. 0 when there are no two.
func (t Target) LongestGap(s Schedule, around time.Time) time.Duration {
	table, err := t.Timetable(s)
	if err != nil {
		return 0 // Load refuses such a line
	}
	return max(t.gapAfter(table, around.Add(-gapSpan)), t.gapAfter(table, around))
}

func (t Target) gapAfter(table cron.Schedule, from time.Time) (longest time.Duration) {
	last, seen := time.Time{}, 0
	at := from
	for range gapLimit {
		if at = table.Next(at); at.IsZero() {
			break
		}
		if t.BlackedOut(at) {
			continue
		}
		if !last.IsZero() {
			longest = max(longest, at.Sub(last))
		}
		last = at
		if seen++; seen > gapTicks && at.Sub(from) > gapSpan {
			break
		}
	}
	return longest
}

// nominal is the timetable without splay.
func (t Target) nominal(s Schedule) (cron.Schedule, error) {
	if t.clock != nil && t.clock.zone == t.TimeZone {
		if parsed, ok := t.clock.lines[s.Line]; ok {
			return parsed.schedule, parsed.err
		}
	}
	return ParseSchedule(s.Line, t.TimeZone)
}

func (t Target) location() (*time.Location, error) {
	if t.clock != nil && t.clock.zone == t.TimeZone {
		return t.clock.loc, t.clock.err
	}
	return time.LoadLocation(t.TimeZone)
}

// offset is the schedule's part of the splay, in whole seconds.
func (t Target) offset(s Schedule) time.Duration {
	seconds := uint64(max(t.Splay, 0) / time.Second)
	if seconds == 0 {
		return 0
	}
	h := fnv.New64a()
	_, _ = h.Write([]byte(t.Name + "/" + s.Name))         // a hash never fails
	return time.Duration(h.Sum64()%seconds) * time.Second //nolint:gosec // less than the splay
}

// shifted is a schedule each of whose ticks comes later by the same offset.
type shifted struct {
	nominal cron.Schedule
	offset  time.Duration
}

// Next implements cron.Schedule.
func (s shifted) Next(t time.Time) time.Time {
	next := s.nominal.Next(t.Add(-s.offset))
	if next.IsZero() {
		return next
	}
	return next.Add(s.offset)
}

// aligned fires at the multiples of a whole number of seconds since the Unix epoch. The library's own schedule counts from when it
// is asked, so that each replica and each start would have other ticks.
type aligned struct{ seconds int64 }

// Next implements cron.Schedule.
func (s aligned) Next(t time.Time) time.Time {
	now := t.Unix()
	since := now % s.seconds
	if since < 0 {
		since += s.seconds
	}
	return time.Unix(now-since+s.seconds, 0).In(t.Location())
}

// notedTimes is how many times of one gap are named.
const notedTimes = 3

// note is what daylight saving did to a tick of the schedule.
func (s *wallClock) note(at time.Time) string {
	at = at.In(s.loc)
	start, end := at.ZoneBounds()
	shown := asUTC(at)
	if at.Equal(start) {
		_, before := start.Add(-time.Second).Zone()
		if gap := asUTC(start.In(time.FixedZone("", before))); gap.Before(shown) {
			return s.lost(gap, shown)
		}
	}
	if !end.IsZero() {
		_, after := end.Zone()
		again := shown.Add(-time.Duration(after) * time.Second).In(s.loc)
		if !again.Before(end) && asUTC(again).Equal(shown) {
			return shown.Format("15:04") + " comes twice, runs the first time"
		}
	}
	return ""
}

// lost says which times of the line are in a gap of the zone's clock, from its first time to the one right after it.
func (s *wallClock) lost(first, behind time.Time) string {
	var times []string
	for wall := s.spec.Next(first.Add(-time.Second)); !wall.IsZero() && wall.Before(behind); wall = s.spec.Next(wall) {
		times = append(times, wall.Format("15:04"))
	}
	switch n := len(times); {
	case n == 0:
		return "" // only what stands right behind the gap
	case n == 1:
		return times[0] + " does not exist that day, runs right after the gap"
	case n > notedTimes:
		times = append(times[:notedTimes], fmt.Sprintf("%d more", n-notedTimes))
	}
	last := len(times) - 1
	return strings.Join(times[:last], ", ") + " and " + times[last] + " do not exist that day, run once right after the gap"
}
