package nomad_test

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/hashicorp/nomad/api"
	"github.com/stretchr/testify/require"
)

// fill makes some of everything.
func (r *region) fill(t *testing.T) {
	t.Helper()
	for _, ns := range []string{"apps", "secret"} {
		_, err := r.api.Namespaces().Register(&api.Namespace{
			Name: ns, Description: "what we run in " + ns,
			Meta: map[string]string{"c": "1", "a": "2", "b": "3", "d": "4", "e": "5"},
		}, nil)
		require.NoError(t, err)
		_, _, err = r.api.Variables().Create(&api.Variable{
			Namespace: ns, Path: "nomad/jobs/web", Items: map[string]string{"password": "<p&ss>" + ns, "user": "üser"},
		}, &api.WriteOptions{Namespace: ns})
		require.NoError(t, err)
		j := job("web", ns, 100)
		for _, key := range []string{"z", "y", "x", "w", "v", "u"} {
			j.SetMeta(key, key)
		}
		_, _, err = r.api.Jobs().Register(j, &api.WriteOptions{Namespace: ns})
		require.NoError(t, err)
	}
	for _, path := range []string{"a", "a/b", "a/b/c", "long~path_1/x"} {
		_, _, err := r.api.Variables().Create(&api.Variable{Path: path, Items: map[string]string{"k": path}}, nil)
		require.NoError(t, err)
	}
	_, err := r.api.NodePools().Register(&api.NodePool{Name: "gpu", Description: "cards", Meta: map[string]string{"k": "v"}}, nil)
	require.NoError(t, err)
	r.fillACL(t)
	conf, _, err := r.api.Operator().SchedulerGetConfiguration(nil)
	require.NoError(t, err)
	conf.SchedulerConfig.SchedulerAlgorithm = api.SchedulerAlgorithmSpread
	_, _, err = r.api.Operator().SchedulerSetConfiguration(conf.SchedulerConfig, nil)
	require.NoError(t, err)
	r.fillVersions(t)
}

func (r *region) fillACL(t *testing.T) {
	t.Helper()
	_, err := r.api.ACLPolicies().Upsert(&api.ACLPolicy{
		Name: "ops", Description: "for operators", Rules: "# why\nnamespace \"apps\" { policy = \"write\" }\n",
		JobACL: &api.JobACL{Namespace: "apps", JobID: "web"},
	}, nil)
	require.NoError(t, err)
	_, _, err = r.api.ACLRoles().Create(&api.ACLRole{
		Name: "operator", Description: "on call", Policies: []*api.ACLRolePolicyLink{{Name: "ops"}},
	}, nil)
	require.NoError(t, err)
	_, _, err = r.api.ACLAuthMethods().Create(&api.ACLAuthMethod{
		Name: "sso", Type: "OIDC", TokenLocality: "local", MaxTokenTTL: time.Hour, Default: true,
		Config: &api.ACLAuthMethodConfig{
			OIDCDiscoveryURL: "https://sso.example.com", OIDCClientID: "nomad", OIDCClientSecret: "s3cr3t-of-sso",
			AllowedRedirectURIs: []string{"http://localhost:4649/oidc/callback"}, ClaimMappings: map[string]string{"a": "b", "c": "d"},
		},
	}, nil)
	require.NoError(t, err)
	_, _, err = r.api.ACLBindingRules().Create(&api.ACLBindingRule{
		Description: "all", AuthMethod: "sso", BindType: "role", BindName: "operator", Selector: "value.a == x",
	}, nil)
	require.NoError(t, err)
	_, _, err = r.api.ACLTokens().Create(&api.ACLToken{
		Name: "login", Type: "client", Policies: []string{"ops"}, ExpirationTTL: time.Hour,
	}, nil)
	require.NoError(t, err)
}

const versioned = `
variable "count" { default = 1 }
job "api" {
  namespace = "apps"
  group "g" {
    count = var.count
    task "t" {
      driver = "raw_exec"
      config { command = "/bin/%s" }
    }
  }
}
`

// fillVersions makes a job of three versions: one that came by the API and is tagged, and two that were submitted as HCL.
func (r *region) fillVersions(t *testing.T) {
	t.Helper()
	dir := t.TempDir()
	submit := func(command string) {
		t.Helper()
		text := strings.ReplaceAll(versioned, "%s", command)
		require.NoError(t, os.WriteFile(filepath.Join(dir, "api.nomad.hcl"), []byte(text), 0o600))
		r.run(t, dir, "nomad job run -detach -var count=2 api.nomad.hcl")
	}
	// A job that comes by the API after one that was submitted gets the submission of the version that it says it is of.
	first := job("api", "apps", 1)
	_, _, err := r.api.Jobs().Register(first, &api.WriteOptions{Namespace: "apps"})
	require.NoError(t, err)
	r.run(t, dir, "nomad job tag apply -namespace=apps -version=0 -name=golden -description=good api")
	submit("true")
	submit("false")
}
