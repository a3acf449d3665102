package retention_test

import (
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/lifeboat-fleet/lifeboat/fleet/config"
	"github.com/lifeboat-fleet/lifeboat/services/backup/internal/retention"
)

func at(t *testing.T, s string) time.Time {
	t.Helper()
	for _, layout := range []string{time.RFC3339, time.DateOnly} {
		if v, err := time.Parse(layout, s); err == nil {
			return v
		}
	}
	t.Fatalf("%q is no time", s)
	return time.Time{}
}

// history makes snapshots from times; what follows a time in the line sets a flag or a count.
func history(t *testing.T, lines ...string) []retention.Snapshot {
	t.Helper()
	var all []retention.Snapshot
	for _, line := range lines {
		words := strings.Fields(line)
		s := retention.Snapshot{ID: words[0], At: at(t, words[0]), Count: 100}
		for _, w := range words[1:] {
			switch w {
			case "damaged":
				s.Damaged = true
			case "proven":
				s.Proven = true
			case "pinned":
				s.Pinned = true
			case "locked":
				s.Locked = true
			case "confirmed":
				s.ShrinkConfirmed = true
			default:
				_, err := fmt.Sscanf(w, "count=%d", &s.Count)
				if err != nil {
					_, err = fmt.Sscanf(w, "bytes=%d", &s.Bytes)
				}
				require.NoError(t, err, w)
			}
		}
		all = append(all, s)
	}
	return all
}

// reasons prints a plan as the tables below write it.
func reasons(p retention.Plan) []string {
	var out []string
	for _, v := range p.Verdicts {
		line := v.ID + ":"
		if len(v.Reasons) > 0 {
			line += " " + strings.Join(v.Reasons, ", ")
		}
		out = append(out, line)
	}
	return out
}

