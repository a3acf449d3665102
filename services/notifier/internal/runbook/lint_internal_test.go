package runbook

import (
	"errors"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/lifeboat-fleet/lifeboat/fleet/config"
)

func parse(t *testing.T, src string) []Rule {
	t.Helper()
	rules, err := ParseRules("r.yml", []byte(src))
	require.NoError(t, err)
	return rules
}

func TestParseRules(t *testing.T) {
	t.Parallel()
	const src = `# a rule file as people write it
groups:
  - name: node
    interval: 30s
    labels: {team: infra, severity: info}
    rules:
      - record: job:up:sum
        expr: sum by (job) (up)
      - expr: |
          node_filesystem_avail_bytes
            / node_filesystem_size_bytes < 0.1
        for: 5m
        keep_firing_for: 5m
        alert: DiskFull
        labels:
          severity: critical
        annotations: &common
          runbook_url: 'https://rb.example.com/{{ $labels.job }}'
          summary: >-
            the disk
            is full
      - alert: "CPUHigh"
        expr: 1
        labels: {severity: 2, empty: }
        annotations: *common
  - name: nothing
    rules:
  - name: other
    rules:
      - {alert: Flow, expr: up, annotations: {<<: *common, summary: own}}
`
	assert.Equal(t, []Rule{
		{
			File: "r.yml", Line: 14, Alert: "DiskFull", Labels: map[string]string{"team": "infra", "severity": "critical"},
			Annotations: map[string]string{"runbook_url": "https://rb.example.com/{{ $labels.job }}", "summary": "the disk is full"},
		},
		{
			File: "r.yml", Line: 22, Alert: "CPUHigh", Labels: map[string]string{"team": "infra", "severity": "2", "empty": ""},
			Annotations: map[string]string{"runbook_url": "https://rb.example.com/{{ $labels.job }}", "summary": "the disk is full"},
		},
		{
			File: "r.yml", Line: 30, Alert: "Flow", Labels: map[string]string{},
			Annotations: map[string]string{"runbook_url": "https://rb.example.com/{{ $labels.job }}", "summary": "own"},
		},
	}, func() []Rule {
		rules := parse(t, src)
		rules[2].Labels = map[string]string{} // nothing and empty are the same
		return rules
	}())

	crlf := parse(t, strings.ReplaceAll(src, "\n", "\r\n"))
	assert.Len(t, crlf, 3)
	assert.Equal(t, 22, crlf[1].Line)

	manifest := "apiVersion: v1\nkind: ConfigMap\n---\napiVersion: monitoring.coreos.com/v1\nkind: PrometheusRule\nmetadata: {name: x}\n" +
		"spec:\n  groups:\n    - name: a\n      rules:\n        - alert: A\n          expr: up\n"
	rules := parse(t, manifest)
	require.Len(t, rules, 1)
	assert.Equal(t, 11, rules[0].Line)
	assert.Empty(t, parse(t, "groups: []\n# nothing yet\n")) // valid for Prometheus
}

func TestParseRulesThatAreWrong(t *testing.T) {
	t.Parallel()
	for _, c := range [][2]string{
		{"", "r.yml:1:1: it has no groups of rules"},
		{"receivers: []\n", "r.yml:1:1: it has no groups of rules"},
		{"- a\n- b\n", "r.yml:1:1: it has no groups of rules"},
		{"groups:\n  x: y\n", "r.yml:2:4: groups is not a list"},
		{"groups:\n  - x\n", "r.yml:2:5: a group is a mapping"},
		{"groups:\n  - rules: x\n", "r.yml:2:12: rules is not a list"},
		{"groups:\n  - rules:\n    - x\n", "r.yml:3:7: a rule is a mapping"},
		{"groups:\n  - rules:\n    - expr: up\n", "r.yml:3:11: a rule needs alert or record"},
		{"groups:\n  - rules:\n    - alert: A\n", "r.yml:3:12: the rule A has no expr"},
		{"groups:\n  - rules:\n    - alert: A\n      expr:", "r.yml:3:12: the rule A has no expr"},
		{"groups:\n  - rules:\n    - alert: A\n      record: b\n      expr: up\n", "r.yml:3:12: a rule has either alert or record"},
		{"groups:\n  - rules:\n    - alert: [A]\n      expr: up\n", "r.yml:3:12: a rule has either alert or record"},
		{"groups:\n  - rules:\n    - alert: A\n      expr: up\n      labels: x\n", "r.yml:5:15: labels is not a mapping"},
		{"groups:\n  - rules:\n    - alert: A\n      expr: up\n      annotations: {a: [b]}\n", "r.yml:5:24: annotations.a is not a string"},
		{"groups:\n  - rules:\n    - alert: A\n      alert: B\n      expr: up\n", "r.yml:4:7: mapping key \"alert\" already defined"},
		{"groups:\n  - name: \"x\n", "r.yml:2:11: "},
		{"groups:\n\t- name: x\n", "r.yml:2:1: "},
		{"groups:\n  - rules: &a\n    - *a\n", "r.yml:3:7: a rule is a mapping"},
		{"groups:\n  - rules:\n    - *nobody\n", "r.yml:3:7: a rule is a mapping"},
	} {
		src, want := c[0], c[1]
		_, err := ParseRules("r.yml", []byte(src))
		if assert.Error(t, err, src) {
			assert.True(t, strings.HasPrefix(err.Error(), want), "%q: %s", src, err)
		}
	}
}

