package config_test

import (
	"fmt"
	"hash/fnv"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/prometheus/alertmanager/timeinterval"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/lifeboat-fleet/lifeboat/fleet/config"
)

func at(t *testing.T, s string) time.Time {
	t.Helper()
	parsed, err := time.Parse(time.RFC3339, s)
	require.NoError(t, err)
	return parsed
}

// offset is the documented formula, on its own.
func offset(name string, splay time.Duration) time.Duration {
	h := fnv.New64a()
	fmt.Fprint(h, name)
	return time.Duration(h.Sum64()%uint64(splay/time.Second)) * time.Second
}

func TestSplayMovesATickByAFixedPart(t *testing.T) {
	const splay = time.Hour
	seen := map[time.Duration]bool{}
	for _, name := range []string{"etcd-a", "etcd-b", "etcd-c", "etcd-d"} {
		target := config.Target{Name: name, TimeZone: "Asia/Shanghai", Splay: splay}
		for _, schedule := range []config.Schedule{{Name: "snapshot", Line: "0 */6 * * *"}, {Name: "verify", Line: "@every 6h"}, {Name: "prune", Line: "@daily"}} {
			moved, err := target.Timetable(schedule)
			require.NoError(t, err)
			plain, err := config.ParseSchedule(schedule.Line, "Asia/Shanghai")
			require.NoError(t, err)
			part := offset(name+"/"+schedule.Name, splay)
			require.Less(t, part, splay)
			seen[part] = true
			a, b := at(t, "2026-11-21T00:00:00Z"), at(t, "2026-11-21T00:00:00Z").Add(-part)
			for range 20 {
				a, b = moved.Next(a), plain.Next(b)
				require.True(t, a.Equal(b.Add(part)), "%s %s: %s is not %s + %s", name, schedule.Name, a, b, part)
			}
		}
	}
	assert.Greater(t, len(seen), 6, "they are spread")

	still, err := config.Target{Name: "etcd-a"}.Timetable(config.Schedule{Name: "snapshot", Line: "0 * * * *"})
	require.NoError(t, err)
	assert.Equal(t, at(t, "2026-11-21T01:00:00Z"), still.Next(at(t, "2026-11-21T00:00:00Z")), "without splay nothing moves")
	_, err = config.Target{}.Timetable(config.Schedule{Line: "whenever"})
	require.Error(t, err)
}

// Midnight in a gap is not lost, and the splay is counted from right after it.
func TestSplayWhereMidnightIsInAGap(t *testing.T) {
	for zone, c := range map[string]struct{ from, nominal, next string }{
		"Asia/Beirut":       {"2026-03-28T12:00:00Z", "2026-03-29T01:00:00+03:00", "2026-03-30T00:00:00+03:00"},
		"America/Sao_Paulo": {"2018-11-03T12:00:00Z", "2018-11-04T01:00:00-02:00", "2018-11-05T00:00:00-02:00"},
	} {
		const splay = 2 * time.Hour
		target, part := config.Target{Name: "x", TimeZone: zone, Splay: splay}, offset("x/snapshot", splay)
		require.Positive(t, part)
		schedule := config.Schedule{Name: "snapshot", Line: "0 0 * * *"}
		timetable, err := target.Timetable(schedule)
		require.NoError(t, err)
		first := timetable.Next(at(t, c.from))
		assert.True(t, first.Equal(at(t, c.nominal).Add(part)), "%s: %s", zone, first)
		second := timetable.Next(first)
		assert.True(t, second.Equal(at(t, c.next).Add(part)), "%s: %s", zone, second)

		ticks := slices.Collect(target.Upcoming(schedule, at(t, c.from), at(t, c.from).Add(24*time.Hour)))
		require.Len(t, ticks, 1, zone)
		assert.True(t, ticks[0].At.Equal(first))
		assert.Equal(t, c.nominal, ticks[0].Nominal.Format(time.RFC3339), "in the target's zone")
		assert.Equal(t, "00:00 does not exist that day, runs right after the gap", ticks[0].Note)
	}
}

