package observe

import (
	"os"
	"os/exec"
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

	"github.com/lifeboat-fleet/lifeboat/fleet/fleettest/bintest"
)

// run runs a tool, and fails with what it says.
func run(t *testing.T, tool, howTo string, args ...string) {
	t.Helper()
	bin, err := bintest.Find(tool)
	require.NoError(t, err, howTo)
	out, err := exec.CommandContext(t.Context(), bin, args...).CombinedOutput()
	require.NoError(t, err, "%s %s\n%s", tool, strings.Join(args, " "), out)
}

func promtool(t *testing.T, args ...string) {
	t.Helper()
	run(t, "promtool", "tools/prometheus gets it: it unpacks Debian's package and starts nothing; or put one on the PATH", args...)
}

func glob(t *testing.T, pattern ...string) []string {
	t.Helper()
	files, err := filepath.Glob(filepath.Join(pattern...))
	require.NoError(t, err)
	require.NotEmpty(t, files)
	return files
}

func TestRulesAreValidAndUseOnlyWhatExists(t *testing.T) {
	t.Parallel()
	promtool(t, append([]string{"check", "rules", "--lint=all", "--lint-fatal"}, glob(t, rulesDir, "*.yml")...)...)
	all, alerts, records := known(t), map[string]bool{}, map[string]bool{}
	for _, r := range allRules(t) {
		require.NoError(t, all.lacks(r.Expr), r.Alert+r.Record)
		if r.Record != "" {
			assert.False(t, records[r.Record], r.Record)
			records[r.Record] = true
			continue
		}
		assert.False(t, alerts[r.Alert], "%s is there twice", r.Alert)
		alerts[r.Alert] = true
		assert.Regexp(t, "^Lifeboat[A-Z]", r.Alert)
		assert.Contains(t, []string{"critical", "warning", "info", "none"}, r.Labels["severity"], r.Alert)
		assert.Equal(t, "lifeboat", r.Labels["service"], r.Alert)
		for _, a := range []string{"summary", "description", "runbook_url"} {
			assert.NotEmpty(t, r.Annotations[a], "%s: %s", r.Alert, a)
		}
		// Who is told at once of what may be over at the next evaluation is told of noise. Windows of minutes and more do not flap.
		window := regexp.MustCompile(`\[\d+[mhd]\]|:increase\d+[mhd]`).MatchString(r.Expr)
		assert.True(t, r.For != "" || window || r.Alert == "LifeboatWatchdog", "%s neither waits nor looks at a window", r.Alert)
	}
	for name := range records {
		assert.Contains(t, used(t), name, "nothing uses it")
	}
}

// used is the text of all that may use a recording rule.
func used(t *testing.T) string {
	t.Helper()
	var b strings.Builder
	for _, r := range allRules(t) {
		b.WriteString(r.Expr + "\n")
	}
	for _, p := range panels(t) {
		for _, target := range p.Targets {
			b.WriteString(target.Expr + "\n")
		}
	}
	return b.String()
}

func TestRulesPassTheirUnitTests(t *testing.T) {
	t.Parallel()
	promtool(t, append([]string{"test", "rules"}, glob(t, rulesDir, "tests", "*.yml")...)...)
}

// LifeboatDeadLetters takes the letters that LifeboatAlertDead does not tell of by the beginnings of their reasons.
func TestTheReasonsOfLettersThatNothingElseTellsOfAreKnown(t *testing.T) {
	t.Parallel()
	expr := ""
	for _, r := range allRules(t) {
		if r.Alert == "LifeboatDeadLetters" {
			expr = r.Expr
		}
	}
	for folder, spelled := range map[string]string{"ingest": `reason: +"([a-z_]+)"`, "events": `bus\.Terminal\("([a-z_]+)"`} {
		found := 0
		for _, f := range glob(t, notifierDir, folder, "*.go") {
			b, err := os.ReadFile(f)
			require.NoError(t, err)
			if strings.HasSuffix(f, "_test.go") {
				continue
			}
			for _, m := range regexp.MustCompile(spelled).FindAllStringSubmatch(string(b), -1) {
				found++
				beginning, _, _ := strings.Cut(m[1], "_")
				assert.Regexp(t, `reason!~"[^"]*\b`+beginning+`_\.\+`, expr, "%s: %s", f, m[1])
			}
		}
		assert.Positive(t, found, "%s no longer spells its reasons like this", folder)
	}
}

