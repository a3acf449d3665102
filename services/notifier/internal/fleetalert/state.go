package fleetalert

import (
	"cmp"
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"

	"go.opentelemetry.io/otel/trace"

	"github.com/lifeboat-fleet/lifeboat/fleet/bus"
	"github.com/lifeboat-fleet/lifeboat/fleet/config"
	"github.com/lifeboat-fleet/lifeboat/fleet/tracing"
	lifeboatv1 "github.com/lifeboat-fleet/lifeboat/proto/lifeboat/v1"
	"github.com/lifeboat-fleet/lifeboat/services/notifier/internal/runbook"
)

const (
	// rejectedFor is how long a rejected job, or an alert that went astray, is an alert: nothing later says that it is over.
	rejectedFor = 15 * time.Minute
	// resolvedFor is how long a resolved alert is sent again, as Prometheus does, so that a lost post does no harm.
	resolvedFor = 5 * time.Minute
)

// rule derives one alert of a target from its events: it fires while the bad event is newer than the good one, or, with
// lasts, for so long after the bad event.
type rule struct {
	alert, severity, summary string
	noun, bad, good          string
	lasts                    time.Duration
}

func rules() []rule {
	return []rule{
		{alert: "LifeboatSnapshotFailed", severity: "critical", summary: "Snapshot of %s failed", noun: "snapshot", bad: "failed", good: "committed"},
		{alert: "LifeboatVerifyFailed", severity: "critical", summary: "Verification of the stored snapshots of %s failed", noun: "verify", bad: "failed", good: "passed"},
		{alert: "LifeboatDrillFailed", severity: "warning", summary: "Restore drill of %s failed", noun: "drill", bad: "failed", good: "passed"},
		{alert: "LifeboatEscrowDrillFailed", severity: "warning", summary: "Restore drill of %s with the escrow identity failed", noun: "drill", bad: "escrow-failed", good: "escrow-passed"},
		{alert: "LifeboatSourceWorrying", severity: "warning", summary: "Something about the source %s should worry somebody", noun: "source", bad: "worrying", good: "well"},
		{alert: "LifeboatCopyFailed", severity: "critical", summary: "A snapshot of %s is not in the second bucket", noun: "copy", bad: "failed", good: "passed"},
		{alert: "LifeboatPruneFailed", severity: "warning", summary: "Retention of %s could not be applied", noun: "prune", bad: "failed", good: "passed"},
		{alert: "LifeboatPruneHeld", severity: "warning", summary: "%s suddenly shrank; nothing is deleted until somebody confirms", noun: "prune", bad: "held", good: "passed"},
		{alert: "LifeboatRPOExceeded", severity: "critical", summary: "%s has no good snapshot within its RPO", noun: "rpo", bad: "exceeded", good: "met"},
		{alert: "LifeboatCanaryLate", severity: "critical", summary: "The canary of receiver %s was not delivered in time", noun: "canary", bad: "late", good: "delivered"},
		{alert: "LifeboatAlertMissed", severity: "critical", summary: "Alertmanager fires an alert about %s that it never delivered to Lifeboat", noun: "alert", bad: "missed", lasts: rejectedFor},
		{alert: "LifeboatAlertDead", severity: "critical", summary: "An alert about %s could not be delivered and lies in the dead letters", noun: "alert", bad: "dead", lasts: rejectedFor},
		{alert: "LifeboatJobRejected", severity: "warning", summary: "A job for %s was rejected", noun: "job", bad: "rejected", lasts: rejectedFor},
	}
}

// filters are the subjects of all rules' events, each once: the server refuses filters that overlap.
func filters() []string {
	var out []string
	for _, r := range rules() {
		for _, verb := range []string{r.bad, r.good} {
			if verb != "" {
				out = append(out, bus.EventSubject(r.noun, verb, "*"))
			}
		}
	}
	slices.Sort(out)
	return slices.Compact(out)
}

// Alert is one of the fleet's own.
type Alert struct {
	Name, Target        string
	Firing              bool
	Labels, Annotations map[string]string
	StartsAt            time.Time
	// EndsAt is when it ended, or when it will end by itself; zero for one that fires until something happens.
	EndsAt time.Time
	// Trace is that of the event which began or ended it; it goes on with the alert.
	Trace trace.SpanContext
}

// key names an alert in one of its states.
func (a Alert) key() string {
	return fmt.Sprintf("%s/%s/%d/%t", a.Name, a.Target, a.StartsAt.UnixNano(), a.Firing)
}

