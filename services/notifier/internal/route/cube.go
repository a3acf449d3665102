package route

import (
	"maps"
	"regexp/syntax"
	"slices"
	"strings"

	"github.com/prometheus/alertmanager/pkg/labels"
)

// universe is which values a label may have.
type universe int

const (
	allValues universe = iota
	// singleLines are those without a line break.
	singleLines
)

// mostCases bounds the work of splitting, mostWords how many values of a regular expression are listed.
const (
	mostCases = 256
	mostWords = 64
)

// A cube is a set of alerts: those whose labels each have a value of a set. Labels do not depend on each other.
type cube map[string]values

// values of one label: those listed, when they are known to be few, or all that the matchers let through.
type values struct {
	listed bool
	list   []string
	rules  labels.Matchers
}

// newCube is what satisfies all the matchers; ok is false when nothing does, as far as can be seen.
func newCube(u universe, ms labels.Matchers) (c cube, ok bool) {
	byLabel := map[string]labels.Matchers{}
	for _, m := range ms {
		byLabel[m.Name] = append(byLabel[m.Name], m)
	}
	c = cube{}
	for name, rules := range byLabel {
		v := newValues(u, rules)
		if v.empty(u) {
			return nil, false
		}
		c[name] = v
	}
	return c, true
}

func newValues(u universe, rules labels.Matchers) values {
	v := values{rules: rules}
	for _, m := range rules {
		list, ok := words(m)
		if !ok {
			continue
		}
		v.listed = true
		for _, s := range list {
			if v.has(s) && (u == allValues || !strings.Contains(s, "\n")) {
				v.list = append(v.list, s)
			}
		}
		break // any such list will do: it is filtered by all rules
	}
	return v
}

// has says whether a value satisfies all rules.
func (v values) has(s string) bool {
	return !slices.ContainsFunc(v.rules, func(m *labels.Matcher) bool { return !m.Matches(s) })
}

// empty says that no value is left; false when that is not known.
func (v values) empty(u universe) bool {
	if v.listed {
		return len(v.list) == 0
	}
	for _, m := range v.rules {
		if m.Type == labels.MatchNotRegexp && v.within(u, opposite(m)) {
			return true
		}
	}
	return false
}

// opposite of a negative matcher of a regular expression.
func opposite(m *labels.Matcher) *labels.Matcher {
	o, err := labels.NewMatcher(labels.MatchRegexp, m.Name, m.Value)
	if err != nil { // it was compiled before
		return m
	}
	return o
}

// within says that a matcher lets all the values through; false when that is not known.
func (v values) within(u universe, m *labels.Matcher) bool {
	if v.listed {
		return !slices.ContainsFunc(v.list, func(s string) bool { return !m.Matches(s) })
	}
	for _, r := range v.rules {
		if r.Type == m.Type && r.Value == m.Value {
			return true
		}
	}
	switch m.Type {
	case labels.MatchNotEqual:
		return !v.has(m.Value)
	case labels.MatchNotRegexp:
		list, few := words(opposite(m))
		return few && !slices.ContainsFunc(list, v.has)
	case labels.MatchRegexp:
		anything, something := universal(u, m.Value)
		return anything || something && !v.has("")
	}
	return false // infinitely many values are not one
}

// within says that every alert of the cube matches.
func (c cube) within(u universe, ms labels.Matchers) bool {
	for _, m := range ms {
		if !c[m.Name].within(u, m) {
			return false
		}
	}
	return true
}

// apart says that no alert of the cube matches; false when that is not known.
func (c cube) apart(ms labels.Matchers) bool {
	return slices.ContainsFunc(ms, func(m *labels.Matcher) bool {
		v := c[m.Name]
		if v.listed {
			return !slices.ContainsFunc(v.list, m.Matches)
		}
		return m.Type == labels.MatchEqual && !v.has(m.Value)
	})
}

// blockers are routes that together take every alert of the cube, if there are such.
func (c cube) blockers(u universe, past []level) (all []*node, blocked bool) {
	earlier := slices.DeleteFunc(slices.Concat(past...), func(n *node) bool { return c.apart(n.matchers) })
	if i := slices.IndexFunc(earlier, func(n *node) bool { return c.within(u, n.matchers) }); i >= 0 {
		return earlier[i : i+1], true
	}
	for _, part := range c.split(u, earlier) {
		i := slices.IndexFunc(earlier, func(n *node) bool { return part.within(u, n.matchers) })
		if i < 0 {
			return nil, false
		}
		if !slices.Contains(all, earlier[i]) {
			all = append(all, earlier[i])
		}
	}
	return all, len(all) > 0
}

