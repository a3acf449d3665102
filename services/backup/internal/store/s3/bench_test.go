package s3_test

import (
	"io"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/lifeboat-fleet/lifeboat/fleet/fleettest/s3test"
	"github.com/lifeboat-fleet/lifeboat/services/backup/internal/store"
	"github.com/lifeboat-fleet/lifeboat/services/backup/internal/store/s3"
)

// zeros is a source that costs nothing.
type zeros struct{}

func (zeros) Read(p []byte) (int, error) {
	clear(p)
	return len(p), nil
}

// BenchmarkPut and BenchmarkGet move 256 MiB. The server runs in the same process, on the same cores; it computes an MD5 of
// what it stores. TMPDIR=/dev/shm leaves the disk out.
func BenchmarkPut(b *testing.B) {
	s := benchStore(b)
	b.SetBytes(256 * mib)
	for b.Loop() {
		_, err := s.Put(b.Context(), "data.db", io.LimitReader(zeros{}, 256*mib), 256*mib, store.Condition{})
		require.NoError(b, err)
	}
}

func BenchmarkGet(b *testing.B) {
	s := benchStore(b)
	_, err := s.Put(b.Context(), "data.db", io.LimitReader(zeros{}, 256*mib), 256*mib, store.Condition{})
	require.NoError(b, err)
	b.SetBytes(256 * mib)
	for b.Loop() {
		r, _, err := s.Get(b.Context(), "data.db")
		require.NoError(b, err)
		n, err := io.CopyBuffer(io.Discard, onlyReader{r}, make([]byte, 256<<10))
		require.NoError(b, err)
		require.NoError(b, r.Close())
		require.EqualValues(b, 256*mib, n)
	}
}

// onlyReader hides everything but Read, as a decorator does.
type onlyReader struct{ io.Reader }

func benchStore(b *testing.B) *s3.Store {
	b.Helper()
	server, err := s3test.Start(b.TempDir(), "")
	require.NoError(b, err)
	b.Cleanup(func() { require.NoError(b, server.Stop()) })
	s, err := s3.New(b.Context(), server.Config)
	require.NoError(b, err)
	return s
}
