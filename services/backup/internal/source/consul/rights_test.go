package consul_test

import (
	"crypto/rand"
	"encoding/json"
	"io"
	"net/http"
	"os"
	"path/filepath"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/lifeboat-fleet/lifeboat/fleet/config"
	"github.com/lifeboat-fleet/lifeboat/fleet/fleettest/bintest"
	"github.com/lifeboat-fleet/lifeboat/services/backup/internal/source"
	"github.com/lifeboat-fleet/lifeboat/services/backup/internal/source/consul"
)

const (
	root    = "11111111-1111-4111-8111-111111111111" // a management token
	unknown = "22222222-2222-4222-8222-222222222222" // no token, except where it is root
)

// withToken is a configuration with a token in a file; with an empty secret there is none.
func withToken(t *testing.T, c *bintest.Consul, secret string) config.Consul {
	t.Helper()
	cfg := config.Consul{Address: c.Address}
	if secret != "" {
		file := filepath.Join(t.TempDir(), "token")
		require.NoError(t, os.WriteFile(file, []byte(secret), 0o600))
		cfg.TokenFile = config.SecretFile(file)
	}
	return cfg
}

// newToken makes a token with a policy for each of the rules and returns its secret. No rules, no rights.
func newToken(t *testing.T, c *bintest.Consul, rules ...string) string {
	t.Helper()
	var policies []map[string]any
	for _, r := range rules {
		policies = append(policies, map[string]any{"Name": newPolicy(t, c, rand.Text(), r)})
	}
	return secretOf(t, c, map[string]any{"Policies": policies})
}

func newPolicy(t *testing.T, c *bintest.Consul, name, rules string) string {
	t.Helper()
	put(t, c, "/v1/acl/policy", map[string]any{"Name": name, "Rules": rules})
	return name
}

func secretOf(t *testing.T, c *bintest.Consul, token map[string]any) string {
	t.Helper()
	secret, ok := put(t, c, "/v1/acl/token", token)["SecretID"].(string)
	require.True(t, ok)
	return secret
}

func put(t *testing.T, c *bintest.Consul, path string, body any) map[string]any {
	t.Helper()
	data, err := json.Marshal(body)
	require.NoError(t, err)
	var out map[string]any
	require.NoError(t, json.Unmarshal(doAs(t, root, http.MethodPut, c.Address+path, data), &out))
	return out
}

func readRaft(t *testing.T, cfg config.Consul) []byte {
	t.Helper()
	st, err := consul.NewRaft(cfg, consul.Options{}).Open(t.Context())
	require.NoError(t, err)
	defer st.Close()
	data, err := io.ReadAll(st)
	require.NoError(t, err)
	return data
}

func openErr(t *testing.T, cfg config.Consul) *source.Error {
	t.Helper()
	st, err := consul.New(cfg, consul.Options{}).Open(t.Context())
	if err == nil {
		_ = st.Close()
	}
	var typed *source.Error
	require.ErrorAs(t, err, &typed)
	return typed
}

// TestRights has every kind of token read a real server with ACLs. What a token may not see must not be missing silently.
func TestRights(t *testing.T) {
	c := run(t, bintest.ConsulOptions{Management: root})
	for _, key := range []string{"config/a", "config/b", "secret/x"} {
		doAs(t, root, http.MethodPut, c.Address+"/v1/kv/"+key, []byte("x"))
	}
	all := newToken(t, c, `key_prefix "" { policy = "read" }`)
	some := newToken(t, c, `key_prefix "config/" { policy = "read" }`)
	other := newToken(t, c, `key_prefix "other/" { policy = "read" }`)
	but := newToken(t, c, `key_prefix "" { policy = "read" } key "secret/x" { policy = "deny" }`)
	none := newToken(t, c)
	const everything = `key_prefix "" { policy = "read" }`
	for name, tt := range map[string]struct {
		secret   string
		prefixes []string
		keys     int
		hint     string // of the refusal; empty when it may read
	}{
		"management":                        {secret: root, keys: 3},
		"all":                               {secret: all, keys: 3},
		"some":                              {secret: some, hint: everything},
		"some, of what it may":              {secret: some, prefixes: []string{"config/"}, keys: 2},
		"some, of less":                     {secret: some, prefixes: []string{"config/b", "config/c"}, keys: 1},
		"some, of others":                   {secret: some, prefixes: []string{"secret/"}, hint: `key_prefix "secret/" { policy = "read" }`},
		"some, of two":                      {secret: some, prefixes: []string{"config/", "other/"}, hint: everything + " (all prefixes are read at once"},
		"all but one":                       {secret: but, hint: everything},
		"all but one, elsewhere":            {secret: but, prefixes: []string{"config/"}, keys: 2},
		"rights where no key is":            {secret: other, hint: everything},
		"rights where no key is, only that": {secret: other, prefixes: []string{"other/"}},
		"no rights":                         {secret: none, hint: everything},
		"unknown":                           {secret: unknown, hint: "ACL not found"},
		"unknown, where no key is":          {secret: unknown, prefixes: []string{"other/"}, hint: "ACL not found"},
		"no token":                          {hint: "no token is set"},
		"no token, where no key is":         {prefixes: []string{"other/"}, hint: "no token is set"},
		"the anonymous token":               {secret: "anonymous", hint: "no token is set"},
	} {
		t.Run(name, func(t *testing.T) {
			cfg := withToken(t, c, tt.secret)
			cfg.Prefixes = tt.prefixes
			if tt.hint == "" {
				data, info := readAll(t, cfg)
				assert.Len(t, decode(t, data), tt.keys)
				assert.EqualValues(t, tt.keys, info.GetCounts()["keys"])
				return
			}
			err := openErr(t, cfg)
			assert.Equal(t, source.Denied, err.Reason)
			require.ErrorContains(t, err, tt.hint)
			assert.False(t, err.Retryable())
			if len(tt.secret) == len(root) {
				assert.NotContains(t, err.Error(), tt.secret)
			}
		})
	}
	t.Run("the agent's token stands in", func(t *testing.T) {
		doAs(t, root, http.MethodPut, c.Address+"/v1/agent/token/default", []byte(`{"Token":"`+all+`"}`))
		data, _ := readAll(t, withToken(t, c, ""))
		assert.Len(t, decode(t, data), 3)
		doAs(t, root, http.MethodPut, c.Address+"/v1/agent/token/default", []byte(`{"Token":"`+some+`"}`))
		require.ErrorContains(t, openErr(t, withToken(t, c, "")), everything)
	})
}

