package drill_test

import (
	"archive/tar"
	"bytes"
	"context"
	"errors"
	"io"
	"slices"
	"strings"
	"testing"
	"testing/iotest"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	lifeboatv1 "github.com/lifeboat-fleet/lifeboat/proto/lifeboat/v1"
	"github.com/lifeboat-fleet/lifeboat/services/backup/internal/drill"
)

func manifestOf(kind lifeboatv1.Kind, counts map[string]int64) *lifeboatv1.Manifest {
	return &lifeboatv1.Manifest{
		Id: "snap-1", Target: "target", Kind: kind, Source: &lifeboatv1.SourceInfo{Counts: counts},
	}
}

const twoKeys = `[
{"key":"a","flags":0,"value":"eHl6"},
{"key":"b","flags":18446744073709551615,"value":""}
]
`

func TestConsul(t *testing.T) {
	counts := func() map[string]int64 { return map[string]int64{"keys": 2, "bytes": 3} }
	in := input(t, manifestOf(lifeboatv1.Kind_KIND_CONSUL, counts()), []byte(twoKeys))
	rep := drill.Run(t.Context(), in)
	require.Empty(t, rep.GetFailure())
	assert.True(t, rep.GetPassed())
	assert.Equal(t, lifeboatv1.DrillReport_LEVEL_DECODED, rep.GetLevel())
	assert.Nil(t, rep.GetRto())
	assert.Contains(t, rep.GetSummary(), "Decoded and counted only; nothing was restored.")
	assert.Len(t, rep.GetComparisons(), 2)
	requireEmpty(t, in.Dir)

	fewer := counts()
	fewer["keys"] = 1
	requireFailed(t, input(t, manifestOf(lifeboatv1.Kind_KIND_CONSUL, fewer), []byte(twoKeys)),
		"compare: the restored data differs: keys is 2 and should be 1")
	for name, bad := range map[string]string{
		"cut": twoKeys[:40], "cut at the end": twoKeys[:len(twoKeys)-2], "no list": `{"key":"a"}`, "nothing": "",
		"two lists": twoKeys + twoKeys, "no key": `[{"flags":1}]`, "no base64": `[{"key":"a","value":"%"}]`,
	} {
		t.Run(name, func(t *testing.T) {
			requireFailed(t, input(t, manifestOf(lifeboatv1.Kind_KIND_CONSUL, counts()), []byte(bad)), "decode: ")
		})
	}
	t.Run("wrong digest at the end", func(t *testing.T) {
		in := input(t, manifestOf(lifeboatv1.Kind_KIND_CONSUL, counts()), nil)
		in.Open = withEnd(twoKeys)
		assert.Contains(t, requireFailed(t, in, "decode: "), "wrong digest")
	})
}

// withEnd gives data and then, in place of the end, an error.
func withEnd(data string) func(context.Context) (io.ReadCloser, error) {
	return func(context.Context) (io.ReadCloser, error) {
		return io.NopCloser(io.MultiReader(bytes.NewReader([]byte(data)), iotest.ErrReader(errors.New("wrong digest")))), nil
	}
}

func archive(t *testing.T, files ...string) string {
	t.Helper()
	var b bytes.Buffer
	tw := tar.NewWriter(&b)
	for i := 0; i < len(files); i += 2 {
		require.NoError(t, tw.WriteHeader(&tar.Header{Name: files[i], Mode: 0o600, Size: int64(len(files[i+1]))}))
		_, err := tw.Write([]byte(files[i+1]))
		require.NoError(t, err)
	}
	require.NoError(t, tw.Close())
	return b.String()
}

