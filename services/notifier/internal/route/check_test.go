package route_test

import (
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/lifeboat-fleet/lifeboat/fleet/config"
	"github.com/lifeboat-fleet/lifeboat/services/notifier/internal/route"
)

// siblings are routes below the top one, each by its matchers; "+" before them is continue.
func siblings(all ...string) config.Route {
	top := config.Route{Receiver: "ops"}
	for _, s := range all {
		matchers, goOn := strings.CutPrefix(s, "+")
		r := config.Route{Continue: goOn}
		if matchers != "" {
			r.Matchers = []string{matchers}
		}
		top.Routes = append(top.Routes, r)
	}
	return top
}

// below puts the routes under one route that has matchers.
func below(matchers string, r config.Route) config.Route {
	r.Matchers = []string{matchers}
	return config.Route{Receiver: "ops", Routes: []config.Route{r}}
}

func TestUnreachableRoutes(t *testing.T) {
	t.Parallel()
	for name, c := range map[string]struct {
		route config.Route
		// want has the keys below notifier.route and a part of what is said, or nothing.
		want map[string]string
	}{
		"different values":              {siblings(`a="1"`, `a="2"`, ``), nil},
		"the same matchers":             {siblings(`a="1"`, `a="1"`), map[string]string{"routes[1]": `before it notifier.route.routes[0] {a="1"} takes all that it matches`}},
		"the same in another order":     {siblings(`a="1",b="2"`, `b="2",a="1"`), map[string]string{"routes[1]": "routes[0]"}},
		"a narrower one behind":         {siblings(`a="1"`, `a="1",b="2"`), map[string]string{"routes[1]": "routes[0]"}},
		"a narrower one before":         {siblings(`a="1",b="2"`, `a="1"`), nil},
		"continue before":               {siblings(`+a="1"`, `a="1"`), nil},
		"behind a catch-all":            {siblings(``, `a="1"`, `b="1"`), map[string]string{"routes[1]": "routes[0] {}", "routes[2]": "routes[0] {}"}},
		"behind a catch-all .*":         {siblings(`a=~".*"`, `b="1"`), map[string]string{"routes[1]": "(but for labels with a line break): before it"}},
		"behind a true catch-all":       {siblings(`a=~"(?s).*"`, `b="1"`), map[string]string{"routes[1]": "give the earlier one continue: true"}},
		"something is not anything":     {siblings(`a=~".+"`, `b="1"`), nil},
		"something behind something":    {siblings(`a=~".+"`, `a!="",b="1"`), map[string]string{"routes[1]": "line break"}},
		"a value of an expression":      {siblings(`a=~"x|y"`, `a="x"`), map[string]string{"routes[1]": "routes[0]"}},
		"a value of no expression":      {siblings(`a=~"x|y"`, `a="z"`), nil},
		"an expression is anchored":     {siblings(`a=~"x"`, `a="xy"`), nil},
		"fewer words":                   {siblings(`a=~"x|y|z"`, `a=~"(x|z)"`), map[string]string{"routes[1]": "routes[0]"}},
		"more words":                    {siblings(`a=~"x|y"`, `a=~"x|y|z"`), nil},
		"words with a common beginning": {siblings(`a=~"prod.*"`, `a=~"prod-(eu|us)[12]?"`), map[string]string{"routes[1]": "routes[0]"}},
		"case is folded":                {siblings(`a="x"`, `a=~"(?i)x"`), nil},
		"other than":                    {siblings(`a!="x"`, `a="y"`), map[string]string{"routes[1]": "routes[0]"}},
		"other than itself":             {siblings(`a!="x"`, `a="x"`), nil},
		"other than by an expression":   {siblings(`a!="x"`, `a=~"y.*"`), map[string]string{"routes[1]": "routes[0]"}},
		"not by an expression":          {siblings(`a!~"x|y"`, `a=~"z.*"`), map[string]string{"routes[1]": "routes[0]"}},
		"not by the same expression":    {siblings(`a!~"x.*"`, `a!~"x.*",b="1"`), map[string]string{"routes[1]": "routes[0]"}},
		"an absent label is empty":      {siblings(`a=""`, `a!~".+"`), map[string]string{"routes[1]": "(but for labels with a line break): before it notifier.route.routes[0] {a"}},
		"an absent label":               {siblings(`a!="x"`, `a="",b="1"`), map[string]string{"routes[1]": "routes[0]"}},
		"all cases together":            {siblings(`a="x"`, `a!="x"`, `b="1"`), map[string]string{"routes[2]": `routes[0] {a="x"} and notifier.route.routes[1] {a!="x"} take all`}},
		"two words, one each":           {siblings(`a="x"`, `a="y"`, `a=~"x|y"`), map[string]string{"routes[2]": "routes[0]"}},
		"two words, one left":           {siblings(`a="x"`, `a=~"x|y"`), nil},
		"it excludes itself":            {siblings(`a="x",a="y"`), map[string]string{"routes[0]": `the matchers {a="x",a="y"} exclude each other`}},
		"no word is left":               {siblings(`a=~"x|y",a!~"y|x"`), map[string]string{"routes[0]": "exclude each other"}},
		"an expression and not it":      {siblings(`a=~"x.*",a!~"x.*"`), map[string]string{"routes[0]": "exclude each other"}},
		"not anything":                  {siblings(`a!~".*"`), map[string]string{"routes[0]": "no alert gets here (but for labels with a line break): the matchers {a!~\".*\"} exclude each other"}},
		"it excludes its parent":        {below(`team="a"`, siblings(`team="b"`)), map[string]string{"routes[0].routes[0]": `{team="b"} exclude those of the routes above it, {team="a"}`}},
		"the parent's expression":       {below(`team=~"a.*"`, siblings(`team="b"`, `team="ab"`)), map[string]string{"routes[0].routes[0]": "exclude those"}},
		"the parent says it all":        {below(`team="a"`, siblings(`team="a"`, `x="1"`)), map[string]string{"routes[0].routes[1]": "routes[0].routes[0]"}},
		"a UTF-8 name":                  {siblings(`"été"="oui"`, `"été"=~"oui"`), map[string]string{"routes[1]": "été"}},
		"taken beside the parent": {config.Route{Receiver: "ops", Routes: []config.Route{
			{Matchers: []string{`a="1"`}}, {Matchers: []string{`b="1"`}, Routes: []config.Route{{Matchers: []string{`a="1"`}}, {Matchers: []string{`a="2"`}}}},
		}}, map[string]string{"routes[1].routes[0]": "notifier.route.routes[0]"}},
		"only the highest is reported": {config.Route{Receiver: "ops", Routes: []config.Route{
			{}, {Matchers: []string{`b="1"`}, Routes: []config.Route{{Matchers: []string{`a="1"`}}}},
		}}, map[string]string{"routes[1]": "routes[0]"}},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			found := map[string]string{}
			for _, f := range route.Check(config.Notifier{Route: c.route}) {
				assert.False(t, f.Warning)
				found[strings.TrimPrefix(f.Key, "notifier.route.")] = f.Message
			}
			assert.Len(t, found, len(c.want), "%v", found)
			for key, want := range c.want {
				assert.Contains(t, found[key], want)
			}
		})
	}
}