// An alert that no test has seen firing may never fire, and one that none has seen silent may never be.
func TestEveryAlertIsTestedFiringAndNot(t *testing.T) {
	t.Parallel()
	firing, silent := map[string]bool{}, map[string]bool{}
	named := regexp.MustCompile(`alertname=~?"([A-Za-z|.*]+)"`)
	for _, f := range glob(t, rulesDir, "tests", "*.yml") {
		b, err := os.ReadFile(f)
		require.NoError(t, err)
		var file struct {
			RuleFiles []string `yaml:"rule_files"`
			Order     []string `yaml:"group_eval_order"`
			Tests     []struct {
				Alerts []struct {
					Name   string `yaml:"alertname"`
					Alerts []any  `yaml:"exp_alerts"`
				} `yaml:"alert_rule_test"`
				Queries []struct {
					Expr    string
					Samples []struct{ Labels string } `yaml:"exp_samples"`
				} `yaml:"promql_expr_test"`
			}
		}
		require.NoError(t, yaml.Unmarshal(b, &file), f)
		assert.Len(t, file.RuleFiles, len(glob(t, rulesDir, "*.yml")), "%s does not test all rules together", f)
		assert.Equal(t, groups(t), file.Order, "%s: the other groups come in any order", f)
		for _, test := range file.Tests {
			for _, a := range test.Alerts {
				into(len(a.Alerts) > 0, firing, silent)[a.Name] = true
			}
			for _, q := range test.Queries {
				if !strings.Contains(q.Expr, "ALERTS{") {
					continue
				}
				m := named.FindStringSubmatch(q.Expr)
				require.NotNil(t, m, q.Expr)
				for _, r := range allRules(t) {
					if r.Alert == "" || !regexp.MustCompile("^(?:"+m[1]+")$").MatchString(r.Alert) {
						continue
					}
					fires := false
					for _, s := range q.Samples {
						fires = fires || s.Labels == "{}" || strings.Contains(s.Labels, `"`+r.Alert+`"`)
					}
					into(fires, firing, silent)[r.Alert] = true
				}
			}
		}
	}
	for _, r := range allRules(t) {
		if r.Alert == "" {
			continue
		}
		assert.True(t, firing[r.Alert], "no test sees %s fire", r.Alert)
		assert.True(t, silent[r.Alert] || r.Alert == "LifeboatWatchdog", "no test sees %s silent", r.Alert)
	}
}

func into(fires bool, firing, silent map[string]bool) map[string]bool {
	if fires {
		return firing
	}
	return silent
}

func TestExamplesAreValid(t *testing.T) {
	t.Parallel()
	promtool(t, "check", "config", filepath.Join(rulesDir, "examples", "prometheus.yml"))
	run(t, "amtool", "tools/build amtool builds it", "check-config", filepath.Join(rulesDir, "examples", "alertmanager.yml"))
	b, err := os.ReadFile(filepath.Join(rulesDir, "examples", "alertmanager.yml"))
	require.NoError(t, err)
	// What is inhibited or routed by name must be the name of something.
	names := map[string]bool{"LifeboatRPOExceeded": true, "LifeboatCanaryLate": true}
	outside := 0
	for _, r := range allRules(t) {
		names[r.Alert] = true
		if r.Labels["channel"] == "outside" {
			outside++
		}
	}
	for _, name := range regexp.MustCompile(`Lifeboat[A-Z][A-Za-z]+`).FindAllString(string(b), -1) {
		assert.True(t, names[name], "there is no alert %s", name)
	}
	assert.Contains(t, string(b), `channel="outside"`)
	assert.Positive(t, outside)
}

// What Lifeboat may be unable to deliver goes both ways, the rest through Lifeboat.
func TestTheExampleRoutesToPeopleAndToTheChat(t *testing.T) {
	t.Parallel()
	file := filepath.Join(rulesDir, "examples", "alertmanager.yml")
	for receivers, of := range map[string][]string{
		"outside,lifeboat": {"alertname=LifeboatNATSUnreachable", "channel=outside"},
		"lifeboat":         {"alertname=LifeboatTicksLate"},
		"watchdog":         {"alertname=LifeboatWatchdog", "channel=outside"},
	} {
		run(t, "amtool", "tools/build amtool builds it",
			append([]string{"config", "routes", "test", "--config.file=" + file, "--verify.receivers=" + receivers}, of...)...)
	}
}

