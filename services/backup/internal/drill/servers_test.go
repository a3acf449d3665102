package drill_test

import (
	"bytes"
	"encoding/json"
	"fmt"
	"net/http"
	"os"
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
	"github.com/lifeboat-fleet/lifeboat/services/backup/internal/source/consul"
	"github.com/lifeboat-fleet/lifeboat/services/backup/internal/source/nomad"
	"github.com/lifeboat-fleet/lifeboat/services/backup/internal/throwaway"
)

const (
	waitFor   = 20 * time.Second
	pollEvery = 20 * time.Millisecond
)

func startConsul(t *testing.T, o bintest.ConsulOptions) *bintest.Consul {
	t.Helper()
	c, err := bintest.StartConsulWith(t.Context(), t.TempDir(), o)
	require.NoError(t, err)
	t.Cleanup(func() { require.NoError(t, c.Kill()) })
	return c
}

func do(t *testing.T, method, url, token string, body []byte) {
	t.Helper()
	req, err := http.NewRequestWithContext(t.Context(), method, url, bytes.NewReader(body))
	require.NoError(t, err)
	req.Header.Set("X-Consul-Token", token)
	resp, err := http.DefaultClient.Do(req)
	require.NoError(t, err)
	defer resp.Body.Close()
	require.Equal(t, http.StatusOK, resp.StatusCode)
}

// takeConsul snapshots the keys and, when full, the datacenter.
func takeConsul(t *testing.T, cfg config.Consul) *shelf {
	t.Helper()
	sources := []opener{consul.New(cfg, consul.Options{})}
	if cfg.Full {
		sources = append(sources, consul.NewRaft(cfg, consul.Options{}))
	}
	return take(t, config.Target{Name: "consul-test", Consul: &cfg}, sources...)
}

const management = "0bd0b9e4-3a84-4a3c-9d41-2c6b70a8f1aa"

// smallConsul is a snapshot with the datacenter, whose keys need a token.
func smallConsul(t *testing.T) *shelf {
	t.Helper()
	c := startConsul(t, bintest.ConsulOptions{Management: management})
	for i := range 50 {
		do(t, http.MethodPut, fmt.Sprintf("%s/v1/kv/config/key-%d?flags=%d", c.Address, i, i), management, []byte(strings.Repeat("v", i)))
	}
	do(t, http.MethodPut, c.Address+"/v1/kv/config/db%20name%3F", management, []byte("orders"))
	token := filepath.Join(t.TempDir(), "token")
	require.NoError(t, os.WriteFile(token, []byte(management), 0o600))
	return takeConsul(t, config.Consul{Address: c.Address, TokenFile: config.SecretFile(token), Full: true})
}

func TestConsul(t *testing.T) {
	s := smallConsul(t)
	t.Run("passes", func(t *testing.T) { testConsulPasses(t, s) })
	t.Run("differs", func(t *testing.T) { testConsulDiffers(t, s) })
	t.Run("written in between", func(t *testing.T) {
		rep := requirePassed(t, s.change(t, func(m *lifeboatv1.Manifest) { m.Source.Revision-- }).input(t))
		assert.Equal(t, "(not comparable)", found(rep)["raft snapshot: keys"])
		assert.Contains(t, rep.GetSummary(), "a key was written between the two reads")
	})
	t.Run("another raft snapshot", func(t *testing.T) {
		requireFailed(t, s.change(t, func(m *lifeboatv1.Manifest) { m.Parts[0].Source.Revision++ }).input(t),
			"compare", "raft snapshot: index is ")
	})
	t.Run("a broken raft snapshot", func(t *testing.T) {
		other := s.change(t, nil)
		info := other.manifest.GetParts()[0].GetSource()
		raw := s.raw["snap"]
		part := other.put(t, raw[:len(raw)-20], "snap")
		part.Source = info
		other.manifest.Parts[0] = part
		requireFailed(t, other.input(t), "restore", "raft snapshot")
	})
	t.Run("no list of keys", func(t *testing.T) {
		for name, raw := range map[string]string{
			"cut": string(s.raw["json"][:200]), "no list": `{"key":"a"}`, "nothing": "", "no base64": `[{"key":"a","flags":0,"value":"%"}]`,
		} {
			t.Run(name, func(t *testing.T) {
				other := s.change(t, nil)
				other.replace(t, []byte(raw))
				requireFailed(t, other.input(t), "restore")
			})
		}
	})
}

