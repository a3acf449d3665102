package nomad_test

import (
	"context"
	"encoding/json"
	"io"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/hashicorp/nomad/api"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/lifeboat-fleet/lifeboat/fleet/config"
	"github.com/lifeboat-fleet/lifeboat/fleet/fleettest/bintest"
	lifeboatv1 "github.com/lifeboat-fleet/lifeboat/proto/lifeboat/v1"
	"github.com/lifeboat-fleet/lifeboat/services/backup/internal/source/nomad"
)

// region is a server with ACLs on.
type region struct {
	address string
	root    string // the management token that was made at the start
	api     *api.Client
}

func startRegion(t *testing.T) *region {
	t.Helper()
	n, err := bintest.StartNomadWith(t.Context(), t.TempDir(), bintest.NomadOptions{HCL: "acl { enabled = true }"})
	require.NoError(t, err)
	t.Cleanup(func() { require.NoError(t, n.Kill()) })
	r := &region{address: n.Address, api: dial(t, n.Address)}
	require.Eventually(t, func() bool { // the leader may be known before it has taken over
		token, _, berr := r.api.ACLTokens().Bootstrap(nil)
		if berr != nil {
			return false
		}
		r.root = token.SecretID
		return true
	}, time.Minute, 50*time.Millisecond)
	r.api.SetSecretID(r.root)
	pauseScheduler(t, r.api)
	require.Eventually(t, func() bool { // and before it has made a key for variables
		_, _, verr := r.api.Variables().Create(&api.Variable{Path: "ready", Items: map[string]string{"k": "v"}}, nil)
		return verr == nil
	}, time.Minute, 50*time.Millisecond)
	_, err = r.api.Variables().Delete("ready", nil)
	require.NoError(t, err)
	return r
}

// as is what the source would be configured with.
func (r *region) as(t *testing.T, secret string, namespaces ...string) config.Nomad {
	t.Helper()
	cfg := config.Nomad{Address: r.address, Namespaces: namespaces}
	if secret != "" {
		file := filepath.Join(t.TempDir(), "token")
		require.NoError(t, os.WriteFile(file, []byte(secret+"\n"), 0o600))
		cfg.TokenFile = config.SecretFile(file)
	}
	return cfg
}

// token makes a client token with one policy of the rules.
func (r *region) token(t *testing.T, name, rules string) string {
	t.Helper()
	_, err := r.api.ACLPolicies().Upsert(&api.ACLPolicy{Name: name, Rules: rules}, nil)
	require.NoError(t, err)
	token, _, err := r.api.ACLTokens().Create(&api.ACLToken{Name: name, Type: "client", Policies: []string{name}}, nil)
	require.NoError(t, err)
	return token.SecretID
}

// run runs Nomad's own command line in a folder.
func (r *region) run(t *testing.T, dir, command string) {
	t.Helper()
	bin, err := bintest.Find("nomad")
	require.NoError(t, err)
	cmd := exec.CommandContext(t.Context(), "sh", "-ec", command)
	cmd.Dir = dir
	cmd.Env = append(os.Environ(), "NOMAD_ADDR="+r.address, "NOMAD_TOKEN="+r.root,
		"PATH="+filepath.Dir(bin)+":"+os.Getenv("PATH"))
	out, err := cmd.CombinedOutput()
	require.NoError(t, err, "%s: %s", command, out)
}

func readSource(t *testing.T, src *nomad.Source) (map[string][]byte, []byte, *lifeboatv1.SourceInfo) {
	t.Helper()
	st, err := src.Open(t.Context())
	require.NoError(t, err)
	defer st.Close()
	data, err := io.ReadAll(st)
	require.NoError(t, err)
	info, err := st.Info(t.Context())
	require.NoError(t, err)
	return untar(t, data), data, info
}

// read reads few to a page, so that several are read of everything.
func (r *region) read(t *testing.T, secret string, namespaces ...string) (map[string][]byte, []byte, *lifeboatv1.SourceInfo) {
	t.Helper()
	return readSource(t, nomad.New(r.as(t, secret, namespaces...), nomad.Options{PerPage: 2}))
}

