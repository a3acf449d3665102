// Package deliver routes what was received and brings it to each receiver.
//
//	lifeboat.alert.received -> route -> lifeboat.alert.delivery.<receiver> -> render -> send -> event
//
// The two hops make receivers independent: one that is throttled or broken keeps its own deliveries waiting, in order,
// and nobody else's. Each hop acknowledges its message only after the next one holds it, so a crash anywhere repeats
// work and loses none: a notification is routed again into deliveries of the same ids, and a delivery is sent again.
// What can never be delivered becomes a dead letter with the reason.
package deliver

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"strconv"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/promauto"
	"google.golang.org/protobuf/proto"

	"github.com/lifeboat-fleet/lifeboat/fleet/bus"
	"github.com/lifeboat-fleet/lifeboat/fleet/config"
	lifeboatv1 "github.com/lifeboat-fleet/lifeboat/proto/lifeboat/v1"
	"github.com/lifeboat-fleet/lifeboat/services/notifier/internal/notice"
	"github.com/lifeboat-fleet/lifeboat/services/notifier/internal/render"
	"github.com/lifeboat-fleet/lifeboat/services/notifier/internal/route"
	"github.com/lifeboat-fleet/lifeboat/services/notifier/internal/runbook"
)

const (
	ackWait = 30 * time.Second
	// sendTimeout bounds one attempt, and with it how long a stop takes.
	sendTimeout = 20 * time.Second
	// relist is how often deliveries are looked for that no consumer of ours takes, besides at each reload: another
	// replica may have put them there under an older configuration.
	relist = time.Minute
)

// Bus is what this package needs of it.
type Bus interface {
	Consume(ctx context.Context, c bus.Consumer) error
	PublishAll(ctx context.Context, all []bus.Outgoing) error
	Subjects(ctx context.Context, stream, filter string) (map[string]uint64, error)
	Emit(ctx context.Context, e *lifeboatv1.Event) error
}

// Sender brings notices to one chat. It holds no state: what it must remember of a group is in the Ref.
type Sender interface {
	// Key names the robot or channel that the chat's limits are for, in letters, digits and dashes: a hash, for its address is a
	// secret. Receivers with the same one share a budget.
	Key() (string, error)
	// Split parts a notice into ones that each fit into a message, at least one. Notices of the same content are parted alike.
	Split(n notice.Notice) []notice.Notice
	// Send posts a notice, or changes the message that the group had before where the chat can. It calls take before every request.
	// The Ref is where the message stands now, also with an error, when a part of the work was done.
	//
	// An error is bus.Terminal when no further attempt can help, bus.RetryAfter when the chat must be left alone for a while, and
	// else worth another attempt soon. It never holds a secret.
	Send(ctx context.Context, n notice.Notice, before notice.Ref, take notice.Take) (notice.Ref, error)
}

// Options of a Deliverer.
type Options struct {
	Bus Bus
	// Config is the configuration in force; Changed gets a value when that is another one.
	Config  func() *config.Config
	Changed <-chan struct{}
	// Sender makes the sender of a receiver.
	Sender     func(config.Receiver) (Sender, error)
	Logger     *slog.Logger
	Registerer prometheus.Registerer
	Now        func() time.Time
}

// Deliverer routes and delivers.
type Deliverer struct {
	o       Options
	limits  *limits
	metrics *metrics
}

// New makes a deliverer.
func New(o Options) *Deliverer {
	return &Deliverer{o: o, limits: newLimits(), metrics: newMetrics(o.Registerer)}
}

type metrics struct {
	routed    *prometheus.CounterVec
	delivered *prometheus.CounterVec
	failed    *prometheus.CounterVec
	lag       *prometheus.HistogramVec
}

func newMetrics(reg prometheus.Registerer) *metrics {
	f := promauto.With(reg)
	return &metrics{
		routed: f.NewCounterVec(prometheus.CounterOpts{
			Name: "lifeboat_alerts_routed_total", Help: "Alerts given to a receiver by the routes.",
		}, []string{"receiver"}),
		delivered: f.NewCounterVec(prometheus.CounterOpts{
			Name: "lifeboat_deliveries_total", Help: "Messages that a chat accepted.",
		}, []string{"receiver"}),
		failed: f.NewCounterVec(prometheus.CounterOpts{
			Name: "lifeboat_delivery_attempts_failed_total", Help: "Attempts that a chat did not accept.",
		}, []string{"receiver"}),
		lag: f.NewHistogramVec(prometheus.HistogramOpts{
			Name: "lifeboat_delivery_lag_seconds", Help: "From the receipt of an alert to its acceptance by the chat.",
			Buckets: prometheus.ExponentialBuckets(0.01, 4, 12),
		}, []string{"receiver"}),
	}
}