// Lines of aliases can stand for any number of rules and entries.
func TestParseRulesIsBounded(t *testing.T) {
	t.Parallel()
	from := time.Now()
	bomb := "groups:\n  - rules: &r\n" + strings.Repeat("    - {alert: A, expr: up}\n", 2000) + strings.Repeat("  - rules: *r\n", 2000)
	_, err := ParseRules("r.yml", []byte(bomb))
	require.ErrorContains(t, err, "more than 100000 rules")
	merge := "a0: &a0 {k: v}\n"
	for i := range 9 {
		prev, next := string(rune('0'+i)), string(rune('1'+i))
		merge += "a" + next + ": &a" + next + "\n  <<: [" + strings.TrimSuffix(strings.Repeat("*a"+prev+", ", 20), ", ") + "]\n"
	}
	_, err = ParseRules("r.yml", []byte(merge+"groups:\n  - rules:\n    - alert: A\n      expr: up\n      labels: *a9\n"))
	require.NoError(t, err)
	assert.Less(t, time.Since(from), 30*time.Second)
}

func rule(alert, severity, url string) Rule {
	r := Rule{File: "r.yml", Line: 1, Alert: alert, Labels: map[string]string{}, Annotations: map[string]string{}}
	if severity != "" {
		r.Labels["severity"] = severity
	}
	if url != "" {
		r.Annotations[Annotation] = url
	}
	return r
}

func lint(t *testing.T, cfg config.Runbooks, rules ...Rule) *Report {
	t.Helper()
	for i := range rules {
		rules[i].Line = i + 1
	}
	report, err := Lint(t.Context(), LintOptions{Config: cfg, Now: time.Now}, rules)
	require.NoError(t, err)
	return report
}

// brief is a finding as "line level code".
func brief(r *Report) []string {
	out := []string{}
	for _, f := range r.Findings {
		out = append(out, f.Level+" "+f.Code+" "+f.Alert)
	}
	return out
}

func TestLintGrades(t *testing.T) {
	t.Parallel()
	rules := func() []Rule {
		return []Rule{
			rule("A", "critical", ""), rule("B", "page", ""), rule("C", "warning", ""), rule("D", "", ""), rule("E", "{{ $labels.s }}", ""),
			rule("F", "critical", "https://rb.example.com/f"),
		}
	}
	usual := lint(t, config.Runbooks{}, rules()...)
	assert.Equal(t, []string{
		"error no-runbook A", "error no-runbook B", "warning no-runbook C", "warning no-runbook D", "warning no-runbook E",
	}, brief(usual))
	assert.Equal(t, []Team{{Alerts: 6, WithRunbook: 1, Errors: 2, Warnings: 3}}, usual.Teams)
	require.EqualError(t, usual.Failed(false), "2 errors, 3 warnings")

	policy := map[string]string{"critical": "warning", "*": "ignore", "warning": "error"}
	strict := lint(t, config.Runbooks{Policy: policy}, rules()...)
	assert.Equal(t, []string{"warning no-runbook A", "error no-runbook C"}, brief(strict))
	assert.Equal(t, []Team{{Alerts: 6, WithRunbook: 1, Ignored: 3, Errors: 1, Warnings: 1}}, strict.Teams)

	warned := lint(t, config.Runbooks{}, rule("A", "", ""))
	require.NoError(t, warned.Failed(false))
	require.EqualError(t, warned.Failed(true), "0 errors, 1 warning")
	require.NoError(t, lint(t, config.Runbooks{BaseURL: "https://rb.example.com"}, rules()...).Failed(true), "a rule makes a page for each")
	require.EqualError(t, lint(t, config.Runbooks{}, rule("A", "page", "")).Failed(false), "1 error")
}

