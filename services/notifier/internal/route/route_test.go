package route_test

import (
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/lifeboat-fleet/lifeboat/fleet/config"
	"github.com/lifeboat-fleet/lifeboat/services/notifier/internal/route"
)

func TestMatch(t *testing.T) {
	t.Parallel()
	tree, err := route.Compile(config.Route{
		Receiver: "ops",
		Routes: []config.Route{
			{Matchers: []string{`team="db"`}, Receiver: "db", Routes: []config.Route{
				{Matchers: []string{`severity="critical"`}, Receiver: "db-phone", Continue: true},
				{Matchers: []string{`severity=~"critical|warning"`}}, // inherits db
				{Matchers: []string{`severity="info"`}, Receiver: "nowhere"},
			}},
			{Matchers: []string{`team="net"`}, Receiver: "net", Continue: true},
			{Matchers: []string{`site=~"bj|sh"`, `env!="dev"`}, Receiver: "china", Continue: true},
			{Matchers: []string{`team="net"`}, Receiver: "net", Continue: true},
			{Matchers: []string{`owner=""`, `kind="orphan"`}, Receiver: "orphans"},
			{Matchers: []string{`"été"="oui"`}, Receiver: "utf8"},
		},
	})
	require.NoError(t, err)
	for name, c := range map[string]struct {
		labels map[string]string
		want   []string
		route  string
	}{
		"nothing matches: the top":            {map[string]string{"team": "web"}, []string{"ops"}, "{}"},
		"no labels at all":                    {nil, []string{"ops"}, "{}"},
		"a node itself when no child matches": {map[string]string{"team": "db", "severity": "page"}, []string{"db"}, `{team="db"}`},
		"first child only":                    {map[string]string{"team": "db", "severity": "info"}, []string{"nowhere"}, `{team="db"}/{severity="info"}`},
		"continue goes to the next child":     {map[string]string{"team": "db", "severity": "critical"}, []string{"db-phone", "db"}, `{team="db"}/{severity="critical"}`},
		"a child inherits the receiver":       {map[string]string{"team": "db", "severity": "warning"}, []string{"db"}, `{team="db"}/{severity=~"critical|warning"}`},
		"no continue stops the siblings":      {map[string]string{"team": "db", "site": "bj"}, []string{"db"}, `{team="db"}`},
		"continue among siblings, once each":  {map[string]string{"team": "net", "site": "sh"}, []string{"net", "china"}, `{team="net"}`},
		"regular expressions are anchored":    {map[string]string{"site": "bjx"}, []string{"ops"}, "{}"},
		"all matchers must match":             {map[string]string{"site": "bj", "env": "dev"}, []string{"ops"}, "{}"},
		"an absent label is empty":            {map[string]string{"kind": "orphan"}, []string{"orphans"}, `{owner="",kind="orphan"}`},
		"UTF-8 names":                         {map[string]string{"été": "oui"}, []string{"utf8"}, `{été="oui"}`},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			hits := tree.Match(c.labels)
			var got []string
			for _, h := range hits {
				got = append(got, h.Receiver)
			}
			assert.Equal(t, c.want, got)
			assert.Equal(t, c.route, hits[0].Route)
		})
	}
}

func TestTreeWithoutReceiverTakesNothing(t *testing.T) {
	t.Parallel()
	tree, err := route.Compile(config.Route{})
	require.NoError(t, err)
	assert.Empty(t, tree.Match(map[string]string{"a": "b"}))
}
