package consul

import (
	"errors"
	"hash/maphash"
	"io"
)

// pieceSize is how much of a snapshot has one sum: 8 bytes of memory for a quarter of a MiB.
const pieceSize = 256 << 10

// errChanged means that the snapshot was read twice and was not the same.
var errChanged = errors.New("the snapshot is not what it was a moment ago; what differs was not written")

// pieces are the sums of what was read, so that a second read can be held against the first while it passes: the digest of the
// whole comes only at its end, when what came before has been used. The sums hold within this process, and nobody outside of it
// can make two texts of the same sum.
type pieces struct {
	seed maphash.Seed
	sums []uint64
}

func newPieces() pieces { return pieces{seed: maphash.MakeSeed()} }

// record passes data on and keeps its sums. They are complete once it returned io.EOF.
func (p *pieces) record(src io.Reader) io.Reader {
	r := &recorder{src: src, pieces: p}
	r.hash.SetSeed(p.seed)
	return r
}

type recorder struct {
	src    io.Reader
	pieces *pieces
	hash   maphash.Hash
	n      int // of the piece at hand
}

func (r *recorder) Read(b []byte) (int, error) {
	n, err := r.src.Read(b)
	for part := b[:n]; len(part) > 0; {
		now := part[:min(len(part), pieceSize-r.n)]
		_, _ = r.hash.Write(now) // it never fails
		if r.n += len(now); r.n == pieceSize {
			r.cut()
		}
		part = part[len(now):]
	}
	if errors.Is(err, io.EOF) && r.n > 0 {
		r.cut()
	}
	return n, err
}

func (r *recorder) cut() {
	r.pieces.sums = append(r.pieces.sums, r.hash.Sum64())
	r.hash.Reset()
	r.n = 0
}

// compare passes data on that has the sums, each piece once all of it was seen.
func (p *pieces) compare(src io.Reader) io.Reader {
	return &comparer{src: src, pieces: p, buf: make([]byte, pieceSize)}
}

type comparer struct {
	src    io.Reader
	pieces *pieces
	buf    []byte
	out    []byte // of buf, what was compared and not read yet
	at     int
	err    error
}

func (c *comparer) Read(b []byte) (int, error) {
	if len(c.out) == 0 && c.err == nil {
		c.fill()
	}
	if len(c.out) == 0 {
		return 0, c.err
	}
	n := copy(b, c.out)
	c.out = c.out[n:]
	return n, nil
}

func (c *comparer) fill() {
	var n int
	for n < len(c.buf) && c.err == nil {
		var m int
		m, c.err = c.src.Read(c.buf[n:])
		n += m
	}
	if c.err != nil && !errors.Is(c.err, io.EOF) {
		return
	}
	if n > 0 {
		if c.at == len(c.pieces.sums) || maphash.Bytes(c.pieces.seed, c.buf[:n]) != c.pieces.sums[c.at] {
			c.err = errChanged
			return
		}
		c.at++
	}
	if c.err != nil && c.at < len(c.pieces.sums) {
		c.err = errChanged
		return
	}
	c.out = c.buf[:n]
}
