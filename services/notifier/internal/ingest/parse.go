package ingest

import (
	"cmp"
	"errors"
	"fmt"
	"hash/fnv"
	"maps"
	"math"
	"slices"
	"strings"
	"time"

	"github.com/go-json-experiment/json"
	"github.com/go-json-experiment/json/jsontext"
)

// body is Alertmanager's webhook, version "4": template.Data and webhook.Message of Alertmanager 0.34
// (https://prometheus.io/docs/alerting/latest/configuration/#webhook_config). Unknown fields are those of a newer Alertmanager, and
// are ignored. T is the form of its objects of texts.
type body[T texts | map[string]string] struct {
	Version            string     `json:"version"`
	GroupKey           string     `json:"groupKey"`
	TruncatedAlerts    uint64     `json:"truncatedAlerts"`
	Status             string     `json:"status"`
	Receiver           string     `json:"receiver"`
	GroupLabels        T          `json:"groupLabels"`
	CommonLabels       T          `json:"commonLabels"`
	CommonAnnotations  T          `json:"commonAnnotations"`
	RouteLabels        T          `json:"routeLabels"`
	ExternalURL        string     `json:"externalURL"`
	NotificationReason string     `json:"notification_reason"`
	Alerts             []alert[T] `json:"alerts"`
}

type alert[T texts | map[string]string] struct {
	Status       string    `json:"status"`
	Labels       T         `json:"labels"`
	Annotations  T         `json:"annotations"`
	StartsAt     time.Time `json:"startsAt"`
	EndsAt       time.Time `json:"endsAt"`
	GeneratorURL string    `json:"generatorURL"`
	Fingerprint  string    `json:"fingerprint"`
}

const (
	statusFiring   = "firing"
	statusResolved = "resolved"
	statusEvent    = "event"
)

// parse reads a webhook's body into a note without id and time of receipt. Every error means that the body is malformed and no retry
// can help.
//
// What Alertmanager writes is strict JSON, and its labels and annotations go into the message byte for byte. What is not as strict is
// read a second time, with maps: an alert is worth more than the grammar.
func parse(data []byte) (*note, error) {
	var b body[texts]
	if json.Unmarshal(data, &b) == nil && allPlain(&b) {
		n, err := compose(&b, func(t texts) texts { return t })
		if n != nil {
			n.size = len(data)
		}
		return n, err
	}
	var loose body[map[string]string]
	if err := json.Unmarshal(data, &loose, jsontext.AllowDuplicateNames(true), jsontext.AllowInvalidUTF8(true)); err != nil {
		return nil, fmt.Errorf("reading JSON: %w", err)
	}
	return compose(&loose, textsOf)
}

func allPlain(b *body[texts]) bool {
	if !plain(b.GroupLabels) || !plain(b.CommonLabels) || !plain(b.CommonAnnotations) || !plain(b.RouteLabels) {
		return false
	}
	for i := range b.Alerts {
		if !plain(b.Alerts[i].Labels) || !plain(b.Alerts[i].Annotations) {
			return false
		}
	}
	return true
}

// compose checks what a body says and makes a note of it.
func compose[T texts | map[string]string](b *body[T], write func(T) texts) (*note, error) {
	if b.Version != "4" {
		return nil, fmt.Errorf("version is %q; this is not an Alertmanager webhook of version \"4\"", cut(b.Version))
	}
	if len(b.Alerts) == 0 {
		return nil, errors.New("there are no alerts in it")
	}
	n := &note{
		origin: "alertmanager", groupKey: b.GroupKey, receiver: unquote(b.Receiver),
		groupLabels: write(b.GroupLabels), commonLabels: write(b.CommonLabels),
		commonAnnotations: write(b.CommonAnnotations), routeLabels: write(b.RouteLabels),
		externalURL: b.ExternalURL, status: b.Status, notificationReason: b.NotificationReason,
		truncatedAlerts: int64(min(b.TruncatedAlerts, math.MaxInt64)),
		alerts:          make([]item, len(b.Alerts)),
	}
	for i := range b.Alerts {
		a := &b.Alerts[i]
		n.alerts[i] = item{
			status: a.Status, labels: write(a.Labels), annotations: write(a.Annotations), startsAt: a.StartsAt, endsAt: a.EndsAt,
			generatorURL: a.GeneratorURL, fingerprint: a.Fingerprint,
		}
		if err := n.alerts[i].check(); err != nil {
			return nil, fmt.Errorf("alerts[%d]: %w", i, err)
		}
	}
	n.sort()
	return n, nil
}

// check says what is wrong with an alert of Alertmanager's, and completes it.
func (a *item) check() error {
	if a.status != statusFiring && a.status != statusResolved {
		return fmt.Errorf("status is %q, not firing or resolved", cut(a.status))
	}
	// A firing alert has a zero endsAt, or one in the future that only says when it is forgotten.
	if a.status == statusFiring {
		a.endsAt = time.Time{}
	}
	if a.fingerprint == "" {
		a.fingerprint = fingerprint(mapOf(a.labels))
	}
	if err := inRange(a.startsAt); err != nil {
		return fmt.Errorf("startsAt: %w", err)
	}
	if err := inRange(a.endsAt); err != nil {
		return fmt.Errorf("endsAt: %w", err)
	}
	return nil
}

// inRange says whether a time can be written in ProtoJSON, which has the years 1 to 9999.
func inRange(t time.Time) error {
	if year := t.UTC().Year(); year < 1 || year > 9999 {
		return fmt.Errorf("the year %d is not one from 1 to 9999", year)
	}
	return nil
}

// sort brings the alerts into one order whatever order they came in, so that a retry is split and named alike.
func (n *note) sort() {
	slices.SortFunc(n.alerts, func(x, y item) int {
		return cmp.Or(
			cmp.Compare(x.status, y.status), // firing before resolved
			cmp.Compare(x.fingerprint, y.fingerprint),
			x.startsAt.Compare(y.startsAt),
		)
	})
}

// unquote is the inverse of regexp.QuoteMeta, by which Alertmanager quotes the receiver's name: team\.x. A backslash before
// anything that is not quoted belongs to the name.
func unquote(name string) string {
	if !strings.Contains(name, `\`) {
		return name
	}
	out := make([]byte, 0, len(name))
	for i := 0; i < len(name); i++ {
		if name[i] == '\\' && i+1 < len(name) && strings.IndexByte(`\.+*?()|[]{}^$`, name[i+1]) >= 0 {
			i++
		}
		out = append(out, name[i])
	}
	return string(out)
}

// fingerprint names an alert by its labels, for senders that do not. It is the hash that Prometheus and Alertmanager take.
func fingerprint(labels map[string]string) string {
	h := fnv.New64a()
	for _, k := range slices.Sorted(maps.Keys(labels)) {
		_, _ = h.Write([]byte(k + "\xff" + labels[k] + "\xff")) // a hash does not fail
	}
	return fmt.Sprintf("%016x", h.Sum64())
}
