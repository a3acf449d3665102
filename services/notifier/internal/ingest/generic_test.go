package ingest_test

import (
	"encoding/json"
	"errors"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/lifeboat-fleet/lifeboat/services/notifier/internal/ingest"
)

// answered is what the generic endpoint says.
type answered struct {
	code     int
	Accepted int      `json:"accepted"`
	IDs      []string `json:"ids"`
	Error    string   `json:"error"`
}

func generic(t *testing.T, s *store, body string, header ...string) answered {
	t.Helper()
	r := httptest.NewRequest(http.MethodPost, ingest.GenericPath, strings.NewReader(body))
	for i := 0; i+1 < len(header); i += 2 {
		r.Header.Set(header[i], header[i+1])
	}
	w := httptest.NewRecorder()
	handlers(s).Generic().ServeHTTP(w, r)
	a := answered{code: w.Code}
	require.NoError(t, json.Unmarshal(w.Body.Bytes(), &a), w.Body)
	assert.Equal(t, "application/json", w.Header().Get("Content-Type"))
	return a
}

func TestGenericAlertBecomesANotification(t *testing.T) {
	t.Parallel()
	s := &store{}
	begin := time.Now()
	a := generic(t, s, `{"name":"BackupFailed","severity":"critical","target":"db1","summary":"s","description":"d",
		"runbook_url":"https://r","labels":{"team":"dba","target":"db1"},"annotations":{"more":"m"},"generator_url":"http://cron"}`)
	require.Equal(t, http.StatusOK, a.code, a.Error)
	assert.Equal(t, 1, a.Accepted)
	n := s.notifications()[0]
	assert.Equal(t, []string{n.GetId()}, a.IDs)
	assert.Equal(t, "webhook", n.GetOrigin())
	assert.Equal(t, "BackupFailed", n.GetGroupKey())
	assert.Equal(t, "firing", n.GetStatus())
	assert.Empty(t, n.GetReceiver())
	alert := n.GetAlerts()[0]
	labels := map[string]string{"alertname": "BackupFailed", "severity": "critical", "target": "db1", "team": "dba"}
	assert.Equal(t, labels, alert.GetLabels())
	assert.Equal(t, labels, n.GetCommonLabels())
	assert.Equal(t, map[string]string{"summary": "s", "description": "d", "runbook_url": "https://r", "more": "m"}, alert.GetAnnotations())
	assert.Equal(t, "firing", alert.GetStatus())
	assert.WithinRange(t, alert.GetStartsAt().AsTime(), begin, time.Now())
	assert.Nil(t, alert.GetEndsAt())
	assert.Equal(t, "http://cron", alert.GetGeneratorUrl())
	assert.Len(t, alert.GetFingerprint(), 16)
}

// A script that does not remember when the alert began ends it all the same: it has the labels, and no start that would make it
// another alert.
func TestGenericResolvedEndsWhatFires(t *testing.T) {
	t.Parallel()
	s := &store{}
	require.Equal(t, 200, generic(t, s, `{"name":"A","target":"db1"}`).code)
	require.Equal(t, 200, generic(t, s, `{"name":"A","target":"db1","status":"resolved"}`).code)
	fired, ended := s.notifications()[0].GetAlerts()[0], s.notifications()[1].GetAlerts()[0]
	assert.Equal(t, fired.GetFingerprint(), ended.GetFingerprint())
	assert.Nil(t, ended.GetStartsAt())
	assert.NotNil(t, ended.GetEndsAt())
	assert.Equal(t, "resolved", s.notifications()[1].GetStatus())
}

func TestGenericListIsGrouped(t *testing.T) {
	t.Parallel()
	s := &store{}
	a := generic(t, s, `[{"name":"A","target":"1"},{"name":"B","group":"g"},{"name":"A","target":"2"},{"name":"C","group":"g"},
		{"name":"A","target":"3","id":"own"},{"name":"E","status":"event"}]`)
	require.Equal(t, 200, a.code, a.Error)
	assert.Equal(t, 6, a.Accepted)
	var groups []string
	for i, n := range s.notifications() {
		groups = append(groups, n.GetGroupKey())
		assert.Equal(t, a.IDs[i], n.GetId())
	}
	assert.Equal(t, []string{"A", "g", "A", "E"}, groups)
	assert.Len(t, s.notifications()[0].GetAlerts(), 2)
	assert.Equal(t, map[string]string{"alertname": "A"}, s.notifications()[0].GetCommonLabels())
	assert.Empty(t, s.notifications()[1].GetCommonLabels())
	assert.Equal(t, "event", s.notifications()[3].GetAlerts()[0].GetStatus())
	assert.Equal(t, "event", s.notifications()[3].GetStatus())
}

