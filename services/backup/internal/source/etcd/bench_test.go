package etcd_test

import (
	"crypto/sha256"
	"fmt"
	"io"
	"math/rand/v2"
	"slices"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	clientv3 "go.etcd.io/etcd/client/v3"
	"go.uber.org/zap"

	"github.com/lifeboat-fleet/lifeboat/fleet/config"
	"github.com/lifeboat-fleet/lifeboat/services/backup/internal/source/boltscan"
	"github.com/lifeboat-fleet/lifeboat/services/backup/internal/source/etcd"
)

const benchMiB = 256

// BenchmarkSnapshot reads the snapshot of a real member in another process: with the plain client and nothing else, which
// is the limit, and as a source, which checks everything. The last two are what the checks alone cost.
func BenchmarkSnapshot(b *testing.B) {
	address, _ := child(b, shm(b))
	c, err := clientv3.New(clientv3.Config{Endpoints: []string{address}, Logger: zap.NewNop()})
	require.NoError(b, err)
	defer c.Close()
	r := rand.New(rand.NewPCG(1, 2))
	value := make([]byte, 2048)
	for i := range benchMiB * 1024 / 2 {
		for j := range value {
			value[j] = "abcdefghijklmnop"[r.IntN(16)]
		}
		_, err = c.Put(b.Context(), fmt.Sprintf("/registry/pods/%d", i), string(value))
		require.NoError(b, err)
	}
	raw := func() io.Reader {
		body, serr := c.Snapshot(b.Context())
		require.NoError(b, serr)
		return body
	}
	b.Run("raw", func(b *testing.B) {
		measure(b, func() int64 {
			n, rerr := io.Copy(io.Discard, raw())
			require.NoError(b, rerr)
			return n
		})
	})
	b.Run("source", func(b *testing.B) {
		src := etcd.New(config.Etcd{Endpoints: []string{address}}, etcd.Options{})
		measure(b, func() int64 {
			st, oerr := src.Open(b.Context())
			require.NoError(b, oerr)
			n, rerr := io.Copy(io.Discard, st)
			require.NoError(b, rerr)
			require.NoError(b, st.Close())
			return n
		})
	})
	data, err := io.ReadAll(raw())
	require.NoError(b, err)
	for name, w := range map[string]func() io.Writer{
		"sha256":   func() io.Writer { return sha256.New() },
		"boltscan": func() io.Writer { return boltscan.New() },
	} {
		b.Run(name, func(b *testing.B) {
			measure(b, func() int64 {
				to := w()
				for piece := range slices.Chunk(data, 32<<10) {
					_, _ = to.Write(piece)
				}
				return int64(len(data))
			})
		})
	}
}

// measure reports what once costs for each byte that it returns, in this process. Time alone would be that of the server,
// and of whatever else runs on the machine.
func measure(b *testing.B, once func() int64) {
	b.Helper()
	var n int64
	before := cpuTime(b)
	for b.Loop() {
		n += once()
	}
	b.SetBytes(n / int64(b.N))
	b.ReportMetric(float64(cpuTime(b)-before)/float64(n), "cpu-ns/byte")
}

func cpuTime(b *testing.B) time.Duration {
	b.Helper()
	var used syscall.Rusage
	require.NoError(b, syscall.Getrusage(syscall.RUSAGE_SELF, &used))
	return time.Duration(used.Utime.Nano() + used.Stime.Nano())
}
