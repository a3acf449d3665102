package worker

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"strings"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/promauto"

	"github.com/lifeboat-fleet/lifeboat/fleet/bus"
	lifeboatv1 "github.com/lifeboat-fleet/lifeboat/proto/lifeboat/v1"
	"github.com/lifeboat-fleet/lifeboat/services/backup/internal/catalog"
	"github.com/lifeboat-fleet/lifeboat/services/backup/internal/retention"
	"github.com/lifeboat-fleet/lifeboat/services/backup/internal/store"
)

const (
	// The S3 permissions of a prune worker, for the message when one is missing.
	pruneRights = "s3:ListBucket, s3:ListBucketVersions, s3:ListBucketMultipartUploads, s3:GetObject, s3:GetObjectVersion, s3:GetObjectRetention, " +
		"s3:GetObjectLegalHold, s3:DeleteObject, s3:DeleteObjectVersion and s3:AbortMultipartUpload"
	reasonDenied = "denied"
	// How much one job deletes at most, so that its plan fits into one event. The next job goes on.
	maxDeletions = 5000
	maxOrphans   = 10_000
)

// place is a bucket that is pruned.
type place struct {
	// name is "" for the first bucket, and "copy" for the second one.
	name    string
	catalog *catalog.Catalog
	remover store.Remover
	// besides is the first bucket, when this is the second one.
	besides *firstPlace
}

// firstPlace is what a second bucket follows: it keeps what the first one keeps.
type firstPlace struct {
	layout    catalog.Layout
	survivors []catalog.Snapshot
}

// noun is what the snapshots here are called in events.
func (p place) noun() string {
	if p.name == "" {
		return "snapshot"
	}
	return p.name
}

// verb tells apart what happens here from the same in the first bucket.
func (p place) verb(v string) string {
	if p.name == "" {
		return v
	}
	return p.name + "-" + v
}

func (p place) attributes(more map[string]string) map[string]string {
	if p.name != "" {
		more["store"] = p.name
	}
	return more
}

type pruneMetrics struct {
	pruned  *prometheus.CounterVec
	freed   *prometheus.CounterVec
	orphans *prometheus.CounterVec
	held    *prometheus.GaugeVec
}

func newPruneMetrics(f promauto.Factory) pruneMetrics {
	return pruneMetrics{
		pruned: f.NewCounterVec(prometheus.CounterOpts{
			Name: "lifeboat_pruned_snapshots_total", Help: "Snapshots that retention deleted.",
		}, []string{"target"}),
		freed: f.NewCounterVec(prometheus.CounterOpts{
			Name: "lifeboat_pruned_bytes_total", Help: "Stored bytes freed by deleting snapshots and orphans.",
		}, []string{"target"}),
		orphans: f.NewCounterVec(prometheus.CounterOpts{
			Name: "lifeboat_pruned_orphans_total", Help: "Stored things deleted that no snapshot needed.",
		}, []string{"target"}),
		held: f.NewGaugeVec(prometheus.GaugeOpts{
			Name: "lifeboat_prune_held", Help: "1 while nothing is deleted until somebody has looked at the target.",
		}, []string{"target"}),
	}
}

// prune applies retention and removes orphans. What survives a crash at each step:
//
//  1. The claim of the target's prune is held, and confirmed before each deletion: a worker that was given up for dead
//     stops at its next step.
//  2. Everything below the target's folder is listed, and the plan made. One event tells of the whole plan beforehand.
//  3. Of each snapshot the manifest goes first: from then on it does not exist. Its event follows at once. A crash between
//     the two: the next run finds in the plan's event that the snapshot is gone and was not told of, and tells of it.
//  4. Its marks, reports and the data that no other manifest names follow. A crash: they are orphans, which a later run
//     removes. At no time is there a manifest without its data.
//  5. Orphans go last, each after an event of its own.
func (w *Worker) prune(ctx context.Context, j job) error {
	begin := w.Clock()
	if w.Remover == nil {
		return bus.Terminal("unsupported", &rejectedError{errors.New("this worker has no right to delete; nothing was done")})
	}
	here := &pruning{Worker: w, job: j, place: place{catalog: w.Catalog, remover: w.Remover}}
	err := here.run(ctx)
	message := here.summary()
	// When the first bucket is empty, the second one may hold all that is left, and is not touched.
	if err == nil && here.Plan.Held == "" && len(here.remaining()) > 0 && w.Copy != nil && w.Copy.Remover != nil {
		there := &pruning{Worker: w, job: j, place: place{
			name: "copy", catalog: w.Copy.Catalog, remover: w.Copy.Remover,
			besides: &firstPlace{layout: w.Catalog.Layout, survivors: here.remaining()},
		}}
		err = there.run(ctx)
		message += "; in the second bucket: " + there.summary()
	}
	if errors.Is(err, store.ErrDenied) {
		return bus.Terminal(reasonDenied, fmt.Errorf("pruning %s: %w; a prune worker needs %s", j.target.Name, err, pruneRights))
	}
	if err != nil {
		err = fmt.Errorf("pruning %s: %w", j.target.Name, err)
		w.interrupted(ctx, j, err)
		return err
	}
	return w.pruneEnded(ctx, here, message, begin)
}

