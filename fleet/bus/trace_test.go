package bus_test

import (
	"testing"

	"github.com/nats-io/nats.go"
	"github.com/stretchr/testify/assert"

	"github.com/lifeboat-fleet/lifeboat/fleet/bus"
	"github.com/lifeboat-fleet/lifeboat/fleet/tracing"
)

const traceparent = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"

// NATS tells the case of headers apart: what a person types and what the library of OpenTelemetry writes is the same.
func TestTheTraceOfAMessageInEitherCase(t *testing.T) {
	t.Parallel()
	for _, name := range []string{"traceparent", "Traceparent"} {
		m := &bus.Message{Header: nats.Header{name: {traceparent}}}
		assert.Equal(t, "0af7651916cd43dd8448eb211c80319c", m.Trace().TraceID().String(), name)
	}
	assert.False(t, (&bus.Message{}).Trace().IsValid())
	assert.Equal(t, map[string]string{"Traceparent": traceparent}, bus.TraceHeader(tracing.From(traceparent)))
	assert.Nil(t, bus.TraceHeader((&bus.Message{}).Trace()))
}
