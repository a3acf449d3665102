package service

import (
	"bytes"
	"context"
	"log/slog"
	"net/http"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/testutil"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/lifeboat-fleet/lifeboat/fleet/fleettest/otlptest"
	"github.com/lifeboat-fleet/lifeboat/fleet/tracing"
)

func quiet(name string) *telemetry {
	return newTelemetry(name, slog.New(slog.DiscardHandler), prometheus.NewRegistry())
}

// span makes one, and exports it.
func span(t *testing.T, tel *telemetry) {
	t.Helper()
	ctx, end, err := tel.start(t.Context())
	require.NoError(t, err)
	_, s := tracing.Start(ctx, "work")
	s.End()
	end()
}

// The standard's variables, by which people set every service alike.
func TestStandardVariables(t *testing.T) {
	for name, c := range map[string]struct {
		env   map[string]string
		spans int
		wrong string
	}{
		"an endpoint":                   {map[string]string{"OTEL_EXPORTER_OTLP_ENDPOINT": "URL"}, 1, ""},
		"an endpoint for traces":        {map[string]string{"OTEL_EXPORTER_OTLP_TRACES_ENDPOINT": "URL/v1/traces"}, 1, ""},
		"none":                          {nil, 0, ""},
		"disabled":                      {map[string]string{"OTEL_EXPORTER_OTLP_ENDPOINT": "URL", "OTEL_SDK_DISABLED": "TRUE"}, 0, ""},
		"not disabled":                  {map[string]string{"OTEL_EXPORTER_OTLP_ENDPOINT": "URL", "OTEL_SDK_DISABLED": "false"}, 1, ""},
		"no exporter":                   {map[string]string{"OTEL_EXPORTER_OTLP_ENDPOINT": "URL", "OTEL_TRACES_EXPORTER": "none"}, 0, ""},
		"the exporter":                  {map[string]string{"OTEL_EXPORTER_OTLP_ENDPOINT": "URL", "OTEL_TRACES_EXPORTER": "otlp"}, 1, ""},
		"another exporter":              {map[string]string{"OTEL_TRACES_EXPORTER": "zipkin"}, 0, "OTEL_TRACES_EXPORTER"},
		"a sampler":                     {map[string]string{"OTEL_EXPORTER_OTLP_ENDPOINT": "URL", "OTEL_TRACES_SAMPLER": "always_off"}, 0, ""},
		"a ratio":                       {map[string]string{"OTEL_EXPORTER_OTLP_ENDPOINT": "URL", "OTEL_TRACES_SAMPLER": "traceidratio", "OTEL_TRACES_SAMPLER_ARG": "0"}, 0, ""},
		"another protocol":              {map[string]string{"OTEL_EXPORTER_OTLP_ENDPOINT": "URL", "OTEL_EXPORTER_OTLP_PROTOCOL": "grpc"}, 0, "http/protobuf"},
		"the protocol":                  {map[string]string{"OTEL_EXPORTER_OTLP_ENDPOINT": "URL", "OTEL_EXPORTER_OTLP_PROTOCOL": "http/protobuf"}, 1, ""},
		"an endpoint that is none":      {map[string]string{"OTEL_EXPORTER_OTLP_ENDPOINT": "tempo:4318"}, 0, "http://"},
		"an endpoint that is no URL":    {map[string]string{"OTEL_EXPORTER_OTLP_ENDPOINT": "http://u:secret@%zz"}, 0, "URL"},
		"a bad endpoint for traces":     {map[string]string{"OTEL_EXPORTER_OTLP_ENDPOINT": "URL", "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT": "tempo:4318"}, 0, "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT: it needs http://"},
		"another protocol for traces":   {map[string]string{"OTEL_EXPORTER_OTLP_ENDPOINT": "URL", "OTEL_EXPORTER_OTLP_TRACES_PROTOCOL": "grpc"}, 0, "OTEL_EXPORTER_OTLP_TRACES_PROTOCOL is"},
		"a timeout":                     {map[string]string{"OTEL_EXPORTER_OTLP_ENDPOINT": "URL", "OTEL_EXPORTER_OTLP_TIMEOUT": "60000"}, 1, ""},
		"a timeout that is none":        {map[string]string{"OTEL_EXPORTER_OTLP_ENDPOINT": "URL", "OTEL_EXPORTER_OTLP_TIMEOUT": "10s"}, 0, "OTEL_EXPORTER_OTLP_TIMEOUT is"},
		"attributes that are malformed": {map[string]string{"OTEL_EXPORTER_OTLP_ENDPOINT": "URL", "OTEL_RESOURCE_ATTRIBUTES": "x"}, 0, "OTEL_RESOURCE_ATTRIBUTES"},
	} {
		t.Run(name, func(t *testing.T) {
			collector := otlptest.New(t)
			for k, v := range c.env {
				t.Setenv(k, string(bytes.ReplaceAll([]byte(v), []byte("URL"), []byte(collector.URL))))
			}
			if c.wrong != "" {
				_, _, err := quiet("lifeboat-test").start(t.Context())
				require.ErrorContains(t, err, c.wrong)
				assert.NotContains(t, err.Error(), "secret")
				assert.Equal(t, ExitUsage, ExitCode(err))
				return
			}
			span(t, quiet("lifeboat-test"))
			assert.Len(t, collector.Spans(), c.spans)
		})
	}
}

