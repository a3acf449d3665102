package drill

import (
	"encoding/json"
	"fmt"
	"strings"
	"testing"
	"unicode/utf8"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
)

func TestMergeKV(t *testing.T) {
	entry := func(key string, flags int, value string) string {
		b, err := json.Marshal(map[string]any{"key": key, "flags": flags, "value": []byte(value)})
		require.NoError(t, err)
		return string(b)
	}
	list := func(entries ...string) string { return "[" + strings.Join(entries, ",\n") + "]" }
	a, b, c, z := entry("a", 0, "1"), entry("b", 0, "secret"), entry("c", 3, ""), entry("z", 0, "")
	for name, x := range map[string]struct {
		snapshot, restored string
		want               []string
	}{
		"equal":       {list(a, b, c), list(a, b, c), nil},
		"empty":       {list(), list(), nil},
		"missing":     {list(a, b, c), list(a, c), []string{"b: there / missing"}},
		"first":       {list(a, b), list(b), []string{"a: there / missing"}},
		"last":        {list(a, b), list(a), []string{"b: there / missing"}},
		"all":         {list(a, b), list(), []string{"a: there / missing", "b: there / missing"}},
		"extra":       {list(a, c), list(a, b, c, z), []string{"b: missing / there", "z: missing / there"}},
		"of nothing":  {list(), list(a), []string{"a: missing / there"}},
		"other value": {list(a, b), list(a, entry("b", 0, "other!")), []string{"b: a value of 6 B with flags 0 / another value of 6 B with flags 0"}},
		"other flags": {list(c), list(entry("c", 4, "")), []string{"c: a value of 0 B with flags 3 / the same value with flags 4"}},
		"two things":  {list(a, b), list(b, z), []string{"a: there / missing", "z: missing / there"}},
	} {
		t.Run(name, func(t *testing.T) {
			var got []string
			err := mergeKV(strings.NewReader(x.snapshot), strings.NewReader(x.restored), func(key, want, have string) {
				got = append(got, fmt.Sprintf("%s: %s / %s", key, want, have))
			})
			require.NoError(t, err)
			assert.Equal(t, x.want, got)
			assert.NotContains(t, strings.Join(got, "\n"), "secret")
		})
	}
	for _, bad := range []string{"", "{}", "[", list(a)[:8], "[" + a + "," + "]"} {
		require.Error(t, mergeKV(strings.NewReader(bad), strings.NewReader(list(a)), func(string, string, string) {}), bad)
		require.Error(t, mergeKV(strings.NewReader(list(a)), strings.NewReader(bad), func(string, string, string) {}), bad)
	}
}

func TestLacks(t *testing.T) {
	t.Parallel()
	for name, c := range map[string]struct{ want, have, field string }{
		"equal":            {`{"a":1,"b":{"c":"x"}}`, `{"a":1,"b":{"c":"x"}}`, ""},
		"a newer server":   {`{"a":1}`, `{"a":1,"new":{"x":true}}`, ""},
		"unset here":       {`{"a":null,"b":"","c":0,"d":false,"e":[],"f":{},"g":{"h":""}}`, `{}`, ""},
		"unset there":      {`{"a":{"b":""}}`, `{"a":null}`, ""},
		"another number":   {`{"a":1}`, `{"a":2}`, "field a"},
		"another text":     {`{"a":{"b":"x"}}`, `{"a":{"b":"y"}}`, "field a.b"},
		"lost":             {`{"a":{"b":"x"}}`, `{"a":{}}`, "field a.b"},
		"lost altogether":  {`{"a":{"b":"x"}}`, `{}`, "field a"},
		"switched":         {`{"a":false}`, `{"a":true}`, "field a"},
		"a shorter list":   {`{"a":["x","y"]}`, `{"a":["x"]}`, "field a"},
		"another in it":    {`{"a":[{"n":"x"},{"n":"y"}]}`, `{"a":[{"n":"x"},{"n":"z"}]}`, "field a.n"},
		"no object":        {`{"a":1}`, `"text"`, "the content"},
		"an object before": {`{"a":{"b":"x"}}`, `{"a":"x"}`, "field a"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			var want, have any
			require.NoError(t, json.Unmarshal([]byte(c.want), &want))
			require.NoError(t, json.Unmarshal([]byte(c.have), &have))
			assert.Equal(t, c.field, lacks(want, have, ""))
		})
	}
}

// TestKindOfFile has one file of each kind, and what is not counted.
func TestKindOfFile(t *testing.T) {
	t.Parallel()
	for file, kind := range map[string]string{
		"jobs/apps/a%2Fversions/job.json": "jobs", "jobs/apps/a%2Fversions/job.nomad.json": "", "jobs/apps/a/job.nomad.hcl": "",
		"jobs/apps/a%2Fversions/submission.json": "submissions", "jobs/apps/a%2Fversions/versions/10.json": "versions",
		"jobs/apps/a/versions/9.nomad.json": "", "jobs/apps/a/versions/9.nomad.hcl": "",
		"jobs/apps/a/versions/9.submission.json": "version_submissions",
		"namespaces/apps.json":                   "namespaces", "node_pools/gpu.json": "node_pools", "quotas/q.json": "quotas",
		"acl/policies/p.hcl": "", "acl/policies/p.json": "acl_policies", "acl/roles/r.json": "acl_roles",
		"acl/auth_methods/m.json": "acl_auth_methods", "acl/binding_rules/b.json": "acl_binding_rules",
		"acl/tokens/t.json": "acl_tokens", "variables/apps/x%2Fy.json": "variables", "volumes/csi/apps/v.json": "csi_volumes",
		"volumes/host/apps/v.json": "host_volumes", "scheduler_configuration.json": "scheduler_configuration", "later/kind.json": "",
		"later.json": "", "acl/later/x.json": "", "volumes/later/apps/v.json": "",
	} {
		assert.Equal(t, kind, kindOfFile(file), file)
	}
}

func TestCutKeepsText(t *testing.T) {
	t.Parallel()
	assert.Equal(t, "short", cut("short", 5))
	assert.Equal(t, "ab... (6 bytes)", cut("abcdef", 2))
	assert.Equal(t, "ü... (4 bytes)", cut("üü", 3))
	assert.Equal(t, "a?b", cut("a\xffb", 9))
	for n := range 20 {
		assert.True(t, utf8.ValidString(cut("aü漢字\xf0\x9f\x98\x80 and more", n)))
	}
}

func FuzzMergeKV(f *testing.F) {
	f.Add(`[{"key":"a","flags":0,"value":"MQ=="}]`, `[]`)
	f.Fuzz(func(t *testing.T, a, b string) {
		differ := 0
		err := mergeKV(strings.NewReader(a), strings.NewReader(b), func(string, string, string) { differ++ })
		if err == nil && a == b {
			require.Zero(t, differ)
		}
	})
}
