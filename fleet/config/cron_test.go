package config_test

import (
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/lifeboat-fleet/lifeboat/fleet/config"
)

func TestTimesInGapsAndOverlaps(t *testing.T) {
	for name, c := range map[string]struct {
		line, zone, from string
		want             []string
	}{
		"midnight in a gap, Beirut": {
			"0 0 * * *", "Asia/Beirut", "2026-03-27T12:00:00Z",
			[]string{"2026-03-28T00:00:00+02:00", "2026-03-29T01:00:00+03:00", "2026-03-30T00:00:00+03:00"},
		},
		"midnight in a gap, Sao Paulo": {
			"0 0 * * *", "America/Sao_Paulo", "2018-11-03T12:00:00Z",
			[]string{"2018-11-04T01:00:00-02:00", "2018-11-05T00:00:00-02:00"},
		},
		"in a gap, New York": {
			"30 2 * * *", "America/New_York", "2026-03-07T12:00:00Z",
			[]string{"2026-03-08T03:00:00-04:00", "2026-03-09T02:30:00-04:00"},
		},
		"several times in one gap run once": {
			"0,20,40 2 * * *", "America/New_York", "2026-03-08T00:00:00Z",
			[]string{"2026-03-08T03:00:00-04:00", "2026-03-09T02:00:00-04:00", "2026-03-09T02:20:00-04:00"},
		},
		"in an overlap, New York": {
			"30 1 * * *", "America/New_York", "2026-10-31T12:00:00Z",
			[]string{"2026-11-01T01:30:00-04:00", "2026-11-02T01:30:00-05:00"},
		},
		"every quarter of an hour runs through an overlap": {
			"*/30 * * * *", "America/New_York", "2026-11-01T05:00:00Z",
			[]string{"2026-11-01T01:30:00-04:00", "2026-11-01T01:00:00-05:00", "2026-11-01T01:30:00-05:00", "2026-11-01T02:00:00-05:00"},
		},
		"a gap of half an hour, Lord Howe": {
			"15 2 * * *", "Australia/Lord_Howe", "2026-10-03T00:00:00Z",
			[]string{"2026-10-04T02:30:00+11:00", "2026-10-05T02:15:00+11:00"},
		},
		"no daylight saving": {
			"0 4 * * *", "Asia/Shanghai", "2026-11-21T00:00:00Z",
			[]string{"2026-11-22T04:00:00+08:00", "2026-11-23T04:00:00+08:00"},
		},
	} {
		t.Run(name, func(t *testing.T) {
			s, err := config.ParseSchedule(c.line, c.zone)
			require.NoError(t, err)
			loc, err := time.LoadLocation(c.zone)
			require.NoError(t, err)
			at, err := time.Parse(time.RFC3339, c.from)
			require.NoError(t, err)
			for _, want := range c.want {
				at = s.Next(at)
				assert.Equal(t, want, at.In(loc).Format(time.RFC3339))
			}
		})
	}
}

// A daily time runs once on each day of the calendar, in every zone, through every transition of thirty years.
func TestADailyTimeRunsOnceADay(t *testing.T) {
	for _, zone := range []string{
		"UTC", "Asia/Beirut", "America/Sao_Paulo", "America/New_York", "Europe/Berlin", "Asia/Shanghai", "Asia/Seoul",
		"Australia/Lord_Howe", "Africa/Casablanca", "Asia/Tehran", "America/Havana", "Asia/Gaza",
	} {
		for _, line := range []string{"0 0 * * *", "30 0 * * *", "30 1 * * *", "30 2 * * *", "59 23 * * *"} {
			s, err := config.ParseSchedule(line, zone)
			require.NoError(t, err)
			at := time.Date(2000, 1, 1, 12, 0, 0, 0, time.UTC)
			day := ""
			for at.Year() < 2030 {
				next := s.Next(at)
				require.True(t, next.After(at))
				if day != "" {
					require.NotEqual(t, day, next.Format(time.DateOnly), "%s %s twice", zone, line)
					require.LessOrEqual(t, next.Sub(at), 26*time.Hour, "%s %s lost a day after %s", zone, line, at)
				}
				day, at = next.Format(time.DateOnly), next
			}
		}
	}
}
