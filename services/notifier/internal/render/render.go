// Package render turns a delivery into a notice: a title with status, severity and count, and for each alert what it is,
// since when, and the runbook.
package render

import (
	"cmp"
	"fmt"
	"maps"
	"slices"
	"strings"
	"unicode"

	"google.golang.org/protobuf/types/known/timestamppb"

	lifeboatv1 "github.com/lifeboat-fleet/lifeboat/proto/lifeboat/v1"
	"github.com/lifeboat-fleet/lifeboat/services/notifier/internal/notice"
)

// maxItems is how many alerts one message shows: more do not help at three in the morning, and 20 fill Slack's blocks.
const maxItems = 15

// Runbook finds an alert's page; it returns nothing when there is none.
type Runbook func(name string, annotations map[string]string) string

// Render makes the notice of a delivery.
func Render(d *lifeboatv1.Delivery, runbook Runbook) notice.Notice {
	n := d.GetNotification()
	alerts := slices.Clone(n.GetAlerts())
	slices.SortStableFunc(alerts, func(a, b *lifeboatv1.Alert) int {
		return cmp.Or(
			cmp.Compare(rank(b), rank(a)),
			a.GetStartsAt().AsTime().Compare(b.GetStartsAt().AsTime()),
			cmp.Compare(a.GetFingerprint(), b.GetFingerprint()),
		)
	})
	out := notice.Notice{Truncated: n.GetTruncatedAlerts(), Footer: footer(d)}
	firing := 0
	for i, a := range alerts {
		if isFiring(a) {
			firing++
		}
		if i < maxItems {
			out.Items = append(out.Items, item(a, runbook))
		} else {
			out.More++
		}
	}
	out.Status = status(firing, n.GetTruncatedAlerts())
	out.Severity = worst(alerts)
	out.Title = title(out.Status, firing, n, out.Severity)
	return out
}

func isFiring(a *lifeboatv1.Alert) bool { return a.GetStatus() == "firing" }

// status never calls a group resolved of which alerts are missing: Alertmanager computes a group's status after it cut
// the group, so firing alerts may be among those that are missing.
func status(firing int, truncated int64) notice.Status {
	switch {
	case firing > 0:
		return notice.Firing
	case truncated > 0:
		return notice.Partial
	}
	return notice.Resolved
}

// title is "[FIRING:2] LifeboatDrillFailed etcd-prod (critical)".
func title(s notice.Status, firing int, n *lifeboatv1.Notification, severity string) string {
	count := len(n.GetAlerts())
	if s == notice.Firing {
		count = firing
	}
	parts := []string{fmt.Sprintf("[%s:%d]", strings.ToUpper(string(s)), count)}
	common := shared(n.GetAlerts())
	if name := common["alertname"]; name != "" {
		parts = append(parts, name)
	} else {
		parts = append(parts, fmt.Sprintf("%d kinds of alert", kinds(n.GetAlerts())))
	}
	for _, l := range []string{"target", "service", "job", "instance"} {
		if v := common[l]; v != "" {
			parts = append(parts, v)
			break
		}
	}
	if severity != "" {
		parts = append(parts, "("+severity+")")
	}
	if n.GetParts() > 1 {
		parts = append(parts, fmt.Sprintf("part %d of %d", n.GetPart(), n.GetParts()))
	}
	return clean(strings.Join(parts, " "))
}

// clean drops control characters and those that turn the direction of the text, with which a label could make a line
// read as something else.
func clean(s string) string {
	return strings.Map(func(r rune) rune {
		if r == '\n' || r == '\t' || !unicode.IsControl(r) && !unicode.Is(unicode.Bidi_Control, r) {
			return r
		}
		return -1
	}, s)
}

// shared are the labels that all alerts have alike. The notification's own common labels are those of the group before
// it was routed.
func shared(alerts []*lifeboatv1.Alert) map[string]string {
	if len(alerts) == 0 {
		return nil
	}
	out := maps.Clone(alerts[0].GetLabels())
	for _, a := range alerts[1:] {
		maps.DeleteFunc(out, func(k, v string) bool { return a.GetLabels()[k] != v })
	}
	return out
}

func kinds(alerts []*lifeboatv1.Alert) int {
	names := map[string]bool{}
	for _, a := range alerts {
		names[a.GetLabels()["alertname"]] = true
	}
	return len(names)
}

// severityRank orders the names that rules commonly use.
func severityRank(s string) int {
	order := []string{"", "none", "info", "notice", "warning", "error", "major", "high", "critical", "page", "emergency"}
	return max(slices.Index(order, strings.ToLower(s)), 0)
}

func rank(a *lifeboatv1.Alert) int {
	r := severityRank(a.GetLabels()["severity"])
	if isFiring(a) {
		r += 100
	}
	return r
}

func worst(alerts []*lifeboatv1.Alert) string {
	out, best := "", -1
	for _, a := range alerts {
		if s := a.GetLabels()["severity"]; s != "" && rank(a) > best {
			out, best = s, rank(a)
		}
	}
	return out
}

func item(a *lifeboatv1.Alert, runbook Runbook) notice.Item {
	name := a.GetLabels()["alertname"]
	it := notice.Item{
		Firing: isFiring(a), Name: clean(name),
		Summary: clean(cmp.Or(
			a.GetAnnotations()["summary"], a.GetAnnotations()["message"], name, "alert without a name")),
		Description: clean(a.GetAnnotations()["description"]),
		Runbook:     runbook(name, a.GetAnnotations()),
	}
	if a.GetStartsAt() != nil {
		it.Starts = a.GetStartsAt().AsTime()
	}
	if !it.Firing && a.GetEndsAt() != nil {
		it.Ends = a.GetEndsAt().AsTime()
	}
	for _, k := range slices.Sorted(maps.Keys(a.GetLabels())) {
		if k != "alertname" {
			it.Labels = append(it.Labels, notice.Label{Name: clean(k), Value: clean(a.GetLabels()[k])})
		}
	}
	return it
}

func footer(d *lifeboatv1.Delivery) string {
	n := d.GetNotification()
	parts := []string{"from " + cmp.Or(n.GetOrigin(), "alertmanager")}
	if n.GetOrigin() == "lifeboat" {
		parts = []string{"from lifeboat itself: no Alertmanager took it"}
	}
	if n.GetReceivedAt() != nil {
		parts = append(parts, "received "+stamp(n.GetReceivedAt()))
	}
	return strings.Join(append(parts, "route "+d.GetRoute(), "delivery "+d.GetId()), " · ")
}

func stamp(t *timestamppb.Timestamp) string {
	return t.AsTime().UTC().Format("2006-01-02 15:04:05 UTC")
}
