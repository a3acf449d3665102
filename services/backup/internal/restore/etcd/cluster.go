package etcd

import (
	"context"
	"errors"
	"fmt"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"

	"github.com/lifeboat-fleet/lifeboat/fleet/config"
	"github.com/lifeboat-fleet/lifeboat/services/backup/internal/restore"
	etcdsource "github.com/lifeboat-fleet/lifeboat/services/backup/internal/source/etcd"
	"github.com/lifeboat-fleet/lifeboat/services/backup/internal/throwaway"
)

// settings are what tests may want otherwise.
type settings struct {
	// inFlight is how many transactions wait for their answers at once.
	inFlight int
	// patience is how long the destination may not answer before the restore gives up.
	patience time.Duration
}

func defaults() settings { return settings{inFlight: 8, patience: time.Minute} }

// ToCluster brings the selected keys of a snapshot into a running cluster, by the rules of package restore. open is called once;
// size is the snapshot's length in bytes. Of the scratch folder it needs RoomConsumed(size), and leaves nothing there.
//
// The snapshot and the destination are gone through side by side in the order of keys, a page of each at a time. Writes go in
// transactions that happen as a whole and only while every key in them is as it was seen, several at once:
//
//   - When one is refused because a key has changed since, its keys are read again and decided anew, one by one.
//   - When its answer was lost it is sent again. Had it been carried out, its keys are there as they should be, and count as
//     written.
//   - A key that the destination does not take (too large, or not permitted to the user) is Failed, and the others go on.
//
// The error says why the restore did not come to its end: the snapshot is damaged, or the destination has no space left, does not
// answer for a minute, or refuses the user. What was written until then stays, and counts in the summary; another run finds it the
// same. It is restore.ErrNotEmpty when a whole restore would have met anything at the destination that is not in the snapshot or is
// otherwise there; the items then are what is in the way. It is restore.ErrNothingSelected when a part of the selection fits no key
// of the snapshot; nothing is written then either.
//
// Keys belong to etcd's key space only: users, roles and members of the snapshot are not restored by this. A key's version and its
// revisions are the destination's own.
func ToCluster(
	ctx context.Context, dest config.Etcd, open restore.Open, scratch *throwaway.Scratch, size int64, sel Selection, o restore.Options,
) (restore.Summary, error) {
	return toCluster(ctx, defaults(), dest, open, scratch, size, sel, o)
}

func toCluster(
	ctx context.Context, set settings, dest config.Etcd, open restore.Open, scratch *throwaway.Scratch, size int64, sel Selection,
	o restore.Options,
) (_ restore.Summary, err error) {
	client, err := etcdsource.Dial(ctx, dest)
	if err != nil {
		return restore.Summary{}, fmt.Errorf("connecting to the destination: %w", err)
	}
	defer func() { err = errors.Join(err, ignoreCanceled(client.Close())) }()
	v, err := fetchView(ctx, open, scratch, size)
	if err != nil {
		return restore.Summary{}, err
	}
	defer func() { err = errors.Join(err, v.close()) }()
	r := &run{
		set: set, view: v, sel: sel, o: o,
		dest:   &destination{client: client, patience: set.patience, granted: make(map[int64]bool)},
		decide: decider{force: o.Force, leases: sel.Leases, ttl: v.leases},
	}
	if err = r.count(ctx); err != nil {
		return restore.Summary{}, err
	}
	if err = r.fits(ctx); err != nil {
		return restore.Summary{}, err
	}
	if o.Apply && !o.Force && sel.whole() {
		if summary, err := r.refuse(ctx); err != nil {
			return summary, err
		}
	}
	return r.pass(ctx, o)
}

// ignoreCanceled drops what closing a client says about a context that ended before.
func ignoreCanceled(err error) error {
	if errors.Is(err, context.Canceled) || errors.Is(err, context.DeadlineExceeded) {
		return nil
	}
	return err
}

// run is one restore into a cluster.
type run struct {
	set    settings
	view   *view
	sel    Selection
	o      restore.Options
	dest   *destination
	decide decider
	total  int64
}

// count is for how many keys there are to be gone through.
func (r *run) count(ctx context.Context) error {
	for _, seg := range r.sel.segments() {
		n, err := r.view.count(ctx, seg.span)
		if err != nil {
			return err
		}
		r.total += n
	}
	return nil
}

// fits is restore.ErrNothingSelected when a part of the selection is about no key of the snapshot. Everything fits even one that
// holds nothing.
func (r *run) fits(ctx context.Context) error {
	var prefixes []string
	for _, p := range r.sel.Prefixes {
		n, err := r.view.count(ctx, spanOf(p))
		if err != nil {
			return err
		}
		if n == 0 && p != "" {
			prefixes = append(prefixes, p)
		}
	}
	var renames []restore.Rename
	for _, rename := range r.sel.Rename {
		var keys int64
		for _, seg := range r.sel.segments() {
			// A segment lies within the rename, or outside of it.
			if !spanOf(rename.Old).holds(seg.lo) {
				continue
			}
			n, err := r.view.count(ctx, seg.span)
			if err != nil {
				return err
			}
			keys += n
		}
		if keys == 0 && rename.Old != "" {
			renames = append(renames, rename)
		}
	}
	return restore.NothingSelected(prefixes, renames)
}

// refuse compares without writing. The error is about what is in the way of a restore of everything.
func (r *run) refuse(ctx context.Context) (restore.Summary, error) {
	var resp *clientv3.GetResponse
	_, err := r.dest.try(ctx, "counting the keys", func(ctx context.Context) (gerr error) {
		resp, gerr = r.dest.client.Get(ctx, "", clientv3.WithPrefix(), clientv3.WithCountOnly())
		return gerr
	})
	if err != nil {
		return restore.Summary{}, fmt.Errorf("counting the keys of %s: %w", r.dest.at(), err)
	}
	if resp.Count == 0 {
		return restore.Summary{}, nil
	}
	o := r.o
	o.Apply, o.Progress = false, nil
	o.Item = func(i restore.Item) {
		// What is told here is told once: a restore that meets any of these ends here.
		if r.o.Item != nil && (i.Action == restore.Differs || i.Action == restore.Extra) {
			r.o.Item(i)
		}
	}
	s, err := r.pass(ctx, o)
	if err == nil && s.Differs+s.Extra > 0 {
		err = restore.NotEmpty(s)
	}
	return s, err
}

// pass goes through everything once. Batches are made in one goroutine, written in several, and told here in their order.
func (r *run) pass(ctx context.Context, o restore.Options) (restore.Summary, error) {
	rec := &restore.Recorder{Options: o}
	running, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	p := &planner{run: r, apply: o.Apply, out: make(chan *batch, r.set.inFlight)}
	go func() {
		defer close(p.out)
		p.err = throwaway.Guard(func() error { return p.plan(running) })
	}()
	var done int64
	var failed error
	for b := range p.out {
		<-b.done
		if failed == nil && b.err != nil {
			failed = b.err
			// Nothing more is written.
			cancel(failed)
		}
		done += b.tell(rec)
		rec.Progress(done, r.total)
	}
	switch {
	case failed == nil && p.err == nil:
		return rec.Summary(), nil
	case ctx.Err() != nil:
		failed = fmt.Errorf("the restore was interrupted: %w", context.Cause(ctx))
	case failed == nil:
		failed = p.err
	}
	return rec.Summary(), failed
}
