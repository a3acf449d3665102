package fleetalert

import (
	"context"
	"fmt"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"slices"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"go.opentelemetry.io/otel/trace"
	"go.uber.org/goleak"
	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/types/known/timestamppb"

	"github.com/lifeboat-fleet/lifeboat/fleet/bus"
	"github.com/lifeboat-fleet/lifeboat/fleet/config"
	lifeboatv1 "github.com/lifeboat-fleet/lifeboat/proto/lifeboat/v1"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

var t0 = time.Date(2026, 11, 21, 4, 0, 0, 0, time.UTC)

func at(minutes int) time.Time { return t0.Add(time.Duration(minutes) * time.Minute) }

func event(noun, verb, target string, minute int) *lifeboatv1.Event {
	return &lifeboatv1.Event{
		Noun: noun, Verb: verb, Target: target, Message: fmt.Sprintf("%s at %d", verb, minute),
		Time: timestamppb.New(at(minute)),
	}
}

func TestAlertsAreDerivedFromTheLastEvents(t *testing.T) {
	t.Parallel()
	type step struct {
		noun, verb string
		minute     int
	}
	for name, c := range map[string]struct {
		steps []step
		now   int
		want  []string
	}{
		"nothing happened": {nil, 0, nil},
		"only good":        {[]step{{"snapshot", "committed", 1}}, 2, nil},
		"failed":           {[]step{{"snapshot", "failed", 1}}, 500, []string{"LifeboatSnapshotFailed firing since 1"}},
		"failed after good": {
			[]step{{"snapshot", "committed", 1}, {"snapshot", "failed", 2}},
			3,
			[]string{"LifeboatSnapshotFailed firing since 2"},
		},
		"worrying, then well": {[]step{{"source", "worrying", 1}, {"source", "well", 2}}, 500, nil},
		"held, and failed too": {
			[]step{{"prune", "held", 1}, {"prune", "failed", 2}},
			3,
			[]string{"LifeboatPruneFailed firing since 2", "LifeboatPruneHeld firing since 1"},
		},
		"one pass ends both": {[]step{{"prune", "held", 1}, {"prune", "failed", 2}, {"prune", "passed", 3}}, 500, nil},
		"a copy that failed": {[]step{{"snapshot", "committed", 1}, {"copy", "failed", 2}}, 3, []string{"LifeboatCopyFailed firing since 2"}},
		"failing again keeps the start": {
			[]step{{"snapshot", "failed", 2}, {"snapshot", "failed", 9}},
			10,
			[]string{"LifeboatSnapshotFailed firing since 2"},
		},
		"resolved for 5 minutes": {
			[]step{{"drill", "failed", 2}, {"drill", "passed", 10}}, 14, []string{"LifeboatDrillFailed resolved at 10"},
		},
		"then forgotten": {[]step{{"drill", "failed", 2}, {"drill", "passed", 10}}, 15, nil},
		"the worker's key, not the escrow key": {
			[]step{{"drill", "failed", 2}, {"drill", "escrow-failed", 3}, {"drill", "passed", 10}},
			20,
			[]string{"LifeboatEscrowDrillFailed firing since 3"},
		},
		"the escrow key, not the worker's": {
			[]step{{"drill", "failed", 2}, {"drill", "escrow-failed", 3}, {"drill", "escrow-passed", 10}},
			20,
			[]string{"LifeboatDrillFailed firing since 2"},
		},
		"a new failure":    {[]step{{"verify", "failed", 2}, {"verify", "passed", 10}, {"verify", "failed", 11}}, 12, []string{"LifeboatVerifyFailed firing since 11"}},
		"rpo":              {[]step{{"rpo", "exceeded", 2}}, 3, []string{"LifeboatRPOExceeded firing since 2"}},
		"rejected fires":   {[]step{{"job", "rejected", 2}}, 16, []string{"LifeboatJobRejected firing since 2"}},
		"and ends":         {[]step{{"job", "rejected", 2}}, 17, []string{"LifeboatJobRejected resolved at 17"}},
		"and is forgotten": {[]step{{"job", "rejected", 2}}, 22, nil},
		"rejected again":   {[]step{{"job", "rejected", 2}, {"job", "rejected", 12}}, 20, []string{"LifeboatJobRejected firing since 2"}},
		"other events":     {[]step{{"snapshot", "started", 1}, {"alert", "delivered", 2}}, 3, nil},
		"an alert is lost": {[]step{{"alert", "dead", 2}}, 3, []string{"LifeboatAlertDead firing since 2"}},
		"and missed":       {[]step{{"alert", "missed", 2}}, 3, []string{"LifeboatAlertMissed firing since 2"}},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			s := newState()
			for range 2 { // an event that comes again changes nothing
				for i, st := range c.steps {
					s.apply(uint64(i+1), t0, event(st.noun, st.verb, "etcd-prod", st.minute), trace.SpanContext{})
				}
			}
			var got []string
			for _, a := range s.alerts(at(c.now), &config.Config{}) {
				text := fmt.Sprintf("%s firing since %.0f", a.Name, a.StartsAt.Sub(t0).Minutes())
				if !a.Firing {
					text = fmt.Sprintf("%s resolved at %.0f", a.Name, a.EndsAt.Sub(t0).Minutes())
				}
				got = append(got, text)
				assert.Equal(t, "lifeboat", a.Labels["service"])
				assert.Equal(t, "etcd-prod", a.Labels["target"])
				assert.NotEmpty(t, a.Labels["severity"])
				assert.Contains(t, a.Annotations["summary"], "etcd-prod")
			}
			assert.Equal(t, c.want, got)
		})
	}
}

