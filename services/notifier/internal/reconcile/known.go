package reconcile

import (
	"encoding/json"
	"fmt"
	"slices"
	"strconv"
	"strings"

	"github.com/prometheus/alertmanager/pkg/labels"
	"google.golang.org/protobuf/types/known/timestamppb"

	"github.com/lifeboat-fleet/lifeboat/fleet/bus"
	"github.com/lifeboat-fleet/lifeboat/fleet/config"
	lifeboatv1 "github.com/lifeboat-fleet/lifeboat/proto/lifeboat/v1"
)

const (
	firing   = "firing"
	resolved = "resolved"
)

// known takes in what was told and what waits, message by message, and keeps only what is not known.
type known struct {
	// left are the audible alerts that nobody was told of, by fingerprint, of which Alertmanager has one each.
	left map[uint64]*alert
	// posted are Alertmanager's receivers that have posted; names are all that the alerts have.
	posted map[string]bool
	names  []string
	group  func(groupKey, receiver string) string
	// ours are alerts that were delivered from here, and resolving those of which it waits already that they have ended.
	ours      map[string]*ending
	resolving map[string]bool
}

func newKnown(all []*alert, group func(groupKey, receiver string) string, posted map[string]bool) *known {
	k := &known{left: map[uint64]*alert{}, group: group, posted: posted, ours: map[string]*ending{}, resolving: map[string]bool{}}
	names := map[string]bool{}
	for _, a := range all {
		if !a.audible {
			continue
		}
		k.left[a.id.fingerprint] = a
		for _, name := range a.receivers {
			if !names[name] {
				names[name] = true
				k.names = append(k.names, name)
			}
		}
	}
	return k
}

// take reads one message of the stream of alerts. What cannot be read says nothing of any alert.
func (k *known) take(m *bus.Message) error {
	switch {
	case m.Subject == bus.SubjectReceived:
		n := &lifeboatv1.Notification{}
		if bus.Decode(m.Data, n) == nil {
			k.notification(n, n.GetOnlyReceiver())
		}
	case strings.HasPrefix(m.Subject, bus.DeliverySubject("")), strings.HasPrefix(m.Subject, bus.HeldSubject("")):
		d := &lifeboatv1.Delivery{}
		if bus.Decode(m.Data, d) == nil {
			k.notification(d.GetNotification(), d.GetReceiver())
		}
	case strings.HasPrefix(m.Subject, groups):
		g := &lifeboatv1.Group{}
		receiver, token, ok := strings.Cut(strings.TrimPrefix(m.Subject, groups), ".")
		if ok && bus.Decode(m.Data, g) == nil {
			k.state(g, receiver, token, len(m.Data))
		}
	}
	return nil
}

// groups is how the subjects of all groups' states begin.
const groups = "lifeboat.alert.group."

func (k *known) notification(n *lifeboatv1.Notification, receiver string) {
	if n.GetOrigin() == "alertmanager" && n.GetReceiver() != "" {
		k.posted[n.GetReceiver()] = true
	}
	for _, a := range n.GetAlerts() {
		fingerprint, ok := parse(a.GetFingerprint())
		switch {
		case !ok:
		case a.GetStatus() == firing:
			k.knows(fingerprint, a.GetStartsAt())
		case n.GetOrigin() == "reconcile" && a.GetStatus() == resolved:
			k.resolving[endingKey(receiver, alertID{fingerprint, a.GetStartsAt().AsTime().UnixMilli()})] = true
		}
	}
}

