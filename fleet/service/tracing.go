package service

import (
	"errors"
	"fmt"
	"net/http"
	"time"

	"go.opentelemetry.io/otel/exporters/otlp/otlptrace/otlptracehttp"

	"github.com/lifeboat-fleet/lifeboat/fleet/config"
	"github.com/lifeboat-fleet/lifeboat/fleet/web"
)

// exportTimeout is the specification's default of OTEL_EXPORTER_OTLP_TIMEOUT, which the exporter itself keeps to besides.
const exportTimeout = 10 * time.Second

// newCollector is how the collector is asked. The exporter reads the standard variables' files once and goes on without those that it
// cannot read; here they are read again when they change, and what can never work is an error that names the variable.
// https://opentelemetry.io/docs/specs/otel/protocol/exporter/
func newCollector() ([]otlptracehttp.Option, error) {
	files := config.TLS{
		CAFile: variable("CERTIFICATE"), CertFile: variable("CLIENT_CERTIFICATE"), KeyFile: config.SecretFile(variable("CLIENT_KEY")),
	}
	if files == (config.TLS{}) {
		return nil, nil
	}
	if (files.CertFile == "") != (files.KeyFile == "") {
		return nil, &UsageError{errors.New("OTEL_EXPORTER_OTLP_CLIENT_CERTIFICATE and OTEL_EXPORTER_OTLP_CLIENT_KEY go together")}
	}
	if _, err := files.Client(); err != nil {
		return nil, &UsageError{fmt.Errorf("the files of OTEL_EXPORTER_OTLP_CERTIFICATE, _CLIENT_CERTIFICATE and _CLIENT_KEY: %w", err)}
	}
	base := &http.Transport{
		Proxy: http.ProxyFromEnvironment, TLSHandshakeTimeout: exportTimeout, IdleConnTimeout: time.Minute, ForceAttemptHTTP2: true,
	}
	return []otlptracehttp.Option{otlptracehttp.WithHTTPClient(&http.Client{
		Transport: web.NewTransport(base, func() config.TLS { return files }), Timeout: exportTimeout,
	})}, nil
}
