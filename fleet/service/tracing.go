package service

import (
	"context"
	"fmt"
	"os"
	"time"

	"go.opentelemetry.io/otel"
	"go.opentelemetry.io/otel/exporters/otlp/otlptrace/otlptracehttp"
	"go.opentelemetry.io/otel/sdk/resource"
	"go.opentelemetry.io/otel/sdk/trace"
	semconv "go.opentelemetry.io/otel/semconv/v1.37.0"
)

// startTracing sets the process's tracer. Spans always exist, so that logs and events carry a trace id; they are exported
// by OTLP over HTTP when the standard environment variables name a collector.
func startTracing(ctx context.Context, name string) (shutdown func(), err error) {
	opts := []trace.TracerProviderOption{
		trace.WithResource(resource.NewSchemaless(semconv.ServiceName(name))),
	}
	if os.Getenv("OTEL_EXPORTER_OTLP_ENDPOINT") != "" || os.Getenv("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT") != "" {
		exporter, err := otlptracehttp.New(ctx)
		if err != nil {
			return nil, fmt.Errorf("starting the OTLP exporter: %w", err)
		}
		opts = append(opts, trace.WithBatcher(exporter))
	}
	provider := trace.NewTracerProvider(opts...)
	otel.SetTracerProvider(provider)
	return func() {
		last, cancel := context.WithTimeout(context.WithoutCancel(ctx), 3*time.Second)
		defer cancel()
		// What could not be exported at the end is lost to the traces only; the events are the record.
		if err := provider.Shutdown(last); err != nil {
			otel.Handle(err)
		}
	}, nil
}