// TestConsulPrefixes has keys of a prefix only, of awkward names, and the raft snapshot of everything.
func TestConsulPrefixes(t *testing.T) {
	c := startConsul(t, bintest.ConsulOptions{})
	type op struct{ Verb, Key, Value string }
	var ops []struct{ KV op }
	for _, key := range []string{"config/a//b", "config/", "config/../x", "config/ü/%2F?&#", "config/a b", "other/c", "config", "zzz"} {
		ops = append(ops, struct{ KV op }{op{"set", key, "c2VjcmV0"}})
	}
	body, err := json.Marshal(ops)
	require.NoError(t, err)
	do(t, http.MethodPut, c.Address+"/v1/txn", "", body)
	s := takeConsul(t, config.Consul{Address: c.Address, Prefixes: []string{"config/", "other/"}, Full: true})
	value := "secret"
	s.target.Drill.Checks = []config.Check{
		{Key: "config/a//b", Value: &value},
		{Key: "config/../x"},
		{Key: "config/ü/%2F?&#"},
		{Key: "config/"},
		{Prefix: "config/", Min: 5},
		{Prefix: "other/"},
		// Consul takes what stands in a path for another one.
		{Prefix: "config/a//", Min: 1},
		{Prefix: "config/..", Min: 1},
		{Prefix: "config/ü/%2F", Min: 1},
	}
	rep := requirePassed(t, s.input(t))
	got := found(rep)
	assert.Equal(t, "6=6", got["keys"])
	t.Log(rep.GetSummary())
	for what, text := range got {
		if strings.HasPrefix(what, "raft snapshot: ") {
			assert.NotContains(t, text, "!", what)
		}
	}
	assert.Contains(t, got, "raft snapshot: keys")

	s.target.Drill.Checks = []config.Check{{Key: "zzz"}, {Prefix: "zz"}, {Prefix: "config//"}, {Prefix: "config/./"}}
	requireFailed(t, s.input(t), "check", `key "zzz" is missing`, `the number of keys under "zz" is 0`,
		`the number of keys under "config//" is 0`, `the number of keys under "config/./" is 0`)
}

func testConsulPasses(t *testing.T, s *shelf) {
	t.Helper()
	in := s.input(t)
	in.Servers.Confine = []string{os.Args[0], "confine"}
	in.Target.Drill.MaxRTO = time.Hour
	value := "orders"
	in.Target.Drill.Checks = []config.Check{
		{Key: "config/key-7"},
		{Key: "config/db name?", Value: &value},
		{Prefix: "config/key-", Min: 50},
		{Prefix: "config/db"},
		{Count: "keys", Min: 51},
		{Key: "config/key-3", Matches: "^v+$"},
	}
	rep := requirePassed(t, in)
	got := found(rep)
	assert.Equal(t, "51=51", got["keys"])
	assert.Equal(t, fmt.Sprintf("%[1]d=%[1]d", s.manifest.GetSource().GetCounts()["bytes"]), got["bytes"])
	assert.Equal(t, fmt.Sprintf("sha256 %[1]s=sha256 %[1]s", sum(s.raw["json"])), got["content"])
	assert.Equal(t, "51=51", got["raft snapshot: keys"])
	assert.Contains(t, got["raft snapshot: content"], "sha256 "+sum(s.raw["json"]))
	assert.Contains(t, got, "raft snapshot: index")
	assert.Contains(t, rep.GetSummary(), "Checks of the target that hold: 6.")
	assert.NotContains(t, rep.GetSummary(), "orders")
	assert.NotContains(t, rep.String(), "orders")
	assert.Contains(t, []string{throwaway.IsolatedByNamespace, throwaway.IsolatedByConfiguration}, rep.GetIsolation())
	assert.Positive(t, rep.GetUsage().GetMemoryBytes())
	for _, p := range []string{"manifest", "prepare", "fetch", "decrypt", "start", "restore", "compare", "check", "stop"} {
		assert.Contains(t, phases(rep), p)
	}
}

