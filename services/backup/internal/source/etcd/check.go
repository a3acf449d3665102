package etcd

import (
	"crypto/sha256"
	"fmt"

	"github.com/lifeboat-fleet/lifeboat/services/backup/internal/source/boltscan"
)

// check looks at a snapshot as it passes: its last 32 bytes are the sha256 of all before, and those are a database.
type check struct {
	trailer *boltscan.Trailer
	scan    *boltscan.Scanner
	found   boltscan.Result
	// length and digest, the sha256 of everything, are valid once finish has found nothing wrong.
	length int64
	digest [sha256.Size]byte
}

func newCheck() *check {
	scan := boltscan.New()
	// The scan keeps its error for the end.
	return &check{scan: scan, trailer: boltscan.NewTrailer(func(p []byte) { _, _ = scan.Write(p) })}
}

// Write takes the next bytes.
func (c *check) Write(p []byte) { _, _ = c.trailer.Write(p) }

// finish says whether what came is a whole snapshot.
func (c *check) finish() error {
	var err error
	if c.length, c.digest, err = c.trailer.Finish(); err != nil {
		return err
	}
	if c.found, err = c.scan.Result(); err != nil {
		return fmt.Errorf("reading the database: %w", err)
	}
	return nil
}
