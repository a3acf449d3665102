package deliver

import (
	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/promauto"
)

type metrics struct {
	routed    *prometheus.CounterVec
	delivered *prometheus.CounterVec
	alerts    *prometheus.CounterVec
	folded    *prometheus.CounterVec
	failed    *prometheus.CounterVec
	handedOn  *prometheus.CounterVec
	lag       *prometheus.HistogramVec
	waiting   *prometheus.GaugeVec
	oldest    *prometheus.GaugeVec
	paused    *prometheus.GaugeVec
	held      *prometheus.GaugeVec
}

func newMetrics(reg prometheus.Registerer) *metrics {
	f := promauto.With(reg)
	counter := func(name, help string, labels ...string) *prometheus.CounterVec {
		return f.NewCounterVec(prometheus.CounterOpts{Name: name, Help: help}, append([]string{"receiver"}, labels...))
	}
	gauge := func(name, help string) *prometheus.GaugeVec {
		return f.NewGaugeVec(prometheus.GaugeOpts{Name: name, Help: help}, []string{"receiver"})
	}
	return &metrics{
		routed:    counter("lifeboat_alerts_routed_total", "Alerts given to a receiver by the routes."),
		delivered: counter("lifeboat_deliveries_total", "Messages that a chat accepted, by kind (message, digest).", "kind"),
		alerts:    counter("lifeboat_alerts_delivered_total", "Alerts that were told in a message or a digest."),
		folded: counter("lifeboat_alerts_folded_total",
			"Alerts that were not told because people know already, by reason (duplicate, repeat, stale, superseded, muted).", "reason"),
		failed:   counter("lifeboat_delivery_attempts_failed_total", "Attempts that a chat did not accept, by reason (throttled, parked until a person mends it, timeout, unavailable, or the refusal).", "reason"),
		handedOn: counter("lifeboat_deliveries_handed_on_total", "Deliveries that a fallback took over."),
		lag: f.NewHistogramVec(prometheus.HistogramOpts{
			Name: "lifeboat_delivery_lag_seconds", Help: "From the receipt of an alert to its acceptance by the chat.",
			Buckets: prometheus.ExponentialBuckets(0.001, 4, 14),
		}, []string{"receiver"}),
		waiting: gauge("lifeboat_deliveries_waiting", "Deliveries that wait, those in work included."),
		oldest:  gauge("lifeboat_deliveries_oldest_seconds", "Age of the oldest delivery that waits; 0 when none does."),
		paused:  gauge("lifeboat_notify_paused_seconds", "How long the receiver's robot or channel is still left alone; 0 when it is not."),
		held:    gauge("lifeboat_deliveries_held", "Deliveries that wait for a time interval to end or an alert to stop flapping."),
	}
}
