package boltscan

import (
	"bytes"
	"encoding/binary"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	bolt "go.etcd.io/bbolt"
)

func newRand(t *testing.T) *rand.Rand {
	t.Helper()
	seed := uint64(time.Now().UnixNano())
	t.Logf("seed %d", seed)
	return rand.New(rand.NewPCG(seed, 0))
}

func revKey(main, sub int64, tombstone bool) []byte {
	b := make([]byte, 17, 18)
	binary.BigEndian.PutUint64(b, uint64(main))
	b[8] = '_'
	binary.BigEndian.PutUint64(b[9:], uint64(sub))
	if tombstone {
		b = append(b, 't')
	}
	return b
}

// model is a database under random work, beside what boltScan should find in it.
type model struct {
	db   *bolt.DB
	rand *rand.Rand
	rev  int64
	live [][]byte
}

// value has mostly a small size, sometimes that of many pages, and looks like pages itself: stale ones and others'.
func (m *model) value() []byte {
	size := m.rand.IntN(200)
	switch m.rand.IntN(40) {
	case 0:
		size = m.rand.IntN(200_000)
	case 1:
		size = m.rand.IntN(20_000)
	}
	b := make([]byte, size)
	for i := 0; i+16 < size; i += 8 {
		binary.LittleEndian.PutUint64(b[i:], uint64(m.rand.IntN(2000)))
		if m.rand.IntN(3) == 0 {
			binary.LittleEndian.PutUint16(b[i+8:], uint16(1+m.rand.IntN(2)))
			binary.LittleEndian.PutUint16(b[i+10:], uint16(m.rand.IntN(300)))
		}
	}
	return b
}

func (m *model) step(tx *bolt.Tx) error {
	keys := tx.Bucket([]byte("key"))
	for range 1 + m.rand.IntN(200) {
		m.rev++
		for sub := range 1 + m.rand.IntN(3) {
			k := revKey(m.rev, int64(sub), m.rand.IntN(10) == 0)
			if err := keys.Put(k, m.value()); err != nil {
				return err
			}
			m.live = append(m.live, k)
		}
	}
	if m.rand.IntN(3) == 0 { // a compaction, sometimes of everything
		cut := m.rand.IntN(len(m.live) + 1)
		if m.rand.IntN(4) == 0 {
			cut = len(m.live)
		}
		for _, k := range m.live[:cut] {
			if err := keys.Delete(k); err != nil {
				return err
			}
		}
		m.live = slices.Clone(m.live[cut:])
		meta := tx.Bucket([]byte("meta"))
		for _, name := range []string{scheduledCompact, finishedCompact} {
			if err := meta.Put([]byte(name), revKey(m.rev-int64(len(m.live)/3), 0, false)); err != nil {
				return err
			}
		}
	}
	if err := m.auth(tx); err != nil {
		return err
	}
	return tx.Bucket([]byte("lease")).Put([]byte{byte(m.rand.IntN(256))}, m.value())
}

// auth adds users and roles, of which some are as long as a page, and turns authentication on and off.
func (m *model) auth(tx *bolt.Tx) error {
	for _, name := range []string{"authUsers", "authRoles"} {
		for range m.rand.IntN(30) {
			k := []byte{byte(m.rand.IntN(256)), byte(m.rand.IntN(256))}
			if err := tx.Bucket([]byte(name)).Put(k, m.value()); err != nil {
				return err
			}
		}
	}
	if err := tx.Bucket([]byte("auth")).Put([]byte("authRevision"), m.value()); err != nil {
		return err
	}
	return tx.Bucket([]byte("auth")).Put([]byte("authEnabled"), []byte{byte(m.rand.IntN(2))})
}