// testConsulDiffers stores other keys than the manifest describes the restored ones by: its digests are those of another list.
func testConsulDiffers(t *testing.T, s *shelf) {
	t.Helper()
	t.Run("counts", func(t *testing.T) {
		for _, what := range []string{"keys", "bytes"} {
			requireFailed(t, s.change(t, func(m *lifeboatv1.Manifest) { m.Source.Counts[what]++ }).input(t), "compare", what+" is ")
		}
	})
	t.Run("a key twice", func(t *testing.T) {
		other := s.change(t, func(m *lifeboatv1.Manifest) { m.Parts = nil })
		other.replace(t, []byte(`[{"key":"a","flags":0,"value":"MQ=="},{"key":"a","flags":0,"value":"Mg=="}]`))
		in := other.input(t)
		rep, err := throwawayRun(t, in)
		require.NoError(t, err)
		assert.False(t, rep.GetPassed())
	})
	t.Run("written otherwise", func(t *testing.T) {
		other := s.change(t, func(m *lifeboatv1.Manifest) { m.Parts = nil; m.Source.Counts = map[string]int64{"keys": 2} })
		other.replace(t, []byte(`[{"key": "a", "flags": 0, "value": "MQ=="}, {"key": "b", "flags": 1, "value": ""}]`))
		rep := requirePassed(t, other.input(t))
		assert.Equal(t, "equal key by key=equal key by key", found(rep)["content"])
	})
}

func startNomad(t *testing.T, hcl string) *bintest.Nomad {
	t.Helper()
	n, err := bintest.StartNomadWith(t.Context(), t.TempDir(), bintest.NomadOptions{HCL: hcl})
	require.NoError(t, err)
	t.Cleanup(func() { require.NoError(t, n.Kill()) })
	return n
}

// smallNomad is a snapshot with some of everything, of a region with ACLs.
func smallNomad(t *testing.T) *shelf {
	t.Helper()
	n := startNomad(t, `acl { enabled = true }`)
	c, err := api.NewClient(&api.Config{Address: n.Address})
	require.NoError(t, err)
	boot, _, err := c.ACLTokens().Bootstrap(nil)
	require.NoError(t, err)
	c.SetSecretID(boot.SecretID)
	fillNomad(t, c)
	token := filepath.Join(t.TempDir(), "token")
	require.NoError(t, os.WriteFile(token, []byte(boot.SecretID), 0o600))
	cfg := config.Nomad{Address: n.Address, TokenFile: config.SecretFile(token), Full: true}
	return take(t, config.Target{Name: "nomad-test", Nomad: &cfg}, nomad.New(cfg, nomad.Options{}), nomad.NewOperator(cfg, nomad.Options{}))
}

func nomadJob(id, namespace string, count int) *api.Job {
	j := api.NewServiceJob(id, id, "global", 50)
	j.Namespace, j.Datacenters = &namespace, []string{"dc1"}
	g := api.NewTaskGroup("g", count)
	task := api.NewTask("t", "raw_exec")
	task.SetConfig("command", "/bin/true")
	g.AddTask(task)
	j.AddTaskGroup(g)
	return j
}

