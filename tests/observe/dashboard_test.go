package observe

import (
	"encoding/json"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"go.yaml.in/yaml/v3"
)

type panel struct {
	ID                       int
	Type, Title, Description string
	GridPos                  struct{ X, Y, W, H int }
	Datasource               struct{ Type, UID string }
	Targets                  []struct {
		RefID, Expr string
		Datasource  struct{ UID string }
	}
	FieldConfig struct {
		Defaults struct {
			Unit       string
			NoValue    string
			Thresholds struct{ Steps []struct{ Color string } }
		}
	}
}

type dashboard struct {
	UID, Title, Description string
	SchemaVersion           int
	Editable                bool
	Panels                  []panel
	Templating              struct {
		List []struct{ Name, Type, Definition string }
	}
}

func readDashboard(t *testing.T) dashboard {
	t.Helper()
	b, err := os.ReadFile(filepath.Join(dashboardDir, "dashboards", "lifeboat.json"))
	require.NoError(t, err)
	var d dashboard
	require.NoError(t, json.Unmarshal(b, &d))
	return d
}

func panels(t *testing.T) []panel {
	t.Helper()
	d := readDashboard(t)
	require.NotEmpty(t, d.Panels)
	return d.Panels
}

// filled is an expression as Grafana sends it.
func filled(expr string) string {
	return strings.NewReplacer("$__rate_interval", "5m", "$target", ".*").Replace(expr)
}

func TestDashboardIsCompleteAndUsesOnlyWhatExists(t *testing.T) {
	t.Parallel()
	all, d := known(t), readDashboard(t)
	assert.NotEmpty(t, d.UID)
	assert.NotEmpty(t, d.Description)
	assert.False(t, d.Editable, "what is changed in the browser is lost")
	titles, seen := map[string]bool{}, map[int]bool{}
	for _, p := range d.Panels {
		assert.NotEmpty(t, p.Title, p.ID)
		assert.False(t, titles[p.Title], p.Title)
		assert.False(t, seen[p.ID], p.Title)
		titles[p.Title], seen[p.ID] = true, true
		assert.NotEmpty(t, p.Description, p.Title)
		assert.NotEmpty(t, p.FieldConfig.Defaults.Unit, p.Title)
		assert.Equal(t, "${datasource}", p.Datasource.UID, p.Title)
		require.NotEmpty(t, p.Targets, p.Title)
		refs := map[string]bool{}
		for _, q := range p.Targets {
			assert.False(t, refs[q.RefID], p.Title)
			refs[q.RefID] = true
			assert.Equal(t, "${datasource}", q.Datasource.UID, p.Title)
			require.NoError(t, all.lacks(filled(q.Expr)), p.Title)
		}
	}
	for _, v := range d.Templating.List {
		assert.Contains(t, []string{"datasource", "target"}, v.Name)
		if v.Type == "query" {
			assert.Equal(t, "label_values(lifeboat_target_info, target)", v.Definition)
			assert.Contains(t, all["lifeboat_target_info"], "target")
		}
	}
}

// One screen: 24 columns, and no more rows than a screen of 1080 pixels has. What is red comes first.
func TestDashboardIsOneScreen(t *testing.T) {
	t.Parallel()
	taken := map[[2]int]string{}
	for _, p := range panels(t) {
		g := p.GridPos
		assert.LessOrEqual(t, g.X+g.W, 24, p.Title)
		assert.LessOrEqual(t, g.Y+g.H, 26, p.Title)
		for x := g.X; x < g.X+g.W; x++ {
			for y := g.Y; y < g.Y+g.H; y++ {
				assert.Empty(t, taken[[2]int{x, y}], p.Title)
				taken[[2]int{x, y}] = p.Title
			}
		}
		if g.Y == 0 {
			assert.Equal(t, "stat", p.Type, p.Title)
			steps := p.FieldConfig.Defaults.Thresholds.Steps
			assert.GreaterOrEqual(t, len(steps), 2, "%s never changes its colour", p.Title)
			assert.Equal(t, "?", p.FieldConfig.Defaults.NoValue, p.Title)
		}
	}
	assert.Len(t, taken, 24*26, "there are gaps")
}

