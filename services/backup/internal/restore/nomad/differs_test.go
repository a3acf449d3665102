package nomad_test

import (
	"testing"
	"time"

	"github.com/hashicorp/nomad/api"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/lifeboat-fleet/lifeboat/services/backup/internal/restore"
	"github.com/lifeboat-fleet/lifeboat/services/backup/internal/restore/nomad"
)

// testNotEmpty changes one of each kind, and adds one.
func testNotEmpty(t *testing.T, dst *region, data []byte) {
	t.Helper()
	whole := dst.backup(t)
	disturb(t, dst)
	before := dst.backup(t)

	got := dst.restore(t, data, nomad.Selection{}, apply())
	require.ErrorIs(t, got.err, restore.ErrNotEmpty)
	assert.Equal(t, before, dst.backup(t), "nothing was written")
	differs := []string{
		"node pool gpu", "namespace apps", "ACL policy ops", "ACL role operator", "ACL auth method ci", "variable apps/nomad/jobs/web",
		"job apps/web", "job default/stopped", "scheduler configuration scheduler_configuration",
	}
	extra := []string{
		"node pool more", "namespace more", "ACL policy more", "ACL role more", "ACL auth method more", "variable default/more",
		"job default/more",
	}
	assert.Equal(t, differs, got.having(restore.Differs))
	assert.Equal(t, extra, got.having(restore.Extra))
	assert.Len(t, got.order, len(differs)+len(extra), "only what it holds is told")
	assert.EqualValues(t, len(differs), got.summary.Differs)
	for key, detail := range map[string]string{
		"variable apps/nomad/jobs/web": "differs in Items.password", "namespace apps": "differs in Description",
		"job apps/web": "differs in Count", "job default/stopped": "differs in Stop", "ACL policy ops": "differs in Rules",
		"ACL auth method ci": "differs in MaxTokenTTL",
	} {
		assert.Contains(t, got.items[key].Detail, detail[len("differs in "):], key)
		assert.NotContains(t, got.items[key].Detail, "n3w", key)
	}

	got = dst.restore(t, data, nomad.Selection{}, restore.Options{})
	require.NoError(t, got.err, "a plan says so and does nothing")
	assert.Equal(t, differs, got.having(restore.Differs))
	got = dst.restore(t, data, nomad.Selection{}, restore.Options{Force: true})
	require.NoError(t, got.err)
	assert.Equal(t, differs, got.having(restore.Change))
	assert.Equal(t, before, dst.backup(t))

	got = dst.restore(t, data, nomad.Selection{}, force())
	require.NoError(t, got.err)
	assert.Equal(t, differs, got.having(restore.Change))
	assert.Equal(t, extra, got.having(restore.Extra))
	assert.Empty(t, got.having(restore.Failed))
	assert.Equal(t, comparables(t, whole), comparables(t, dst.backup(t), "more"))
}

func disturb(t *testing.T, dst *region) {
	t.Helper()
	for name, pool := range map[string]string{"gpu": "n3w", "more": ""} {
		_, err := dst.api.NodePools().Register(&api.NodePool{Name: name, Description: pool}, nil)
		require.NoError(t, err)
	}
	for _, ns := range []string{"apps", "more"} {
		_, err := dst.api.Namespaces().Register(&api.Namespace{Name: ns, Description: "n3w"}, nil)
		require.NoError(t, err)
	}
	for _, p := range []string{"ops", "more"} {
		_, err := dst.api.ACLPolicies().Upsert(&api.ACLPolicy{Name: p, Rules: `namespace "n3w" { policy = "read" }`}, nil)
		require.NoError(t, err)
	}
	role, _, err := dst.api.ACLRoles().GetByName("operator", nil)
	require.NoError(t, err)
	role.Description = "n3w"
	_, _, err = dst.api.ACLRoles().Update(role, nil)
	require.NoError(t, err)
	_, _, err = dst.api.ACLRoles().Create(&api.ACLRole{Name: "more", Policies: []*api.ACLRolePolicyLink{{Name: "more"}}}, nil)
	require.NoError(t, err)
	method, _, err := dst.api.ACLAuthMethods().Get("ci", nil)
	require.NoError(t, err)
	method.MaxTokenTTL = 2 * time.Hour
	_, _, err = dst.api.ACLAuthMethods().Update(method, nil)
	require.NoError(t, err)
	method.Name = "more"
	_, _, err = dst.api.ACLAuthMethods().Create(method, nil)
	require.NoError(t, err)

	v, _, err := dst.api.Variables().Read("nomad/jobs/web", &api.QueryOptions{Namespace: "apps"})
	require.NoError(t, err)
	v.Items["password"] = "n3w"
	_, _, err = dst.api.Variables().Update(v, &api.WriteOptions{Namespace: "apps"})
	require.NoError(t, err)
	dst.variable(t, "default", "more", map[string]string{"k": "n3w"})
	web := job("web", "apps")
	*web.TaskGroups[0].Count = 7
	dst.register(t, web)
	stopped, _, err := dst.api.Jobs().Info("stopped", nil)
	require.NoError(t, err)
	stopped.Stop = new(bool)
	dst.register(t, stopped)
	dst.register(t, job("more", "default"))
	conf, _, err := dst.api.Operator().SchedulerGetConfiguration(nil)
	require.NoError(t, err)
	conf.SchedulerConfig.PreemptionConfig.BatchSchedulerEnabled = true
	_, _, err = dst.api.Operator().SchedulerSetConfiguration(conf.SchedulerConfig, nil)
	require.NoError(t, err)
}
