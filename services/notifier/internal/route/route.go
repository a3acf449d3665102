// Package route decides who is told of an alert, as Alertmanager's routing tree does.
package route

import (
	"fmt"
	"slices"
	"strings"

	"github.com/prometheus/alertmanager/pkg/labels"

	"github.com/lifeboat-fleet/lifeboat/fleet/config"
)

// Tree is a compiled routing tree. It is immutable and safe for concurrent use.
type Tree struct{ root *node }

type node struct {
	receiver string
	matchers labels.Matchers
	goOn     bool
	// name is the path of matchers from the top, for the record.
	name     string
	children []*node
}

// Hit is a route that takes an alert.
type Hit struct {
	Receiver string
	// Route names it by its matchers: `{team="db"}/{severity="critical"}`; the top route is "{}".
	Route string
}

// Compile builds a tree from the configuration. It fails only on a matcher that the configuration's own check refuses.
func Compile(r config.Route) (*Tree, error) {
	root, err := compile(r, &node{})
	if err != nil {
		return nil, err
	}
	return &Tree{root: root}, nil
}

func compile(r config.Route, parent *node) (*node, error) {
	n := &node{receiver: r.Receiver, goOn: r.Continue}
	if n.receiver == "" {
		n.receiver = parent.receiver
	}
	var texts []string
	for _, s := range r.Matchers {
		ms, err := config.ParseMatchers(s)
		if err != nil {
			return nil, fmt.Errorf("parsing matcher %q: %w", s, err)
		}
		n.matchers = append(n.matchers, ms...)
		for _, m := range ms {
			texts = append(texts, m.String())
		}
	}
	n.name = "{" + strings.Join(texts, ",") + "}"
	if parent.name != "" && parent.name != "{}" {
		n.name = parent.name + "/" + n.name
	}
	for _, c := range r.Routes {
		child, err := compile(c, n)
		if err != nil {
			return nil, err
		}
		n.children = append(n.children, child)
	}
	return n, nil
}

// Match returns the routes that take an alert with these labels: the deepest matching child, further ones after a child
// with continue, and a node itself when none of its children takes it. A receiver stands in it once, with its first
// route. It is empty only for a tree without any receiver.
func (t *Tree) Match(lbls map[string]string) []Hit {
	var hits []Hit
	for _, n := range t.root.match(lbls) {
		same := func(h Hit) bool { return h.Receiver == n.receiver }
		if n.receiver != "" && !slices.ContainsFunc(hits, same) {
			hits = append(hits, Hit{Receiver: n.receiver, Route: n.name})
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