func TestLintAnnotations(t *testing.T) {
	t.Parallel()
	for url, want := range map[string]string{
		"https://rb/x": "", "http://rb/x#y": "", "https://rb/{{ $labels.job }}": "", "{{ $labels.rb }}": "", "{{ template \"rb\" . }}/x": "",
		"https://rb/{{ $labels.job": "a template that is not closed", "rb/x": "is not an http or https address", "javascript:alert(1)": "is not an http",
		"{{`x`": "not closed", "ftp://rb/{{ $labels.x }}": "is not an http", "https://me:hunter2@rb/x": "without a user and password", "TODO": "is not",
		"  ": "add the annotation",
	} {
		report := lint(t, config.Runbooks{}, rule("A", "critical", url))
		if want == "" {
			assert.Empty(t, report.Findings, url)
			continue
		}
		if assert.Len(t, report.Findings, 1, url) {
			assert.Equal(t, FindingNoRunbook, report.Findings[0].Code)
			assert.Contains(t, report.Findings[0].Message, want, url)
			assert.NotContains(t, report.Findings[0].Message, "hunter2")
		}
	}
	// One that is not used although there is a page by the rule.
	report := lint(t, config.Runbooks{BaseURL: "https://rb"}, rule("A", "critical", "TODO"))
	assert.Equal(t, []string{"warning bad-runbook-url A"}, brief(report))
	assert.Equal(t, 1, report.Teams[0].WithRunbook)
	other := rule("A", "critical", "")
	other.Annotations["runbook"] = "https://rb/x"
	assert.Contains(t, lint(t, config.Runbooks{}, other).Findings[0].Message, "its annotation runbook must be named runbook_url")
}

func TestLintPages(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	write(t, filepath.Join(dir, "disk-full.md"), diskPage)
	write(t, filepath.Join(dir, "silent.md"), "# Silent\n")
	write(t, filepath.Join(dir, "empty.md"), "## Mitigation\n\n## Next\n")
	write(t, filepath.Join(dir, "k8s", "pods.md"), diskPage)
	write(t, filepath.Join(dir, "unused.md"), diskPage)
	write(t, filepath.Join(dir, "README.md"), "x")
	write(t, filepath.Join(dir, ".git", "x.md"), "x")
	cfg := config.Runbooks{BaseURL: "https://rb.example.com/ops", PagesDir: dir, TeamLabel: "squad"}
	mine := rule("Missing", "critical", "")
	mine.Labels["squad"] = "db"
	report, err := Lint(t.Context(), LintOptions{Config: cfg, Unused: true, Now: time.Now}, []Rule{
		rule("DiskFull", "critical", ""), rule("Silent", "", ""), rule("Silent", "", ""), rule("Empty", "", ""), mine,
		rule("Pods", "", "https://rb.example.com/ops/k8s/pods"), rule("Gone", "", "https://rb.example.com/ops/gone.md"),
		rule("Far", "", "https://wiki.example.com/x"), rule("T", "", "https://rb.example.com/ops/{{ $labels.x }}"),
	})
	require.NoError(t, err)
	assert.ElementsMatch(t, []string{
		"warning no-first-steps Silent", "warning no-first-steps Empty", "error no-runbook Missing", "warning missing-page Gone", "warning unused-page ",
	}, brief(report))
	for _, f := range report.Findings {
		switch f.Code {
		case FindingNoRunbook:
			assert.Equal(t, "no runbook: write "+filepath.Join(dir, "missing.md")+", or add the annotation runbook_url", f.Message)
			assert.Equal(t, "db", f.Team)
		case FindingUnusedPage:
			assert.Equal(t, filepath.Join(dir, "unused.md"), f.File)
		case FindingMissingPage:
			assert.Contains(t, f.Message, filepath.Join(dir, "gone.md"))
		case FindingNoFirstSteps:
			assert.Equal(t, filepath.Join(dir, strings.ToLower(f.Alert)+".md"), f.File)
		}
	}
	assert.Equal(t, []Team{{Team: "", Alerts: 8, WithRunbook: 8, Warnings: 3}, {Team: "db", Alerts: 1, Errors: 1}}, report.Teams)
	_, err = Lint(t.Context(), LintOptions{Config: config.Runbooks{PagesDir: filepath.Join(dir, "none")}}, nil)
	require.ErrorIs(t, err, os.ErrNotExist)
}

func TestLintSameNameOtherRunbook(t *testing.T) {
	t.Parallel()
	report := lint(t, config.Runbooks{},
		rule("A", "", "https://rb/a"), rule("A", "", "https://rb/a"), rule("A", "", "https://rb/b"), rule("B", "", "https://rb/b"))
	assert.Equal(t, []string{"warning two-runbooks A"}, brief(report))
	assert.Equal(t, 3, report.Findings[0].Line)
	assert.Contains(t, report.Findings[0].Message, "r.yml:1")
	report = lint(t, config.Runbooks{BaseURL: "https://rb"}, rule("A", "", "https://rb/a"), rule("A", "", ""), rule("A", "", "https://rb/x"))
	assert.Equal(t, []string{"warning two-runbooks A"}, brief(report), "the rule's page and the same page named are the same")
}