func TestWhatNothingNamesIsAWarning(t *testing.T) {
	t.Parallel()
	n := config.Notifier{
		Receivers: []config.Receiver{{Name: "ops"}, {Name: "lost"}, {Name: "deep"}, {Name: "second", Fallback: "third"}, {Name: "third"}},
		Route: config.Route{Receiver: "ops", Routes: []config.Route{
			{Matchers: []string{"a=b"}, MuteTimeIntervals: []string{"nights"}, Routes: []config.Route{{Receiver: "deep", Matchers: []string{"c=d"}, ActiveTimeIntervals: []string{"days"}}}},
		}},
		TimeIntervals: []config.TimeInterval{{Name: "nights"}, {Name: "feasts"}, {Name: "days"}},
	}
	var got []string
	for _, f := range route.Check(n) {
		assert.True(t, f.Warning)
		got = append(got, f.Key+": "+f.Message)
	}
	assert.Equal(t, []string{
		`notifier.receivers[1].name: "lost" gets no alerts: no route names it, and it is nobody's fallback`,
		`notifier.receivers[3].name: "second" gets no alerts: no route names it, and it is nobody's fallback`,
		`notifier.time_intervals[1].name: "feasts" is used by no route`,
	}, got)
}

// everyLabels are all sets of labels with these values.
func everyLabels(names, values []string, each func(map[string]string)) {
	var next func(int, map[string]string)
	next = func(i int, all map[string]string) {
		if i == len(names) {
			each(all)
			return
		}
		for _, v := range values {
			all[names[i]] = v
			next(i+1, all)
		}
	}
	next(0, map[string]string{})
}

