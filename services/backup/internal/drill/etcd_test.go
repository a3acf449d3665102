package drill_test

import (
	"bytes"
	"crypto/sha256"
	"fmt"
	"math/rand/v2"
	"net/url"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	clientv3 "go.etcd.io/etcd/client/v3"
	"go.etcd.io/etcd/server/v3/embed"
	"go.uber.org/zap"

	"github.com/lifeboat-fleet/lifeboat/fleet/config"
	lifeboatv1 "github.com/lifeboat-fleet/lifeboat/proto/lifeboat/v1"
	"github.com/lifeboat-fleet/lifeboat/services/backup/internal/drill"
	"github.com/lifeboat-fleet/lifeboat/services/backup/internal/source/etcd"
)

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

// takeEtcd snapshots an etcd. password is root's, where authentication is on.
func takeEtcd(t *testing.T, c *clientv3.Client, password string) *shelf {
	t.Helper()
	cfg := &config.Etcd{Endpoints: c.Endpoints()}
	if password != "" {
		cfg.Username, cfg.PasswordFile = "root", config.SecretFile(filepath.Join(t.TempDir(), "password"))
		require.NoError(t, os.WriteFile(string(cfg.PasswordFile), []byte(password), 0o600))
	}
	return take(t, config.Target{Name: "etcd-test", Etcd: cfg}, etcd.New(*cfg, etcd.Options{}))
}

func put(t *testing.T, c *clientv3.Client, n int) {
	t.Helper()
	for i := range n {
		_, err := c.Put(t.Context(), fmt.Sprintf("key-%d", i), strings.Repeat("v", 100+i))
		require.NoError(t, err)
	}
}

// smallEtcd is a snapshot with history, deletions and a compaction.
func smallEtcd(t *testing.T) *shelf {
	t.Helper()
	c := startEtcd(t)
	put(t, c, 200)
	put(t, c, 50)
	compacted, err := c.Delete(t.Context(), "key-1", clientv3.WithPrefix())
	require.NoError(t, err)
	_, err = c.Compact(t.Context(), compacted.Header.Revision-10, clientv3.WithCompactPhysical())
	require.NoError(t, err)
	return takeEtcd(t, c, "")
}

func TestEtcd(t *testing.T) {
	s := smallEtcd(t)
	t.Run("passes", func(t *testing.T) { testPasses(t, s) })
	t.Run("differs", func(t *testing.T) { testDiffers(t, s) })
	t.Run("not comparable", func(t *testing.T) { testNotComparable(t, s) })
	t.Run("broken at the source", func(t *testing.T) { testBroken(t, s) })
	t.Run("leftovers", func(t *testing.T) { testLeftovers(t, s) })
	t.Run("no room", func(t *testing.T) {
		in := s.change(t, func(m *lifeboatv1.Manifest) { m.Data.Raw.Bytes = 1 << 55 }).input(t)
		requireFailed(t, in, "prepare", " bytes are needed in the scratch folder", "are free", "--scratch-dir")
	})
	t.Run("no folder", func(t *testing.T) {
		in := s.input(t)
		in.Dir = filepath.Join(in.Dir, "none")
		rep, err := drill.Run(t.Context(), in)
		require.NoError(t, err)
		assert.Equal(t, "prepare", rep.GetFailedPhase())
	})
}

