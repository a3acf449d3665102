package ingest_test

import (
	"fmt"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	sdk "go.opentelemetry.io/otel/sdk/trace"
	"go.opentelemetry.io/otel/sdk/trace/tracetest"

	"github.com/lifeboat-fleet/lifeboat/fleet/tracing"
	"github.com/lifeboat-fleet/lifeboat/services/notifier/internal/ingest"
)

const (
	traceOne = "00-1af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
	traceTwo = "00-2af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
)

// A script's own trace goes on.
func TestARequestsTraceGoesOn(t *testing.T) {
	t.Parallel()
	exported := tracetest.NewInMemoryExporter()
	ctx := tracing.With(t.Context(), sdk.NewTracerProvider(sdk.WithSyncer(exported)).Tracer("test"))
	r := httptest.NewRequestWithContext(ctx, http.MethodPost, ingest.GenericPath, strings.NewReader(`{"name":"A"}`))
	r.Header.Set("traceparent", traceOne)
	s, w := &store{}, httptest.NewRecorder()
	handlers(s).Generic().ServeHTTP(w, r)
	require.Equal(t, http.StatusOK, w.Code)
	spans := exported.GetSpans()
	require.Len(t, spans, 1)
	assert.Equal(t, "webhook generic", spans[0].Name)
	assert.Equal(t, "1af7651916cd43dd8448eb211c80319c", spans[0].SpanContext.TraceID().String())
	require.Len(t, s.all, 1)
	assert.False(t, s.all[0].Trace.IsValid(), "it goes on with the request's")
}

// Alerts that came of an event name its trace, which their notification goes on with. The request that brought it is linked, and so are
// the traces of its other alerts.
func TestAnAlertsTraceGoesOn(t *testing.T) {
	t.Parallel()
	exported := tracetest.NewInMemoryExporter()
	ctx := tracing.With(t.Context(), sdk.NewTracerProvider(sdk.WithSyncer(exported)).Tracer("test"))
	alert := func(name, trace string) string {
		return fmt.Sprintf(`{"status":"firing","labels":{"alertname":%q},"annotations":{"traceparent":%q},"startsAt":"2026-11-21T04:00:00Z","fingerprint":%q}`, name, trace, name)
	}
	body := `{"version":"4","groupKey":"g","status":"firing","receiver":"lifeboat","alerts":[` +
		alert("A", traceOne) + "," + alert("B", "nonsense") + "," + alert("C", traceTwo) + `]}`
	s, w := &store{}, httptest.NewRecorder()
	handlers(s).Webhook().ServeHTTP(w, httptest.NewRequestWithContext(ctx, http.MethodPost, ingest.Path, strings.NewReader(body)))
	require.Equal(t, http.StatusOK, w.Code)
	require.Len(t, s.all, 1)
	assert.Equal(t, "1af7651916cd43dd8448eb211c80319c", s.all[0].Trace.TraceID().String())
	spans := exported.GetSpans()
	require.Len(t, spans, 2)
	assert.Equal(t, "alert received", spans[0].Name)
	assert.Equal(t, s.all[0].Trace.SpanID(), spans[0].SpanContext.SpanID())
	require.Len(t, spans[0].Links, 2)
	assert.Equal(t, "2af7651916cd43dd8448eb211c80319c", spans[0].Links[0].SpanContext.TraceID().String())
	assert.Equal(t, spans[1].SpanContext.TraceID(), spans[0].Links[1].SpanContext.TraceID(), "the webhook")
	assert.NotEqual(t, "1af7651916cd43dd8448eb211c80319c", spans[1].SpanContext.TraceID().String(), "Alertmanager's request begins a trace of its own")
}
