package ingest_test

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"google.golang.org/protobuf/encoding/protojson"

	"github.com/lifeboat-fleet/lifeboat/fleet/bus"
	lifeboatv1 "github.com/lifeboat-fleet/lifeboat/proto/lifeboat/v1"
	"github.com/lifeboat-fleet/lifeboat/services/notifier/internal/ingest"
)

// store keeps what it is given, as JetStream would: encoded, and refused when larger than its default payload.
type store struct {
	err     error
	deadErr error
	all     []bus.Outgoing
	dead    []*lifeboatv1.DeadLetter
}

func (s *store) PublishTogether(ctx context.Context, all []bus.Outgoing) error {
	return s.PublishAll(ctx, all)
}

func (s *store) PublishAll(_ context.Context, all []bus.Outgoing) error {
	if s.err != nil {
		return s.err
	}
	for _, o := range all {
		if len(o.Data) > 1<<20-4096 {
			return fmt.Errorf("%d bytes are too large", len(o.Data))
		}
		if err := protojson.Unmarshal(o.Data, &lifeboatv1.Notification{}); err != nil {
			return err
		}
	}
	s.all = append(s.all, all...)
	return nil
}

func (s *store) DeadLetter(_ context.Context, _ string, d *lifeboatv1.DeadLetter) error {
	if s.deadErr == nil {
		s.dead = append(s.dead, d)
	}
	return s.deadErr
}

// notifications are what was stored, as a consumer reads it.
func (s *store) notifications() []*lifeboatv1.Notification {
	var out []*lifeboatv1.Notification
	for _, o := range s.all {
		n := &lifeboatv1.Notification{}
		if err := protojson.Unmarshal(o.Data, n); err != nil {
			panic(err)
		}
		out = append(out, n)
	}
	return out
}

func handlers(s ingest.Store) *ingest.Handlers {
	return ingest.New(ingest.Options{
		Store: s, Logger: slog.New(slog.DiscardHandler), Registerer: prometheus.NewRegistry(), Now: time.Now,
	})
}

func serve(s *store, method, body string) int {
	w := httptest.NewRecorder()
	handlers(s).Webhook().ServeHTTP(w, httptest.NewRequest(method, ingest.Path, strings.NewReader(body)))
	return w.Code
}

// webhook034 is one of Alertmanager 0.34, with a field that does not exist yet.
const webhook034 = `{"receiver":"team\\.x","status":"resolved","alerts":[
 {"status":"resolved","labels":{"alertname":"B"},"annotations":{},"startsAt":"2026-11-21T04:00:00Z","endsAt":"2026-11-21T05:00:00Z","generatorURL":"http://p","fingerprint":"2"},
 {"status":"firing","labels":{"alertname":"A"},"annotations":{"summary":"s"},"startsAt":"2026-11-21T04:00:00.5+08:00","endsAt":"0001-01-01T00:00:00Z","generatorURL":"","fingerprint":"1"}],
 "groupLabels":{"g":"1"},"commonLabels":{},"commonAnnotations":{},"routeLabels":{"r":"1"},"externalURL":"http://am",
 "version":"4","groupKey":"{}:{g=\"1\"}","truncatedAlerts":7,"notification_reason":"repeat","from_the_future":[{}]}`

func TestWebhookIsStoredWithAllThatMatters(t *testing.T) {
	t.Parallel()
	s := &store{}
	require.Equal(t, http.StatusOK, serve(s, http.MethodPost, webhook034))
	require.Len(t, s.all, 1)
	n := s.notifications()[0]
	assert.Equal(t, bus.SubjectReceived, s.all[0].Subject)
	assert.Equal(t, n.GetId(), s.all[0].ID)
	assert.Equal(t, "alertmanager", n.GetOrigin())
	assert.Equal(t, "team.x", n.GetReceiver())
	assert.EqualValues(t, 7, n.GetTruncatedAlerts())
	assert.Equal(t, map[string]string{"r": "1"}, n.GetRouteLabels())
	assert.Equal(t, map[string]string{"g": "1"}, n.GetGroupLabels())
	assert.Equal(t, "repeat", n.GetNotificationReason())
	assert.Equal(t, "resolved", n.GetStatus())
	assert.Equal(t, "http://am", n.GetExternalUrl())
	assert.Equal(t, `{}:{g="1"}`, n.GetGroupKey())
	assert.NotNil(t, n.GetReceivedAt())
	require.Len(t, n.GetAlerts(), 2)
	assert.Equal(t, "A", n.GetAlerts()[0].GetLabels()["alertname"], "firing first")
	assert.Nil(t, n.GetAlerts()[0].GetEndsAt(), "a firing alert has no end")
	assert.Equal(t, "2026-11-20T20:00:00.5Z", n.GetAlerts()[0].GetStartsAt().AsTime().Format(time.RFC3339Nano))
	assert.Equal(t, "resolved", n.GetAlerts()[1].GetStatus())
	assert.NotNil(t, n.GetAlerts()[1].GetEndsAt())
}

// An alert that ended and fires on with the startsAt that it had posts what it posted before. NATS would drop what has the same id.
func TestTheSameWebhookAgainIsStoredAgain(t *testing.T) {
	t.Parallel()
	s := &store{}
	for range 2 {
		require.Equal(t, http.StatusOK, serve(s, http.MethodPost, webhook034))
	}
	require.Len(t, s.all, 2)
	assert.NotEmpty(t, s.all[0].ID)
	assert.NotEqual(t, s.all[0].ID, s.all[1].ID)
}