func TestRules(t *testing.T) {
	const month = config.Period(30 * 24 * time.Hour)
	for _, c := range []struct {
		name, zone, now string
		policy          config.Retention
		have, want      []string
	}{
		{
			name: "last", now: "2026-12-01", policy: config.Retention{Last: 2},
			have: []string{"2026-11-01", "2026-11-02", "2026-11-03"},
			want: []string{"2026-11-01:", "2026-11-02: last 2 of 2", "2026-11-03: last 1 of 2, newest good"},
		},
		{
			name: "hourly keeps the newest of each hour, and skips hours without any", now: "2026-12-01", policy: config.Retention{Hourly: 2},
			have: []string{"2026-11-01T01:10:00Z", "2026-11-01T03:00:00Z", "2026-11-01T03:59:59Z", "2026-11-01T09:00:00Z"},
			want: []string{
				"2026-11-01T01:10:00Z:", "2026-11-01T03:00:00Z:", "2026-11-01T03:59:59Z: hourly 2026-11-01 03:00 +00:00",
				"2026-11-01T09:00:00Z: hourly 2026-11-01 09:00 +00:00, newest good",
			},
		},
		{
			name: "a day is Shanghai's, eight hours before UTC's", zone: "Asia/Shanghai", now: "2026-12-01", policy: config.Retention{Daily: 2},
			have: []string{"2026-11-19T15:59:59Z", "2026-11-19T16:00:00Z", "2026-11-20T15:59:59Z", "2026-11-20T16:00:00Z"},
			want: []string{
				"2026-11-19T15:59:59Z:", "2026-11-19T16:00:00Z:", "2026-11-20T15:59:59Z: daily 2026-11-20",
				"2026-11-20T16:00:00Z: daily 2026-11-21, newest good",
			},
		},
		{
			name: "the hour that comes twice in Berlin is two hours", zone: "Europe/Berlin", now: "2026-12-01", policy: config.Retention{Hourly: 3},
			have: []string{"2026-10-24T23:30:00Z", "2026-10-25T00:10:00Z", "2026-10-25T00:30:00Z", "2026-10-25T01:30:00Z", "2026-10-25T02:30:00Z"},
			want: []string{
				"2026-10-24T23:30:00Z:", "2026-10-25T00:10:00Z:", "2026-10-25T00:30:00Z: hourly 2026-10-25 02:00 +02:00",
				"2026-10-25T01:30:00Z: hourly 2026-10-25 02:00 +01:00", "2026-10-25T02:30:00Z: hourly 2026-10-25 03:00 +01:00, newest good",
			},
		},
		{
			name: "a day of 25 hours is one day", zone: "Europe/Berlin", now: "2026-12-01", policy: config.Retention{Daily: 2},
			have: []string{"2026-10-24T21:59:00Z", "2026-10-24T22:00:00Z", "2026-10-25T22:59:00Z"},
			want: []string{"2026-10-24T21:59:00Z: daily 2026-10-24", "2026-10-24T22:00:00Z:", "2026-10-25T22:59:00Z: daily 2026-10-25, newest good"},
		},
		{
			name: "the hour that New York skips is nobody's", zone: "America/New_York", now: "2026-12-01", policy: config.Retention{Hourly: 2},
			have: []string{"2026-03-08T05:59:00Z", "2026-03-08T06:59:00Z", "2026-03-08T07:00:00Z"},
			want: []string{
				"2026-03-08T05:59:00Z:", "2026-03-08T06:59:00Z: hourly 2026-03-08 01:00 -05:00",
				"2026-03-08T07:00:00Z: hourly 2026-03-08 03:00 -04:00, newest good",
			},
		},
		{
			name: "an ISO week goes on over the new year", now: "2027-02-01", policy: config.Retention{Weekly: 2},
			have: []string{"2026-12-27", "2026-12-28", "2027-01-03", "2027-01-04"},
			want: []string{"2026-12-27:", "2026-12-28:", "2027-01-03: weekly 2026-W53", "2027-01-04: weekly 2027-W01, newest good"},
		},
		{
			name: "monthly and yearly, and a snapshot has all its reasons", zone: "Asia/Shanghai", now: "2027-02-01",
			policy: config.Retention{Monthly: 2, Yearly: 2},
			have:   []string{"2025-06-01", "2026-11-30T15:59:59Z", "2026-12-31T15:59:59Z", "2026-12-31T16:00:00Z"},
			want: []string{
				"2025-06-01:", "2026-11-30T15:59:59Z:", "2026-12-31T15:59:59Z: monthly 2026-12, yearly 2026",
				"2026-12-31T16:00:00Z: monthly 2027-01, yearly 2027, newest good",
			},
		},
		{
			name: "within counts back from the newest, so that a target that stopped loses nothing", now: "2027-11-01",
			policy: config.Retention{Within: month},
			have:   []string{"2026-10-01T23:59:59Z", "2026-10-02", "2026-11-01"},
			want:   []string{"2026-10-01T23:59:59Z:", "2026-10-02: within 30d", "2026-11-01: within 30d, newest good"},
		},
		{
			name: "rules are ORed", now: "2026-12-01", policy: config.Retention{Last: 1, Daily: 2, Within: config.Period(time.Hour)},
			have: []string{"2026-11-01", "2026-11-02T10:00:00Z", "2026-11-03T09:30:00Z", "2026-11-03T10:00:00Z"},
			want: []string{
				"2026-11-01:", "2026-11-02T10:00:00Z: daily 2026-11-02", "2026-11-03T09:30:00Z: within 1h",
				"2026-11-03T10:00:00Z: last 1 of 1, daily 2026-11-03, within 1h, newest good",
			},
		},
		{
			name: "damaged ones take no good one's place, and stay while a good one would", now: "2026-12-01", policy: config.Retention{Last: 2},
			have: []string{"2026-11-01", "2026-11-02", "2026-11-03 damaged", "2026-11-04", "2026-11-05 damaged"},
			want: []string{
				"2026-11-01:", "2026-11-02: last 2 of 2", "2026-11-03:", "2026-11-04: last 1 of 2, newest good",
				"2026-11-05: last 1 of 2 (damaged)",
			},
		},
		{
			name: "protected ones", now: "2026-12-01", policy: config.Retention{Last: 1},
			have: []string{
				"2026-11-01 proven", "2026-11-02 proven", "2026-11-03 proven damaged", "2026-11-04 pinned", "2026-11-05 locked", "2026-11-06", "2026-11-07",
			},
			want: []string{
				"2026-11-01:", "2026-11-02: newest proven by a drill and not damaged", "2026-11-03: newest proven by a drill",
				"2026-11-04: pinned", "2026-11-05: locked", "2026-11-06:", "2026-11-07: last 1 of 1, newest good",
			},
		},
		{
			name: "a wrong clock pushes nothing out", now: "2026-11-04", policy: config.Retention{Last: 1, Yearly: 1},
			have: []string{"2026-11-01", "2026-11-02", "2026-11-03 proven", "2027-01-01 proven", "2027-01-02"},
			want: []string{
				"2026-11-01:", "2026-11-02:", "2026-11-03: last 1 of 1, yearly 2026, newest good, newest proven by a drill",
				"2027-01-01: dated in the future", "2027-01-02: dated in the future",
			},
		},
	} {
		t.Run(c.name, func(t *testing.T) {
			zone, err := time.LoadLocation(c.zone)
			require.NoError(t, err)
			have := history(t, c.have...)
			got := retention.Decide(at(t, c.now), zone, c.policy, have)
			assert.Equal(t, c.want, reasons(got))
			assert.Empty(t, got.Held)
			var unkept []string
			for _, line := range c.want {
				if id, found := strings.CutSuffix(line, ":"); found {
					unkept = append(unkept, id)
				}
			}
			assert.Equal(t, unkept, got.Delete())
			slices.Reverse(have)
			assert.Equal(t, c.want, reasons(retention.Decide(at(t, c.now), zone, c.policy, have)), "whatever order they are given in")
		})
	}
}

