package ingest

import (
	"bytes"
	"context"
	"net/http"

	"go.opentelemetry.io/otel/attribute"
	"go.opentelemetry.io/otel/trace"

	"github.com/lifeboat-fleet/lifeboat/fleet/tracing"
)

// maxTraces is how many traces of one notification's alerts are looked at. The first goes on, the others are linked.
const maxTraces = 32

// traced begins the span of a request: in the trace that its header names, as a script's may, or in a new one, as for what
// Alertmanager sends.
func traced(ctx context.Context, r *http.Request, endpoint string) (context.Context, trace.Span) {
	ctx, span := tracing.Start(tracing.In(ctx, tracing.From(r.Header.Get(tracing.Header))), "webhook "+endpoint,
		trace.WithSpanKind(trace.SpanKindServer))
	if span.IsRecording() {
		span.SetAttributes(attribute.String("http.request.method", r.Method), attribute.String("url.path", r.URL.Path))
	}
	return ctx, span
}

// trace is what a notification goes on with: an annotation of its alerts may name it, which is how an alert that came of an event keeps
// that event's trace on its way through Alertmanager. It is invalid when none does; the request's own counts then.
func (n *note) trace(ctx context.Context) trace.SpanContext {
	var found []trace.SpanContext
	for i := range n.alerts {
		a := &n.alerts[i]
		if !bytes.Contains(a.annotations, []byte(`"`+tracing.Header+`"`)) { // most have none, and are not decoded for that
			continue
		}
		if sc := tracing.From(mapOf(a.annotations)[tracing.Header]); sc.IsValid() {
			if found = append(found, sc); len(found) == maxTraces {
				break
			}
		}
	}
	if len(found) == 0 {
		return trace.SpanContext{}
	}
	links := tracing.Links(found[0], append(found[1:], tracing.Of(ctx))...)
	ctx, span := tracing.Start(tracing.In(ctx, found[0]), "alert received", trace.WithLinks(links...))
	span.End()
	return tracing.Of(ctx)
}
