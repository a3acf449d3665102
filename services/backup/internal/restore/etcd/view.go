package etcd

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"

	bolt "go.etcd.io/bbolt"
	"go.etcd.io/etcd/api/v3/mvccpb"
	"go.etcd.io/etcd/server/v3/lease"
	"go.etcd.io/etcd/server/v3/storage/backend"
	"go.etcd.io/etcd/server/v3/storage/mvcc"
	"go.etcd.io/etcd/server/v3/storage/schema"
	"go.uber.org/zap"

	"github.com/lifeboat-fleet/lifeboat/services/backup/internal/restore"
	"github.com/lifeboat-fleet/lifeboat/services/backup/internal/source/boltscan"
	"github.com/lifeboat-fleet/lifeboat/services/backup/internal/throwaway"
)

// A page of keys is full when it has so many, or so many bytes. One key may be larger than that.
const (
	pageKeys  = 256
	pageBytes = 4 << 20
)

// view reads the keys of a snapshot with etcd's own store, without a server around it: nothing listens, and no lease expires.
type view struct {
	path string
	be   backend.Backend
	kv   mvcc.WatchableKV
	rev  int64
	// leases are the times that were granted, in seconds, by id.
	leases map[int64]int64
}

// fetchView writes a snapshot to a scratch folder and opens it there.
func fetchView(ctx context.Context, open restore.Open, scratch *throwaway.Scratch, size int64) (_ *view, err error) {
	if err = scratch.CheckRoom(RoomConsumed(size)); err != nil {
		return nil, err
	}
	src, err := open(ctx)
	if err != nil {
		return nil, fmt.Errorf("opening the snapshot: %w", err)
	}
	defer src.Close() // it was read to its end, or there is a better error
	path := filepath.Join(scratch.Dir(), "keys.db")
	if _, err = WriteSnapshot(ctx, src, path); err != nil {
		return nil, err
	}
	v, err := openView(ctx, path)
	if err != nil {
		return nil, errors.Join(err, os.Remove(path))
	}
	return v, nil
}

// openView opens a database, and writes to it.
func openView(ctx context.Context, path string) (*view, error) {
	if err := boltscan.CheckFile(path); err != nil {
		return nil, fmt.Errorf("the snapshot's database is damaged: %w", err)
	}
	opened := make(chan *view, 1)
	err := throwaway.WithinEtcd(ctx, func(log *zap.Logger) error {
		cfg := backend.DefaultBackendConfig(log)
		cfg.Path, cfg.UnsafeNoFsync, cfg.BackendFreelistType = path, true, bolt.FreelistMapType
		v := &view{path: path, be: backend.New(cfg), leases: make(map[int64]int64)}
		tx := v.be.BatchTx()
		tx.LockOutsideApply()
		schema.UnsafeCreateLeaseBucket(tx)
		for _, l := range schema.MustUnsafeGetAllLeases(tx) {
			v.leases[l.GetID()] = l.GetTTL()
		}
		tx.Unlock()
		v.kv = mvcc.New(log, v.be, &lease.FakeLessor{}, mvcc.StoreConfig{})
		v.rev = v.kv.Rev()
		opened <- v
		return nil
	})
	if err != nil {
		return nil, fmt.Errorf("opening the snapshot's database: %w", err)
	}
	return <-opened, nil
}

// close removes the file as well.
func (v *view) close() error {
	return errors.Join(v.kv.Close(), v.be.Close(), os.Remove(v.path))
}

// count is how many keys a span has.
func (v *view) count(ctx context.Context, sp span) (n int64, err error) {
	err = guarded(func() error {
		all, rerr := v.get(ctx, []byte(sp.lo), []byte(sp.hi), mvcc.RangeOptions{CountOnly: true})
		if rerr == nil {
			n = int64(all.Count)
		}
		return rerr
	})
	if err != nil {
		return 0, fmt.Errorf("counting the snapshot's keys: %w", err)
	}
	return n, nil
}

