package worker

import (
	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/promauto"
)

type metrics struct {
	pruneMetrics
	*drillMetrics
	ended       *prometheus.CounterVec
	seconds     *prometheus.HistogramVec
	lastSuccess *prometheus.GaugeVec
	bytes       *prometheus.GaugeVec
}

func newMetrics(reg prometheus.Registerer) *metrics {
	f := promauto.With(reg)
	return &metrics{
		pruneMetrics: newPruneMetrics(f),
		drillMetrics: newDrillMetrics(f),
		ended: f.NewCounterVec(prometheus.CounterOpts{
			Name: "lifeboat_jobs_ended_total", Help: "Jobs that ended, by work, target and outcome (passed, failed).",
		}, []string{"work", "target", "outcome"}),
		seconds: f.NewHistogramVec(prometheus.HistogramOpts{
			Name: "lifeboat_job_duration_seconds", Help: "How long a job that passed took.",
			Buckets: prometheus.ExponentialBuckets(0.05, 3, 12),
		}, []string{"work", "target"}),
		lastSuccess: f.NewGaugeVec(prometheus.GaugeOpts{
			Name: "lifeboat_job_last_success_timestamp_seconds", Help: "When a job last passed.",
		}, []string{"work", "target"}),
		bytes: f.NewGaugeVec(prometheus.GaugeOpts{
			Name: "lifeboat_snapshot_size_bytes", Help: "Size of the newest snapshot, raw and stored.",
		}, []string{"target", "form"}),
	}
}
