package rpo

import (
	"time"

	"github.com/prometheus/client_golang/prometheus"
)

// Describe implements prometheus.Collector.
func (w *Watch) Describe(out chan<- *prometheus.Desc) { out <- ageDesc() }

// Collect implements prometheus.Collector: ages are as of the scrape, of the targets that are in the configuration.
func (w *Watch) Collect(out chan<- prometheus.Metric) {
	type age struct {
		target string
		since  int64
	}
	w.mu.Lock()
	var ages []age
	if w.caughtUp {
		ages = make([]age, 0, len(w.book.records))
		for _, r := range w.book.records {
			if r.watched && r.since() != 0 {
				ages = append(ages, age{r.name, r.since()})
			}
		}
	}
	now := w.now()
	w.mu.Unlock()
	desc := ageDesc()
	for _, a := range ages {
		out <- prometheus.MustNewConstMetric(desc, prometheus.GaugeValue, time.Duration(now-a.since).Seconds(), a.target)
	}
}

func ageDesc() *prometheus.Desc {
	return prometheus.NewDesc("lifeboat_snapshot_age_seconds",
		"Age of the newest good snapshot, or time since the target was first seen when there is none.", []string{"target"}, nil)
}
