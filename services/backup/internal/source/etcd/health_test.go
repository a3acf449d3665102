package etcd_test

import (
	"context"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"go.etcd.io/etcd/api/v3/etcdserverpb"
	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"
	clientv3 "go.etcd.io/etcd/client/v3"
	"go.etcd.io/etcd/etcdutl/v3/snapshot"
	"go.etcd.io/etcd/server/v3/embed"
	"go.uber.org/zap"
)

// shm is a folder for large data.
func shm(tb testing.TB) string {
	tb.Helper()
	dir, err := os.MkdirTemp("/dev/shm", "lifeboat-etcd-") //nolint:usetesting // in memory
	require.NoError(tb, err)
	tb.Cleanup(func() { require.NoError(tb, os.RemoveAll(dir)) })
	return dir
}

func only(worries []string, about string) []string {
	var found []string
	for _, w := range worries {
		if strings.Contains(w, about) {
			found = append(found, w)
		}
	}
	return found
}

// TestHealthy has nothing to say of a member that is well.
func TestHealthy(t *testing.T) {
	srv := start(t)
	srv.Put(t, 20, 1000)
	_, info := readAll(t, srv.Address)
	h := info.GetEtcdHealth()
	assert.Empty(t, h.GetAlarms())
	assert.Positive(t, h.GetDbBytesInUse())
	assert.LessOrEqual(t, h.GetDbBytesInUse(), h.GetDbBytes())
	assert.EqualValues(t, 2<<30, h.GetQuotaBytes(), "etcd's default")
	assert.Empty(t, info.GetWorries())
	assert.Empty(t, info.GetMissing())
}

// TestSizeHint foresees the size, also of what has just been written.
func TestSizeHint(t *testing.T) {
	srv := start(t)
	for round := range 20 {
		srv.Put(t, 20, 1000*round)
		st := openAt(t, srv.Address)
		sized, ok := st.(interface{ SizeHint() int64 })
		require.True(t, ok)
		n, err := io.Copy(io.Discard, st)
		require.NoError(t, err)
		assert.LessOrEqual(t, n, sized.SizeHint())
		assert.LessOrEqual(t, sized.SizeHint(), 2*n+2<<20)
		require.NoError(t, st.Close())
	}
}

// TestNoQuota is about a member that was told to have none.
func TestNoQuota(t *testing.T) {
	e := startWith(t, t.TempDir(), func(cfg *embed.Config) { cfg.QuotaBackendBytes = -1 })
	_, info := readAll(t, clientURL(e))
	assert.Zero(t, info.GetEtcdHealth().GetQuotaBytes())
	assert.Empty(t, info.GetWorries())
	assert.Empty(t, info.GetMissing())
}

// TestNoSpace fills a member until it refuses writes: it is read all the same, and what is wrong is told.
func TestNoSpace(t *testing.T) {
	const quota = 16 << 20
	e := startWith(t, t.TempDir(), func(cfg *embed.Config) { cfg.QuotaBackendBytes = quota })
	c := dial(t, clientURL(e))
	var err error
	for i := 0; err == nil; i++ {
		_, err = c.Put(t.Context(), fmt.Sprintf("/fill/%d", i), strings.Repeat("x", 1<<20))
		require.Less(t, i, 100)
	}
	require.ErrorIs(t, err, rpctypes.ErrNoSpace)
	// The write that was refused may have been made all the same: the quota is looked at again when it is applied.
	have, err := c.Get(t.Context(), "/fill/", clientv3.WithPrefix(), clientv3.WithCountOnly())
	require.NoError(t, err)
	data, info := readAll(t, clientURL(e))
	assert.Equal(t, int(have.Count), len(decode(t, data))) //nolint:testifylint // Len would print a MiB for each
	assert.Equal(t, have.Count, info.GetCounts()["keys"])
	assert.NotNil(t, info.GetHashKv())
	assert.Empty(t, info.GetMissing())

	id := fmt.Sprintf("%x", uint64(e.Server.MemberID()))
	h := info.GetEtcdHealth()
	assert.Equal(t, []string{"NOSPACE member " + id}, h.GetAlarms())
	assert.EqualValues(t, quota, h.GetQuotaBytes())
	assert.Greater(t, h.GetDbBytes(), int64(quota*8/10))
	require.Len(t, only(info.GetWorries(), "NOSPACE"), 1)
	assert.Contains(t, only(info.GetWorries(), "NOSPACE")[0], id)
	assert.Contains(t, only(info.GetWorries(), "NOSPACE")[0], "etcdctl alarm disarm")
	require.Len(t, only(info.GetWorries(), "quota or more"), 1)
	assert.Contains(t, only(info.GetWorries(), "quota or more")[0], "of 16 MiB")
	assert.Len(t, info.GetWorries(), 2)
}

// TestQuotaNearlyUsed worries before there is an alarm.
func TestQuotaNearlyUsed(t *testing.T) {
	const quota = 20 << 20
	e := startWith(t, t.TempDir(), func(cfg *embed.Config) { cfg.QuotaBackendBytes = quota })
	c := dial(t, clientURL(e))
	worried, calm := false, false
	for i := 0; !worried; i++ {
		require.Less(t, i, 30)
		_, err := c.Put(t.Context(), fmt.Sprintf("/fill/%d", i), strings.Repeat("x", 1<<20))
		require.NoError(t, err)
		_, info := readAll(t, clientURL(e))
		h := info.GetEtcdHealth()
		worried = len(info.GetWorries()) > 0
		assert.Equal(t, h.GetDbBytes() >= quota*8/10, worried, "%d bytes: %q", h.GetDbBytes(), info.GetWorries())
		calm = calm || !worried
		assert.Empty(t, h.GetAlarms())
	}
	assert.True(t, calm)
}

