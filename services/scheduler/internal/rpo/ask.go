package rpo

import (
	"cmp"
	"context"
	"errors"
	"log/slog"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/lifeboat-fleet/lifeboat/fleet/bus"
	lifeboatv1 "github.com/lifeboat-fleet/lifeboat/proto/lifeboat/v1"
)

const (
	// How many questions are on their way at once. Each is a listing of the bucket for a worker.
	questions = 8
	// How long to wait before those are asked again that nobody has answered.
	askAgain = 10 * time.Second
	// How many questions find out whether a worker is there.
	probes = 16
)

// askAll asks workers what the bucket knows of targets of which the audit log knows no snapshot, until the context ends.
func (w *Watch) askAll(ctx context.Context) error {
	var names []string
	alone := false // nobody answered the last questions
	for ctx.Err() == nil {
		if len(names) == 0 {
			names = w.unsure()
		}
		ask := names
		if alone {
			// While nobody is there a few are asked in turn: with many targets even to sort them would be work.
			ask = names[:min(probes, len(names))]
		}
		answers, failures := w.askEach(ctx, ask)
		switch {
		case answers > 0 && alone:
			// Somebody is back: all of them, those first whose rpo ends first.
			alone, names = false, nil
			continue
		case failures == 0 && len(ask) < len(names):
			names = names[len(ask):] // these have been answered by a snapshot meanwhile
			continue
		case failures == 0:
			names = nil
			select {
			case <-ctx.Done():
			case <-w.ask:
			}
			continue
		}
		names = names[len(ask):]
		alone = answers == 0
		wait(ctx, askAgain)
		select {
		case <-w.ask:
			names = nil
		default:
		}
	}
	return nil
}

// askEach asks about targets, and gives up when the first questions find nobody to answer.
func (w *Watch) askEach(ctx context.Context, names []string) (answers, failures int64) {
	var g errgroup.Group
	g.SetLimit(questions)
	var answered, failed atomic.Int64
	var complain sync.Once // not of every target, when it is NATS that is away
	for _, name := range names {
		if ctx.Err() != nil || (answered.Load() == 0 && failed.Load() >= probes) {
			break
		}
		if !w.asksFor(name) {
			continue
		}
		g.Go(func() error {
			h, err := w.Bus.AskHistory(ctx, name)
			if err == nil {
				answered.Add(1)
				w.answer(name, h)
				return nil
			}
			failed.Add(1)
			if !errors.Is(err, bus.ErrNoWorker) && ctx.Err() == nil {
				complain.Do(func() {
					w.Logger.WarnContext(ctx, "could not ask a worker for a target's newest snapshot, trying again",
						slog.String("target", name), slog.Any("err", err))
				})
			}
			return nil
		})
	}
	_ = g.Wait() // the functions return nil
	return answered.Load(), failed.Load()
}

// asksFor says whether a target's snapshot is still a question.
func (w *Watch) asksFor(name string) bool {
	w.mu.Lock()
	defer w.mu.Unlock()
	r := w.book.record(name)
	return r.watched && !r.sure
}

// unsure are the targets to ask about, in the order in which their rpo ends.
func (w *Watch) unsure() []string {
	w.mu.Lock()
	defer w.mu.Unlock()
	if !w.caughtUp {
		return nil
	}
	var all []*record
	for _, r := range w.book.records {
		if r.watched && !r.sure {
			all = append(all, r)
		}
	}
	end := func(r *record) int64 {
		if r.rpo == 0 {
			return never
		}
		return r.since() + int64(r.rpo)
	}
	slices.SortFunc(all, func(a, b *record) int { return cmp.Or(cmp.Compare(end(a), end(b)), cmp.Compare(a.name, b.name)) })
	names := make([]string, len(all))
	for i, r := range all {
		names[i] = r.name
	}
	return names
}

// answer takes in what the bucket knows of a target.
func (w *Watch) answer(name string, h *lifeboatv1.History) {
	w.mu.Lock()
	defer w.mu.Unlock()
	r := w.book.record(name)
	if at := h.GetSnapshotStartedAt(); at != nil {
		r.good = max(r.good, min(at.AsTime().UnixNano(), w.now())) // a worker's clock may be ahead
	}
	r.sure = true
	w.schedule(r, 0)
}
