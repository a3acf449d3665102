package route_test

import (
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/lifeboat-fleet/lifeboat/fleet/config"
	"github.com/lifeboat-fleet/lifeboat/services/notifier/internal/route"
)

func TestMatch(t *testing.T) {
	t.Parallel()
	tree := compiled(t, config.Route{
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
		"continue among siblings":             {map[string]string{"team": "net", "site": "sh"}, []string{"net", "china", "net"}, `{team="net"}`},
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
	assert.Empty(t, compiled(t, config.Route{}).Match(map[string]string{"a": "b"}))
}

func TestABadMatcherNamesItsKey(t *testing.T) {
	t.Parallel()
	_, err := route.Compile(config.Notifier{Route: config.Route{Routes: []config.Route{{}, {Matchers: []string{`a="b"`, `a=="b"`}}}}})
	require.ErrorContains(t, err, "notifier.route.routes[1].matchers[1]")
}

// Receiver, repeat interval and mentions are the parent's where a route has none; time intervals are not.
func TestWhatARouteInherits(t *testing.T) {
	t.Parallel()
	tree := compiled(t, config.Route{
		Receiver: "ops", RepeatInterval: time.Hour, Mentions: map[string][]string{"critical": {"here"}},
		Routes: []config.Route{{
			Matchers: []string{`team="db"`}, RepeatInterval: 2 * time.Hour, MuteTimeIntervals: []string{"nights"}, ActiveTimeIntervals: []string{"week"},
			Mentions: map[string][]string{"warning": {"U012345"}, "*": {"S012345"}, "info": {}},
			Routes:   []config.Route{{Matchers: []string{`kind="etcd"`}, Mentions: map[string][]string{}}},
		}},
	})
	one := func(lbls map[string]string) route.Hit {
		hits := tree.Match(lbls)
		require.Len(t, hits, 1)
		return hits[0]
	}
	top, db, etcd := one(nil), one(map[string]string{"team": "db"}), one(map[string]string{"team": "db", "kind": "etcd"})
	assert.Equal(t, time.Hour, top.Repeat)
	assert.Equal(t, []string{"here"}, top.MentionsFor("critical"))
	assert.Empty(t, top.MentionsFor("warning"))

	assert.Equal(t, []any{"ops", 2 * time.Hour, []string{"nights"}, []string{"week"}}, []any{db.Receiver, db.Repeat, db.Mute, db.Active})
	assert.Equal(t, []string{"S012345"}, db.MentionsFor("critical"), "the child's mentions replace the parent's")
	assert.Equal(t, []string{"U012345"}, db.MentionsFor("warning"))
	assert.Equal(t, []string{"S012345"}, db.MentionsFor(""), "an alert without a severity")
	assert.Empty(t, db.MentionsFor("info"), "an empty list mentions nobody")

	assert.Equal(t, []any{"ops", 2 * time.Hour}, []any{etcd.Receiver, etcd.Repeat})
	assert.Empty(t, etcd.Mute, "not inherited, as in Alertmanager")
	assert.Empty(t, etcd.Active)
	assert.Equal(t, []string{"U012345"}, etcd.MentionsFor("warning"), "an empty map is none of its own")
}

func compiled(t *testing.T, r config.Route) *route.Tree {
	t.Helper()
	tree, err := route.Compile(config.Notifier{Route: r})
	require.NoError(t, err)
	return tree
}