func TestNomad(t *testing.T) {
	whole := archive(t, "jobs/default/a/job.json", `{"Job":{"ID":"a"}}`, "jobs/default/a/job.nomad.hcl", "job {}",
		"jobs/default/a/submission.json", `{"Source":"job {}"}`, "jobs/default/b/job.json", `{"Job":{"ID":"b"}}`,
		"namespaces/default.json", `{"Name":"default"}`)
	counts := map[string]int64{"jobs": 2, "submissions": 1, "namespaces": 1}
	in := input(t, manifestOf(lifeboatv1.Kind_KIND_NOMAD, counts), []byte(whole))
	rep := drill.Run(t.Context(), in)
	require.Empty(t, rep.GetFailure())
	assert.Equal(t, lifeboatv1.DrillReport_LEVEL_DECODED, rep.GetLevel())
	assert.Contains(t, rep.GetSummary(), "nothing was restored")
	assert.Len(t, rep.GetComparisons(), 3)

	for name, bad := range map[string]string{
		"cut":    whole[:514],
		"no job": archive(t, "jobs/default/a/job.json", `{}`), "no JSON": archive(t, "jobs/default/a/job.json", `{`),
	} {
		t.Run(name, func(t *testing.T) {
			requireFailed(t, input(t, manifestOf(lifeboatv1.Kind_KIND_NOMAD, counts), []byte(bad)), "decode: ")
		})
	}
	t.Run("a version less", func(t *testing.T) {
		more := map[string]int64{"jobs": 2, "submissions": 1, "namespaces": 1, "versions": 1}
		requireFailed(t, input(t, manifestOf(lifeboatv1.Kind_KIND_NOMAD, more), []byte(whole)), "compare: ")
	})
	t.Run("a job less", func(t *testing.T) {
		data := archive(t, "jobs/default/a/job.json", `{"Job":{"ID":"a"}}`)
		requireFailed(t, input(t, manifestOf(lifeboatv1.Kind_KIND_NOMAD, counts), []byte(data)), "compare: ")
	})
	t.Run("wrong digest at the end", func(t *testing.T) {
		in := input(t, manifestOf(lifeboatv1.Kind_KIND_NOMAD, counts), nil)
		in.Open = withEnd(whole)
		assert.Contains(t, requireFailed(t, in, "decode: "), "wrong digest")
	})
}

// TestNomadKinds has one file of each kind, and what is not counted.
func TestNomadKinds(t *testing.T) {
	files := []string{
		"jobs/apps/a%2Fversions/job.json", `{"Job":{}}`, "jobs/apps/a%2Fversions/job.nomad.json", `no JSON`,
		"jobs/apps/a%2Fversions/submission.json", `{"Source":""}`, "jobs/apps/a%2Fversions/versions/10.json", `{"Job":{}}`,
		"jobs/apps/a%2Fversions/versions/9.nomad.json", `no JSON`, "jobs/apps/a%2Fversions/versions/9.nomad.hcl", `job`,
		"jobs/apps/a%2Fversions/versions/9.submission.json", `{"Source":""}`,
		"namespaces/apps.json", `{"Name":"apps"}`, "node_pools/gpu.json", `{"Name":"gpu"}`, "quotas/q.json", `{"Name":"q"}`,
		"acl/policies/p.hcl", `no JSON`, "acl/policies/p.json", `{"Name":"p"}`, "acl/roles/r.json", `{"Name":"r"}`,
		"acl/auth_methods/m.json", `{"Name":"m"}`, "acl/binding_rules/b.json", `{"BindType":"role"}`,
		"acl/tokens/t.json", `{"AccessorID":"t"}`, "variables/apps/x%2Fy.json", `{"Items":{}}`,
		"volumes/csi/apps/v.json", `{"Volumes":[]}`, "volumes/host/apps/v.json", `{"Volume":{}}`,
		"scheduler_configuration.json", `{"SchedulerAlgorithm":"binpack"}`, "later/kind.json", `no JSON`,
	}
	counts := map[string]int64{
		"jobs": 1, "submissions": 1, "versions": 1, "version_submissions": 1, "namespaces": 1, "node_pools": 1, "quotas": 1,
		"acl_policies": 1, "acl_roles": 1, "acl_auth_methods": 1, "acl_binding_rules": 1, "acl_tokens": 1, "variables": 1,
		"csi_volumes": 1, "host_volumes": 1,
	}
	in := input(t, manifestOf(lifeboatv1.Kind_KIND_NOMAD, counts), []byte(archive(t, files...)))
	rep := drill.Run(t.Context(), in)
	require.Empty(t, rep.GetFailure())
	assert.Len(t, rep.GetComparisons(), len(counts))
	for i := 0; i < len(files); i += 2 {
		if !strings.HasSuffix(files[i], ".json") || files[i+1] == "no JSON" {
			continue
		}
		bad := slices.Clone(files)
		bad[i+1] = "{}"
		in = input(t, manifestOf(lifeboatv1.Kind_KIND_NOMAD, counts), []byte(archive(t, bad...)))
		assert.Contains(t, requireFailed(t, in, "decode: "), files[i])
	}
}

// TestUnknown has nothing to go by.
func TestUnknown(t *testing.T) {
	rep := drill.Run(t.Context(), drill.Input{})
	assert.False(t, rep.GetPassed())
	assert.Contains(t, rep.GetFailure(), "KIND_UNSPECIFIED")
	assert.Equal(t, "Nothing was restored. The drill failed.", rep.GetSummary())
}
