package route

import (
	"github.com/prometheus/alertmanager/pkg/labels"
)

// Step is what became of one route while an alert went down the tree.
type Step struct {
	// Key is the route's path in the configuration, "notifier.route.routes[1]", and Depth how many routes are above it.
	Key   string
	Depth int
	// Matchers are the route's own, `{severity="critical"}`, and Receiver its own or the inherited one.
	Matchers string
	Receiver string
	Continue bool
	// Tested are its matchers against the alert; empty for a route that was not looked at.
	Tested []Tested
	// Matched says that all matchers did.
	Matched bool
	// Hit is set for a route that takes the alert: it matches, and none of its children does.
	Hit *Hit
	// Behind is the key of the route before this one that took the alert and has no continue: this one was not looked at.
	Behind string
}

// Tested is one matcher against an alert.
type Tested struct {
	Matcher string
	Label   string
	// Value is the label's; empty too when the alert lacks the label, which is the same for a matcher.
	Value   string
	Present bool
	Matched bool
}

// Explain is Match step by step, from the top down: every route that was looked at, and those beside them that were not because an
// earlier one had taken the alert. The hits in it are those of Match.
func (t *Tree) Explain(lbls map[string]string) []Step {
	steps, _ := t.root.explain(lbls, 0, nil)
	return steps
}

func (n *node) step(depth int) Step {
	return Step{Key: n.key, Depth: depth, Matchers: n.own(), Receiver: n.receiver, Continue: n.goOn}
}

func (n *node) explain(lbls map[string]string, depth int, steps []Step) (all []Step, matched bool) {
	s := n.step(depth)
	s.Tested, s.Matched = test(n.matchers, lbls)
	mine := len(steps)
	steps = append(steps, s)
	if !s.Matched {
		return steps, false
	}
	taken, behind := false, ""
	for _, c := range n.children {
		if behind != "" {
			skipped := c.step(depth + 1)
			skipped.Behind = behind
			steps = append(steps, skipped)
			continue
		}
		var took bool
		if steps, took = c.explain(lbls, depth+1, steps); took {
			taken = true
			if !c.goOn {
				behind = c.key
			}
		}
	}
	if !taken {
		hit := n.hit()
		steps[mine].Hit = &hit
	}
	return steps, true
}

func test(ms labels.Matchers, lbls map[string]string) (all []Tested, matched bool) {
	matched = true
	for _, m := range ms {
		value, present := lbls[m.Name]
		one := Tested{Matcher: m.String(), Label: m.Name, Value: value, Present: present, Matched: m.Matches(value)}
		matched = matched && one.Matched
		all = append(all, one)
	}
	return all, matched
}
