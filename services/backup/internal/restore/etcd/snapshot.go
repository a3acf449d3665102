package etcd

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"sync"

	"github.com/lifeboat-fleet/lifeboat/services/backup/internal/source/boltscan"
)

// pieceSize is how much is hashed while it is written.
const pieceSize = 1 << 20

// WriteSnapshot writes a snapshot, as etcd sent it, to a new file and checks its checksum in the same pass: the last 32 bytes are
// the sha256 of all before. It returns its length in bytes. When anything is wrong, no file is left.
//
// DataDir.Verified says to ToDataDir that a file was made so.
func WriteSnapshot(ctx context.Context, r io.Reader, path string) (int64, error) {
	f, err := os.OpenFile(path, os.O_CREATE|os.O_EXCL|os.O_WRONLY, 0o600)
	if err != nil {
		return 0, fmt.Errorf("making a file for the snapshot: %w", err)
	}
	size, err := copyChecked(ctx, f, r)
	if err = errors.Join(err, f.Close()); err != nil {
		return 0, errors.Join(err, os.Remove(path))
	}
	return size, nil
}

// copyChecked copies a snapshot and checks its checksum.
func copyChecked(ctx context.Context, w io.Writer, r io.Reader) (int64, error) {
	trailer := boltscan.NewTrailer(nil)
	err := eachPiece(ctx, r, func(piece []byte) error {
		var hashing sync.WaitGroup
		hashing.Go(func() { _, _ = trailer.Write(piece) })
		_, err := w.Write(piece)
		hashing.Wait()
		if err != nil {
			return fmt.Errorf("writing the snapshot: %w", err)
		}
		return nil
	})
	if err != nil {
		return 0, err
	}
	size, _, err := trailer.Finish()
	if err != nil {
		return 0, fmt.Errorf("the snapshot is damaged: %w", err)
	}
	return size, nil
}

// eachPiece reads to the end. A piece is valid until the next one.
func eachPiece(ctx context.Context, r io.Reader, visit func([]byte) error) error {
	buf := make([]byte, pieceSize)
	have := 0
	for {
		if err := ctx.Err(); err != nil {
			return context.Cause(ctx)
		}
		n, err := r.Read(buf[have:])
		have += n
		if have == len(buf) || err != nil {
			if verr := visit(buf[:have]); verr != nil {
				return verr
			}
			have = 0
		}
		switch {
		case errors.Is(err, io.EOF):
			return nil
		case err != nil:
			return fmt.Errorf("reading the snapshot: %w", err)
		}
	}
}
