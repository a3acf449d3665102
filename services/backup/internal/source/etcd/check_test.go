package etcd

import (
	"bytes"
	"crypto/sha256"
	"math/rand/v2"
	"path/filepath"
	"slices"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	bolt "go.etcd.io/bbolt"
)

func smallDB(t *testing.T) []byte {
	t.Helper()
	db, err := bolt.Open(filepath.Join(t.TempDir(), "db"), 0o600, &bolt.Options{PageSize: 512, NoSync: true})
	require.NoError(t, err)
	require.NoError(t, db.Update(func(tx *bolt.Tx) error {
		b, err := tx.CreateBucket([]byte("key"))
		if err != nil {
			return err
		}
		return b.Put([]byte("\x00\x00\x00\x00\x00\x00\x00\x07_\x00\x00\x00\x00\x00\x00\x00\x00"), make([]byte, 9000))
	}))
	var out bytes.Buffer
	require.NoError(t, db.View(func(tx *bolt.Tx) error {
		_, err := tx.WriteTo(&out)
		return err
	}))
	require.NoError(t, db.Close())
	return out.Bytes()
}

// TestCheck finds the checksum however the bytes are cut, and any difference.
func TestCheck(t *testing.T) {
	seed := uint64(time.Now().UnixNano())
	t.Logf("seed %d", seed)
	r := rand.New(rand.NewPCG(seed, 0))
	data := smallDB(t)
	sum := sha256.Sum256(data)
	whole := slices.Concat(data, sum[:])
	try := func(b []byte) error {
		c := newCheck()
		for len(b) > 0 {
			n := min(1+r.IntN(70), len(b))
			if r.IntN(4) == 0 {
				n = min(5000, len(b))
			}
			c.Write(b[:n])
			b = b[n:]
		}
		return c.finish()
	}
	for range 20 {
		require.NoError(t, try(whole))
	}
	for name, bad := range map[string][]byte{
		"no checksum": data, "a page less": slices.Concat(data[:len(data)-512], sum[:]), "cut": whole[:len(whole)-1],
		"nothing": nil, "only a checksum": sum[:], "doubled": slices.Concat(whole, whole),
	} {
		require.Error(t, try(bad), name)
	}
	for range 50 {
		bad := bytes.Clone(whole)
		bad[r.IntN(len(bad))] ^= 1 << r.IntN(8)
		require.ErrorContains(t, try(bad), "sha256")
	}
}
