package service

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/url"
	"os"
	"strings"
	"sync/atomic"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/promauto"
	"go.opentelemetry.io/otel/exporters/otlp/otlptrace/otlptracehttp"
	"go.opentelemetry.io/otel/sdk/resource"
	sdk "go.opentelemetry.io/otel/sdk/trace"
	semconv "go.opentelemetry.io/otel/semconv/v1.37.0"

	"github.com/lifeboat-fleet/lifeboat/fleet/tracing"
)

// lastExport is how long the spans that are left may take at the end.
const lastExport = 3 * time.Second

// telemetry exports a service's spans.
type telemetry struct {
	name   string
	log    *slog.Logger
	failed prometheus.Counter
}

func newTelemetry(name string, log *slog.Logger, reg prometheus.Registerer) *telemetry {
	return &telemetry{name: name, log: log, failed: promauto.With(reg).NewCounter(prometheus.CounterOpts{
		Name: "lifeboat_trace_export_errors_total", Help: "Exports of spans that the collector did not take. Their spans are lost; events and logs are not.",
	})}
}

// start gives a context whose spans are exported by OTLP over HTTP, when the standard environment variables ask for that, and a
// function that exports what is left and ends it. Variables that can never work are a UsageError. When nothing is exported no span
// is made. The variables: https://opentelemetry.io/docs/specs/otel/configuration/sdk-environment-variables/ and
// https://opentelemetry.io/docs/specs/otel/protocol/exporter/. Those of samplers, limits and batches the SDK reads by itself.
func (t *telemetry) start(ctx context.Context) (traced context.Context, end func(), err error) {
	if tracing.Enabled(ctx) { // its owner ends it
		return ctx, func() {}, nil
	}
	on, err := exporting()
	if err != nil {
		return nil, nil, &UsageError{err}
	}
	if !on {
		return ctx, func() {}, nil
	}
	client, err := newCollector()
	if err != nil {
		return nil, nil, err
	}
	exporter, err := otlptracehttp.New(ctx, client...)
	if err != nil {
		return nil, nil, fmt.Errorf("starting the OTLP exporter: %w", err)
	}
	// What the environment says comes last, and so in place of what we say.
	described, err := resource.New(ctx, resource.WithTelemetrySDK(), resource.WithAttributes(
		semconv.ServiceName(t.name), semconv.ServiceVersion(Version()), semconv.ServiceInstanceID(Instance(t.name)),
	), resource.WithFromEnv())
	if err != nil {
		return nil, nil, &UsageError{fmt.Errorf("OTEL_RESOURCE_ATTRIBUTES: %w", err)}
	}
	provider := sdk.NewTracerProvider(sdk.WithResource(described), sdk.WithBatcher(&counting{SpanExporter: exporter, t: t}))
	return tracing.With(ctx, provider.Tracer("github.com/lifeboat-fleet/lifeboat")), func() {
		last, cancel := context.WithTimeout(context.WithoutCancel(ctx), lastExport)
		defer cancel()
		if err := provider.Shutdown(last); err != nil {
			t.log.WarnContext(last, "the last spans could not be exported", slog.Any("err", err))
		}
	}, nil
}

// exporting says whether the environment asks for spans to be exported. The standard's default is a collector on this host; here it is
// none, because most have none.
func exporting() (bool, error) {
	if strings.EqualFold(os.Getenv("OTEL_SDK_DISABLED"), "true") {
		return false, nil
	}
	endpointName, endpoint := variable("ENDPOINT")
	switch exporter := os.Getenv("OTEL_TRACES_EXPORTER"); {
	case exporter == "none", exporter == "" && endpoint == "":
		return false, nil
	case exporter != "" && exporter != "otlp":
		return false, fmt.Errorf("OTEL_TRACES_EXPORTER is %q: use otlp, or none", exporter)
	}
	if name, protocol := variable("PROTOCOL"); protocol != "" && protocol != "http/protobuf" {
		return false, fmt.Errorf("%s is %q: spans are exported by http/protobuf only; a collector takes that on port 4318, by default", name, protocol)
	}
	if _, err := exportTimeout(); err != nil {
		return false, err
	}
	if endpoint == "" {
		return true, nil
	}
	u, err := url.Parse(endpoint)
	if err != nil {
		err = errors.New("it cannot be read as a URL") // whose text may have a password
	} else if (u.Scheme != "http" && u.Scheme != "https") || u.Host == "" {
		err = errors.New("it needs http:// or https://, and a host")
	}
	if err != nil {
		return false, fmt.Errorf("%s: %w", endpointName, err)
	}
	return true, nil
}

// variable is one of the exporter's variables, of which the one for traces alone comes first, and the name of the one that counts.
func variable(name string) (full, value string) {
	full = "OTEL_EXPORTER_OTLP_TRACES_" + name
	if value = os.Getenv(full); value != "" {
		return full, value
	}
	full = "OTEL_EXPORTER_OTLP_" + name
	return full, os.Getenv(full)
}

// counting counts the exports that fail, and logs the first of them in a row. Traces are a help; they never get in the way of the work.
type counting struct {
	sdk.SpanExporter
	t   *telemetry
	bad atomic.Bool
}

// ExportSpans implements the SDK's SpanExporter.
func (c *counting) ExportSpans(ctx context.Context, spans []sdk.ReadOnlySpan) error {
	err := c.SpanExporter.ExportSpans(ctx, spans)
	switch {
	case err != nil:
		c.t.failed.Inc()
		if !c.bad.Swap(true) {
			c.t.log.WarnContext(ctx, "the collector of traces did not take spans, and they are lost; its next failures are only counted",
				slog.Int("spans", len(spans)), slog.Any("err", err))
		}
	case c.bad.Swap(false):
		c.t.log.InfoContext(ctx, "the collector of traces takes spans again")
	}
	return nil // it was told of
}
