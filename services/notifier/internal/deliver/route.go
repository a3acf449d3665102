package deliver

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"strings"
	"time"

	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/durationpb"

	"github.com/lifeboat-fleet/lifeboat/fleet/bus"
	"github.com/lifeboat-fleet/lifeboat/fleet/tracing"
	lifeboatv1 "github.com/lifeboat-fleet/lifeboat/proto/lifeboat/v1"
	"github.com/lifeboat-fleet/lifeboat/services/notifier/internal/render"
	"github.com/lifeboat-fleet/lifeboat/services/notifier/internal/route"
)

const firing = "firing"

// route gives the alerts of one notification to their receivers.
func (d *Deliverer) route(ctx context.Context, m *bus.Message) error {
	d.giveWay(ctx)
	n := &lifeboatv1.Notification{}
	if err := bus.Decode(m.Data, n); err != nil {
		return bus.Terminal("malformed", fmt.Errorf("decoding notification: %w", err))
	}
	ctx = tracing.Note(ctx, slog.String("notification_id", n.GetId()), slog.String("target", target(n.GetAlerts())))
	c, err := d.current()
	if err != nil {
		return err
	}
	deliveries, err := split(n, c, m, d.o.Now())
	if err != nil {
		return err
	}
	all := make([]bus.Outgoing, 0, len(deliveries))
	for _, out := range deliveries {
		subject := subjectOf(out)
		if held(out) {
			subject = bus.HeldSubject(out.GetReceiver())
		}
		all = append(all, bus.Outgoing{Subject: subject, Message: out, ID: out.GetId()})
	}
	if err := d.o.Bus.PublishAll(ctx, all); err != nil {
		return fmt.Errorf("handing to receivers: %w", err)
	}
	for _, out := range deliveries {
		d.metrics.routed.WithLabelValues(out.GetReceiver()).Add(float64(len(out.GetNotification().GetAlerts())))
	}
	return nil
}

// subjectOf is where a delivery waits for its turn.
func subjectOf(d *lifeboatv1.Delivery) string {
	if render.Critical(d.GetNotification().GetAlerts()) {
		return bus.CriticalSubject(d.GetReceiver())
	}
	return bus.DeliverySubject(d.GetReceiver())
}

func held(d *lifeboatv1.Delivery) bool {
	return d.GetHeldUntil() != nil || len(d.GetMuteTimeIntervals())+len(d.GetActiveTimeIntervals()) > 0
}

// splitter makes the deliveries of one notification.
type splitter struct {
	envelope *lifeboatv1.Notification
	id       string
	out      []*lifeboatv1.Delivery
	// by finds the delivery of a receiver, and of what holds it back.
	by map[string]*lifeboatv1.Delivery
}

// split makes one delivery for each receiver, in the order in which the routes name them, and further ones of what is held
// back by time intervals.
func split(n *lifeboatv1.Notification, c *compiled, m *bus.Message, now time.Time) ([]*lifeboatv1.Delivery, error) {
	alerts := n.GetAlerts()
	n.Alerts = nil // every delivery has a copy of the rest
	s := &splitter{envelope: n, id: m.ID(), by: map[string]*lifeboatv1.Delivery{}}
	for _, a := range alerts {
		if only := n.GetOnlyReceiver(); only != "" {
			if _, _, err := c.receiver(only, m.Stored, now); err != nil {
				return nil, err
			}
			s.give(a, route.Hit{Receiver: only, Route: "{}"}, false)
			continue
		}
		hits := c.tree.Match(a.GetLabels())
		if len(hits) == 0 {
			return nil, bus.Terminal("no_receiver", errors.New("no receiver is configured"))
		}
		for _, h := range route.Pick(c.tree, hits, now) {
			_, muted := c.tree.Muted(now, h.Mute, h.Active)
			s.give(a, h, muted)
		}
	}
	if len(s.out) == 0 {
		return nil, bus.Terminal("malformed", errors.New("the notification holds no alerts"))
	}
	return s.out, nil
}

func (s *splitter) give(a *lifeboatv1.Alert, h route.Hit, muted bool) {
	holds := ""
	if muted {
		holds = strings.Join(h.Mute, "\x00") + "\x01" + strings.Join(h.Active, "\x00")
	}
	d := s.by[h.Receiver+"\x02"+holds]
	if d == nil {
		d = &lifeboatv1.Delivery{
			Id: s.id + "." + h.Receiver, Receiver: h.Receiver, Notification: proto.CloneOf(s.envelope), Route: h.Route,
		}
		if h.Repeat > 0 {
			d.RepeatInterval = durationpb.New(h.Repeat)
		}
		if muted {
			d.MuteTimeIntervals, d.ActiveTimeIntervals = h.Mute, h.Active
			d.Id += ".held-" + hash(holds)
		}
		s.by[h.Receiver+"\x02"+holds] = d
		s.out = append(s.out, d)
	}
	if h.Repeat < d.GetRepeatInterval().AsDuration() { // the impatient route of the group counts
		d.RepeatInterval = durationpb.New(h.Repeat)
	}
	d.Notification.Alerts = append(d.Notification.Alerts, a)
	if a.GetStatus() == firing {
		for _, who := range h.MentionsFor(a.GetLabels()["severity"]) {
			if !slices.Contains(d.GetMentions(), who) {
				d.Mentions = append(d.Mentions, who)
			}
		}
	}
}

// hash is a short name for what cannot stand in a subject.
func hash(parts ...string) string {
	sum := sha256.Sum256([]byte(strings.Join(parts, "\xff")))
	return hex.EncodeToString(sum[:8])
}

// GroupName names a group of alerts in subjects, by its key and Alertmanager's receiver.
func GroupName(key, receiver string) string { return hash(key, receiver) }

// groupOf is the group that a delivery is about.
func groupOf(d *lifeboatv1.Delivery) string {
	return GroupName(d.GetNotification().GetGroupKey(), d.GetNotification().GetReceiver())
}
