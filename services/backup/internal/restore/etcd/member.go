package etcd

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"path/filepath"

	bolt "go.etcd.io/bbolt"
	berrors "go.etcd.io/bbolt/errors"
	"go.etcd.io/etcd/etcdutl/v3/snapshot"
	"go.etcd.io/etcd/server/v3/storage/mvcc"
	"go.etcd.io/etcd/server/v3/storage/schema"
	"go.uber.org/zap"

	"github.com/lifeboat-fleet/lifeboat/services/backup/internal/throwaway"
)

// etcdutl's library copies a snapshot, hashes it again, and opens the copy three times, each of which walks all of its pages: 2 s
// for a GiB. So it is given an empty database to restore, and makes the log, the raft snapshot and the membership of that as it
// makes them of any. What it wrote into the empty database is then written into the snapshot's own, in one transaction.

// entries are those of one bucket.
type entries struct {
	bucket string
	keys   [][]byte
	values [][]byte
}

// newMember makes the data directory with everything but the database, and returns what belongs into that.
func (o *DataDir) newMember(ctx context.Context, p *place) ([]entries, error) {
	empty := filepath.Join(p.temp, "empty.db")
	if err := emptyDatabase(empty); err != nil {
		return nil, err
	}
	err := throwaway.WithinEtcd(ctx, func(log *zap.Logger) error {
		return snapshot.NewV3(log).Restore(snapshot.RestoreConfig{
			SnapshotPath: empty, SkipHashCheck: true, Name: o.Name, OutputDataDir: p.data, PeerURLs: o.PeerURLs,
			InitialCluster: o.InitialCluster, InitialClusterToken: o.Token,
		})
	})
	if err != nil {
		return nil, err
	}
	db := databaseOf(p.data)
	member, err := readEntries(db)
	return member, errors.Join(err, os.Remove(db), os.Remove(empty))
}

// emptyDatabase makes what an etcd has that never held anything.
func emptyDatabase(path string) error {
	return update(path, &bolt.Options{NoFreelistSync: true, NoSync: true}, func(tx *bolt.Tx) error {
		for _, b := range schema.AllBuckets {
			if _, err := tx.CreateBucket(b.Name()); err != nil {
				return err
			}
		}
		return nil
	})
}

// update runs one transaction on a database.
func update(path string, options *bolt.Options, f func(*bolt.Tx) error) (err error) {
	db, err := bolt.Open(path, 0o600, options)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, db.Close()) }()
	return db.Update(f)
}

func readEntries(path string) (all []entries, err error) {
	db, err := bolt.Open(path, 0o400, &bolt.Options{ReadOnly: true})
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, db.Close()) }()
	err = db.View(func(tx *bolt.Tx) error {
		return tx.ForEach(func(name []byte, b *bolt.Bucket) error {
			e := entries{bucket: string(name)}
			ferr := b.ForEach(func(k, v []byte) error {
				e.keys, e.values = append(e.keys, append([]byte{}, k...)), append(e.values, append([]byte{}, v...))
				return nil
			})
			if len(e.keys) > 0 {
				all = append(all, e)
			}
			return ferr
		})
	})
	return all, err
}

// adopt makes the snapshot's database that of the new member: the members of the cluster it came from are forgotten.
func (o *DataDir) adopt(path string, member []entries) error {
	// As etcd opens it. A free list on the disk would only have to be removed again.
	options := &bolt.Options{NoFreelistSync: true, FreelistType: bolt.FreelistMapType, NoSync: o.Volatile, NoGrowSync: o.Volatile}
	return update(path, options, func(tx *bolt.Tx) error {
		for _, name := range [][]byte{schema.Members.Name(), schema.MembersRemoved.Name()} {
			if err := tx.DeleteBucket(name); err != nil && !errors.Is(err, berrors.ErrBucketNotFound) {
				return err
			}
			if _, err := tx.CreateBucket(name); err != nil {
				return err
			}
		}
		for _, e := range member {
			b, err := tx.CreateBucketIfNotExists([]byte(e.bucket))
			if err != nil {
				return err
			}
			for i, k := range e.keys {
				if err := b.Put(k, e.values[i]); err != nil {
					return err
				}
			}
		}
		if o.MarkCompacted {
			return bump(tx, o.BumpRevision)
		}
		return nil
	})
}

// bump adds an empty revision so much after the newest one and has everything before it compacted as soon as the member starts.
func bump(tx *bolt.Tx, by uint64) error {
	keys, meta := tx.Bucket(schema.Key.Name()), tx.Bucket(schema.Meta.Name())
	if keys == nil || meta == nil {
		return errors.New("it has no keys or no meta bucket")
	}
	newest := uint64(1)
	if last, _ := keys.Cursor().Last(); last != nil {
		newest = max(newest, mainRevision(last))
	}
	// A compaction may have removed the newest revisions themselves.
	for _, name := range [][]byte{schema.FinishedCompactKeyName, schema.ScheduledCompactKeyName} {
		newest = max(newest, mainRevision(meta.Get(name)))
	}
	if newest > maxBump {
		return fmt.Errorf("its revision %d is too high to be bumped", newest)
	}
	to := mvcc.RevToBytes(mvcc.Revision{Main: int64(newest + by)}, mvcc.NewRevBytes()) //nolint:gosec // neither is above maxBump
	if err := keys.Put(to, nil); err != nil {
		return err
	}
	return meta.Put(schema.ScheduledCompactKeyName, to)
}

// mainRevision reads the main part of a revision in the form that keys and marks have; 0 when there is none.
func mainRevision(b []byte) uint64 {
	if len(b) < 8 {
		return 0
	}
	return binary.BigEndian.Uint64(b)
}