// pruning is one run on one bucket.
type pruning struct {
	*Worker
	*Survey
	job   job
	place place

	deleted []string
	orphans int
	// freed counts stored bytes; locked what object lock protects; left what was not touched because it changed meanwhile.
	freed  int64
	locked int
	left   int
	errs   []error
}

// run makes the plan and carries it out. It goes on after an error about one object, and returns all of them at the end.
func (p *pruning) run(ctx context.Context) (err error) {
	target := p.job.target
	if p.Survey, err = survey(ctx, p.place, target, p.Clock()); err != nil {
		return err
	}
	if err = p.tellOfInterrupted(ctx); err != nil {
		return err
	}
	if p.Plan.Held != "" {
		return p.tellOfPlan(ctx, nil, nil)
	}
	doomed := p.Plan.Delete()
	doomed = doomed[:min(len(doomed), maxDeletions)]
	p.Orphans = p.Orphans[:min(len(p.Orphans), maxOrphans)]
	if err := p.tellOfPlan(ctx, doomed, p.Orphans); err != nil {
		return err
	}
	byID := map[string]catalog.Snapshot{}
	for _, s := range p.inventory.Snapshots {
		byID[s.GetId()] = s
	}
	for _, id := range doomed {
		if err := p.step(ctx, func() error { return p.deleteSnapshot(ctx, byID[id]) }); err != nil {
			return err
		}
	}
	for _, o := range p.Orphans {
		if err := p.step(ctx, func() error { return p.deleteOrphan(ctx, o) }); err != nil {
			return err
		}
	}
	return errors.Join(p.errs...)
}

// step does one deletion, as long as this delivery of the job holds the claim. An error ends the run when every further step
// would fail as well, or must not be taken.
func (p *pruning) step(ctx context.Context, do func() error) error {
	if err := p.job.claim.Confirm(ctx); err != nil {
		return err
	}
	err := do()
	if err == nil {
		return nil
	}
	if ctx.Err() != nil {
		return context.Cause(ctx)
	}
	_, fatal := errors.AsType[*stopError](err)
	if fatal || errors.Is(err, store.ErrDenied) || errors.Is(err, store.ErrNoBucket) {
		return err
	}
	p.errs = append(p.errs, err)
	return nil
}

// stopError ends a run: what it depends on is gone.
type stopError struct{ error }

func (e *stopError) Unwrap() error { return e.error }

// tellOfPlan publishes what is about to be deleted, before anything is; also that it is nothing.
func (p *pruning) tellOfPlan(ctx context.Context, doomed []string, orphans []catalog.Orphan) error {
	var bytes int64
	for _, o := range orphans {
		bytes += o.Bytes
	}
	err := p.Bus.Emit(ctx, &lifeboatv1.Event{
		Id:   fmt.Sprintf("prune.%s.%s.%s", p.place.verb("started"), p.job.id, p.job.delivery()),
		Noun: "prune", Verb: p.place.verb("started"), Target: p.job.target.Name, JobId: p.job.id, RequestedBy: p.job.requestedBy(),
		Message: fmt.Sprintf("deleting %d of %s, which nothing keeps, and %s of %d bytes", len(doomed),
			several(len(p.Plan.Verdicts), "snapshot"), several(len(orphans), "orphan"), bytes),
		Attributes: p.job.attributes(p.place.attributes(map[string]string{
			"snapshots": strings.Join(doomed, " "), "orphans": fmt.Sprint(len(orphans)),
		})),
	})
	if err != nil {
		return fmt.Errorf("recording what is to be deleted: %w", err)
	}
	return nil
}

// tellOfInterrupted tells of the snapshot that an earlier run deleted and died before it could say so. Runs delete in the
// order of their plan and tell of each before the next, so it stands behind the newest one told of.
func (p *pruning) tellOfInterrupted(ctx context.Context) error {
	started, told := &lifeboatv1.Event{}, &lifeboatv1.Event{}
	for subject, into := range map[string]*lifeboatv1.Event{
		bus.EventSubject("prune", p.place.verb("started"), p.job.target.Name): started,
		bus.EventSubject(p.place.noun(), "deleted", p.job.target.Name):        told,
	} {
		if _, _, err := p.Bus.Last(ctx, bus.StreamEvents, subject, into); err != nil {
			return err
		}
	}
	planned := strings.Fields(started.GetAttributes()["snapshots"])
	for _, id := range planned[1+slices.Index(planned, told.GetSnapshotId()):] {
		if slices.ContainsFunc(p.inventory.Snapshots, func(s catalog.Snapshot) bool { return s.GetId() == id }) {
			continue
		}
		message := fmt.Sprintf("snapshot %s is gone: a run that was to delete it ended before it could say so, or somebody else deleted it", id)
		if err := p.tellDeleted(ctx, id, 0, message); err != nil {
			return err
		}
	}
	return nil
}

