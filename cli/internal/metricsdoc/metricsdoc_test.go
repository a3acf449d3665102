package metricsdoc_test

import (
	"flag"
	"os"
	"regexp"
	"strings"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/lifeboat-fleet/lifeboat/cli/internal/metricsdoc"
)

const path = "../../../docs/metrics.md"

var update = flag.Bool("update", false, "write docs/metrics.md")

// The table is what the services register now.
func TestTable(t *testing.T) {
	all, err := metricsdoc.All(t.Context(), t.TempDir())
	require.NoError(t, err)
	table := metricsdoc.Table(all)
	if *update {
		require.NoError(t, os.WriteFile(path, table, 0o644))
	}
	have, err := os.ReadFile(path)
	require.NoError(t, err)
	assert.Equal(t, string(table), string(have), "docs/metrics.md is not up to date: run `make metrics`")
}

// Names, types, labels and meanings are as Prometheus has them (https://prometheus.io/docs/practices/naming/), and nothing that others
// build upon is missing.
func TestConventions(t *testing.T) {
	all, err := metricsdoc.All(t.Context(), t.TempDir())
	require.NoError(t, err)
	name := regexp.MustCompile(`^lifeboat(_[a-z]+)+$`)
	types := map[string]string{}
	for _, m := range all {
		types[m.Name] = m.Type
		assert.Regexp(t, name, m.Name)
		assert.Equal(t, m.Type == "counter", strings.HasSuffix(m.Name, "_total"), "%s is a %s", m.Name, m.Type)
		assert.NotContains(t, m.Help, "\n", m.Name)
		assert.Truef(t, strings.HasSuffix(m.Help, "."), "the meaning of %s is a sentence: %q", m.Name, m.Help)
		assert.NotEmpty(t, m.Services, m.Name)
		if strings.HasSuffix(m.Name, "_timestamp_seconds") {
			assert.Equal(t, "Unix seconds", m.Unit, m.Name)
		}
	}
	for want, kind := range map[string]string{
		"lifeboat_target_info": "gauge", "lifeboat_build_info": "gauge", "lifeboat_jobs_waiting": "gauge", "lifeboat_schedules": "gauge",
		"lifeboat_job_duration_seconds": "histogram", "lifeboat_tick_lateness_seconds": "histogram", "lifeboat_dead_letters_total": "counter",
		"lifeboat_messages_lost_lease_total": "counter", "lifeboat_delivery_lag_seconds": "histogram", "lifeboat_notify_budget_left": "gauge",
	} {
		assert.Equal(t, kind, types[want], want)
	}
}
