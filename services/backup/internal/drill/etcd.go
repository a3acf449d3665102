package drill

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"path/filepath"
	"strconv"
	"sync"

	bolt "go.etcd.io/bbolt"
	"go.etcd.io/etcd/server/v3/storage/mvcc"
	"google.golang.org/protobuf/encoding/protowire"

	lifeboatv1 "github.com/lifeboat-fleet/lifeboat/proto/lifeboat/v1"
	"github.com/lifeboat-fleet/lifeboat/services/backup/internal/pipeline"
	etcdrestore "github.com/lifeboat-fleet/lifeboat/services/backup/internal/restore/etcd"
	"github.com/lifeboat-fleet/lifeboat/services/backup/internal/throwaway"
)

// inProcess is the isolation of an etcd: it listens on loopback, has one member and nobody to talk to.
const inProcess = "in process"

// room is how many bytes a drill needs in its scratch folder.
func (r *run) room() int64 {
	raw := r.in.Manifest.GetData().GetRaw().GetBytes()
	if r.in.Manifest.GetKind() == lifeboatv1.Kind_KIND_ETCD {
		return etcdrestore.RoomConsumed(raw)
	}
	// The fetched file, and the server's log and state of it, of which a raft snapshot is a third.
	need := 4*raw + serverRoom
	for _, p := range r.in.Manifest.GetParts() {
		need += 3 * p.GetRaw().GetBytes()
	}
	return need
}

// serverRoom is what an empty Consul or Nomad server takes.
const serverRoom = 64 << 20

// etcd restores a snapshot as `lifeboat restore` does, starts a server on it and compares.
func (r *run) etcd(ctx context.Context, s *scratch) (err error) {
	d := &etcdDrill{run: r, db: filepath.Join(s.Dir(), "snapshot.db"), data: filepath.Join(s.Dir(), "data")}
	if err = failed(phaseFetch, throwaway.Guard(func() error { return d.receive(ctx) })); err != nil {
		return err
	}
	if err = r.phase(ctx, phaseRestore, func() error { return d.restore(ctx) }); err != nil {
		return err
	}
	var srv *throwaway.Etcd
	err = r.phase(ctx, phaseStart, func() error {
		var serr error
		srv, serr = throwaway.StartEtcd(ctx, d.data, d.size)
		return serr
	})
	if err != nil {
		return err
	}
	r.report.Isolation = inProcess
	r.answers()
	err = r.phase(ctx, phaseCompare, func() error { return d.compare(ctx, srv) })
	if err == nil {
		err = r.checks(ctx, etcdData{srv, d.revision()})
	}
	return errors.Join(err, r.phase(context.WithoutCancel(ctx), phaseStop, srv.Stop))
}

// etcdDrill is what the phases of one drill hand to each other.
type etcdDrill struct {
	*run
	db   string // the snapshot as it was sent
	data string // the restored data directory
	size int64
	// revisions is how many the restored database holds.
	revisions int64
}

// receive fetches the snapshot. Its own checksum is compared on the way.
func (d *etcdDrill) receive(ctx context.Context) error {
	p, err := d.open(ctx, d.in.Manifest.GetData())
	if err != nil {
		return err
	}
	defer func() { _ = p.Close() }() // it was read to its end, or there is a better error
	p.decoder.LeaveRaw()
	// What decodes and hashes the data, and what writes it and checks its own checksum, are two cores' work.
	ahead := pipeline.Ahead(p)
	var digest [sha256.Size]byte
	d.size, digest, err = etcdrestore.WriteDigested(ctx, ahead, d.db)
	_ = ahead.Close() // from here on nothing reads p
	if err == nil {
		err = p.compareRaw(d.size, digest)
	}
	return p.write(err)
}

// restore does what `lifeboat restore` does, for a cluster of one that nobody can join.
func (d *etcdDrill) restore(ctx context.Context) error {
	err := etcdrestore.ToDataDir(ctx, etcdrestore.DataDir{
		Snapshot: d.db, Dir: d.data, Name: throwaway.EtcdName, PeerURLs: []string{throwaway.EtcdPeerURL},
		InitialCluster: throwaway.EtcdName + "=" + throwaway.EtcdPeerURL, Token: d.in.DrillID,
		// It was checked while it was written, and nobody needs it a second time or after a power failure.
		Verified: true, Consume: true, Volatile: true,
	})
	if err != nil {
		return err
	}
	if d.revisions, err = countRevisions(filepath.Join(d.data, "member", "snap", "db")); err != nil {
		return fmt.Errorf("reading the restored database: %w", err)
	}
	return nil
}

