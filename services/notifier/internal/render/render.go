// Package render turns deliveries into notices: a title with status, severity and count, and for each alert what it is,
// since when, and what to do about it. A receiver's own templates in Alertmanager's language may write the text instead.
//
// A message is read on a phone by somebody who slept a minute ago. What fires comes first, the worst of it at the top; the title
// alone says what and where; what an alert holds is shown, and can do nothing else.
package render

import (
	"cmp"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"

	"github.com/lifeboat-fleet/lifeboat/fleet/config"
	lifeboatv1 "github.com/lifeboat-fleet/lifeboat/proto/lifeboat/v1"
	"github.com/lifeboat-fleet/lifeboat/services/notifier/internal/notice"
)

const (
	// maxItems is how many alerts one message shows: more do not help at three in the morning, and 20 fill Slack's blocks.
	maxItems = 15
	// MaxDigest is how many deliveries one digest is best given: what more there are belong into the next one.
	MaxDigest = 40
)

// Page is an alert's runbook, as package runbook finds it.
type Page struct {
	// Found says that there is a page, even if it has no address.
	Found bool
	// Link is an http or https address, or empty; Dead says what is wrong with it.
	Link, Dead string
	Steps      []notice.Step
}

// Input is what a notice is made of.
type Input struct {
	Receiver config.Receiver
	// Delivery holds the alerts to show, each in its newest state.
	Delivery *lifeboatv1.Delivery
	// Notes are what else is to be said of an alert, by its fingerprint: "flapped 6 times in 10m0s".
	Notes map[string]string
	// Told are the fingerprints of the alerts that were told before in this very state.
	Told map[string]bool
	// StillFires is how many other alerts of the group fire on, when the notice changes the message that stands for all of the group.
	StillFires int
	// Mention says that something in it begins to fire, so that people are mentioned.
	Mention bool
	// Trouble is why it is late, when the chat is to blame: "Slack throttled". Empty when it is not.
	Trouble string
	Now     time.Time
	// Page finds an alert's runbook; nil finds none.
	Page func(alert *lifeboatv1.Alert) Page
	// Links makes the signed links that silence; nil makes none.
	Links func(matchers map[string]string, comment string) []notice.Link
	// Buttons says that somebody listens to a chat's own buttons.
	Buttons bool
}

// Renderer makes notices. It may be used by several goroutines.
type Renderer struct {
	zones    map[string]*time.Location
	programs map[string]*program
}

// New reads template_files and parses the receivers' templates. An error names each receiver, key, file and line that is wrong. The
// Renderer can be used even so: receivers whose templates are broken get the default message, which says it.
func New(cfg config.Notifier) (*Renderer, error) {
	r := &Renderer{zones: map[string]*time.Location{}, programs: map[string]*program{}}
	var errs []error
	for i, receiver := range cfg.Receivers {
		zone, err := time.LoadLocation(receiver.TimeZone)
		if err != nil {
			errs = append(errs, fmt.Errorf("notifier.receivers[%d].time_zone (receiver %s): %w", i, receiver.Name, err))
			continue
		}
		r.zones[receiver.TimeZone] = zone
	}
	return r, errors.Join(append(errs, r.compile(cfg))...)
}

// Critical says whether one of the alerts has severity critical, page or emergency, whether it fires or has ended.
func Critical(alerts []*lifeboatv1.Alert) bool {
	return slices.ContainsFunc(alerts, func(a *lifeboatv1.Alert) bool {
		s := a.GetLabels()["severity"]
		return strings.EqualFold(s, "critical") || strings.EqualFold(s, "page") || strings.EqualFold(s, "emergency")
	})
}

