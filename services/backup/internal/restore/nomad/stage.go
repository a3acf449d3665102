package nomad

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"sync"

	"github.com/lifeboat-fleet/lifeboat/services/backup/internal/restore"
)

// mode is what a run through the snapshot is for.
type mode int

const (
	// modeCheck looks for what an empty destination would not have.
	modeCheck mode = iota
	modePlan
	modeApply
)

// maxOvertaken is how often a thing is read again because somebody else changed it.
const maxOvertaken = 5

// skipError is why something is left out on purpose.
type skipError string

// Error is the reason.
func (e skipError) Error() string { return string(e) }

// outcome is what became of a thing.
type outcome struct {
	thing thing
	item  restore.Item
	quiet bool // it is there and only another thing needs it
	// lacking: it is not there, and could not be made.
	lacking bool
}

// stage goes through one kind.
func (r *run) stage(ctx context.Context, k *kind, m mode, rec *restore.Recorder) error {
	if m == modeCheck && !r.overlaps(k) {
		r.extra(k, rec)
		return nil
	}
	n := 1
	if k.parallel {
		n = workers
	}
	var total int64
	for _, k := range r.kinds {
		total += r.contents.count(k)
	}
	feed := func(ctx context.Context, yield func(thing) error) error { return r.contents.each(ctx, k, yield) }
	do := func(ctx context.Context, t thing) (outcome, error) { return r.settle(ctx, t, m) }
	err := ordered(ctx, n, feed, do, func(o outcome) { r.settled(o, m, rec, total) })
	if errors.Is(err, errGone) {
		return fmt.Errorf("%w; when it is back, run the restore again: what is done stays done", err)
	}
	if err != nil {
		return err
	}
	r.extra(k, rec)
	return nil
}

// overlaps says whether the destination may have one of the kind that the snapshot has, too.
func (r *run) overlaps(k *kind) bool {
	inv := r.there[k]
	if inv.absent != "" || k.skip != nil && k.id == kindToken {
		return false
	}
	if inv.unknown {
		return len(r.contents.names[k]) > 0
	}
	for n := range r.contents.names[k] {
		if p, ok := inv.names[n]; ok && !p.builtin {
			return true
		}
	}
	return false
}

// settled tells what became of a thing. One call at a time.
func (r *run) settled(o outcome, m mode, rec *restore.Recorder, total int64) {
	k, n := o.thing.kind, o.thing.name
	if m == modeCheck && o.item.Action == restore.Same {
		r.same[k][n] = o.item.Detail
	}
	if m != modeCheck {
		// Of what may be many, the workers read these maps, and nothing needs it.
		switch {
		case k.parallel:
		case o.item.Action == restore.Create:
			r.there[k].names[n] = presence{ask: n, label: o.thing.label, planned: true}
		case o.item.Action == restore.Skip:
			r.skipped[k][n] = true
		case o.lacking:
			r.failed[k][n] = true
		}
		rec.Bytes(int64(o.thing.size()))
		r.done++
		rec.Progress(r.done, total)
	}
	if !o.quiet {
		rec.Item(o.item)
	}
}

// settle decides what becomes of one thing, and does it. The error means that nothing more can be done at all.
func (r *run) settle(ctx context.Context, t thing, m mode) (outcome, error) {
	w := &writing{thing: t}
	o := outcome{thing: t, item: restore.Item{Kind: t.kind.title, Name: t.label}}
	if m != modeCheck { // which writes that map while others get here
		if detail, ok := r.same[t.kind][t.name]; ok {
			o.item.Action, o.item.Detail = restore.Same, detail
			return o, nil
		}
	}
	var err error
	if w.want, err = t.object(); err != nil {
		return o, fmt.Errorf("reading %s %s again: %w", t.kind.title, t.label, err)
	}
	w.want = w.want.without(t.kind.strip...)
	if err = r.hopeless(w, m); err == nil {
		err = r.try(ctx, w, m, &o)
	}
	skip, skipped := errors.AsType[skipError](err)
	switch {
	case skipped:
		o.item.Action, o.item.Detail = restore.Skip, skip.Error()
	case err != nil && ctx.Err() != nil:
		return o, r.dest.failed("restoring "+t.kind.title+" "+t.label, context.Cause(ctx))
	case errors.Is(err, errGone) && r.dest.leads(ctx) != nil: // else it is about this one thing
		return o, r.dest.failed("restoring "+t.kind.title+" "+t.label, err)
	case err != nil:
		// What was not to be seen may be there all the same.
		o.lacking = o.item.Action == restore.Create && w.seen == nil
		o.item.Action = restore.Failed
		if statusOf(err) == http.StatusForbidden {
			err = fmt.Errorf("%w; the token needs %s", err, t.kind.rights)
		}
		o.item.Err = err
	}
	o.quiet = !r.sel.has(t.kind, t.name) && o.item.Action != restore.Create && o.item.Action != restore.Failed
	return o, nil
}

