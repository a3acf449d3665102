package bus

import (
	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/promauto"
)

type metrics struct {
	handled  *prometheus.CounterVec
	seconds  *prometheus.HistogramVec
	dead     *prometheus.CounterVec
	lost     prometheus.Counter
	inFlight *prometheus.GaugeVec
	durable  *prometheus.GaugeVec
	deaf     *prometheus.GaugeVec
}

func newMetrics(reg prometheus.Registerer) *metrics {
	f := promauto.With(reg)
	return &metrics{
		handled: f.NewCounterVec(prometheus.CounterOpts{
			Name: "lifeboat_messages_handled_total",
			Help: "Messages handled, by consumer and outcome (ack, retry, dead, handed_back).",
		}, []string{"consumer", "outcome"}),
		seconds: f.NewHistogramVec(prometheus.HistogramOpts{
			Name:    "lifeboat_message_handling_seconds",
			Help:    "Time spent in a handler.",
			Buckets: prometheus.ExponentialBuckets(0.001, 4, 12),
		}, []string{"consumer"}),
		dead: f.NewCounterVec(prometheus.CounterOpts{
			Name: "lifeboat_dead_letters_total",
			Help: "Messages that could not be processed and were put aside, by short reason.",
		}, []string{"reason"}),
		lost: f.NewCounter(prometheus.CounterOpts{
			Name: "lifeboat_messages_lost_lease_total",
			Help: "Handlers cancelled because the server did not confirm their heartbeats in time.",
		}),
		inFlight: f.NewGaugeVec(prometheus.GaugeOpts{
			Name: "lifeboat_messages_in_flight",
			Help: "Messages being handled now.",
		}, []string{"consumer"}),
		durable: f.NewGaugeVec(prometheus.GaugeOpts{
			Name: "lifeboat_nats_durable",
			Help: "1 if what NATS acknowledged outlives its servers, 0 if not, by aspect: replicas (three of every stream), " +
				"sync (written to disk before it is acknowledged). An aspect that is not known is absent.",
		}, []string{"aspect"}),
		deaf: f.NewGaugeVec(prometheus.GaugeOpts{
			Name: "lifeboat_nats_streams_unfollowed",
			Help: "Parts of this process that should follow a stream and cannot: they do not hear what happens.",
		}, []string{"stream"}),
	}
}