// state is what is known from the events. The stream's order decides what is newer; the events' own times are only told.
type state struct{ pairs map[pairKey]*pair }

type pairKey struct{ alert, target string }

type pair struct {
	rule             rule
	target           string
	badSeq, goodSeq  uint64
	since, bad, good time.Time
	message          string
	badTrace         trace.SpanContext
	goodTrace        trace.SpanContext
}

func newState() *state { return &state{pairs: map[pairKey]*pair{}} }

// apply takes an event. One that was applied already changes nothing.
func (s *state) apply(seq uint64, stored time.Time, e *lifeboatv1.Event, sc trace.SpanContext) {
	at := stored
	if e.GetTime() != nil {
		at = e.GetTime().AsTime()
	}
	target := cmp.Or(e.GetTarget(), "fleet")
	for _, r := range rules() {
		if r.noun != e.GetNoun() || (e.GetVerb() != r.bad && e.GetVerb() != r.good) {
			continue
		}
		k := pairKey{r.alert, target}
		p := s.pairs[k]
		if p == nil {
			p = &pair{rule: r, target: target}
			s.pairs[k] = p
		}
		p.apply(seq, at, e, sc)
	}
}

func (p *pair) apply(seq uint64, at time.Time, e *lifeboatv1.Event, sc trace.SpanContext) {
	if e.GetVerb() == p.rule.good {
		if seq > p.goodSeq {
			p.goodSeq, p.good, p.goodTrace = seq, at, sc
		}
		return
	}
	if seq <= p.badSeq {
		return
	}
	again := p.badSeq > p.goodSeq
	if p.rule.lasts > 0 {
		again = p.badSeq > 0 && at.Sub(p.bad) < p.rule.lasts
	}
	if !again {
		p.since = at
	}
	p.badSeq, p.bad, p.message, p.badTrace = seq, at, e.GetMessage(), sc
}

// alerts are those that fire now and those that ended a short while ago, in a stable order.
func (s *state) alerts(now time.Time, cfg *config.Config) []Alert {
	var out []Alert
	for _, p := range s.pairs {
		if a, ok := p.alert(now, cfg); ok {
			out = append(out, a)
		}
	}
	slices.SortFunc(out, func(a, b Alert) int { return strings.Compare(a.key(), b.key()) })
	return out
}

func (p *pair) alert(now time.Time, cfg *config.Config) (Alert, bool) {
	if p.badSeq == 0 || p.gone(cfg) {
		return Alert{}, false
	}
	a := Alert{Name: p.rule.alert, Target: p.target, StartsAt: p.since, Trace: p.badTrace}
	if p.rule.lasts > 0 {
		a.EndsAt = p.bad.Add(p.rule.lasts)
		a.Firing = now.Before(a.EndsAt)
	} else if a.Firing = p.badSeq > p.goodSeq; !a.Firing {
		a.EndsAt, a.Trace = p.good, p.goodTrace
	}
	if !a.Firing && now.Sub(a.EndsAt) >= resolvedFor {
		return Alert{}, false
	}
	if !a.EndsAt.IsZero() && !a.EndsAt.After(a.StartsAt) {
		// The two events' clocks differ; Alertmanager refuses an end before the start.
		a.EndsAt = a.StartsAt.Add(time.Second)
	}
	a.Labels = map[string]string{
		"alertname": a.Name, "target": a.Target, "severity": p.rule.severity, "service": "lifeboat",
	}
	a.Annotations = map[string]string{"summary": fmt.Sprintf(p.rule.summary, p.target), "description": p.message}
	if link := runbook.Link(cfg.Notifier.Runbooks, a.Name, nil); link != "" {
		a.Annotations[runbook.Annotation] = link
	}
	a.Annotations[tracing.Header] = tracing.Text(a.Trace) // which comes back with the webhook
	maps.DeleteFunc(a.Annotations, func(_, v string) bool { return v == "" })
	return a, true
}

// gone: the target, or a receiver's canary, was taken out of the configuration, so nothing will ever be good again. A rejected job is often one
// for a target that does not exist, and says so for its quarter of an hour.
func (p *pair) gone(cfg *config.Config) bool {
	if p.rule.lasts > 0 || (len(cfg.Targets) == 0 && p.rule.noun != "canary") {
		return false
	}
	if p.rule.noun == "canary" {
		return !slices.ContainsFunc(cfg.Notifier.Receivers, func(r config.Receiver) bool {
			return r.Name == p.target && r.Canary.Schedule != ""
		})
	}
	_, known := cfg.Target(p.target)
	return !known
}
