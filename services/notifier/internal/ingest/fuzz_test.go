package ingest_test

import (
	"bytes"
	"net/http"
	"net/http/httptest"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/lifeboat-fleet/lifeboat/services/notifier/internal/ingest"
)

func FuzzWebhook(f *testing.F) {
	f.Add([]byte(webhook034))
	f.Add([]byte(`{"version":"4","alerts":[{"status":"resolved","endsAt":"9999-12-31T23:59:59Z"}]}`))
	f.Add([]byte("{\"version\":\"4\",\"alerts\":[{\"status\":\"firing\",\"labels\":{\"\xff\":\"\\ud800\"}}]}"))
	f.Fuzz(func(t *testing.T, body []byte) {
		s := &store{}
		code := serve(s, http.MethodPost, string(body))
		switch code {
		case http.StatusOK:
			// Whatever is taken can be stored.
			require.NotEmpty(t, s.all)
		case http.StatusBadRequest:
			require.Len(t, s.dead, 1)
			require.True(t, bytes.Equal(body, s.dead[0].GetPayload()))
		default:
			require.Equal(t, http.StatusRequestEntityTooLarge, code)
		}
	})
}

func FuzzGeneric(f *testing.F) {
	f.Add([]byte(`{"name":"BackupFailed","severity":"critical","target":"db1","labels":{"a":"b"},"summary":"s"}`))
	f.Add([]byte(`[{"name":"A","status":"event","id":"1"},{"name":"B","status":"resolved","starts_at":"2026-11-21T04:00:00Z"}]`))
	f.Add([]byte("{\"name\":\"\xff\",\"labels\":{\"\\ud800\":null}}"))
	f.Fuzz(func(t *testing.T, body []byte) {
		post := func(s *store) int {
			w := httptest.NewRecorder()
			r := httptest.NewRequest(http.MethodPost, ingest.GenericPath, bytes.NewReader(body))
			r.Header.Set("Idempotency-Key", "k")
			handlers(s).Generic().ServeHTTP(w, r)
			return w.Code
		}
		s, again := &store{}, &store{}
		code := post(s)
		require.Equal(t, code, post(again))
		if code != http.StatusOK {
			require.Equal(t, http.StatusBadRequest, code)
			require.Len(t, s.dead, 1)
			require.Empty(t, s.all)
			return
		}
		require.NotEmpty(t, s.all)
		require.Len(t, again.all, len(s.all)) // and is the same when it comes again with its key
		for i, n := range s.notifications() {
			require.Equal(t, s.all[i].ID, again.all[i].ID)
			require.NotEmpty(t, n.GetGroupKey())
			for _, a := range n.GetAlerts() {
				require.NotEmpty(t, a.GetLabels()["alertname"])
			}
		}
	})
}