func (p *pruning) tellDeleted(ctx context.Context, id string, bytes int64, message string) error {
	err := p.Bus.Emit(ctx, &lifeboatv1.Event{
		Id: fmt.Sprintf("%s.deleted.%s.%s", p.place.noun(), p.job.target.Name, id), Noun: p.place.noun(), Verb: "deleted", Target: p.job.target.Name, JobId: p.job.id,
		SnapshotId: id, RequestedBy: p.job.requestedBy(), Message: message,
		Attributes: p.job.attributes(p.place.attributes(map[string]string{"freed_bytes": fmt.Sprint(bytes)})),
	})
	if err != nil {
		return &stopError{fmt.Errorf("recording that %s was deleted: %w", id, err)}
	}
	return nil
}

// remaining are the snapshots that are still there.
func (p *pruning) remaining() []catalog.Snapshot {
	return slices.DeleteFunc(slices.Clone(p.inventory.Snapshots), func(s catalog.Snapshot) bool {
		return slices.Contains(p.deleted, s.GetId())
	})
}

// summary says in a sentence what was done.
func (p *pruning) summary() string {
	if p.Survey == nil {
		return ""
	}
	var bytes int64
	for _, o := range p.Orphans {
		bytes += o.Bytes
	}
	if p.Plan.Held != "" {
		return fmt.Sprintf("%s; found %s of %d bytes", p.Plan.Held, several(len(p.Orphans), "orphan"), bytes)
	}
	s := fmt.Sprintf("deleted %s and %s, freed %d bytes; %s left", several(len(p.deleted), "snapshot"),
		several(p.orphans, "orphan"), p.freed, several(len(p.inventory.Snapshots)-len(p.deleted), "snapshot"))
	if p.locked > 0 {
		s += fmt.Sprintf("; object lock protects %d more", p.locked)
	}
	if p.left > 0 {
		s += fmt.Sprintf("; spared %d, because somebody changed them meanwhile or a snapshot is being taken", p.left)
	}
	if len(p.Hidden) > 0 {
		s += fmt.Sprintf("; spared %s that somebody hid with delete markers: %s", several(len(p.Hidden), "snapshot"),
			strings.Join(p.Hidden, ", "))
	}
	return s
}

func several(n int, noun string) string {
	if n == 1 {
		return "1 " + noun
	}
	return fmt.Sprintf("%d %ss", n, noun)
}

// pruneEnded tells how it ended.
func (w *Worker) pruneEnded(ctx context.Context, p *pruning, message string, begin time.Time) error {
	e := &lifeboatv1.Event{
		Id: "prune.passed." + p.job.id, Noun: "prune", Verb: "passed", Target: p.job.target.Name, JobId: p.job.id,
		RequestedBy: p.job.requestedBy(), Message: message,
		Attributes: p.job.attributes(map[string]string{
			"kept": fmt.Sprint(len(p.remaining())), "deleted": fmt.Sprint(len(p.deleted)), "orphans": fmt.Sprint(p.orphans),
			"freed_bytes": fmt.Sprint(p.freed), "locked": fmt.Sprint(p.locked), "hidden": fmt.Sprint(len(p.Hidden)),
		}),
	}
	held := p.Plan.Held != "" && p.Plan.Held != retention.NoPolicy
	switch {
	case held && p.Plan.Shrunk != "":
		e.Id, e.Verb, e.SnapshotId = "prune.held."+p.job.id, "held", p.Plan.Shrunk
	case held: // no snapshot is good
		e.Id, e.Verb = "prune.failed."+p.job.id, "failed"
	}
	if err := w.Bus.Emit(ctx, e); err != nil {
		return err
	}
	w.Logger.InfoContext(ctx, "prune ended", slog.String("target", p.job.target.Name), slog.String("job_id", p.job.id),
		slog.String("outcome", e.GetVerb()), slog.String("result", message))
	gauge := w.metrics.held.WithLabelValues(p.job.target.Name)
	gauge.Set(0)
	if held {
		gauge.Set(1)
		w.metrics.ended.WithLabelValues(string(p.job.work), p.job.target.Name, "held").Inc()
		return nil
	}
	w.passed(p.job, w.Clock().Sub(begin))
	return nil
}