// TestIdentity records whose rights a read had, and never the secret.
func TestIdentity(t *testing.T) {
	c := run(t, bintest.ConsulOptions{Management: root})
	doAs(t, root, http.MethodPut, c.Address+"/v1/kv/a", []byte("x"))
	newPolicy(t, c, "kv-read", `key_prefix "" { policy = "read" }`)
	newPolicy(t, c, "agent-read", `agent_prefix "" { policy = "read" }`)
	put(t, c, "/v1/acl/role", map[string]any{"Name": "backup", "Policies": []map[string]any{{"Name": "agent-read"}}})
	secret := secretOf(t, c, map[string]any{
		"AccessorID": "33333333-3333-4333-8333-333333333333",
		"Policies":   []map[string]any{{"Name": "kv-read"}, {"Name": "agent-read"}}, "Roles": []map[string]any{{"Name": "backup"}},
		"ServiceIdentities": []map[string]any{{"ServiceName": "web"}},
	})
	_, info := readAll(t, withToken(t, c, secret))
	assert.Equal(t, map[string]string{
		"endpoint": c.Address, "datacenter": "dc1", "node": "lifeboat-test",
		"token_accessor": "33333333-3333-4333-8333-333333333333", "token_policies": "agent-read,kv-read,role:backup,service:web",
	}, info.GetIdentity())
	assert.Empty(t, info.GetMissing())
	assert.Empty(t, info.GetWorries())
	assert.NotContains(t, info.String(), secret)

	_, info = readAll(t, withToken(t, c, root))
	assert.Equal(t, "global-management", info.GetIdentity()["token_policies"])

	// agent:read is a right of its own, and the keys are whole without it.
	_, info = readAll(t, withToken(t, c, newToken(t, c, `key_prefix "" { policy = "read" }`)))
	assert.EqualValues(t, 1, info.GetCounts()["keys"])
	require.Len(t, info.GetMissing(), 1)
	assert.Contains(t, info.GetMissing()[0], "version, datacenter, node: ")
	assert.Contains(t, info.GetMissing()[0], "403")
}

// TestDefaultAllow needs no token where ACLs take nothing away from a request without one, and refuses it where they do.
func TestDefaultAllow(t *testing.T) {
	c := run(t, bintest.ConsulOptions{Management: root, DefaultPolicy: "allow"})
	doAs(t, root, http.MethodPut, c.Address+"/v1/kv/secret", []byte("x"))
	data, info := readAll(t, withToken(t, c, ""))
	assert.Len(t, decode(t, data), 1)
	assert.Equal(t, "00000000-0000-0000-0000-000000000002", info.GetIdentity()["token_accessor"])
	assert.Empty(t, info.GetIdentity()["token_policies"])
	assert.Empty(t, info.GetMissing())

	newPolicy(t, c, "hide", `key "secret" { policy = "deny" }`)
	put(t, c, "/v1/acl/token/00000000-0000-0000-0000-000000000002", map[string]any{"Policies": []map[string]any{{"Name": "hide"}}})
	require.ErrorContains(t, openErr(t, withToken(t, c, "")), "no token is set")
	data, _ = readAll(t, withToken(t, c, newToken(t, c)))
	assert.Len(t, decode(t, data), 1, "a token may read what its policies do not deny")
}

// TestListPolicy has a server that asks for a right of its own to list keys.
func TestListPolicy(t *testing.T) {
	c := run(t, bintest.ConsulOptions{Management: root, HCL: "acl { enable_key_list_policy = true }"})
	doAs(t, root, http.MethodPut, c.Address+"/v1/kv/a", []byte("x"))
	err := openErr(t, withToken(t, c, newToken(t, c, `key_prefix "" { policy = "read" }`)))
	assert.Equal(t, source.Denied, err.Reason)
	require.ErrorContains(t, err, `key_prefix "" { policy = "list" }`)
	data, _ := readAll(t, withToken(t, c, newToken(t, c, `key_prefix "" { policy = "list" }`)))
	assert.Len(t, decode(t, data), 1)
}

// TestNoACLs says nothing of tokens.
func TestNoACLs(t *testing.T) {
	c := run(t, bintest.ConsulOptions{})
	cfg := withToken(t, c, unknown) // Consul takes any then
	_, info := readAll(t, cfg)
	assert.NotContains(t, info.GetIdentity(), "token_accessor")
	assert.NotContains(t, info.GetIdentity(), "token_policies")
	assert.Empty(t, info.GetMissing())
}
