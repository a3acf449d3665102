package ingest

import (
	"cmp"
	"encoding/json"
	"errors"
	"fmt"
	"hash/fnv"
	"io"
	"maps"
	"slices"
	"strings"
	"time"

	"google.golang.org/protobuf/types/known/timestamppb"

	lifeboatv1 "github.com/lifeboat-fleet/lifeboat/proto/lifeboat/v1"
)

// body is Alertmanager's webhook, version "4" (prometheus.io, alerting configuration, webhook_config). Unknown fields
// are those of a newer Alertmanager, and are ignored.
type body struct {
	Version            string            `json:"version"`
	GroupKey           string            `json:"groupKey"`
	TruncatedAlerts    int64             `json:"truncatedAlerts"`
	Status             string            `json:"status"`
	Receiver           string            `json:"receiver"`
	GroupLabels        map[string]string `json:"groupLabels"`
	CommonLabels       map[string]string `json:"commonLabels"`
	CommonAnnotations  map[string]string `json:"commonAnnotations"`
	RouteLabels        map[string]string `json:"routeLabels"`
	ExternalURL        string            `json:"externalURL"`
	NotificationReason string            `json:"notification_reason"`
	Alerts             []alert           `json:"alerts"`
}

type alert struct {
	Status       string            `json:"status"`
	Labels       map[string]string `json:"labels"`
	Annotations  map[string]string `json:"annotations"`
	StartsAt     time.Time         `json:"startsAt"`
	EndsAt       time.Time         `json:"endsAt"`
	GeneratorURL string            `json:"generatorURL"`
	Fingerprint  string            `json:"fingerprint"`
}

const (
	statusFiring   = "firing"
	statusResolved = "resolved"
)

// parse reads a webhook's body into a notification without id and time of receipt. Every error means that the body is
// malformed and no retry can help.
//
// The group's own status is not read: Alertmanager computes it after it left alerts out, so a group of which some still
// fire may claim to be resolved. Each alert's own status is right.
func parse(r io.Reader) (*lifeboatv1.Notification, error) {
	var b body
	dec := json.NewDecoder(r)
	if err := dec.Decode(&b); err != nil {
		return nil, fmt.Errorf("reading JSON: %w", err)
	}
	if _, err := dec.Token(); !errors.Is(err, io.EOF) {
		if err != nil {
			return nil, fmt.Errorf("reading the end of the JSON: %w", err)
		}
		return nil, errors.New("there is more after the JSON object")
	}
	if b.Version != "4" {
		return nil, fmt.Errorf("version is %q; this is not an Alertmanager webhook of version \"4\"", b.Version)
	}
	if len(b.Alerts) == 0 {
		return nil, errors.New("there are no alerts in it")
	}
	n := &lifeboatv1.Notification{
		Origin: "alertmanager", GroupKey: b.GroupKey,
		// Alertmanager quotes it as a regular expression: team\.x.
		Receiver:    strings.ReplaceAll(b.Receiver, `\`, ""),
		GroupLabels: b.GroupLabels, CommonLabels: b.CommonLabels, CommonAnnotations: b.CommonAnnotations,
		ExternalUrl: b.ExternalURL, TruncatedAlerts: max(b.TruncatedAlerts, 0),
	}
	for i, a := range b.Alerts {
		p, err := a.proto()
		if err != nil {
			return nil, fmt.Errorf("alerts[%d]: %w", i, err)
		}
		n.Alerts = append(n.Alerts, p)
	}
	// One order whatever order they came in, so that a retry is split and named alike.
	slices.SortFunc(n.Alerts, func(x, y *lifeboatv1.Alert) int {
		return cmp.Or(
			cmp.Compare(x.GetStatus(), y.GetStatus()), // firing before resolved
			cmp.Compare(x.GetFingerprint(), y.GetFingerprint()),
			x.GetStartsAt().AsTime().Compare(y.GetStartsAt().AsTime()),
		)
	})
	return n, nil
}

func (a alert) proto() (*lifeboatv1.Alert, error) {
	if a.Status != statusFiring && a.Status != statusResolved {
		return nil, fmt.Errorf("status is %q, not firing or resolved", a.Status)
	}
	p := &lifeboatv1.Alert{
		Status: a.Status, Labels: a.Labels, Annotations: a.Annotations, GeneratorUrl: a.GeneratorURL,
		Fingerprint: a.Fingerprint,
	}
	if p.GetFingerprint() == "" {
		p.Fingerprint = fingerprint(a.Labels)
	}
	if !a.StartsAt.IsZero() {
		p.StartsAt = timestamppb.New(a.StartsAt)
	}
	// A firing alert has a zero endsAt, or one in the future that only says when it is forgotten.
	if a.Status == statusResolved && !a.EndsAt.IsZero() {
		p.EndsAt = timestamppb.New(a.EndsAt)
	}
	for name, t := range map[string]*timestamppb.Timestamp{"startsAt": p.GetStartsAt(), "endsAt": p.GetEndsAt()} {
		if t == nil {
			continue
		}
		if err := t.CheckValid(); err != nil {
			return nil, fmt.Errorf("%s: %w", name, err)
		}
	}
	return p, nil
}

// fingerprint names an alert by its labels, for senders that do not.
func fingerprint(labels map[string]string) string {
	h := fnv.New64a()
	for _, k := range slices.Sorted(maps.Keys(labels)) {
		_, _ = h.Write([]byte(k + "\xff" + labels[k] + "\xff")) // a hash does not fail
	}
	return fmt.Sprintf("%016x", h.Sum64())
}
