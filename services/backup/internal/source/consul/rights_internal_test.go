package consul

import (
	"errors"
	"net/http"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
)

// TestUnsure knows the versions that leave out keys without a word.
func TestUnsure(t *testing.T) {
	some, root := token{set: true, policies: []string{"kv"}}, token{set: true, policies: []string{management}}
	for version, old := range map[string]bool{
		"": false, "dev": false, "0.9.3": true, "1.10.12": true, "1.10.12+ent": true, "1.11.0": false, "1.22.5": false, "2.0.0": false,
	} {
		assert.Equal(t, old, some.unsure(version), version)
		assert.False(t, root.unsure(version), version)
		assert.False(t, token{off: true}.unsure(version), version)
	}
}

// TestCheck refuses a list when nothing is known of who asked and ACLs are on, which a server in trouble may lead to.
func TestCheck(t *testing.T) {
	failed := errors.New("answered 500")
	header := func(policy string) http.Header {
		h := http.Header{}
		if policy != "" {
			h.Set("X-Consul-Default-ACL-Policy", policy)
		}
		return h
	}
	require.Error(t, token{err: failed}.check(header("deny"), "", nil))
	require.Error(t, token{err: failed}.check(header("allow"), "", nil))
	require.NoError(t, token{err: failed}.check(header(""), "", nil), "no ACLs")
	require.NoError(t, token{set: true, err: failed}.check(header("deny"), "", nil), "a token that was set is told")
	require.Error(t, token{anonymous: true, err: failed}.check(header("allow"), "", nil))
	require.Error(t, token{anonymous: true}.check(header(""), "", nil))
}