func testPasses(t *testing.T, s *shelf) {
	t.Helper()
	in := s.input(t)
	in.Target.Drill.MaxRTO = time.Hour
	rep := requirePassed(t, in)
	assert.EqualValues(t, 1, rep.GetFormat())
	assert.Equal(t, "drill-1 job-1 trace-1 v0 etcd-test snap-1 KIND_ETCD a test worker in process", strings.Join([]string{
		rep.GetId(), rep.GetJobId(), rep.GetTraceId(), rep.GetLifeboatVersion(), rep.GetTarget(), rep.GetSnapshotId(),
		rep.GetKind().String(), rep.GetRequestedBy(), rep.GetIdentity(), rep.GetIsolation(),
	}, " "))
	assert.InDelta(t, time.Hour, rep.GetDataAge().AsDuration(), float64(5*time.Minute))
	assert.Equal(t, time.Hour, rep.GetMaxRto().AsDuration())
	assert.Positive(t, rep.GetRto().AsDuration())
	assert.Positive(t, rep.GetUsage().GetDiskBytes())
	assert.False(t, rep.GetFinishedAt().AsTime().Before(rep.GetStartedAt().AsTime()))
	assert.Equal(t, []string{"manifest", "prepare", "fetch", "decrypt", "restore", "start", "compare", "stop"}, phases(rep))
	var last time.Duration
	whole := rep.GetFinishedAt().AsTime().Sub(rep.GetStartedAt().AsTime())
	for _, p := range rep.GetPhases() {
		assert.GreaterOrEqual(t, p.GetBegan().AsDuration(), last, p.GetName())
		last = p.GetBegan().AsDuration()
		assert.LessOrEqual(t, last+p.GetTook().AsDuration(), whole, p.GetName())
	}
	counts := s.manifest.GetSource().GetCounts()
	got := found(rep)
	for _, what := range []string{"keys", "revisions", "leases", "auth_users", "auth_roles", "auth_enabled"} {
		assert.Equal(t, fmt.Sprintf("%d=%d", counts[what], counts[what]), got[what], what)
	}
	assert.NotContains(t, got["hash_kv"], "not comparable")
	assert.Contains(t, got["rto"], "at most 1h0m0s=")
	assert.Contains(t, rep.GetSummary(), "passed: a throwaway etcd server (in the worker's process) ran with the restored data after ")
	assert.Contains(t, rep.GetSummary(), "Equal to the manifest: revision, revisions, keys")
	assert.NotContains(t, rep.GetSummary(), "What to do")
}

// testDiffers changes what the manifest says, one thing at a time. A drill that passes then compares nothing.
func testDiffers(t *testing.T, s *shelf) {
	t.Helper()
	for what, change := range map[string]func(*lifeboatv1.SourceInfo){
		"hash_kv":      func(s *lifeboatv1.SourceInfo) { s.HashKv.Hash++ },
		"keys":         func(s *lifeboatv1.SourceInfo) { s.Counts["keys"]++ },
		"revisions":    func(s *lifeboatv1.SourceInfo) { s.Counts["revisions"] = 7 },
		"revision":     func(s *lifeboatv1.SourceInfo) { s.Revision++ },
		"leases":       func(s *lifeboatv1.SourceInfo) { s.Counts["leases"]++ },
		"auth_users":   func(s *lifeboatv1.SourceInfo) { s.Counts["auth_users"]++ },
		"auth_roles":   func(s *lifeboatv1.SourceInfo) { s.Counts["auth_roles"]++ },
		"auth_enabled": func(s *lifeboatv1.SourceInfo) { s.Counts["auth_enabled"] = 1 },
	} {
		t.Run(what, func(t *testing.T) {
			in := s.change(t, func(m *lifeboatv1.Manifest) { change(m.Source) }).input(t)
			in.Target.Drill.Checks = []config.Check{{Key: "none"}} // which is asked for at a revision that is there
			rep := requireFailed(t, in, "compare", "the restored data differs: "+what+" is ", `key "none" is missing`)
			assert.Equal(t, lifeboatv1.DrillReport_LEVEL_RESTORED, rep.GetLevel(), "it was restored, and is wrong")
			assert.Contains(t, rep.GetSummary(), "failed in the phase compare: the restored data differs")
		})
	}
}

func testNotComparable(t *testing.T, s *shelf) {
	t.Helper()
	rep := requirePassed(t, s.change(t, func(m *lifeboatv1.Manifest) {
		m.Source.HashKv.CompactRevision++
		m.Source.HashKv.Hash++
		m.Source.Counts = nil // of a version that did not count
		m.Source.Missing = []string{"keys: permission denied"}
	}).input(t))
	why := make(map[string]string)
	for _, x := range rep.GetComparisons() {
		why[x.GetWhat()] = x.GetNotComparable()
	}
	assert.Contains(t, why["hash_kv"], "compacted")
	assert.Contains(t, why["keys"], "permission denied")
	assert.Contains(t, why["leases"], "the manifest does not say")
	assert.Contains(t, rep.GetSummary(), "Could not be compared: revisions (the manifest does not say); keys (")

	// Where nothing at all can be compared, nothing was proven.
	silent := s.change(t, func(m *lifeboatv1.Manifest) { m.Source = nil }).input(t)
	silent.Target.Drill.Checks = []config.Check{{Count: "keys", Min: 1}}
	rep = requireFailed(t, silent, "compare", "nothing of the restored data could be compared")
	assert.Contains(t, rep.GetSummary(), "take a fresh snapshot")
}

