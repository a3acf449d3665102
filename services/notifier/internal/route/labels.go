package route

import (
	"fmt"
	"log/slog"
	"slices"
	"unicode/utf8"

	"github.com/prometheus/alertmanager/matcher/compat"
	"github.com/prometheus/alertmanager/pkg/labels"
)

// ParseLabels reads the labels of an alert as `amtool config routes test` does: each argument is key=value, the value in double
// quotes where it holds spaces or quotes, the key too where it holds what has a meaning in a matcher.
func ParseLabels(args []string) (map[string]string, error) {
	quiet := slog.New(slog.DiscardHandler)
	parse, strict := compat.FallbackMatcherParser(quiet), compat.UTF8MatcherParser(quiet)
	lbls := make(map[string]string, len(args))
	for _, arg := range args {
		m, err := parse(arg, "labels")
		switch {
		case !utf8.ValidString(arg):
			return nil, fmt.Errorf("%q is not UTF-8", arg)
		case err != nil:
			if _, why := strict(arg, "labels"); why != nil {
				err = why // it says where it stumbled
			}
			return nil, fmt.Errorf("%q is not a label such as severity=critical: %w", arg, err)
		case m.Type != labels.MatchEqual:
			return nil, fmt.Errorf("%q is a matcher; an alert has labels, such as severity=critical", arg)
		}
		if m.Name == "" {
			return nil, fmt.Errorf("%q has no name before the equals sign", arg)
		}
		if old, dup := lbls[m.Name]; dup && old != m.Value {
			return nil, fmt.Errorf("label %s is given twice, as %q and %q", m.Name, old, m.Value)
		}
		lbls[m.Name] = m.Value
	}
	return lbls, nil
}

// Labels are those that the matchers of the tree name with a value, each as ParseLabels reads it, in order: what to try.
func (t *Tree) Labels() []string {
	var all []string
	var walk func(*node)
	walk = func(n *node) {
		for _, m := range n.matchers {
			for _, value := range literals(m) {
				all = append(all, (&labels.Matcher{Type: labels.MatchEqual, Name: m.Name, Value: value}).String())
			}
		}
		for _, c := range n.children {
			walk(c)
		}
	}
	walk(t.root)
	slices.Sort(all)
	return slices.Compact(all)
}
