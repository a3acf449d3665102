package deliver

import (
	"context"
	"log/slog"

	"go.opentelemetry.io/otel/attribute"
	"go.opentelemetry.io/otel/trace"

	"github.com/lifeboat-fleet/lifeboat/fleet/tracing"
)

// in is a context of a turn that goes on with the item's own trace, and whose log lines name it. The turn itself has the head's.
func (i *item) in(ctx context.Context) context.Context {
	if !i.head {
		// Also when it has none, as what a person published: then it gets one of its own.
		ctx = trace.ContextWithRemoteSpanContext(ctx, i.trace)
	}
	return tracing.Note(ctx, slog.String("delivery_id", i.id), slog.String("target", i.target))
}

// begin begins the span of sending a unit. It is in the trace of its first item, and has links to those of what is merged with it.
func (t *turn) begin(ctx context.Context, u unit) (context.Context, trace.Span) {
	ctx = u.items[0].in(ctx)
	var merged []trace.SpanContext
	if tracing.Enabled(ctx) {
		for _, it := range u.items[1:] {
			merged = append(merged, it.trace)
		}
	}
	ctx, span := tracing.Start(ctx, "deliver", trace.WithLinks(tracing.Links(tracing.Of(ctx), merged...)...))
	if span.IsRecording() {
		span.SetAttributes(attribute.String("lifeboat.receiver", t.name), attribute.String("lifeboat.delivery_id", u.items[0].id),
			attribute.Int("lifeboat.deliveries", len(u.items)), attribute.Bool("lifeboat.digest", u.digest))
	}
	return ctx, span
}

// of is the context of one of a unit's items; ctx is the unit's.
func (u unit) of(ctx context.Context, it *item) context.Context {
	if it == u.items[0] {
		return ctx
	}
	if it.head { // ctx is another item's
		ctx = trace.ContextWithRemoteSpanContext(ctx, it.trace)
	}
	return it.in(ctx)
}