// sealed puts the right checksum behind wrong data.
func sealed(data []byte) []byte {
	sum := sha256.Sum256(data)
	return slices.Concat(data, sum[:])
}

// testBroken has data that was stored as it was sent, and was wrong then.
func testBroken(t *testing.T, s *shelf) {
	t.Helper()
	seed := uint64(time.Now().UnixNano())
	t.Logf("seed %d", seed)
	r := rand.New(rand.NewPCG(seed, 0))
	data := s.raw["db"]
	flipped := bytes.Clone(data)
	flipped[r.IntN(len(flipped))] ^= 1 << r.IntN(8)
	body := data[:len(data)-sha256.Size]
	emptied := bytes.Clone(body)
	clear(emptied[2*4096:])
	noMeta := bytes.Clone(body)
	clear(noMeta[:2*4096])
	for name, bad := range map[string][]byte{
		"flipped": flipped, "truncated": data[:len(data)/2], "cut and sealed": sealed(body[:len(body)/4096/2*4096]),
		"no checksum": body, "nothing": nil, "emptied and sealed": sealed(emptied), "without meta, sealed": sealed(noMeta),
		"not a database at all": sealed(bytes.Repeat([]byte("garbage "), 64)),
	} {
		t.Run(name, func(t *testing.T) {
			other := s.change(t, nil)
			other.replace(t, bad)
			requireFailed(t, other.input(t), "restore")
		})
	}
}

// TestSealedDamage changes a few bytes anywhere behind the meta pages and puts the right checksum behind them, as
// an etcd whose own disk went bad would. What it must show is that every one ends in a report: bbolt and etcd panic and
// exit on much of this.
func TestSealedDamage(t *testing.T) {
	seed := uint64(time.Now().UnixNano())
	t.Logf("seed %d", seed)
	r := rand.New(rand.NewPCG(seed, 0))
	c := startEtcd(t)
	put(t, c, 200)
	put(t, c, 50)
	s := takeEtcd(t, c, "")
	body := s.raw["db"][:len(s.raw["db"])-sha256.Size]
	failed := 0
	for range 20 {
		bad := bytes.Clone(body)
		for range 1 + r.IntN(20) {
			bad[8192+r.IntN(len(bad)-8192)] = byte(r.IntN(256))
		}
		s.replace(t, sealed(bad))
		in := s.input(t)
		rep, err := drill.Run(t.Context(), in)
		require.NoError(t, err)
		// It may pass: not every byte of a database is in use.
		if !rep.GetPassed() {
			assert.NotEmpty(t, rep.GetFailure())
			failed++
		}
		requireEmpty(t, in.Dir)
	}
	assert.Positive(t, failed)
}

// testLeftovers has one folder of a drill that is no more, one of a drill that runs, and one of somebody else.
func testLeftovers(t *testing.T, s *shelf) {
	t.Helper()
	in := s.input(t)
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
	rep, err := drill.Run(t.Context(), in)
	require.NoError(t, err)
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
	_, err := c.UserAdd(ctx, "root", "pass")
	require.NoError(t, err)
	_, err = c.RoleAdd(ctx, "root")
	require.NoError(t, err)
	_, err = c.UserGrantRole(ctx, "root", "root")
	require.NoError(t, err)
	_, err = c.AuthEnable(ctx)
	require.NoError(t, err)
	s := takeEtcd(t, c, "pass")
	s.target.Drill.Checks = []config.Check{{Key: "key-3"}, {Prefix: "key-", Min: 10}, {Count: "keys", Min: 10}}
	rep := requirePassed(t, s.input(t))
	got := found(rep)
	assert.Equal(t, "1=1", got["auth_enabled"])
	assert.Equal(t, "1=1", got["auth_users"])
	assert.Equal(t, "1=1", got["auth_roles"])
	assert.Equal(t, "10=10", got["keys"])
	assert.Contains(t, rep.GetSummary(), "Checks of the target that hold: 3.")
}

// TestEtcdEmpty drills the snapshot of a cluster in which nothing was ever written.
func TestEtcdEmpty(t *testing.T) { requirePassed(t, takeEtcd(t, startEtcd(t), "").input(t)) }

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
	s := takeEtcd(t, c, "")
	s.target.Drill.Checks = []config.Check{{Prefix: "leased-", Min: 20}, {Count: "leases", Min: 1}}
	rep := requirePassed(t, s.input(t))
	assert.Equal(t, "1=1", found(rep)["leases"])
}
