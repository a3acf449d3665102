package emit

import (
	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/promauto"
)

// metrics name no targets: of 100,000 they would take as much memory as all the rest. The events tell of each tick.
type metrics struct {
	schedules prometheus.Gauge
	emitted   *prometheus.CounterVec
	missed    *prometheus.CounterVec
	lateness  prometheus.Histogram
}

func newMetrics(reg prometheus.Registerer) *metrics {
	f := promauto.With(reg)
	return &metrics{
		schedules: f.NewGauge(prometheus.GaugeOpts{Name: "lifeboat_schedules", Help: "Schedules in the timetable."}),
		emitted: f.NewCounterVec(prometheus.CounterOpts{
			Name: "lifeboat_ticks_emitted_total", Help: "Ticks that this replica emitted as jobs.",
		}, []string{"schedule"}),
		missed: f.NewCounterVec(prometheus.CounterOpts{
			Name: "lifeboat_ticks_missed_total", Help: "Ticks that this replica recorded as missed, by reason (down, paused, blackout, overlap, removed).",
		}, []string{"schedule", "reason"}),
		lateness: f.NewHistogram(prometheus.HistogramOpts{
			Name: "lifeboat_tick_lateness_seconds", Help: "From the scheduled time to the decision.",
			Buckets: prometheus.ExponentialBuckets(0.001, 4, 12),
		}),
	}
}
