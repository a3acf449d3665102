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
	stages      *prometheus.HistogramVec
	moved       *prometheus.CounterVec
	pace        *prometheus.GaugeVec
	verified    *prometheus.CounterVec
}

// How the bytes of a snapshot are counted: as the source sends them, and as they are stored.
const (
	formRaw    = "raw"
	formStored = "stored"
)

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
			Name: "lifeboat_snapshot_size_bytes", Help: "Size of the newest snapshot, by form (raw, stored).",
		}, []string{"target", "form"}),
		stages: f.NewHistogramVec(prometheus.HistogramOpts{
			Name:    "lifeboat_job_stage_duration_seconds",
			Help:    "How long a stage of a job took that ended well, by stage (slot, claim, open, upload, read_back, commit, copy, read).",
			Buckets: prometheus.ExponentialBuckets(0.001, 4, 12),
		}, []string{"work", "stage"}),
		moved: f.NewCounterVec(prometheus.CounterOpts{
			Name: "lifeboat_snapshot_moved_bytes_total", Help: "Bytes of snapshots that were uploaded, by form (raw: as the source sent them; stored: as they were written).",
		}, []string{"target", "form"}),
		pace: f.NewGaugeVec(prometheus.GaugeOpts{
			Name: "lifeboat_snapshot_throughput_bytes_per_second", Help: "How fast the newest upload of the target was, by form (raw, stored).",
		}, []string{"target", "form"}),
		verified: f.NewCounterVec(prometheus.CounterOpts{
			Name: "lifeboat_verified_bytes_total", Help: "Stored bytes that were read and compared, by work (snapshot: read back; verify).",
		}, []string{"work", "target"}),
	}
}
