// Package fleetalert raises alerts about the fleet itself: a snapshot, drill or verification that failed, an RPO that is
// exceeded, a job that was rejected.
//
// There is no state of its own. What fires is derived from the last events of each target in the audit log, so it
// survives a restart, and any number of replicas say the same. Alerts go to every Alertmanager, which deduplicates,
// silences and groups them and sends them back through the webhook. While no Alertmanager answers they go straight to
// the routes, because the failure of a backup must reach people also when the monitoring is down with it.
package fleetalert

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"net/http"
	"slices"
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/promauto"
	"golang.org/x/sync/errgroup"
	"google.golang.org/protobuf/types/known/timestamppb"

	"github.com/lifeboat-fleet/lifeboat/fleet/bus"
	"github.com/lifeboat-fleet/lifeboat/fleet/config"
	lifeboatv1 "github.com/lifeboat-fleet/lifeboat/proto/lifeboat/v1"
	"github.com/lifeboat-fleet/lifeboat/services/notifier/internal/amclient"
)

const (
	// repeatAfter is how often an alert that goes straight to chat is told again while it fires.
	repeatAfter = 4 * time.Hour
	// settled is how long an Alertmanager must have held an alert before we believe that it told somebody.
	settled = 5 * time.Minute
)

// Bus is what this package needs of it.
type Bus interface {
	Follow(ctx context.Context, f bus.Follower) error
	PublishAll(ctx context.Context, all []bus.Outgoing) error
}

// Options of Alerts.
type Options struct {
	Bus        Bus
	Config     func() *config.Config
	Logger     *slog.Logger
	Registerer prometheus.Registerer
	Now        func() time.Time
}

// Alerts watches the audit log and raises what it finds.
type Alerts struct {
	o       Options
	http    *http.Client
	metrics *metrics

	mu    sync.Mutex
	state *state

	// told says when people were last told of an alert's state, and held since when an Alertmanager has had it. Only
	// the loop of Run uses them.
	told, held map[string]time.Time
}

// New makes it; Run starts it.
func New(o Options) *Alerts {
	return &Alerts{
		o: o, metrics: newMetrics(o.Registerer), state: newState(),
		http: amclient.New(func() config.Alertmanager { return o.Config().Alertmanager }),
		told: map[string]time.Time{}, held: map[string]time.Time{},
	}
}

type metrics struct {
	firing *prometheus.GaugeVec
	posts  *prometheus.CounterVec
	direct prometheus.Counter
}

func newMetrics(reg prometheus.Registerer) *metrics {
	f := promauto.With(reg)
	return &metrics{
		firing: f.NewGaugeVec(prometheus.GaugeOpts{
			Name: "lifeboat_fleet_alerts_firing", Help: "The fleet's own alerts that fire now, by name.",
		}, []string{"alertname"}),
		posts: f.NewCounterVec(prometheus.CounterOpts{
			Name: "lifeboat_alertmanager_posts_total", Help: "Posts to Alertmanagers, by outcome (ok, partial, failed).",
		}, []string{"outcome"}),
		direct: f.NewCounter(prometheus.CounterOpts{
			Name: "lifeboat_fleet_alerts_direct_total",
			Help: "The fleet's own alerts that went straight to the routes because no Alertmanager answered.",
		}),
	}
}

// Run watches until the context ends.
func (a *Alerts) Run(ctx context.Context) error {
	defer a.http.CloseIdleConnections()
	news := make(chan struct{}, 1)
	wake := func() {
		select {
		case news <- struct{}{}:
		default:
		}
	}
	// Nothing is said before all last events have been seen: a failure may be followed by its repair.
	caughtUp := make(chan struct{})
	g, ctx := errgroup.WithContext(ctx)
	g.Go(func() error {
		return a.o.Bus.Follow(ctx, bus.Follower{
			Stream: bus.StreamEvents, Filters: filters(),
			Message:  func(ctx context.Context, m *bus.Message) { a.take(ctx, m); wake() },
			Reset:    a.reset,
			CaughtUp: func() { close(caughtUp) },
		})
	})
	g.Go(func() error {
		select {
		case <-caughtUp:
		case <-ctx.Done():
			return nil
		}
		for {
			a.raise(ctx)
			timer := time.NewTimer(a.o.Config().Alertmanager.ResendInterval)
			select {
			case <-news:
			case <-timer.C:
			case <-ctx.Done():
				timer.Stop()
				return nil
			}
			timer.Stop()
		}
	})
	return g.Wait()
}

// reset forgets the events of a log that was lost: the new log's sequences begin again, and would all seem older. An alert
// that fired stops being sent; it fires again with its next event, and the RPO clock starts anew.
func (a *Alerts) reset() {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.state = newState()
}