// What follows from another alert is not told besides it, and what does not is.
func TestTheExampleInhibitsWhatFollows(t *testing.T) {
	t.Parallel()
	nats := []string{"alertname", "LifeboatNATSUnreachable"}
	absent := func(service string) []string {
		return []string{"alertname", "LifeboatServiceAbsent", "job", "lifeboat-" + service}
	}
	for _, c := range []struct {
		source, target []string
		want           bool
	}{
		// Without NATS webhooks are answered with 503 and deliveries wait; what Alertmanager drops is told nevertheless.
		{nats, []string{"alertname", "LifeboatDeliveriesStuck"}, true},
		{nats, []string{"alertname", "LifeboatWebhookErrors", "code", "503"}, true},
		{nats, []string{"alertname", "LifeboatWebhookErrors", "code", "413"}, false},
		// Schedulers decide ticks while all workers are away, and the other way around.
		{absent("backup"), []string{"alertname", "LifeboatNoWorker"}, true},
		{absent("backup"), []string{"alertname", "LifeboatTicksOverdue"}, false},
		{absent("scheduler"), []string{"alertname", "LifeboatTicksOverdue"}, true},
		{absent("scheduler"), []string{"alertname", "LifeboatNoWorker"}, false},
		{absent("notifier"), []string{"alertname", "LifeboatTicksOverdue"}, false},
		// Of each target and each receiver by itself.
		{[]string{"alertname", "LifeboatRPOExceeded", "target", "a"}, []string{"alertname", "LifeboatRPOExceededUnreported", "target", "a"}, true},
		{[]string{"alertname", "LifeboatRPOExceeded", "target", "a"}, []string{"alertname", "LifeboatRPOExceededUnreported", "target", "b"}, false},
		{[]string{"alertname", "LifeboatCanaryLate", "target", "a"}, []string{"alertname", "LifeboatCanaryLateUnreported", "target", "a"}, true},
		{[]string{"alertname", "LifeboatCanaryLate", "target", "a"}, []string{"alertname", "LifeboatCanaryLateUnreported", "target", "b"}, false},
	} {
		assert.Equal(t, c.want, inhibited(t, labels.FromStrings(c.source...), labels.FromStrings(c.target...)), "%v: %v", c.source, c.target)
	}
}

// inhibited says whether the example's Alertmanager holds target back while source fires.
func inhibited(t *testing.T, source, target labels.Labels) bool {
	t.Helper()
	b, err := os.ReadFile(filepath.Join(rulesDir, "examples", "alertmanager.yml"))
	require.NoError(t, err)
	var file struct {
		Inhibit []struct {
			Source []string `yaml:"source_matchers"`
			Target []string `yaml:"target_matchers"`
			Equal  []string
		} `yaml:"inhibit_rules"`
	}
	require.NoError(t, yaml.Unmarshal(b, &file))
	matches := func(matchers []string, of labels.Labels) bool {
		selected, err := parser.ParseMetricSelector("{" + strings.Join(matchers, ",") + "}")
		require.NoError(t, err)
		return !slices.ContainsFunc(selected, func(m *labels.Matcher) bool { return !m.Matches(of.Get(m.Name)) })
	}
	for _, r := range file.Inhibit {
		same := !slices.ContainsFunc(r.Equal, func(name string) bool { return source.Get(name) != target.Get(name) })
		if same && matches(r.Source, source) && matches(r.Target, target) {
			return true
		}
	}
	return false
}

// Every service that the rules ask for is in the example.
func TestTheExampleScrapesWhatTheRulesAskFor(t *testing.T) {
	t.Parallel()
	b, err := os.ReadFile(filepath.Join(rulesDir, "examples", "prometheus.yml"))
	require.NoError(t, err)
	for _, job := range []string{"scheduler", "backup", "notifier", "page"} {
		assert.Contains(t, string(b), "job_name: lifeboat-"+job+"\n")
	}
}
