// Package reconcile compares what Alertmanager says fires with what people were told, and delivers what never arrived: a webhook that
// was lost on its way, or that Alertmanager gave up, and once also what ended as a dead letter.
//
// What was told stands in the receivers' states of groups, and what will be told in the queue; both are in the stream of alerts. An
// alert that is in neither, twice at least reconcile.after apart, was missed. It goes through the routes like any other, and an event says
// so, once. Alertmanager does not say that such an alert has ended, for it never said that it began; so that is found here, too.
//
// One replica suffices. Several find the same, and publish it under the same ids; what the stream has forgotten of these stands in the
// states and in the audit log by then.
package reconcile

import (
	"context"
	"fmt"
	"log/slog"
	"net/http"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/promauto"
	"go.opentelemetry.io/otel/trace"

	"github.com/lifeboat-fleet/lifeboat/fleet/bus"
	"github.com/lifeboat-fleet/lifeboat/fleet/config"
	"github.com/lifeboat-fleet/lifeboat/fleet/tracing"
	lifeboatv1 "github.com/lifeboat-fleet/lifeboat/proto/lifeboat/v1"
	"github.com/lifeboat-fleet/lifeboat/services/notifier/internal/amclient"
)

const (
	// recheck is how often the configuration is looked at, which may have another interval.
	recheck = 30 * time.Second
	// batch is how many alerts are published at once.
	batch = 200
)

// Bus is what this package needs of it.
type Bus interface {
	Scan(ctx context.Context, stream, filter string, each func(*bus.Message) error) error
	History(ctx context.Context, stream string, filters []string, since time.Time, each func(*bus.Message) error) error
	PublishAll(ctx context.Context, all []bus.Outgoing) error
	Emit(ctx context.Context, e *lifeboatv1.Event) error
}

// Options of a Reconciler.
type Options struct {
	Bus    Bus
	Config func() *config.Config
	// Group is the last token of the subject of a group's state, by Alertmanager's key of the group and its receiver. By it the
	// receivers are known that have posted to Lifeboat; nil: only while their notifications wait.
	Group      func(groupKey, receiver string) string
	Logger     *slog.Logger
	Registerer prometheus.Registerer
	Now        func() time.Time
}

// Reconciler finds alerts that nobody was told of.
type Reconciler struct {
	o       Options
	http    *http.Client
	metrics *metrics

	// What is known from check to check. It is 16 bytes and a time for each alert that nobody was told of.
	missing map[alertID]time.Time
	// ended is since when Alertmanager does not know an alert any more that was delivered from here.
	ended map[string]absence
	// told are those that the audit log has an event of.
	told map[alertID]bool
	// posted are Alertmanager's receivers that have posted to Lifeboat.
	posted map[string]bool
}

// alertID is an alert while it fires once: its fingerprint, and when it began in milliseconds, which is how exactly Alertmanager's API says it.
type alertID struct {
	fingerprint uint64
	starts      int64
}

func (a alertID) String() string { return fmt.Sprintf("%016x-%d", a.fingerprint, a.starts) }

// New makes it; Run starts it.
func New(o Options) *Reconciler {
	return &Reconciler{
		o: o, metrics: newMetrics(o.Registerer),
		http:    amclient.New(func() config.Alertmanager { return o.Config().Alertmanager }),
		missing: map[alertID]time.Time{}, ended: map[string]absence{}, told: map[alertID]bool{}, posted: map[string]bool{},
	}
}

type metrics struct {
	undelivered prometheus.Gauge
	missed      prometheus.Counter
	checks      *prometheus.CounterVec
	checked     prometheus.Gauge
}