// Message is the notice of one delivery. A template that fails is no error: the default message stands in and says so.
func (r *Renderer) Message(in Input) (notice.Notice, error) {
	n := in.Delivery.GetNotification()
	if n == nil {
		return notice.Notice{}, errors.New("rendering a message: the delivery holds no notification")
	}
	alerts := sorted(n.GetAlerts())
	out := r.frame(in)
	out.Truncated = n.GetTruncatedAlerts()
	out.Critical = Critical(alerts)
	out.Severity = clean(worst(alerts), maxName)
	out.Status = status(alerts, out.Truncated)
	same := shared(alerts)
	out.Late = late(in, out)
	out.Items, out.More = items(in, alerts)
	if in.StillFires > 0 {
		ofGroup(in, alerts, &out)
	}
	out.Title = r.title(out, n, same)
	if in.Mention {
		out.Mentions = slices.Clone(in.Delivery.GetMentions())
	}
	r.template(in, alerts, same, &out)
	out.Silence = silence(in, out, same)
	return out, nil
}

// frame is what all notices of a receiver have alike.
func (r *Renderer) frame(in Input) notice.Notice {
	out := notice.Notice{Words: notice.In(in.Receiver.Language), Zone: r.zone(in.Receiver)}
	out.Footer = footer(in.Delivery, out)
	return out
}

// zone is that of a receiver. One that New was not given is looked up, and what cannot be found is UTC, which every time says.
func (r *Renderer) zone(receiver config.Receiver) *time.Location {
	if zone := r.zones[receiver.TimeZone]; zone != nil {
		return zone
	}
	if zone, err := time.LoadLocation(receiver.TimeZone); err == nil {
		return zone
	}
	return time.UTC
}

// status never calls a group resolved of which alerts are missing: Alertmanager computes a group's status after it cut
// the group, so firing alerts may be among those that are missing.
func status(alerts []*lifeboatv1.Alert, truncated int64) notice.Status {
	switch {
	case slices.ContainsFunc(alerts, isFiring):
		return notice.Firing
	case len(alerts) > 0 && !slices.ContainsFunc(alerts, func(a *lifeboatv1.Alert) bool { return !isEvent(a) }):
		return notice.Event
	case truncated > 0:
		return notice.Partial
	}
	return notice.Resolved
}

// ofGroup makes a notice one of all of its group: it fires while anything of that does. How bad what is not here is nobody says, so that
// it is not called milder than critical.
func ofGroup(in Input, alerts []*lifeboatv1.Alert, out *notice.Notice) {
	out.Status, out.StillFires = notice.Firing, in.StillFires
	worst := func(a *lifeboatv1.Alert) bool { return isFiring(a) && Critical([]*lifeboatv1.Alert{a}) }
	if !slices.ContainsFunc(alerts, worst) {
		out.Severity = clean(sure(in.Delivery.GetNotification())["severity"], maxName)
	}
}

// title is "[FIRING:2] LifeboatDrillFailed etcd-prod (critical)".
func (r *Renderer) title(out notice.Notice, n *lifeboatv1.Notification, same map[string]string) string {
	count := len(n.GetAlerts())
	if out.Status == notice.Firing {
		count = firing(n.GetAlerts()) + out.StillFires
	}
	about := subject(out.Words, n.GetAlerts(), same)
	if out.StillFires > 0 {
		about = groupSubject(out, n)
	}
	parts := []string{tag(out.Words, out.Status, count), about}
	if out.Severity != "" {
		parts = append(parts, "("+out.Severity+")")
	}
	if n.GetParts() > 1 && out.StillFires == 0 {
		parts = append(parts, fmt.Sprintf(out.Words.Part, n.GetPart(), n.GetParts()))
	}
	return line(strings.Join(parts, " "), maxTitle)
}

// tag is "[FIRING:2]". One event is not counted: it is not a state that several alerts could share.
func tag(w notice.Words, s notice.Status, count int) string {
	if s == notice.Event && count == 1 {
		return "[" + w.Event + "]"
	}
	return fmt.Sprintf("[%s:%d]", w.Status(s), count)
}

// sure are the labels that alerts of a group have which are not here: the group's own, and of those that came in other parts of the same
// webhook what all in it share.
func sure(n *lifeboatv1.Notification) map[string]string {
	if n.GetParts() <= 1 {
		return n.GetGroupLabels()
	}
	labels := map[string]string{}
	maps.Copy(labels, n.GetCommonLabels())
	maps.Copy(labels, n.GetGroupLabels())
	return labels
}

