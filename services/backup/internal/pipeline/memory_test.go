package pipeline_test

import (
	"io"
	"math/rand/v2"
	"runtime"
	"testing"

	"filippo.io/age"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	lifeboatv1 "github.com/lifeboat-fleet/lifeboat/proto/lifeboat/v1"
	"github.com/lifeboat-fleet/lifeboat/services/backup/internal/pipeline"
)

// repeating gives a block of data again and again.
type repeating struct {
	block []byte
	at    int
}

func (r *repeating) Read(p []byte) (int, error) {
	n := copy(p, r.block[r.at:])
	r.at = (r.at + n) % len(r.block)
	return n, nil
}

// peak remembers the largest heap while bytes pass.
type peak struct {
	passed, next int64
	heap         uint64
}

func (p *peak) Write(b []byte) (int, error) {
	p.passed += int64(len(b))
	if p.passed >= p.next {
		p.next += 1 << 20
		var m runtime.MemStats
		runtime.ReadMemStats(&m)
		p.heap = max(p.heap, m.HeapInuse)
	}
	return len(b), nil
}

// Guarantee 9: memory does not grow with the size of the source, in either direction.
func TestGuarantee9MemoryDoesNotGrowWithTheData(t *testing.T) {
	id, err := age.GenerateX25519Identity()
	require.NoError(t, err)
	block := text(rand.New(rand.NewPCG(1, 9)), 8<<20)
	measure := func(size int64) uint64 {
		runtime.GC()
		p := &peak{}
		e := pipeline.Encode(io.LimitReader(&repeating{block: block}, size), []age.Recipient{id.Recipient()})
		pr, pw := io.Pipe()
		decoded := make(chan error, 1)
		go func() {
			// Decoded as it is encoded. The digests are not known yet, so the decoder must end with "damaged", after all of it.
			d, err := pipeline.Decode(pr, &lifeboatv1.Data{Compression: pipeline.Compression, Recipients: []string{"x"}}, []age.Identity{id})
			if err == nil {
				_, err = io.Copy(p, d)
				_ = d.Close() // returns nil
			}
			decoded <- err
		}()
		_, err := io.Copy(pw, e)
		require.NoError(t, err)
		require.NoError(t, pw.Close())
		require.NoError(t, e.Close())
		require.ErrorIs(t, <-decoded, pipeline.ErrDamaged)
		require.Equal(t, size, p.passed)
		return p.heap
	}
	small, large := measure(16<<20), measure(256<<20)
	t.Logf("heap at most %d MiB for 16 MiB of data, %d MiB for 256 MiB", small>>20, large>>20)
	assert.Less(t, large, uint64(128<<20))
	assert.Less(t, large, small*3/2+16<<20, "it grew with the data")
}
