// Package otlptest is a collector of traces: it takes OTLP over HTTP with protobuf, as the specification has it
// (https://opentelemetry.io/docs/specs/otlp/#otlphttp), and keeps what it gets.
package otlptest

import (
	"compress/gzip"
	"encoding/hex"
	"io"
	"net/http"
	"net/http/httptest"
	"slices"
	"sync"
	"testing"

	"github.com/stretchr/testify/assert"
	collector "go.opentelemetry.io/proto/otlp/collector/trace/v1"
	common "go.opentelemetry.io/proto/otlp/common/v1"
	trace "go.opentelemetry.io/proto/otlp/trace/v1"
	"google.golang.org/protobuf/proto"
)

// Span is one that was exported. Ids are hexadecimal; Parent is empty for the first of a trace.
type Span struct {
	Name, TraceID, ID, Parent string
	// Service is the resource's service.name, Resource all of its attributes.
	Service    string
	Resource   map[string]string
	Attributes map[string]string
	// Links are the ids of the traces that it has links to.
	Links []string
	// Failed says that its status is an error.
	Failed bool
}

// Collector listens on a loopback port.
type Collector struct {
	// URL is what OTEL_EXPORTER_OTLP_ENDPOINT has to be.
	URL string

	mu     sync.Mutex
	spans  []Span
	status int
}

// New starts one for a test. What it cannot read fails the test.
func New(tb testing.TB) *Collector {
	tb.Helper()
	c := &Collector{status: http.StatusOK}
	mux := http.NewServeMux()
	mux.HandleFunc("POST /v1/traces", func(w http.ResponseWriter, r *http.Request) {
		assert.Equal(tb, "application/x-protobuf", r.Header.Get("Content-Type"))
		request, err := read(r)
		if !assert.NoError(tb, err) {
			http.Error(w, "it cannot be read", http.StatusBadRequest)
			return
		}
		w.WriteHeader(c.take(request))
	})
	srv := httptest.NewServer(mux)
	tb.Cleanup(srv.Close)
	c.URL = srv.URL
	return c
}

func read(r *http.Request) (*collector.ExportTraceServiceRequest, error) {
	var body io.Reader = r.Body
	if r.Header.Get("Content-Encoding") == "gzip" {
		unpacked, err := gzip.NewReader(r.Body)
		if err != nil {
			return nil, err
		}
		body = unpacked
	}
	data, err := io.ReadAll(body)
	if err != nil {
		return nil, err
	}
	request := &collector.ExportTraceServiceRequest{}
	return request, proto.Unmarshal(data, request)
}

// Answer has it answer with a status from now on, and keep nothing unless that is 200.
func (c *Collector) Answer(status int) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.status = status
}

// Spans are those that came so far.
func (c *Collector) Spans() []Span {
	c.mu.Lock()
	defer c.mu.Unlock()
	return slices.Clone(c.spans)
}

// Trace are the spans of one trace.
func (c *Collector) Trace(id string) []Span {
	return slices.DeleteFunc(c.Spans(), func(s Span) bool { return s.TraceID != id })
}

func (c *Collector) take(request *collector.ExportTraceServiceRequest) (status int) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.status != http.StatusOK {
		return c.status
	}
	for _, rs := range request.GetResourceSpans() {
		resource := texts(rs.GetResource().GetAttributes())
		for _, ss := range rs.GetScopeSpans() {
			for _, s := range ss.GetSpans() {
				span := Span{
					Name: s.GetName(), TraceID: hex.EncodeToString(s.GetTraceId()), ID: hex.EncodeToString(s.GetSpanId()),
					Parent: hex.EncodeToString(s.GetParentSpanId()), Service: resource["service.name"], Resource: resource,
					Attributes: texts(s.GetAttributes()), Failed: s.GetStatus().GetCode() == trace.Status_STATUS_CODE_ERROR,
				}
				for _, l := range s.GetLinks() {
					span.Links = append(span.Links, hex.EncodeToString(l.GetTraceId()))
				}
				c.spans = append(c.spans, span)
			}
		}
	}
	return c.status
}

func texts(all []*common.KeyValue) map[string]string {
	out := map[string]string{}
	for _, kv := range all {
		switch v := kv.GetValue().GetValue().(type) {
		case *common.AnyValue_StringValue:
			out[kv.GetKey()] = v.StringValue
		default:
			out[kv.GetKey()] = kv.GetValue().String()
		}
	}
	return out
}
