package rpo

import (
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/lifeboat-fleet/lifeboat/fleet/config"
	"github.com/lifeboat-fleet/lifeboat/services/scheduler/internal/gauges"
)

// descs describe what is told of each target. Every replica tells the same, and right after its start: it is what the configuration
// and the audit log say, and not what this process has seen.
type descs struct {
	age, info, rpo, good, success, failure, proven, rto *prometheus.Desc
}

func newDescs() descs {
	desc := func(name, help string, labels ...string) *prometheus.Desc {
		return prometheus.NewDesc(name, help, append([]string{"target"}, labels...), nil)
	}
	return descs{
		age: desc("lifeboat_snapshot_age_seconds",
			"Age of the newest good snapshot, or time since the target was first seen when there is none."),
		info: desc("lifeboat_target_info", "1 for every target of the configuration, with its kind and zone.", "kind", "zone"),
		rpo:  desc("lifeboat_target_rpo_seconds", "How old the newest good snapshot may get. Absent for a target without an rpo."),
		good: desc("lifeboat_target_last_good_snapshot_timestamp_seconds",
			"The moment that the newest good snapshot's data is of. Absent when none is known."),
		success: desc("lifeboat_target_last_success_timestamp_seconds",
			"When work last ended well, as the audit log has it. Absent when that has none.", "work"),
		failure: desc("lifeboat_target_last_failure_timestamp_seconds",
			"When work last failed, or retention was held, as the audit log has it. Absent when that has none.", "work"),
		proven: desc("lifeboat_target_proven_timestamp_seconds",
			"The moment that the data is of which the last passed drill, also one with the escrow identity, has restored. Absent when none is in the audit log."),
		rto: desc("lifeboat_target_proven_rto_seconds",
			"How long that restore took, from the first byte fetched to a server that answers with all the data."),
	}
}

// Describe implements prometheus.Collector.
func (w *Watch) Describe(out chan<- *prometheus.Desc) {
	d := w.descs
	for _, desc := range []*prometheus.Desc{d.age, d.info, d.rpo, d.good, d.success, d.failure, d.proven, d.rto} {
		out <- desc
	}
}

// Collect implements prometheus.Collector: ages are as of the scrape, of the targets that are in the configuration. There is no copy
// of what is told; each record is read in turn, so that events and ticks wait for no more than one of them.
func (w *Watch) Collect(out chan<- prometheus.Metric) {
	cfg := w.Config()
	for i := range cfg.Targets {
		w.collect(&cfg.Targets[i], out)
	}
}

func (w *Watch) collect(t *config.Target, out chan<- prometheus.Metric) {
	labels := gauges.NewLabels("target", t.Name)
	tell := func(desc *prometheus.Desc, value float64) { out <- gauges.New(desc, labels, value) }
	out <- gauges.New(w.descs.info, gauges.NewLabels("target", t.Name, "kind", t.Kind(), "zone", t.Zone), 1)
	if t.RPO > 0 {
		tell(w.descs.rpo, t.RPO.Seconds())
	}
	w.mu.Lock()
	now, have := w.now(), w.book.records[t.Name]
	if !w.caughtUp || have == nil {
		w.mu.Unlock()
		return // what the log holds is not known yet, and half of it would be wrong
	}
	r := *have
	w.mu.Unlock()
	if r.since() != 0 {
		tell(w.descs.age, time.Duration(now-r.since()).Seconds())
	}
	if r.good != 0 {
		tell(w.descs.good, float64(r.good)/float64(time.Second))
	}
	for i, work := range works() {
		if at := r.ended[i].good; at != 0 {
			out <- gauges.New(w.descs.success, gauges.NewLabels("target", t.Name, "work", work), float64(at))
		}
		if at := r.ended[i].bad; at != 0 {
			out <- gauges.New(w.descs.failure, gauges.NewLabels("target", t.Name, "work", work), float64(at))
		}
	}
	if r.proof.taken != 0 {
		tell(w.descs.proven, float64(r.proof.taken))
		tell(w.descs.rto, float64(r.proof.rto))
	}
}
