package etcd

import (
	"bytes"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"testing/iotest"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	bolt "go.etcd.io/bbolt"
	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"
	clientv3 "go.etcd.io/etcd/client/v3"

	"github.com/lifeboat-fleet/lifeboat/fleet/config"
	"github.com/lifeboat-fleet/lifeboat/fleet/fleettest/bintest"
	etcdsource "github.com/lifeboat-fleet/lifeboat/services/backup/internal/source/etcd"
	"github.com/lifeboat-fleet/lifeboat/services/backup/internal/throwaway"
)

const (
	oneName    = "one"
	onePeer    = "http://127.0.0.1:2380"
	oneCluster = oneName + "=" + onePeer
)

func single(snapshot, dir string) DataDir {
	return DataDir{
		Snapshot: snapshot, Dir: dir, Name: oneName, PeerURLs: []string{onePeer}, InitialCluster: oneCluster, Token: "token-1",
	}
}

// someData is a snapshot with history, leases, users and roles.
func someData(t *testing.T) []byte {
	t.Helper()
	m := startMember(t)
	m.fill(t, newRand(t), "/a/", 2000, 600)
	l, err := m.client.Grant(t.Context(), 3600)
	require.NoError(t, err)
	m.put(t, "/leased", "v", clientv3.WithLease(l.ID))
	_, err = m.client.Delete(t.Context(), "/a/0001", clientv3.WithPrefix())
	require.NoError(t, err)
	_, err = m.client.Compact(t.Context(), 5)
	require.NoError(t, err)
	_, err = m.client.RoleAdd(t.Context(), "reader")
	require.NoError(t, err)
	_, err = m.client.UserAdd(t.Context(), "somebody", "secret")
	require.NoError(t, err)
	return m.snapshot(t)
}

// contents are all entries of a database, by bucket and key.
func contents(t *testing.T, path string) map[string]string {
	t.Helper()
	db, err := bolt.Open(path, 0o400, &bolt.Options{ReadOnly: true})
	require.NoError(t, err)
	defer db.Close()
	found := make(map[string]string)
	require.NoError(t, db.View(func(tx *bolt.Tx) error {
		return tx.ForEach(func(name []byte, b *bolt.Bucket) error {
			found[string(name)] = "bucket"
			return b.ForEach(func(k, v []byte) error {
				found[string(name)+"/"+string(k)] = string(v)
				return nil
			})
		})
	}))
	return found
}

// files are all others of a data directory, by path.
func files(t *testing.T, dir string) map[string][32]byte {
	t.Helper()
	found := make(map[string][32]byte)
	require.NoError(t, filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
		if err != nil || path == databaseOf(dir) {
			return err
		}
		name, err := filepath.Rel(dir, path)
		if err != nil {
			return err
		}
		info, err := d.Info()
		if err != nil {
			return err
		}
		name += " " + info.Mode().String()
		if d.IsDir() {
			found[name] = [32]byte{}
			return nil
		}
		data, err := os.ReadFile(path)
		found[name] = sha256.Sum256(data)
		return err
	}))
	return found
}

// TestAsEtcdutl compares with what the stock tool makes of the same snapshot: every entry of the database, and every other file.
func TestAsEtcdutl(t *testing.T) {
	etcdutl, err := bintest.Find("etcdutl")
	require.NoError(t, err)
	data := someData(t)
	for name, c := range map[string]struct {
		change func(*DataDir)
		args   []string
	}{
		"copied":   {func(*DataDir) {}, nil},
		"consumed": {func(d *DataDir) { d.Consume = true }, nil},
		"verified": {func(d *DataDir) { d.Consume, d.Verified, d.Volatile = true, true, true }, nil},
		"bumped": {
			func(d *DataDir) { d.BumpRevision, d.MarkCompacted = 1_000_000, true },
			[]string{"--bump-revision=1000000", "--mark-compacted"},
		},
		"three members": {
			func(d *DataDir) { d.InitialCluster += ",two=http://127.0.0.1:2480,three=http://127.0.0.1:2580" },
			[]string{"--initial-cluster=" + oneCluster + ",two=http://127.0.0.1:2480,three=http://127.0.0.1:2580"},
		},
	} {
		t.Run(name, func(t *testing.T) {
			snapshot, stock := fileOf(t, data), filepath.Join(t.TempDir(), "stock")
			args := append([]string{
				"snapshot", "restore", snapshot, "--data-dir=" + stock, "--name=" + oneName, "--initial-cluster=" + oneCluster,
				"--initial-advertise-peer-urls=" + onePeer, "--initial-cluster-token=token-1",
			}, c.args...)
			out, err := exec.CommandContext(t.Context(), etcdutl, args...).CombinedOutput()
			require.NoError(t, err, string(out))
			parent := t.TempDir()
			d := single(snapshot, filepath.Join(parent, "ours"))
			c.change(&d)
			require.NoError(t, ToDataDir(t.Context(), d))
			require.Equal(t, contents(t, databaseOf(stock)), contents(t, databaseOf(d.Dir)))
			want, got := files(t, stock), files(t, d.Dir)
			if name == "three members" {
				// etcd goes through its members in the order of a map when it writes these.
				require.NoError(t, errors.Join(dropSnaps(want), dropSnaps(got)))
			}
			require.Equal(t, want, got)
			_, err = os.Stat(snapshot)
			require.Equal(t, d.Consume, errors.Is(err, fs.ErrNotExist), "the snapshot's file")
			requireOnly(t, parent, "ours")
		})
	}
}

