//go:build e2e

package nomad

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"net/http"
	"time"

	"github.com/stretchr/testify/require"
)

// fire posts an alert to Alertmanager, as Prometheus does.
func (s *site) fire(name, severity string) {
	s.t.Helper()
	require.NoError(s.t, s.tryFire(s.t.Context(), name, severity))
}

func (s *site) tryFire(ctx context.Context, name, severity string) error {
	body, err := json.Marshal([]any{map[string]any{
		"labels":      map[string]string{"alertname": name, "severity": severity},
		"annotations": map[string]string{"summary": "it hurts"},
		"startsAt":    time.Now(), "endsAt": time.Now().Add(time.Hour),
	}})
	if err != nil {
		return err
	}
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, s.alertmanager.URL+"/api/v2/alerts", bytes.NewReader(body))
	if err != nil {
		return err
	}
	req.Header.Set("Content-Type", "application/json")
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		return fmt.Errorf("posting an alert to Alertmanager: %w", err)
	}
	defer resp.Body.Close()
	if resp.StatusCode != http.StatusOK {
		return fmt.Errorf("posting an alert to Alertmanager: %s", resp.Status)
	}
	return nil
}
