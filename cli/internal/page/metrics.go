package page

import (
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/promauto"
)

type metrics struct {
	viewers prometheus.Gauge
	refused prometheus.Counter
	renders prometheus.Counter
	seconds prometheus.Histogram
}

func newMetrics(reg prometheus.Registerer, f *fleet, now func() time.Time) *metrics {
	factory := promauto.With(reg)
	factory.NewGaugeFunc(prometheus.GaugeOpts{
		Name: "lifeboat_page_data_age_seconds",
		Help: "How long ago NATS last said what waits and runs; what the page shows is of then. -1: not yet.",
	}, func() float64 {
		f.mu.Lock()
		defer f.mu.Unlock()
		if f.answered.IsZero() {
			return -1
		}
		return now().Sub(f.answered).Seconds()
	})
	return &metrics{
		viewers: factory.NewGauge(prometheus.GaugeOpts{
			Name: "lifeboat_page_viewers", Help: "Open pages that are kept up to date.",
		}),
		refused: factory.NewCounter(prometheus.CounterOpts{
			Name: "lifeboat_page_viewers_refused_total", Help: "Times that an open page was shown how it is and told to come again, because too many are open.",
		}),
		renders: factory.NewCounter(prometheus.CounterOpts{
			Name: "lifeboat_page_renders_total", Help: "How often the page looked at the whole fleet.",
		}),
		seconds: factory.NewHistogram(prometheus.HistogramOpts{
			Name: "lifeboat_page_render_seconds", Help: "Time to look at the whole fleet, or to write the page in one language.",
			Buckets: prometheus.ExponentialBuckets(0.0005, 4, 8),
		}),
	}
}