func TestRegion(t *testing.T) {
	r := startRegion(t)
	r.fill(t)
	t.Run("management", func(t *testing.T) { testManagement(t, r) })
	t.Run("the same bytes again", func(t *testing.T) { testSame(t, r) })
	t.Run("some namespaces", func(t *testing.T) { testNamespaces(t, r) })
	t.Run("restore", func(t *testing.T) { testRestore(t, r) })
	t.Run("reader", func(t *testing.T) { testReader(t, r) })
	t.Run("few rights", func(t *testing.T) { testFewRights(t, r) })
	t.Run("no rights", func(t *testing.T) { testNoRights(t, r) })
	t.Run("operator snapshot denied", func(t *testing.T) { testOperatorDenied(t, r) })
	t.Run("roles of a token", func(t *testing.T) { testTokenRoles(t, r) })
}

// testTokenRoles has a token with a role. Nomad's list tells the role's id only, and another region gives the role another one: a
// person who makes the token anew could not know which role it had.
func testTokenRoles(t *testing.T, r *region) {
	t.Helper()
	token, _, err := r.api.ACLTokens().Create(&api.ACLToken{
		Name: "robot", Type: "client", Roles: []*api.ACLTokenRoleLink{{Name: "operator"}},
	}, nil)
	require.NoError(t, err)
	files, _, _ := r.read(t, r.root)
	var kept api.ACLToken
	require.NoError(t, json.Unmarshal(files["acl/tokens/"+token.AccessorID+".json"], &kept))
	assert.Equal(t, token.Roles[0].ID, kept.Roles[0].ID)
	assert.Equal(t, "operator", kept.Roles[0].Name)
}

// testManagement has the whole content.
func testManagement(t *testing.T, r *region) {
	t.Helper()
	files, _, info := r.read(t, r.root)
	assert.Equal(t, map[string]int64{
		"jobs": 3, "submissions": 1, "versions": 5, "version_submissions": 1, "namespaces": 3, "node_pools": 1, "quotas": 0,
		"acl_policies": 1, "acl_roles": 1, "acl_auth_methods": 1, "acl_binding_rules": 1, "acl_tokens": 1, "variables": 6,
		"csi_volumes": 0, "host_volumes": 0,
	}, info.GetCounts())
	assert.Equal(t, []string{
		"secrets of ACL auth method sso: Nomad tells nobody; only the operator snapshot (full: true) holds them",
	}, info.GetMissing())
	assert.Empty(t, info.GetWorries())
	assert.Equal(t, "management", info.GetIdentity()["token_policies"])
	assert.Len(t, info.GetIdentity()["token_accessor"], 36)
	for name, part := range map[string]string{
		"jobs/apps/api/job.nomad.hcl":              "/bin/false",
		"jobs/apps/api/submission.json":            `"VariableFlags":{"count":"2"}`,
		"jobs/apps/api/versions/1.nomad.hcl":       "/bin/true",
		"jobs/apps/api/versions/1.submission.json": `"VariableFlags":{"count":"2"}`,
		"jobs/apps/api/versions/1.json":            `"Version":1`,
		"jobs/apps/api/versions/0.json":            `"Name":"golden"`,
		"jobs/apps/api/versions/2.json":            `"Version":2`,
		"jobs/secret/web/versions/0.json":          `"SubmitTime"`,
		"namespaces/secret.json":                   "what we run in secret",
		"node_pools/gpu.json":                      "cards",
		"variables/apps/nomad%2Fjobs%2Fweb.json":   "<p&ss>apps",
		"variables/default/long~path_1%2Fx.json":   `"k":"long~path_1/x"`,
		"acl/policies/ops.hcl":                     "# why\n",
		"acl/policies/ops.json":                    `"JobID":"web"`,
		"acl/roles/operator.json":                  "on call",
		"acl/auth_methods/sso.json":                "https://sso.example.com",
		"scheduler_configuration.json":             `"SchedulerAlgorithm":"spread"`,
	} {
		assert.Contains(t, string(files[name]), part, name)
	}
	assert.NotContains(t, files, "jobs/apps/api/versions/0.submission.json", "it came by the API")
	assert.NotContains(t, files, "jobs/apps/api/versions/2.submission.json", "it is the job's")
	for name, b := range files {
		assert.NotContains(t, string(b), "SecretID", name)
		assert.NotContains(t, string(b), r.root, name)
		for _, field := range []string{"ModifyIndex", "CreateIndex", "StatusDescription", "NomadTokenID"} {
			// Of a submission, the index is part of what was submitted.
			assert.NotContains(t, strings.ReplaceAll(string(b), `"JobModifyIndex"`, ""), `"`+field+`"`, name)
		}
	}
}

