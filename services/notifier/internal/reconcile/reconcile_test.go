package reconcile

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"path/filepath"
	"sync"
	"testing"
	"time"

	"github.com/prometheus/alertmanager/template"
	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/testutil"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"go.uber.org/goleak"
	"google.golang.org/protobuf/types/known/timestamppb"

	"github.com/lifeboat-fleet/lifeboat/fleet/bus"
	"github.com/lifeboat-fleet/lifeboat/fleet/config"
	"github.com/lifeboat-fleet/lifeboat/fleet/fleettest/bintest"
	"github.com/lifeboat-fleet/lifeboat/fleet/fleettest/natstest"
	lifeboatv1 "github.com/lifeboat-fleet/lifeboat/proto/lifeboat/v1"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

const patience = 60 * time.Second

// world is a real NATS server and a real Alertmanager, with the reconcilers of as many notifiers as the test wants.
type world struct {
	t   *testing.T
	bus *bus.Bus
	url string
	am  *bintest.Alertmanager
}

func newWorld(t *testing.T, webhook string) *world {
	t.Helper()
	am, err := bintest.StartAlertmanager(t.Context(), filepath.Join(t.TempDir(), "am"), webhook)
	require.NoError(t, err)
	t.Cleanup(func() { assert.NoError(t, am.Kill()) })
	srv := natstest.New(t)
	b := connect(t, srv.URL())
	require.NoError(t, b.EnsureStreams(t.Context()))
	return &world{t: t, bus: b, url: srv.URL(), am: am}
}

func connect(t *testing.T, url string) *bus.Bus {
	t.Helper()
	b, err := bus.Connect(bus.Options{
		Config: config.NATS{URL: url, Replicas: 1}, Actor: "lifeboat-notifier@test", Logger: slog.New(slog.DiscardHandler),
		Registerer: prometheus.NewRegistry(),
	})
	require.NoError(t, err)
	t.Cleanup(func() { assert.NoError(t, b.Close()) })
	return b
}

func group(groupKey, receiver string) string { return fmt.Sprintf("%x", groupKey+"\xff"+receiver) }

func settings(urls []string, receivers ...string) *config.Config {
	cfg := &config.Config{}
	cfg.Alertmanager.URLs = urls
	cfg.Notifier.Reconcile = config.Reconcile{Interval: 200 * time.Millisecond, After: time.Second, Receivers: receivers}
	return cfg
}

// start runs a reconciler until the test's end, or until stop.
func (w *world) start(cfg *config.Config) (r *Reconciler, stop func()) {
	w.t.Helper()
	r = New(Options{
		Bus: connect(w.t, w.url), Config: func() *config.Config { return cfg }, Group: group, Logger: slog.New(slog.DiscardHandler),
		Registerer: prometheus.NewRegistry(), Now: time.Now,
	})
	ctx, cancel := context.WithCancel(w.t.Context())
	done := make(chan error, 1)
	go func() { done <- r.Run(ctx) }()
	stop = sync.OnceFunc(func() { cancel(); assert.NoError(w.t, <-done) })
	w.t.Cleanup(stop)
	return r, stop
}

func (w *world) post(path string, body any) {
	w.t.Helper()
	b, err := json.Marshal(body)
	require.NoError(w.t, err)
	req, err := http.NewRequestWithContext(w.t.Context(), http.MethodPost, w.am.URL+"/api/v2/"+path, bytes.NewReader(b))
	require.NoError(w.t, err)
	req.Header.Set("Content-Type", "application/json")
	resp, err := (&http.Client{Transport: &http.Transport{DisableKeepAlives: true}}).Do(req)
	require.NoError(w.t, err)
	answer, err := io.ReadAll(resp.Body)
	require.NoError(w.t, err)
	require.NoError(w.t, resp.Body.Close())
	require.Equal(w.t, http.StatusOK, resp.StatusCode, "%s", answer)
}

// fire posts an alert that fires for an hour; end ends it.
func (w *world) fire(name string, began time.Time, ends ...time.Time) {
	w.t.Helper()
	until := time.Now().Add(time.Hour)
	if len(ends) > 0 {
		until = ends[0]
	}
	w.post("alerts", []map[string]any{{
		"labels":      map[string]string{"alertname": name, "target": "etcd-prod", "severity": "critical"},
		"annotations": map[string]string{"summary": name + " is on fire"}, "generatorURL": "http://prometheus/graph",
		"startsAt": began.Format(time.RFC3339Nano), "endsAt": until.Format(time.RFC3339Nano),
	}})
}