func TestATargetThatWasTakenOutIsNoAlert(t *testing.T) {
	t.Parallel()
	s := newState()
	s.apply(1, t0, event("snapshot", "failed", "old", 1), trace.SpanContext{})
	s.apply(2, t0, event("job", "rejected", "old", 1), trace.SpanContext{})
	cfg := &config.Config{Targets: []config.Target{{Name: "new"}}}
	alerts := s.alerts(at(2), cfg)
	require.Len(t, alerts, 1)
	assert.Equal(t, "LifeboatJobRejected", alerts[0].Name)
}

// A receiver whose canary was taken out, or that is gone itself, never takes one again: its last one would be late for ever.
func TestACanaryThatWasTakenOutIsNoAlert(t *testing.T) {
	t.Parallel()
	s := newState()
	for i, receiver := range []string{"ops", "web", "left"} {
		s.apply(uint64(i+1), t0, event("canary", "late", receiver, 1), trace.SpanContext{})
	}
	cfg := &config.Config{Notifier: config.Notifier{Receivers: []config.Receiver{{Name: "ops", Canary: config.Canary{Schedule: "@daily"}}, {Name: "web"}}}}
	alerts := s.alerts(at(60*24*60), cfg)
	require.Len(t, alerts, 1)
	assert.Equal(t, "ops", alerts[0].Target)
	assert.True(t, alerts[0].Firing)
	cfg.Notifier.Receivers[0].Canary = config.Canary{}
	assert.Empty(t, s.alerts(at(60*24*60), cfg))
}

// stream is a bus whose follower the test feeds.
type stream struct {
	mu       sync.Mutex
	follower bus.Follower
	ready    chan struct{}
	sent     []*lifeboatv1.Notification
}

func (s *stream) Follow(ctx context.Context, f bus.Follower) error {
	s.follower = f
	close(s.ready)
	<-ctx.Done()
	return nil
}

func (s *stream) PublishAll(_ context.Context, all []bus.Outgoing) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, o := range all {
		if n, ok := o.Message.(*lifeboatv1.Notification); ok {
			s.sent = append(s.sent, n)
		}
	}
	return nil
}

func (s *stream) notifications() []*lifeboatv1.Notification {
	s.mu.Lock()
	defer s.mu.Unlock()
	return slices.Clone(s.sent)
}

func (s *stream) feed(t *testing.T, seq uint64, e *lifeboatv1.Event) {
	t.Helper()
	data, err := protojson.Marshal(e)
	require.NoError(t, err)
	s.follower.Message(t.Context(), &bus.Message{Seq: seq, Data: data, Stored: time.Now()})
}