func dropSnaps(files map[string][32]byte) error {
	for name := range files {
		if strings.Contains(name, ".snap ") {
			files[name] = [32]byte{}
			return nil
		}
	}
	return errors.New("there is no raft snapshot")
}

func requireOnly(t *testing.T, dir string, names ...string) {
	t.Helper()
	entries, err := os.ReadDir(dir)
	require.NoError(t, err)
	var found []string
	for _, e := range entries {
		found = append(found, e.Name())
	}
	require.Equal(t, names, found)
}

// TestThreeMembers starts a whole new cluster from one snapshot, as after a disaster, with the revision bumped.
func TestThreeMembers(t *testing.T) {
	etcd, err := bintest.Find("etcd")
	require.NoError(t, err)
	src := startMember(t)
	src.fill(t, newRand(t), "/k/", 500, 300)
	data, want := src.snapshot(t), src.all(t)
	head, err := src.client.Get(t.Context(), "x")
	require.NoError(t, err)

	const bumped = 1_000_000_000
	ports, err := bintest.FreePorts(6)
	require.NoError(t, err)
	var cluster []string
	for i := range 3 {
		cluster = append(cluster, fmt.Sprintf("m%d=http://127.0.0.1:%d", i, ports[i]))
	}
	parent, snapshot := t.TempDir(), fileOf(t, data)
	for i := range 3 {
		name, peer, _ := strings.Cut(cluster[i], "=")
		dir, address := filepath.Join(parent, name), fmt.Sprintf("http://127.0.0.1:%d", ports[3+i])
		require.NoError(t, ToDataDir(t.Context(), DataDir{
			Snapshot: snapshot, Dir: dir, Name: name, PeerURLs: []string{peer}, InitialCluster: strings.Join(cluster, ","),
			Token: "after-the-disaster", BumpRevision: bumped, MarkCompacted: true,
		}))
		p, err := bintest.Start(etcd, filepath.Join(t.TempDir(), "log"), nil, "--name="+name, "--data-dir="+dir,
			"--listen-peer-urls="+peer, "--initial-advertise-peer-urls="+peer, "--listen-client-urls="+address,
			"--advertise-client-urls="+address, "--log-level=error")
		require.NoError(t, err)
		t.Cleanup(func() { require.NoError(t, p.Kill()) })
	}
	for i := range 3 {
		c := dial(t, fmt.Sprintf("http://127.0.0.1:%d", ports[3+i]), "", "")
		require.Eventually(t, func() bool {
			_, err := c.Get(t.Context(), "x")
			return err == nil
		}, 60*time.Second, 50*time.Millisecond, "member %d", i)
		require.Equal(t, want, allOf(t, c))
		members, err := c.MemberList(t.Context())
		require.NoError(t, err)
		require.Len(t, members.Members, 3)
		now, err := c.Get(t.Context(), "x")
		require.NoError(t, err)
		require.GreaterOrEqual(t, now.Header.Revision, head.Header.Revision+bumped)
		// A client that watched from before is told to read everything anew.
		watched := <-c.Watch(t.Context(), "/k/", clientv3.WithPrefix(), clientv3.WithRev(head.Header.Revision+1))
		require.ErrorIs(t, watched.Err(), rpctypes.ErrCompacted)
	}
}

// TestBumpAboveCompaction bumps a database whose newest revisions were removed by a compaction: the revision that counts is that of
// the compaction.
func TestBumpAboveCompaction(t *testing.T) {
	m := startMember(t)
	for range 50 {
		m.put(t, "k", "v")
	}
	resp, err := m.client.Delete(t.Context(), "k")
	require.NoError(t, err)
	_, err = m.client.Compact(t.Context(), resp.Header.Revision, clientv3.WithCompactPhysical())
	require.NoError(t, err)
	d := single(fileOf(t, m.snapshot(t)), filepath.Join(t.TempDir(), "d"))
	d.BumpRevision, d.MarkCompacted = 3, true
	d.Name, d.PeerURLs, d.InitialCluster = throwaway.EtcdName, []string{throwaway.EtcdPeerURL}, throwaway.EtcdName+"="+throwaway.EtcdPeerURL
	require.NoError(t, ToDataDir(t.Context(), d))
	srv, err := throwaway.StartEtcd(t.Context(), d.Dir, 1<<20)
	require.NoError(t, err)
	defer func() { require.NoError(t, srv.Stop()) }()
	require.Equal(t, resp.Header.Revision+3, srv.Revision())
}

