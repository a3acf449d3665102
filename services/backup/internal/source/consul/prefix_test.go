package consul_test

import (
	"bytes"
	"encoding/json"
	"fmt"
	"net/http"
	"net/url"
	"os/exec"
	"strings"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/lifeboat-fleet/lifeboat/fleet/config"
	"github.com/lifeboat-fleet/lifeboat/fleet/fleettest/bintest"
	"github.com/lifeboat-fleet/lifeboat/services/backup/internal/source/consul"
)

// setKeys writes keys in transactions, where Consul takes names that no URL can carry. A key's value is its name, its flags
// are its length.
func setKeys(t *testing.T, address string, keys ...string) {
	t.Helper()
	var ops []any
	for i, key := range keys {
		ops = append(ops, map[string]any{
			"KV": map[string]any{"Verb": "set", "Key": key, "Value": []byte(key), "Flags": len(key)},
		})
		if len(ops) == 64 || i == len(keys)-1 {
			body, err := json.Marshal(ops)
			require.NoError(t, err)
			do(t, http.MethodPut, address+"/v1/txn", body)
			ops = nil
		}
	}
}

// TestPrefixes compares what a read of several prefixes gives with what they are.
func TestPrefixes(t *testing.T) {
	c := run(t, bintest.ConsulOptions{})
	keys := []string{
		"a", "a/", "a//b", "a/./b", "a/../b", "a/b", "a/b/c", "a/bc", "a/ü", "a/ú", "a/ x", "a/x y", "a/100%", "a/100%25", "a/%2e%2e",
		"a/q?x=1", "a/h#1", `a/"quoted"\`, "a/<&>", "a/\u2028", "a/\n", "A/b", "ab/c", "b", "/a/b", "/", "//", ".", "./a", "..", " a", "ä",
		"a/.", "a/..", "a/.hidden",
	}
	setKeys(t, c.Address, keys...)
	for _, prefixes := range [][]string{
		{},
		{""},
		{"a"},
		{"a/"},
		{"a/b"},
		{"a/b", "a/b/"},
		{"a/b", "b"},
		{"a/ü", "a/ú"},
		{"a/ü"},
		{"a//"},
		{"a//b"},
		{"a/."},
		{"a/./"},
		{"a/.."},
		{"a/../"},
		{"a/.hidden"},
		{"a/ "},
		{"a/ x"},
		{"a/x "},
		{"a/x y"},
		{"a/100%"},
		{"a/100%25"},
		{"a/%2e"},
		{"a/q?"},
		{"a/h#"},
		{`a/"`},
		{"a/<"},
		{"a/\u2028"},
		{"a/\n"},
		{"/"},
		{"//"},
		{"/a"},
		{"."},
		{"./"},
		{".."},
		{" "},
		{"none/"},
		{"none/", "a/bc"},
		{"a/b", ""},
		{"ä", "A"},
	} {
		t.Run(fmt.Sprintf("%q", prefixes), func(t *testing.T) {
			want := make(map[string]string)
			var size int
			for _, key := range keys {
				for _, p := range prefixes {
					if strings.HasPrefix(key, p) {
						want[key] = key
					}
				}
				if len(prefixes) == 0 {
					want[key] = key
				}
			}
			for key := range want {
				size += len(key)
			}
			data, info := readAll(t, config.Consul{Address: c.Address, Prefixes: prefixes})
			assert.Equal(t, want, decode(t, data))
			assert.EqualValues(t, len(want), info.GetCounts()["keys"])
			assert.EqualValues(t, size, info.GetCounts()["bytes"])
			assert.Equal(t, strings.Join(prefixes, ","), info.GetIdentity()["prefixes"])
		})
	}
}

