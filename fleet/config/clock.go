package config

import (
	"sync"
	"time"

	"github.com/robfig/cron/v3"
)

// clock is what all targets of one time zone share: the zone's transitions, which take some KiB, and the parsed lines. After Load it
// is only read.
type clock struct {
	zone  string
	loc   *time.Location
	err   error
	lines map[string]timetable
}

// timetable is a parsed line, or why it cannot be parsed.
type timetable struct {
	line     string
	schedule cron.Schedule
	err      error
}

// clocks are those of one configuration.
type clocks struct {
	mu     sync.Mutex
	byZone map[string]*clock
}

func newClocks() *clocks { return &clocks{byZone: map[string]*clock{}} }

// of is the clock of a zone, with an error in it when there is no such zone.
func (c *clocks) of(zone string) *clock {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.locked(zone)
}

func (c *clocks) locked(zone string) *clock {
	k, ok := c.byZone[zone]
	if !ok {
		k = &clock{zone: zone, lines: map[string]timetable{}}
		k.loc, k.err = time.LoadLocation(zone)
		c.byZone[zone] = k
	}
	return k
}

// parse is ParseSchedule, once for each line of a zone.
func (c *clocks) parse(line, zone string) (cron.Schedule, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	k := c.locked(zone)
	parsed, ok := k.lines[line]
	if !ok {
		parsed.line = line
		parsed.schedule, parsed.err = ParseSchedule(line, zone)
		k.lines[line] = parsed
	}
	return parsed.schedule, parsed.err
}

func (c *clocks) lookup(k *clock, line string) (timetable, bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	parsed, ok := k.lines[line]
	return parsed, ok
}

// share gives a checked target the clocks of its zones, so that it neither parses nor loads anything again.
func (c *clocks) share(t *Target) {
	t.clock = c.of(t.TimeZone)
	t.TimeZone = t.clock.zone // one string for all
	if parsed, ok := c.lookup(t.clock, t.Schedule); ok {
		t.Schedule = parsed.line
	}
	for i := range t.Blackout {
		if l := t.Blackout[i].Location; l != nil && l.Location != nil {
			l.Location = c.of(l.String()).loc
		}
	}
}