// testSame reads while only what Nomad does by itself has changed.
func testSame(t *testing.T, r *region) {
	t.Helper()
	broker := func(paused bool) {
		t.Helper()
		conf, _, err := r.api.Operator().SchedulerGetConfiguration(nil)
		require.NoError(t, err)
		conf.SchedulerConfig.PauseEvalBroker = paused
		_, _, err = r.api.Operator().SchedulerSetConfiguration(conf.SchedulerConfig, nil)
		require.NoError(t, err)
	}
	status := func() string {
		t.Helper()
		j, _, err := r.api.Jobs().Info("flips", nil)
		require.NoError(t, err)
		return *j.Status
	}
	j := job("flips", "default", 10)
	j.TaskGroups[0].Count = new(int)
	_, _, err := r.api.Jobs().Register(j, nil)
	require.NoError(t, err)
	defer func() {
		broker(true)
		_, _, derr := r.api.Jobs().Deregister("flips", true, nil)
		require.NoError(t, derr)
	}()
	first := status()
	_, before, info := r.read(t, r.root)
	for range 5 { // the order of a map's keys differs from answer to answer
		_, again, _ := r.read(t, r.root)
		require.Equal(t, before, again, "nothing has changed")
	}
	broker(false)
	require.Eventually(t, func() bool { return status() != first }, time.Minute, 20*time.Millisecond)
	// Somebody takes a lock and gives it back.
	lock := &api.Variable{Path: "a/b", Items: map[string]string{"k": "a/b"}, Lock: &api.VariableLock{TTL: "30s", LockDelay: "1s"}}
	locked, _, err := r.api.Variables().AcquireLock(lock, nil)
	require.NoError(t, err)
	broker(true)
	_, during, later := r.read(t, r.root)
	assert.Equal(t, before, during, "the status is not the job's, nor the lock the variable's")
	assert.Greater(t, later.GetRevision(), info.GetRevision())
	_, _, err = r.api.Variables().ReleaseLock(&api.Variable{Path: "a/b", Lock: locked.Lock}, nil)
	require.NoError(t, err)
	_, after, _ := r.read(t, r.root)
	assert.Equal(t, before, after)

	st, err := nomad.New(r.as(t, r.root), nomad.Options{}).Open(t.Context())
	require.NoError(t, err)
	defer st.Close()
	hint, ok := st.(interface{ Index() int64 })
	require.True(t, ok)
	assert.Equal(t, later.GetRevision(), hint.Index(), "it is known before anything is read")
}

// testNamespaces reads some namespaces only. What belongs to none is read all the same.
func testNamespaces(t *testing.T, r *region) {
	t.Helper()
	files, _, info := r.read(t, r.root, "default", "apps", "apps")
	assert.Subset(t, info.GetCounts(), map[string]int64{"jobs": 2, "namespaces": 2, "variables": 5, "node_pools": 1, "acl_policies": 1})
	for name := range files {
		assert.NotContains(t, name, "secret")
	}
	assert.Len(t, info.GetMissing(), 1, "the secret of the auth method")

	files, _, info = r.read(t, r.root, "apps", "aps")
	assert.Contains(t, files, "jobs/apps/web/job.json")
	assert.Contains(t, info.GetMissing(), "namespace aps: there is none of this name, or the token may not see it")
	assert.Equal(t, []string{`the namespace "aps" is to be backed up, and Nomad shows none of this name`}, info.GetWorries())

	_, whole, _ := r.read(t, r.root)
	_, star, info := r.read(t, r.root, "*")
	assert.Equal(t, whole, star)
	assert.Empty(t, info.GetWorries())
}

// restoreCommands are in the order in which things need each other.
func restoreCommands() []string {
	each := func(dir, command string) string {
		return "find " + dir + " -name '*.json' | sort | xargs -I{} " + command
	}
	put := func(dir, path string) string {
		return "find " + dir + " -name '*.json' | sort | while read -r f; do nomad operator api -X PUT " + path + ` < "$f"; done`
	}
	return []string{
		each("namespaces", "nomad namespace apply -json {}"),
		each("node_pools", "nomad node pool apply -json {}"),
		put("acl/policies", `"/v1/acl/policy/$(basename "$f" .json)"`),
		put("acl/roles", "/v1/acl/role"),
		put("acl/auth_methods", "/v1/acl/auth-method"),
		put("acl/binding_rules", "/v1/acl/binding-rule"),
		each("variables", "nomad var put -out=none @{}"),
		"find jobs -name job.json | sort | xargs -I{} nomad job run -json -detach {}",
		"nomad operator api -X PUT /v1/operator/scheduler/configuration < scheduler_configuration.json",
	}
}

