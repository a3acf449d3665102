package route_test

import (
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/lifeboat-fleet/lifeboat/fleet/config"
	"github.com/lifeboat-fleet/lifeboat/services/notifier/internal/route"
)

func TestExplainSaysWhichMatcherFailedOnWhat(t *testing.T) {
	t.Parallel()
	tree := compiled(t, config.Route{Receiver: "ops", Routes: []config.Route{
		{Matchers: []string{`team="net"`, `severity=~"critical|page"`}, Receiver: "net"},
		{Matchers: []string{`team="db"`}, Receiver: "db", Routes: []config.Route{
			{Matchers: []string{`owner!=""`}, Receiver: "owners", Continue: true},
			{Matchers: []string{`severity="critical"`}},
			{Receiver: "never"},
		}},
		{Receiver: "rest"},
	}})
	steps := tree.Explain(map[string]string{"team": "db", "severity": "critical"})
	type line struct {
		key, receiver, behind string
		depth                 int
		matched, hit          bool
	}
	var lines []line
	for _, s := range steps {
		lines = append(lines, line{s.Key, s.Receiver, s.Behind, s.Depth, s.Matched, s.Hit != nil})
	}
	assert.Equal(t, []line{
		{"notifier.route", "ops", "", 0, true, false},
		{"notifier.route.routes[0]", "net", "", 1, false, false},
		{"notifier.route.routes[1]", "db", "", 1, true, false},
		{"notifier.route.routes[1].routes[0]", "owners", "", 2, false, false},
		{"notifier.route.routes[1].routes[1]", "db", "", 2, true, true},
		{"notifier.route.routes[1].routes[2]", "never", "notifier.route.routes[1].routes[1]", 2, false, false},
		{"notifier.route.routes[2]", "rest", "notifier.route.routes[1]", 1, false, false},
	}, lines)
	assert.Equal(t, []route.Tested{
		{Matcher: `team="net"`, Label: "team", Value: "db", Present: true},
		{Matcher: `severity=~"critical|page"`, Label: "severity", Value: "critical", Present: true, Matched: true},
	}, steps[1].Tested)
	assert.Equal(t, []route.Tested{{Matcher: `owner!=""`, Label: "owner"}}, steps[3].Tested)
	assert.Equal(t, `{team="db"}/{severity="critical"}`, steps[4].Hit.Route)
}

// Whatever the tree and the labels, the explanation ends where the alert does.
func TestExplainAgreesWithMatch(t *testing.T) {
	t.Parallel()
	r := newRandom(t)
	for range 150 {
		tree := compiled(t, r.tree())
		for range 20 {
			lbls := r.labels()
			var hits []route.Hit
			for _, s := range tree.Explain(lbls) {
				if s.Hit != nil {
					hits = append(hits, *s.Hit)
				}
			}
			require.Equal(t, tree.Match(lbls), hits, "%v", lbls)
		}
	}
}
