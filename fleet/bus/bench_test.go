package bus_test

import (
	"fmt"
	"log/slog"
	"sync/atomic"
	"testing"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"
	"github.com/prometheus/client_golang/prometheus"
	"github.com/stretchr/testify/require"

	"github.com/lifeboat-fleet/lifeboat/fleet/bus"
	"github.com/lifeboat-fleet/lifeboat/fleet/config"
	"github.com/lifeboat-fleet/lifeboat/fleet/fleettest/natstest"
	lifeboatv1 "github.com/lifeboat-fleet/lifeboat/proto/lifeboat/v1"
)

// BenchmarkPublish is a tick's atomic batch, 16 in flight, beside the raw limit: a synchronous JetStream publish.
func BenchmarkPublish(b *testing.B) {
	s, err := natstest.Start(b.TempDir(), -1)
	require.NoError(b, err)
	b.Cleanup(s.Stop)
	c, err := bus.Connect(bus.Options{
		Config: config.NATS{URL: s.URL()}, Actor: "bench", Logger: slog.New(slog.DiscardHandler), Registerer: prometheus.NewRegistry(),
	})
	require.NoError(b, err)
	b.Cleanup(func() { require.NoError(b, c.Close()) })
	require.NoError(b, c.EnsureStreams(b.Context()))
	var n atomic.Int64
	b.Run("raw-publish", func(b *testing.B) {
		nc, err := nats.Connect(s.URL())
		require.NoError(b, err)
		defer nc.Close()
		js, err := jetstream.New(nc)
		require.NoError(b, err)
		b.SetParallelism(8)
		b.RunParallel(func(pb *testing.PB) {
			for pb.Next() {
				if _, err := js.Publish(b.Context(), "lifeboat.event.bench.raw.x", []byte("{}")); err != nil {
					b.Error(err)
				}
			}
		})
	})
	b.Run("tick-batch", func(b *testing.B) {
		b.SetParallelism(8)
		b.RunParallel(func(pb *testing.PB) {
			for pb.Next() {
				target := fmt.Sprintf("t-%d", n.Add(1))
				state := bus.State{Outgoing: bus.Outgoing{
					Subject: bus.ScheduleSubject(target, string(config.WorkSnapshot)), Message: &lifeboatv1.ScheduleState{},
				}}
				if _, err := c.PutStateWith(b.Context(), state, job(target)); err != nil {
					b.Error(err)
				}
			}
		})
	})
}