// TestIndex shows when the index of a read moves: with every change of what is read, and not with others.
func TestIndex(t *testing.T) {
	c := run(t, bintest.ConsulOptions{})
	setKeys(t, c.Address, "config/a", "config/b", "other/x")
	look := func(prefixes ...string) int64 {
		t.Helper()
		st, err := consul.New(config.Consul{Address: c.Address, Prefixes: prefixes}, consul.Options{}).Open(t.Context())
		require.NoError(t, err)
		defer st.Close()
		s, ok := st.(interface{ Index() int64 })
		require.True(t, ok)
		index := s.Index() // before anything was read
		_, info := readAll(t, config.Consul{Address: c.Address, Prefixes: prefixes})
		assert.Equal(t, index, info.GetRevision())
		return index
	}
	all, some, absent := look(), look("config/"), look("absent/")
	assert.Equal(t, all, absent, "without a key under the prefix it is the store's")
	for name, change := range map[string]func(){
		"put":    func() { setKeys(t, c.Address, "config/c") },
		"change": func() { do(t, http.MethodPut, c.Address+"/v1/kv/config/a", []byte("new")) },
		"flags":  func() { do(t, http.MethodPut, c.Address+"/v1/kv/config/b?flags=9", []byte("config/b")) },
		"delete": func() { setKeys(t, c.Address, "config/d"); do(t, http.MethodDelete, c.Address+"/v1/kv/config/d", nil) },
		"del tree": func() {
			setKeys(t, c.Address, "config/d/1")
			do(t, http.MethodDelete, c.Address+"/v1/kv/config/d?recurse", nil)
		},
	} {
		change()
		allNow, someNow := look(), look("config/")
		assert.Greater(t, allNow, all, name)
		assert.Greater(t, someNow, some, name)
		all, some = allNow, someNow
	}
	// The newest key goes. Its tombstone has to stand for it.
	do(t, http.MethodDelete, c.Address+"/v1/kv/config/?recurse", nil)
	assert.Greater(t, look(), all)
	assert.Greater(t, look("config/"), some)

	all, some = look(), look("config/")
	setKeys(t, c.Address, "other/x") // unchanged
	assert.Equal(t, all, look(), "writing what is there is no change")
	setKeys(t, c.Address, "other/y")
	assert.Greater(t, look(), all)
	assert.Equal(t, some, look("config/"), "a change elsewhere is none here")
}

// TestOddNames warns of names that Consul's JSON cannot carry.
func TestOddNames(t *testing.T) {
	c := run(t, bintest.ConsulOptions{})
	setKeys(t, c.Address, "ok")
	do(t, http.MethodPut, c.Address+"/v1/kv/"+url.PathEscape("odd-\xff"), []byte("x"))
	_, info := readAll(t, config.Consul{Address: c.Address})
	assert.EqualValues(t, 2, info.GetCounts()["keys"])
	require.Len(t, info.GetWorries(), 1)
	assert.Contains(t, info.GetWorries()[0], "the names of 1 keys hold U+FFFD")
}

// TestUncleanNames warns of exactly those names that `consul kv import` does not bring back.
func TestUncleanNames(t *testing.T) {
	c := run(t, bintest.ConsulOptions{})
	bin, err := bintest.Find("consul")
	require.NoError(t, err)
	for _, key := range []string{
		"a", "a/", "a//b", "a/./b", "a/../b", "a//", "a/.", "a/..", "a/.hidden", "a..b", "/a/b", "/", ".", "./a", "..", " a", "a ", "a/ x", "a/x y",
		"a/100%", "a/100%25", "a/%2e%2e", "a%20", "a/%20b", "a/q?x=1", "a/h#1", "a/\n", "a/\x7f", "a/\u2028", "a/\u00a0", "./", "a/\u200b", "ä", `a/"quoted"\`, "a/<&>", "a+b;c",
	} {
		t.Run(fmt.Sprintf("%q", key), func(t *testing.T) {
			do(t, http.MethodDelete, c.Address+"/v1/kv/?recurse", nil)
			setKeys(t, c.Address, key)
			before, info := readAll(t, config.Consul{Address: c.Address})
			do(t, http.MethodDelete, c.Address+"/v1/kv/?recurse", nil)
			cmd := exec.CommandContext(t.Context(), bin, "kv", "import", "-http-addr="+c.Address, "-")
			cmd.Stdin = bytes.NewReader(before)
			importErr := cmd.Run()
			after := read(t, c.Address)
			if len(info.GetWorries()) == 0 {
				require.NoError(t, importErr)
				assert.Equal(t, string(before), string(after))
				return
			}
			assert.Contains(t, info.GetWorries()[0], "the names of 1 keys")
			assert.NotEqual(t, string(before), string(after), "a false alarm")
		})
	}
}
