package etcd

import (
	"context"
	"crypto/sha256"
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
	size, _, err := WriteDigested(ctx, r, path)
	return size, err
}

// WriteDigested is WriteSnapshot that also gives the sha256 of all that r gave, of which nearly all was hashed anyway.
func WriteDigested(ctx context.Context, r io.Reader, path string) (size int64, digest [sha256.Size]byte, err error) {
	f, err := os.OpenFile(path, os.O_CREATE|os.O_EXCL|os.O_WRONLY, 0o600)
	if err != nil {
		return 0, digest, fmt.Errorf("making a file for the snapshot: %w", err)
	}
	size, digest, err = copyDigested(ctx, f, r)
	if err = errors.Join(err, f.Close()); err != nil {
		return 0, digest, errors.Join(err, os.Remove(path))
	}
	return size, digest, nil
}

// copyChecked copies a snapshot and checks its checksum.
func copyChecked(ctx context.Context, w io.Writer, r io.Reader) (int64, error) {
	size, _, err := copyDigested(ctx, w, r)
	return size, err
}

// copyDigested is copyChecked that also gives the sha256 of everything.
func copyDigested(ctx context.Context, w io.Writer, r io.Reader) (size int64, digest [sha256.Size]byte, err error) {
	trailer := boltscan.NewTrailer(nil)
	err = eachPiece(ctx, r, func(piece []byte) error {
		var hashing sync.WaitGroup
		hashing.Go(func() { _, _ = trailer.Write(piece) })
		_, werr := w.Write(piece)
		hashing.Wait()
		if werr != nil {
			return fmt.Errorf("writing the snapshot: %w", werr)
		}
		return nil
	})
	if err != nil {
		return 0, digest, err
	}
	if size, digest, err = trailer.Finish(); err != nil {
		return 0, digest, fmt.Errorf("the snapshot is damaged: %w", err)
	}
	return size, digest, nil
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
