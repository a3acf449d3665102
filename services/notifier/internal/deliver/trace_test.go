package deliver_test

import (
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	sdk "go.opentelemetry.io/otel/sdk/trace"
	"go.opentelemetry.io/otel/sdk/trace/tracetest"

	"github.com/lifeboat-fleet/lifeboat/fleet/bus"
	"github.com/lifeboat-fleet/lifeboat/fleet/tracing"
	lifeboatv1 "github.com/lifeboat-fleet/lifeboat/proto/lifeboat/v1"
	"github.com/lifeboat-fleet/lifeboat/services/notifier/internal/notice"
)

// A digest is sent in the trace of the first delivery that it merges, and has links to the traces of all others; and the end of each
// delivery is recorded in its own.
func TestADigestHasLinksToWhatItMerges(t *testing.T) {
	t.Parallel()
	l := newLab(t, strings.ReplaceAll(one, "-1", "5, per: 2s"))
	exported := tracetest.NewInMemoryExporter()
	l.tracer = sdk.NewTracerProvider(sdk.WithSyncer(exported)).Tracer("test")
	l.chat.rule(func(string, notice.Notice) error {
		return bus.RetryAfter(20*time.Minute, fmt.Errorf("429: %w", notice.ErrThrottled))
	})
	l.run("n1")
	const groups = 40
	sent := map[string]string{} // the alert, by its trace
	for i := range groups {
		ctx, _ := tracing.Start(t.Context(), "a tick")
		name := fmt.Sprintf("A%d", i)
		n := &lifeboatv1.Notification{
			Origin: "alertmanager", GroupKey: name, Receiver: "lifeboat", Alerts: []*lifeboatv1.Alert{alert(name, "firing", "warning")},
		}
		_, err := l.bus.Publish(ctx, bus.Outgoing{Subject: bus.SubjectReceived, Message: n})
		require.NoError(t, err)
		sent[tracing.ID(ctx)] = name
	}
	l.wait("the first attempt", func() bool { return l.chat.requests() == 1 })
	l.waitQueued(groups)
	l.chat.rule(nil)
	l.pass(21 * time.Minute)
	l.waitEnded(map[string]int{"delivered": groups})
	for _, e := range l.ends {
		assert.Equal(t, e.GetAttributes()["alertname"], sent[e.GetTraceId()], "each delivery ends in its own trace")
	}
	var merged []string
	require.Eventually(t, func() bool {
		merged = nil
		for _, s := range exported.GetSpans() {
			if s.Name != "deliver" || len(s.Links) == 0 {
				continue
			}
			merged = append(merged, s.SpanContext.TraceID().String())
			for _, link := range s.Links {
				merged = append(merged, link.SpanContext.TraceID().String())
			}
		}
		return len(merged) >= groups-5
	}, patience, 10*time.Millisecond, "few of them were sent alone")
	slices.Sort(merged)
	for _, id := range merged {
		assert.Contains(t, sent, id)
	}
	assert.Len(t, slices.Compact(slices.Clone(merged)), len(merged), "none is merged twice")
}