func newMetrics(reg prometheus.Registerer) *metrics {
	f := promauto.With(reg)
	return &metrics{
		undelivered: f.NewGauge(prometheus.GaugeOpts{
			Name: "lifeboat_alerts_undelivered", Help: "Alerts that Alertmanager says fire, and that were neither told nor wait to be told, at the last check.",
		}),
		missed: f.NewCounter(prometheus.CounterOpts{
			Name: "lifeboat_alerts_missed_total", Help: "Alerts that fire in Alertmanager, that nobody was told of, and that were delivered after all.",
		}),
		checks: f.NewCounterVec(prometheus.CounterOpts{
			Name: "lifeboat_reconcile_checks_total", Help: "Comparisons with Alertmanager, by outcome (ok, failed).",
		}, []string{"outcome"}),
		checked: f.NewGauge(prometheus.GaugeOpts{
			Name: "lifeboat_reconcile_timestamp_seconds", Help: "When the last comparison with Alertmanager succeeded; 0 while there is nothing to compare with, and before the first.",
		}),
	}
}

// Run compares until the context ends.
func (r *Reconciler) Run(ctx context.Context) error {
	defer r.http.CloseIdleConnections()
	var last time.Time
	for {
		cfg, now := r.o.Config(), r.o.Now()
		every := cfg.Notifier.Reconcile.Interval
		off := every <= 0 || len(cfg.Alertmanager.URLs) == 0
		if off {
			r.metrics.undelivered.Set(0)
			r.metrics.checked.Set(0)
		} else if now.Sub(last) >= every || now.Before(last) {
			last = now
			r.checkAndCount(ctx, cfg)
		}
		wait := recheck
		if !off {
			wait = max(min(recheck, last.Add(every).Sub(r.o.Now())), time.Millisecond)
		}
		timer := time.NewTimer(wait)
		select {
		case <-timer.C:
		case <-ctx.Done():
			timer.Stop()
			return nil
		}
	}
}

func (r *Reconciler) checkAndCount(ctx context.Context, cfg *config.Config) {
	err := r.check(ctx, cfg)
	if ctx.Err() != nil {
		return
	}
	if err != nil {
		r.metrics.checks.WithLabelValues("failed").Inc()
		r.o.Logger.WarnContext(ctx, "could not compare with Alertmanager what was delivered; trying again at the next interval", slog.Any("err", err))
		return
	}
	r.metrics.checks.WithLabelValues("ok").Inc()
	r.metrics.checked.Set(float64(r.o.Now().Unix()))
}

// check asks Alertmanager first and looks at what was told afterwards: what is told in between is no miss.
func (r *Reconciler) check(ctx context.Context, cfg *config.Config) error {
	firing, err := r.firing(ctx, cfg.Alertmanager.URLs)
	if err != nil {
		return err
	}
	known := newKnown(firing, r.o.Group, r.posted)
	if err = r.o.Bus.Scan(ctx, bus.StreamAlerts, "lifeboat.alert.>", known.take); err != nil {
		return fmt.Errorf("reading what was told and what waits: %w", err)
	}
	now, rule := r.o.Now(), cfg.Notifier.Reconcile
	missed := r.lasting(known.unknown(rule.Receivers), now, rule.After)
	r.metrics.undelivered.Set(float64(len(missed)))
	if err = r.deliver(ctx, missed, now); err != nil {
		return err
	}
	return r.resolve(ctx, known.over(firing), now, rule.After)
}

// lasting are the alerts that were unknown for so long, and fire for so long. An alert may fire for days and be silenced, inhibited or muted
// until a moment ago: then Alertmanager has its group_interval to send it.
func (r *Reconciler) lasting(unknown []*alert, now time.Time, after time.Duration) []*alert {
	seen := make(map[alertID]time.Time, len(unknown))
	var out []*alert
	for _, a := range unknown {
		since, ok := r.missing[a.id]
		if !ok {
			since = now
		}
		seen[a.id] = since
		if now.Sub(since) >= after && now.Sub(time.UnixMilli(a.id.starts)) >= after {
			out = append(out, a)
		}
	}
	r.missing = seen
	for id := range r.told {
		if _, still := seen[id]; !still {
			delete(r.told, id)
		}
	}
	return out
}