func unpack(t *testing.T, files map[string][]byte) string {
	t.Helper()
	dir := t.TempDir()
	for name, b := range files {
		require.NoError(t, os.MkdirAll(filepath.Join(dir, filepath.Dir(name)), 0o700))
		require.NoError(t, os.WriteFile(filepath.Join(dir, name), b, 0o600))
	}
	return dir
}

// testRestore brings everything back on a fresh server with Nomad's own commands.
func testRestore(t *testing.T, r *region) {
	t.Helper()
	files, _, _ := r.read(t, r.root)
	fresh := startRegion(t)
	dir := unpack(t, files)
	for _, command := range restoreCommands() {
		fresh.run(t, dir, command)
	}
	restored, _, info := fresh.read(t, fresh.root)
	assert.EqualValues(t, 3, info.GetCounts()["jobs"])
	var compared int
	rules := func(from map[string][]byte) (all []string) {
		for name, b := range from {
			if strings.HasPrefix(name, "acl/binding_rules/") {
				all = append(all, string(b))
			}
		}
		return all
	}
	assert.Equal(t, rules(files), rules(restored), "only their ids are new")
	for name, want := range files {
		switch {
		case strings.HasPrefix(name, "jobs/") && filepath.Base(name) != "job.json": // the history begins anew
		case strings.HasPrefix(name, "acl/binding_rules/"), strings.HasPrefix(name, "acl/tokens/"):
		default:
			assert.Equal(t, string(want), string(restored[name]), name)
			compared++
		}
	}
	assert.Equal(t, 3+3+1+2+1+1+6+1, compared)
	// The other forms: rules as HCL, the source as it was submitted, and an earlier version.
	fresh.run(t, dir, "nomad acl policy apply ops acl/policies/ops.hcl")
	fresh.run(t, dir, "nomad job run -detach -var count=2 jobs/apps/api/job.nomad.hcl")
	fresh.run(t, dir, "nomad job run -json -detach jobs/apps/api/versions/1.json")
	j, _, err := fresh.api.Jobs().Info("api", &api.QueryOptions{Namespace: "apps"})
	require.NoError(t, err)
	assert.Equal(t, "/bin/true", j.TaskGroups[0].Tasks[0].Config["command"])
}

// quiet is a client whose connections do not outlive the test.
func quiet(transport *http.Transport) *http.Client {
	transport.DisableKeepAlives = true
	return &http.Client{Transport: transport}
}

// TestRemovedMeanwhile removes things after they were listed and before they are read.
func TestRemovedMeanwhile(t *testing.T) {
	r := startRegion(t)
	r.fill(t)
	ctx := context.WithoutCancel(t.Context())
	gone := make(map[string]bool)
	address := front(t, r.address, func(_ http.ResponseWriter, req *http.Request) bool {
		var err error
		switch path := req.URL.Path; {
		case gone[path]:
			return false
		case path == "/v1/var/a/b":
			_, err = r.api.Variables().Delete("a/b", (&api.WriteOptions{}).WithContext(ctx))
		case path == "/v1/acl/policy/ops":
			_, err = r.api.ACLPolicies().Delete("ops", (&api.WriteOptions{}).WithContext(ctx))
		case path == "/v1/job/api/versions":
			_, _, err = r.api.Jobs().Deregister("api", true, (&api.WriteOptions{Namespace: "apps"}).WithContext(ctx))
		}
		gone[req.URL.Path] = true
		assert.NoError(t, err)
		return false
	})
	cfg := r.as(t, r.root)
	cfg.Address = address
	_, _, info := readSource(t, nomad.New(cfg, nomad.Options{}))
	for _, missing := range []string{
		"variable default/a/b: removed while the region was read", "ACL policy ops: removed while the region was read",
		"versions of job apps/api: purged while the jobs were read",
	} {
		assert.Contains(t, info.GetMissing(), missing)
	}
	assert.EqualValues(t, 5, info.GetCounts()["variables"])
}
