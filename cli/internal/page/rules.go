package page

import (
	"time"

	"github.com/lifeboat-fleet/lifeboat/fleet/bus"
	"github.com/lifeboat-fleet/lifeboat/fleet/config"
)

// level is how bad something is, the worst first.
type level int

const (
	red level = iota
	amber
	unknown
	good
)

// String is the level's name in the page's style sheet.
func (l level) String() string { return [...]string{"red", "amber", "unknown", "good"}[l] }

// rule makes a note of a target from its events: it holds while the bad event is newer than the good one. They are those of which the
// notifier makes alerts, so that the page and the chat say the same.
type rule struct {
	noun, bad, good string
	level           level
	// alert is the notifier's, whose runbook helps.
	alert string
	// work is what `lifeboat why --work` is asked about; empty: the snapshot.
	work config.Work
	// lasts is how long it holds when no event ends it.
	lasts time.Duration
	// title picks the sentence, in which %s is the target.
	title func(*words) string
}

// Something that only happened is shown for a day.
const incidentLasts = 24 * time.Hour

func rules() []rule {
	return []rule{
		{noun: "snapshot", bad: "failed", good: "committed", level: red, alert: "LifeboatSnapshotFailed", title: func(w *words) string { return w.SnapshotFailed }},
		{
			noun: "verify", bad: "failed", good: "passed", level: red, alert: "LifeboatVerifyFailed", work: config.WorkVerify,
			title: func(w *words) string { return w.VerifyFailed },
		},
		{
			noun: "drill", bad: "failed", good: "passed", level: red, alert: "LifeboatDrillFailed", work: config.WorkDrill,
			title: func(w *words) string { return w.DrillFailed },
		},
		{
			noun: "drill", bad: "escrow-failed", good: "escrow-passed", level: red, alert: "LifeboatEscrowDrillFailed", work: config.WorkDrill,
			title: func(w *words) string { return w.EscrowFailed },
		},
		{noun: "copy", bad: "failed", good: "passed", level: red, alert: "LifeboatCopyFailed", title: func(w *words) string { return w.CopyFailed }},
		{
			noun: "prune", bad: "failed", good: "passed", level: amber, alert: "LifeboatPruneFailed", work: config.WorkPrune,
			title: func(w *words) string { return w.PruneFailed },
		},
		{
			noun: "prune", bad: "held", good: "passed", level: amber, alert: "LifeboatPruneHeld", work: config.WorkPrune,
			title: func(w *words) string { return w.PruneHeld },
		},
		{noun: "source", bad: "worrying", good: "well", level: amber, alert: "LifeboatSourceWorrying", title: func(w *words) string { return w.SourceWorrying }},
		{noun: "job", bad: "rejected", level: amber, alert: "LifeboatJobRejected", lasts: incidentLasts, title: func(w *words) string { return w.JobRejected }},
		{noun: "canary", bad: "late", good: "delivered", level: red, alert: "LifeboatCanaryLate", title: func(w *words) string { return w.CanaryLate }},
		{noun: "alert", bad: "missed", level: red, alert: "LifeboatAlertMissed", lasts: incidentLasts, title: func(w *words) string { return w.AlertMissed }},
	}
}

// about says whether the rule is about receivers or alerts, and not about a target of the configuration.
func (r *rule) aboutAlerts() bool { return r.noun == "canary" || r.noun == "alert" }

// deliveryEnds are the verbs of events that end a delivery.
func deliveryEnds() []string { return []string{"delivered", "folded", "handed-on", "dead"} }

// filters are the subjects of all events that the page shows something of, or looks anew after. The server refuses filters that
// overlap.
func filters() []string {
	seen := map[string]bool{}
	var all []string
	add := func(noun string, verbs ...string) {
		for _, v := range verbs {
			if s := bus.EventSubject(noun, v, "*"); v != "" && !seen[s] {
				seen[s] = true
				all = append(all, s)
			}
		}
	}
	for _, r := range rules() {
		add(r.noun, r.bad, r.good)
	}
	add("alert", deliveryEnds()...)
	add("target", "added")
	add("rpo", "exceeded", "met")
	add("tick", "missed")
	add("schedule", "paused", "resumed")
	add("dead", "replayed")
	add("job", "handed-back", "stopped", "cancelled")
	for _, w := range config.Works() {
		add(string(w), "started", "interrupted")
	}
	return all
}