// want walks the database with the real library.
func (m *model) want(t *testing.T, tx *bolt.Tx) Result {
	t.Helper()
	res := Result{Revision: 1}
	require.NoError(t, tx.Bucket([]byte("key")).ForEach(func(k, _ []byte) error {
		res.Revisions++
		res.Revision = max(res.Revision, int64(binary.BigEndian.Uint64(k)))
		return nil
	}))
	for _, name := range []string{scheduledCompact, finishedCompact} {
		if v := tx.Bucket([]byte("meta")).Get([]byte(name)); v != nil {
			res.CompactRevision = max(res.CompactRevision, int64(binary.BigEndian.Uint64(v)))
		}
	}
	res.Revision = max(res.Revision, res.CompactRevision)
	for name, n := range map[string]*int64{"lease": &res.Leases, "authUsers": &res.Users, "authRoles": &res.Roles} {
		require.NoError(t, tx.Bucket([]byte(name)).ForEach(func(_, _ []byte) error { *n++; return nil }))
	}
	res.AuthEnabled = bytes.Equal(tx.Bucket([]byte("auth")).Get([]byte("authEnabled")), []byte{1})
	return res
}

// scanInPieces writes data in pieces of random sizes.
func scanInPieces(r *rand.Rand, data []byte) (Result, error) {
	s := New()
	for len(data) > 0 {
		n := min(1+r.IntN(50_000), len(data))
		_, _ = s.Write(data[:n])
		data = data[n:]
	}
	return s.Result()
}

// TestScannerAgainstBbolt works on databases at random, with large values, deletions and pages used again, and
// compares what the scan finds with what the real library does.
func TestScannerAgainstBbolt(t *testing.T) {
	r := newRand(t)
	for _, pageSize := range []int{512, 4096, 16384} {
		for round := range 2 {
			db, err := bolt.Open(filepath.Join(t.TempDir(), "db"), 0o600, &bolt.Options{
				PageSize: pageSize, NoSync: true, NoFreelistSync: round%2 == 0,
				InitialMmapSize: 1 << 30, // to grow it would wait for the open transaction
			})
			require.NoError(t, err)
			m := &model{db: db, rand: r}
			require.NoError(t, db.Update(func(tx *bolt.Tx) error {
				for _, name := range []string{"alarm", "auth", "authRoles", "authUsers", "cluster", "key", "lease", "members", "meta"} {
					if _, err := tx.CreateBucket([]byte(name)); err != nil {
						return err
					}
				}
				// The larger one does not fit inline.
				return tx.Bucket([]byte("meta")).Put([]byte("confState"), make([]byte, 10+round*900))
			}))
			for range 15 {
				// The copy is taken in a transaction that stays open while the next one reuses pages, as etcd's is.
				tx, err := db.Begin(false)
				require.NoError(t, err)
				require.NoError(t, db.Update(m.step))
				var copied bytes.Buffer
				_, err = tx.WriteTo(&copied)
				require.NoError(t, err)
				got, err := scanInPieces(r, copied.Bytes())
				require.NoError(t, err)
				require.Equal(t, m.want(t, tx), got, "page size %d", pageSize)
				requireSound(t, copied.Bytes(), true)
				require.NoError(t, tx.Rollback())
			}
			require.NoError(t, db.Close())
		}
	}
}

func smallDB(tb testing.TB) []byte {
	tb.Helper()
	db, err := bolt.Open(filepath.Join(tb.TempDir(), "db"), 0o600, &bolt.Options{PageSize: 512, NoSync: true})
	require.NoError(tb, err)
	require.NoError(tb, db.Update(func(tx *bolt.Tx) error {
		for _, name := range []string{"key", "meta"} {
			if _, err := tx.CreateBucket([]byte(name)); err != nil {
				return err
			}
		}
		for i := range int64(300) {
			if err := tx.Bucket([]byte("key")).Put(revKey(i+2, 0, false), make([]byte, i)); err != nil {
				return err
			}
		}
		return nil
	}))
	var out bytes.Buffer
	require.NoError(tb, db.View(func(tx *bolt.Tx) error {
		_, err := tx.WriteTo(&out)
		return err
	}))
	require.NoError(tb, db.Close())
	return out.Bytes()
}

