package render

import (
	"cmp"
	"fmt"
	"slices"
	"time"

	lifeboatv1 "github.com/lifeboat-fleet/lifeboat/proto/lifeboat/v1"
	"github.com/lifeboat-fleet/lifeboat/services/notifier/internal/notice"
)

// group is what a digest says in one line: all deliveries that wait of one group of alerts.
type group struct {
	in        []Input
	alerts    []*lifeboatv1.Alert
	truncated int64
	received  time.Time
}

// Digest is one notice of several deliveries to a receiver, a line for each group of alerts, the worst first. Every delivery that it
// is given is in it: give it at most MaxDigest, and send the rest afterwards. why is the reason in words for people ("Slack
// throttled").
func (r *Renderer) Digest(in []Input, why string) notice.Notice {
	if len(in) == 0 {
		return notice.Notice{Digest: true}
	}
	out := r.frame(in[0])
	out.Digest, out.Footer = true, fmt.Sprintf(out.Words.Times, out.Zone)
	groups := gather(in)
	var all []*lifeboatv1.Alert
	first := in[0]
	for _, g := range groups {
		all = append(all, g.alerts...)
		out.Truncated += g.truncated
	}
	for _, i := range in {
		if i.Mention {
			out.Mentions = append(out.Mentions, i.Delivery.GetMentions()...)
		}
		if older(i, first) {
			first = i
		}
	}
	slices.Sort(out.Mentions)
	out.Mentions = slices.Compact(out.Mentions)
	all = sorted(all)
	out.Critical, out.Severity = Critical(all), clean(worst(all), maxName)
	out.Status = status(all, out.Truncated)
	for _, g := range groups {
		out.Items = append(out.Items, g.item(out))
	}
	out.Title = digestTitle(out, groups, all, why)
	first.Trouble = cmp.Or(why, first.Trouble)
	out.Late = late(first, out)
	return out
}

func digestTitle(out notice.Notice, groups []*group, all []*lifeboatv1.Alert, why string) string {
	w, count := out.Words, len(all)
	if out.Status == notice.Firing {
		count = firing(all)
	}
	alerts := w.AlertCount(len(all))
	if out.Severity != "" {
		alerts += " (" + out.Severity + ")"
	}
	title := tag(w, out.Status, count) + " " + fmt.Sprintf(w.Digest, w.GroupCount(len(groups)), alerts)
	if why != "" {
		title += w.Colon + why
	}
	return line(title, maxTitle)
}

// older says whether a delivery was received before another.
func older(a, b Input) bool {
	x, y := a.Delivery.GetNotification().GetReceivedAt(), b.Delivery.GetNotification().GetReceivedAt()
	return x != nil && (y == nil || x.AsTime().Before(y.AsTime()))
}

// gather joins the deliveries of a group. Of an alert that is in several of them the newest counts, which is in the one that was
// received last.
func gather(in []Input) []*group {
	var out []*group
	index := map[string]*group{}
	at := map[*group]map[string]int{}
	for _, i := range slices.SortedStableFunc(slices.Values(in), byReceived) {
		n := i.Delivery.GetNotification()
		key := n.GetReceiver() + "\x00" + n.GetGroupKey()
		g := index[key]
		if g == nil || n.GetGroupKey() == "" {
			g = &group{}
			index[key], at[g] = g, map[string]int{}
			out = append(out, g)
		}
		g.in = append(g.in, i)
		g.truncated = max(g.truncated, n.GetTruncatedAlerts())
		if t := n.GetReceivedAt(); t != nil && (g.received.IsZero() || t.AsTime().Before(g.received)) {
			g.received = t.AsTime()
		}
		for _, a := range n.GetAlerts() {
			if old, ok := at[g][a.GetFingerprint()]; ok && a.GetFingerprint() != "" {
				g.alerts[old] = a
				continue
			}
			at[g][a.GetFingerprint()] = len(g.alerts)
			g.alerts = append(g.alerts, a)
		}
	}
	for _, g := range out {
		g.alerts = sorted(g.alerts)
	}
	slices.SortStableFunc(out, func(a, b *group) int {
		return cmp.Or(cmp.Compare(b.rank(), a.rank()), a.received.Compare(b.received))
	})
	return out
}

func byReceived(a, b Input) int {
	return a.Delivery.GetNotification().GetReceivedAt().AsTime().Compare(b.Delivery.GetNotification().GetReceivedAt().AsTime())
}

func (g *group) rank() int {
	if len(g.alerts) == 0 {
		return -1
	}
	return rank(g.alerts[0])
}

// item is the group's line.
func (g *group) item(out notice.Notice) notice.Item {
	same := shared(g.alerts)
	it := notice.Item{
		Firing: g.rank() >= 100, Count: len(g.alerts), Severity: line(worst(g.alerts), maxName),
		Name: line(subject(out.Words, g.alerts, same), maxName), Labels: labels(same), Note: g.note(out),
	}
	for _, a := range g.alerts {
		if s := a.GetStartsAt(); s != nil && (it.Starts.IsZero() || s.AsTime().Before(it.Starts)) {
			it.Starts = s.AsTime()
		}
		if e := a.GetEndsAt(); e != nil && !it.Firing && e.AsTime().After(it.Ends) {
			it.Ends = e.AsTime()
		}
	}
	if len(g.alerts) == 0 {
		return it
	}
	it.Summary = line(g.summary(), maxSummary)
	if page := g.in[len(g.in)-1].Page; page != nil {
		p := page(g.alerts[0])
		it.Runbook, it.RunbookDead, it.HasRunbook = p.Link, p.Dead, p.Found
	}
	return it
}

// summary is the one that all alerts share; that of one alert would say less than there is.
func (g *group) summary() string {
	text := func(a *lifeboatv1.Alert) string {
		return cmp.Or(a.GetAnnotations()["summary"], a.GetAnnotations()["message"])
	}
	for _, a := range g.alerts[1:] {
		if text(a) != text(g.alerts[0]) {
			return ""
		}
	}
	return text(g.alerts[0])
}

// note is "fired 14:02", and what else must be said of one of its alerts or of how it came.
func (g *group) note(out notice.Notice) string {
	w, last := out.Words, g.in[len(g.in)-1]
	note := ""
	if !g.received.IsZero() {
		when, _ := moments(g.received, last.Now, out.Zone)
		format := w.Came
		if g.rank() >= 100 {
			format = w.Fired
		}
		note = fmt.Sprintf(format, when)
	}
	last.Trouble = ""
	more := []string{reasons(last, w)}
	for _, a := range g.alerts {
		for _, i := range g.in {
			more = append(more, i.Notes[a.GetFingerprint()])
		}
	}
	told := map[string]bool{"": true}
	for _, m := range more {
		if !told[m] {
			note, told[m] = note+w.And+m, true
		}
		if len(note) > maxNote {
			break
		}
	}
	return line(note, maxNote)
}
