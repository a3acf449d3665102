package service

import (
	"fmt"
	"net/http"
	"strconv"
	"strings"
	"time"

	"go.opentelemetry.io/otel/exporters/otlp/otlptrace/otlptracehttp"

	"github.com/lifeboat-fleet/lifeboat/fleet/config"
	"github.com/lifeboat-fleet/lifeboat/fleet/web"
)

// exportTimeout is how long an export may take, each time that it is tried: OTEL_EXPORTER_OTLP_TIMEOUT, in milliseconds, whose default
// by the specification are ten seconds. 0 is without limit, as the exporter has it.
func exportTimeout() (time.Duration, error) {
	name, text := variable("TIMEOUT")
	if text == "" {
		return 10 * time.Second, nil
	}
	ms, err := strconv.ParseUint(strings.TrimSpace(text), 10, 31)
	if err != nil {
		return 0, fmt.Errorf("%s is %q: it is a number of milliseconds, as 10000", name, text)
	}
	return time.Duration(ms) * time.Millisecond, nil
}

// newCollector is how the collector is asked. The exporter reads the standard variables' files once and goes on without those that it
// cannot read; here they are read again when they change, and what can never work is an error that names the variable.
// https://opentelemetry.io/docs/specs/otel/protocol/exporter/
func newCollector() ([]otlptracehttp.Option, error) {
	_, ca := variable("CERTIFICATE")
	certName, cert := variable("CLIENT_CERTIFICATE")
	keyName, key := variable("CLIENT_KEY")
	files := config.TLS{CAFile: ca, CertFile: cert, KeyFile: config.SecretFile(key)}
	if files == (config.TLS{}) {
		return nil, nil
	}
	if (cert == "") != (key == "") {
		return nil, &UsageError{fmt.Errorf("%s and %s go together", certName, keyName)}
	}
	if _, err := files.Client(); err != nil {
		return nil, &UsageError{fmt.Errorf("the files of OTEL_EXPORTER_OTLP_CERTIFICATE, _CLIENT_CERTIFICATE and _CLIENT_KEY: %w", err)}
	}
	limit, err := exportTimeout()
	if err != nil {
		return nil, &UsageError{err}
	}
	base := &http.Transport{
		Proxy: http.ProxyFromEnvironment, TLSHandshakeTimeout: limit, IdleConnTimeout: time.Minute, ForceAttemptHTTP2: true,
	}
	// A client of our own: the exporter's keeps to the timeout by itself, and this one it leaves as it is.
	return []otlptracehttp.Option{otlptracehttp.WithHTTPClient(&http.Client{
		Transport: web.NewTransport(base, func() config.TLS { return files }), Timeout: limit,
	})}, nil
}