// TestCounts compares what the source counts while a snapshot passes with what a server finds that is restored from it.
func TestCounts(t *testing.T) {
	m := startMember(t)
	for range 7 {
		_, err := m.client.Grant(t.Context(), 3600)
		require.NoError(t, err)
	}
	for i := range 40 {
		_, err := m.client.RoleAdd(t.Context(), fmt.Sprintf("role-%d", i))
		require.NoError(t, err)
	}
	try := func(cfg func() *etcdsource.Source, enabled bool, users int64) {
		st, err := cfg().Open(t.Context())
		require.NoError(t, err)
		path := filepath.Join(t.TempDir(), "snapshot.db")
		size, err := WriteSnapshot(t.Context(), st, path)
		require.NoError(t, err)
		info, err := st.Info(t.Context())
		require.NoError(t, err)
		require.NoError(t, st.Close())
		dir := filepath.Join(t.TempDir(), "data")
		require.NoError(t, ToDataDir(t.Context(), DataDir{
			Snapshot: path, Dir: dir, Name: throwaway.EtcdName, PeerURLs: []string{throwaway.EtcdPeerURL},
			InitialCluster: throwaway.EtcdName + "=" + throwaway.EtcdPeerURL, Verified: true, Consume: true, Volatile: true,
		}))
		srv, err := throwaway.StartEtcd(t.Context(), dir, size)
		require.NoError(t, err)
		defer func() { require.NoError(t, srv.Stop()) }()
		leases, err := srv.Leases()
		require.NoError(t, err)
		on, u, roles, err := srv.Auth()
		require.NoError(t, err)
		counts := info.GetCounts()
		assert.Equal(t, counts["leases"], leases)
		assert.EqualValues(t, 7, leases)
		assert.Equal(t, counts["auth_users"], u)
		assert.Equal(t, users, u)
		assert.Equal(t, counts["auth_roles"], roles)
		assert.Equal(t, enabled, on)
		assert.Equal(t, enabled, counts["auth_enabled"] == 1)
	}
	cfg := m.config()
	try(func() *etcdsource.Source { return etcdsource.New(cfg, etcdsource.Options{}) }, false, 0)
	_, err := m.client.UserAdd(t.Context(), "root", "secret")
	require.NoError(t, err)
	_, err = m.client.RoleAdd(t.Context(), "root")
	require.NoError(t, err)
	_, err = m.client.UserGrantRole(t.Context(), "root", "root")
	require.NoError(t, err)
	_, err = m.client.AuthEnable(t.Context())
	require.NoError(t, err)
	cfg.Username, cfg.PasswordFile = "root", passwordFile(t, "secret")
	try(func() *etcdsource.Source { return etcdsource.New(cfg, etcdsource.Options{}) }, true, 1)
}

// TestWriteSnapshot gives it streams that break, and bytes that are no snapshot.
func TestWriteSnapshot(t *testing.T) {
	data := someData(t)
	broken := errors.New("the store hung up")
	for name, c := range map[string]struct {
		r    io.Reader
		want string
	}{
		"whole":               {bytes.NewReader(data), ""},
		"byte by byte":        {iotest.OneByteReader(bytes.NewReader(data)), ""},
		"with its end":        {iotest.DataErrReader(bytes.NewReader(data)), ""},
		"broken":              {io.MultiReader(bytes.NewReader(data[:100_000]), iotest.ErrReader(broken)), broken.Error()},
		"broken after all":    {io.MultiReader(bytes.NewReader(data), iotest.ErrReader(io.ErrUnexpectedEOF)), "unexpected EOF"},
		"cut":                 {bytes.NewReader(data[:len(data)/2]), "length"},
		"a sector less":       {bytes.NewReader(data[512:]), "sha256"},
		"nothing":             {bytes.NewReader(nil), "length"},
		"its checksum":        {bytes.NewReader(flip(data, len(data)-3)), "sha256"},
		"a bit":               {bytes.NewReader(flip(data, len(data)/3)), "sha256"},
		"of a data directory": {bytes.NewReader(data[:len(data)-32]), "was not made by etcd's snapshot"},
	} {
		t.Run(name, func(t *testing.T) {
			dir := t.TempDir()
			path := filepath.Join(dir, "db")
			size, err := WriteSnapshot(t.Context(), c.r, path)
			if c.want == "" {
				require.NoError(t, err)
				require.EqualValues(t, len(data), size)
				got, rerr := os.ReadFile(path)
				require.NoError(t, rerr)
				require.True(t, bytes.Equal(data, got))
				_, err = WriteSnapshot(t.Context(), bytes.NewReader(data), path)
				require.ErrorIs(t, err, fs.ErrExist)
				return
			}
			require.ErrorContains(t, err, c.want)
			requireOnly(t, dir)
		})
	}
}