// waiting are the notifications that wait to be routed.
func (w *world) waiting() []*lifeboatv1.Notification {
	w.t.Helper()
	var out []*lifeboatv1.Notification
	require.NoError(w.t, w.bus.Scan(w.t.Context(), bus.StreamAlerts, bus.SubjectReceived, func(m *bus.Message) error {
		n := &lifeboatv1.Notification{}
		out = append(out, n)
		return bus.Decode(m.Data, n)
	}))
	return out
}

// told writes what a receiver was told of a group, as the queue does.
func (w *world) told(ctx context.Context, groupKey, amReceiver, status string, alerts ...*lifeboatv1.Alert) {
	w.t.Helper()
	g := &lifeboatv1.Group{GroupKey: groupKey}
	for _, a := range alerts {
		g.Alerts = append(g.Alerts, &lifeboatv1.Told{
			Fingerprint: a.GetFingerprint(), StartsAt: a.GetStartsAt(), Status: status, ToldStatus: status, ToldAt: timestamppb.Now(),
		})
	}
	_, err := w.bus.Publish(ctx, bus.Outgoing{Subject: bus.GroupSubject("ops", group(groupKey, amReceiver)), Message: g})
	assert.NoError(w.t, err)
}

// drop takes everything out of the queue.
func (w *world) drop(subject string) {
	w.t.Helper()
	require.NoError(w.t, w.bus.Scan(w.t.Context(), bus.StreamAlerts, subject, func(m *bus.Message) error {
		return w.bus.Delete(w.t.Context(), bus.StreamAlerts, m.Seq)
	}))
}

func (w *world) events() uint64 {
	w.t.Helper()
	n, err := w.bus.Subjects(w.t.Context(), bus.StreamEvents, "lifeboat.event.alert.missed.>")
	require.NoError(w.t, err)
	total := uint64(0)
	for _, c := range n {
		total += c
	}
	return total
}

func (w *world) checks(r *Reconciler, more float64) {
	w.t.Helper()
	ok := r.metrics.checks.WithLabelValues("ok")
	from := testutil.ToFloat64(ok)
	require.Eventually(w.t, func() bool { return testutil.ToFloat64(ok) >= from+more }, patience, 20*time.Millisecond)
}

func deadURL(t *testing.T) string {
	t.Helper()
	ports, err := bintest.FreePorts(1)
	require.NoError(t, err)
	return fmt.Sprintf("http://127.0.0.1:%d/", ports[0])
}

func TestAnAlertThatNeverCameIsDeliveredOnceAndItsEndToo(t *testing.T) {
	t.Parallel()
	w := newWorld(t, deadURL(t))
	began := time.Now().Add(-time.Hour)
	w.post("silences", map[string]any{
		"matchers": []map[string]any{{"name": "alertname", "value": "Silenced", "isRegex": false}}, "createdBy": "test", "comment": "test",
		"startsAt": time.Now().Format(time.RFC3339), "endsAt": time.Now().Add(time.Hour).Format(time.RFC3339),
	})
	w.fire("Silenced", began)
	w.fire("Lost", began)
	cfg := settings([]string{deadURL(t), w.am.URL}, "lifeboat")
	r, stop := w.start(cfg)
	other, _ := w.start(cfg)

	require.Eventually(t, func() bool { return len(w.waiting()) > 0 }, patience, 20*time.Millisecond)
	w.checks(other, 5)
	all := w.waiting()
	require.Len(t, all, 1, "two replicas, one notification, and none of a silenced alert")
	n := all[0]
	require.Len(t, n.GetAlerts(), 1)
	a := n.GetAlerts()[0]
	assert.Equal(t, "reconcile", n.GetOrigin())
	assert.Equal(t, fmt.Sprintf("recon-%s-%d", a.GetFingerprint(), began.UnixMilli()), n.GetId())
	assert.Equal(t, map[string]string{"alertname": "Lost", "target": "etcd-prod", "severity": "critical"}, a.GetLabels())
	assert.Equal(t, map[string]string{"summary": "Lost is on fire"}, a.GetAnnotations())
	assert.Equal(t, "firing", a.GetStatus())
	assert.Equal(t, began.UnixMilli(), a.GetStartsAt().AsTime().UnixMilli())
	require.Eventually(t, func() bool { return w.events() == 1 }, patience, 20*time.Millisecond)
	assert.InDelta(t, 1, testutil.ToFloat64(r.metrics.missed)+testutil.ToFloat64(other.metrics.missed), 1, "each replica that published it counts it")

	// It ended as a dead letter: it is in no queue and in no state, but in the log, also after a restart.
	w.drop(bus.SubjectReceived)
	stop()
	r, _ = w.start(cfg)
	require.Eventually(t, func() bool { return testutil.ToFloat64(r.metrics.undelivered) == 1 }, patience, 20*time.Millisecond)
	w.checks(r, 5)
	assert.Empty(t, w.waiting())
	assert.Equal(t, uint64(1), w.events())

	// It was told after all.
	w.told(t.Context(), n.GetGroupKey(), n.GetReceiver(), "firing", a)
	require.Eventually(t, func() bool { return testutil.ToFloat64(r.metrics.undelivered) == 0 }, patience, 20*time.Millisecond)
	w.checks(r, 10)
	assert.Empty(t, w.waiting(), "it fires still")

	w.fire("Lost", began, time.Now())
	require.Eventually(t, func() bool { return len(w.waiting()) > 0 }, patience, 20*time.Millisecond)
	w.checks(r, 5)
	all = w.waiting()
	require.Len(t, all, 1)
	assert.Equal(t, "resolved", all[0].GetAlerts()[0].GetStatus())
	assert.Equal(t, "ops", all[0].GetOnlyReceiver(), "who was told that it fires")
	assert.Equal(t, n.GetGroupKey(), all[0].GetGroupKey())
	assert.Equal(t, a.GetLabels(), all[0].GetAlerts()[0].GetLabels())
}