func TestGenericRetryIsStoredOnceIfItSaysWhichOneItIs(t *testing.T) {
	t.Parallel()
	ids := func(body string, header ...string) []string {
		s := &store{}
		a := generic(t, s, body, header...)
		require.Equal(t, 200, a.code, a.Error)
		return a.IDs
	}
	same := func(body string, header ...string) {
		first := ids(body, header...)
		assert.Equal(t, first, ids(body, header...), body)
	}
	same(`{"name":"A","id":"1"}`)
	same(`{"name":"A"}`, "Idempotency-Key", "1")
	same(`[{"name":"A"},{"name":"B"}]`, "Idempotency-Key", "1")
	same(`{"name":"A","status":"event","starts_at":"2026-11-21T04:00:00+08:00"}`)
	first := ids(`{"name":"A","starts_at":"2026-11-21T04:00:00+08:00"}`)
	assert.NotEqual(t, first, ids(`{"name":"A","starts_at":"2026-11-21T04:00:00+08:00"}`), "it may have ended meanwhile, and fire on")
	first = ids(`{"name":"A"}`)
	assert.NotEqual(t, first, ids(`{"name":"A"}`), "two posts that do not say so are two")
	first = ids(`{"name":"A","id":"1"}`)
	// A key that is reused by mistake hides nothing.
	assert.NotEqual(t, first, ids(`{"name":"A","id":"2"}`))
	assert.NotEqual(t, first, ids(`{"name":"A","id":"1","status":"resolved"}`))
	assert.NotEqual(t, first, ids(`{"name":"A","id":"1","summary":"other"}`))
	assert.NotEqual(t, ids(`{"name":"A"}`, "Idempotency-Key", "1"), ids(`{"name":"A"}`, "Idempotency-Key", "2"))
}

func TestGenericErrorsNameThePlaceAndTheKey(t *testing.T) {
	t.Parallel()
	for body, want := range map[string]string{
		`{"name":"A","titel":"s"}`:                        "titel: there is no such key; there are annotations, description",
		`[{"name":"A"},{"name":"B","Name":""}]`:           "[1].Name: there is no such key",
		`[{"name":"A"},{"severity":"x"}]`:                 "[1].name: is missing",
		`{"name":""}`:                                     "name: is missing",
		`{"name":1}`:                                      "name: must be a text",
		`[{"name":"A","labels":{"a":1}}]`:                 "[0].labels: must be an object of texts",
		`{"name":"A","labels":["a"]}`:                     "labels: must be an object of texts",
		`{"name":"A","starts_at":"yesterday"}`:            "starts_at: must be a time such as",
		`{"name":"A","starts_at":"0000-01-01T00:00:00Z"}`: "starts_at: ",
		`{"name":"A","status":"on"}`:                      `status: "on" is not firing, resolved or event`,
		`{"name":"A","ends_at":"2026-11-21T04:00:00Z"}`:   "ends_at: only what is resolved has ended",
		`{"name":"A","status":"resolved","starts_at":"2026-11-21T05:00:00Z","ends_at":"2026-11-21T04:00:00Z"}`: "ends_at: is before starts_at",
		`{"name":"A","labels":{"alertname":"B"}}`:                                                              "labels: alertname is said twice, and not alike",
		`[{"name":"A"},7]`: "[1].alert must be an object, not a number",
		`7`:                "alert must be an object, not a number",
		`[]`:               "there are no alerts in it",
		`null`:             "name: is missing",
		`{"name":"A"} x`:   "reading JSON",
		``:                 "reading JSON",
	} {
		s := &store{}
		a := generic(t, s, body)
		assert.Equal(t, http.StatusBadRequest, a.code, body)
		assert.Contains(t, a.Error, want, body)
		assert.Empty(t, s.all, "a list is refused whole")
		require.Len(t, s.dead, 1, body)
		assert.Contains(t, s.dead[0].GetReason(), want)
		assert.Equal(t, body, string(s.dead[0].GetPayload()))
	}
}

func TestGenericComesAgainWhenItCannotBeStored(t *testing.T) {
	t.Parallel()
	a := generic(t, &store{err: errors.New("no responders")}, `{"name":"A"}`)
	assert.Equal(t, http.StatusServiceUnavailable, a.code)
	assert.Contains(t, a.Error, "storing the alerts")
	assert.Equal(t, http.StatusServiceUnavailable, generic(t, &store{deadErr: errors.New("no responders")}, `{`).code)
}
