package consul

import (
	"context"
	"encoding/json"
	"fmt"
	"sync/atomic"

	"golang.org/x/sync/errgroup"
	"golang.org/x/sync/semaphore"

	"github.com/lifeboat-fleet/lifeboat/services/backup/internal/restore"
)

const (
	// maxOps is how many operations Consul takes in a transaction, by its documentation; 1.22 takes twice as many.
	maxOps = 64
	// maxBody is how large a transaction's body may be, unless limits.txn_max_req_len says otherwise.
	maxBody = 512 << 10
	// opRoom is more than an operation takes besides key and value.
	opRoom = 112
	// maxThings is how many keys that need no write are held with those that do.
	maxThings = 1024
	// inHand is how many bytes of keys and values are held for writing, as long as none is larger by itself.
	inHand = 16 << 20
)

// thing is one key on its way to being told.
type thing struct {
	item restore.Item
	size int64 // of the snapshot's value
	done bool  // it may be told
	ours bool  // it is the snapshot's, and not Extra
}

// write is a key that has to be written.
type write struct {
	thing      *thing
	key, value []byte // as JSON, with its quotes; as base64, without
	flags      uint64
	index      uint64 // what the key has to be at; 0: absent
	lost       bool   // it may have been written without an answer
	tries      int
}

// room is no less than what a write takes of a body.
func (w *write) room() int { return len(w.key) + len(w.value) + opRoom }

// batch is what is written in one transaction, with the things before and between, in the snapshot's order.
type batch struct {
	things []*thing
	writes []*write
	room   int
	weight int64
	done   chan struct{} // closed once nothing more will be decided
}

// writer makes batches of the steps of a join, writes several at once, and tells them in order.
type writer struct {
	ctx   context.Context //nolint:containedctx // that of the group, which ends when one of it fails
	dest  *destination
	rec   *restore.Recorder
	force bool
	total int64

	most    atomic.Int64 // bytes of a body; less than maxBody once the destination took no more
	memory  *semaphore.Weighted
	group   *errgroup.Group
	current *batch
	order   chan *batch
	told    chan struct{}
}

// newWriter starts one, with the context of its group; finish ends it.
func newWriter(ctx context.Context, group *errgroup.Group, d *destination, rec *restore.Recorder, force bool, total int64) *writer {
	w := &writer{ctx: ctx, group: group, dest: d, rec: rec, force: force, total: total, memory: semaphore.NewWeighted(inHand)}
	w.group.SetLimit(d.set.inFlight)
	w.most.Store(maxBody)
	w.current = &batch{done: make(chan struct{})}
	w.order, w.told = make(chan *batch, 2*d.set.inFlight), make(chan struct{})
	go w.tell()
	return w
}

// add takes a step of the join.
func (w *writer) add(s step) error {
	if s.action == restore.Differs && w.force {
		s.action = restore.Change
	}
	t := &thing{item: s.item(), ours: s.action != restore.Extra, size: s.entry.Size}
	if s.action != restore.Create && s.action != restore.Change {
		t.done = true
		w.current.things = append(w.current.things, t)
		if len(w.current.things) < maxThings {
			return nil
		}
		return w.flush()
	}
	wr, err := newWrite(s, t)
	if err != nil {
		return err
	}
	if len(w.current.writes) > 0 && int64(w.current.room+wr.room()) > w.most.Load() {
		if err := w.flush(); err != nil {
			return err
		}
	}
	b := w.current
	b.things, b.writes, b.room = append(b.things, t), append(b.writes, wr), b.room+wr.room()
	if len(b.writes) < maxOps && int64(b.room) < w.most.Load() {
		return nil
	}
	return w.flush()
}

func newWrite(s step, t *thing) (*write, error) {
	key := s.entry.Key
	if s.name != s.from {
		var err error
		if key, err = json.Marshal(s.name); err != nil {
			return nil, fmt.Errorf("naming %q: %w", s.name, err)
		}
	}
	text := make([]byte, 0, len(key)+len(s.entry.Value))
	text = append(append(text, key...), s.entry.Value...)
	return &write{
		thing: t, key: text[:len(key):len(key)], value: text[len(key):], flags: s.entry.Flags, index: s.there.index,
	}, nil
}

// flush has the batch at hand written.
func (w *writer) flush() error {
	b := w.current
	w.current = &batch{done: make(chan struct{})}
	b.weight = min(2*int64(b.room), inHand) // texts, and the body that is made of them
	if err := w.memory.Acquire(w.ctx, b.weight); err != nil {
		return context.Cause(w.ctx)
	}
	select {
	case w.order <- b:
	case <-w.ctx.Done():
		return context.Cause(w.ctx)
	}
	if len(b.writes) == 0 {
		w.memory.Release(b.weight)
		close(b.done)
		return nil
	}
	w.group.Go(func() error {
		defer close(b.done)
		defer w.memory.Release(b.weight)
		err := w.carryOut(b.writes)
		b.writes = nil
		return err
	})
	return nil
}

// finish waits for what is being written. err is why there is no more; nil when that was all.
func (w *writer) finish(err error) error {
	if err == nil {
		err = w.flush()
	}
	close(w.order)
	// What failed first canceled the rest.
	if failed := w.group.Wait(); failed != nil {
		err = failed
	}
	<-w.told
	return err
}

// tell passes on what was decided, in the order of the snapshot.
func (w *writer) tell() {
	defer close(w.told)
	var gone int64
	for b := range w.order {
		<-b.done
		var size int64
		for _, t := range b.things {
			if !t.done {
				continue // the restore failed before
			}
			w.rec.Item(t.item)
			if t.ours {
				gone++
				size += t.size
			}
		}
		w.rec.Bytes(size)
		w.rec.Progress(gone, w.total)
	}
}