// state takes what a receiver was told of a group.
func (k *known) state(g *lifeboatv1.Group, receiver, token string, size int) {
	if k.group != nil {
		for _, name := range k.names {
			if !k.posted[name] && k.group(g.GetGroupKey(), name) == token {
				k.posted[name] = true
			}
		}
	}
	for _, t := range g.GetAlerts() {
		fingerprint, ok := parse(t.GetFingerprint())
		if !ok || t.GetToldAt() == nil && !t.GetWaits() {
			continue
		}
		// People who were told that it has ended do not know that it fires, be it with the same startsAt.
		if t.GetStatus() != resolved || t.GetToldStatus() != resolved {
			k.knows(fingerprint, t.GetStartsAt())
		}
		written, own := strings.CutPrefix(g.GetGroupKey(), groupPrefix)
		e := &ending{id: alertID{fingerprint, t.GetStartsAt().AsTime().UnixMilli()}, receiver: receiver}
		if own && t.GetStatus() == firing && json.Unmarshal([]byte(written), &e.labels) == nil {
			k.ours[endingKey(receiver, e.id)] = e
		}
	}
	if len(g.GetAlerts()) >= crowd || size >= crowdBytes {
		k.crowded(g.GetGroupKey())
	}
}

// A state holds the alerts of a group that changed last, at most 4000, and at most 1 MiB. From this size on others may have been told, too.
const (
	crowd      = 3500
	crowdBytes = 700 << 10
)

// crowded takes all alerts of a group for known whose state had no room for all of them. Alertmanager's key of a group ends with its
// labels: {}/{severity="critical"}:{alertname="A", target="b"}.
func (k *known) crowded(groupKey string) {
	if strings.HasSuffix(groupKey, ":{}") {
		clear(k.left)
		return
	}
	common := groupLabels(groupKey)
	for fingerprint, a := range k.left {
		if matches(common, a.labels) {
			delete(k.left, fingerprint)
		}
	}
}

// groupLabels are those of a key; none when it is not Alertmanager's. They begin with the first brace from which on they can be read: a
// brace may also stand in a value.
func groupLabels(groupKey string) labels.Matchers {
	for i := range groupKey {
		if !strings.HasPrefix(groupKey[i:], ":{") {
			continue
		}
		if all, err := config.ParseMatchers(groupKey[i+1:]); err == nil && len(all) > 0 {
			return all
		}
	}
	return nil
}

func matches(all labels.Matchers, of map[string]string) bool {
	for _, m := range all {
		if !m.Matches(of[m.Name]) {
			return false
		}
	}
	return len(all) > 0
}

// knows says that somebody was told, or will be, that an alert fires that began then. When two Prometheus have the same alert,
// Alertmanager takes the earlier beginning, also after it has told the later one. So a beginning that is not before the one in question
// is of the same alert.
func (k *known) knows(fingerprint uint64, starts *timestamppb.Timestamp) {
	if a := k.left[fingerprint]; a != nil && starts.AsTime().UnixMilli() >= a.id.starts {
		delete(k.left, fingerprint)
	}
}

// unknown are the alerts nobody was told of that Alertmanager sends to Lifeboat: to one of the receivers, or when there are none to
// one that has posted. When none has posted there are none: then it is not known what concerns us.
func (k *known) unknown(receivers []string) []*alert {
	var out []*alert
	for _, a := range k.left {
		if slices.ContainsFunc(a.receivers, func(name string) bool {
			if len(receivers) > 0 {
				return slices.Contains(receivers, name)
			}
			return k.posted[name]
		}) {
			out = append(out, a)
		}
	}
	slices.SortFunc(out, func(a, b *alert) int { return strings.Compare(a.id.String(), b.id.String()) })
	return out
}

// over are the alerts that were delivered from here and do not fire any more, but for those of which that waits already.
func (k *known) over(all []*alert) []*ending {
	if len(k.ours) == 0 {
		return nil
	}
	fires := make(map[uint64]int64, len(all))
	for _, a := range all {
		fires[a.id.fingerprint] = a.id.starts
	}
	var out []*ending
	for key, e := range k.ours {
		if starts, still := fires[e.id.fingerprint]; (!still || starts > e.id.starts) && !k.resolving[key] {
			out = append(out, e)
		}
	}
	return out
}

func endingKey(receiver string, id alertID) string { return fmt.Sprintf("%s/%s", receiver, id) }

func parse(fingerprint string) (uint64, bool) {
	n, err := strconv.ParseUint(fingerprint, 16, 64)
	return n, err == nil && len(fingerprint) == 16
}
