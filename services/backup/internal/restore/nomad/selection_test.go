package nomad_test

import (
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/hashicorp/nomad/api"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/lifeboat-fleet/lifeboat/fleet/config"
	"github.com/lifeboat-fleet/lifeboat/services/backup/internal/restore"
	"github.com/lifeboat-fleet/lifeboat/services/backup/internal/restore/nomad"
)

// testSelection restores parts, one after the other.
func testSelection(t *testing.T, data []byte) {
	t.Helper()
	dst := startRegion(t, withACLs)
	dst.register(t, job("mine", "default"))
	empty := dst.backup(t)
	for _, sel := range []nomad.Selection{
		{Jobs: []string{"api", "apii"}}, {Namespaces: []string{"aps"}}, {Namespaces: []string{"secret"}, Jobs: []string{"api"}},
	} {
		got := dst.restore(t, data, sel, apply())
		require.ErrorIs(t, got.err, nomad.ErrNotInSnapshot)
		assert.NotContains(t, got.err.Error(), "api,", "only what is not there is named")
		assert.Empty(t, got.order)
	}
	assert.Equal(t, empty, dst.backup(t))

	// A job comes with its namespace and its node pool, and with no variable.
	got := dst.restore(t, data, nomad.Selection{Jobs: []string{"api"}}, apply())
	require.NoError(t, got.err)
	assert.Equal(t, []string{"node pool gpu", "namespace apps", "job apps/api"}, got.order)
	assert.Equal(t, got.order, got.having(restore.Create))
	// What is needed and there is left, also when it differs.
	_, err := dst.api.Namespaces().Register(&api.Namespace{Name: "apps", Description: "changed"}, nil)
	require.NoError(t, err)
	got = dst.restore(t, data, nomad.Selection{Jobs: []string{"web", "api"}, Namespaces: []string{"apps", "default"}}, force())
	require.NoError(t, got.err)
	assert.Equal(t, []string{"job apps/api", "job apps/web"}, got.order)
	assert.Equal(t, restore.Same, got.items["job apps/api"].Action)

	// A namespace comes with all that is in it, and with nothing else.
	dst.variable(t, "apps", "here/only", map[string]string{"k": "v"})
	sel := nomad.Selection{Namespaces: []string{"apps"}}
	got = dst.restore(t, data, sel, apply())
	require.NoError(t, got.err, "a selection does not mind what else is there")
	assert.Equal(t, []string{"namespace apps"}, got.having(restore.Differs))
	assert.Equal(t, []string{"variable apps/here/only"}, got.having(restore.Extra))
	assert.Equal(t, []string{"variable apps/nomad/jobs/web", "job apps/with/slash"}, got.having(restore.Create))
	got = dst.restore(t, data, sel, force())
	require.NoError(t, got.err)
	assert.Equal(t, []string{"namespace apps"}, got.having(restore.Change))

	want := comparables(t, data)
	maps.DeleteFunc(want, func(name, _ string) bool { return !strings.Contains(name, "apps") && name != "node_pools/gpu.json" })
	have := comparables(t, dst.backup(t), "jobs/default/mine", "namespaces/default", "scheduler_conf", "here%2Fonly")
	assert.Equal(t, slices.Sorted(maps.Keys(want)), slices.Sorted(maps.Keys(have)))
	assert.Equal(t, want, have)

	// Everything else, into what is not empty now.
	got = dst.restore(t, data, nomad.Selection{Namespaces: []string{"*"}}, apply())
	require.ErrorIs(t, got.err, restore.ErrNotEmpty)
	assert.Equal(t, []string{"variable apps/here/only", "job default/mine"}, got.having(restore.Extra))
}

// testAnotherRegion has a region of another name, without ACLs.
func testAnotherRegion(t *testing.T, data []byte) {
	t.Helper()
	dst := startRegion(t, `region = "west"`)
	dst.pause(t, true)
	got := dst.restore(t, data, nomad.Selection{}, apply())
	require.NoError(t, got.err)
	assert.Empty(t, got.having(restore.Failed))
	for _, key := range got.having(restore.Skip) {
		assert.Contains(t, key, "ACL ")
		assert.Contains(t, got.items[key].Detail, "ACLs are off at the destination")
	}
	assert.Len(t, got.having(restore.Skip), 2+1+2+4+2)
	j, _, err := dst.api.Jobs().Info("web", &api.QueryOptions{Namespace: "apps"})
	require.NoError(t, err)
	assert.Equal(t, "west", *j.Region)
	conf, _, err := dst.api.Operator().SchedulerGetConfiguration(nil)
	require.NoError(t, err)
	assert.True(t, conf.SchedulerConfig.PauseEvalBroker, "whoever paused it waits for something")
	assert.Equal(t, api.SchedulerAlgorithmSpread, conf.SchedulerConfig.SchedulerAlgorithm)
	assert.Contains(t, got.items["scheduler configuration scheduler_configuration"].Detail, "evaluations stay paused")
	testPlans(t, dst, data)
	got = dst.restore(t, data, nomad.Selection{}, apply())
	require.NoError(t, got.err)
	assert.Len(t, got.having(restore.Same), len(got.order)-11)
}

// testFewRights has a token that may do little. It says what it needs, and does what it may.
func testFewRights(t *testing.T, data []byte) {
	t.Helper()
	dst := startRegion(t, withACLs)
	_, err := dst.api.ACLPolicies().Upsert(&api.ACLPolicy{
		Name: "little", Rules: "namespace \"default\" {\n policy = \"write\" \n variables { path \"*\" { capabilities = [\"write\", \"read\"] } } }\n" +
			"host_volume \"*\" { policy = \"write\" }",
	}, nil)
	require.NoError(t, err)
	token, _, err := dst.api.ACLTokens().Create(&api.ACLToken{Type: "client", Policies: []string{"little"}}, nil)
	require.NoError(t, err)
	file := filepath.Join(t.TempDir(), "token")
	require.NoError(t, os.WriteFile(file, []byte(token.SecretID), 0o600))
	dst.cfg.TokenFile = config.SecretFile(file)
	dst.variable(t, "default", "ready", map[string]string{"k": "v"}) // or the keyring may not be there yet

	got := dst.restore(t, data, nomad.Selection{}, force())
	require.NoError(t, got.err)
	for key, need := range map[string]string{
		"namespace apps": "to be a management token", "node pool gpu": `node_pool "*" { policy = "write" }`,
		"ACL policy ops": "to be a management token", "scheduler configuration scheduler_configuration": `operator { policy = "write" }`,
	} {
		require.Equal(t, restore.Failed, got.items[key].Action, key)
		require.ErrorContains(t, got.items[key].Err, "the token needs "+need, key)
	}
	require.ErrorContains(t, got.items["job apps/web"].Err, "403")
	require.ErrorContains(t, got.items["variable apps/nomad/jobs/web"].Err, "403")
	for _, key := range []string{"job default/stopped", "variable default/a/b"} {
		require.NoError(t, got.items[key].Err)
		assert.Equal(t, restore.Create, got.items[key].Action)
	}
	for _, i := range got.items {
		if i.Err != nil {
			assert.NotContains(t, i.Err.Error(), token.SecretID)
		}
	}
	assert.Positive(t, got.summary.Failed)
}