// deliver publishes the alerts that the audit log does not have yet, and records each. An alert that it has was published before: it ended as
// a dead letter, or is delivered just now.
func (r *Reconciler) deliver(ctx context.Context, missed []*alert, now time.Time) error {
	if err := r.readLog(ctx, missed); err != nil {
		return err
	}
	var fresh []*alert
	for _, a := range missed {
		if !r.told[a.id] {
			fresh = append(fresh, a)
		}
	}
	for len(fresh) > 0 {
		part := fresh[:min(batch, len(fresh))]
		fresh = fresh[len(part):]
		all := make([]bus.Outgoing, 0, len(part))
		traces := make([]trace.SpanContext, 0, len(part))
		for _, a := range part {
			traced, span := tracing.Start(ctx, "alert missed")
			span.End()
			traces = append(traces, tracing.Of(traced))
			n := a.notification(now)
			all = append(all, bus.Outgoing{Subject: bus.SubjectReceived, Message: n, ID: n.GetId(), Trace: tracing.Of(traced)})
		}
		if err := r.o.Bus.PublishAll(ctx, all); err != nil {
			return fmt.Errorf("publishing alerts that were missed: %w", err)
		}
		for i, a := range part {
			traced := tracing.In(ctx, traces[i])
			if err := r.o.Bus.Emit(traced, a.event()); err != nil {
				return fmt.Errorf("recording that an alert was missed: %w", err)
			}
			r.told[a.id] = true
			r.metrics.missed.Inc()
			r.o.Logger.WarnContext(traced, "an alert fires in Alertmanager, and nobody was told; it is delivered now",
				slog.String("alertname", a.labels["alertname"]), slog.String("fingerprint", fmt.Sprintf("%016x", a.id.fingerprint)))
		}
	}
	return nil
}

// readLog looks for the events of alerts that this process knows nothing of: another replica, or this one before a restart.
func (r *Reconciler) readLog(ctx context.Context, missed []*alert) error {
	want := map[string]alertID{}
	var since time.Time
	for _, a := range missed {
		if r.told[a.id] {
			continue
		}
		want[a.id.String()] = a.id
		if starts := time.UnixMilli(a.id.starts); since.IsZero() || starts.Before(since) {
			since = starts
		}
	}
	if len(want) == 0 {
		return nil
	}
	err := r.o.Bus.History(ctx, bus.StreamEvents, []string{bus.EventSubject("alert", "missed", "*")}, since, func(m *bus.Message) error {
		e := &lifeboatv1.Event{}
		if bus.Decode(m.Data, e) != nil {
			return nil //nolint:nilerr // somebody published it by hand
		}
		if id, ok := want[e.GetAttributes()["alert"]]; ok {
			r.told[id] = true
		}
		return nil
	})
	if err != nil {
		return fmt.Errorf("reading which alerts were missed before: %w", err)
	}
	return nil
}

// absence of an alert.
type absence struct {
	since time.Time
	// told says that its end was published: once, for that may end as a dead letter.
	told bool
}

// settled is how long after its restart an Alertmanager has been told again of everything that fires.
const settled = 2 * time.Minute

// resolve tells that alerts have ended of which Alertmanager does not know any more for so long.
func (r *Reconciler) resolve(ctx context.Context, over []*ending, now time.Time, after time.Duration) error {
	seen := make(map[string]absence, len(over))
	var all []bus.Outgoing
	var keys []string
	for _, e := range over {
		key := endingKey(e.receiver, e.id)
		gone, ok := r.ended[key]
		if !ok {
			gone.since = now
		}
		seen[key] = gone
		if ok && !gone.told && now.Sub(gone.since) >= min(after, settled) {
			n := e.notification(gone.since, now)
			all = append(all, bus.Outgoing{Subject: bus.SubjectReceived, Message: n, ID: n.GetId()})
			keys = append(keys, key)
		}
	}
	r.ended = seen
	for begin := 0; begin < len(all); begin += batch {
		end := min(begin+batch, len(all))
		if err := r.o.Bus.PublishAll(ctx, all[begin:end]); err != nil {
			return fmt.Errorf("publishing that alerts have ended: %w", err)
		}
		for _, key := range keys[begin:end] {
			r.ended[key] = absence{since: r.ended[key].since, told: true}
		}
	}
	return nil
}