func flip(data []byte, at int) []byte {
	bad := bytes.Clone(data)
	bad[at] ^= 4
	return bad
}

// TestDamagedSnapshots leaves nothing behind, and says what is wrong.
func TestDamagedSnapshots(t *testing.T) {
	data := someData(t)
	// Damage that has its right checksum: etcd hashes what its disk gives it.
	vouched := bytes.Clone(data)
	for i := 4096 * 2; i < len(vouched)-32; i += 512 {
		vouched[i+8] ^= 0xff
	}
	sum := sha256.Sum256(vouched[:len(vouched)-32])
	copy(vouched[len(vouched)-32:], sum[:])
	noise := sha256.Sum256(make([]byte, 8192))
	for name, c := range map[string]struct {
		data []byte
		want string
	}{
		"trailer":    {flip(data, len(data)-1), "sha256 is not the one at its end"},
		"value":      {flip(data, len(data)/2), "sha256 is not the one at its end"},
		"cut":        {data[:len(data)-4096], "sha256 is not the one at its end"},
		"cut within": {data[:len(data)-100], "it was cut"},
		"empty":      {nil, "it was cut"},
		"other file": {[]byte(strings.Repeat("no database\n", 1000)), "length"},
		"zeros":      {append(make([]byte, 8192), noise[:]...), "meta page"},
		"pages":      {vouched, "database is damaged"},
	} {
		for _, consume := range []bool{false, true} {
			t.Run(fmt.Sprintf("%s consume %t", name, consume), func(t *testing.T) {
				parent := t.TempDir()
				d := single(fileOf(t, c.data), filepath.Join(parent, "data"))
				d.Consume = consume
				require.ErrorContains(t, ToDataDir(t.Context(), d), c.want)
				requireOnly(t, parent)
			})
		}
	}
	d := single(filepath.Join(t.TempDir(), "absent.db"), filepath.Join(t.TempDir(), "data"))
	require.ErrorIs(t, ToDataDir(t.Context(), d), fs.ErrNotExist)
}

// TestNewMember refuses members that etcd would not start as, before anything is written.
func TestNewMember(t *testing.T) {
	for name, c := range map[string]struct {
		change func(*DataDir)
		want   string
	}{
		"another name":    {func(d *DataDir) { d.Name = "two" }, `has no member named "two"`},
		"no name":         {func(d *DataDir) { d.Name = "" }, `has no member named ""`},
		"no cluster":      {func(d *DataDir) { d.InitialCluster = "" }, "initial cluster"},
		"no URLs":         {func(d *DataDir) { d.PeerURLs = nil }, "peer URLs"},
		"no URL":          {func(d *DataDir) { d.PeerURLs = []string{"127.0.0.1"} }, "peer URLs"},
		"other URLs":      {func(d *DataDir) { d.PeerURLs = []string{"http://127.0.0.1:2381"} }, "initial-cluster has one=" + onePeer},
		"duplicate":       {func(d *DataDir) { d.InitialCluster += ",two=" + onePeer }, "duplicate"},
		"no directory":    {func(d *DataDir) { d.Dir = "" }, "no data directory"},
		"bump only":       {func(d *DataDir) { d.BumpRevision = 1 }, "go together"},
		"mark only":       {func(d *DataDir) { d.MarkCompacted = true }, "go together"},
		"bump beyond all": {func(d *DataDir) { d.BumpRevision, d.MarkCompacted = 1<<63, true }, "cannot be bumped"},
	} {
		t.Run(name, func(t *testing.T) {
			parent := t.TempDir()
			d := single("unread.db", filepath.Join(parent, "deep", "data"))
			c.change(&d)
			require.ErrorContains(t, ToDataDir(t.Context(), d), c.want)
			requireOnly(t, parent)
		})
	}
}

func passwordFile(t *testing.T, secret string) config.SecretFile {
	t.Helper()
	path := filepath.Join(t.TempDir(), "password")
	require.NoError(t, os.WriteFile(path, []byte(secret), 0o600))
	return config.SecretFile(path)
}