// groupSubject is what all of a group is about, of which some alerts are not here.
func groupSubject(out notice.Notice, n *lifeboatv1.Notification) string {
	labels := sure(n)
	name := labels["alertname"]
	if name == "" {
		name = out.Words.AlertCount(len(n.GetAlerts()) + out.StillFires)
	}
	return placed(name, labels)
}

// subject is what it is about and where: "LifeboatDrillFailed etcd-prod".
func subject(w notice.Words, alerts []*lifeboatv1.Alert, same map[string]string) string {
	name := same["alertname"]
	if len(alerts) > 0 && isEvent(alerts[0]) {
		name = cmp.Or(same["event"], name)
	}
	if name == "" {
		if k := kinds(alerts); k > 1 {
			name = fmt.Sprintf(w.Kinds, k)
		} else {
			name = w.Nameless
		}
	}
	return placed(name, same)
}

// placed is a name and where, as far as labels say it.
func placed(name string, labels map[string]string) string {
	for _, l := range []string{"target", "service", "job", "instance"} {
		if v := labels[l]; v != "" {
			return name + " " + v
		}
	}
	return name
}

// shared are the labels that all alerts have alike. The notification's own common labels are those of the group before
// it was routed.
func shared(alerts []*lifeboatv1.Alert) map[string]string {
	if len(alerts) == 0 {
		return nil
	}
	return common(len(alerts), func(i int) map[string]string { return alerts[i].GetLabels() })
}

// common are the entries that are in all of so many maps.
func common(count int, of func(i int) map[string]string) map[string]string {
	type entry struct{ k, v string }
	var left []entry
	for k, v := range of(0) {
		left = append(left, entry{k, v})
	}
	for i := 1; i < count && len(left) > 0; i++ {
		m := of(i)
		left = slices.DeleteFunc(left, func(e entry) bool {
			v, ok := m[e.k]
			return !ok || v != e.v
		})
	}
	out := make(map[string]string, len(left))
	for _, e := range left {
		out[e.k] = e.v
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

// silence is what a silence of the group would match. There is none for what does not fire, for what Alertmanager does not know, and
// where all that the alerts share is how bad they are: such a silence would hide alerts that nobody has seen yet.
func silence(in Input, out notice.Notice, same map[string]string) *notice.Silence {
	switch in.Delivery.GetNotification().GetOrigin() {
	case "event", "canary", "test", "webhook":
		return nil
	}
	if out.StillFires > 0 { // what its button silences is the whole group, as far as can be known
		same = maps.Clone(same)
		n := in.Delivery.GetNotification()
		maps.DeleteFunc(same, func(k, v string) bool { return n.GetGroupLabels()[k] != v && n.GetCommonLabels()[k] != v })
	}
	names := slices.DeleteFunc(slices.Collect(maps.Keys(same)), func(k string) bool { return same[k] == "" || k == "severity" })
	if out.Status != notice.Firing || len(names) == 0 {
		return nil
	}
	matchers := maps.Clone(same)
	maps.DeleteFunc(matchers, func(_, v string) bool { return v == "" })
	s := &notice.Silence{Matchers: matchers, Comment: out.Title, Buttons: in.Buttons}
	if in.Links != nil {
		s.Links = in.Links(matchers, s.Comment)
	}
	return s
}

func footer(d *lifeboatv1.Delivery, out notice.Notice) string {
	n, w := d.GetNotification(), out.Words
	parts := []string{fmt.Sprintf(w.From, cmp.Or(n.GetOrigin(), "alertmanager"))}
	if n.GetOrigin() == "lifeboat" {
		parts = []string{w.FromItself}
	}
	if n.GetReceivedAt() != nil {
		parts = append(parts, fmt.Sprintf(w.Received, out.Stamp(n.GetReceivedAt().AsTime())))
	}
	if d.GetRoute() != "" {
		parts = append(parts, fmt.Sprintf(w.Route, d.GetRoute()))
	}
	if d.GetId() != "" {
		parts = append(parts, fmt.Sprintf(w.Delivery, d.GetId()))
	}
	return line(strings.Join(parts, w.Dot), maxFooter)
}
