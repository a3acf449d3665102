package etcd

import (
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	clientv3 "go.etcd.io/etcd/client/v3"

	"github.com/lifeboat-fleet/lifeboat/fleet/fleettest/bintest"
	"github.com/lifeboat-fleet/lifeboat/services/backup/internal/restore"
	"github.com/lifeboat-fleet/lifeboat/services/backup/internal/throwaway"
)

const (
	// benchMiB is the size of the snapshot that a data directory is made of.
	benchMiB = 1024
	// benchKeys of 1 KiB are restored into a cluster.
	benchKeys = 100_000
)

// shm is a folder in memory, so that the disk is not what is measured.
func shm(b *testing.B) string {
	b.Helper()
	dir, err := os.MkdirTemp("/dev/shm", "lifeboat-bench-") //nolint:usetesting // not on the disk
	require.NoError(b, err)
	b.Cleanup(func() { require.NoError(b, os.RemoveAll(dir)) })
	return dir
}

func benchMember(b *testing.B) *member {
	b.Helper()
	e, err := bintest.StartEtcd(b.Context(), shm(b), "--quota-backend-bytes=8000000000", "--unsafe-no-fsync")
	require.NoError(b, err)
	b.Cleanup(func() { require.NoError(b, e.Kill()) })
	return &member{Etcd: e, client: dial(b, e.Endpoint, "", "")}
}

// BenchmarkToDataDir makes the data directory of one large snapshot: with etcdutl, with a copy of the file as an operator would, and
// of the file itself as a drill does. Before the last one, the time that it takes to write the file is told apart.
//
//	go test -run '^$' -bench ToDataDir -benchtime 1x -count 3
func BenchmarkToDataDir(b *testing.B) {
	etcdutl, err := bintest.Find("etcdutl")
	require.NoError(b, err)
	m := benchMember(b)
	r := rand.New(rand.NewPCG(1, 2))
	for i := 0; ; i++ {
		m.fill(b, r, fmt.Sprintf("/registry/pods/%04d-", i), 5000, 4000)
		st, serr := m.client.Status(b.Context(), m.Endpoint)
		require.NoError(b, serr)
		if st.DbSize >= benchMiB<<20 {
			break
		}
	}
	dir := shm(b)
	snapshot, fetched := filepath.Join(dir, "snapshot.db"), filepath.Join(dir, "fetched.db")
	write := func(path string, r io.Reader) {
		_, werr := WriteSnapshot(b.Context(), r, path)
		require.NoError(b, werr)
	}
	body, err := m.client.Snapshot(b.Context())
	require.NoError(b, err)
	write(snapshot, body)
	require.NoError(b, m.Kill())
	again := func() {
		f, err := os.Open(snapshot)
		require.NoError(b, err)
		write(fetched, f)
		require.NoError(b, f.Close())
	}
	data := filepath.Join(dir, "data")
	for _, c := range []struct {
		name    string
		prepare func()
		once    func() error
	}{
		{"etcdutl", func() {}, func() error {
			return exec.CommandContext(b.Context(), etcdutl, "snapshot", "restore", snapshot, "--data-dir="+data).Run()
		}},
		{"copied", func() {}, func() error { return ToDataDir(b.Context(), single(snapshot, data)) }},
		{"written", func() {}, func() error { again(); return os.Remove(fetched) }},
		{"consumed", again, func() error {
			d := single(fetched, data)
			d.Consume, d.Verified, d.Volatile = true, true, true
			return ToDataDir(b.Context(), d)
		}},
	} {
		b.Run(c.name, func(b *testing.B) {
			for b.Loop() {
				b.StopTimer()
				require.NoError(b, os.RemoveAll(data))
				c.prepare()
				b.StartTimer()
				require.NoError(b, c.once())
			}
		})
		require.NoError(b, os.RemoveAll(data))
	}
}

// BenchmarkToCluster restores into an empty cluster: as fast as the same transactions go when nothing is read or compared, and as
// ToCluster does it.
//
//	go test -run '^$' -bench ToCluster -benchtime 1x -count 3
func BenchmarkToCluster(b *testing.B) {
	src := benchMember(b)
	r := rand.New(rand.NewPCG(1, 2))
	src.fill(b, r, "/k/", benchKeys, 2048)
	data, want := src.snapshot(b), src.all(b)
	require.NoError(b, src.Kill())
	for _, c := range []struct {
		name string
		once func(dest *member) error
	}{
		{"raw", func(dest *member) error { return raw(b, dest, want) }},
		{"restore", func(dest *member) error {
			scratch, err := throwaway.NewScratch(shm(b))
			require.NoError(b, err)
			s, err := ToCluster(b.Context(), dest.config(), opens(data), scratch, int64(len(data)), Selection{}, restore.Options{Apply: true})
			require.EqualValues(b, benchKeys, s.Created)
			return errors.Join(err, scratch.Remove())
		}},
	} {
		b.Run(c.name, func(b *testing.B) {
			var took time.Duration
			for b.Loop() {
				b.StopTimer()
				dest := benchMember(b)
				b.StartTimer()
				start := time.Now()
				require.NoError(b, c.once(dest))
				took += time.Since(start)
				b.StopTimer()
				require.NoError(b, dest.Kill())
				b.StartTimer()
			}
			b.ReportMetric(float64(benchKeys*b.N)/took.Seconds(), "keys/s")
		})
	}
}

// raw creates keys in full transactions, as many at once as a restore has.
func raw(b *testing.B, dest *member, keys map[string]string) error {
	b.Helper()
	batches := make(chan []clientv3.Op)
	errs := make([]error, defaults().inFlight)
	var wg sync.WaitGroup
	for i := range errs {
		wg.Go(func() {
			for ops := range batches {
				cmps := make([]clientv3.Cmp, len(ops))
				for j, op := range ops {
					cmps[j] = clientv3.Compare(clientv3.Version(string(op.KeyBytes())), "=", 0)
				}
				_, err := dest.client.Txn(b.Context()).If(cmps...).Then(ops...).Commit()
				errs[i] = errors.Join(errs[i], err)
			}
		})
	}
	var ops []clientv3.Op
	for k, v := range keys {
		if ops = append(ops, clientv3.OpPut(k, v)); len(ops) == batchOps {
			batches <- ops
			ops = nil
		}
	}
	batches <- ops
	close(batches)
	wg.Wait()
	return errors.Join(errs...)
}
