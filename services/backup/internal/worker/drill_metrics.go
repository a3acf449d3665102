package worker

import (
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/promauto"

	lifeboatv1 "github.com/lifeboat-fleet/lifeboat/proto/lifeboat/v1"
)

// drillMetrics are those of restore drills.
type drillMetrics struct {
	rto    *prometheus.GaugeVec
	phases *prometheus.GaugeVec
	newest *prometheus.GaugeVec

	mu sync.Mutex
	// seen is the newest proven snapshot of each target that this process knows of.
	seen map[string]time.Time
}

func newDrillMetrics(f promauto.Factory) *drillMetrics {
	return &drillMetrics{
		rto: f.NewGaugeVec(prometheus.GaugeOpts{
			Name: "lifeboat_drill_rto_seconds",
			Help: "Time from the first byte fetched to a server that answers with all the data, in the newest drill that got so far.",
		}, []string{"target"}),
		phases: f.NewGaugeVec(prometheus.GaugeOpts{
			Name: "lifeboat_drill_phase_seconds", Help: "How long each phase of the newest drill took. Phases may overlap.",
		}, []string{"target", "phase"}),
		newest: f.NewGaugeVec(prometheus.GaugeOpts{
			Name: "lifeboat_proven_snapshot_timestamp_seconds",
			Help: "When the newest snapshot was taken that a drill restored and found right, as far as this process knows.",
		}, []string{"target"}),
		seen: map[string]time.Time{},
	}
}

// drilled tells of a drill that ended.
func (m *drillMetrics) drilled(report *lifeboatv1.DrillReport) {
	target := report.GetTarget()
	if report.GetLevel() == lifeboatv1.DrillReport_LEVEL_RESTORED {
		m.rto.WithLabelValues(target).Set(report.GetRto().AsDuration().Seconds())
	}
	// Phases that this drill did not reach are not those of another one.
	m.phases.DeletePartialMatch(prometheus.Labels{"target": target})
	for _, p := range report.GetPhases() {
		m.phases.WithLabelValues(target, p.GetName()).Add(p.GetTook().AsDuration().Seconds())
	}
}

// proven tells of a snapshot that a drill found right. A drill of an older one does not make the newest older.
func (m *drillMetrics) proven(target string, taken time.Time) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if taken.Before(m.seen[target]) {
		return
	}
	m.seen[target] = taken
	m.newest.WithLabelValues(target).Set(float64(taken.UnixMilli()) / 1000)
}