// Two replicas that start at other times, and one that lost its state, come to the same ticks.
func TestEveryIsAlignedToTheEpoch(t *testing.T) {
	for line, want := range map[string][]string{
		"@every 6h":    {"2026-11-21T06:00:00Z", "2026-11-21T12:00:00Z"},
		"@every 90s":   {"2026-11-21T00:01:30Z", "2026-11-21T00:03:00Z"},
		"@every 1.5s":  {"2026-11-21T00:00:01Z", "2026-11-21T00:00:02Z"},
		"@every 10ms":  {"2026-11-21T00:00:01Z"},
		"@every 7m":    {},
		"@every 1000h": {},
	} {
		s, err := config.ParseSchedule(line, "Asia/Shanghai")
		require.NoError(t, err)
		from := at(t, "2026-11-21T00:00:00Z")
		length, err := time.ParseDuration(strings.TrimPrefix(line, "@every "))
		require.NoError(t, err)
		length = max(time.Second, length.Truncate(time.Second))
		next := s.Next(from)
		assert.Zero(t, next.UnixNano()%int64(length), "%s: %s", line, next)
		assert.LessOrEqual(t, next.Sub(from), length)
		for _, w := range want {
			for _, asked := range []time.Time{from, from.Add(300 * time.Millisecond)} {
				next := s.Next(asked)
				assert.True(t, next.Equal(at(t, w)), "%s after %s: %s", line, asked, next)
			}
			from = at(t, w)
		}
	}
	s, err := config.ParseSchedule("@every 6h", "")
	require.NoError(t, err)
	assert.Equal(t, at(t, "1969-12-31T18:00:00Z"), s.Next(at(t, "1969-12-31T13:00:00Z")), "before the epoch too")
	assert.Equal(t, at(t, "1970-01-01T00:00:00Z"), s.Next(at(t, "1969-12-31T18:00:00Z")))
}

func TestNotesSayWhatDaylightSavingDid(t *testing.T) {
	for name, c := range map[string]struct {
		line, zone, from string
		want             []string
	}{
		"a gap": {
			"30 2 * * *", "America/New_York", "2026-03-07T00:00:00Z",
			[]string{"03-07 02:30 ", "03-08 03:00 02:30 does not exist that day, runs right after the gap", "03-09 02:30 "},
		},
		"several in a gap, and one behind it": {
			"0,20,40 2,3 * * *", "America/New_York", "2026-03-08T05:00:00Z",
			[]string{"03-08 03:00 02:00, 02:20 and 02:40 do not exist that day, run once right after the gap", "03-08 03:20 "},
		},
		"many in a gap": {
			"*/10 2 * * *", "America/New_York", "2026-03-08T05:00:00Z",
			[]string{"03-08 03:00 02:00, 02:10, 02:20 and 3 more do not exist that day, run once right after the gap"},
		},
		"right behind a gap":  {"0 3 * * *", "America/New_York", "2026-03-08T05:00:00Z", []string{"03-08 03:00 "}},
		"an overlap":          {"30 1 * * *", "America/New_York", "2026-10-31T12:00:00Z", []string{"11-01 01:30 01:30 comes twice, runs the first time", "11-02 01:30 "}},
		"around an overlap":   {"0 2 * * *", "America/New_York", "2026-10-31T12:00:00Z", []string{"11-01 02:00 "}},
		"intervals":           {"*/30 * * * *", "America/New_York", "2026-11-01T05:00:00Z", []string{"11-01 01:30 ", "11-01 01:00 ", "11-01 01:30 "}},
		"half an hour":        {"15 2 * * *", "Australia/Lord_Howe", "2026-10-03T00:00:00Z", []string{"10-04 02:30 02:15 does not exist that day, runs right after the gap"}},
		"no daylight saving":  {"0 4 * * *", "Asia/Shanghai", "2026-11-21T00:00:00Z", []string{"11-22 04:00 "}},
		"aligned, not a wall": {"@every 12h", "America/New_York", "2026-11-01T00:00:00Z", []string{"11-01 07:00 "}},
	} {
		t.Run(name, func(t *testing.T) {
			target := config.Target{Name: "a", TimeZone: c.zone}
			var got []string
			for tick := range target.Upcoming(config.Schedule{Name: "snapshot", Line: c.line}, at(t, c.from), at(t, c.from).AddDate(1, 0, 0)) {
				assert.False(t, tick.Blackout)
				assert.Equal(t, tick.Nominal, tick.At)
				if got = append(got, tick.Nominal.Format("01-02 15:04 ")+tick.Note); len(got) == len(c.want) {
					break
				}
			}
			assert.Equal(t, c.want, got)
		})
	}
}

