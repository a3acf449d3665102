package drill_test

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"io"
	"maps"
	"os"
	"slices"
	"strings"
	"testing"
	"time"

	"filippo.io/age"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"go.uber.org/goleak"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/timestamppb"

	"github.com/lifeboat-fleet/lifeboat/fleet/config"
	"github.com/lifeboat-fleet/lifeboat/fleet/fleettest/bintest"
	lifeboatv1 "github.com/lifeboat-fleet/lifeboat/proto/lifeboat/v1"
	"github.com/lifeboat-fleet/lifeboat/services/backup/internal/catalog"
	"github.com/lifeboat-fleet/lifeboat/services/backup/internal/drill"
	"github.com/lifeboat-fleet/lifeboat/services/backup/internal/pipeline"
	"github.com/lifeboat-fleet/lifeboat/services/backup/internal/source"
	"github.com/lifeboat-fleet/lifeboat/services/backup/internal/store"
	"github.com/lifeboat-fleet/lifeboat/services/backup/internal/store/memstore"
	"github.com/lifeboat-fleet/lifeboat/services/backup/internal/throwaway"
)

func TestMain(m *testing.M) {
	if len(os.Args) > 1 {
		switch os.Args[1] {
		case "confine":
			os.Exit(throwaway.Confined(os.Args[2:])) //nolint:forbidigo // this process is the server's
		case "drill-until":
			drillUntil(os.Args[2:])
		}
	}
	goleak.VerifyTestMain(m)
}

// opener is a source.
type opener interface {
	Open(ctx context.Context) (source.Stream, error)
	Format() string
}

// shelf is a store that holds one snapshot of a target, as a worker would have stored it.
type shelf struct {
	objects  *memstore.Store
	target   config.Target
	manifest *lifeboatv1.Manifest
	identity *age.X25519Identity
	raw      map[string][]byte // by format
}

// take snapshots sources with the code that takes snapshots.
func take(t *testing.T, target config.Target, sources ...opener) *shelf {
	t.Helper()
	identity, err := age.GenerateX25519Identity()
	require.NoError(t, err)
	s := &shelf{objects: memstore.New(), target: target, identity: identity, raw: map[string][]byte{}}
	s.manifest = &lifeboatv1.Manifest{
		Format: 1, Id: "snap-1", Target: target.Name, StartedAt: timestamppb.New(time.Now().Add(-time.Hour)),
		Kind: map[string]lifeboatv1.Kind{
			"etcd": lifeboatv1.Kind_KIND_ETCD, "consul": lifeboatv1.Kind_KIND_CONSUL, "nomad": lifeboatv1.Kind_KIND_NOMAD,
		}[target.Kind()],
	}
	for i, src := range sources {
		stream, err := src.Open(t.Context())
		require.NoError(t, err)
		raw, err := io.ReadAll(stream)
		require.NoError(t, err)
		info, err := stream.Info(t.Context())
		require.NoError(t, err)
		require.NoError(t, stream.Close())
		data := s.put(t, raw, src.Format())
		if i == 0 {
			s.manifest.Source, s.manifest.Data = info, data
		} else {
			data.Source = info
			s.manifest.Parts = append(s.manifest.Parts, data)
		}
	}
	return s
}

// put stores data in place of the snapshot's and describes it.
func (s *shelf) put(t *testing.T, raw []byte, format string) *lifeboatv1.Data {
	t.Helper()
	data := store1(t, s.objects, s.manifest.GetTarget(), s.manifest.GetId(), raw, format, s.identity.Recipient())
	s.raw[format] = raw
	return data
}

// replace stores other data than the source sent, with the digests that it has, as a source that is broken itself would.
func (s *shelf) replace(t *testing.T, raw []byte) {
	t.Helper()
	s.manifest.Data = s.put(t, raw, s.manifest.GetData().GetFormat())
}

func store1(
	t *testing.T, o *memstore.Store, target, id string, raw []byte, format string, recipient *age.X25519Recipient,
) *lifeboatv1.Data {
	t.Helper()
	data := &lifeboatv1.Data{
		Key: catalog.Layout{Prefix: "p"}.Data(target, id, format, true), Format: format, Compression: pipeline.Compression,
		Recipients: []string{recipient.String()},
	}
	encoded := pipeline.Encode(strings.NewReader(string(raw)), []age.Recipient{recipient})
	_, err := o.Put(t.Context(), data.GetKey(), encoded, 0, store.Condition{})
	require.NoError(t, err)
	require.NoError(t, encoded.Close())
	data.Raw, data.Stored = encoded.Raw(), encoded.Stored()
	return data
}

// stored is the object of the snapshot's data, to be damaged.
func (s *shelf) stored(t *testing.T) []byte {
	t.Helper()
	r, _, err := s.objects.Get(t.Context(), s.manifest.GetData().GetKey())
	require.NoError(t, err)
	b, err := io.ReadAll(r)
	require.NoError(t, err)
	return slices.Clone(b)
}