// split parts a cube by the values that routes name: each of them alone, and the rest together. It is parted no further when there
// would be too many parts.
func (c cube) split(u universe, by []*node) []cube {
	parts := []cube{c}
	named := map[string][]string{}
	for _, n := range by {
		for _, m := range n.matchers {
			named[m.Name] = append(named[m.Name], literals(m)...)
		}
	}
	for _, name := range slices.Sorted(maps.Keys(named)) {
		slices.Sort(named[name])
		pieces := c[name].split(u, name, slices.Compact(named[name]))
		if len(parts)*len(pieces) > mostCases {
			continue
		}
		var next []cube
		for _, p := range parts {
			for _, v := range pieces {
				q := maps.Clone(p)
				q[name] = v
				next = append(next, q)
			}
		}
		parts = next
	}
	return parts
}

// split parts values: each listed or named one alone, and the rest.
func (v values) split(u universe, name string, named []string) []values {
	var parts []values
	if v.listed {
		for _, s := range v.list {
			parts = append(parts, values{listed: true, list: []string{s}})
		}
		return parts
	}
	rest := values{rules: slices.Clone(v.rules)}
	for _, s := range named {
		if v.has(s) {
			parts = append(parts, values{listed: true, list: []string{s}})
			rest.rules = append(rest.rules, &labels.Matcher{Type: labels.MatchNotEqual, Name: name, Value: s})
		}
	}
	if !rest.empty(u) {
		parts = append(parts, rest)
	}
	return parts
}

// literals are the values that a matcher names.
func literals(m *labels.Matcher) []string {
	switch m.Type {
	case labels.MatchEqual, labels.MatchNotEqual:
		return []string{m.Value}
	case labels.MatchNotRegexp:
		m = opposite(m)
	}
	list, _ := words(m)
	return list
}

// words are all values of a positive matcher, when they are few.
func words(m *labels.Matcher) ([]string, bool) {
	switch m.Type {
	case labels.MatchEqual:
		return []string{m.Value}, true
	case labels.MatchRegexp:
		if re, err := syntax.Parse(m.Value, syntax.Perl); err == nil {
			return expand(re)
		}
	}
	return nil, false
}

// expand lists the strings that an expression matches as a whole. It knows only what people write to list words.
func expand(re *syntax.Regexp) ([]string, bool) {
	switch re.Op {
	case syntax.OpEmptyMatch:
		return []string{""}, true
	case syntax.OpLiteral:
		return []string{string(re.Rune)}, re.Flags&syntax.FoldCase == 0
	case syntax.OpCharClass:
		return runes(re.Rune)
	case syntax.OpCapture:
		return expand(re.Sub[0])
	case syntax.OpQuest:
		list, ok := expand(re.Sub[0])
		return append(list, ""), ok
	case syntax.OpAlternate:
		var all []string
		for _, sub := range re.Sub {
			list, ok := expand(sub)
			if all = append(all, list...); !ok || len(all) > mostWords {
				return nil, false
			}
		}
		return all, true
	case syntax.OpConcat:
		all := []string{""}
		for _, sub := range re.Sub {
			list, ok := expand(sub)
			if !ok || len(all)*len(list) > mostWords {
				return nil, false
			}
			var next []string
			for _, a := range all {
				for _, b := range list {
					next = append(next, a+b)
				}
			}
			all = next
		}
		return all, true
	}
	return nil, false
}

// runes of a class, given as pairs of first and last.
func runes(pairs []rune) ([]string, bool) {
	var all []string
	for i := 0; i < len(pairs); i += 2 {
		if pairs[i+1]-pairs[i] >= mostWords || len(all) >= mostWords {
			return nil, false
		}
		for r := pairs[i]; r <= pairs[i+1]; r++ {
			all = append(all, string(r))
		}
	}
	return all, true
}

// universal says that an expression matches every value, or every one that is not empty.
func universal(u universe, expr string) (anything, something bool) {
	re, err := syntax.Parse(expr, syntax.Perl)
	if err != nil {
		return false, false
	}
	for re.Op == syntax.OpCapture {
		re = re.Sub[0]
	}
	if (re.Op != syntax.OpStar && re.Op != syntax.OpPlus) || len(re.Sub) != 1 {
		return false, false
	}
	dot := re.Sub[0].Op
	if dot == syntax.OpAnyChar || (dot == syntax.OpAnyCharNotNL && u == singleLines) {
		return re.Op == syntax.OpStar, true
	}
	return false, false
}
