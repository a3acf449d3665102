package tracing_test

import (
	"context"
	"errors"
	"log/slog"
	"strings"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"go.opentelemetry.io/otel/codes"
	sdk "go.opentelemetry.io/otel/sdk/trace"
	"go.opentelemetry.io/otel/sdk/trace/tracetest"
	"go.opentelemetry.io/otel/trace"

	"github.com/lifeboat-fleet/lifeboat/fleet/tracing"
)

const parent = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"

// Without a tracer nothing is recorded; but whatever begins has a trace id, and whatever goes on keeps its own.
func TestWithoutATracer(t *testing.T) {
	ctx, span := tracing.Start(t.Context(), "begins")
	assert.False(t, span.IsRecording())
	require.True(t, tracing.Of(ctx).IsValid())
	assert.True(t, tracing.Of(ctx).IsSampled(), "so that a service that exports tells of its part")
	assert.Len(t, tracing.ID(ctx), 32)
	child, span := tracing.Start(ctx, "goes on")
	span.End()
	assert.Equal(t, ctx, child)
	other, _ := tracing.Start(t.Context(), "begins")
	assert.NotEqual(t, tracing.ID(ctx), tracing.ID(other))
	assert.Empty(t, tracing.ID(t.Context()))
	tracing.End(span, errors.New("x")) // which does nothing
}

// What goes on costs nothing while nothing is exported.
func TestWithoutATracerGoingOnIsFree(t *testing.T) {
	ctx := tracing.In(t.Context(), tracing.From(parent))
	assert.Zero(t, testing.AllocsPerRun(100, func() {
		_, span := tracing.Start(ctx, "goes on")
		tracing.End(span, nil)
	}))
}

func TestWithATracer(t *testing.T) {
	exported := tracetest.NewInMemoryExporter()
	provider := sdk.NewTracerProvider(sdk.WithSyncer(exported))
	ctx := tracing.With(t.Context(), provider.Tracer("test"))
	assert.True(t, tracing.Enabled(ctx))
	ctx, span := tracing.Start(tracing.In(ctx, tracing.From(parent)), "goes on")
	_, inner := tracing.Start(ctx, "inner")
	tracing.End(inner, errors.New("it broke"))
	tracing.End(span, nil)
	all := exported.GetSpans()
	require.Len(t, all, 2)
	assert.Equal(t, "0af7651916cd43dd8448eb211c80319c", all[0].SpanContext.TraceID().String())
	assert.Equal(t, codes.Error, all[0].Status.Code)
	assert.Equal(t, all[1].SpanContext.SpanID(), all[0].Parent.SpanID())
	assert.Equal(t, "b7ad6b7169203331", all[1].Parent.SpanID().String())
	assert.Equal(t, codes.Unset, all[1].Status.Code)
}

func TestHeader(t *testing.T) {
	assert.Equal(t, parent, tracing.Text(tracing.From(parent)))
	for _, bad := range []string{
		"", "x", "00-0-0-01", "00-00000000000000000000000000000000-b7ad6b7169203331-01",
		"ff" + parent[2:], parent + "-x", parent + "x", "zz" + parent[2:], parent[:53] + "zz", "00-0af7651916cd43dd8448eb211c80319c-b7ad6b71692033-31-01", strings.ToUpper(parent),
	} {
		assert.False(t, tracing.From(bad).IsValid(), bad)
	}
	assert.True(t, tracing.From("01"+parent[2:]+"-what comes later").IsValid())
	assert.Empty(t, tracing.Text(trace.SpanContext{}))
	ctx := tracing.In(t.Context(), tracing.From(parent))
	assert.Equal(t, ctx, tracing.In(ctx, trace.SpanContext{}), "what is invalid replaces nothing")
}

func TestLinks(t *testing.T) {
	a, b := tracing.From(parent), tracing.From("00-1af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01")
	links := tracing.Links(a, a, b, trace.SpanContext{}, b)
	require.Len(t, links, 1)
	assert.Equal(t, b, links[0].SpanContext)
	assert.Empty(t, tracing.Links(a))
}

func TestNotes(t *testing.T) {
	ctx := tracing.Note(t.Context(), slog.String("target", "a"), slog.String("job_id", "1"), slog.String("zone", ""))
	inner := tracing.Note(ctx, slog.String("target", "b"))
	assert.Equal(t, []slog.Attr{slog.String("target", "a"), slog.String("job_id", "1")}, tracing.Notes(ctx))
	assert.Equal(t, []slog.Attr{slog.String("job_id", "1"), slog.String("target", "b")}, tracing.Notes(inner))
	assert.Empty(t, tracing.Notes(context.Background()))
}
