package route

import (
	"fmt"
	"slices"
	"strings"

	"github.com/prometheus/alertmanager/pkg/labels"

	"github.com/lifeboat-fleet/lifeboat/fleet/config"
)

// Check finds routes that no alert can reach, and as warnings receivers and time intervals that nothing names. The configuration
// has passed its own check. A route below one that cannot be reached is not reported once more.
//
// It is careful rather than complete: what it calls unreachable is, and two regular expressions are only compared where one of
// them has few values.
func Check(n config.Notifier) []config.Finding {
	t, err := Compile(n)
	if err != nil { // the configuration's own check has said so
		return nil
	}
	return append(t.root.check(nil, nil), unused(n)...)
}

// A level is what the way down to a route has to get past: the earlier routes beside it that have no continue.
type level []*node

// check looks at the routes below a node that can be reached: above are the matchers of the way down to it, and past what it
// has to get past.
func (n *node) check(above labels.Matchers, past []level) []config.Finding {
	above = slices.Concat(above, n.matchers)
	var found []config.Finding
	var before level
	for _, c := range n.children {
		here := append(slices.Clone(past), slices.Clone(before))
		if f := c.unreachable(above, here); f != nil {
			found = append(found, *f)
		} else {
			found = append(found, c.check(above, here)...)
		}
		if !c.goOn {
			before = append(before, c)
		}
	}
	return found
}

// unreachable says why no alert gets to a node; nil when one may.
func (n *node) unreachable(above labels.Matchers, past []level) *config.Finding {
	all := slices.Concat(above, n.matchers)
	for _, u := range []universe{allValues, singleLines} {
		why := n.why(u, above, all, past)
		if why == "" {
			continue
		}
		message := "no alert gets here"
		if u == singleLines {
			// In Go's regular expressions, and so in Alertmanager, a dot is everything but a line break. Nobody means that.
			message += " (but for labels with a line break)"
		}
		return &config.Finding{Key: n.key, Message: message + ": " + why}
	}
	return nil
}

func (n *node) why(u universe, above, all labels.Matchers, past []level) string {
	if _, ok := newCube(u, n.matchers); !ok {
		return fmt.Sprintf("the matchers %s exclude each other", n.own())
	}
	whole, ok := newCube(u, all)
	if !ok {
		return fmt.Sprintf("the matchers %s exclude those of the routes above it, %s", n.own(), above)
	}
	blockers, blocked := whole.blockers(u, past)
	if !blocked {
		return ""
	}
	keys := make([]string, 0, len(blockers))
	for _, b := range blockers {
		keys = append(keys, b.key+" "+b.own())
	}
	return fmt.Sprintf("before it %s take%s all that it matches; put it above, or give the earlier one continue: true",
		strings.Join(keys, " and "), map[bool]string{true: "s"}[len(keys) == 1])
}

// unused are warnings about what nothing names.
func unused(n config.Notifier) []config.Finding {
	receivers, intervals := map[string]bool{}, map[string]bool{}
	var walk func(config.Route)
	walk = func(r config.Route) {
		receivers[r.Receiver] = true
		for _, name := range slices.Concat(r.MuteTimeIntervals, r.ActiveTimeIntervals) {
			intervals[name] = true
		}
		for _, c := range r.Routes {
			walk(c)
		}
	}
	walk(n.Route)
	for _, r := range n.Receivers {
		receivers[r.Fallback] = true
	}
	var found []config.Finding
	for i, r := range n.Receivers {
		if !receivers[r.Name] {
			found = append(found, config.Finding{
				Key: fmt.Sprintf("notifier.receivers[%d].name", i), Warning: true,
				Message: fmt.Sprintf("%q gets no alerts: no route names it, and it is nobody's fallback", r.Name),
			})
		}
	}
	for i, t := range n.TimeIntervals {
		if !intervals[t.Name] {
			found = append(found, config.Finding{
				Key: fmt.Sprintf("notifier.time_intervals[%d].name", i), Warning: true,
				Message: fmt.Sprintf("%q is used by no route", t.Name),
			})
		}
	}
	return found
}