// hopeless is why a thing cannot be restored, whatever the destination has.
func (r *run) hopeless(w *writing, m mode) error {
	k, n := w.thing.kind, w.thing.name
	inv := r.there[k]
	if inv.absent != "" {
		return skipError(inv.absent)
	}
	if k.skip != nil {
		if _, there := inv.names[n]; k.id == kindToken && there {
			return nil
		}
		if why := k.skip(w.want); why != "" {
			return skipError(why)
		}
	}
	return r.missing(k, n, w.want, m)
}

// try reads, compares and writes until nobody else changes the thing meanwhile.
func (r *run) try(ctx context.Context, w *writing, m mode, o *outcome) error {
	for overtaken := range maxOvertaken {
		err := r.dest.patiently(ctx, func() error { return r.once(ctx, w, m, overtaken > 0, o) })
		if !errors.Is(err, errChanged) {
			return err
		}
	}
	return fmt.Errorf("%w, each of %d times: run this again", errChanged, maxOvertaken)
}

// once is one try.
func (r *run) once(ctx context.Context, w *writing, m mode, again bool, o *outcome) (err error) {
	k := w.thing.kind
	w.seen, w.diff, w.warns = nil, nil, ""
	at, listed := r.there[k].names[w.thing.name]
	if k.naming == nil {
		at.ask = w.thing.name
	}
	// What was listed as absent may have come since. A guarded write finds out by itself.
	if listed || r.there[k].unknown || again || m == modeApply && !k.guarded && k.naming == nil {
		if w.seen, err = r.dest.read(ctx, k, at.ask); err != nil {
			return err
		}
	}
	if err := r.decide(ctx, w, &o.item); err != nil {
		return err
	}
	write := o.item.Action == restore.Create || o.item.Action == restore.Change
	if !write || m == modeCheck || !r.sel.has(k, w.thing.name) && w.seen != nil {
		return nil
	}
	if k.refuse != nil && (m == modeApply || k.id != kindJob || r.present(w)) {
		if err := k.refuse(ctx, r.dest, w, m); err != nil {
			return err
		}
	}
	if m == modeApply {
		if err := k.write(ctx, r.dest, w); err != nil {
			return err
		}
	}
	o.item.Detail = sentence(o.item.Detail, w.warns)
	return nil
}

// present says whether what a thing needs is at the destination already, so that Nomad can be asked about it.
func (r *run) present(w *writing) bool {
	if w.thing.kind.needs == nil {
		return true
	}
	for _, need := range w.thing.kind.needs(w.thing.name, w.want) {
		for _, k := range r.kinds {
			if k.id == need.kind && r.there[k].names[name{id: need.id}].planned {
				return false
			}
		}
	}
	return true
}

// decide compares.
func (r *run) decide(ctx context.Context, w *writing, item *restore.Item) (err error) {
	k := w.thing.kind
	if w.seen == nil {
		item.Action, item.Detail = restore.Create, ""
		return nil
	}
	switch {
	case k.id == kindToken:
	case k.differ != nil:
		w.diff, err = k.differ(ctx, r.dest, w)
	default:
		w.diff = differences(w.want, w.seen.without(k.strip...))
	}
	switch {
	case err != nil:
		return err
	case len(w.diff) == 0:
		item.Action, item.Detail = restore.Same, w.warns
		if k.id == kindMethod && hasSecret(w.want) {
			item.Detail = "but for its secret, which Nomad shows nobody"
		}
		return nil
	case k.builtin != nil && k.builtin(w.seen):
		item.Action, item.Detail = restore.Create, "instead of Nomad's own: "+list(w.diff)
		return nil
	case r.options.Force:
		item.Action = restore.Change
	default:
		item.Action = restore.Differs
	}
	item.Detail = "differs in " + list(w.diff)
	return nil
}

// sentence joins what is said about a thing.
func sentence(a, b string) string {
	if a == "" || b == "" {
		return a + b
	}
	return a + "; " + b
}

// answer is what became of one thing, or why nothing more can be done.
type answer struct {
	outcome outcome
	err     error
}

// ordered does something with everything that feed yields, up to n at once, and tells the outcomes in the order of the feed. The
// first error ends it; what was begun is waited for.
func ordered(
	ctx context.Context, n int, feed func(context.Context, func(thing) error) error,
	do func(context.Context, thing) (outcome, error), tell func(outcome),
) error {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	var wg sync.WaitGroup
	queue := make(chan chan answer, n-1)
	var fed error
	wg.Go(func() {
		defer close(queue)
		fed = feed(ctx, func(t thing) error {
			one := make(chan answer, 1)
			select {
			case queue <- one:
			case <-ctx.Done():
				return context.Cause(ctx)
			}
			wg.Go(func() {
				o, err := do(ctx, t)
				one <- answer{o, err}
			})
			return nil
		})
	})
	var first error
	for one := range queue {
		a := <-one
		switch {
		case a.err == nil:
			tell(a.outcome)
		case first == nil:
			first = a.err
			cancel(first)
		}
	}
	wg.Wait()
	if first != nil {
		return first
	}
	return fed
}
