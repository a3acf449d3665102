// Package route decides who is told of an alert, as Alertmanager's routing tree does: the first child that matches takes the
// alert, further ones only after a child with continue, and a route itself when none of its children does.
//
// Source of the rules: dispatch.Route of Alertmanager 0.34. A test compares this package with Alertmanager's own amtool.
package route

import (
	"fmt"
	"maps"
	"strings"
	"time"

	"github.com/prometheus/alertmanager/pkg/labels"

	"github.com/lifeboat-fleet/lifeboat/fleet/config"
)

// Tree is a compiled routing tree with its time intervals. It is immutable and safe for concurrent use.
type Tree struct {
	root      *node
	intervals map[string]config.TimeInterval
}

type node struct {
	// key is the path in the configuration: notifier.route.routes[1].
	key string
	// name is the path of matchers from the top, for the record.
	name     string
	receiver string
	matchers labels.Matchers
	goOn     bool
	repeat   time.Duration
	mentions map[string][]string
	// mute and active are the route's own: they are not inherited.
	mute, active []string
	children     []*node
}

// Hit is a route that takes an alert. Its maps and slices are the tree's and must not be changed.
type Hit struct {
	Receiver string
	// Route names it by its matchers: `{team="db"}/{severity="critical"}`; the top route is "{}". Key is its path in the
	// configuration: notifier.route.routes[1].
	Route, Key string
	// Mentions are who is mentioned, by severity; see MentionsFor.
	Mentions map[string][]string
	// Repeat is how long an alert that has been told and only fires on is not told again.
	Repeat time.Duration
	// Mute and Active are the names of the time intervals in which the route does not deliver, and of those in which it does,
	// if there are any. See Tree.Muted.
	Mute, Active []string
}

// MentionsFor is who is mentioned when an alert of a severity begins to fire. The key "*" is for every severity that has none
// of its own; one with an empty list mentions nobody.
func (h Hit) MentionsFor(severity string) []string {
	if who, ok := h.Mentions[severity]; ok {
		return who
	}
	return h.Mentions["*"]
}

// Compile builds the tree of a notifier. It fails only on a matcher that the configuration's own check refuses.
func Compile(n config.Notifier) (*Tree, error) {
	root, err := compile(n.Route, "notifier.route", &node{})
	if err != nil {
		return nil, err
	}
	t := &Tree{root: root, intervals: make(map[string]config.TimeInterval, len(n.TimeIntervals))}
	for _, i := range n.TimeIntervals {
		t.intervals[i.Name] = i
	}
	return t, nil
}

func compile(r config.Route, key string, parent *node) (*node, error) {
	n := &node{
		key: key, goOn: r.Continue, mute: r.MuteTimeIntervals, active: r.ActiveTimeIntervals,
		receiver: parent.receiver, repeat: parent.repeat, mentions: parent.mentions,
	}
	if r.Receiver != "" {
		n.receiver = r.Receiver
	}
	if r.RepeatInterval != 0 {
		n.repeat = r.RepeatInterval
	}
	if len(r.Mentions) > 0 {
		n.mentions = maps.Clone(r.Mentions)
	}
	for i, s := range r.Matchers {
		ms, err := config.ParseMatchers(s)
		if err != nil {
			return nil, fmt.Errorf("parsing %s.matchers[%d] %q: %w", key, i, s, err)
		}
		n.matchers = append(n.matchers, ms...)
	}
	n.name = n.own()
	if parent.name != "" && parent.name != "{}" {
		n.name = parent.name + "/" + n.name
	}
	for i, c := range r.Routes {
		child, err := compile(c, fmt.Sprintf("%s.routes[%d]", key, i), n)
		if err != nil {
			return nil, err
		}
		n.children = append(n.children, child)
	}
	return n, nil
}

// own are the route's own matchers, in the order of the configuration.
func (n *node) own() string {
	texts := make([]string, 0, len(n.matchers))
	for _, m := range n.matchers {
		texts = append(texts, m.String())
	}
	return "{" + strings.Join(texts, ",") + "}"
}

func (n *node) hit() Hit {
	return Hit{
		Receiver: n.receiver, Route: n.name, Key: n.key, Mentions: n.mentions, Repeat: n.repeat, Mute: n.mute, Active: n.active,
	}
}

// Match returns all routes that take an alert with these labels, in order. A receiver stands in it once for each route that
// names it: which of them counts depends on the time, and Pick says which. It is empty only for a tree without any receiver.
func (t *Tree) Match(lbls map[string]string) []Hit {
	var hits []Hit
	for _, n := range t.root.match(lbls) {
		if n.receiver != "" {
			hits = append(hits, n.hit())
		}
	}
	return hits
}

func (n *node) match(lbls map[string]string) []*node {
	for _, m := range n.matchers {
		// A label that is absent is the empty string, as in Alertmanager.
		if !m.Matches(lbls[m.Name]) {
			return nil
		}
	}
	var taken []*node
	for _, c := range n.children {
		deeper := c.match(lbls)
		taken = append(taken, deeper...)
		if len(deeper) > 0 && !c.goOn {
			break
		}
	}
	if len(taken) == 0 {
		return []*node{n}
	}
	return taken
}
