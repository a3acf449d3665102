package drill_test

import (
	"bytes"
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net/url"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"testing/iotest"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	clientv3 "go.etcd.io/etcd/client/v3"
	"go.etcd.io/etcd/server/v3/embed"
	"go.uber.org/goleak"
	"go.uber.org/zap"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/timestamppb"

	lifeboatv1 "github.com/lifeboat-fleet/lifeboat/proto/lifeboat/v1"
	"github.com/lifeboat-fleet/lifeboat/services/backup/internal/drill"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// startEtcd runs the source: a single etcd on random loopback ports.
func startEtcd(t *testing.T) *clientv3.Client {
	t.Helper()
	cfg := embed.NewConfig()
	cfg.Dir = t.TempDir()
	cfg.UnsafeNoFsync = true
	cfg.TickMs, cfg.ElectionMs = 10, 50
	cfg.ZapLoggerBuilder = embed.NewZapLoggerBuilder(zap.NewNop())
	local := []url.URL{{Scheme: "http", Host: "127.0.0.1:0"}}
	cfg.ListenClientUrls, cfg.AdvertiseClientUrls = local, local
	cfg.ListenPeerUrls, cfg.AdvertisePeerUrls = local, local
	cfg.InitialCluster = cfg.InitialClusterFromName(cfg.Name)
	e, err := embed.StartEtcd(cfg)
	require.NoError(t, err)
	t.Cleanup(e.Close)
	<-e.Server.ReadyNotify()
	c, err := clientv3.New(clientv3.Config{
		Endpoints: []string{"http://" + e.Clients[0].Addr().String()}, Logger: zap.NewNop(),
	})
	require.NoError(t, err)
	t.Cleanup(func() { require.NoError(t, c.Close()) })
	return c
}

// take reads a snapshot of what is there now and writes its manifest, by other means than the source package.
func take(t *testing.T, c *clientv3.Client) ([]byte, *lifeboatv1.Manifest) {
	t.Helper()
	ctx := t.Context()
	snap, err := c.SnapshotWithVersion(ctx)
	require.NoError(t, err)
	data, err := io.ReadAll(snap.Snapshot)
	require.NoError(t, err)
	require.NoError(t, snap.Snapshot.Close())
	keys, err := c.Get(ctx, "", clientv3.WithPrefix(), clientv3.WithCountOnly())
	require.NoError(t, err)
	rev := keys.Header.Revision
	hash, err := c.HashKV(ctx, c.Endpoints()[0], rev)
	require.NoError(t, err)
	return data, &lifeboatv1.Manifest{
		Format: 1, Id: "snap-1", Target: "etcd-test", Kind: lifeboatv1.Kind_KIND_ETCD,
		StartedAt: timestamppb.New(time.Now().Add(-time.Hour)),
		Source: &lifeboatv1.SourceInfo{
			Revision: rev, Counts: map[string]int64{"keys": keys.Count},
			HashKv: &lifeboatv1.HashKV{Hash: hash.Hash, Revision: rev, CompactRevision: hash.CompactRevision},
		},
		Data: &lifeboatv1.Data{Format: "db", Raw: &lifeboatv1.Digest{Bytes: int64(len(data))}},
	}
}

func put(t *testing.T, c *clientv3.Client, n int) {
	t.Helper()
	for i := range n {
		_, err := c.Put(t.Context(), fmt.Sprintf("key-%d", i), strings.Repeat("v", 100+i))
		require.NoError(t, err)
	}
}

func input(t *testing.T, m *lifeboatv1.Manifest, data []byte) drill.Input {
	t.Helper()
	return drill.Input{
		DrillID: "drill-1", JobID: "job-1", TraceID: "trace-1", Version: "v0", Manifest: m, Dir: t.TempDir(),
		Open: func(context.Context) (io.ReadCloser, error) { return io.NopCloser(bytes.NewReader(data)), nil },
	}
}

func requireEmpty(t *testing.T, dir string) {
	t.Helper()
	left, err := os.ReadDir(dir)
	require.NoError(t, err)
	require.Empty(t, left, "a drill must leave nothing behind")
}

func TestEtcd(t *testing.T) {
	c := startEtcd(t)
	put(t, c, 200)
	put(t, c, 50)
	compacted, err := c.Delete(t.Context(), "key-1", clientv3.WithPrefix())
	require.NoError(t, err)
	_, err = c.Compact(t.Context(), compacted.Header.Revision-10, clientv3.WithCompactPhysical())
	require.NoError(t, err)
	data, manifest := take(t, c)
	t.Run("passes", func(t *testing.T) { testPasses(t, data, manifest) })
	t.Run("differs", func(t *testing.T) { testDiffers(t, data, manifest) })
	t.Run("not comparable", func(t *testing.T) { testNotComparable(t, data, manifest) })
	t.Run("damaged", func(t *testing.T) { testDamaged(t, data, manifest) })
	t.Run("canceled", func(t *testing.T) { testCanceled(t, data, manifest) })
	t.Run("leftovers", func(t *testing.T) { testLeftovers(t, data, manifest) })
	t.Run("no room", func(t *testing.T) {
		in := input(t, clone(manifest, func(m *lifeboatv1.Manifest) { m.Data.Raw.Bytes = 1 << 55 }), data)
		assert.Contains(t, requireFailed(t, in, "fetch: a drill needs "), "are free")
	})
}

func testPasses(t *testing.T, data []byte, manifest *lifeboatv1.Manifest) {
	t.Helper()
	in := input(t, manifest, data)
	rep := drill.Run(t.Context(), in)
	require.Empty(t, rep.GetFailure())
	assert.True(t, rep.GetPassed())
	assert.Equal(t, lifeboatv1.DrillReport_LEVEL_RESTORED, rep.GetLevel())
	assert.EqualValues(t, 1, rep.GetFormat())
	assert.Equal(t, "drill-1 job-1 trace-1 v0 etcd-test snap-1 KIND_ETCD", strings.Join([]string{
		rep.GetId(), rep.GetJobId(), rep.GetTraceId(), rep.GetLifeboatVersion(), rep.GetTarget(), rep.GetSnapshotId(),
		rep.GetKind().String(),
	}, " "))
	assert.InDelta(t, time.Hour, rep.GetDataAge().AsDuration(), float64(5*time.Minute))
	assert.Positive(t, rep.GetRto().AsDuration())
	assert.False(t, rep.GetFinishedAt().AsTime().Before(rep.GetStartedAt().AsTime()))
	var phases []string
	for _, p := range rep.GetPhases() {
		phases = append(phases, p.GetName())
	}
	assert.Equal(t, []string{"prepare", "fetch", "restore", "start", "compare", "stop"}, phases)
	equal := make(map[string]bool)
	for _, x := range rep.GetComparisons() {
		assert.True(t, x.GetOk())
		equal[x.GetWhat()] = x.GetNotComparable() == "" && x.GetWant() == x.GetGot()
	}
	// The manifest of this test has no count of revisions.
	assert.Equal(t, map[string]bool{"revision": true, "keys": true, "hash_kv": true, "revisions": false}, equal)
	assert.Contains(t, rep.GetSummary(), "Equal to the manifest: revision, keys, hash_kv")
	requireEmpty(t, in.Dir)
}

func clone(m *lifeboatv1.Manifest, change func(*lifeboatv1.Manifest)) *lifeboatv1.Manifest {
	c, ok := proto.Clone(m).(*lifeboatv1.Manifest)
	if !ok {
		panic("a clone of another type")
	}
	change(c)
	return c
}

// testDiffers changes what the manifest says, one thing at a time. A drill that passes then compares nothing.
func testDiffers(t *testing.T, data []byte, manifest *lifeboatv1.Manifest) {
	t.Helper()
	for what, change := range map[string]func(*lifeboatv1.SourceInfo){
		"hash_kv":   func(s *lifeboatv1.SourceInfo) { s.HashKv.Hash++ },
		"keys":      func(s *lifeboatv1.SourceInfo) { s.Counts["keys"]++ },
		"revisions": func(s *lifeboatv1.SourceInfo) { s.Counts["revisions"] = 7 },
		"revision":  func(s *lifeboatv1.SourceInfo) { s.Revision++ },
	} {
		t.Run(what, func(t *testing.T) {
			in := input(t, clone(manifest, func(m *lifeboatv1.Manifest) { change(m.Source) }), data)
			rep := drill.Run(t.Context(), in)
			assert.False(t, rep.GetPassed())
			assert.Contains(t, rep.GetFailure(), "compare: the restored data differs: "+what+" is ")
			assert.Contains(t, rep.GetSummary(), "failed")
			requireEmpty(t, in.Dir)
		})
	}
}

func testNotComparable(t *testing.T, data []byte, manifest *lifeboatv1.Manifest) {
	t.Helper()
	in := input(t, clone(manifest, func(m *lifeboatv1.Manifest) {
		m.Source.HashKv.CompactRevision++
		m.Source.HashKv.Hash++
		delete(m.Source.Counts, "keys")
		m.Source.Missing = []string{"keys: permission denied"}
	}), data)
	rep := drill.Run(t.Context(), in)
	assert.True(t, rep.GetPassed(), rep.GetFailure())
	why := make(map[string]string)
	for _, x := range rep.GetComparisons() {
		why[x.GetWhat()] = x.GetNotComparable()
	}
	assert.Contains(t, why["hash_kv"], "compacted")
	assert.Contains(t, why["keys"], "permission denied")
	assert.Contains(t, rep.GetSummary(), "Could not be compared: revisions, keys, hash_kv")
}

// requireFailed runs a drill that must fail with a cause that begins like this, and leave nothing.
func requireFailed(t *testing.T, in drill.Input, failure string) string {
	t.Helper()
	rep := drill.Run(t.Context(), in)
	require.False(t, rep.GetPassed())
	require.GreaterOrEqual(t, len(rep.GetFailure()), len(failure), rep.GetFailure())
	require.Equal(t, failure, rep.GetFailure()[:len(failure)], rep.GetFailure())
	require.NotNil(t, rep.GetFinishedAt())
	requireEmpty(t, in.Dir)
	return rep.GetFailure()
}

// sealed puts the right checksum behind wrong data.
func sealed(data []byte) []byte {
	sum := sha256.Sum256(data)
	return slices.Concat(data, sum[:])
}

func testDamaged(t *testing.T, data []byte, manifest *lifeboatv1.Manifest) {
	t.Helper()
	seed := uint64(time.Now().UnixNano())
	t.Logf("seed %d", seed)
	r := rand.New(rand.NewPCG(seed, 0))
	flipped := bytes.Clone(data)
	flipped[r.IntN(len(flipped))] ^= 1 << r.IntN(8)
	body := data[:len(data)-sha256.Size]
	emptied := bytes.Clone(body)
	clear(emptied[2*4096:])
	noMeta := bytes.Clone(body)
	clear(noMeta[:2*4096])
	for name, c := range map[string]struct {
		data    []byte
		failure string
	}{
		"flipped":               {flipped, "restore: "},
		"truncated":             {data[:len(data)/2], "restore: "},
		"cut and sealed":        {sealed(body[:len(body)/4096/2*4096]), "restore: "},
		"no checksum":           {body, "restore: "},
		"nothing":               {nil, "restore: "},
		"emptied and sealed":    {sealed(emptied), "restore: "},
		"without meta, sealed":  {sealed(noMeta), "restore: "},
		"not a database at all": {sealed(bytes.Repeat([]byte("garbage "), 64)), "restore: "},
	} {
		t.Run(name, func(t *testing.T) { requireFailed(t, input(t, manifest, c.data), c.failure) })
	}
	t.Run("unreadable half-way", func(t *testing.T) {
		in := input(t, manifest, nil)
		in.Open = func(context.Context) (io.ReadCloser, error) {
			return io.NopCloser(io.MultiReader(bytes.NewReader(data[:10_000]), iotest.ErrReader(errors.New("wrong digest")))), nil
		}
		assert.Contains(t, requireFailed(t, in, "fetch: "), "wrong digest")
	})
	t.Run("cannot be opened", func(t *testing.T) {
		in := input(t, manifest, nil)
		in.Open = func(context.Context) (io.ReadCloser, error) { return nil, errors.New("no such key") }
		assert.Contains(t, requireFailed(t, in, "fetch: "), "no such key")
	})
	t.Run("panics", func(t *testing.T) {
		in := input(t, manifest, nil)
		in.Open = func(context.Context) (io.ReadCloser, error) { panic("a bug") }
		assert.Contains(t, requireFailed(t, in, "fetch: "), "a bug")
	})
	t.Run("no folder", func(t *testing.T) {
		in := input(t, manifest, data)
		in.Dir = filepath.Join(in.Dir, "none")
		rep := drill.Run(t.Context(), in)
		assert.Contains(t, rep.GetFailure(), "prepare: ")
	})
}

// testCanceled ends the context on the first byte, and before.
func testCanceled(t *testing.T, data []byte, manifest *lifeboatv1.Manifest) {
	t.Helper()
	ctx, cancel := context.WithCancel(t.Context())
	in := input(t, manifest, nil)
	in.Open = func(context.Context) (io.ReadCloser, error) {
		cancel()
		return io.NopCloser(bytes.NewReader(data)), nil
	}
	for range 2 {
		rep := drill.Run(ctx, in)
		assert.False(t, rep.GetPassed())
		assert.Contains(t, rep.GetFailure(), context.Canceled.Error())
		requireEmpty(t, in.Dir)
	}
}

// testLeftovers has one folder of a drill that is no more, one of a drill that runs, and one of somebody else.
func testLeftovers(t *testing.T, data []byte, manifest *lifeboatv1.Manifest) {
	t.Helper()
	in := input(t, manifest, data)
	dead, alive, other := filepath.Join(in.Dir, "lifeboat-drill-1"), filepath.Join(in.Dir, "lifeboat-drill-2"),
		filepath.Join(in.Dir, "other")
	for _, dir := range []string{dead, alive, other} {
		require.NoError(t, os.MkdirAll(filepath.Join(dir, "data"), 0o700))
		require.NoError(t, os.WriteFile(filepath.Join(dir, "data", "db"), []byte("x"), 0o600))
	}
	lock, err := os.Open(alive)
	require.NoError(t, err)
	defer lock.Close()
	require.NoError(t, syscall.Flock(int(lock.Fd()), syscall.LOCK_EX))
	rep := drill.Run(t.Context(), in)
	require.Empty(t, rep.GetFailure())
	assert.NoDirExists(t, dead)
	assert.FileExists(t, filepath.Join(alive, "data", "db"))
	assert.FileExists(t, filepath.Join(other, "data", "db"))
}

// TestEtcdWithAuth restores a cluster that asks for a password, which a drill does not have.
func TestEtcdWithAuth(t *testing.T) {
	c := startEtcd(t)
	put(t, c, 10)
	ctx := t.Context()
	// Asked before, while everybody may.
	_, err := c.UserAdd(ctx, "root", "pass")
	require.NoError(t, err)
	_, err = c.RoleAdd(ctx, "root")
	require.NoError(t, err)
	_, err = c.UserGrantRole(ctx, "root", "root")
	require.NoError(t, err)
	_, manifest := take(t, c)
	_, err = c.AuthEnable(ctx)
	require.NoError(t, err)
	root, err := clientv3.New(clientv3.Config{
		Endpoints: c.Endpoints(), Username: "root", Password: "pass", Logger: zap.NewNop(),
	})
	require.NoError(t, err)
	defer root.Close()
	data, _ := take(t, root)
	in := input(t, manifest, data)
	rep := drill.Run(ctx, in)
	assert.True(t, rep.GetPassed(), rep.GetFailure())
	requireEmpty(t, in.Dir)
}

// TestEtcdEmpty drills the snapshot of a cluster in which nothing was ever written.
func TestEtcdEmpty(t *testing.T) {
	data, manifest := take(t, startEtcd(t))
	rep := drill.Run(t.Context(), input(t, manifest, data))
	assert.True(t, rep.GetPassed(), rep.GetFailure())
}

// TestEtcdLeases restores keys whose lease ends soon. The comparison is at the snapshot's revision, whatever has
// expired in the copy by then.
func TestEtcdLeases(t *testing.T) {
	c := startEtcd(t)
	lease, err := c.Grant(t.Context(), 1)
	require.NoError(t, err)
	for i := range 20 {
		_, err := c.Put(t.Context(), fmt.Sprintf("leased-%d", i), "", clientv3.WithLease(lease.ID))
		require.NoError(t, err)
	}
	data, manifest := take(t, c)
	rep := drill.Run(t.Context(), input(t, manifest, data))
	assert.True(t, rep.GetPassed(), rep.GetFailure())
}
