package worker

import (
	"context"
	"errors"
	"time"

	"go.opentelemetry.io/otel/attribute"
	"go.opentelemetry.io/otel/trace"

	"github.com/lifeboat-fleet/lifeboat/fleet/tracing"
	lifeboatv1 "github.com/lifeboat-fleet/lifeboat/proto/lifeboat/v1"
)

// The stages of a job that are measured, and have a span each. None is per chunk, part or object.
const (
	stageSlot     = "slot"
	stageClaim    = "claim"
	stageOpen     = "open"
	stageUpload   = "upload"
	stageReadBack = "read_back"
	stageCommit   = "commit"
	stageCopy     = "copy"
	stageRead     = "read" // by a verification
)

// stage does a part of a job.
func (w *Worker) stage(ctx context.Context, j job, name string, do func(context.Context) error) error {
	ctx, span := tracing.Start(ctx, name)
	begin := time.Now()
	err := do(ctx)
	if err == nil {
		w.metrics.stages.WithLabelValues(string(j.work), name).Observe(time.Since(begin).Seconds())
	}
	if errors.Is(err, errUnchanged) { // which is no failure
		span.SetAttributes(attribute.Bool("lifeboat.unchanged", true))
		span.End()
		return err
	}
	tracing.End(span, err)
	return err
}

// stored counts what an upload read and wrote.
func (p *part) stored(ctx context.Context, took time.Duration) {
	m, target := p.worker.metrics, p.job.target.Name
	for form, n := range map[string]int64{formRaw: p.data.GetRaw().GetBytes(), formStored: p.data.GetStored().GetBytes()} {
		m.moved.WithLabelValues(target, form).Add(float64(n))
		if took > 0 {
			m.pace.WithLabelValues(target, form).Set(float64(n) / took.Seconds())
		}
	}
	if span := trace.SpanFromContext(ctx); span.IsRecording() {
		span.SetAttributes(attribute.String("aws.s3.key", p.data.GetKey()), attribute.Int64("lifeboat.raw_bytes", p.data.GetRaw().GetBytes()),
			attribute.Int64("lifeboat.stored_bytes", p.data.GetStored().GetBytes()))
	}
}

// drillSpans tells of the phases of a drill, which are known when it has ended.
func drillSpans(ctx context.Context, report *lifeboatv1.DrillReport) {
	if !tracing.Enabled(ctx) {
		return
	}
	began := report.GetStartedAt().AsTime()
	for _, p := range report.GetPhases() {
		at := began.Add(p.GetBegan().AsDuration())
		_, span := tracing.Start(ctx, "drill "+p.GetName(), trace.WithTimestamp(at))
		span.End(trace.WithTimestamp(at.Add(p.GetTook().AsDuration())))
	}
	trace.SpanFromContext(ctx).SetAttributes(attribute.Bool("lifeboat.passed", report.GetPassed()),
		attribute.String("lifeboat.snapshot_id", report.GetSnapshotId()), attribute.Float64("lifeboat.rto_seconds", report.GetRto().AsDuration().Seconds()))
}