func TestUpcomingIsAfterFromAndUpToTo(t *testing.T) {
	var got []string
	for tick := range (config.Target{}).Upcoming(config.Schedule{Line: "0 * * * *"}, at(t, "2026-11-21T01:00:00Z"), at(t, "2026-11-21T03:00:00Z")) {
		got = append(got, tick.At.Format(time.RFC3339))
	}
	assert.Equal(t, []string{"2026-11-21T02:00:00Z", "2026-11-21T03:00:00Z"}, got)
	assert.Empty(t, slices.Collect(config.Target{}.Upcoming(config.Schedule{Line: "whenever"}, time.Now(), time.Now().AddDate(1, 0, 0))))
}

// A gap is looked for over a week at least, whatever comes before it, and blackouts make gaps.
func TestLongestGap(t *testing.T) {
	weekends := []config.Blackout{{TimeInterval: timeinterval.TimeInterval{
		Weekdays: []timeinterval.WeekdayRange{{InclusiveRange: timeinterval.InclusiveRange{Begin: 6, End: 6}}, {InclusiveRange: timeinterval.InclusiveRange{}}},
	}}}
	const day = 24 * time.Hour
	for line, want := range map[string]time.Duration{
		"0 * * * *":        time.Hour,
		"@every 45m":       45 * time.Minute,
		"0 * * * 1-5":      2*day + time.Hour,
		"*/5 9-17 * * 1-5": 2*day + 15*time.Hour + 5*time.Minute,
		"0 3 * * 1-5":      3 * day,
		"0 3 1 * *":        31 * day,
		"0 3 29 2 *":       1461 * day,
		"whenever":         0,
	} {
		assert.Equal(t, want, config.Target{}.LongestGap(config.Schedule{Line: line}, at(t, "2026-11-23T01:00:00Z")), line)
	}
	monday := at(t, "2026-11-23T01:00:00Z")
	assert.Equal(t, 2*day+time.Hour, config.Target{Blackout: weekends}.LongestGap(config.Schedule{Line: "0 * * * *"}, monday))
	freeze := []config.Blackout{{TimeInterval: timeinterval.TimeInterval{
		DaysOfMonth: []timeinterval.DayOfMonthRange{{InclusiveRange: timeinterval.InclusiveRange{Begin: -3, End: -1}}},
	}}}
	for moment, want := range map[string]time.Duration{
		"2026-11-09T01:00:00Z": time.Hour, "2026-11-24T01:00:00Z": 73 * time.Hour,
		"2026-11-29T01:00:00Z": 73 * time.Hour, // in the middle of it
		"2026-12-05T01:00:00Z": 73 * time.Hour, "2026-12-12T01:00:00Z": time.Hour,
	} {
		gap := config.Target{Blackout: freeze}.LongestGap(config.Schedule{Line: "0 * * * *"}, at(t, moment))
		assert.Equal(t, want, gap, moment)
	}
	always := []config.Blackout{{}}
	assert.Zero(t, config.Target{Blackout: always}.LongestGap(config.Schedule{Line: "0 * * * *"}, monday))
}

const withBlackout = `store: {bucket: backups}
targets:
  - name: a
    etcd: {endpoints: ['http://127.0.0.1:2379']}
    schedule: '0 */6 * * *'
    time_zone: Asia/Shanghai
    blackout: [{weekdays: ['monday:friday'], times: [{start_time: '09:00', end_time: '18:00'}]}]
`

func TestBlackoutsAreInTheTargetsTimeZone(t *testing.T) {
	cfg, err := config.Parse("lifeboat.yaml", []byte(withBlackout))
	require.NoError(t, err)
	shanghai := cfg.Targets[0]
	cfg, err = config.Parse("lifeboat.yaml", []byte(strings.Replace(withBlackout, "[{weekdays", "[{location: America/New_York, weekdays", 1)))
	require.NoError(t, err)
	newYork := cfg.Targets[0]
	byHand := config.Target{TimeZone: "Asia/Shanghai", Blackout: []config.Blackout{{TimeInterval: timeinterval.TimeInterval{
		Weekdays: []timeinterval.WeekdayRange{{InclusiveRange: timeinterval.InclusiveRange{Begin: 1, End: 5}}},
		Times:    []timeinterval.TimeRange{{StartMinute: 9 * 60, EndMinute: 18 * 60}},
	}}}}
	for moment, in := range map[string][2]bool{
		"2026-11-23T08:59:59+08:00": {false, false},
		"2026-11-23T09:00:00+08:00": {true, false},
		"2026-11-23T17:59:00+08:00": {true, false},
		"2026-11-23T18:00:00+08:00": {false, false},
		"2026-11-22T12:00:00+08:00": {false, false}, // Sunday
		"2026-11-23T09:00:00-05:00": {false, true},
	} {
		assert.Equal(t, in[0], shanghai.BlackedOut(at(t, moment)), moment)
		assert.Equal(t, in[0], byHand.BlackedOut(at(t, moment)), moment)
		assert.Equal(t, in[1], newYork.BlackedOut(at(t, moment)), moment)
	}
	assert.False(t, config.Target{}.BlackedOut(time.Now()))

	var out []string
	for tick := range shanghai.Upcoming(shanghai.Schedules()[0], at(t, "2026-11-23T00:00:00+08:00"), at(t, "2026-11-24T00:00:00+08:00")) {
		out = append(out, fmt.Sprint(tick.At.Hour(), tick.Blackout))
	}
	assert.Equal(t, []string{"6 false", "12 true", "18 false", "0 false"}, out)
}

