package route_test

import (
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/lifeboat-fleet/lifeboat/fleet/config"
	"github.com/lifeboat-fleet/lifeboat/services/notifier/internal/route"
)

// timed is a tree whose routes are muted at times, as people write them.
func timed(t *testing.T) *route.Tree {
	t.Helper()
	cfg, err := config.Parse("lifeboat.yaml", []byte(`
notifier:
  receivers:
    - {name: a, slack: {webhook_url_file: a}}
    - {name: b, slack: {webhook_url_file: b}}
  time_intervals:
    - name: nights
      time_intervals:
        - {times: [{start_time: "00:00", end_time: "08:00"}, {start_time: "22:00", end_time: "24:00"}], location: Asia/Shanghai}
    - {name: office, time_intervals: [{weekdays: ["monday:friday"], times: [{start_time: "09:00", end_time: "18:00"}], location: Asia/Shanghai}]}
    - {name: saturdays, time_intervals: [{weekdays: [saturday]}]}
    - {name: long-ago, time_intervals: [{years: ["2001"]}]}
    - {name: november, time_intervals: [{months: [november]}]}
  route:
    receiver: a
    routes:
      - {matchers: ['x="1"'], mute_time_intervals: [nights], continue: true}
      - {matchers: ['x="1"'], receiver: b, mute_time_intervals: [november], continue: true}
      - {matchers: ['x="1"'], active_time_intervals: [office], continue: true}
      - {matchers: ['x="1"'], receiver: b, mute_time_intervals: [saturdays]}
`))
	require.NoError(t, err)
	tree, err := route.Compile(cfg.Notifier)
	require.NoError(t, err)
	return tree
}

func moment(t *testing.T, s string) time.Time {
	t.Helper()
	at, err := time.Parse(time.RFC3339, s)
	require.NoError(t, err)
	return at
}

func TestMuted(t *testing.T) {
	t.Parallel()
	tree := timed(t)
	type list = []string
	for name, c := range map[string]struct {
		at           string
		mute, active []string
		by           string
		muted        bool
		until        string
	}{
		"no intervals":                      {"2026-11-20T04:00:00Z", nil, nil, "", false, "2026-11-20T04:00:00Z"},
		"in the interval's location":        {"2026-11-20T14:00:00Z", list{"nights"}, nil, "nights", true, "2026-11-21T00:00:00Z"},
		"its first minute":                  {"2026-11-20T22:00:00+08:00", list{"nights"}, nil, "nights", true, "2026-11-21T08:00:00+08:00"},
		"the last one is past":              {"2026-11-20T08:00:00+08:00", list{"nights"}, nil, "", false, "2026-11-20T08:00:00+08:00"},
		"before it":                         {"2026-11-20T21:59:59+08:00", list{"nights"}, nil, "", false, "2026-11-20T21:59:59+08:00"},
		"UTC without a location":            {"2026-11-21T00:30:00+08:00", list{"saturdays"}, nil, "", false, "2026-11-21T00:30:00+08:00"},
		"the second of two":                 {"2026-11-21T12:00:00Z", list{"long-ago", "saturdays"}, nil, "saturdays", true, "2026-11-22T00:00:00Z"},
		"active":                            {"2026-11-20T10:00:00+08:00", nil, list{"office"}, "", false, "2026-11-20T10:00:00+08:00"},
		"not active until Monday":           {"2026-11-20T18:00:00+08:00", nil, list{"office"}, "office", true, "2026-11-23T09:00:00+08:00"},
		"one of two active is enough":       {"2026-11-21T12:00:00Z", nil, list{"office", "saturdays"}, "", false, "2026-11-21T12:00:00Z"},
		"none of two":                       {"2026-11-22T12:00:00Z", nil, list{"office", "saturdays"}, "office, saturdays", true, "2026-11-23T01:00:00Z"},
		"active, but muted":                 {"2026-11-20T10:00:00+08:00", list{"november"}, list{"office"}, "november", true, "2026-12-01T09:00:00+08:00"},
		"a muting interval that is gone":    {"2026-11-20T10:00:00Z", list{"gone"}, nil, "", false, "2026-11-20T10:00:00Z"},
		"an active interval that is gone":   {"2026-11-22T10:00:00Z", nil, list{"gone"}, "", false, "2026-11-22T10:00:00Z"},
		"one that is gone holds nobody":     {"2026-11-22T10:00:00Z", nil, list{"office", "gone"}, "", false, "2026-11-22T10:00:00Z"},
		"a time that does not come anymore": {"2026-11-22T10:00:00Z", nil, list{"long-ago"}, "long-ago", true, ""},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			at := moment(t, c.at)
			by, muted := tree.Muted(at, c.mute, c.active)
			assert.Equal(t, c.muted, muted)
			assert.Equal(t, c.by, by)
			until, ok := tree.Until(at, c.mute, c.active)
			require.Equal(t, c.until != "", ok)
			if ok {
				assert.Equal(t, moment(t, c.until).UTC(), until.UTC())
			}
		})
	}
}

// A muted route does not hold back what another route brings to the same receiver.
func TestPick(t *testing.T) {
	t.Parallel()
	tree := timed(t)
	hits := tree.Match(map[string]string{"x": "1"})
	require.Len(t, hits, 4)
	pick := func(at string) (all [][]string) {
		for _, h := range route.Pick(tree, hits, moment(t, at)) {
			all = append(all, append(append([]string{h.Receiver}, h.Mute...), h.Active...))
		}
		return all
	}
	assert.Equal(t, [][]string{{"a", "nights"}, {"b", "saturdays"}}, pick("2026-11-20T10:00:00+08:00"), "b's first route is muted all month")
	assert.Equal(t, [][]string{{"a", "nights"}, {"b", "november"}}, pick("2026-12-01T10:00:00+08:00"), "the first one, when both deliver")
	// On Saturday at two all of a's routes are muted: nights end at eight, and the office opens on Monday. b's routes deliver on Sunday or in December.
	assert.Equal(t, [][]string{{"a", "nights"}, {"b", "saturdays"}}, pick("2026-11-21T10:00:00Z")[:2])
	at := moment(t, "2026-11-20T23:00:00+08:00")
	reversed := []route.Hit{hits[2], hits[0]}
	assert.Equal(t, []route.Hit{hits[0]}, route.Pick(tree, reversed, at), "both are muted: the one that delivers again first")
	assert.Empty(t, route.Pick(tree, nil, at))
}

// What Until says is when Muted ends, and nothing before it is unmuted: minute by minute over two weeks.
func TestUntilIsTheEndOfMuted(t *testing.T) {
	t.Parallel()
	tree := timed(t)
	for _, c := range [][2][]string{{{"nights"}, nil}, {nil, {"office"}}, {{"nights"}, {"saturdays", "office"}}, {{"saturdays", "nights"}, nil}} {
		at := moment(t, "2026-11-18T03:17:00Z")
		until, ok := tree.Until(at, c[0], c[1])
		require.True(t, ok)
		for range 14 * 24 * 60 {
			_, muted := tree.Muted(at, c[0], c[1])
			if !at.Before(until) {
				until, ok = tree.Until(at, c[0], c[1])
				require.True(t, ok)
			}
			require.Equal(t, at.Before(until), muted, "%v at %s until %s", c, at, until)
			at = at.Add(time.Minute)
		}
	}
}
