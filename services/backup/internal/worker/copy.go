package worker

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"slices"

	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/timestamppb"

	lifeboatv1 "github.com/lifeboat-fleet/lifeboat/proto/lifeboat/v1"
	"github.com/lifeboat-fleet/lifeboat/services/backup/internal/catalog"
	"github.com/lifeboat-fleet/lifeboat/services/backup/internal/pipeline"
	"github.com/lifeboat-fleet/lifeboat/services/backup/internal/store"
)

// Copy is a second bucket that holds the same snapshots. Each manifest there describes the objects there, so that the second
// bucket is enough when the first one is lost.
type Copy struct {
	Objects Objects
	Catalog *catalog.Catalog
	// Remover deletes from it; only prune workers have the right to.
	Remover store.Remover
	// Capabilities is what the second store was seen to do; see Options.
	Capabilities func(context.Context) (store.Capabilities, error)
}

// copyError is a snapshot that is committed and could not be copied.
type copyError struct{ error }

func (e *copyError) Unwrap() error { return e.error }

// copyAll copies a snapshot that was just committed, and after it every earlier one that the second bucket lacks: it may have
// been away, or be new. Only then is it said that the copy passed.
//
// The newest goes first, and an earlier one that has rotted holds up no other: it is told of, and what is marked as damaged is
// not tried again.
func (w *Worker) copyAll(ctx context.Context, j job, newest *lifeboatv1.Manifest) error {
	target := newest.GetTarget()
	here, err := w.Catalog.IDs(ctx, target)
	if err != nil {
		return err
	}
	there, err := w.Copy.Catalog.IDs(ctx, target)
	if err != nil {
		return err
	}
	have := map[string]bool{}
	for _, id := range there {
		have[id] = true
	}
	for _, id := range slices.Backward(here) {
		if have[id] {
			continue
		}
		s, err := w.Catalog.Snapshot(ctx, target, id)
		if errors.Is(err, catalog.ErrNoSnapshot) {
			continue // retention has deleted it meanwhile
		}
		if err != nil {
			return err
		}
		if s.Damaged() {
			continue
		}
		err = w.copy(ctx, s.Manifest)
		if isDamage(err) && id != newest.GetId() {
			err = w.rotten(ctx, s.Manifest, j, err)
		}
		if err != nil {
			return fmt.Errorf("copying snapshot %s: %w", id, err)
		}
	}
	return w.copied(ctx, j, newest)
}

// copy brings one snapshot into the second bucket: its data, read back there, and then its manifest. What is there already is
// left.
func (w *Worker) copy(ctx context.Context, m *lifeboatv1.Manifest) error {
	c := w.Copy
	caps, err := c.Capabilities(ctx)
	if err != nil {
		return err
	}
	there := proto.CloneOf(m)
	there.Store = capabilities(caps)
	there.Verification = &lifeboatv1.Verification{Method: methodStored}
	for _, d := range parts(there) {
		from := d.GetKey()
		d.Key = c.Catalog.Rebase(w.Catalog.Layout, from)
		if err := w.copyObject(ctx, from, d); err != nil {
			return err
		}
		there.Verification.Bytes += d.GetStored().GetBytes()
	}
	there.Verification.At = timestamppb.New(w.Clock())
	there.RestoreCommands = restoreCommands(there)
	if err := c.Catalog.Commit(ctx, there); err != nil && !errors.Is(err, store.ErrPrecondition) {
		return err
	}
	w.Logger.InfoContext(ctx, "copied a snapshot", slog.String("target", m.GetTarget()), slog.String("snapshot_id", m.GetId()))
	return nil
}

func (w *Worker) copied(ctx context.Context, j job, m *lifeboatv1.Manifest) error {
	w.metrics.ended.WithLabelValues("copy", m.GetTarget(), "passed").Inc()
	return w.Bus.Emit(ctx, &lifeboatv1.Event{
		Id: "copy.passed." + m.GetId(), Noun: "copy", Verb: "passed", Target: m.GetTarget(), JobId: m.GetJobId(),
		SnapshotId: m.GetId(), RequestedBy: j.requestedBy(), Attributes: j.attributes(nil),
		Message: "snapshot " + m.GetId() + " is in the second bucket too, and so is every good one before it",
	})
}

// copyObject copies one object as it is stored, and reads the copy back. A copy that is there and whole is left.
func (w *Worker) copyObject(ctx context.Context, from string, d *lifeboatv1.Data) error {
	seen, err := w.Copy.Objects.Head(ctx, d.GetKey())
	cond, err := store.As(seen, err)
	if err != nil {
		return err
	}
	if !cond.Absent {
		switch err := w.checkCopy(ctx, d); {
		case err == nil:
			return nil
		case !isDamage(err):
			return err
		}
	}
	if err := w.send(ctx, from, d, cond); err != nil {
		return err
	}
	if err := w.checkCopy(ctx, d); err != nil {
		// Not wrapped: it says something about the second bucket, and nothing about the snapshot in the first.
		return errors.New("reading the copy back: " + err.Error())
	}
	return nil
}

func (w *Worker) checkCopy(ctx context.Context, d *lifeboatv1.Data) error {
	r, _, err := w.Copy.Objects.Get(ctx, d.GetKey())
	if err != nil {
		return err
	}
	defer r.Close()
	if err := pipeline.Check(r, d.GetStored()); err != nil {
		return fmt.Errorf("the copy %s: %w", d.GetKey(), err)
	}
	return nil
}

func (w *Worker) send(ctx context.Context, from string, d *lifeboatv1.Data, cond store.Condition) error {
	r, _, err := w.Objects.Get(ctx, from)
	if err != nil {
		return err
	}
	defer r.Close()
	// What differs from the manifest ends the upload before it is complete.
	_, err = w.Copy.Objects.Put(ctx, d.GetKey(), pipeline.Checked(r, d.GetStored()), d.GetStored().GetBytes(), cond)
	if err != nil {
		return fmt.Errorf("copying %s: %w", from, err)
	}
	return nil
}