// Each service says who it is, also of two in one process, unless the environment says it.
func TestResource(t *testing.T) {
	collector := otlptest.New(t)
	t.Setenv("OTEL_EXPORTER_OTLP_ENDPOINT", collector.URL)
	t.Setenv("OTEL_RESOURCE_ATTRIBUTES", "deployment.environment.name=beijing")
	span(t, quiet("lifeboat-one"))
	span(t, quiet("lifeboat-two"))
	t.Setenv("OTEL_SERVICE_NAME", "theirs")
	span(t, quiet("lifeboat-three"))
	all := collector.Spans()
	require.Len(t, all, 3)
	for i, want := range []string{"lifeboat-one", "lifeboat-two", "theirs"} {
		assert.Equal(t, want, all[i].Service)
		assert.Equal(t, "beijing", all[i].Resource["deployment.environment.name"])
		assert.Equal(t, Version(), all[i].Resource["service.version"])
		assert.NotEmpty(t, all[i].Resource["service.instance.id"])
	}
}

// Who has started it ends it: what a service serves besides is in the same trace, and ends nothing.
func TestStartedOnce(t *testing.T) {
	collector := otlptest.New(t)
	t.Setenv("OTEL_EXPORTER_OTLP_ENDPOINT", collector.URL)
	tel := quiet("lifeboat-test")
	ctx, end, err := tel.start(t.Context())
	require.NoError(t, err)
	again, inner, err := tel.start(ctx)
	require.NoError(t, err)
	assert.Equal(t, ctx, again)
	inner()
	_, s := tracing.Start(again, "after")
	s.End()
	end()
	assert.Len(t, collector.Spans(), 1)
}

// A collector that takes nothing is counted, logged once, and in nobody's way.
func TestExportErrors(t *testing.T) {
	collector := otlptest.New(t)
	collector.Answer(http.StatusBadRequest) // after which the exporter does not try again
	t.Setenv("OTEL_EXPORTER_OTLP_ENDPOINT", collector.URL)
	t.Setenv("OTEL_BSP_SCHEDULE_DELAY", "10")
	var log bytes.Buffer
	tel := newTelemetry("lifeboat-test", slog.New(slog.NewTextHandler(&log, nil)), prometheus.NewRegistry())
	ctx, end, err := tel.start(t.Context())
	require.NoError(t, err)
	for n := range 3 {
		_, s := tracing.Start(ctx, "lost")
		s.End()
		require.Eventually(t, func() bool { return testutil.ToFloat64(tel.failed) == float64(n+1) }, time.Minute, 5*time.Millisecond)
	}
	collector.Answer(http.StatusOK)
	_, s := tracing.Start(ctx, "kept")
	s.End()
	end()
	assert.Equal(t, 1, bytes.Count(log.Bytes(), []byte("did not take spans")), log.String())
	assert.Contains(t, log.String(), "takes spans again")
	require.Len(t, collector.Spans(), 1)
	assert.Equal(t, "kept", collector.Spans()[0].Name)
}

// What was noted of a job is on every line about it, once.
func TestLogsSayWhatIsAtHand(t *testing.T) {
	var out bytes.Buffer
	log, err := NewLogger(&out, "info")
	require.NoError(t, err)
	ctx, _ := tracing.Start(context.Background(), "x")
	ctx = tracing.Note(ctx, slog.String("target", "etcd-prod"), slog.String("job_id", "j"))
	log.With(slog.String("service", "s")).InfoContext(ctx, "hello", slog.String("job_id", "own"))
	line := out.String()
	assert.Contains(t, line, `"trace_id":"`+tracing.ID(ctx)+`"`)
	assert.Contains(t, line, `"target":"etcd-prod"`)
	assert.Contains(t, line, `"job_id":"own"`)
	assert.NotContains(t, line, `"job_id":"j"`)
}