// It is the moment with the splay that is looked at.
func TestASplayedTickIsLookedAtWhereItIs(t *testing.T) {
	cfg, err := config.Parse("lifeboat.yaml", []byte(strings.NewReplacer("    schedule:", "    splay: 6h\n    schedule:").Replace(withBlackout)))
	require.NoError(t, err)
	target, schedule := cfg.Targets[0], cfg.Targets[0].Schedules()[0]
	for tick := range target.Upcoming(schedule, at(t, "2026-11-23T00:00:00+08:00"), at(t, "2026-11-30T00:00:00+08:00")) {
		assert.Equal(t, offset("a/snapshot", 6*time.Hour), tick.At.Sub(tick.Nominal))
		assert.Equal(t, target.BlackedOut(tick.At), tick.Blackout)
	}
}

func TestBadTimingNamesFileLineAndKey(t *testing.T) {
	const line = "    schedule: '0 */6 * * *'\n"
	for name, c := range map[string]struct {
		add  string // below the schedule, in line 6
		want []string
	}{
		"negative splay":           {"splay: -1s", []string{":6:", "targets[0].splay", "negative"}},
		"splay over a day":         {"splay: 25h", []string{":6:", "targets[0].splay", "more than a day"}},
		"splay of half a second":   {"splay: 500ms", []string{":6:", "targets[0].splay", "whole seconds"}},
		"splay is no duration":     {"splay: some", []string{":6:", "targets[0].splay", "is not a duration"}},
		"negative window":          {"catch_up_window: -1h", []string{":6:", "targets[0].catch_up_window", "negative"}},
		"a window for none":        {"catch_up_window: 1h\n    catch_up: none", []string{":6:", "targets[0].catch_up_window", "goes with"}},
		"unknown catch-up":         {"catch_up: some", []string{":6:", "targets[0].catch_up", "latest, all, none"}},
		"unknown overlap":          {"overlap: kill", []string{":6:", "targets[0].overlap", "skip, queue"}},
		"max without all":          {"catch_up_max: 5", []string{":6:", "targets[0].catch_up_max", "catch_up: all"}},
		"max with latest":          {"catch_up_max: 5\n    catch_up: latest", []string{":6:", "targets[0].catch_up_max", "catch_up: all"}},
		"max over 1000":            {"catch_up_max: 1001\n    catch_up: all", []string{":6:", "targets[0].catch_up_max", "1 to 1000"}},
		"negative max":             {"catch_up_max: -1\n    catch_up: all", []string{":6:", "targets[0].catch_up_max", "1 to 1000"}},
		"a zone with a dot":        {"zone: cn.beijing", []string{":6:", "targets[0].zone", "lower-case"}},
		"always blacked out":       {"blackout: [{times: [{start_time: '00:00', end_time: '24:00'}]}]", []string{":6:", "targets[0].blackout", "schedule (0 */6 * * *)", "would never run"}},
		"blacked out by two":       {"blackout: [{weekdays: ['monday:friday']}, {weekdays: [sunday, saturday]}]", []string{":6:", "targets[0].blackout", "would never run"}},
		"all of the verifications": {"verify: {schedule: '0 3 * * sun'}\n    blackout: [{weekdays: [sunday]}]", []string{":7:", "targets[0].blackout", "verify.schedule (0 3 * * sun)"}},
		"an empty blackout":        {"blackout: [{}]", []string{":6:", "targets[0].blackout[0]", "paused: true"}},
		"a blackout with location": {"blackout: [{location: Asia/Tokyo}]", []string{":6:", "targets[0].blackout[0]", "all of the time"}},
		"a local blackout":         {"blackout: [{weekdays: [sunday], location: Local}]", []string{":6:", "targets[0].blackout[0].location", "IANA"}},
		"unknown key in it":        {"blackout: [{weekday: [sunday]}]", []string{":6:17:", "targets[0].blackout[0].weekday", "unknown field"}},
		"unknown key in a time":    {"blackout: [{times: [{start: '09:00', end_time: '10:00'}]}]", []string{":6:", "targets[0].blackout[0].times[0].start", "unknown field"}},
		"no such day":              {"blackout: [{weekdays: [sunday, satuday]}]", []string{":6:36:", "targets[0].blackout[0].weekdays[1]", "satuday"}},
		"no such month":            {"blackout:\n      - weekdays: [sunday]\n      - months: ['13:14', smarch]", []string{":8:", "targets[0].blackout[1].months[1]", "smarch"}},
		"no such day of a month":   {"blackout: [{days_of_month: ['1:32']}]", []string{":6:", "targets[0].blackout[0].days_of_month[0]", "out of range"}},
		"no such location":         {"blackout: [{location: Mars/Phobos}]", []string{":6:", "targets[0].blackout[0].location", "Mars/Phobos"}},
		"years the wrong way":      {"blackout: [{years: ['2027:2026']}]", []string{":6:", "targets[0].blackout[0].years[0]", "2027"}},
		"half a time":              {"blackout: [{times: [{start_time: '09:00'}]}]", []string{":6:", "targets[0].blackout[0].times[0]", "both start and end"}},
		"a time the wrong way":     {"blackout: [{times: [{start_time: '18:00', end_time: '09:00'}]}]", []string{":6:", "targets[0].blackout[0].times[0]", "start time"}},
		"no list":                  {"blackout: {weekdays: [sunday]}", []string{":6:", "targets[0].blackout", "sequence"}},
	} {
		t.Run(name, func(t *testing.T) {
			src := "store: {bucket: backups}\ntargets:\n  - name: a\n    etcd: {endpoints: ['http://127.0.0.1:2379']}\n" + line + "    " + c.add + "\n"
			_, err := config.Parse("lifeboat.yaml", []byte(src))
			require.Error(t, err)
			for _, want := range c.want {
				require.ErrorContains(t, err, want)
			}
		})
	}
}

