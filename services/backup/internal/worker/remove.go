package worker

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"time"

	"github.com/lifeboat-fleet/lifeboat/fleet/bus"
	"github.com/lifeboat-fleet/lifeboat/fleet/config"
	lifeboatv1 "github.com/lifeboat-fleet/lifeboat/proto/lifeboat/v1"
	"github.com/lifeboat-fleet/lifeboat/services/backup/internal/catalog"
	"github.com/lifeboat-fleet/lifeboat/services/backup/internal/store"
)

// confirmed says whether somebody confirmed that a snapshot's shrink is right.
func confirmed(s catalog.Snapshot) bool {
	return s.Marks[lifeboatv1.Mark_KIND_SHRINK_CONFIRMED].GetHolds()
}

// deleteSnapshot deletes one snapshot: its manifest, then what goes with it.
func (p *pruning) deleteSnapshot(ctx context.Context, s catalog.Snapshot) error {
	if ok, err := p.stillDoomed(ctx, s); !ok {
		return err
	}
	err := p.removeAll(ctx, p.inventory.Manifest(s.GetId()).Removal())
	if errors.Is(err, store.ErrLocked) {
		p.locked++
		return nil
	}
	if err != nil {
		// The answer may be lost, and the manifest with it.
		if _, gone := p.place.catalog.Manifest(context.WithoutCancel(ctx), p.job.target.Name, s.GetId()); !errors.Is(gone, catalog.ErrNoSnapshot) {
			return fmt.Errorf("deleting snapshot %s: %w", s.GetId(), errors.Join(err, unknown(gone)))
		}
	}
	p.inventory.Release(s)
	p.deleted = append(p.deleted, s.GetId())
	rest := p.inventory.Rest(s)
	bytes := size(p.inventory.Manifest(s.GetId()))
	for _, o := range rest {
		bytes += size(o)
	}
	// It does not exist any more, whatever becomes of this worker now.
	message := fmt.Sprintf("snapshot %s was deleted, because no rule of the target's retention keeps it; %d bytes freed", s.GetId(), bytes)
	if err = p.tellDeleted(context.WithoutCancel(ctx), s.GetId(), bytes, message); err != nil {
		return err
	}
	p.metrics.pruned.WithLabelValues(p.job.target.Name).Inc()
	p.count(size(p.inventory.Manifest(s.GetId())))
	p.Logger.InfoContext(ctx, "deleted a snapshot", slog.String("target", p.job.target.Name), slog.String("snapshot_id", s.GetId()),
		slog.String("store", p.place.name), slog.Int64("bytes", bytes))
	var errs []error
	for _, o := range rest {
		err := p.removeAll(ctx, o.Removal())
		switch {
		case errors.Is(err, store.ErrLocked):
			p.locked++
		case err != nil:
			errs = append(errs, err)
		default:
			p.count(size(o))
		}
	}
	return errors.Join(errs...)
}

// unknown ends a run when it is not known whether a manifest is still there: the next run finds out, and tells.
func unknown(err error) error {
	if err == nil {
		return nil
	}
	return &stopError{err}
}

// stillDoomed looks again at a snapshot that is about to be deleted: a plan takes its time to be carried out, and a pin that
// was set meanwhile was set in the belief that it protects. It also looks whether a good snapshot is really there that stays:
// if not, the listing that the plan was made from does not show this bucket.
func (p *pruning) stillDoomed(ctx context.Context, s catalog.Snapshot) (bool, error) {
	good := p.survivors()
	if len(good) == 0 {
		return false, &stopError{errors.New("no good snapshot would stay; nothing more is deleted")}
	}
	if _, err := p.place.catalog.Manifest(ctx, p.job.target.Name, good[len(good)-1]); err != nil {
		return false, &stopError{fmt.Errorf("looking for the snapshot that is to stay: %w", err)}
	}
	now, err := p.place.catalog.Snapshot(ctx, p.job.target.Name, s.GetId())
	if errors.Is(err, catalog.ErrNoSnapshot) {
		p.left++
		return false, nil // somebody else deleted it; what is left of it is an orphan
	}
	if err != nil {
		return false, err
	}
	if now.Pinned() || confirmed(now) != confirmed(s) || len(now.Drills) != len(s.Drills) {
		p.Logger.InfoContext(ctx, "leaving a snapshot that was changed since the plan was made",
			slog.String("target", p.job.target.Name), slog.String("snapshot_id", s.GetId()))
		p.left++
		return false, nil
	}
	return true, nil
}

