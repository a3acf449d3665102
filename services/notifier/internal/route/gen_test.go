package route_test

import (
	"fmt"
	"math/rand/v2"
	"strings"
	"testing"

	"github.com/prometheus/alertmanager/pkg/labels"

	"github.com/lifeboat-fleet/lifeboat/fleet/config"
)

// random makes trees and labels of a small vocabulary, so that they meet.
type random struct {
	*rand.Rand
	names, values, expressions []string
	receivers                  int
}

func newRandom(t *testing.T) *random {
	t.Helper()
	seed := rand.Uint64()
	t.Logf("seed %d", seed)
	return &random{
		Rand:  rand.New(rand.NewPCG(seed, 1)),
		names: []string{"team", "severity", "été", "a b"}, values: []string{"", "db", "net", "a\"b", `c\d`, "平台"},
		expressions: []string{"db|net", "d.*", ".*", ".+", "", "(db)?", "[dn].+", "平台|", "(?i)DB", "[a-d]b", "x"},
	}
}

// words narrows it to values and expressions that list words.
func (r *random) words() *random {
	r.names, r.values, r.expressions = []string{"a", "b"}, []string{"", "x", "y"}, []string{"x|y", "x?", "[xy]", "x", "x|z"}
	return r
}

func (r *random) matcher() string {
	typ := labels.MatchType(r.IntN(4))
	values := r.values
	if typ == labels.MatchRegexp || typ == labels.MatchNotRegexp {
		values = r.expressions
	}
	return fmt.Sprintf("%q%s\"%s\"", pick(r, r.names), typ, strings.NewReplacer(`\`, `\\`, `"`, `\"`).Replace(pick(r, values)))
}

func pick(r *random, from []string) string { return from[r.IntN(len(from))] }

// route of a depth; receivers are numbered, so that the answer tells which route took an alert. Some inherit.
func (r *random) route(depth int) config.Route {
	c := config.Route{Continue: r.IntN(3) == 0}
	if r.IntN(5) > 0 {
		c.Receiver = fmt.Sprintf("r%d", r.receivers)
		r.receivers++
	}
	for range r.IntN(3) {
		c.Matchers = append(c.Matchers, r.matcher())
	}
	if depth > 0 {
		for range r.IntN(4) {
			c.Routes = append(c.Routes, r.route(depth-1))
		}
	}
	return c
}

func (r *random) tree() config.Route {
	r.receivers = 0
	top := r.route(3)
	top.Receiver, top.Matchers, top.Continue = "top", nil, false
	return top
}

func (r *random) labels() map[string]string {
	all := map[string]string{}
	for _, name := range r.names {
		if r.IntN(4) > 0 {
			all[name] = pick(r, r.values)
		}
	}
	return all
}
