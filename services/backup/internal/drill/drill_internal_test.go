package drill

import (
	"encoding/json"
	"fmt"
	"io"
	"strings"
	"testing"
	"time"
	"unicode/utf8"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"google.golang.org/protobuf/types/known/durationpb"

	lifeboatv1 "github.com/lifeboat-fleet/lifeboat/proto/lifeboat/v1"
	"github.com/lifeboat-fleet/lifeboat/services/backup/internal/restore"
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

// Whatever is stopped, and whenever, is one phase of a report, which ends when the last of it did.
func TestOneStop(t *testing.T) {
	t.Parallel()
	span := func(name string, began, took time.Duration) *lifeboatv1.Phase {
		return &lifeboatv1.Phase{Name: name, Began: durationpb.New(began), Took: durationpb.New(took)}
	}
	var got []string
	for _, p := range oneStop([]*lifeboatv1.Phase{
		span("compare", 0, 1), span("stop", 1, 2), span("compare", 3, 4), span("stop", 7, 1), span("stop", 8, 2),
	}) {
		got = append(got, fmt.Sprintf("%s %d+%d", p.GetName(), p.GetBegan().AsDuration(), p.GetTook().AsDuration()))
	}
	assert.Equal(t, []string{"compare 0+1", "compare 3+4", "stop 5+5"}, got)
	assert.Len(t, oneStop([]*lifeboatv1.Phase{span("manifest", 0, 1)}), 1)
}

// A restore in which everything fails does not keep all of it.
func TestFailuresAreFew(t *testing.T) {
	t.Parallel()
	var f failures
	require.NoError(t, f.err())
	for i := range 3 * maxNamed {
		f.item(restore.Item{Kind: "key", Name: fmt.Sprint(i), Action: restore.Failed, Err: io.EOF})
	}
	assert.Len(t, f.named, maxNamed)
	require.ErrorContains(t, f.err(), "30 things could not be restored: key \"0\": EOF")
	assert.ErrorContains(t, f.err(), "; and 20 more")
}

// What a restore leaves out is in the report, each reason once; jobs of which none is left prove nothing.
func TestLeftOut(t *testing.T) {
	t.Parallel()
	m := &lifeboatv1.Manifest{Source: &lifeboatv1.SourceInfo{Counts: map[string]int64{"jobs": 2, "namespaces": 1}}}
	d := &nomadDrill{run: newRun(Input{Manifest: m, Clock: time.Now}), skipped: map[string]*skipped{}}
	for _, i := range []restore.Item{
		{Kind: "job", Name: "a", Detail: "it is a multiregion job"},
		{Kind: "job", Name: "b", Detail: "another job started it"},
		{Kind: "ACL token", Name: "t", Detail: "its secret is in no snapshot: make it from t.json"},
		{Kind: "ACL token", Name: "u", Detail: "its secret is in no snapshot: make it from u.json"},
		{Kind: "file", Name: "later/", Detail: "unknown files: 3"},
	} {
		d.skip(i)
	}
	want := inventory{
		files:  map[string]thing{"namespaces/default.json": {kind: "namespaces"}, "jobs/default/a/job.json": {kind: "jobs"}},
		counts: map[string]int64{"jobs": 2, "namespaces": 1, "acl_tokens": 2},
	}
	got := inventory{files: map[string]thing{"namespaces/default.json": {kind: "namespaces"}}}
	for _, name := range kindsCompared() {
		d.compareKind(name, want, got)
	}
	d.leftOut()
	said := map[string]string{}
	for _, c := range d.report.GetComparisons() {
		said[c.GetWhat()] = strings.TrimSpace(c.GetGot() + " " + c.GetNotComparable())
	}
	assert.Equal(t, map[string]string{
		"namespaces": "1", "jobs that can be restored": "0", "jobs left out": "2 it is a multiregion job; another job started it",
		"acl_tokens left out": "2 its secret is in no snapshot", "file left out": "later/ unknown files",
	}, said)
	require.ErrorContains(t, d.verdict(), "jobs that can be restored is 0 and should be at least 1")
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