func fillNomad(t *testing.T, c *api.Client) {
	t.Helper()
	_, err := c.Namespaces().Register(&api.Namespace{Name: "apps", Description: "what we run", Meta: map[string]string{"a": "1"}}, nil)
	require.NoError(t, err)
	_, err = c.NodePools().Register(&api.NodePool{Name: "gpu", Description: "cards"}, nil)
	require.NoError(t, err)
	for _, path := range []string{"nomad/jobs/web", "a/b"} {
		// A new server makes its keyring only after its leader.
		require.Eventually(t, func() bool {
			_, _, err = c.Variables().Create(&api.Variable{Namespace: "apps", Path: path, Items: map[string]string{"password": "hunter2"}},
				&api.WriteOptions{Namespace: "apps"})
			return err == nil
		}, waitFor, pollEvery, "%v", err)
	}
	_, err = c.ACLPolicies().Upsert(&api.ACLPolicy{Name: "ops", Rules: `namespace "apps" { policy = "write" }`}, nil)
	require.NoError(t, err)
	_, _, err = c.ACLRoles().Create(&api.ACLRole{Name: "operator", Policies: []*api.ACLRolePolicyLink{{Name: "ops"}}}, nil)
	require.NoError(t, err)
	_, _, err = c.ACLAuthMethods().Create(&api.ACLAuthMethod{
		Name: "sso", Type: "OIDC", TokenLocality: "local", MaxTokenTTL: time.Hour, Default: true, Config: &api.ACLAuthMethodConfig{
			OIDCDiscoveryURL: "https://sso.example.com", OIDCClientID: "nomad", OIDCClientSecret: "hunter2",
			AllowedRedirectURIs: []string{"http://localhost:4649/oidc/callback"}, ClaimMappings: map[string]string{"a": "b"},
		},
	}, nil)
	require.NoError(t, err)
	_, _, err = c.ACLBindingRules().Create(&api.ACLBindingRule{AuthMethod: "sso", BindType: "role", BindName: "operator"}, nil)
	require.NoError(t, err)
	conf, _, err := c.Operator().SchedulerGetConfiguration(nil)
	require.NoError(t, err)
	conf.SchedulerConfig.SchedulerAlgorithm = api.SchedulerAlgorithmSpread
	_, _, err = c.Operator().SchedulerSetConfiguration(conf.SchedulerConfig, nil)
	require.NoError(t, err)
	_, _, err = c.ACLTokens().Create(&api.ACLToken{Name: "ci", Type: "client", Policies: []string{"ops"}}, nil)
	require.NoError(t, err)
	for _, j := range []*api.Job{nomadJob("web", "apps", 2), nomadJob("batch/nightly", "apps", 1), nomadJob("web", "default", 3)} {
		_, _, err = c.Jobs().Register(j, nil)
		require.NoError(t, err)
	}
	_, _, err = c.Jobs().RegisterOpts(nomadJob("source", "default", 1), &api.RegisterOptions{
		Submission: &api.JobSubmission{Source: "job \"source\" {}", Format: "hcl2"},
	}, nil)
	require.NoError(t, err)
	second := nomadJob("web", "apps", 4)
	_, _, err = c.Jobs().Register(second, nil)
	require.NoError(t, err)
}

func TestNomad(t *testing.T) {
	s := smallNomad(t)
	t.Run("passes", func(t *testing.T) { testNomadPasses(t, s) })
	t.Run("differs", func(t *testing.T) {
		for _, what := range []string{"jobs", "namespaces", "variables", "acl_policies", "node_pools"} {
			requireFailed(t, s.change(t, func(m *lifeboatv1.Manifest) { m.Source.Counts[what]++ }).input(t), "compare", what+" is ")
		}
	})
	t.Run("another operator snapshot", func(t *testing.T) {
		requireFailed(t, s.change(t, func(m *lifeboatv1.Manifest) { m.Parts[0].Source.Revision++ }).input(t),
			"compare", "operator snapshot: index is ")
	})
	t.Run("no archive", func(t *testing.T) {
		other := s.change(t, nil)
		for _, raw := range [][]byte{nil, s.raw["tar"][:1000], bytes.Repeat([]byte("garbage "), 200)} {
			other.replace(t, raw)
			requireFailed(t, other.input(t), "restore")
		}
	})
}

func testNomadPasses(t *testing.T, s *shelf) {
	t.Helper()
	in := s.input(t)
	in.Servers.Confine = []string{os.Args[0], "confine"}
	in.Target.Drill.Checks = []config.Check{
		{Job: "web"}, {Job: "batch/nightly", Namespace: "apps"}, {Count: "jobs", Min: 3}, {Count: "variables", Min: 2},
	}
	rep := requirePassed(t, in)
	got := found(rep)
	b, _ := json.MarshalIndent(got, "", " ")
	t.Logf("%s\n%s", b, rep.GetSummary())
	for what, want := range map[string]string{
		"submissions": "1=1", "jobs": "4=4", "namespaces": "2=2", "node_pools": "1=1", "variables": "2=2", "acl_policies": "1=1", "acl_roles": "1=1",
		"running allocations": "0=0", "jobs whose plan is empty": "4=4", "things whose fields differ": "0=0",
		"acl_auth_methods left out": "(not comparable)", "acl_binding_rules left out": "(not comparable)",
		"acl_tokens left out": "(not comparable)", "versions": "(not comparable)", "operator snapshot: its restore": "(not comparable)",
	} {
		assert.Equal(t, want, got[what], what)
	}
	assert.Contains(t, rep.GetSummary(), "Checks of the target that hold: 4.")
	assert.NotContains(t, rep.String(), "hunter2")
}