func TestWithoutAlertmanagerEachStateIsToldOnceAndEvery4Hours(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		s := &stream{ready: make(chan struct{})}
		cfg := &config.Config{Alertmanager: config.Alertmanager{ResendInterval: time.Minute}}
		a := New(Options{
			Bus: s, Config: func() *config.Config { return cfg }, Logger: slog.New(slog.DiscardHandler),
			Registerer: prometheus.NewRegistry(), Now: time.Now,
		})
		ctx, cancel := context.WithCancel(t.Context())
		done := make(chan error, 1)
		go func() { done <- a.Run(ctx) }()
		<-s.ready
		pass := func(d time.Duration) {
			<-time.After(d)
			synctest.Wait()
		}
		now := func(noun, verb string) *lifeboatv1.Event {
			return &lifeboatv1.Event{Noun: noun, Verb: verb, Target: "etcd-prod", Time: timestamppb.Now()}
		}
		s.feed(t, 1, now("snapshot", "failed"))
		pass(time.Hour)
		assert.Empty(t, s.notifications(), "nothing is said before everything was read")
		s.follower.CaughtUp()
		pass(2 * time.Hour)
		require.Len(t, s.notifications(), 1)
		assert.Equal(t, "lifeboat", s.notifications()[0].GetOrigin())
		pass(3 * time.Hour)
		require.Len(t, s.notifications(), 2, "again after 4 hours")
		assert.NotEqual(t, s.notifications()[0].GetId(), s.notifications()[1].GetId(), "a repetition is not a duplicate")
		s.feed(t, 2, now("snapshot", "committed"))
		synctest.Wait()
		require.Len(t, s.notifications(), 3, "at once")
		assert.Equal(t, "resolved", s.notifications()[2].GetAlerts()[0].GetStatus())
		pass(10 * time.Hour)
		assert.Len(t, s.notifications(), 3)
		cancel()
		require.NoError(t, <-done)
	})
}

func TestEveryAlertmanagerGetsThePostAndOneThatAnswersIsEnough(t *testing.T) {
	t.Parallel()
	var mu sync.Mutex
	posts := map[string]int{}
	server := func(name string, status int) string {
		srv := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			mu.Lock()
			defer mu.Unlock()
			posts[name+" "+r.URL.Path]++
			w.Header().Set("Content-Type", "application/json")
			w.WriteHeader(status)
			_, _ = w.Write([]byte(`"bad start"`))
		}))
		t.Cleanup(srv.Close)
		return srv.URL
	}
	s := &stream{}
	cfg := &config.Config{Alertmanager: config.Alertmanager{
		URLs:           []string{server("broken", 500), server("good", 200) + "/am/", server("partial", 400)},
		ResendInterval: time.Minute,
	}}
	a := New(Options{
		Bus: s, Config: func() *config.Config { return cfg }, Logger: slog.New(slog.DiscardHandler),
		Registerer: prometheus.NewRegistry(), Now: time.Now,
	})
	defer a.http.CloseIdleConnections()
	a.state.apply(1, time.Now(), event("drill", "failed", "x", 1), trace.SpanContext{})
	a.raise(t.Context())
	assert.Equal(t, map[string]int{"broken /api/v2/alerts": 1, "good /am/api/v2/alerts": 1, "partial /api/v2/alerts": 1}, posts)
	assert.Empty(t, s.notifications())
	cfg.Alertmanager.URLs = cfg.Alertmanager.URLs[:1]
	a.raise(t.Context())
	assert.Len(t, s.notifications(), 1, "none answers any more")
}

// What a drill's event says reaches the alert whole: the phase, the difference and what to do, beside the runbook's page.
func TestADrillsAlertSaysWhatFailedAndWhatToDo(t *testing.T) {
	t.Parallel()
	e := event("drill", "failed", "etcd-prod", 1)
	e.Message = "The drill of snapshot s of etcd-prod failed in the phase compare: the restored data differs: keys is 2 and should be 3.\n" +
		"What to do: keep the snapshot."
	s := newState()
	s.apply(1, t0, e, trace.SpanContext{})
	alerts := s.alerts(at(2), &config.Config{Notifier: config.Notifier{
		Runbooks: config.Runbooks{BaseURL: "https://runbooks.example.com", Suffix: ".md"},
	}})
	require.Len(t, alerts, 1)
	assert.Equal(t, "Restore drill of etcd-prod failed", alerts[0].Annotations["summary"])
	assert.Equal(t, e.GetMessage(), alerts[0].Annotations["description"])
	assert.Equal(t, "https://runbooks.example.com/lifeboat-drill-failed.md", alerts[0].Annotations["runbook_url"])
	s.apply(2, t0, event("drill", "escrow-failed", "etcd-prod", 3), trace.SpanContext{})
	alerts = s.alerts(at(4), &config.Config{Notifier: config.Notifier{Runbooks: config.Runbooks{BaseURL: "https://runbooks.example.com"}}})
	require.Len(t, alerts, 2)
	assert.Equal(t, "https://runbooks.example.com/lifeboat-escrow-drill-failed", alerts[1].Annotations["runbook_url"])
}