// route gives the alerts of one notification to their receivers.
func (d *Deliverer) route(ctx context.Context, m *bus.Message) error {
	n := &lifeboatv1.Notification{}
	if err := bus.Decode(m.Data, n); err != nil {
		return bus.Terminal("malformed", fmt.Errorf("decoding notification: %w", err))
	}
	tree, err := route.Compile(d.o.Config().Notifier.Route)
	if err != nil {
		return fmt.Errorf("compiling routes: %w", err)
	}
	deliveries, err := split(n, tree, m.ID())
	if err != nil {
		return err
	}
	all := make([]bus.Outgoing, 0, len(deliveries))
	for _, out := range deliveries {
		all = append(all, bus.Outgoing{Subject: bus.DeliverySubject(out.GetReceiver()), Message: out, ID: out.GetId()})
	}
	if err := d.o.Bus.PublishAll(ctx, all); err != nil {
		return fmt.Errorf("handing to receivers: %w", err)
	}
	for _, out := range deliveries {
		d.metrics.routed.WithLabelValues(out.GetReceiver()).Add(float64(len(out.GetNotification().GetAlerts())))
	}
	return nil
}

// split makes one delivery for each receiver, in the order in which the routes name them.
func split(n *lifeboatv1.Notification, tree *route.Tree, id string) ([]*lifeboatv1.Delivery, error) {
	var out []*lifeboatv1.Delivery
	byReceiver := map[string]*lifeboatv1.Delivery{}
	for _, a := range n.GetAlerts() {
		hits := tree.Match(a.GetLabels())
		if len(hits) == 0 {
			return nil, bus.Terminal("no_receiver", errors.New("no receiver is configured"))
		}
		for _, h := range hits {
			d := byReceiver[h.Receiver]
			if d == nil {
				envelope, ok := proto.Clone(n).(*lifeboatv1.Notification)
				if !ok {
					return nil, fmt.Errorf("copying a notification: got %T", envelope)
				}
				envelope.Alerts = nil
				d = &lifeboatv1.Delivery{
					Id: id + "." + h.Receiver, Receiver: h.Receiver, Notification: envelope, Route: h.Route,
				}
				byReceiver[h.Receiver] = d
				out = append(out, d)
			}
			d.Notification.Alerts = append(d.Notification.Alerts, a)
		}
	}
	if len(out) == 0 {
		return nil, bus.Terminal("malformed", errors.New("the notification holds no alerts"))
	}
	return out, nil
}

// deliver sends one delivery.
func (d *Deliverer) deliver(ctx context.Context, receiver string, m *bus.Message) error {
	delivery := &lifeboatv1.Delivery{}
	if err := bus.Decode(m.Data, delivery); err != nil {
		return bus.Terminal("malformed", fmt.Errorf("decoding delivery: %w", err))
	}
	cfg := d.o.Config()
	r, ok := findReceiver(cfg, receiver)
	if !ok {
		return bus.Terminal("unknown_receiver", fmt.Errorf("no receiver is named %q any more", receiver))
	}
	sender, err := d.o.Sender(r)
	if err != nil {
		return fmt.Errorf("preparing receiver %s: %w", receiver, err)
	}
	if err := d.limits.wait(ctx, r); err != nil {
		return fmt.Errorf("waiting for the rate limit of %s: %w", receiver, err)
	}
	n := render.Render(delivery, func(name string, annotations map[string]string) string {
		return runbook.Link(cfg.Notifier.Runbooks, name, annotations)
	})
	attempt, cancel := context.WithTimeout(ctx, sendTimeout)
	defer cancel()
	if _, err := sender.Send(attempt, n, notice.Ref{}, func(context.Context, notice.Call) error { return nil }); err != nil {
		d.metrics.failed.WithLabelValues(receiver).Inc()
		return fmt.Errorf("delivering to %s: %w", receiver, err)
	}
	d.delivered(ctx, delivery, m)
	return nil
}

