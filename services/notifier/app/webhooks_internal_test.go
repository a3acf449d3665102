package app

import (
	"context"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/lifeboat-fleet/lifeboat/fleet/bus"
	"github.com/lifeboat-fleet/lifeboat/fleet/config"
	lifeboatv1 "github.com/lifeboat-fleet/lifeboat/proto/lifeboat/v1"
	"github.com/lifeboat-fleet/lifeboat/services/notifier/internal/ingest"
)

// keeper takes everything.
type keeper struct{}

func (keeper) PublishTogether(context.Context, []bus.Outgoing) error { return nil }

func (keeper) PublishAll(context.Context, []bus.Outgoing) error { return nil }

func (keeper) DeadLetter(context.Context, string, *lifeboatv1.DeadLetter) error { return nil }

// An Alertmanager drops what is refused for want of a token or posted to a wrong path, as it drops what an endpoint refuses: all of it is
// counted, each once.
func TestEveryAnswerToAWebhookIsCounted(t *testing.T) {
	file := filepath.Join(t.TempDir(), "tokens")
	require.NoError(t, os.WriteFile(file, []byte("right\n"), 0o600))
	const alert = `[{"labels": {"alertname": "DiskFull"}}]`
	for _, c := range []struct {
		name, method, path, token, want string
		tokens                          config.SecretFile
		code                            int
	}{
		{"a wrong token", http.MethodPost, ingest.Path, "wrong", "alertmanager 401", config.SecretFile(file), 401},
		{"no token", http.MethodPost, ingest.GenericPath, "", "generic 401", config.SecretFile(file), 401},
		{"tokens that cannot be read", http.MethodPost, ingest.Path, "right", "alertmanager 503", config.SecretFile(file + ".gone"), 503},
		{"a wrong path", http.MethodPost, "/api/v2/alerts", "right", "other 404", config.SecretFile(file), 404},
		{"a wrong path without tokens", http.MethodPost, "/alerts", "", "other 404", "", 404},
		{"somebody looks around", http.MethodGet, "/", "", "", "", 404},
		{"what is taken", http.MethodPost, ingest.GenericPath, "right", "generic 200", config.SecretFile(file), 200},
		{"what an endpoint refuses", http.MethodPost, ingest.Path, "", "alertmanager 400", "", 400},
	} {
		reg := prometheus.NewRegistry()
		hook := ingest.New(ingest.Options{Store: keeper{}, Logger: slog.New(slog.DiscardHandler), Registerer: reg, Now: time.Now})
		r := httptest.NewRequestWithContext(t.Context(), c.method, c.path, strings.NewReader(alert))
		if c.token != "" {
			r.Header.Set("Authorization", "Bearer "+c.token)
		}
		w := httptest.NewRecorder()
		webhooks(hook, c.tokens).ServeHTTP(w, r)
		assert.Equal(t, c.code, w.Code, "%s: %s", c.name, w.Body)
		assert.Equal(t, c.want, counted(t, reg), c.name)
	}
}

// counted are the endpoints and codes of all requests that were counted; one that was counted twice shows.
func counted(t *testing.T, reg *prometheus.Registry) string {
	t.Helper()
	families, err := reg.Gather()
	require.NoError(t, err)
	var all []string
	for _, f := range families {
		if f.GetName() != "lifeboat_webhook_requests_total" {
			continue
		}
		for _, m := range f.GetMetric() {
			labels := map[string]string{}
			for _, l := range m.GetLabel() {
				labels[l.GetName()] = l.GetValue()
			}
			for range int(m.GetCounter().GetValue()) {
				all = append(all, labels["endpoint"]+" "+labels["code"])
			}
		}
	}
	return strings.Join(all, ", ")
}
