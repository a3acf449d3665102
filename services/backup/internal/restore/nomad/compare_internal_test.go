package nomad

import (
	"archive/tar"
	"bytes"
	"context"
	"encoding/json"
	"io"
	"testing"

	"github.com/hashicorp/nomad/api"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
)

func TestDifferences(t *testing.T) {
	for _, c := range []struct {
		a, b string
		want []string
	}{
		{`{"a":1,"b":{"c":[]},"d":null,"e":"","f":false}`, `{"a":1}`, nil},
		{`{"a":12345678901234567890}`, `{"a":12345678901234567891}`, []string{"a"}},
		{`{"a":true}`, `{}`, []string{"a"}},
		{
			`{"TaskGroups":[{"Name":"g","Tasks":[{"Name":"t","Env":{"K":"secret"}}]}]}`,
			`{"TaskGroups":[{"Name":"g","Tasks":[{"Name":"t","Env":{"K":"other"}}]}]}`,
			[]string{"TaskGroups[g].Tasks[t].Env.K"},
		},
		{`{"x":[1,2]}`, `{"x":[1]}`, []string{"x"}},
		{`{"x":[1,{"y":2}]}`, `{"x":[1,{"y":3}]}`, []string{"x[1].y"}},
		{`{"x":[1]}`, `{"x":{"y":1}}`, []string{"x"}},
		{`{"TaskGroups":[{"Scaling":{"ID":"1","Max":2,"ModifyIndex":3}}]}`, `{"TaskGroups":[{"Scaling":{"ID":"2","Max":2}}]}`, nil},
		{`{"Config":{"ID":"1"}}`, `{"Config":{"ID":"2"}}`, []string{"Config.ID"}},
		{`{"g":{"Constraints":[{"L":"a"},{"L":"b"},{"L":"b"}]}}`, `{"g":{"Constraints":[{"L":"a"},{"L":"b"}]}}`, nil},
		{
			`{"g":{"Constraints":[{"L":"a"},{"L":"b"}]}}`, `{"g":{"Constraints":[{"L":"b"},{"L":"a"}]}}`,
			[]string{"g.Constraints[0].L", "g.Constraints[1].L"},
		},
	} {
		for _, flip := range []bool{false, true} {
			a, b := json.RawMessage(c.a), json.RawMessage(c.b)
			if flip {
				a, b = b, a
			}
			assert.Equal(t, c.want, differences(a, b), "%s and %s", a, b)
		}
	}
}

// TestChanged has diffs as Nomad gives them: what holds nothing that changed may be called edited.
func TestChanged(t *testing.T) {
	none := []*api.FieldDiff{{Type: "None", Name: "Count"}}
	assert.Empty(t, changed(nil))
	assert.Empty(t, changed(&api.JobDiff{Type: "None", Fields: []*api.FieldDiff{{Type: "Edited", Name: "x"}}}))
	assert.Empty(t, changed(&api.JobDiff{Type: "Edited", TaskGroups: []*api.TaskGroupDiff{{
		Type: "Edited", Name: "g", Fields: none, Objects: []*api.ObjectDiff{{Type: "Edited", Name: "Scaling", Fields: none}},
		Tasks: []*api.TaskDiff{{Type: "None", Name: "t"}},
	}}}))
	assert.Equal(t, []string{"the whole job: Added"}, changed(&api.JobDiff{Type: "Added"}))
	assert.Equal(t, []string{
		"Stop", "Periodic", "TaskGroups[g].Constraint.RTarget", "TaskGroups[g].Tasks[t].Env[K]", "TaskGroups[g].Tasks[new]", "TaskGroups[h]",
	}, changed(&api.JobDiff{
		Type: "Edited", Fields: []*api.FieldDiff{{Type: "Edited", Name: "Stop", Old: "a", New: "b"}},
		Objects: []*api.ObjectDiff{{Type: "Deleted", Name: "Periodic"}},
		TaskGroups: []*api.TaskGroupDiff{
			{
				Type: "Edited", Name: "g",
				Objects: []*api.ObjectDiff{{Type: "Added", Name: "Constraint", Fields: []*api.FieldDiff{{Type: "Added", Name: "RTarget"}}}},
				Tasks: []*api.TaskDiff{
					{Type: "Edited", Name: "t", Fields: []*api.FieldDiff{{Type: "Edited", Name: "Env[K]"}}}, {Type: "Added", Name: "new"},
				},
			},
			{Type: "Deleted", Name: "h"},
		},
	}))
}

// TestMasking never passes on a value.
func TestMasking(t *testing.T) {
	e := &refusedError{400, "cannot take hunter2 nor ab"}
	masked := e.masking(json.RawMessage(`{"k":"hunter2","l":"ab"}`))
	require.EqualError(t, masked, "Nomad answered 400: cannot take *** nor ab")
	require.EqualError(t, e.masking(json.RawMessage(`x`)), "Nomad answered 400 Bad Request")
}

// FuzzArchive reads what may be an archive. It never fails otherwise than by an error, and takes no name that leaves its place.
func FuzzArchive(f *testing.F) {
	for _, name := range []string{
		"jobs/default/a%2Fb/job.json", "jobs/a/%2E%2E/job.json", "jobs/../x", "/x", "variables/a/b%20c.json", "acl/policies/p.hcl",
		"jobs/a/b/versions/0.nomad.json", "scheduler_configuration.json", "volumes/csi/a/b.json", "new/kind.json", ".json", "jobs/a/.json",
	} {
		var buf bytes.Buffer
		tw := tar.NewWriter(&buf)
		body := `{"Job":{"ID":"a/b","Namespace":"default"}}`
		require.NoError(f, tw.WriteHeader(&tar.Header{Typeflag: tar.TypeReg, Name: name, Size: int64(len(body))}))
		_, err := tw.Write([]byte(body))
		require.NoError(f, err)
		require.NoError(f, tw.Close())
		f.Add(name, buf.Bytes())
	}
	all := kinds()
	f.Fuzz(func(t *testing.T, name string, data []byte) {
		if got, err := classify(all, name); err == nil && got.role == roleObject && got.kind.id == kindJob {
			again := "jobs/" + escape(got.name.space) + "/" + escape(got.name.id) + "/job.json"
			require.Equal(t, name, again, "each name has one path")
		}
		open := func(context.Context) (io.ReadCloser, error) { return io.NopCloser(bytes.NewReader(data)), nil }
		c := newContents(open, all, Selection{})
		if err := c.read(t.Context()); err != nil {
			return
		}
		for _, k := range all {
			var n int64
			require.NoError(t, c.each(t.Context(), k, func(thing) error { n++; return nil }))
			require.Equal(t, c.count(k), n)
		}
	})
}
