package drill

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strconv"

	bolt "go.etcd.io/bbolt"
	"go.etcd.io/etcd/api/v3/mvccpb"
	"go.etcd.io/etcd/server/v3/storage/mvcc"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/durationpb"

	lifeboatv1 "github.com/lifeboat-fleet/lifeboat/proto/lifeboat/v1"
	etcdrestore "github.com/lifeboat-fleet/lifeboat/services/backup/internal/restore/etcd"
	"github.com/lifeboat-fleet/lifeboat/services/backup/internal/throwaway"
)

// etcd restores a snapshot as an operator would with etcdutl, starts a server on it and compares.
func (r *run) etcd(ctx context.Context) (err error) {
	var dir *throwaway.Scratch
	err = r.phase(ctx, "prepare", func() error {
		var perr error
		dir, perr = throwaway.NewScratch(r.in.Dir)
		return perr
	})
	if err != nil {
		return err
	}
	defer func() {
		if rerr := dir.Remove(); rerr != nil {
			err = errors.Join(err, fmt.Errorf("clean: %w", rerr))
		}
	}()
	start := r.in.Clock()
	d := &etcdDrill{run: r, db: filepath.Join(dir.Dir(), "snapshot.db"), data: filepath.Join(dir.Dir(), "data")}
	if err = r.phase(ctx, "fetch", func() error { return d.fetch(ctx, dir) }); err != nil {
		return err
	}
	if err = r.phase(ctx, "restore", func() error { return d.restore(ctx) }); err != nil {
		return err
	}
	var srv *throwaway.Etcd
	err = r.phase(ctx, "start", func() error {
		var serr error
		srv, serr = throwaway.StartEtcd(ctx, d.data, d.size)
		return serr
	})
	if err != nil {
		return err
	}
	r.report.Rto = durationpb.New(r.in.Clock().Sub(start))
	r.report.Level = lifeboatv1.DrillReport_LEVEL_RESTORED
	err = r.phase(ctx, "compare", func() error { return d.compare(ctx, srv) })
	return errors.Join(err, r.phase(context.WithoutCancel(ctx), "stop", srv.Stop))
}

// etcdDrill is what the phases of one drill hand to each other.
type etcdDrill struct {
	*run
	db   string // the snapshot as it was sent
	data string // the restored data directory
	size int64
	disk found
}

// found is what the restored database itself holds.
type found struct{ revisions int64 }

func (d *etcdDrill) fetch(ctx context.Context, dir *throwaway.Scratch) error {
	if err := dir.CheckRoom(etcdrestore.Room(d.in.Manifest.GetData().GetRaw().GetBytes())); err != nil {
		return err
	}
	src, err := d.in.Open(ctx)
	if err != nil {
		return fmt.Errorf("opening the snapshot: %w", err)
	}
	defer src.Close() // it was read to its end, or there is a better error
	f, err := os.OpenFile(d.db, os.O_CREATE|os.O_EXCL|os.O_WRONLY, 0o600)
	if err != nil {
		return fmt.Errorf("making a file for the snapshot: %w", err)
	}
	d.size, err = io.Copy(f, &ctxReader{ctx: ctx, r: src})
	if err = errors.Join(err, f.Close()); err != nil {
		return fmt.Errorf("reading the snapshot: %w", err)
	}
	return nil
}

// restore does what `etcdutl snapshot restore` does, checksum included, for a cluster of one that nobody can join.
func (d *etcdDrill) restore(ctx context.Context) error {
	err := etcdrestore.ToDataDir(ctx, etcdrestore.DataDir{
		Snapshot: d.db, Dir: d.data, Name: throwaway.EtcdName, PeerURLs: []string{throwaway.EtcdPeerURL},
		InitialCluster: throwaway.EtcdName + "=" + throwaway.EtcdPeerURL, Token: d.in.DrillID,
	})
	if err != nil {
		return err
	}
	// It was the copy to restore from; the disk may be short of room.
	if err = os.Remove(d.db); err != nil {
		return fmt.Errorf("removing the fetched file: %w", err)
	}
	if d.disk, err = readDisk(filepath.Join(d.data, "member", "snap", "db")); err != nil {
		return fmt.Errorf("reading the restored database: %w", err)
	}
	return nil
}

// readDisk counts what is in a database, before a server works on it: one that resumes a compaction removes some.
func readDisk(path string) (_ found, err error) {
	db, err := bolt.Open(path, 0o400, &bolt.Options{ReadOnly: true})
	if err != nil {
		return found{}, err
	}
	defer func() { err = errors.Join(err, db.Close()) }()
	var f found
	err = db.View(func(tx *bolt.Tx) error {
		b := tx.Bucket([]byte("key"))
		if b == nil {
			return errors.New("it has no key bucket")
		}
		var kv mvccpb.KeyValue
		return b.ForEach(func(k, v []byte) error {
			// It panics on what is no revision, and so would the server, in a goroutine of its own.
			if rev := mvcc.BytesToRev(k); rev.Main <= 0 {
				return fmt.Errorf("its key %x is no revision", k)
			}
			// The server gives up on a value that it cannot read, and leaves half of itself running.
			if verr := proto.Unmarshal(v, &kv); verr != nil {
				return fmt.Errorf("the value of revision %x: %w", k, verr)
			}
			f.revisions++
			return nil
		})
	})
	return f, err
}

// compare asks the restored server what the source was asked when the snapshot was taken.
func (d *etcdDrill) compare(ctx context.Context, srv *throwaway.Etcd) error {
	src := d.in.Manifest.GetSource()
	rev := src.GetRevision()
	d.run.compare("revision", rev, rev > 0, srv.Revision())
	d.compareCount("revisions", d.disk.revisions)
	if srv.Revision() < rev {
		return d.differences()
	}
	keys, err := srv.Keys(ctx, rev)
	if err != nil {
		return fmt.Errorf("counting keys at revision %d: %w", rev, err)
	}
	d.compareCount("keys", keys)
	hash, err := srv.Hash(rev)
	if err != nil {
		return fmt.Errorf("hashing the keys at revision %d: %w", rev, err)
	}
	d.compareHash(src.GetHashKv(), hash)
	return d.differences()
}

// compareHash compares the hashes only when they are about the same: etcd hashes what was not compacted away.
func (d *etcdDrill) compareHash(want *lifeboatv1.HashKV, got mvcc.KeyValueHash) {
	c := &lifeboatv1.Comparison{
		What: "hash_kv", Want: strconv.FormatUint(uint64(want.GetHash()), 10),
		Got: strconv.FormatUint(uint64(got.Hash), 10), Ok: true,
	}
	switch {
	case want == nil:
		c.Want = ""
		c.NotComparable = "the manifest does not say" + d.missing("hash_kv")
	case want.GetRevision() != got.Revision:
		c.NotComparable = fmt.Sprintf("the manifest's is of revision %d, and this one of %d", want.GetRevision(),
			got.Revision)
	case want.GetCompactRevision() != got.CompactRevision:
		c.NotComparable = fmt.Sprintf("the source was compacted at %d when it was asked, and the snapshot at %d",
			want.GetCompactRevision(), got.CompactRevision)
	default:
		c.Ok = want.GetHash() == got.Hash
	}
	d.report.Comparisons = append(d.report.Comparisons, c)
}
