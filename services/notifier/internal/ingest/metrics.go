package ingest

import (
	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/promauto"
)

type metrics struct {
	requests *prometheus.CounterVec
	alerts   *prometheus.CounterVec
	seconds  *prometheus.HistogramVec
}

func newMetrics(reg prometheus.Registerer) *metrics {
	f := promauto.With(reg)
	return &metrics{
		requests: f.NewCounterVec(prometheus.CounterOpts{
			Name: "lifeboat_webhook_requests_total",
			Help: "Requests answered, by endpoint (alertmanager, generic; other: posted to another path) and status code. 200 means that all their alerts are stored.",
		}, []string{"endpoint", "code"}),
		alerts: f.NewCounterVec(prometheus.CounterOpts{
			Name: "lifeboat_webhook_alerts_total", Help: "Alerts taken, by status (firing, resolved, event). One that is sent again counts again, and is told once.",
		}, []string{"status"}),
		seconds: f.NewHistogramVec(prometheus.HistogramOpts{
			Name: "lifeboat_webhook_seconds", Help: "Time from a request's headers to its answer, by endpoint.",
			Buckets: prometheus.ExponentialBuckets(0.001, 4, 8),
		}, []string{"endpoint"}),
	}
}