// What nobody tells is no zero: a panel whose data is gone would be green. Want is what the panels of the top row show, and nothing for "?".
func TestThePanelsOfTheTopRowAreNotGreenWithoutData(t *testing.T) {
	t.Parallel()
	healthy := map[string]string{
		`up{job="lifeboat-scheduler", instance="s1"}`: "1x60", `up{job="lifeboat-backup", instance="b1"}`: "1x60",
		`up{job="lifeboat-notifier", instance="n1"}`:                                            "1x60",
		`lifeboat_target_info{job="lifeboat-scheduler", instance="s1", target="a"}`:             "1x60",
		`lifeboat_jobs_waiting{job="lifeboat-scheduler", instance="s1", work="snapshot"}`:       "0x60",
		`lifeboat_jobs_oldest_waiting_seconds{job="lifeboat-scheduler", work="snapshot"}`:       "0x60",
		`lifeboat_deliveries_oldest_seconds{job="lifeboat-notifier", receiver="ops"}`:           "0x60",
		`lifeboat_fleet_alerts_firing{job="lifeboat-notifier", alertname="LifeboatCanaryLate"}`: "0x60",
	}
	and := func(more map[string]string) map[string]string {
		all := maps.Clone(healthy)
		maps.Copy(all, more)
		return all
	}
	rpo, age := `lifeboat_target_rpo_seconds{target="a"}`, `lifeboat_snapshot_age_seconds{target="a"}`
	for name, c := range map[string]struct {
		series map[string]string
		bare   bool // no rules are loaded
		want   map[string]float64
	}{
		"nothing is scraped":                          {want: map[string]float64{"Alerts firing": 3, "Down": 3}},
		"no rules are loaded":                         {and(map[string]string{rpo: "60x60", age: "7200x60"}), true, map[string]float64{"Down": 0, "Oldest job": 0, "Oldest delivery": 0}},
		"all is well":                                 {and(map[string]string{rpo: "3600x60", age: "60x60"}), false, zeros()},
		"no target has an rpo":                        {healthy, false, zeros()},
		"nobody knows how old the newest snapshot is": {and(map[string]string{rpo: "3600x60"}), false, zeros("Beyond their RPO")},
		"a target is late, not proven, and fails": {and(map[string]string{
			rpo: "3600x60", age: "7200x60", `lifeboat_schedule_interval_seconds{target="a", schedule="drill"}`: "86400x60",
			`lifeboat_target_last_failure_timestamp_seconds{target="a", work="snapshot"}`: "100x60",
		}), false, map[string]float64{
			"Alerts firing": 1, "Beyond their RPO": 1, "Not proven": 1, "Failing": 1, "Down": 0, "Oldest job": 0, "Oldest delivery": 0, "Dead letters, a day": 0,
		}},
		"the same, and the schedulers are gone": {and(map[string]string{
			rpo: "3600x10 stale", age: "7200x10 stale", `lifeboat_schedule_interval_seconds{target="a", schedule="drill"}`: "86400x10 stale",
			`lifeboat_target_last_failure_timestamp_seconds{target="a", work="snapshot"}`:     "100x10 stale",
			`up{job="lifeboat-scheduler", instance="s1"}`:                                     "1x10 0x50",
			`lifeboat_target_info{job="lifeboat-scheduler", instance="s1", target="a"}`:       "1x10 stale",
			`lifeboat_jobs_waiting{job="lifeboat-scheduler", instance="s1", work="snapshot"}`: "0x10 stale",
			`lifeboat_jobs_oldest_waiting_seconds{job="lifeboat-scheduler", work="snapshot"}`: "0x10 stale",
		}), false, map[string]float64{"Alerts firing": 2, "Beyond their RPO": 1, "Down": 1, "Oldest delivery": 0, "Dead letters, a day": 0}},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			shows(t, c.series, !c.bare, c.want)
		})
	}
}

// zeros is what the top row shows when all is well, but for what is not known.
func zeros(unknown ...string) map[string]float64 {
	all := map[string]float64{}
	for _, title := range []string{"Alerts firing", "Beyond their RPO", "Not proven", "Failing", "Down", "Oldest job", "Oldest delivery", "Dead letters, a day"} {
		if !slices.Contains(unknown, title) {
			all[title] = 0
		}
	}
	return all
}

// shows asks promtool for what the panels of the top row show half an hour after the series began.
func shows(t *testing.T, input map[string]string, loaded bool, want map[string]float64) {
	t.Helper()
	type sample struct {
		Labels string  `yaml:"labels"`
		Value  float64 `yaml:"value"`
	}
	type query struct {
		Expr     string   `yaml:"expr"`
		EvalTime string   `yaml:"eval_time"`
		Samples  []sample `yaml:"exp_samples"`
	}
	var queries []query
	for _, p := range panels(t) {
		if p.GridPos.Y > 0 {
			continue
		}
		require.Len(t, p.Targets, 1, p.Title)
		// Without a name, as a result of arithmetic is.
		q := query{Expr: "0 + (" + filled(p.Targets[0].Expr) + ")", EvalTime: "30m"}
		if value, known := want[p.Title]; known {
			q.Samples = []sample{{"{}", value}}
		}
		queries = append(queries, q)
	}
	require.GreaterOrEqual(t, len(queries), len(want))
	given := []map[string]string{}
	for name, values := range input {
		given = append(given, map[string]string{"series": name, "values": values})
	}
	rules := []string{}
	if loaded {
		for _, f := range []string{"lifeboat.recording.yml", "lifeboat.rules.yml"} {
			path, err := filepath.Abs(filepath.Join(rulesDir, f))
			require.NoError(t, err)
			rules = append(rules, path)
		}
	}
	b, err := yaml.Marshal(map[string]any{
		"rule_files": rules, "group_eval_order": order(t, loaded), "evaluation_interval": "1m",
		"tests": []any{map[string]any{"interval": "1m", "input_series": given, "promql_expr_test": queries}},
	})
	require.NoError(t, err)
	file := filepath.Join(t.TempDir(), "panels.yml")
	require.NoError(t, os.WriteFile(file, b, 0o600))
	promtool(t, "test", "rules", file)
}

func order(t *testing.T, loaded bool) []string {
	t.Helper()
	if !loaded {
		return []string{}
	}
	return groups(t)
}

func TestDashboardIsProvisioned(t *testing.T) {
	t.Parallel()
	var sources struct {
		Datasources []struct{ Name, Type, UID, URL string }
	}
	var providers struct {
		Providers []struct {
			Name, Type string
			Options    struct{ Path string }
		}
	}
	for file, into := range map[string]any{"datasources/prometheus.yml": &sources, "dashboards/lifeboat.yml": &providers} {
		b, err := os.ReadFile(filepath.Join(dashboardDir, "provisioning", file))
		require.NoError(t, err)
		require.NoError(t, yaml.Unmarshal(b, into), file)
	}
	require.Len(t, sources.Datasources, 1)
	assert.Equal(t, "prometheus", sources.Datasources[0].Type)
	assert.Equal(t, "${PROMETHEUS_URL}", sources.Datasources[0].URL)
	require.Len(t, providers.Providers, 1)
	assert.Equal(t, "file", providers.Providers[0].Type)
	assert.NotEmpty(t, providers.Providers[0].Options.Path)
}
