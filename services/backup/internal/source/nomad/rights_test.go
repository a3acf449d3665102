package nomad_test

import (
	"strings"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/lifeboat-fleet/lifeboat/services/backup/internal/source"
	"github.com/lifeboat-fleet/lifeboat/services/backup/internal/source/nomad"
)

const reader = `
namespace "*" {
  policy = "read"
  variables { path "*" { capabilities = ["read"] } }
}
node_pool "*" { policy = "read" }
operator { policy = "read" }
agent { policy = "read" }
`

// testReader has the rights that the documentation asks for, short of management.
func testReader(t *testing.T, r *region) {
	t.Helper()
	files, _, info := r.read(t, r.token(t, "backup", reader))
	assert.Equal(t, []string{
		"ACL policies and roles: all but those of the token itself; the token needs to be a management token",
		"all of acl/tokens: denied (403); the token needs to be a management token",
		"ACL auth method sso: denied (403); the token needs to be a management token",
		"all of acl/binding_rules: denied (403); the token needs to be a management token",
	}, info.GetMissing())
	assert.Subset(t, info.GetCounts(), map[string]int64{"jobs": 3, "variables": 6, "namespaces": 3, "node_pools": 1, "versions": 5})
	assert.Contains(t, files, "acl/policies/backup.json")
	assert.NotContains(t, files, "acl/policies/ops.json")
	assert.Equal(t, "backup", info.GetIdentity()["token_policies"])
	assert.NotEmpty(t, info.GetVersion())
}

// testFewRights has tokens that Nomad gives shorter lists without a word.
func testFewRights(t *testing.T, r *region) {
	t.Helper()
	missing := func(name, rules string, namespaces ...string) (string, map[string][]byte) {
		t.Helper()
		files, _, info := r.read(t, r.token(t, name, rules), namespaces...)
		return strings.Join(info.GetMissing(), "\n"), files
	}
	got, files := missing("apps-only", `namespace "apps" { policy = "read" }`)
	assert.NotContains(t, files, "jobs/secret/web/job.json", "or this test proves nothing")
	assert.NotContains(t, files, "namespaces/secret.json")
	for _, kind := range []string{"namespaces, jobs and CSI volumes", "host volumes", "variables", "node pools"} {
		assert.Contains(t, got, kind+": Nomad leaves out without a word what the token may not list: "+
			"whatever no rule of its policies names; the token needs ")
	}
	for _, kind := range []string{"all of acl/tokens", "scheduler configuration", "version, region, server"} {
		assert.Contains(t, got, kind+": denied (403); the token needs ")
	}

	got, _ = missing("apps-only", `namespace "apps" { policy = "read" }`, "apps")
	assert.NotContains(t, got, "jobs", "all of it may be read")
	assert.Contains(t, got, `variables: Nomad leaves out without a word what the token may not list: "apps"`)

	// Of several rules for a namespace, Nomad takes the closest.
	got, files = missing("closest", `namespace "*" { policy = "deny" }
namespace "ap*" { capabilities = ["submit-job"] }
namespace "app*" { policy = "read" }`, "apps")
	assert.Contains(t, files, "jobs/apps/web/job.json")
	assert.NotContains(t, got, "jobs")
	got, files = missing("closest", `namespace "*" { policy = "read" }
namespace "ap*" { capabilities = ["submit-job"] }`, "apps", "default")
	assert.NotContains(t, files, "jobs/apps/web/job.json")
	assert.Contains(t, got, `namespaces, jobs and CSI volumes: Nomad leaves out without a word what the token may not list: "apps"; `)

	got, files = missing("but-secret", reader+`namespace "secret" { policy = "deny" }`)
	assert.NotContains(t, files, "jobs/secret/web/job.json")
	assert.Contains(t, got, `namespaces, jobs and CSI volumes: Nomad leaves out without a word what the token may not list: "secret"; `)
	assert.NotContains(t, got, "node pools")

	got, _ = missing("but-a", strings.Replace(reader, `variables {`, `variables { path "a/*" { capabilities = ["deny"] } `, 1))
	assert.Contains(t, got, `variables: Nomad leaves out without a word what the token may not list: "*/a/*"; `)
	assert.NotContains(t, got, "jobs")

	got, files = missing("list-only", `namespace "*" {
  capabilities = ["list-jobs"]
  variables { path "*" { capabilities = ["list"] } }
}`)
	assert.NotContains(t, files, "jobs/apps/api/job.json")
	assert.Contains(t, got, "job apps/api, apps/web, secret/web: denied (403); the token needs ")
	assert.Contains(t, got, "variable apps/nomad/jobs/web, default/a, ")
}

// testNoRights has tokens that may not even list jobs.
func testNoRights(t *testing.T, r *region) {
	t.Helper()
	for name, secret := range map[string]string{
		"no token": "", "unknown token": "0c9f0b5e-0000-4000-8000-000000000000",
		"pools only": r.token(t, "pools", `node_pool "*" { policy = "read" }`),
	} {
		_, err := nomad.New(r.as(t, secret), nomad.Options{}).Open(t.Context())
		var typed *source.Error
		require.ErrorAs(t, err, &typed, name)
		assert.Equal(t, source.Denied, typed.Reason, name)
		assert.False(t, typed.Retryable())
		if secret != "" {
			assert.NotContains(t, err.Error(), secret)
		}
	}
	_, err := nomad.New(r.as(t, ""), nomad.Options{}).Open(t.Context())
	require.ErrorContains(t, err, `the token needs namespace "*" { policy = "read" }`)

	// Of two namespaces one may be read.
	files, _, info := r.read(t, r.token(t, "apps-only", `namespace "apps" { policy = "read" }`), "apps", "secret")
	assert.Contains(t, files, "jobs/apps/web/job.json")
	assert.Contains(t, strings.Join(info.GetMissing(), "\n"), "jobs of namespace secret: denied (403)")
	assert.NotEmpty(t, info.GetWorries())
}
