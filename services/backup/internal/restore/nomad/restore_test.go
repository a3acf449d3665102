package nomad_test

import (
	"encoding/json"
	"fmt"
	"path"
	"strings"
	"testing"

	"github.com/hashicorp/nomad/api"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/lifeboat-fleet/lifeboat/services/backup/internal/restore"
	"github.com/lifeboat-fleet/lifeboat/services/backup/internal/restore/nomad"
)

// comparables are the files that a restored region has byte by byte. Versions begin anew, a submission holds the index at which it
// came, binding rules get new ids, and tokens do not come back.
func comparables(t *testing.T, data []byte, without ...string) map[string]string {
	t.Helper()
	files := make(map[string]string)
	for name, body := range untar(t, data) {
		switch {
		case strings.Contains(name, "/versions/"), strings.HasPrefix(name, "acl/tokens/"):
			continue
		case path.Base(name) == "submission.json":
			body = body[strings.Index(body, `"Source"`):]
			body = body[:strings.Index(body, `"Version"`)]
		case strings.HasPrefix(name, "acl/binding_rules/"):
			name = "acl/binding_rules/" + body + strings.Repeat(" again", len(files["acl/binding_rules/"+body]))
		case strings.HasPrefix(name, "jobs/"):
			body = withoutGenerated(t, body)
		}
		keep := true
		for _, w := range without {
			keep = keep && !strings.Contains(name, w)
		}
		if keep {
			files[name] = body
		}
	}
	return files
}

// withoutGenerated leaves out what Nomad makes anew with each registration.
func withoutGenerated(t *testing.T, body string) string {
	t.Helper()
	var spec struct {
		Job map[string]any
	}
	if json.Unmarshal([]byte(body), &spec) != nil {
		return body
	}
	groups, ok := spec.Job["TaskGroups"].([]any)
	require.True(t, ok)
	for _, g := range groups {
		group, ok := g.(map[string]any)
		require.True(t, ok)
		// Nomad gives this constraint to a group with an identity each time that its job is registered.
		var kept []any
		all, _ := group["Constraints"].([]any)
		for _, c := range all {
			if n := len(kept); n == 0 || !assert.ObjectsAreEqual(kept[n-1], c) || !strings.Contains(fmt.Sprint(c), ">= 1.7.0-a") {
				kept = append(kept, c)
			}
		}
		group["Constraints"] = kept
		if scaling, ok := group["Scaling"].(map[string]any); ok {
			for _, field := range []string{"ID", "CreateIndex", "ModifyIndex"} {
				require.Contains(t, scaling, field)
				delete(scaling, field)
			}
		}
	}
	b, err := json.Marshal(spec)
	require.NoError(t, err)
	return string(b)
}

func TestRestore(t *testing.T) {
	src := startRegion(t, withACLs)
	src.fill(t)
	data := src.backup(t)
	dst := startRegion(t, withACLs)
	t.Run("plan", func(t *testing.T) { testPlan(t, dst, data) })
	t.Run("whole", func(t *testing.T) { testWhole(t, src, dst, data) })
	t.Run("again", func(t *testing.T) { testAgain(t, dst, data) })
	t.Run("plans are empty", func(t *testing.T) { testPlans(t, dst, data) })
	t.Run("into itself", func(t *testing.T) { testItself(t, src, data) })
	t.Run("not empty", func(t *testing.T) { testNotEmpty(t, dst, data) })
	t.Run("selection", func(t *testing.T) { testSelection(t, data) })
	t.Run("another region, no ACLs", func(t *testing.T) { testAnotherRegion(t, data) })
	t.Run("interrupted", func(t *testing.T) { testInterrupted(t, data) })
	t.Run("killed", func(t *testing.T) { testKilled(t, data) })
	t.Run("few rights", func(t *testing.T) { testFewRights(t, data) })
	t.Run("cut", func(t *testing.T) { testCut(t, data) })
}

func testPlan(t *testing.T, dst *region, data []byte) {
	t.Helper()
	before := dst.backup(t)
	var done, total int64
	got := dst.restore(t, data, nomad.Selection{}, restore.Options{Progress: func(d, n int64) {
		assert.Equal(t, done+1, d)
		done, total = d, n
	}})
	require.NoError(t, got.err)
	assert.Equal(t, before, dst.backup(t), "a plan writes nothing")
	assert.Empty(t, got.having(restore.Failed))
	assert.Equal(t, []string{
		"ACL auth method sso", ruleOf(got, "sso"), got.order[indexOf(got, "ACL token ")], got.order[indexOf(got, "ACL token ")+1],
	}, got.having(restore.Skip))
	assert.Len(t, got.having(restore.Create), len(got.order)-4)
	assert.Equal(t, total, done)
	assert.EqualValues(t, len(got.order), total)
	assert.Positive(t, got.summary.Bytes)
	assert.Less(t, indexOf(got, "node pool gpu"), indexOf(got, "namespace apps"))
	assert.Less(t, indexOf(got, "variable apps/"), indexOf(got, "job apps/api"))
	assert.Less(t, indexOf(got, "job secret/web"), indexOf(got, "scheduler configuration "))
	assert.Contains(t, got.items["namespace default"].Detail, "instead of Nomad's own: Description, Meta")
}

