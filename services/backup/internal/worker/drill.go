package worker

import (
	"context"
	"errors"
	"io"
	"log/slog"

	"github.com/lifeboat-fleet/lifeboat/fleet/bus"
	lifeboatv1 "github.com/lifeboat-fleet/lifeboat/proto/lifeboat/v1"
	"github.com/lifeboat-fleet/lifeboat/services/backup/internal/catalog"
	"github.com/lifeboat-fleet/lifeboat/services/backup/internal/drill"
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
	report := drill.Run(ctx, drill.Input{
		Manifest: m, DrillID: j.id, JobID: j.id, Version: w.Version, Dir: w.ScratchDir, Clock: w.Clock, TraceID: traceID(ctx),
		Open: func(ctx context.Context) (io.ReadCloser, error) { return OpenDecoded(ctx, w.Objects, m, ids) },
	})
	if ctx.Err() != nil {
		// Interrupted, not failed: the next delivery runs it again.
		return context.Cause(ctx)
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

// terminalIf marks an error as beyond retry when it is of a kind.
func terminalIf(err, kind error, reason string) error {
	if errors.Is(err, kind) {
		return bus.Terminal(reason, err)
	}
	return err
}
