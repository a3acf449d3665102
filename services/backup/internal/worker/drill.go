package worker

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"

	"github.com/lifeboat-fleet/lifeboat/fleet/bus"
	lifeboatv1 "github.com/lifeboat-fleet/lifeboat/proto/lifeboat/v1"
	"github.com/lifeboat-fleet/lifeboat/services/backup/internal/catalog"
	"github.com/lifeboat-fleet/lifeboat/services/backup/internal/drill"
	"github.com/lifeboat-fleet/lifeboat/services/backup/internal/pipeline"
	"github.com/lifeboat-fleet/lifeboat/services/backup/internal/store"
)

// drill restores a snapshot and compares. A drill that fails is a result, not an error: it is reported and not repeated.
func (w *Worker) drill(ctx context.Context, j job) error {
	m, err := w.Catalog.Find(ctx, j.target.Name, j.GetSnapshot())
	if err != nil {
		return terminalIf(err, catalog.ErrNoSnapshot, "no_snapshot")
	}
	ids, err := w.identities()
	if err != nil {
		return err
	}
	fetched := &fetch{}
	report := drill.Run(ctx, drill.Input{
		Manifest: m, DrillID: j.id, JobID: j.id, Version: w.Version, Dir: w.ScratchDir, Clock: w.Clock, TraceID: traceID(ctx),
		Open: fetched.open(func(ctx context.Context) (io.ReadCloser, error) { return OpenDecoded(ctx, w.Objects, m, ids) }),
	})
	if ctx.Err() != nil {
		// Interrupted, not failed: the next delivery runs it again.
		return context.Cause(ctx)
	}
	if !report.GetPassed() && fetched.err != nil {
		// The store failed, which says nothing about the snapshot.
		return fmt.Errorf("drilling %s: %w", m.GetId(), fetched.err)
	}
	if err = w.Catalog.AddDrill(ctx, report); err != nil {
		return err
	}
	verb, outcome := "passed", "passed"
	message := report.GetSummary()
	if !report.GetPassed() {
		verb, outcome, message = "failed", "failed", report.GetFailure()
	}
	err = w.Bus.Emit(ctx, &lifeboatv1.Event{
		Id: "drill." + verb + "." + j.id, Noun: "drill", Verb: verb, Target: j.target.Name, JobId: j.id, DrillId: j.id,
		SnapshotId: m.GetId(), RequestedBy: j.requestedBy(), Message: message,
		Detail: &lifeboatv1.Event_Drill{Drill: report},
	})
	if err != nil {
		return err
	}
	w.Logger.InfoContext(ctx, "drill ended", slog.String("target", j.target.Name), slog.String("drill_id", j.id),
		slog.String("snapshot_id", m.GetId()), slog.String("outcome", outcome), slog.String("result", message))
	if !report.GetPassed() {
		w.metrics.ended.WithLabelValues(string(j.work), j.target.Name, outcome).Inc()
		return nil
	}
	w.metrics.rto.WithLabelValues(j.target.Name).Set(report.GetRto().AsDuration().Seconds())
	w.passed(j, report.GetFinishedAt().AsTime().Sub(report.GetStartedAt().AsTime()))
	return nil
}

// fetch remembers an error of the store, as against one of the data.
type fetch struct{ err error }

func (f *fetch) open(open func(context.Context) (io.ReadCloser, error)) func(context.Context) (io.ReadCloser, error) {
	return func(ctx context.Context) (io.ReadCloser, error) {
		r, err := open(ctx)
		if err != nil {
			f.note(err)
			return nil, err
		}
		return &fetching{r, f}, nil
	}
}

func (f *fetch) note(err error) {
	for _, about := range []error{io.EOF, pipeline.ErrDamaged, pipeline.ErrNoIdentity, store.ErrNotFound} {
		if errors.Is(err, about) {
			return
		}
	}
	f.err = err
}

type fetching struct {
	io.ReadCloser
	f *fetch
}

func (r *fetching) Read(p []byte) (int, error) {
	n, err := r.ReadCloser.Read(p)
	if err != nil {
		r.f.note(err)
	}
	return n, err
}

// terminalIf marks an error as beyond retry when it is of a kind.
func terminalIf(err, kind error, reason string) error {
	if errors.Is(err, kind) {
		return bus.Terminal(reason, err)
	}
	return err
}
