// Package etcd restores etcd snapshots: into the data directory of a new member, or key by key into a running cluster.
package etcd

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"math"
	"os"
	"path/filepath"
	"strings"

	"go.etcd.io/etcd/client/pkg/v3/types"
	"go.etcd.io/etcd/server/v3/config"
	"go.uber.org/zap"

	"github.com/lifeboat-fleet/lifeboat/services/backup/internal/source/boltscan"
	"github.com/lifeboat-fleet/lifeboat/services/backup/internal/throwaway"
)

// walSize is what a fresh etcd allocates for its log.
const walSize = 64 << 20

// Room is how many bytes a restore of a snapshot of that size needs besides what is there: the fetched file, the data directory,
// and what a server adds to that.
func Room(snapshot int64) int64 { return snapshot + RoomConsumed(snapshot) }

// RoomConsumed is Room of a restore with DataDir.Consume, where the fetched file becomes a part of the data directory.
func RoomConsumed(snapshot int64) int64 { return snapshot + snapshot/10 + 2*walSize }

// DataDir says which data directory is made of a snapshot.
type DataDir struct {
	// Snapshot is the file as etcd sent it.
	Snapshot string
	// Dir is what is made. It must not exist, or be empty, unless Force is set.
	Dir string
	// Name, PeerURLs, InitialCluster and Token are the new member's, as etcd's own flags have them. Each member of a new cluster gets
	// its own directory, with its own name and peer URLs, from the same snapshot and with the same InitialCluster and Token.
	Name           string
	PeerURLs       []string
	InitialCluster string
	Token          string
	// BumpRevision and MarkCompacted move the revision on and end all watches from before, for clients that cache what they
	// watched (etcd#16028). One needs the other.
	BumpRevision  uint64
	MarkCompacted bool
	// Force moves what is at Dir aside. Nothing is ever deleted there.
	Force bool
	// MovedAside is told where Force has put what was at Dir; it may be nil.
	MovedAside func(path string)
	// Verified says that WriteSnapshot made the file, so that its checksum needs no second look.
	Verified bool
	// Consume makes the file itself a part of the data directory instead of a copy. It is gone afterwards, also when that fails.
	Consume bool
	// Volatile leaves out to flush what is written to the disk. It is for what nobody needs after a power failure.
	Volatile bool
}

// maxBump leaves room for as many revisions again. It is more than a thousand a second for a million years.
const maxBump = math.MaxInt64 / 4

// ToDataDir does what `etcdutl snapshot restore` does, checksum included. The directory is built beside Dir under another name, and
// gets its own only once it is whole: whoever is interrupted runs it again. What an interrupted run left is replaced.
func ToDataDir(ctx context.Context, o DataDir) error {
	if err := o.validate(); err != nil {
		return err
	}
	info, err := os.Stat(o.Snapshot)
	if err != nil {
		return fmt.Errorf("looking at the snapshot: %w", err)
	}
	if err = boltscan.WholeLength(info.Size()); err != nil {
		return fmt.Errorf("the snapshot is damaged: %w", err)
	}
	p, err := claim(o.Dir, o.Force)
	if err != nil {
		return err
	}
	if err = o.build(ctx, p, info.Size()); err != nil {
		return errors.Join(err, p.abandon())
	}
	return p.commit(o)
}

// validate says what is wrong with the new member before anything is written. The rules are etcd's own (VerifyBootstrap in
// server/config, and etcdutl's about the revision).
func (o *DataDir) validate() error {
	if o.Dir == "" {
		return errors.New("no data directory was named")
	}
	if (o.BumpRevision > 0) != o.MarkCompacted {
		return errors.New("to bump the revision and to mark it as compacted go together: one without the other would leave clients " +
			"with what they have cached")
	}
	if o.BumpRevision > maxBump {
		return fmt.Errorf("the revision cannot be bumped by more than %d", int64(maxBump))
	}
	peers, err := types.NewURLs(o.PeerURLs)
	if err != nil {
		return fmt.Errorf("the peer URLs %q: %w", strings.Join(o.PeerURLs, ","), err)
	}
	members, err := types.NewURLsMap(o.InitialCluster)
	if err != nil {
		return fmt.Errorf("the initial cluster %q: %w", o.InitialCluster, err)
	}
	if members[o.Name] == nil {
		return fmt.Errorf("the initial cluster %q has no member named %q, which this data directory would be for", o.InitialCluster, o.Name)
	}
	srv := config.ServerConfig{
		Logger: zap.NewNop(), Name: o.Name, PeerURLs: peers, InitialPeerURLsMap: members, InitialClusterToken: o.Token,
	}
	if err := srv.VerifyBootstrap(); err != nil {
		return fmt.Errorf("the member %q with peer URLs %s in the initial cluster %q: %w", o.Name, peers, o.InitialCluster, err)
	}
	return nil
}

// build makes the data directory in its temporary place.
func (o *DataDir) build(ctx context.Context, p *place, size int64) error {
	need := int64(2 * walSize)
	if !o.Consume {
		need += size
	}
	if err := checkRoom(p.temp, need); err != nil {
		return err
	}
	member, err := o.newMember(ctx, p)
	if err != nil {
		return fmt.Errorf("making a member's data directory: %w", err)
	}
	db := databaseOf(p.data)
	f, err := o.place(ctx, db)
	if err != nil {
		return err
	}
	if err = errors.Join(f.Truncate(size-sha256.Size), f.Close()); err != nil {
		return fmt.Errorf("cutting the checksum off the database: %w", err)
	}
	// bbolt panics on a damaged file, and in goroutines of its own, which ends the process. So the pages are looked at
	// before it may.
	if err = boltscan.CheckFile(db); err != nil {
		return fmt.Errorf("the snapshot's database is damaged: %w", err)
	}
	if err = throwaway.Guard(func() error { return o.adopt(db, member) }); err != nil {
		return fmt.Errorf("putting the new member into the database: %w", err)
	}
	return nil
}

// place brings the snapshot to where the database belongs, and leaves it open for writing.
func (o *DataDir) place(ctx context.Context, db string) (_ *os.File, err error) {
	src, err := os.Open(o.Snapshot)
	if err != nil {
		return nil, fmt.Errorf("opening the snapshot: %w", err)
	}
	defer src.Close()
	if o.Consume {
		if !o.Verified {
			if _, err = copyChecked(ctx, io.Discard, src); err != nil {
				return nil, err
			}
		}
		if err = os.Rename(o.Snapshot, db); err == nil {
			return os.OpenFile(db, os.O_WRONLY, 0)
		}
		// On another file system: it is copied, and deleted then.
		defer func() { err = errors.Join(err, os.Remove(o.Snapshot)) }() //nolint:gosec // the caller's own file
	}
	f, err := os.OpenFile(db, os.O_CREATE|os.O_EXCL|os.O_WRONLY, 0o600)
	if err != nil {
		return nil, fmt.Errorf("making the database: %w", err)
	}
	if o.Verified {
		err = eachPiece(ctx, src, func(piece []byte) error {
			_, werr := f.Write(piece)
			return werr
		})
	} else {
		_, err = copyChecked(ctx, f, src)
	}
	if err != nil {
		return nil, errors.Join(fmt.Errorf("copying the snapshot: %w", err), f.Close())
	}
	return f, nil
}

func databaseOf(dir string) string { return filepath.Join(dir, "member", "snap", "db") }