func TestLintAsksForLinks(t *testing.T) {
	t.Parallel()
	s := newSite(t, func(w http.ResponseWriter, r *http.Request) {
		switch r.URL.Path {
		case "/gone":
			w.WriteHeader(http.StatusNotFound)
		case "/broken":
			w.WriteHeader(http.StatusBadGateway)
		}
	})
	closed := httptest.NewServer(http.NotFoundHandler())
	closed.Close()
	rules := []Rule{
		rule("Good", "critical", s.URL+"/good"), rule("Good2", "critical", s.URL+"/good"), rule("Gone", "critical", s.URL+"/gone"),
		rule("Gone2", "critical", s.URL+"/gone"), rule("GoneWarning", "warning", s.URL+"/gone?x"), rule("Broken", "critical", s.URL+"/broken"),
		rule("Refused", "critical", closed.URL), rule("Template", "critical", s.URL+"/{{ $labels.x }}"),
	}
	assert.Empty(t, lint(t, config.Runbooks{AllowPrivate: true}, rules...).Findings)
	assert.Zero(t, s.asked.Load())
	private := lint(t, config.Runbooks{CheckLinks: true}, rules...)
	assert.Zero(t, s.asked.Load())
	assert.Zero(t, private.Errors)
	assert.Equal(t, FindingNotAsked, private.Findings[0].Code)
	report := lint(t, config.Runbooks{CheckLinks: true, AllowPrivate: true}, rules...)
	assert.Equal(t, []string{
		"error dead-link Gone", "warning dead-link GoneWarning", "warning dead-link Broken", "warning dead-link Refused",
	}, brief(report))
	assert.Equal(t, "its link is dead (404): "+s.URL+"/gone; 1 rule more with this link", report.Findings[0].Message)
	assert.Equal(t, int64(4), s.asked.Load(), "each link once")
}

func TestRuleFiles(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	for _, name := range []string{"a.yml", "b.yaml", "c.txt", "sub/d.yml", ".git/e.yml", ".hidden.yml"} {
		write(t, filepath.Join(dir, name), "groups: []\n")
	}
	at := func(names ...string) (all []string) {
		for _, n := range names {
			all = append(all, filepath.Join(dir, n))
		}
		return all
	}
	files, named, err := RuleFiles([]string{dir})
	require.NoError(t, err)
	assert.Equal(t, at("a.yml", "b.yaml", "sub/d.yml"), files)
	assert.Empty(t, named)
	files, named, err = RuleFiles(at("*.yml", "a.yml", "c.txt"))
	require.NoError(t, err)
	assert.Equal(t, at(".hidden.yml", "a.yml", "c.txt"), files)
	assert.Len(t, named, 3)
	files, _, err = RuleFiles(at("none.yml", "*.json", "a.yml"))
	require.ErrorContains(t, err, "none.yml: there is no such file")
	require.ErrorContains(t, err, "*.json: there is no such file")
	assert.Equal(t, at("a.yml"), files)
	require.NoError(t, os.Mkdir(filepath.Join(dir, "empty"), 0o755))
	_, _, err = RuleFiles(at("empty"))
	require.ErrorContains(t, err, "no .yml or .yaml file")
}

func FuzzRules(f *testing.F) {
	f.Add([]byte("groups:\n  - name: a\n    labels: {x: y}\n    rules:\n      - alert: A\n        expr: up\n        annotations: &a {runbook_url: \"https://x\"}\n      - {alert: B, expr: 1, annotations: {<<: *a}}\n"))
	f.Add([]byte("kind: PrometheusRule\nspec:\n  groups: [{rules: [{record: r, expr: up}]}]\n---\nx: |\n  y\n"))
	f.Add([]byte("a: &a [*a]\ngroups: *a\n"))
	f.Fuzz(func(t *testing.T, src []byte) {
		rules, err := ParseRules("r.yml", src)
		var at *config.Error
		if err != nil && !errors.As(err, &at) && !errors.Is(err, ErrNoRules) {
			t.Fatalf("an error without a place: %v", err)
		}
		if at != nil && (at.Line < 1 || at.Column < 0 || at.File == "") {
			t.Fatalf("nowhere: %+v", at)
		}
		lines := strings.Count(string(src), "\n") + 1
		for _, r := range rules {
			if r.Alert == "" || r.Line < 1 || r.Line > lines+strings.Count(string(src), "\r") {
				t.Fatalf("%+v of %d lines", r, lines)
			}
			_ = formProblem(r.Annotations[Annotation])
		}
	})
}
