package consul_test

import (
	"bufio"
	"encoding/base64"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"runtime"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/lifeboat-fleet/lifeboat/fleet/config"
	"github.com/lifeboat-fleet/lifeboat/fleet/fleettest/bintest"
	"github.com/lifeboat-fleet/lifeboat/services/backup/internal/source/consul"
	"github.com/lifeboat-fleet/lifeboat/services/backup/internal/source/sourcetest"
)

// drain reads to the end and returns how much came and how large the heap became meanwhile.
func drain(t *testing.T, st io.Reader) (size int64, heap uint64) {
	t.Helper()
	var now runtime.MemStats
	var next int64
	for buf := make([]byte, 32<<10); ; {
		n, err := st.Read(buf)
		size += int64(n)
		if size >= next {
			runtime.GC()
			runtime.ReadMemStats(&now)
			heap = max(heap, now.HeapAlloc)
			next += 4 << 20
		}
		if errors.Is(err, io.EOF) {
			return size, heap
		}
		require.NoError(t, err)
	}
}

// TestMemory reads 64 MiB of values, some as large as Consul takes them, with memory for one of them.
func TestMemory(t *testing.T) {
	c := run(t, bintest.ConsulOptions{})
	value := noise(512 << 10)
	for i := range 120 {
		do(t, http.MethodPut, fmt.Sprintf("%s/v1/kv/large/%d", c.Address, i), value)
	}
	small := make([]string, 4000)
	for i := range small {
		small[i] = fmt.Sprintf("small/%0*d", 900+i%100, i)
	}
	setKeys(t, c.Address, small...)
	cfg := config.Consul{Address: c.Address}
	for name, src := range map[string]sourcetest.Opener{"keys": consul.New(cfg, consul.Options{}), "raft": consul.NewRaft(cfg, consul.Options{})} {
		var before runtime.MemStats
		runtime.GC()
		runtime.ReadMemStats(&before)
		st, err := src.Open(t.Context())
		require.NoError(t, err)
		began := time.Now()
		size, heap := drain(t, st)
		info, err := st.Info(t.Context())
		require.NoError(t, err)
		require.NoError(t, st.Close())
		t.Logf("%s: %d MiB in %s, heap grew by %d KiB", name, size>>20, time.Since(began), (int64(heap)-int64(before.HeapAlloc))>>10)
		assert.Greater(t, info.GetCounts()["bytes"], int64(60<<20), name)
		assert.Less(t, heap, before.HeapAlloc+4<<20, name)
	}
}

// BenchmarkStream measures the way from the answer to the data: MB/s of the answer.
func BenchmarkStream(b *testing.B) {
	for name, size := range map[string]int{"100B": 100, "1KiB": 1 << 10, "100KiB": 100 << 10} {
		b.Run(name, func(b *testing.B) {
			const total = 64 << 20
			text := base64.StdEncoding.EncodeToString(noise(size))
			srv := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
				if r.URL.Path != "/v1/kv/" {
					http.Error(w, "ACL support disabled", http.StatusUnauthorized)
					return
				}
				w.Header().Set("X-Consul-Index", "7")
				out := bufio.NewWriterSize(w, 64<<10)
				sep := '['
				for i := range total / size {
					_, _ = fmt.Fprintf(out, `%c{"LockIndex":0,"Key":"bench/key-%d","Flags":0,"Value":"%s","CreateIndex":12,"ModifyIndex":12}`, sep, i, text)
					sep = ','
				}
				_, _ = out.WriteString("]")
				_ = out.Flush()
			}))
			defer srv.Close()
			var n int64
			for b.Loop() {
				st, err := consul.New(config.Consul{Address: srv.URL}, consul.Options{}).Open(b.Context())
				require.NoError(b, err)
				n, err = io.Copy(io.Discard, st)
				require.NoError(b, err)
				require.NoError(b, st.Close())
			}
			b.SetBytes(n)
		})
	}
}