// deleteOrphan removes what no snapshot needs. Its event comes first: nothing else would tell of it after a crash.
func (p *pruning) deleteOrphan(ctx context.Context, o catalog.Orphan) error {
	if needed, err := p.mayBeNeeded(ctx, o); needed || err != nil {
		return err
	}
	id := o.Upload.ID
	for _, v := range o.Versions {
		lock, err := p.place.remover.Lock(ctx, v)
		if err != nil {
			return err
		}
		if lock.Held(p.Clock()) {
			p.locked++
			return nil
		}
		id = v.ID
	}
	age := p.Clock().Sub(o.Since).Round(time.Second)
	err := p.Bus.Emit(ctx, &lifeboatv1.Event{
		Id: fmt.Sprintf("orphan.deleted.%s%s@%s", p.place.name, o.Key, id), Noun: "orphan", Verb: "deleted", Target: p.job.target.Name,
		JobId: p.job.id, SnapshotId: o.ID, RequestedBy: p.job.requestedBy(),
		Message: fmt.Sprintf("deleting %s (%s), %d bytes, %s old: no snapshot needs it", o.Key, o.Why, o.Bytes, age),
		Attributes: p.job.attributes(p.place.attributes(map[string]string{
			"key": o.Key, "bytes": fmt.Sprint(o.Bytes), "age_seconds": fmt.Sprintf("%.0f", age.Seconds()), "why": o.Why,
		})),
	})
	if err != nil {
		return &stopError{fmt.Errorf("recording that %s is deleted: %w", o.Key, err)}
	}
	if len(o.Versions) == 0 {
		err = p.place.remover.Abort(ctx, o.Upload)
	} else {
		err = p.removeAll(ctx, o.Versions)
	}
	if errors.Is(err, store.ErrLocked) {
		p.locked++
		return nil
	}
	if err != nil {
		return err
	}
	p.orphans++
	p.metrics.orphans.WithLabelValues(p.job.target.Name).Inc()
	p.count(o.Bytes)
	return nil
}

// mayBeNeeded looks again before an orphan is removed: a job for that very snapshot may be running, whatever the age of what
// an earlier attempt left, or may have written the manifest since.
func (p *pruning) mayBeNeeded(ctx context.Context, o catalog.Orphan) (bool, error) {
	claim := &lifeboatv1.ClaimState{}
	_, _, err := p.Bus.Last(ctx, bus.StreamJobs, bus.ClaimSubject(p.job.target.Name, config.WorkSnapshot), claim)
	if err != nil {
		return true, &stopError{fmt.Errorf("reading which snapshot is being taken: %w", err)}
	}
	running := []lifeboatv1.ClaimState_Phase{lifeboatv1.ClaimState_PHASE_RUNNING, lifeboatv1.ClaimState_PHASE_COMMITTING}
	if claim.GetJobId() == o.ID && slices.Contains(running, claim.GetPhase()) {
		p.left++
		return true, nil
	}
	if !o.Uncommitted {
		return false, nil
	}
	_, err = p.place.catalog.Manifest(ctx, p.job.target.Name, o.ID)
	if errors.Is(err, catalog.ErrNoSnapshot) {
		return false, nil
	}
	p.left++
	return true, err
}

// removeAll removes versions in the order given, and stops at the first that cannot be.
func (p *pruning) removeAll(ctx context.Context, all []store.Version) error {
	for _, v := range all {
		if ctx.Err() != nil {
			return context.Cause(ctx)
		}
		if err := p.place.remover.Remove(ctx, v); err != nil {
			return err
		}
	}
	return nil
}

func (p *pruning) count(bytes int64) {
	p.freed += bytes
	p.metrics.freed.WithLabelValues(p.job.target.Name).Add(float64(bytes))
}

func size(o catalog.Stored) (n int64) {
	for _, v := range o.Versions {
		n += v.Size
	}
	return n
}
