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
// "TZ=UTC" without a schedule. A line that can never fire, such as "0 0 30 2 *", is an error.
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
	if spec, ok := schedule.(*cron.SpecSchedule); ok {
		spec.Location = loc
	}
	if schedule.Next(time.Now()).IsZero() {
		return nil, errors.New("this never fires: no such date exists")
	}
	return schedule, nil
}
