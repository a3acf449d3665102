package canary

import (
	"context"
	"log/slog"
	"sync"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/testutil"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/lifeboat-fleet/lifeboat/fleet/bus"
	"github.com/lifeboat-fleet/lifeboat/fleet/config"
	"github.com/lifeboat-fleet/lifeboat/fleet/fleettest/natstest"
	lifeboatv1 "github.com/lifeboat-fleet/lifeboat/proto/lifeboat/v1"
)

func connect(t *testing.T, url string) *bus.Bus {
	t.Helper()
	b, err := bus.Connect(bus.Options{
		Config: config.NATS{URL: url, Replicas: 1}, Actor: "lifeboat-notifier@test", Logger: slog.New(slog.DiscardHandler),
		Registerer: prometheus.NewRegistry(),
	})
	require.NoError(t, err)
	t.Cleanup(func() { assert.NoError(t, b.Close()) })
	return b
}

// Two notifiers on a real server, and a queue that delivers what arrives, each notification once.
func TestTwoNotifiersSendEachCanaryOnce(t *testing.T) {
	t.Parallel()
	srv := natstest.New(t)
	b := connect(t, srv.URL())
	require.NoError(t, b.EnsureStreams(t.Context()))
	cfg := receivers("@every 2s")

	ctx, cancel := context.WithCancel(t.Context())
	var wg sync.WaitGroup
	t.Cleanup(func() { cancel(); wg.Wait() })
	var mu sync.Mutex
	arrived := map[string]int{}
	wg.Go(func() {
		assert.NoError(t, b.Consume(ctx, bus.Consumer{
			Stream: bus.StreamAlerts, Durable: "notifier-route", Filter: bus.SubjectReceived, AckWait: 5 * time.Second,
			Handle: func(ctx context.Context, m *bus.Message) error {
				n := &lifeboatv1.Notification{}
				if err := bus.Decode(m.Data, n); err != nil {
					return err
				}
				mu.Lock()
				arrived[n.GetId()]++
				mu.Unlock()
				return b.Emit(ctx, &lifeboatv1.Event{
					Id: "end-" + m.ID(), Noun: "alert", Verb: "delivered",
					Attributes: map[string]string{"origin": "canary", "receiver": n.GetOnlyReceiver(), "delivery_id": m.ID() + "." + n.GetOnlyReceiver()},
				})
			},
		}))
	})
	replicas := make([]*Canaries, 2)
	for i := range replicas {
		replicas[i] = New(Options{
			Bus: connect(t, srv.URL()), Config: func() *config.Config { return cfg }, Changed: make(chan struct{}),
			Logger: slog.New(slog.DiscardHandler), Registerer: prometheus.NewRegistry(), Now: time.Now,
		})
		wg.Go(func() { assert.NoError(t, replicas[i].Run(ctx)) })
	}
	subject := bus.EventSubject("canary", "delivered", "r1")
	require.Eventually(t, func() bool {
		n, err := b.Subjects(ctx, bus.StreamEvents, subject)
		return err == nil && n[subject] >= 4
	}, time.Minute, 50*time.Millisecond)
	mu.Lock()
	for id, n := range arrived {
		assert.Equal(t, 1, n, id)
	}
	assert.GreaterOrEqual(t, len(arrived), 4)
	sent := len(arrived)
	mu.Unlock()
	counts, err := b.Subjects(ctx, bus.StreamEvents, "lifeboat.event.canary.>")
	require.NoError(t, err)
	assert.LessOrEqual(t, counts[subject], uint64(sent+1), "two replicas say it once")
	assert.Zero(t, counts[bus.EventSubject("canary", "late", "r1")])
	for _, r := range replicas {
		require.Eventually(t, func() bool {
			at := testutil.ToFloat64(r.metrics.delivered.WithLabelValues("r1"))
			return time.Since(time.Unix(int64(at), 0)) < 10*time.Second
		}, time.Minute, 50*time.Millisecond)
	}
}

// The queue's outcome is on the log before a notifier starts: the gauge is there after a restart.
func TestTheGaugeIsThereAfterARestart(t *testing.T) {
	t.Parallel()
	b := connect(t, natstest.New(t).URL())
	require.NoError(t, b.EnsureStreams(t.Context()))
	tick := time.Now().Add(-time.Hour).Truncate(time.Second)
	require.NoError(t, b.Emit(t.Context(), sentEvent("r1", tick, 7)))
	require.NoError(t, b.Emit(t.Context(), deliveredEvent("r1", flight{tick: tick, sent: tick, arrived: tick.Add(time.Second)})))
	cfg := receivers("@every 1000h")
	c := New(Options{
		Bus: b, Config: func() *config.Config { return cfg }, Changed: make(chan struct{}),
		Logger: slog.New(slog.DiscardHandler), Registerer: prometheus.NewRegistry(), Now: time.Now,
	})
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- c.Run(ctx) }()
	require.Eventually(t, func() bool {
		return testutil.ToFloat64(c.metrics.delivered.WithLabelValues("r1")) == float64(tick.Unix()+1)
	}, time.Minute, 20*time.Millisecond)
	cancel()
	require.NoError(t, <-done)
}
