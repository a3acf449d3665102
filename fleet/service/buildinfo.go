package service

import (
	"runtime"

	"github.com/prometheus/client_golang/prometheus"
)

// buildInfo is 1, with what was built as labels.
func buildInfo() prometheus.Collector {
	revision, _ := source()
	g := prometheus.NewGauge(prometheus.GaugeOpts{
		Name: "lifeboat_build_info", Help: "1, with the version of Lifeboat, the commit and the version of Go that it was built with.",
		ConstLabels: prometheus.Labels{"version": Version(), "commit": revision, "goversion": runtime.Version()},
	})
	g.Set(1)
	return g
}
