// Package tracing follows one thing from its tick to the chat: its spans, and what the logs say besides of whatever is at hand.
//
// A service puts its tracer into the context of everything that it runs, so that several services in one process each have their
// own. Without one nothing is recorded and nothing is sent; but a trace has an id all the same, which logs, events and manifests
// carry, and which goes on to the next service in the headers of a message (https://www.w3.org/TR/trace-context/). A service that
// does export then tells of its part of it.
package tracing

import (
	"context"
	"encoding/binary"
	"encoding/hex"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"slices"
	"strings"

	"go.opentelemetry.io/otel/codes"
	"go.opentelemetry.io/otel/trace"
)

type tracerKey struct{}

// With gives a context whose spans are made by a tracer.
func With(ctx context.Context, t trace.Tracer) context.Context {
	return context.WithValue(ctx, tracerKey{}, t)
}

// Enabled says whether spans of this context are made.
func Enabled(ctx context.Context) bool { return tracer(ctx) != nil }

func tracer(ctx context.Context) trace.Tracer {
	t, _ := ctx.Value(tracerKey{}).(trace.Tracer)
	return t
}

// Start begins a span, which the caller ends. Attributes are worth their making only when span.IsRecording. Without a tracer the
// span does nothing, and the context has the trace of its parent, or a new one.
func Start(ctx context.Context, name string, opts ...trace.SpanStartOption) (context.Context, trace.Span) {
	if t := tracer(ctx); t != nil {
		return t.Start(ctx, name, opts...)
	}
	if !trace.SpanContextFromContext(ctx).IsValid() {
		ctx = trace.ContextWithSpanContext(ctx, newSpanContext())
	}
	return ctx, trace.SpanFromContext(ctx)
}

// newSpanContext begins a trace that nobody here tells of. It is marked as sampled, so that a service further on does, as by default.
func newSpanContext() trace.SpanContext {
	var id trace.TraceID
	var span trace.SpanID
	for !id.IsValid() || !span.IsValid() { // zero is no id
		// These name, and guard nothing.
		binary.BigEndian.PutUint64(id[:8], rand.Uint64())  //nolint:gosec // see above
		binary.BigEndian.PutUint64(id[8:], rand.Uint64())  //nolint:gosec // see above
		binary.BigEndian.PutUint64(span[:], rand.Uint64()) //nolint:gosec // see above
	}
	return trace.NewSpanContext(trace.SpanContextConfig{TraceID: id, SpanID: span, TraceFlags: trace.FlagsSampled})
}

// End ends a span, and says how. A nil error is none.
func End(span trace.Span, err error) {
	if err != nil && span.IsRecording() {
		span.RecordError(err)
		span.SetStatus(codes.Error, "")
	}
	span.End()
}

// Header is the name of the header, of a message or a request, and of the annotation of an alert, that has the trace.
const Header = "traceparent"

// From is the trace in a header's value; invalid when there is none. The form is that of https://www.w3.org/TR/trace-context/#traceparent-header;
// what a version after 00 says besides is left.
func From(traceparent string) trace.SpanContext {
	const length = len("00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01")
	fits := len(traceparent) == length || (len(traceparent) > length && traceparent[:2] != "00" && traceparent[length] == '-')
	if !fits || traceparent[:2] == "ff" {
		return trace.SpanContext{}
	}
	parts := strings.SplitN(traceparent, "-", 5)
	if len(parts) < 4 || len(parts[0]) != 2 || len(parts[3]) != 2 {
		return trace.SpanContext{}
	}
	id, noID := trace.TraceIDFromHex(parts[1])
	span, noSpan := trace.SpanIDFromHex(parts[2])
	flags, noFlags := hex.DecodeString(parts[3])
	if _, noVersion := hex.DecodeString(parts[0]); noID != nil || noSpan != nil || noFlags != nil || noVersion != nil {
		return trace.SpanContext{}
	}
	return trace.NewSpanContext(trace.SpanContextConfig{
		TraceID: id, SpanID: span, TraceFlags: trace.TraceFlags(flags[0]) & trace.FlagsSampled, Remote: true,
	})
}

// Text is the inverse of From; empty for one that is invalid.
func Text(sc trace.SpanContext) string {
	if !sc.IsValid() {
		return ""
	}
	return fmt.Sprintf("00-%s-%s-%02x", sc.TraceID(), sc.SpanID(), byte(sc.TraceFlags()&trace.FlagsSampled))
}

// In is a context that goes on with a trace from elsewhere, or the same context when that is invalid.
func In(ctx context.Context, sc trace.SpanContext) context.Context {
	if !sc.IsValid() {
		return ctx
	}
	return trace.ContextWithRemoteSpanContext(ctx, sc)
}

// Of is the trace of a context; invalid when it has none.
func Of(ctx context.Context) trace.SpanContext { return trace.SpanContextFromContext(ctx) }

// ID is the id of the context's trace as 32 hexadecimal digits; empty when it has none.
func ID(ctx context.Context) string {
	if sc := Of(ctx); sc.HasTraceID() {
		return sc.TraceID().String()
	}
	return ""
}

// Links are links to traces, but for those that are invalid, the same twice, or the one that is left out.
func Links(without trace.SpanContext, all ...trace.SpanContext) []trace.Link {
	var links []trace.Link
	for _, sc := range all {
		there := sc.Equal(without) || slices.ContainsFunc(links, func(l trace.Link) bool { return l.SpanContext.Equal(sc) })
		if sc.IsValid() && !there {
			links = append(links, trace.Link{SpanContext: sc})
		}
	}
	return links
}

type notesKey struct{}

// Note has every line that is logged with the context say what is at hand: a job, a target, a delivery. A later note of the same key
// replaces an earlier one.
func Note(ctx context.Context, attrs ...slog.Attr) context.Context {
	before := Notes(ctx)
	all := make([]slog.Attr, 0, len(before)+len(attrs))
	for _, a := range before {
		if !slices.ContainsFunc(attrs, func(b slog.Attr) bool { return a.Key == b.Key }) {
			all = append(all, a)
		}
	}
	for _, a := range attrs {
		if a.Value.Kind() != slog.KindString || a.Value.String() != "" {
			all = append(all, a)
		}
	}
	return context.WithValue(ctx, notesKey{}, all)
}

// Notes are what was noted, oldest first. They must not be changed.
func Notes(ctx context.Context) []slog.Attr {
	all, _ := ctx.Value(notesKey{}).([]slog.Attr)
	return all
}
