package observe

import (
	"encoding/json"
	"os"
	"path/filepath"
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
		}
	}
	assert.Len(t, taken, 24*26, "there are gaps")
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
