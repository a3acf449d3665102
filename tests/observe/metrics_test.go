package observe

import (
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/prometheus/prometheus/model/labels"
	"github.com/prometheus/prometheus/promql/parser"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"go.yaml.in/yaml/v3"
)

const (
	metricsDoc   = "../../docs/metrics.md"
	runbooks     = "../../docs/runbooks"
	rulesDir     = "../../deploy/prometheus"
	dashboardDir = "../../deploy/grafana"
	notifierDir  = "../../services/notifier/internal"
)

// series is what there is to ask for: labels by metric.
type series map[string][]string

// always are the labels that Prometheus puts on every series.
var always = []string{"job", "instance"}

// stock are the series that are not ours.
func stock() series {
	return series{"up": {}, "ALERTS": {"alertname", "alertstate", "severity", "target", "receiver", "work"}, "process_start_time_seconds": {}}
}

var (
	row        = regexp.MustCompile("(?m)^\\| `([a-z_]+)` \\| ([a-z]+) \\| ([^|]*) \\|")
	rowLabel   = regexp.MustCompile("`([a-z_]+)`")
	metricName = regexp.MustCompile(`\b(?:[a-z_]+:)?lifeboat[_:][a-z0-9_:]+`)
)

// known is what docs/metrics.md has, whose own test compares it with the running services, and what the rules record.
func known(t *testing.T) series {
	t.Helper()
	all := stock()
	b, err := os.ReadFile(metricsDoc)
	require.NoError(t, err)
	for _, m := range row.FindAllStringSubmatch(string(b), -1) {
		var names []string
		for _, l := range rowLabel.FindAllStringSubmatch(m[3], -1) {
			names = append(names, l[1])
		}
		if m[2] == "histogram" {
			all[m[1]+"_bucket"], all[m[1]+"_sum"], all[m[1]+"_count"] = append(names, "le"), names, names
			continue
		}
		all[m[1]] = names
	}
	require.Greater(t, len(all), 50, "%s is not the table that it was", metricsDoc)
	for _, r := range allRules(t) {
		if r.Record != "" {
			level, _, _ := strings.Cut(r.Record, ":")
			all[r.Record] = nil
			if level != "lifeboat" {
				all[r.Record] = strings.Split(level, "_")
			}
		}
	}
	return all
}

// lacks says what an expression asks for that there is not.
func (s series) lacks(expr string) error {
	e, err := parser.ParseExpr(expr)
	if err != nil {
		return fmt.Errorf("%q: %w", expr, err)
	}
	have := slices.Clone(always)
	var wrong []string
	parser.Inspect(e, func(n parser.Node, _ []parser.Node) error {
		switch n := n.(type) {
		case *parser.VectorSelector:
			names, ok := s[n.Name]
			if !ok {
				wrong = append(wrong, fmt.Sprintf("there is no metric %q", n.Name))
			}
			have = append(have, names...)
			for _, m := range n.LabelMatchers {
				if m.Name != labels.MetricName && !slices.Contains(names, m.Name) && !slices.Contains(always, m.Name) {
					wrong = append(wrong, fmt.Sprintf("%s has no label %q", n.Name, m.Name))
				}
			}
		case *parser.Call:
			if n.Func.Name == "label_replace" {
				if dst, ok := n.Args[1].(*parser.StringLiteral); ok {
					have = append(have, dst.Val)
				}
			}
		}
		return nil
	})
	parser.Inspect(e, func(n parser.Node, _ []parser.Node) error {
		var used []string
		switch n := n.(type) {
		case *parser.AggregateExpr:
			used = n.Grouping
		case *parser.BinaryExpr:
			if n.VectorMatching != nil {
				used = n.VectorMatching.MatchingLabels
			}
		}
		for _, l := range used {
			if !slices.Contains(have, l) {
				wrong = append(wrong, fmt.Sprintf("nothing in it has the label %q", l))
			}
		}
		return nil
	})
	if len(wrong) > 0 {
		return fmt.Errorf("%s: %s", expr, strings.Join(wrong, "; "))
	}
	return nil
}

func TestWhatDoesNotExistIsFound(t *testing.T) {
	t.Parallel()
	s := series{"lifeboat_x": {"target"}, "lifeboat_h_bucket": {"le"}}
	for expr, want := range map[string]string{
		"lifeboat_y":                             "no metric",
		`lifeboat_x{zone="a"}`:                   `no label "zone"`,
		"max by (zone) (lifeboat_x)":             `label "zone"`,
		"lifeboat_x and on (zone) lifeboat_x":    `label "zone"`,
		"lifeboat_x >":                           "parse error",
		"rate(lifeboat_x)":                       "expected type range vector",
		"max by (le, target) (lifeboat_x)":       `label "le"`,
		"absent(lifeboat_x) or lifeboat_x_total": "no metric",
	} {
		require.ErrorContains(t, s.lacks(expr), want, expr)
	}
	for _, expr := range []string{
		`max by (target, job) (lifeboat_x{instance="a"})`, "histogram_quantile(0.9, sum by (le) (rate(lifeboat_h_bucket[5m])))",
		`max by (work) (label_replace(lifeboat_x, "work", "$1", "target", "(.+)"))`,
	} {
		require.NoError(t, s.lacks(expr))
	}
}

// Queries in runbooks are run by people who have no time to mend them.
func TestQueriesAndMetricsInRunbooksExist(t *testing.T) {
	t.Parallel()
	all := known(t)
	files, err := filepath.Glob(filepath.Join(runbooks, "*.md"))
	require.NoError(t, err)
	queries := 0
	for _, f := range files {
		b, err := os.ReadFile(f)
		require.NoError(t, err)
		for _, block := range regexp.MustCompile("(?ms)^ *```promql\n(.*?)^ *```$").FindAllStringSubmatch(string(b), -1) {
			for q := range strings.Lines(block[1]) {
				queries++
				require.NoError(t, all.lacks(strings.TrimSpace(q)), f)
			}
		}
		for _, name := range metricName.FindAllString(string(b), -1) {
			_, ok := all[name]
			_, histogram := all[name+"_bucket"]
			assert.True(t, ok || histogram, "%s: there is no metric %s", f, name)
		}
	}
	assert.Positive(t, queries)
}

type rule struct {
	Record, Alert, Expr, For string
	KeepFiringFor            string            `yaml:"keep_firing_for"`
	Labels, Annotations      map[string]string `yaml:",omitempty"`
}

type group struct {
	Name  string
	Rules []rule
}

// ruleGroups are all of them; those that record stand before those that use it.
func ruleGroups(t *testing.T) []group {
	t.Helper()
	var all []group
	for _, f := range []string{"lifeboat.recording.yml", "lifeboat.rules.yml"} {
		b, err := os.ReadFile(filepath.Join(rulesDir, f))
		require.NoError(t, err)
		var file struct{ Groups []group }
		require.NoError(t, yaml.Unmarshal(b, &file), f)
		all = append(all, file.Groups...)
	}
	require.NotEmpty(t, all)
	return all
}

func groups(t *testing.T) []string {
	t.Helper()
	var names []string
	for _, g := range ruleGroups(t) {
		names = append(names, g.Name)
	}
	return names
}

func allRules(t *testing.T) []rule {
	t.Helper()
	var all []rule
	for _, g := range ruleGroups(t) {
		all = append(all, g.Rules...)
	}
	return all
}