// TestFragmented deletes most of a database, which leaves the file as large as it was.
func TestFragmented(t *testing.T) {
	e := startWith(t, shm(t))
	c := dial(t, clientURL(e))
	for i := range 150 {
		_, err := c.Put(t.Context(), fmt.Sprintf("/fill/%d", i), strings.Repeat("x", 1<<20))
		require.NoError(t, err)
	}
	_, info := readAll(t, clientURL(e))
	assert.Empty(t, info.GetWorries(), "large is not fragmented")
	gone, err := c.Delete(t.Context(), "/fill/", clientv3.WithPrefix())
	require.NoError(t, err)
	_, err = c.Compact(t.Context(), gone.Header.Revision, clientv3.WithCompactPhysical())
	require.NoError(t, err)
	require.Eventually(t, func() bool {
		_, err = c.Put(t.Context(), "touch", "")
		require.NoError(t, err)
		status, serr := c.Status(t.Context(), clientURL(e))
		require.NoError(t, serr)
		return status.DbSizeInUse < 10<<20
	}, time.Minute, 50*time.Millisecond)

	_, info = readAll(t, clientURL(e))
	h := info.GetEtcdHealth()
	assert.Greater(t, h.GetDbBytes(), int64(150<<20))
	assert.Less(t, h.GetDbBytesInUse(), int64(10<<20))
	require.Len(t, info.GetWorries(), 1)
	assert.Contains(t, info.GetWorries()[0], "etcdctl defrag")
	assert.Contains(t, info.GetWorries()[0], clientURL(e))

	_, err = c.Defragment(t.Context(), clientURL(e))
	require.NoError(t, err)
	_, info = readAll(t, clientURL(e))
	assert.Empty(t, info.GetWorries(), "it was defragmented")
}

// TestHashAfterCompaction compacts up to the newest revision, as every quiet cluster is after a while. etcd then answers with
// a hash that it remembers from before, with which no restored copy can be compared. What is recorded must be a copy's.
func TestHashAfterCompaction(t *testing.T) {
	srv := start(t)
	c := dial(t, srv.Address)
	for round := range 3 {
		srv.Put(t, 50+round, 100)
		put, err := c.Put(t.Context(), "last", "")
		require.NoError(t, err)
		_, err = c.Compact(t.Context(), put.Header.Revision, clientv3.WithCompactPhysical())
		require.NoError(t, err)
		data, info := readAll(t, srv.Address)
		require.Equal(t, put.Header.Revision, info.GetRevision())
		require.NotNil(t, info.GetHashKv(), "%q", info.GetMissing())
		assert.Equal(t, put.Header.Revision, info.GetHashKv().GetCompactRevision())

		copied := restored(t, data)
		resp, err := dial(t, clientURL(copied)).HashKV(t.Context(), clientURL(copied), info.GetRevision())
		require.NoError(t, err)
		assert.Equal(t, info.GetHashKv().GetCompactRevision(), resp.CompactRevision)
		assert.Equal(t, resp.Hash, info.GetHashKv().GetHash())
	}
}

// restored runs a member on a snapshot, as etcd's own tools do.
func restored(t *testing.T, data []byte) *embed.Etcd {
	t.Helper()
	dir := t.TempDir()
	file := filepath.Join(dir, "snapshot.db")
	require.NoError(t, os.WriteFile(file, data, 0o600))
	const peer = "http://127.0.0.1:0"
	require.NoError(t, snapshot.NewV3(zap.NewNop()).Restore(snapshot.RestoreConfig{
		SnapshotPath: file, Name: "default", OutputDataDir: filepath.Join(dir, "data"), PeerURLs: []string{peer},
		InitialCluster: "default=" + peer, InitialClusterToken: "etcd-cluster",
	}))
	return startWith(t, filepath.Join(dir, "data"))
}

// TestCompactedBetween compacts after the data and before the questions, up to a revision that the data still holds.
func TestCompactedBetween(t *testing.T) {
	srv := start(t)
	c := dial(t, srv.Address)
	srv.Put(t, 10, 10)
	st := openAt(t, srv.Address)
	require.NoError(t, drain(st))
	_, err := c.Compact(t.Context(), 5)
	require.NoError(t, err)
	info, err := st.Info(t.Context())
	require.NoError(t, err)
	assert.Nil(t, info.GetHashKv(), "no copy could be compared with it")
	assert.EqualValues(t, 10, info.GetCounts()["keys"])
	require.Len(t, info.GetMissing(), 1)
	assert.Contains(t, info.GetMissing()[0], "hash_kv: the source was compacted at revision 5 meanwhile")
	require.Len(t, info.GetWorries(), 1)
	assert.Contains(t, info.GetWorries()[0], "hash")
}

// raise marks a member through the server itself: no client can.
func raise(t *testing.T, at *embed.Etcd, id uint64, kind etcdserverpb.AlarmType) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
	defer cancel()
	_, err := at.Server.Alarm(ctx, &etcdserverpb.AlarmRequest{
		Action: etcdserverpb.AlarmRequest_ACTIVATE, MemberID: id, Alarm: kind,
	})
	require.NoError(t, err)
}

// disarm ends all alarms.
func disarm(t *testing.T, c *clientv3.Client) {
	t.Helper()
	_, err := c.AlarmDisarm(t.Context(), &clientv3.AlarmMember{})
	require.NoError(t, err)
}
