package etcd

import (
	"context"
	"errors"
	"fmt"

	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"
	clientv3 "go.etcd.io/etcd/client/v3"

	"github.com/lifeboat-fleet/lifeboat/services/backup/internal/restore"
	"github.com/lifeboat-fleet/lifeboat/services/backup/internal/throwaway"
)

// maxRounds is how often a key is decided anew because somebody else was quicker.
const maxRounds = 20

// batch is tasks that are told of together, in their order. Its writes are one transaction, unless that cannot be.
type batch struct {
	tasks  []*task
	writes int
	done   chan struct{} // closed once the writes came to an end
	err    error         // why the restore cannot go on
}

// write carries out the writes of a batch.
func (r *run) write(ctx context.Context, b *batch) {
	defer close(b.done)
	b.err = throwaway.Guard(func() error {
		writes := make([]*task, 0, b.writes)
		for _, t := range b.tasks {
			if t.writes() {
				writes = append(writes, t)
			} else {
				t.settled = true
			}
		}
		return r.together(ctx, writes)
	})
}

// together writes several keys in one transaction. When it is refused, each half is tried, down to the keys that it was refused for.
func (r *run) together(ctx context.Context, tasks []*task) error {
	if len(tasks) == 1 {
		return r.one(ctx, tasks[0])
	}
	cmps, ops := make([]clientv3.Cmp, len(tasks)), make([]clientv3.Op, len(tasks))
	for i, t := range tasks {
		if err := r.lease(ctx, t, false); err != nil {
			return err
		}
		cmps[i], ops[i] = t.when(), t.then()
	}
	written, again, err := r.txn(ctx, cmps, ops)
	switch {
	case isFinal(ctx, err):
		return err
	case written:
		for _, t := range tasks {
			t.settled = true
		}
		return nil
	}
	for _, t := range tasks {
		if again && t.intended == "" {
			t.intended = t.item.Action
		}
	}
	if again && err == nil {
		// It was most likely carried out, and each key is found as it should be.
		for _, t := range tasks {
			if err := r.one(ctx, t); err != nil {
				return err
			}
		}
		return nil
	}
	half := len(tasks) / 2
	if err := r.together(ctx, tasks[:half]); err != nil {
		return err
	}
	return r.together(ctx, tasks[half:])
}

// one writes one key, as it was decided at first and then by what is there.
func (r *run) one(ctx context.Context, t *task) error {
	anew := t.intended != ""
	for range maxRounds {
		if anew {
			there, err := r.dest.get(ctx, t.name)
			switch {
			case isFinal(ctx, err):
				return err
			case err != nil:
				return t.refused(fmt.Errorf("reading what is there: %w", err))
			}
			r.decide.decide(t, there)
			if !t.writes() {
				if t.item.Action == restore.Same && t.intended != "" {
					t.item.Action = t.intended // it is what was written
				}
				t.settled = true
				return nil
			}
		}
		done, err := r.attempt(ctx, t)
		if done || err != nil {
			return err
		}
		anew = true
	}
	return t.refused(errors.New("somebody else changed it again and again meanwhile"))
}

// attempt writes one key as it was decided, and says whether that is settled.
func (r *run) attempt(ctx context.Context, t *task) (bool, error) {
	if err := r.lease(ctx, t, false); err != nil {
		return false, err
	}
	for regranted := false; ; regranted = true {
		written, again, err := r.txn(ctx, []clientv3.Cmp{t.when()}, []clientv3.Op{t.then()})
		if again && t.intended == "" {
			t.intended = t.item.Action
		}
		switch {
		case isFinal(ctx, err):
			return false, err
		case errors.Is(err, rpctypes.ErrLeaseNotFound) && !regranted:
			// It was granted, and its time has passed since.
			if err = r.lease(ctx, t, true); err != nil {
				return false, err
			}
		case err != nil:
			return true, t.refused(explain(err))
		default:
			t.settled = written
			return written, nil
		}
	}
}

// refused settles a task that could not be written.
func (t *task) refused(err error) error {
	t.fail(err)
	t.settled = true
	return nil
}

// lease makes sure that the lease of a key is there. Why it cannot be is told by the write that needs it.
func (r *run) lease(ctx context.Context, t *task, anew bool) error {
	id := t.kv.GetLease()
	if id == 0 {
		return nil
	}
	if err := r.dest.grant(ctx, id, r.view.leases[id], anew); isFinal(ctx, err) {
		return err
	}
	return nil
}

// txn writes under conditions. again says that an attempt before may have been carried out.
func (r *run) txn(ctx context.Context, cmps []clientv3.Cmp, ops []clientv3.Op) (written, again bool, err error) {
	var resp *clientv3.TxnResponse
	again, err = r.dest.try(ctx, "writing keys", func(ctx context.Context) (terr error) {
		resp, terr = r.dest.client.Txn(ctx).If(cmps...).Then(ops...).Commit()
		return terr
	})
	return err == nil && resp.Succeeded, again, err
}

// isFinal says whether an error ends the restore, and not only one attempt.
func isFinal(ctx context.Context, err error) bool {
	if err == nil {
		return false
	}
	_, ok := errors.AsType[*stop](err)
	return ok || ctx.Err() != nil
}

// explain says what would help.
func explain(err error) error {
	switch {
	case tooLarge(err):
		return fmt.Errorf("the destination takes no request as large as this key needs (--max-request-bytes): %w", err)
	case errors.Is(err, rpctypes.ErrPermissionDenied):
		return fmt.Errorf("the user of the destination may not read and write it: %w", err)
	}
	return err
}

// tell passes on what became of a batch, and returns how many of the snapshot's keys it had. What is not known of a batch whose
// writes were broken off is not told.
func (b *batch) tell(rec *restore.Recorder) int64 {
	var keys int64
	for _, t := range b.tasks {
		if b.err != nil && !t.settled {
			continue
		}
		rec.Item(t.item)
		if t.kv != nil {
			keys++
			rec.Bytes(int64(len(t.kv.GetKey()) + len(t.kv.GetValue())))
		}
	}
	return keys
}