func TestNothingIsDeletedWhen(t *testing.T) {
	last := config.Retention{Last: 1}
	for _, c := range []struct {
		name   string
		policy config.Retention
		have   []string
		held   string // part of it; empty: the plan stands
		shrunk string
	}{
		{name: "there is nothing", policy: last},
		{name: "no policy", policy: config.Retention{ShrinkGuard: 40}, have: []string{"2026-11-01", "2026-11-02"}, held: retention.NoPolicy},
		{name: "a policy of nonsense", policy: config.Retention{Last: -1}, have: []string{"2026-11-01", "2026-11-02"}, held: retention.NoPolicy},
		{
			name: "none is good", policy: last, have: []string{"2026-11-01 damaged", "2026-11-02 damaged", "2027-01-01"},
			held: "none of the 3 snapshots is known to be good",
		},
		{name: "exactly 40 percent less", policy: last, have: []string{"2026-11-01 count=100", "2026-11-02 count=60"}},
		{
			name: "more than 40 percent less", policy: last, have: []string{"2026-11-01 count=100", "2026-11-02 count=59"},
			held: "the newest snapshot 2026-11-02 holds 59 keys, 41 % less than the 100 of 2026-11-01", shrunk: "2026-11-02",
		},
		{name: "everything is gone", policy: last, have: []string{"2026-11-01", "2026-11-02 count=0"}, held: "holds 0 keys, 100 %", shrunk: "2026-11-02"},
		{name: "the guard is off", policy: config.Retention{Last: 1, ShrinkGuard: 100}, have: []string{"2026-11-01", "2026-11-02 count=0"}},
		{
			name: "a stricter guard", policy: config.Retention{Last: 1, ShrinkGuard: 5}, have: []string{"2026-11-01 count=100", "2026-11-02 count=94"},
			held: "94 keys", shrunk: "2026-11-02",
		},
		{
			name: "it shrank three snapshots ago, and nobody said anything", policy: last,
			have: []string{"2026-11-01", "2026-11-02 count=10", "2026-11-03 count=11", "2026-11-04 count=12"},
			held: "2026-11-04 holds 12 keys, 88 % less than the 100 of 2026-11-01", shrunk: "2026-11-04",
		},
		{name: "it has recovered", policy: last, have: []string{"2026-11-01", "2026-11-02 count=10", "2026-11-03 count=90"}},
		{name: "the newest is confirmed", policy: last, have: []string{"2026-11-01", "2026-11-02 count=10 confirmed"}},
		{name: "one before it is confirmed", policy: last, have: []string{"2026-11-01", "2026-11-02 count=10 confirmed", "2026-11-03 count=9"}},
		{
			name: "it shrank again after one was confirmed", policy: last,
			have: []string{"2026-11-01", "2026-11-02 count=10 confirmed", "2026-11-03 count=20", "2026-11-04 count=9"},
			held: "9 keys, 55 % less than the 20 of 2026-11-03", shrunk: "2026-11-04",
		},
		{
			name: "the confirmed one is too old", policy: last, have: []string{"2026-11-01 confirmed", "2026-11-02 count=10"},
			held: "10 keys", shrunk: "2026-11-02",
		},
		{
			name: "sizes where counts are not known", policy: last, have: []string{"2026-11-01 bytes=1000", "2026-11-02 count=-1 bytes=10"},
			held: "10 bytes, 99 % less than the 1000 of 2026-11-01", shrunk: "2026-11-02",
		},
		{
			name: "a damaged one tells as much about the source", policy: last, have: []string{"2026-11-01", "2026-11-02 count=10 damaged"},
			held: "10 keys", shrunk: "2026-11-02",
		},
		{name: "one from the future says nothing", policy: last, have: []string{"2026-11-01", "2026-11-02", "2027-01-01 count=10"}},
	} {
		t.Run(c.name, func(t *testing.T) {
			got := retention.Decide(at(t, "2026-12-01"), nil, c.policy, history(t, c.have...))
			assert.Equal(t, c.shrunk, got.Shrunk)
			if c.held == "" {
				assert.Empty(t, got.Held)
				return
			}
			assert.Contains(t, got.Held, c.held)
			assert.Contains(t, got.Held, "nothing is deleted")
			assert.Empty(t, got.Delete())
			assert.Len(t, got.Kept(), len(c.have))
		})
	}
}

// A confirmation must outlive the snapshot's turn in the rules: else the guard would stop a target for ever that somebody
// has looked at.
func TestAConfirmationStaysWhileALargerSnapshotDoes(t *testing.T) {
	have := history(t, "2026-10-01 pinned", "2026-11-01 count=10 confirmed", "2026-11-02 count=10", "2026-11-03 count=10")
	got := retention.Decide(at(t, "2026-12-01"), nil, config.Retention{Last: 1}, have)
	assert.Equal(t, []string{
		"2026-10-01: pinned", "2026-11-01: newest confirmed shrink", "2026-11-02:", "2026-11-03: last 1 of 1, newest good",
	}, reasons(got))
	have[0].Pinned = false
	got = retention.Decide(at(t, "2026-12-01"), nil, config.Retention{Last: 1}, have)
	assert.Equal(t, []string{"2026-10-01", "2026-11-01", "2026-11-02"}, got.Delete())
}