// countRevisions counts what is in a database before a server works on it: one that resumes a compaction removes some. It also
// looks at what a server would panic on in a goroutine of its own, or give up on and leave half of itself running.
func countRevisions(path string) (n int64, err error) {
	db, err := bolt.Open(path, 0o400, &bolt.Options{ReadOnly: true})
	if err != nil {
		return 0, err
	}
	defer func() { err = errors.Join(err, db.Close()) }()
	err = db.View(func(tx *bolt.Tx) error {
		b := tx.Bucket([]byte("key"))
		if b == nil {
			return errors.New("it has no key bucket")
		}
		return b.ForEach(func(k, v []byte) error {
			// It panics on what is no revision.
			if rev := mvcc.BytesToRev(k); rev.Main <= 0 {
				return fmt.Errorf("its key %x is no revision", k)
			}
			if !isMessage(v) {
				return fmt.Errorf("the value of revision %x is no key and value", k)
			}
			n++
			return nil
		})
	})
	return n, err
}

// isMessage says whether a protobuf message of any type can be read from it, which is what etcd asks of a value before it starts. To
// decode each of them would take as much memory as the database.
func isMessage(b []byte) bool {
	for len(b) > 0 {
		_, _, n := protowire.ConsumeField(b)
		if n < 0 {
			return false
		}
		b = b[n:]
	}
	return true
}

// revision is where the restored data is looked at: where it was when it was saved, whatever has expired since.
func (d *etcdDrill) revision() int64 { return d.in.Manifest.GetSource().GetRevision() }

// compare asks the restored server what the source was asked when the snapshot was taken.
func (d *etcdDrill) compare(ctx context.Context, srv *throwaway.Etcd) error {
	src, rev := d.in.Manifest.GetSource(), d.revision()
	d.rto()
	if rev > 0 {
		d.account()
		d.number("revision", rev, srv.Revision())
	} else {
		d.incomparable("revision", strconv.FormatInt(srv.Revision(), 10), "the manifest does not say"+d.missing("revision"))
		rev = srv.Revision()
	}
	d.count("revisions", d.revisions)
	if srv.Revision() < rev {
		return nil // nothing can be asked about a revision that is not there
	}
	var hash mvcc.KeyValueHash
	var hashErr error
	var wg sync.WaitGroup
	wg.Go(func() { hashErr = throwaway.Guard(func() (err error) { hash, err = srv.Hash(rev); return err }) })
	keys, err := srv.Keys(ctx, rev)
	if err == nil {
		d.count("keys", keys)
		err = d.compareAccounts(srv)
	}
	wg.Wait()
	switch {
	case err != nil:
		return fmt.Errorf("asking the restored server at revision %d: %w", rev, err)
	case hashErr != nil:
		return fmt.Errorf("hashing the keys at revision %d: %w", rev, hashErr)
	}
	d.compareHash(src.GetHashKv(), hash)
	return nil
}

// compareAccounts compares what is kept beside the keys: leases, and who may do what.
func (d *etcdDrill) compareAccounts(srv *throwaway.Etcd) error {
	leases, err := srv.Leases()
	if err != nil {
		return fmt.Errorf("counting the leases: %w", err)
	}
	d.count("leases", leases)
	enabled, users, roles, err := srv.Auth()
	if err != nil {
		return fmt.Errorf("reading users and roles: %w", err)
	}
	d.count("auth_enabled", map[bool]int64{true: 1}[enabled])
	d.count("auth_users", users)
	d.count("auth_roles", roles)
	return nil
}

// compareHash compares the hashes only when they are about the same: etcd hashes what was not compacted away.
func (d *etcdDrill) compareHash(want *lifeboatv1.HashKV, hash mvcc.KeyValueHash) {
	const what = "hash_kv"
	got := strconv.FormatUint(uint64(hash.Hash), 10)
	switch {
	case want == nil:
		d.incomparable(what, got, "the manifest does not say"+d.missing(what))
	case want.GetRevision() != hash.Revision:
		d.incomparable(what, got, fmt.Sprintf("the manifest's is of revision %d, and this one of %d", want.GetRevision(), hash.Revision))
	case want.GetCompactRevision() != hash.CompactRevision:
		d.incomparable(what, got, fmt.Sprintf("the source was compacted at %d when it was asked, and the snapshot at %d",
			want.GetCompactRevision(), hash.CompactRevision))
	default:
		d.account()
		d.equal(what, strconv.FormatUint(uint64(want.GetHash()), 10), got)
	}
}