// TestScannerRefuses gives it what is no whole database.
func TestScannerRefuses(t *testing.T) {
	r := newRand(t)
	data := smallDB(t)
	_, err := scanInPieces(r, data)
	require.NoError(t, err)
	for _, n := range []int{0, 10, 512, 1024, len(data) / 2, len(data) - 512, len(data) - 1} {
		_, err = scanInPieces(r, data[:n])
		require.Error(t, err, "cut at %d", n)
	}
	requireSound(t, data, true)
	for _, n := range []int{0, 10, 512, 1024, len(data) / 4} {
		requireSound(t, data[:n], false)
	}
	circle := bytes.Clone(data)
	for page := 512 * 2; page < len(circle); page += 512 {
		if binary.LittleEndian.Uint16(circle[page+8:]) == flagBranch {
			for i := range int(binary.LittleEndian.Uint16(circle[page+10:])) {
				binary.LittleEndian.PutUint64(circle[page+16+16*i+8:], uint64(page/512))
			}
		}
	}
	_, err = scanInPieces(r, circle)
	require.ErrorContains(t, err, "circles")
	requireSound(t, circle, false)
	_, err = scanInPieces(r, make([]byte, 1<<20))
	require.ErrorContains(t, err, "meta page")
}

// requireSound checks a database that is read and one that is mapped.
func requireSound(t *testing.T, data []byte, sound bool) {
	t.Helper()
	path := filepath.Join(t.TempDir(), "db")
	require.NoError(t, os.WriteFile(path, data, 0o600))
	read, mapped := Check(bytes.NewReader(data)), CheckFile(path)
	require.Equal(t, sound, read == nil, "%d bytes: %v", len(data), read)
	require.Equal(t, sound, mapped == nil, "%d bytes: %v", len(data), mapped)
}

// FuzzScanner looks for a panic, and for an answer without end.
func FuzzScanner(f *testing.F) {
	data := smallDB(f)
	f.Add(data)
	f.Add(data[:2048])
	f.Fuzz(func(_ *testing.T, b []byte) {
		s := New()
		_, _ = s.Write(b)
		_, _ = s.Result()
		_ = Check(bytes.NewReader(b))
	})
}

// TestScannerSurvivesDamage flips bytes anywhere. The answer does not matter, that there is one does.
func TestScannerSurvivesDamage(t *testing.T) {
	r := newRand(t)
	data := smallDB(t)
	for range 3000 {
		bad := bytes.Clone(data)
		for range 1 + r.IntN(8) {
			bad[1024+r.IntN(len(bad)-1024)] = byte(r.IntN(256))
		}
		_, _ = scanInPieces(r, bad)
		read, mapped := Check(bytes.NewReader(bad)), Check(memory(bad))
		require.Equal(t, read == nil, mapped == nil, "%v and %v", read, mapped)
	}
}

// BenchmarkScanner is the cost that the scan adds to a snapshot, on a database of small values.
func BenchmarkScanner(b *testing.B) {
	db, err := bolt.Open(filepath.Join(b.TempDir(), "db"), 0o600, &bolt.Options{PageSize: 4096, NoSync: true})
	require.NoError(b, err)
	require.NoError(b, db.Update(func(tx *bolt.Tx) error {
		keys, kerr := tx.CreateBucket([]byte("key"))
		if kerr != nil {
			return kerr
		}
		for i := range int64(200_000) {
			if kerr = keys.Put(revKey(i+2, 0, false), make([]byte, 200)); kerr != nil {
				return kerr
			}
		}
		return nil
	}))
	var data bytes.Buffer
	require.NoError(b, db.View(func(tx *bolt.Tx) error {
		_, verr := tx.WriteTo(&data)
		return verr
	}))
	require.NoError(b, db.Close())
	b.SetBytes(int64(data.Len()))
	b.ReportAllocs()
	for b.Loop() {
		s := New()
		_, _ = s.Write(data.Bytes())
		_, err = s.Result()
		require.NoError(b, err)
	}
}