func TestRefusals(t *testing.T) {
	t.Parallel()
	for name, c := range map[string]struct {
		method, body string
		store        store
		want, dead   int
	}{
		"GET":                     {method: http.MethodGet, want: 405},
		"not JSON":                {method: "POST", body: "hello", want: 400, dead: 1},
		"empty":                   {method: "POST", want: 400, dead: 1},
		"version 3":               {method: "POST", body: strings.Replace(webhook034, `"4"`, `"3"`, 1), want: 400, dead: 1},
		"no version":              {method: "POST", body: `{"alerts":[{"status":"firing"}]}`, want: 400, dead: 1},
		"labels are a list":       {method: "POST", body: `{"version":"4","alerts":[{"status":"firing","labels":["a"]}]}`, want: 400, dead: 1},
		"a label is a number":     {method: "POST", body: `{"version":"4","alerts":[{"status":"firing","labels":{"a":1}}]}`, want: 400, dead: 1},
		"alerts are an object":    {method: "POST", body: `{"version":"4","alerts":{}}`, want: 400, dead: 1},
		"version is a number":     {method: "POST", body: `{"version":4,"alerts":[{"status":"firing"}]}`, want: 400, dead: 1},
		"startsAt is no time":     {method: "POST", body: `{"version":"4","alerts":[{"status":"firing","startsAt":"yesterday"}]}`, want: 400, dead: 1},
		"truncatedAlerts is -1":   {method: "POST", body: `{"version":"4","truncatedAlerts":-1,"alerts":[{"status":"firing"}]}`, want: 400, dead: 1},
		"a list":                  {method: "POST", body: `[` + webhook034 + `]`, want: 400, dead: 1},
		"null":                    {method: "POST", body: `null`, want: 400, dead: 1},
		"no alerts":               {method: "POST", body: `{"version":"4","alerts":[]}`, want: 400, dead: 1},
		"unknown status":          {method: "POST", body: `{"version":"4","alerts":[{"status":"on"}]}`, want: 400, dead: 1},
		"year 0":                  {method: "POST", body: `{"version":"4","alerts":[{"status":"firing","startsAt":"0000-01-01T00:00:00Z"}]}`, want: 400, dead: 1},
		"trailing":                {method: "POST", body: webhook034 + "{}", want: 400, dead: 1},
		"too large":               {method: "POST", body: strings.Repeat(" ", 16<<20+1), want: 413, dead: 1},
		"NATS is away":            {method: "POST", body: webhook034, store: store{err: errors.New("no responders")}, want: 503},
		"malformed, NATS is away": {method: "POST", body: "hello", store: store{deadErr: errors.New("no responders")}, want: 503},
		"too large, NATS is away": {method: "POST", body: strings.Repeat(" ", 16<<20+1), store: store{deadErr: errors.New("no")}, want: 503},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			s := c.store
			assert.Equal(t, c.want, serve(&s, c.method, c.body))
			assert.Len(t, s.dead, c.dead)
			assert.Empty(t, s.all)
			for _, d := range s.dead {
				assert.Equal(t, "webhook", d.GetSubject())
				assert.NotEmpty(t, d.GetReason())
			}
		})
	}
}

func TestALargeGroupIsSplitAndNothingIsLost(t *testing.T) {
	t.Parallel()
	const count = 8000
	alerts := make([]map[string]any, count)
	for i := range alerts {
		alerts[i] = map[string]any{
			"status": "firing", "fingerprint": fmt.Sprint(i), "startsAt": "2026-11-21T04:00:00Z",
			"labels":      map[string]string{"alertname": "Many", "instance": fmt.Sprint(i)},
			"annotations": map[string]string{"description": strings.Repeat("<日本語>&", 60)},
		}
	}
	body, err := json.Marshal(map[string]any{"version": "4", "groupKey": "g", "alerts": alerts})
	require.NoError(t, err)
	s := &store{}
	require.Equal(t, http.StatusOK, serve(s, http.MethodPost, string(body)))
	seen, ids := map[string]bool{}, map[string]bool{}
	for i, n := range s.notifications() {
		ids[n.GetId()] = true
		assert.Equal(t, s.all[i].ID, n.GetId())
		assert.EqualValues(t, i+1, n.GetPart())
		assert.EqualValues(t, len(s.all), n.GetParts())
		for _, a := range n.GetAlerts() {
			seen[a.GetFingerprint()] = true
		}
		assert.LessOrEqual(t, len(s.all[i].Data), 600<<10)
	}
	assert.Greater(t, len(s.all), 5)
	assert.Len(t, ids, len(s.all))
	assert.Len(t, seen, count)
}

func TestAMonstrousAlertIsCutNotRefused(t *testing.T) {
	t.Parallel()
	labels := map[string]string{"alertname": "Huge", "severity": "critical", "big": strings.Repeat("é", 1<<20)}
	for i := range 50_000 {
		labels[fmt.Sprintf("l%d", i)] = "v"
	}
	body, err := json.Marshal(map[string]any{
		"version": "4", "groupKey": strings.Repeat("k", 1<<20), "commonLabels": labels, "groupLabels": labels,
		"alerts": []any{map[string]any{
			"status": "firing", "labels": labels, "fingerprint": strings.Repeat("f", 1<<20),
			"annotations": map[string]string{"summary": strings.Repeat("s", 1<<20), "runbook_url": "https://rb/huge"},
		}},
	})
	require.NoError(t, err)
	s := &store{}
	require.Equal(t, http.StatusOK, serve(s, http.MethodPost, string(body)))
	a := s.notifications()[0].GetAlerts()[0]
	assert.Equal(t, "critical", a.GetLabels()["severity"])
	assert.Equal(t, "https://rb/huge", a.GetAnnotations()["runbook_url"])
	assert.Contains(t, a.GetAnnotations()["summary"], "(cut)")
}