// reached are the routes that some of the labels get to.
func reached(t *testing.T, r config.Route, names, values []string) map[string]bool {
	t.Helper()
	tree := compiled(t, r)
	all := map[string]bool{}
	everyLabels(names, values, func(lbls map[string]string) {
		for _, s := range tree.Explain(lbls) {
			if s.Matched {
				all[s.Key] = true
			}
		}
	})
	return all
}

// No route is ever called unreachable that some labels get to.
func TestWhatIsCalledUnreachableIsNeverReached(t *testing.T) {
	t.Parallel()
	r := newRandom(t)
	r.names = r.names[1:3]
	values := append([]string{"d", "dbb", "DB", "cb", "x", "something else"}, r.values...)
	found, lines := 0, 0
	for range 150 {
		top := r.tree()
		var there [2]map[string]bool
		there[0] = reached(t, top, r.names, values)
		there[1] = reached(t, top, r.names, append([]string{"line\nbreak", "d\n", "\n"}, values...))
		for _, f := range route.Check(config.Notifier{Route: top}) {
			require.NotContains(t, there[0], f.Key, "%s\n%s", f.Message, shown(top, ""))
			if strings.Contains(f.Message, "(but for labels with a line break)") {
				lines++
			} else {
				require.NotContains(t, there[1], f.Key, "%s\n%s", f.Message, shown(top, ""))
			}
			found++
		}
	}
	assert.Positive(t, lines)
	assert.Greater(t, found, lines)
	t.Logf("%d unreachable routes, %d of them but for line breaks", found, lines)
}

// Of routes that name values, or list them in regular expressions, every unreachable one is found.
func TestEveryUnreachableRouteIsFoundWhenValuesAreListed(t *testing.T) {
	t.Parallel()
	r := newRandom(t).words()
	for range 150 {
		top := r.tree()
		there := reached(t, top, r.names, []string{"", "x", "y", "z", "something else"})
		found := map[string]bool{}
		for _, f := range route.Check(config.Notifier{Route: top}) {
			found[f.Key] = true
		}
		var walk func(config.Route, string)
		walk = func(c config.Route, key string) {
			require.Equal(t, there[key], !found[key], "%s\n%s", key, shown(top, ""))
			for i, child := range c.Routes {
				if !found[key] {
					walk(child, fmt.Sprintf("%s.routes[%d]", key, i))
				}
			}
		}
		walk(top, "notifier.route")
	}
}

// A thousand routes are no trouble for a service that checks them at each reload.
func TestManyRoutesAreCheckedQuickly(t *testing.T) {
	t.Parallel()
	top := config.Route{Receiver: "ops"}
	for i := range 1000 {
		top.Routes = append(top.Routes, config.Route{Matchers: []string{fmt.Sprintf(`team="t%d"`, i), `severity=~"critical|page|warning"`, fmt.Sprintf(`env!~"e%d|dev"`, i%7)}})
	}
	top.Routes = append(top.Routes, config.Route{Matchers: []string{`severity="page"`, `team="t7"`, `env="prod"`}})
	began := time.Now()
	found := route.Check(config.Notifier{Route: top})
	require.Len(t, found, 1)
	assert.Equal(t, "notifier.route.routes[1000]", found[0].Key)
	assert.Less(t, time.Since(began), 20*time.Second)
	t.Log(time.Since(began))
}

// shown is a tree for a message.
func shown(r config.Route, indent string) string {
	text := fmt.Sprintf("%s%v continue=%t\n", indent, r.Matchers, r.Continue)
	for _, c := range r.Routes {
		text += shown(c, indent+"  ")
	}
	return text
}