// page gives the first keys of a span, at least one unless there is none.
func (v *view) page(ctx context.Context, sp span) (page []*mvccpb.KeyValue, err error) {
	err = guarded(func() error {
		// The names come from memory. Only then are values read, until they are enough.
		names, rerr := v.get(ctx, []byte(sp.lo), []byte(sp.hi), mvcc.RangeOptions{Limit: pageKeys, FastKeysOnly: true})
		if rerr != nil {
			return rerr
		}
		bytes := 0
		for _, name := range names.KVs {
			one, rerr := v.get(ctx, name.GetKey(), nil, mvcc.RangeOptions{})
			if rerr != nil || len(one.KVs) != 1 {
				return errors.Join(fmt.Errorf("key %s", printable(string(name.GetKey()))), rerr)
			}
			page = append(page, one.KVs[0])
			if bytes += len(one.KVs[0].GetValue()); bytes >= pageBytes {
				break
			}
		}
		return nil
	})
	if err != nil {
		return nil, fmt.Errorf("reading the snapshot's keys: %w", err)
	}
	return page, nil
}

// get is a range at the snapshot's revision.
func (v *view) get(ctx context.Context, key, end []byte, o mvcc.RangeOptions) (*mvcc.RangeResult, error) {
	o.Rev = v.rev
	return v.kv.Range(ctx, key, end, o)
}

// guarded reads in a goroutine of its own: where the database is not what its index says, etcd gives up and ends the goroutine.
func guarded(read func() error) error {
	err := errors.New("etcd gave up reading it")
	done := make(chan struct{})
	go func() {
		defer close(done)
		gerr := throwaway.Guard(read)
		err = gerr
	}()
	<-done
	return err
}

// cursor reads a segment page by page.
type cursor struct {
	view *view
	seg  segment
	rest span // of the snapshot's keys that were not read yet
	page []*mvccpb.KeyValue
	end  bool
}

// head is the next key; nil at the end.
func (c *cursor) head(ctx context.Context) (*mvccpb.KeyValue, error) {
	if len(c.page) == 0 && !c.end {
		page, err := c.view.page(ctx, c.rest)
		if err != nil {
			return nil, err
		}
		if c.page, c.end = page, len(page) == 0; c.end {
			return nil, nil //nolint:nilnil // the end
		}
		c.rest.lo = string(page[len(page)-1].GetKey()) + "\x00"
	}
	if c.end {
		return nil, nil //nolint:nilnil // the end
	}
	return c.page[0], nil
}

// entry is a key of the snapshot, and the name it gets.
type entry struct {
	name string
	kv   *mvccpb.KeyValue
	// clash says that another key would get the same name.
	clash bool
}

// merged reads several segments in the order of the names that their keys get.
type merged struct{ cursors []*cursor }

func merge(v *view, segments []segment) *merged {
	m := &merged{}
	for _, seg := range segments {
		m.cursors = append(m.cursors, &cursor{view: v, seg: seg, rest: seg.span})
	}
	return m
}

// next gives all entries of the lowest name below hi: one, unless names clash; none at the end. An empty hi is no bound.
func (m *merged) next(ctx context.Context, hi string) ([]entry, error) {
	var lowest []entry
	var from []*cursor
	for _, c := range m.cursors {
		kv, err := c.head(ctx)
		if err != nil {
			return nil, err
		}
		if kv == nil {
			continue
		}
		name := c.seg.to(string(kv.GetKey()))
		if hi != "" && name >= hi || len(lowest) > 0 && name > lowest[0].name {
			continue
		}
		if len(lowest) > 0 && name < lowest[0].name {
			lowest, from = lowest[:0], from[:0]
		}
		lowest, from = append(lowest, entry{name: name, kv: kv}), append(from, c)
	}
	for i, c := range from {
		c.page = c.page[1:]
		lowest[i].clash = len(from) > 1
	}
	return lowest, nil
}