func (s *shelf) store(t *testing.T, b []byte) {
	t.Helper()
	_, err := s.objects.Put(t.Context(), s.manifest.GetData().GetKey(), strings.NewReader(string(b)), 0, store.Condition{})
	require.NoError(t, err)
}

// fetch is what the worker gives a drill.
func (s *shelf) fetch(ctx context.Context, key string) (io.ReadCloser, error) {
	r, _, err := s.objects.Get(ctx, key)
	return r, err
}

// change gives a copy of everything with another manifest.
func (s *shelf) change(t *testing.T, f func(*lifeboatv1.Manifest)) *shelf {
	t.Helper()
	other := *s
	other.manifest, other.objects, other.raw = proto.CloneOf(s.manifest), memstore.New(), maps.Clone(s.raw)
	for _, d := range append([]*lifeboatv1.Data{s.manifest.GetData()}, s.manifest.GetParts()...) {
		r, _, err := s.objects.Get(t.Context(), d.GetKey())
		require.NoError(t, err)
		_, err = other.objects.Put(t.Context(), d.GetKey(), r, 0, store.Condition{})
		require.NoError(t, err)
	}
	if f != nil {
		f(other.manifest)
	}
	return &other
}

// input is a drill of the snapshot. The servers are those that the tests are built with.
func (s *shelf) input(t *testing.T) drill.Input {
	t.Helper()
	return drill.Input{
		DrillID: "drill-1", JobID: "job-1", TraceID: "trace-1", Version: "v0", RequestedBy: "a test", Target: s.target,
		SnapshotID: s.manifest.GetId(), Manifest: s.manifest, Fetch: s.fetch, Dir: t.TempDir(),
		Identity: drill.IdentityWorker, Identities: []age.Identity{s.identity}, Servers: servers(t),
	}
}

func servers(t *testing.T) drill.Servers {
	t.Helper()
	consul, err := bintest.Find("consul")
	require.NoError(t, err)
	nomad, err := bintest.Find("nomad")
	require.NoError(t, err)
	return drill.Servers{ConsulBinary: consul, NomadBinary: nomad}
}

// requirePassed runs a drill that must pass and leave nothing.
func requirePassed(t *testing.T, in drill.Input) *lifeboatv1.DrillReport {
	t.Helper()
	rep, err := drill.Run(t.Context(), in)
	require.NoError(t, err)
	require.Empty(t, rep.GetFailure())
	require.True(t, rep.GetPassed())
	require.Empty(t, rep.GetFailedPhase())
	assert.Equal(t, lifeboatv1.DrillReport_LEVEL_RESTORED, rep.GetLevel())
	requireEmpty(t, in.Dir)
	return rep
}

// requireFailed runs a drill that must fail in a phase with a cause that holds these words, and leave nothing.
func requireFailed(t *testing.T, in drill.Input, phase string, words ...string) *lifeboatv1.DrillReport {
	t.Helper()
	rep, err := drill.Run(t.Context(), in)
	require.NoError(t, err)
	require.False(t, rep.GetPassed())
	require.Equal(t, phase, rep.GetFailedPhase(), rep.GetFailure())
	require.True(t, strings.HasPrefix(rep.GetFailure(), phase+": "), rep.GetFailure())
	for _, w := range words {
		require.Contains(t, rep.GetFailure(), w)
	}
	require.NotNil(t, rep.GetFinishedAt())
	assert.Contains(t, rep.GetSummary(), "What to do: ")
	requireEmpty(t, in.Dir)
	return rep
}

func requireEmpty(t *testing.T, dir string) {
	t.Helper()
	left, err := os.ReadDir(dir)
	require.NoError(t, err)
	require.Empty(t, left, "a drill must leave nothing behind")
}

// found are the comparisons, each as "want=got", with "(not comparable)" and "!" for one that differs.
func found(rep *lifeboatv1.DrillReport) map[string]string {
	all := map[string]string{}
	for _, c := range rep.GetComparisons() {
		text := c.GetWant() + "=" + c.GetGot()
		if c.GetNotComparable() != "" {
			text = "(not comparable)"
		}
		if !c.GetOk() {
			text = "!" + text
		}
		all[c.GetWhat()] = text
	}
	return all
}

func phases(rep *lifeboatv1.DrillReport) []string {
	var all []string
	for _, p := range rep.GetPhases() {
		all = append(all, p.GetName())
	}
	return all
}

func sum(b []byte) string {
	s := sha256.Sum256(b)
	return hex.EncodeToString(s[:])
}

func texts(n int, format string) []string {
	all := make([]string, n)
	for i := range all {
		all[i] = fmt.Sprintf(format, i)
	}
	return all
}
