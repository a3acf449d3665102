package consulkv

import (
	"errors"
	"net/http"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
)

// TestUnsure knows the versions that leave out keys without a word.
func TestUnsure(t *testing.T) {
	some, root := Token{set: true, policies: []string{"kv"}}, Token{set: true, policies: []string{management}}
	for version, old := range map[string]bool{
		"": false, "dev": false, "0.9.3": true, "1.10.12": true, "1.10.12+ent": true, "1.11.0": false, "1.22.5": false, "2.0.0": false,
	} {
		assert.Equal(t, old, some.Unsure(version), version)
		assert.False(t, root.Unsure(version), version)
		assert.False(t, Token{off: true}.Unsure(version), version)
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
	require.Error(t, Token{err: failed}.Check(header("deny"), "", nil))
	require.Error(t, Token{err: failed}.Check(header("allow"), "", nil))
	require.NoError(t, Token{err: failed}.Check(header(""), "", nil), "no ACLs")
	require.NoError(t, Token{set: true, err: failed}.Check(header("deny"), "", nil), "a token that was set is told")
	require.Error(t, Token{anonymous: true, err: failed}.Check(header("allow"), "", nil))
	require.Error(t, Token{anonymous: true}.Check(header(""), "", nil))
}
