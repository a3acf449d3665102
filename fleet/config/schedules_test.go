package config_test

import (
	"os"
	"path/filepath"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/lifeboat-fleet/lifeboat/fleet/config"
)

func TestSchedulesAreThoseThatAreSet(t *testing.T) {
	target := config.Target{
		Schedule: "@hourly", Retention: config.Retention{Last: 1},
		Drill: config.Drill{Schedule: "@daily", Escrow: config.Escrow{Schedule: "@monthly"}},
	}
	assert.Equal(t, []config.Schedule{
		{Name: "snapshot", Key: "schedule", Line: "@hourly", Work: config.WorkSnapshot},
		{Name: "drill", Key: "drill.schedule", Line: "@daily", Work: config.WorkDrill},
		{Name: "prune", Key: "prune.schedule", Line: "@daily", Work: config.WorkPrune},
		{Name: "drill-escrow", Key: "drill.escrow.schedule", Line: "@monthly", Work: config.WorkDrill, Identity: config.IdentityEscrow},
	}, target.Schedules())
	assert.Empty(t, config.Target{}.Schedules())
}

func TestEscrowSchedulesThatCannotBeMeant(t *testing.T) {
	for line, want := range map[string]string{
		"whenever": `targets[0].drill.escrow.schedule: "whenever"`,
		"@daily":   "targets[0].drill.escrow.schedule: is that of drill.schedule",
	} {
		path := filepath.Join(t.TempDir(), "lifeboat.yaml")
		require.NoError(t, os.WriteFile(path, []byte("store: {bucket: backups}\ntargets:\n  - name: a\n"+
			"    etcd: {endpoints: [\"http://127.0.0.1:2379\"]}\n    drill:\n      schedule: '@daily'\n"+
			"      escrow: {identity_file: key, schedule: '"+line+"'}\n"), 0o600))
		_, err := config.Load(path)
		require.ErrorContains(t, err, want)
		assert.ErrorContains(t, err, "lifeboat.yaml:7:")
	}
}