func TestWhatAlertmanagerDeliveredIsNotMissed(t *testing.T) {
	t.Parallel()
	var w *world
	came := make(chan struct{}, 10)
	ready := make(chan struct{})
	// A queue that tells at once what arrives.
	hook := httptest.NewServer(http.HandlerFunc(func(_ http.ResponseWriter, req *http.Request) {
		<-ready
		var data struct {
			template.Data
			GroupKey string `json:"groupKey"`
		}
		if !assert.NoError(t, json.NewDecoder(req.Body).Decode(&data)) {
			return
		}
		var alerts []*lifeboatv1.Alert
		for _, a := range data.Alerts {
			alerts = append(alerts, &lifeboatv1.Alert{Fingerprint: a.Fingerprint, StartsAt: timestamppb.New(a.StartsAt)})
		}
		w.told(req.Context(), data.GroupKey, data.Receiver, "firing", alerts...)
		came <- struct{}{}
	}))
	t.Cleanup(hook.Close)
	w = newWorld(t, hook.URL)
	close(ready)
	// With nanoseconds, which the webhook has and the API has not.
	w.fire("Delivered", time.Now().Add(-time.Hour).Truncate(time.Second).Add(123456789))
	<-came
	r, _ := w.start(settings([]string{w.am.URL})) // by what has posted
	w.checks(r, 10)
	assert.InDelta(t, 0, testutil.ToFloat64(r.metrics.undelivered), 0)
	assert.Empty(t, w.waiting())

	// What it forgot is missed: so the receiver is known by its groups' states.
	w.drop(bus.GroupSubject("*", "*"))
	w.checks(r, 2)
	require.Eventually(t, func() bool { return len(w.waiting()) == 1 }, patience, 20*time.Millisecond)
	assert.Equal(t, uint64(1), w.events())
}

func TestNobodyIsAskedWhenItIsOff(t *testing.T) {
	t.Parallel()
	asked := make(chan struct{}, 100)
	am := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		asked <- struct{}{}
		w.WriteHeader(http.StatusInternalServerError)
	}))
	t.Cleanup(am.Close)
	srv := natstest.New(t)
	w := &world{t: t, url: srv.URL()}
	cfg := settings([]string{am.URL}, "lifeboat")
	cfg.Notifier.Reconcile.Interval = -time.Second
	off, _ := w.start(cfg)
	none := settings(nil, "lifeboat")
	nobody, _ := w.start(none)
	r, _ := w.start(settings([]string{am.URL}, "lifeboat"))
	require.Eventually(t, func() bool { return testutil.ToFloat64(r.metrics.checks.WithLabelValues("failed")) >= 3 }, patience, 20*time.Millisecond)
	assert.NotEmpty(t, asked)
	for _, idle := range []*Reconciler{off, nobody} {
		for _, outcome := range []string{"ok", "failed"} {
			assert.InDelta(t, 0, testutil.ToFloat64(idle.metrics.checks.WithLabelValues(outcome)), 0)
		}
	}
}
