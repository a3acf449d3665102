package boltscan

import (
	"bytes"
	"crypto/sha256"
	"errors"
	"fmt"
	"hash"
)

// sector is what the length of a snapshot without its checksum is a multiple of, for etcd's tools.
const sector = 512

// Trailer checks a snapshot as it passes: its last 32 bytes are the sha256 of all before (maintenance.go in etcd's
// server/etcdserver/api/v3rpc). Everything is hashed once.
type Trailer struct {
	sum    hash.Hash
	body   func([]byte)
	tail   []byte // the last bytes so far, at most 32: the checksum, if nothing follows
	length int64
}

// NewTrailer makes a Trailer. body is given all but the checksum, piece by piece; nil when nobody wants it.
func NewTrailer(body func([]byte)) *Trailer {
	return &Trailer{sum: sha256.New(), body: body, tail: make([]byte, 0, 2*sha256.Size)}
}

// Write takes the next bytes. It never fails.
func (t *Trailer) Write(p []byte) (int, error) {
	n := len(p)
	t.length += int64(n)
	if n >= sha256.Size {
		t.pass(t.tail)
		t.pass(p[:n-sha256.Size])
		t.tail = append(t.tail[:0], p[n-sha256.Size:]...)
		return n, nil
	}
	t.tail = append(t.tail, p...)
	if over := len(t.tail) - sha256.Size; over > 0 {
		t.pass(t.tail[:over])
		t.tail = append(t.tail[:0], t.tail[over:]...)
	}
	return n, nil
}

func (t *Trailer) pass(p []byte) {
	t.sum.Write(p)
	if t.body != nil {
		t.body(p)
	}
}

// Finish says whether what came is whole. digest is the sha256 of everything, the checksum included. Call it once.
func (t *Trailer) Finish() (length int64, digest [sha256.Size]byte, err error) {
	if err := WholeLength(t.length); err != nil {
		return t.length, digest, err
	}
	if !bytes.Equal(t.sum.Sum(nil), t.tail) {
		return t.length, digest, errors.New("its sha256 is not the one at its end")
	}
	t.sum.Write(t.tail)
	t.sum.Sum(digest[:0])
	return t.length, digest, nil
}

// WholeLength says whether a snapshot can be so many bytes long.
func WholeLength(n int64) error {
	if n%sector != sha256.Size {
		return fmt.Errorf("its length of %d bytes is not that of a database and a checksum: it was cut, or was not made by "+
			"etcd's snapshot", n)
	}
	return nil
}
