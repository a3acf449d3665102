package throwaway

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"time"

	"go.etcd.io/etcd/server/v3/auth"
	"go.etcd.io/etcd/server/v3/lease"
	"go.etcd.io/etcd/server/v3/storage/backend"
	"go.etcd.io/etcd/server/v3/storage/mvcc"
	"go.etcd.io/etcd/server/v3/storage/schema"
)

// cheapHash is bcrypt's lowest cost; nothing is hashed.
const cheapHash = 4

// emptyMmap is how much address space the empty database asks for.
const emptyMmap = 1 << 20

// forget lets go of a server that has stopped. etcd's metrics are variables of its packages, and what they report on are the stores that
// were made last (setupMetricsReporter in storage/mvcc/kvstore.go and auth/store.go), of which the one holds the index of all keys, and
// the other the whole server: both would stay in memory until the next server is loaded, and two would be there at once. So stores
// with nothing in them take their places.
func forget(dir string) error {
	empty, err := os.MkdirTemp(dir, "forget-")
	if err != nil {
		return fmt.Errorf("making a folder for an empty database: %w", err)
	}
	said := newServerLog()
	log := said.zap()
	return said.until(nil, nil, func() error {
		db := backend.New(backend.BackendConfig{
			Path: filepath.Join(empty, "db"), MmapSize: emptyMmap, BatchInterval: time.Second, BatchLimit: 1, Logger: log, UnsafeNoFsync: true,
		})
		err := mvcc.New(log, db, &lease.FakeLessor{}, mvcc.StoreConfig{}).Close()
		tokens, terr := auth.NewTokenProvider(log, "", nil, 0)
		if terr == nil {
			auth.NewAuthStore(log, schema.NewAuthBackend(log, db), tokens, cheapHash)
		}
		return errors.Join(err, terr, db.Close())
	})
}
