// Package gauges makes metrics of very many series that are cheap to collect: a scrape of 100,000 targets makes some hundred thousand
// of them and forgets them again, and the client library's own constant metrics would take three times the memory.
package gauges

import (
	"cmp"
	"slices"

	"github.com/prometheus/client_golang/prometheus"
	dto "github.com/prometheus/client_model/go"
)

// Labels are the labels of one or more series, sorted as Prometheus has them. They are shared by all series that have the same, and
// must not be changed.
type Labels []*dto.LabelPair

// NewLabels makes labels of names and values in turn.
func NewLabels(namesAndValues ...string) Labels {
	pairs := make([]dto.LabelPair, len(namesAndValues)/2)
	labels := make(Labels, len(pairs))
	for i := range pairs {
		pairs[i].Name, pairs[i].Value = &namesAndValues[2*i], &namesAndValues[2*i+1]
		labels[i] = &pairs[i]
	}
	slices.SortFunc(labels, func(a, b *dto.LabelPair) int { return cmp.Compare(a.GetName(), b.GetName()) })
	return labels
}

// New is a gauge with a value as of now. The labels' names must be those of the description.
func New(desc *prometheus.Desc, labels Labels, value float64) prometheus.Metric {
	return &gauge{desc, labels, value}
}

type gauge struct {
	desc   *prometheus.Desc
	labels Labels
	value  float64
}

// Desc implements prometheus.Metric.
func (g *gauge) Desc() *prometheus.Desc { return g.desc }

// Write implements prometheus.Metric.
func (g *gauge) Write(out *dto.Metric) error {
	out.Label, out.Gauge = g.labels, &dto.Gauge{Value: &g.value}
	return nil
}
