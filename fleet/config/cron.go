package config

import (
	"errors"
	"fmt"
	"strings"
	"time"
	// Static binaries run in images without a zone database.
	_ "time/tzdata"

	"github.com/robfig/cron/v3"
)

// ParseSchedule parses a cron line of five fields or a descriptor (@every 1h, @daily) in a time zone.
//
// The library's own zone prefix is refused, because time_zone is a key of its own and because the parser panics on
// "TZ=UTC" without a schedule. @every is aligned: it fires at multiples of its duration (in whole seconds, one at least) since the
// Unix epoch, whatever the zone. A line that can never fire, such as "0 0 30 2 *", is an error.
func ParseSchedule(line, zone string) (cron.Schedule, error) {
	loc, err := time.LoadLocation(zone)
	if err != nil {
		return nil, fmt.Errorf("time zone %q: %w", zone, err)
	}
	line = strings.TrimSpace(line)
	if strings.HasPrefix(line, "TZ=") || strings.HasPrefix(line, "CRON_TZ=") {
		return nil, errors.New("a zone inside the schedule is not supported; set time_zone beside it")
	}
	schedule, err := cron.ParseStandard(line)
	if err != nil {
		return nil, err
	}
	switch parsed := schedule.(type) {
	case *cron.SpecSchedule:
		schedule = inZone(*parsed, loc)
	case cron.ConstantDelaySchedule:
		schedule = aligned{int64(parsed.Delay / time.Second)}
	}
	if schedule.Next(time.Now()).IsZero() {
		return nil, errors.New("this never fires: no such date exists")
	}
	return schedule, nil
}

// everyHour is the bit that the parser sets for a "*" field.
const everyHour = 1 << 63

// inZone makes a schedule follow a zone's clock as operators expect of cron: a time in a gap runs right after it, and one in
// an overlap runs once. The library alone skips the first and doubles the second; where midnight is in the gap it skips
// the whole day. A line whose hour is "*" is about intervals and not about times of the day: it runs through both.
func inZone(spec cron.SpecSchedule, loc *time.Location) cron.Schedule {
	if spec.Hour&everyHour != 0 {
		spec.Location = loc
		return &spec
	}
	spec.Location = time.UTC
	return &wallClock{spec: &spec, loc: loc}
}

// wallClock looks for the next time on a clock without gaps and overlaps, and then for its moment in the zone.
type wallClock struct {
	spec *cron.SpecSchedule
	loc  *time.Location
}

// Next implements cron.Schedule.
func (s *wallClock) Next(t time.Time) time.Time {
	for wall := asUTC(t.In(s.loc)); ; {
		wall = s.spec.Next(wall)
		if wall.IsZero() {
			return wall
		}
		// In the second pass of an overlap the clock shows what has run already.
		if at := moment(wall, s.loc); at.After(t) {
			return at
		}
	}
}

// asUTC is what a zone's clock shows, as if it were UTC.
func asUTC(t time.Time) time.Time {
	return time.Date(t.Year(), t.Month(), t.Day(), t.Hour(), t.Minute(), t.Second(), 0, time.UTC)
}

// moment is when a zone's clock first shows a time, or the end of the gap that the time is in.
func moment(wall time.Time, loc *time.Location) time.Time {
	t := time.Date(wall.Year(), wall.Month(), wall.Day(), wall.Hour(), wall.Minute(), wall.Second(), 0, loc)
	start, end := t.ZoneBounds()
	switch shown := asUTC(t); {
	case shown.After(wall): // in a gap, and counted from before it
		return start
	case shown.Before(wall): // in a gap, and counted from behind it
		return end
	case start.IsZero():
		return t
	}
	// In an overlap the zone before the transition showed the same time earlier.
	_, before := start.Add(-time.Second).Zone()
	if first := wall.Add(-time.Duration(before) * time.Second).In(loc); first.Before(start) && asUTC(first).Equal(wall) {
		return first
	}
	return t
}