func indexOf(g told, prefix string) int {
	for i, key := range g.order {
		if strings.HasPrefix(key, prefix) {
			return i
		}
	}
	return -1
}

// ruleOf is the first binding rule of a method.
func ruleOf(g told, method string) string {
	return g.order[indexOf(g, "ACL binding rule "+method+"/")]
}

func testWhole(t *testing.T, src, dst *region, data []byte) {
	t.Helper()
	got := dst.restore(t, data, nomad.Selection{}, apply())
	require.NoError(t, got.err)
	require.NoError(t, got.failure())
	assert.Contains(t, got.items["ACL auth method sso"].Detail, "nomad acl auth-method create")
	assert.Contains(t, got.items[ruleOf(got, "sso")].Detail, `needs the ACL auth method "sso", which was left out`)
	robot := got.items[got.order[indexOf(got, "ACL token ")]].Detail + got.items[got.order[indexOf(got, "ACL token ")+1]].Detail
	assert.Contains(t, robot, `nomad acl token create -type=client -name="robot" -policy="ops" -policy="web"`)
	assert.Len(t, got.having(restore.Skip), 4)

	want, have := comparables(t, data, "auth_methods/sso", `"sso"`), comparables(t, dst.backup(t))
	assert.Equal(t, want, have)
	for _, name := range []string{
		"jobs/apps/api/job.json", "jobs/apps/api/job.nomad.hcl", "jobs/apps/api/submission.json", "namespaces/default.json",
		"volumes", "scheduler_configuration.json", "acl/roles/operator.json", "acl/auth_methods/ci.json", "node_pools/gpu.json",
	} {
		if name != "volumes" {
			assert.Contains(t, have, name, "or this compares nothing")
		}
	}
	q := &api.QueryOptions{Namespace: "apps"}
	j, _, err := dst.api.Jobs().Info("api", q)
	require.NoError(t, err)
	assert.Equal(t, 5, *j.TaskGroups[0].Count, "the scaled count")
	assert.EqualValues(t, 0, *j.Version)
	sub, _, err := dst.api.Jobs().Submission("api", 0, q)
	require.NoError(t, err)
	assert.Equal(t, map[string]string{"count": "2"}, sub.VariableFlags)
	j, _, err = dst.api.Jobs().Info("stopped", nil)
	require.NoError(t, err)
	assert.True(t, *j.Stop)
	assert.Equal(t, "dead", *j.Status)
	jobs, _, err := dst.api.Jobs().List(&api.QueryOptions{Namespace: "*"})
	require.NoError(t, err)
	assert.Len(t, jobs, len(specs)+5, "no child of another job")
	_ = src
}

// testAgain changes nothing.
func testAgain(t *testing.T, dst *region, data []byte) {
	t.Helper()
	before := dst.backup(t)
	got := dst.restore(t, data, nomad.Selection{}, apply())
	require.NoError(t, got.err)
	assert.Len(t, got.having(restore.Skip), 4)
	assert.Len(t, got.having(restore.Same), len(got.order)-4, "%v", got.items)
	assert.Equal(t, before, dst.backup(t))
}

func testPlans(t *testing.T, dst *region, data []byte) {
	t.Helper()
	var names []string
	require.NoError(t, nomad.Plans(t.Context(), dst.cfg, opened(data), func(job, difference string) {
		names = append(names, job)
		assert.Empty(t, difference, job)
	}))
	assert.Len(t, names, len(specs)+5)
	assert.IsIncreasing(t, names)
}

// testItself restores a region into itself: even what no snapshot has is there.
func testItself(t *testing.T, src *region, data []byte) {
	t.Helper()
	got := src.restore(t, data, nomad.Selection{}, apply())
	require.NoError(t, got.err)
	assert.Len(t, got.having(restore.Same), len(got.order))
	assert.Contains(t, got.items["ACL auth method sso"].Detail, "but for its secret")
	assert.Equal(t, data, src.backup(t))
}