func TestFleetConcurrencyHasBounds(t *testing.T) {
	for value, want := range map[string]string{"-1": "is -1", "1001": "is 1001", "many": "many"} {
		_, err := config.Parse("lifeboat.yaml", []byte("workers:\n  fleet_concurrency:\n    drill: "+value+"\n"))
		require.ErrorContains(t, err, "lifeboat.yaml:3:")
		require.ErrorContains(t, err, "workers.fleet_concurrency.drill")
		require.ErrorContains(t, err, want)
	}
	cfg, err := config.Parse("lifeboat.yaml", []byte("workers: {fleet_concurrency: {snapshot: 1, verify: 2, drill: 1000, prune: 4}}\n"))
	require.NoError(t, err)
	for work, want := range map[config.Work]int{config.WorkSnapshot: 1, config.WorkVerify: 2, config.WorkDrill: 1000, config.WorkPrune: 4, "x": 0} {
		assert.Equal(t, want, cfg.Workers.FleetConcurrency.Of(work))
	}
}

// What runs at all, be it seldom, is not refused, whatever day it is.
func TestBlackoutsThatLeaveATickAreFine(t *testing.T) {
	for _, c := range []struct{ line, blackout string }{
		{"* * * * *", "[{weekdays: [saturday, sunday]}]"},
		{"* * * * *", "[{times: [{start_time: '00:00', end_time: '23:59'}]}]"},
		{"* * * * *", "[{months: ['january:november']}, {days_of_month: ['1:30']}, {times: [{start_time: '00:01', end_time: '24:00'}]}]"},
		{"0 * * * *", "[{months: ['january:june']}]"},
		{"@every 61m", "[{times: [{start_time: '00:00', end_time: '23:00'}], location: America/New_York}]"},
		{"0 0 29 2 *", "[{weekdays: [monday]}]"},
		{"", "[{weekdays: ['sunday:saturday']}]"},
	} {
		_, err := config.Parse("lifeboat.yaml", []byte(strings.NewReplacer("0 */6 * * *", c.line,
			"[{weekdays: ['monday:friday'], times: [{start_time: '09:00', end_time: '18:00'}]}]", c.blackout).Replace(withBlackout)))
		require.NoError(t, err, "%+v", c)
	}
}
