package ingest

import (
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"maps"
	"slices"

	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/proto"

	lifeboatv1 "github.com/lifeboat-fleet/lifeboat/proto/lifeboat/v1"
)

const (
	// maxPart is about how large a message may get; NATS takes 1 MiB by default, and a delivery wraps the part.
	maxPart = 512 << 10
	// maxEnvelope is what everything but the alerts may take of it, and maxAlert what one alert may.
	maxEnvelope = 64 << 10
	maxAlert    = maxPart - maxEnvelope
	// cutValue is what a value is cut to when an alert is too large: enough for any summary.
	cutValue = 4 << 10
)

// split makes parts that each fit into a message, each with an id that depends on nothing but which alerts are in it and
// where they came from: a webhook that is sent again gives the same ids. startsAt is in it because an alert that fires
// anew is otherwise the same.
func split(n *lifeboatv1.Notification) ([]*lifeboatv1.Notification, error) {
	shrinkEnvelope(n)
	var groups [][]*lifeboatv1.Alert
	size := 0
	for _, a := range n.GetAlerts() {
		s, err := sizeOf(a)
		if err != nil {
			return nil, err
		}
		if s > maxAlert {
			shrinkAlert(a)
			if s, err = sizeOf(a); err != nil {
				return nil, err
			}
		}
		if len(groups) == 0 || size+s > maxAlert {
			groups = append(groups, nil)
			size = 0
		}
		groups[len(groups)-1] = append(groups[len(groups)-1], a)
		size += s
	}
	parts := make([]*lifeboatv1.Notification, 0, len(groups))
	n.Alerts = nil
	for i, g := range groups {
		p, ok := proto.Clone(n).(*lifeboatv1.Notification)
		if !ok {
			return nil, fmt.Errorf("copying a notification: got %T", p)
		}
		p.Alerts = g
		p.Part, p.Parts = int32(i+1), int32(len(groups)) //nolint:gosec // 16 MiB make few parts
		p.Id = identity(p)
		parts = append(parts, p)
	}
	return parts, nil
}

func sizeOf(m proto.Message) (int, error) {
	b, err := protojson.Marshal(m)
	if err != nil {
		return 0, fmt.Errorf("encoding a notification: %w", err)
	}
	return len(b) + 1, nil
}

// identity hashes group, receiver and the sorted alerts.
func identity(n *lifeboatv1.Notification) string {
	keys := make([]string, 0, len(n.GetAlerts()))
	for _, a := range n.GetAlerts() {
		keys = append(keys, fmt.Sprintf("%s %d.%d %s", a.GetFingerprint(),
			a.GetStartsAt().GetSeconds(), a.GetStartsAt().GetNanos(), a.GetStatus()))
	}
	slices.Sort(keys)
	h := sha256.New()
	fmt.Fprintf(h, "%q %q %q", n.GetGroupKey(), n.GetReceiver(), keys)
	return "am-" + hex.EncodeToString(h.Sum(nil)[:16])
}

// shrinkEnvelope cuts what is said of the group as a whole; every alert says it again.
func shrinkEnvelope(n *lifeboatv1.Notification) {
	n.GroupKey = cut(n.GetGroupKey())
	n.Receiver = cut(n.GetReceiver())
	n.ExternalUrl = cut(n.GetExternalUrl())
	const each = maxEnvelope / 8 // JSON may make a byte six long, but hardly of a label
	n.GroupLabels = cutMap(n.GetGroupLabels(), each)
	n.CommonLabels = cutMap(n.GetCommonLabels(), each)
	n.CommonAnnotations = cutMap(n.GetCommonAnnotations(), each)
}

// shrinkAlert keeps of a monstrous alert what a person and the route need: better cut than refused for ever.
func shrinkAlert(a *lifeboatv1.Alert) {
	a.Fingerprint = cut(a.GetFingerprint())
	a.GeneratorUrl = cut(a.GetGeneratorUrl())
	a.Labels = cutMap(a.GetLabels(), 32<<10)
	a.Annotations = cutMap(a.GetAnnotations(), 32<<10)
}

// cutMap keeps what fits into so many bytes, the keys that matter first. A map that fits is left alone.
func cutMap(m map[string]string, most int) map[string]string {
	total := 0
	for k, v := range m {
		total += len(k) + len(v)
	}
	if total <= most {
		return m
	}
	keys := slices.Sorted(maps.Keys(m))
	first := []string{"alertname", "severity", "target", "service", "runbook_url", "summary", "description"}
	slices.SortStableFunc(keys, func(x, y string) int { return place(first, x) - place(first, y) })
	out := map[string]string{}
	for _, k := range keys {
		v := cut(m[k])
		if most -= len(k) + len(v); most < 0 {
			break
		}
		out[k] = v
	}
	return out
}

func place(order []string, key string) int {
	if i := slices.Index(order, key); i >= 0 {
		return i
	}
	return len(order)
}

// cut shortens a text to cutValue and says so.
func cut(s string) string {
	if len(s) <= cutValue {
		return s
	}
	const mark = "… (cut)"
	end := cutValue - len(mark)
	for end > 0 && s[end]&0xC0 == 0x80 { // inside a character
		end--
	}
	return s[:end] + mark
}
