package service

import (
	"context"
	"encoding/pem"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"go.opentelemetry.io/otel/exporters/otlp/otlptrace/otlptracehttp"
	"go.opentelemetry.io/otel/sdk/trace/tracetest"

	"github.com/lifeboat-fleet/lifeboat/fleet/config"
	"github.com/lifeboat-fleet/lifeboat/fleet/fleettest/certtest"
)

// Traces go to a collector that asks for a certificate, by the standard variables.
func TestTracesOverTLS(t *testing.T) {
	var got atomic.Int64
	collector := httptest.NewServer(http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) {
		if r.URL.Path == "/v1/traces" {
			got.Add(1)
		}
	}))
	t.Cleanup(collector.Close)
	certtest.TryClient(t, strings.TrimPrefix(collector.URL, "http://"), func(t *testing.T, addr string, files config.TLS) func(context.Context) error {
		t.Helper()
		t.Setenv("OTEL_EXPORTER_OTLP_ENDPOINT", "https://"+addr)
		t.Setenv("OTEL_EXPORTER_OTLP_CERTIFICATE", files.CAFile)
		t.Setenv("OTEL_EXPORTER_OTLP_CLIENT_CERTIFICATE", files.CertFile)
		t.Setenv("OTEL_EXPORTER_OTLP_TRACES_CLIENT_KEY", string(files.KeyFile))
		client, err := newCollector()
		require.NoError(t, err)
		// Once: it tries again for a minute what did not arrive.
		client = append(client, otlptracehttp.WithRetry(otlptracehttp.RetryConfig{}))
		exporter, err := otlptracehttp.New(t.Context(), client...)
		require.NoError(t, err)
		return func(ctx context.Context) error {
			return exporter.ExportSpans(ctx, tracetest.SpanStubs{{Name: "snapshot"}}.Snapshots())
		}
	})
	assert.Positive(t, got.Load())
}

// What can never work is said by the variable's name, where the exporter itself would go on without a certificate.
func TestTracingFilesThatCanNeverWork(t *testing.T) {
	t.Setenv("OTEL_EXPORTER_OTLP_ENDPOINT", "https://127.0.0.1:1")
	t.Setenv("OTEL_EXPORTER_OTLP_CLIENT_CERTIFICATE", "client.pem")
	telemetry := newTelemetry("lifeboat-test", slog.New(slog.DiscardHandler), prometheus.NewRegistry())
	_, _, err := telemetry.start(t.Context())
	require.ErrorContains(t, err, "OTEL_EXPORTER_OTLP_CLIENT_KEY")
	assert.Equal(t, ExitUsage, ExitCode(err))
	t.Setenv("OTEL_EXPORTER_OTLP_CLIENT_KEY", "key.pem")
	_, _, err = telemetry.start(t.Context())
	require.ErrorContains(t, err, "client.pem")
	assert.Equal(t, ExitUsage, ExitCode(err))
}

// With certificates an export may take as long as the standard's variable says, and no longer: not what we think.
func TestHowLongAnExportMayTake(t *testing.T) {
	for _, c := range []struct {
		all, traces string
		want        time.Duration
	}{{"", "", 10 * time.Second}, {"60000", "", time.Minute}, {"60000", "5", 5 * time.Millisecond}, {"0", "", 0}} {
		t.Setenv("OTEL_EXPORTER_OTLP_TIMEOUT", c.all)
		t.Setenv("OTEL_EXPORTER_OTLP_TRACES_TIMEOUT", c.traces)
		got, err := exportTimeout()
		require.NoError(t, err)
		assert.Equal(t, c.want, got)
	}
	for _, wrong := range []string{"10s", "-1", "1.5", "99999999999"} {
		t.Setenv("OTEL_EXPORTER_OTLP_TRACES_TIMEOUT", wrong)
		_, err := exportTimeout()
		require.ErrorContains(t, err, "OTEL_EXPORTER_OTLP_TRACES_TIMEOUT is \""+wrong+"\"", wrong)
	}

	// A collector that never answers.
	ended := make(chan struct{})
	collector := httptest.NewTLSServer(http.HandlerFunc(func(http.ResponseWriter, *http.Request) { <-ended }))
	t.Cleanup(collector.Close)
	t.Cleanup(func() { close(ended) })
	ca := filepath.Join(t.TempDir(), "ca.pem")
	require.NoError(t, os.WriteFile(ca, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: collector.Certificate().Raw}), 0o600))
	t.Setenv("OTEL_EXPORTER_OTLP_ENDPOINT", collector.URL)
	t.Setenv("OTEL_EXPORTER_OTLP_CERTIFICATE", ca)
	t.Setenv("OTEL_EXPORTER_OTLP_TRACES_TIMEOUT", "100")
	client, err := newCollector()
	require.NoError(t, err)
	exporter, err := otlptracehttp.New(t.Context(), append(client, otlptracehttp.WithRetry(otlptracehttp.RetryConfig{}))...)
	require.NoError(t, err)
	ctx, cancel := context.WithTimeout(t.Context(), 5*time.Second)
	defer cancel()
	require.Error(t, exporter.ExportSpans(ctx, tracetest.SpanStubs{{Name: "snapshot"}}.Snapshots()))
	require.NoError(t, ctx.Err(), "it is the exporter that gives up")
}