func (a *Alerts) take(ctx context.Context, m *bus.Message) {
	e := &lifeboatv1.Event{}
	if err := bus.Decode(m.Data, e); err != nil {
		a.o.Logger.WarnContext(ctx, "skipping an event that cannot be read", slog.String("subject", m.Subject), slog.Any("err", err))
		return
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	a.state.apply(m.Seq, m.Stored, e, m.Trace())
}

// raise tells every Alertmanager what fires and what just ended, or the routes when none of them listens.
func (a *Alerts) raise(ctx context.Context) {
	cfg, now := a.o.Config(), a.o.Now()
	a.mu.Lock()
	alerts := a.state.alerts(now, cfg)
	a.mu.Unlock()
	a.count(alerts)
	a.forget(alerts)
	if len(alerts) == 0 {
		return
	}
	if a.postAll(ctx, cfg.Alertmanager, alerts, now) {
		for _, al := range alerts {
			since, ok := a.held[al.key()]
			if !ok {
				a.held[al.key()] = now
			} else if now.Sub(since) >= settled {
				a.told[al.key()] = now
			}
		}
		return
	}
	if ctx.Err() != nil {
		return
	}
	if err := a.direct(ctx, alerts, now); err != nil {
		a.o.Logger.WarnContext(ctx, "could not hand the fleet's own alerts to the routes; trying again at the next interval",
			slog.Any("err", err))
	}
}

func (a *Alerts) count(alerts []Alert) {
	firing := map[string]float64{}
	for _, al := range alerts {
		if al.Firing {
			firing[al.Name]++
		}
	}
	for _, r := range rules() {
		a.metrics.firing.WithLabelValues(r.alert).Set(firing[r.alert])
	}
}

// forget drops what is remembered of alerts that are over.
func (a *Alerts) forget(alerts []Alert) {
	live := map[string]bool{}
	for _, al := range alerts {
		live[al.key()] = true
	}
	over := func(key string, _ time.Time) bool { return !live[key] }
	maps.DeleteFunc(a.told, over)
	maps.DeleteFunc(a.held, over)
}

// postAll posts to every Alertmanager at once, for they do not gossip alerts, and says whether any of them answered.
func (a *Alerts) postAll(ctx context.Context, cfg config.Alertmanager, alerts []Alert, now time.Time) bool {
	body := postable(alerts, now, cfg.ResendInterval)
	errs := make([]error, len(cfg.URLs))
	var g errgroup.Group
	for i, address := range cfg.URLs {
		g.Go(func() error {
			errs[i] = post(ctx, a.http, address, body)
			return nil
		})
	}
	_ = g.Wait() // the functions return nil; the errors are in errs
	answered := false
	for i, err := range errs {
		var partial *partialError
		outcome := "ok"
		switch {
		case errors.As(err, &partial):
			outcome = "partial"
		case err != nil:
			outcome = "failed"
		}
		a.metrics.posts.WithLabelValues(outcome).Inc()
		answered = answered || outcome != "failed"
		if err != nil && ctx.Err() == nil {
			a.o.Logger.WarnContext(ctx, "posting the fleet's own alerts", slog.String("alertmanager", cfg.URLs[i]), slog.Any("err", err))
		}
	}
	return answered
}

// direct hands alerts to the routes, each once for every state it is in, and again every few hours while it fires.
func (a *Alerts) direct(ctx context.Context, alerts []Alert, now time.Time) error {
	var all []bus.Outgoing
	var keys []string
	for _, al := range alerts {
		last, ok := a.told[al.key()]
		if ok && (!al.Firing || now.Sub(last) < repeatAfter) {
			continue
		}
		n := notification(al, now)
		all = append(all, bus.Outgoing{Subject: bus.SubjectReceived, Message: n, ID: n.GetId(), Trace: al.Trace})
		keys = append(keys, al.key())
	}
	if len(all) == 0 {
		return nil
	}
	if err := a.o.Bus.PublishAll(ctx, all); err != nil {
		return fmt.Errorf("publishing alerts: %w", err)
	}
	for _, k := range keys {
		a.told[k] = now
	}
	a.metrics.direct.Add(float64(len(all)))
	a.o.Logger.WarnContext(ctx, "no Alertmanager answers; the fleet's own alerts go straight to the routes",
		slog.Any("alerts", slices.Compact(keys)))
	return nil
}

// notification is an alert as if Alertmanager had sent it. Its id is the same for every replica and after a restart, and
// another one for each repetition.
func notification(al Alert, now time.Time) *lifeboatv1.Notification {
	repetition := max(now.Sub(al.StartsAt), 0) / repeatAfter
	if !al.Firing {
		repetition = 0
	}
	sum := sha256.Sum256(fmt.Appendf(nil, "%s#%d", al.key(), repetition))
	group := fmt.Sprintf("lifeboat/%s/%s", al.Name, al.Target)
	fp := sha256.Sum256([]byte(group))
	p := &lifeboatv1.Alert{
		Status: "resolved", Labels: al.Labels, Annotations: al.Annotations, StartsAt: timestamppb.New(al.StartsAt),
		Fingerprint: hex.EncodeToString(fp[:8]),
	}
	if al.Firing {
		p.Status = "firing"
	} else {
		p.EndsAt = timestamppb.New(al.EndsAt)
	}
	return &lifeboatv1.Notification{
		Id: "fleet-" + hex.EncodeToString(sum[:16]), ReceivedAt: timestamppb.New(now), Origin: "lifeboat",
		GroupKey: group, Receiver: "lifeboat", GroupLabels: map[string]string{"alertname": al.Name, "target": al.Target},
		CommonLabels: al.Labels, CommonAnnotations: al.Annotations, Alerts: []*lifeboatv1.Alert{p}, Part: 1, Parts: 1,
	}
}