func findReceiver(cfg *config.Config, name string) (config.Receiver, bool) {
	for _, r := range cfg.Notifier.Receivers {
		if r.Name == name {
			return r, true
		}
	}
	return config.Receiver{}, false
}

// delivered records a success. We only log when the record cannot be written: the chat has the message, and sending it
// again for the record's sake would be worse.
func (d *Deliverer) delivered(ctx context.Context, out *lifeboatv1.Delivery, m *bus.Message) {
	received := m.Stored
	if t := out.GetNotification().GetReceivedAt(); t != nil {
		received = t.AsTime()
	}
	lag := max(d.o.Now().Sub(received), 0)
	d.metrics.delivered.WithLabelValues(out.GetReceiver()).Inc()
	d.metrics.lag.WithLabelValues(out.GetReceiver()).Observe(lag.Seconds())
	d.o.Logger.InfoContext(ctx, "delivered", slog.String("receiver", out.GetReceiver()),
		slog.String("delivery_id", out.GetId()), slog.Int("alerts", len(out.GetNotification().GetAlerts())),
		slog.Duration("lag", lag), slog.Int64("attempt", m.Attempt))
	d.emit(ctx, &lifeboatv1.Event{
		Id: "delivered-" + deliveryID(out, m), Noun: "alert", Verb: "delivered",
		Target:     target(out.GetNotification().GetAlerts()),
		Message:    fmt.Sprintf("%s was told of %d alerts", out.GetReceiver(), len(out.GetNotification().GetAlerts())),
		Attributes: attributes(out, m, lag),
	})
}

func attributes(out *lifeboatv1.Delivery, m *bus.Message, lag time.Duration) map[string]string {
	return map[string]string{
		"receiver": out.GetReceiver(), "delivery_id": deliveryID(out, m),
		"lag_seconds": strconv.FormatFloat(lag.Seconds(), 'f', 3, 64),
		"alerts":      strconv.Itoa(len(out.GetNotification().GetAlerts())),
		"attempts":    strconv.FormatInt(m.Attempt, 10),
		"origin":      out.GetNotification().GetOrigin(),
		"alertname":   commonLabel(out.GetNotification().GetAlerts(), "alertname"),
	}
}

// deliveryID is the delivery's own; one that a person published by hand may have none.
func deliveryID(out *lifeboatv1.Delivery, m *bus.Message) string {
	if out.GetId() != "" {
		return out.GetId()
	}
	return m.ID()
}

// dead records that a message was put aside.
func (d *Deliverer) dead(ctx context.Context, m *bus.Message, why error) error {
	out := &lifeboatv1.Delivery{}
	alerts := func() []*lifeboatv1.Alert { return out.GetNotification().GetAlerts() }
	if m.Subject == bus.SubjectReceived {
		out.Notification = &lifeboatv1.Notification{}
		if bus.Decode(m.Data, out.GetNotification()) != nil {
			out.Notification = nil
		}
	} else if bus.Decode(m.Data, out) != nil {
		out = &lifeboatv1.Delivery{}
	}
	return d.o.Bus.Emit(ctx, &lifeboatv1.Event{
		Id: m.DeadID(), Noun: "alert", Verb: "dead", Target: target(alerts()),
		Message: why.Error(), Attributes: attributes(out, m, d.o.Now().Sub(m.Stored)),
	})
}

// emit also works while the service stops: what was done is done, and belongs into the record.
func (d *Deliverer) emit(ctx context.Context, e *lifeboatv1.Event) {
	ctx = context.WithoutCancel(ctx)
	if err := d.o.Bus.Emit(ctx, e); err != nil {
		d.o.Logger.WarnContext(ctx, "could not record an event", slog.String("verb", e.GetVerb()), slog.Any("err", err))
	}
}

// target is the backup target that all alerts name, if it can stand in a subject; empty for the fleet.
func target(alerts []*lifeboatv1.Alert) string {
	if t := commonLabel(alerts, "target"); config.ValidName(t) {
		return t
	}
	return ""
}

func commonLabel(alerts []*lifeboatv1.Alert, name string) string {
	if len(alerts) == 0 {
		return ""
	}
	v := alerts[0].GetLabels()[name]
	for _, a := range alerts[1:] {
		if a.GetLabels()[name] != v {
			return ""
		}
	}
	return v
}
