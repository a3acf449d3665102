// Package etcd restores etcd snapshots: into the data directory of a new member, or key by key into a running cluster.
package etcd

import (
	"context"
	"errors"
	"fmt"
	"os"

	"go.etcd.io/etcd/etcdutl/v3/snapshot"
	"go.uber.org/zap"

	"github.com/lifeboat-fleet/lifeboat/services/backup/internal/source/boltscan"
	"github.com/lifeboat-fleet/lifeboat/services/backup/internal/throwaway"
)

// walSize is what a fresh etcd allocates for its log.
const walSize = 64 << 20

// Room is how many bytes a restore of a snapshot of that size needs besides what is there: the fetched file, the data directory,
// and what a server adds to that.
func Room(snapshot int64) int64 { return 2*snapshot + snapshot/10 + 2*walSize }

// DataDir says which data directory is made of a snapshot.
type DataDir struct {
	// Snapshot is the file as etcd sent it.
	Snapshot string
	// Dir is what is made; it must not exist.
	Dir string
	// Name, PeerURLs, InitialCluster and Token are the new member's, as etcd's own flags have them.
	Name           string
	PeerURLs       []string
	InitialCluster string
	Token          string
	// BumpRevision and MarkCompacted move the revision on, for clients that cache what they watched (etcd#16028).
	BumpRevision  uint64
	MarkCompacted bool
}

// ToDataDir does what `etcdutl snapshot restore` does, checksum included.
func ToDataDir(ctx context.Context, o DataDir) error {
	// bbolt panics on a damaged file, and in goroutines of its own, which ends the process. So the pages are looked at
	// before it may.
	if err := checkTree(o.Snapshot); err != nil {
		return fmt.Errorf("the snapshot's database is damaged: %w", err)
	}
	err := throwaway.WithinEtcd(ctx, func(log *zap.Logger) error {
		return snapshot.NewV3(log).Restore(snapshot.RestoreConfig{
			SnapshotPath: o.Snapshot, Name: o.Name, OutputDataDir: o.Dir, PeerURLs: o.PeerURLs,
			InitialCluster: o.InitialCluster, InitialClusterToken: o.Token,
			RevisionBump: o.BumpRevision, MarkCompacted: o.MarkCompacted,
		})
	})
	if err != nil {
		return fmt.Errorf("restoring the snapshot: %w", err)
	}
	return nil
}

func checkTree(path string) error {
	f, err := os.Open(path)
	if err != nil {
		return err
	}
	return errors.Join(boltscan.Check(f), f.Close())
}
