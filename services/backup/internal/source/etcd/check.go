package etcd

import (
	"bytes"
	"crypto/sha256"
	"errors"
	"fmt"
	"hash"

	"github.com/lifeboat-fleet/lifeboat/services/backup/internal/source/boltscan"
)

// sector is what the length of a snapshot without its checksum is a multiple of, for etcd's tools.
const sector = 512

// check looks at a snapshot as it passes: its last 32 bytes are the sha256 of all before, and those are a database.
type check struct {
	sum    hash.Hash
	scan   *boltscan.Scanner
	tail   []byte // the last bytes so far, at most 32: the checksum, if nothing follows
	length int64
	found  boltscan.Result
	// digest is the sha256 of everything, the checksum included; valid once finish has found nothing wrong.
	digest [sha256.Size]byte
}

func newCheck() *check {
	return &check{sum: sha256.New(), scan: boltscan.New(), tail: make([]byte, 0, 2*sha256.Size)}
}

// Write takes the next bytes.
func (c *check) Write(p []byte) {
	c.length += int64(len(p))
	if len(p) >= sha256.Size {
		c.pass(c.tail)
		c.pass(p[:len(p)-sha256.Size])
		c.tail = append(c.tail[:0], p[len(p)-sha256.Size:]...)
		return
	}
	c.tail = append(c.tail, p...)
	if over := len(c.tail) - sha256.Size; over > 0 {
		c.pass(c.tail[:over])
		c.tail = append(c.tail[:0], c.tail[over:]...)
	}
}

func (c *check) pass(p []byte) {
	c.sum.Write(p)
	// The scan keeps its error for the end.
	_, _ = c.scan.Write(p)
}

// finish says whether what came is a whole snapshot.
func (c *check) finish() error {
	if c.length%sector != sha256.Size {
		return fmt.Errorf("its length of %d bytes is not that of a database and a checksum: it was cut", c.length)
	}
	if !bytes.Equal(c.sum.Sum(nil), c.tail) {
		return errors.New("its sha256 is not the one at its end")
	}
	found, err := c.scan.Result()
	if err != nil {
		return fmt.Errorf("reading the database: %w", err)
	}
	c.found = found
	c.sum.Write(c.tail)
	c.sum.Sum(c.digest[:0])
	return nil
}
