package drill_test

import (
	"archive/tar"
	"bytes"
	"context"
	"errors"
	"io"
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

// TestUnknown has nothing to go by.
func TestUnknown(t *testing.T) {
	rep := drill.Run(t.Context(), drill.Input{})
	assert.False(t, rep.GetPassed())
	assert.Contains(t, rep.GetFailure(), "KIND_UNSPECIFIED")
	assert.Equal(t, "Nothing was restored. The drill failed.", rep.GetSummary())
}
