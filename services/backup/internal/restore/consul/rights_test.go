package consul_test

import (
	"bytes"
	"crypto/rand"
	"encoding/json"
	"net/http"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/lifeboat-fleet/lifeboat/fleet/fleettest/bintest"
	"github.com/lifeboat-fleet/lifeboat/services/backup/internal/restore"
	"github.com/lifeboat-fleet/lifeboat/services/backup/internal/restore/consul"
	"github.com/lifeboat-fleet/lifeboat/services/backup/internal/source"
)

const (
	root    = "11111111-1111-4111-8111-111111111111" // a management token
	unknown = "22222222-2222-4222-8222-222222222222" // none
)

// newToken makes a token with these rules and returns its secret.
func newToken(t *testing.T, c *bintest.Consul, rules string) string {
	t.Helper()
	return newTokenAs(t, c, root, rules)
}

func newTokenAs(t *testing.T, c *bintest.Consul, root, rules string) string {
	t.Helper()
	put := func(path string, in any) (secret string) {
		t.Helper()
		body, err := json.Marshal(in)
		require.NoError(t, err)
		var out struct{ SecretID string }
		require.NoError(t, json.Unmarshal(ask(t, root, http.MethodPut, c.Address+path, body), &out))
		return out.SecretID
	}
	name := rand.Text()
	put("/v1/acl/policy", map[string]any{"Name": name, "Rules": rules})
	return put("/v1/acl/token", map[string]any{"Policies": []any{map[string]string{"Name": name}}})
}

// TestWriteRights names the keys that a token may not write, and the rules it lacks, and restores the others.
func TestWriteRights(t *testing.T) {
	c := run(t, bintest.ConsulOptions{Management: root})
	all := withToken(t, c, root)
	data := snapshot(t, append(named("a/1", "a/2", "a/no", "b/1", "b/no", "c//odd"), kv{"a/large", 1, bytes.Repeat([]byte("x"), 450<<10)},
		kv{"b/large", 1, bytes.Repeat([]byte("x"), 450<<10)})...)
	some := withToken(t, c, newToken(t, c, `key_prefix "" { policy = "read" } key_prefix "a/" { policy = "write" } key "a/no" { policy = "read" } key "b/1" { policy = "write" }`))
	for range 2 {
		got, sum, err := bring(t, some, data, consul.Selection{}, restore.Options{Apply: true})
		require.NoError(t, err)
		assert.EqualValues(t, 4, sum.Restored())
		assert.Equal(t, []string{"a/no", "b/large", "b/no", "c//odd"}, got.of(restore.Failed))
		for _, i := range got.items {
			if i.Action == restore.Failed {
				require.EqualError(t, i.Err, `the token may not write it; give it: key "`+i.Name+`" { policy = "write" }`)
			}
		}
		var there []string
		for _, k := range parse(t, read(t, all)) {
			there = append(there, k.Key)
		}
		assert.Equal(t, []string{"a/1", "a/2", "a/large", "b/1"}, there)
	}
	// With what was missing, the rest comes.
	_, sum, err := bring(t, all, data, consul.Selection{}, restore.Options{Apply: true})
	require.NoError(t, err)
	assert.Equal(t, restore.Summary{Created: 4, Same: 4, Bytes: sum.Bytes}, sum)
	same(t, data, read(t, all))
}

// TestReadRights refuses a destination of which the token may not see everything: a plan would call keys absent that are there.
func TestReadRights(t *testing.T) {
	c := run(t, bintest.ConsulOptions{Management: root})
	ask(t, root, http.MethodPut, c.Address+"/v1/kv/a/hidden", []byte("there"))
	data := snapshot(t, named("a/hidden", "a/x", "b/y")...)
	for name, token := range map[string]string{
		"it reads less": newToken(t, c, `key_prefix "" { policy = "write" } key_prefix "a/" { policy = "deny" }`),
		"none":          "",
		"unknown":       unknown,
	} {
		for _, o := range []restore.Options{{}, {Apply: true}, {Apply: true, Force: true}} {
			cfg := withToken(t, c, token)
			_, _, err := bring(t, cfg, data, consul.Selection{}, o)
			var typed *source.Error
			require.ErrorAs(t, err, &typed, name)
			assert.Equal(t, source.Denied, typed.Reason, name)
			if token != "" {
				assert.NotContains(t, err.Error(), token)
			}
			if name == "it reads less" {
				require.ErrorContains(t, err, `give it: key_prefix "" { policy = "read" }`)
			}
		}
	}
	all := withToken(t, c, root)
	assert.Len(t, parse(t, read(t, all)), 1, "nothing was written")
	// What it may see of a part is enough for that part.
	part := withToken(t, c, newToken(t, c, `key_prefix "b/" { policy = "write" } key_prefix "c/" { policy = "write" }`))
	_, sum, err := bring(t, part, data, consul.Selection{Prefixes: []string{"b/"}}, restore.Options{Apply: true})
	require.NoError(t, err)
	assert.EqualValues(t, 1, sum.Created)
	_, sum, err = bring(t, part, data, consul.Selection{Prefixes: []string{"a/"}, Rename: []restore.Rename{{Old: "a/", New: "c/"}}}, restore.Options{Apply: true})
	require.NoError(t, err)
	assert.EqualValues(t, 2, sum.Created)
	require.NotEmpty(t, ask(t, root, http.MethodGet, c.Address+"/v1/kv/c/hidden", nil))
}
