package pipeline

import (
	"context"
	"fmt"
	"hash/maphash"
	"io"
	"math/rand/v2"
	"slices"
)

// chunkBytes is the unit of comparing by samples.
const chunkBytes = 4 << 20

// Of a sampled object at least so many chunks are read, and at least one of so many.
const (
	minSamples    = 32
	samplePortion = 50
)

// Chunks are digests of each piece of an object as it was sent, 8 bytes for 4 MiB, by which samples of the stored object can
// be compared. Their hash is keyed anew in each process: it finds any change, and is of no use outside.
type Chunks struct {
	seed  maphash.Seed
	sums  []uint64
	bytes int64
}

type chunker struct {
	hash maphash.Hash
	left int
	c    Chunks
}

func newChunker() *chunker {
	k := &chunker{left: chunkBytes}
	k.c.seed = k.hash.Seed()
	return k
}

func (k *chunker) write(p []byte) {
	k.c.bytes += int64(len(p))
	for len(p) > 0 {
		n := min(len(p), k.left)
		_, _ = k.hash.Write(p[:n]) // a hash never fails
		p = p[n:]
		if k.left -= n; k.left == 0 {
			k.cut()
		}
	}
}

func (k *chunker) cut() {
	k.c.sums = append(k.c.sums, k.hash.Sum64())
	k.hash.Reset()
	k.left = chunkBytes
}

func (k *chunker) end() *Chunks {
	if k.left < chunkBytes {
		k.cut()
	}
	return &k.c
}

// Sample is what was compared.
type Sample struct {
	// Chunks there are, and how many of them were Read, with so many Bytes.
	Chunks, Read, Bytes int64
}

// Check reads the first chunk, the last one and random ones through open, which gives length bytes from an offset, and
// compares them. It returns ErrDamaged when one differs.
func (c *Chunks) Check(
	ctx context.Context, open func(ctx context.Context, offset, length int64) (io.ReadCloser, error),
) (Sample, error) {
	n := len(c.sums)
	s := Sample{Chunks: int64(n)}
	want := min(n, max(minSamples, n/samplePortion))
	chosen := append([]int{0, max(n-1, 0)}, rand.Perm(n)...) //nolint:gosec // nobody gains by guessing which ones are read
	chosen = chosen[:min(len(chosen), want+2)]
	slices.Sort(chosen)
	for _, i := range slices.Compact(chosen) {
		if i >= n {
			continue // an empty object
		}
		length := min(chunkBytes, c.bytes-int64(i)*chunkBytes)
		if err := c.compare(ctx, i, length, open); err != nil {
			return s, err
		}
		s.Read++
		s.Bytes += length
	}
	return s, nil
}

func (c *Chunks) compare(
	ctx context.Context, i int, length int64, open func(ctx context.Context, offset, length int64) (io.ReadCloser, error),
) error {
	r, err := open(ctx, int64(i)*chunkBytes, length)
	if err != nil {
		return err
	}
	defer r.Close()
	var h maphash.Hash
	h.SetSeed(c.seed)
	got, err := io.Copy(&h, r)
	switch {
	case err != nil:
		return fmt.Errorf("reading back chunk %d: %w", i, err)
	case got != length:
		return fmt.Errorf("%w: chunk %d has %d bytes instead of %d", ErrDamaged, i, got, length)
	case h.Sum64() != c.sums[i]:
		return fmt.Errorf("%w: chunk %d at byte %d is not what was sent", ErrDamaged, i, int64(i)*chunkBytes)
	}
	return nil
}
