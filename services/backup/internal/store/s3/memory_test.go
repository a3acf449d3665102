package s3_test

import (
	"io"
	"runtime"
	"runtime/metrics"
	"sync"
	"sync/atomic"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/lifeboat-fleet/lifeboat/fleet/fleettest/s3test"
	"github.com/lifeboat-fleet/lifeboat/services/backup/internal/store"
)

// heap is how many bytes of objects there are, dead ones that were not collected yet included.
func heap() int64 {
	sample := []metrics.Sample{{Name: "/memory/classes/heap/objects:bytes"}}
	metrics.Read(sample)
	return int64(sample[0].Value.Uint64())
}

// peakReader watches the heap while it is read.
type peakReader struct {
	io.Reader
	peak *atomic.Int64
}

func (r peakReader) Read(p []byte) (int, error) {
	n, err := r.Reader.Read(p)
	for now := heap(); ; {
		old := r.peak.Load()
		if now <= old || r.peak.CompareAndSwap(old, now) {
			return n, err
		}
	}
}

// All uploads of a process together hold four parts of 8 MiB, however large and however many they are.
func TestMemoryDoesNotGrowWithUploads(t *testing.T) {
	server := s3test.New(t)
	s := open(t, server.Config)
	measure := func(uploads, size int) int64 {
		runtime.GC()
		var (
			wg   sync.WaitGroup
			peak atomic.Int64
		)
		base := heap()
		for i := range uploads {
			wg.Go(func() {
				_, err := s.Put(t.Context(), "k"+string(rune('0'+i)), peakReader{io.LimitReader(zeros{}, int64(size)), &peak}, 0, store.Condition{})
				assert.NoError(t, err)
			})
		}
		wg.Wait()
		t.Logf("%d uploads of %d MiB: %d MiB", uploads, size/mib, (peak.Load()-base)/mib)
		return peak.Load() - base
	}
	const parts, others = 32 * mib, 24 * mib // the server is in this process too
	assert.Less(t, measure(1, 200*mib), int64(parts+others))
	assert.Less(t, measure(5, 60*mib), int64(parts+others))
	require.NoError(t, t.Context().Err())
}
