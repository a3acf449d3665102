package fleetalert

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"net/url"
	"strings"
	"time"

	"github.com/go-openapi/runtime"
	httptransport "github.com/go-openapi/runtime/client"
	"github.com/go-openapi/strfmt"
	"github.com/prometheus/alertmanager/api/v2/client"
	"github.com/prometheus/alertmanager/api/v2/client/alert"
	"github.com/prometheus/alertmanager/api/v2/models"
)

// postTimeout bounds one post, so that a hanging Alertmanager does not hold up the others' next ones.
const postTimeout = 10 * time.Second

// postable makes Alertmanager's form of the alerts. An alert that fires ends four intervals from now unless it is posted
// again, so it resolves by itself when the fleet is gone, and outlives three lost posts.
func postable(alerts []Alert, now time.Time, interval time.Duration) models.PostableAlerts {
	out := make(models.PostableAlerts, 0, len(alerts))
	for _, a := range alerts {
		ends := a.EndsAt
		if ends.IsZero() {
			ends = now.Add(4 * interval)
		}
		out = append(out, &models.PostableAlert{
			Annotations: a.Annotations,
			Alert:       models.Alert{Labels: a.Labels},
			StartsAt:    strfmt.DateTime(a.StartsAt),
			EndsAt:      strfmt.DateTime(ends),
		})
	}
	return out
}

// post sends alerts to one Alertmanager. A nil error means that it has them.
func post(ctx context.Context, httpClient *http.Client, address string, alerts models.PostableAlerts) error {
	u, err := url.Parse(address)
	if err != nil {
		return fmt.Errorf("parsing the Alertmanager's URL: %w", err)
	}
	transport := httptransport.NewWithClient(u.Host, strings.TrimSuffix(u.Path, "/")+client.DefaultBasePath,
		[]string{u.Scheme}, httpClient)
	ctx, cancel := context.WithTimeout(ctx, postTimeout)
	defer cancel()
	_, err = client.New(transport, strfmt.Default).Alert.PostAlerts(
		alert.NewPostAlertsParamsWithContext(ctx).WithAlerts(alerts))
	var bad *alert.PostAlertsBadRequest
	var api *runtime.APIError
	switch {
	case errors.As(err, &bad):
		// Alertmanager takes the valid ones and answers 400 for the rest.
		return &partialError{bad.Payload}
	case errors.As(err, &api):
		return fmt.Errorf("posting alerts to %s: status %d", address, api.Code)
	case err != nil:
		return fmt.Errorf("posting alerts to %s: %w", address, err)
	}
	return nil
}

// partialError: the Alertmanager took some of the alerts.
type partialError struct{ answer string }

func (e *partialError) Error() string { return "Alertmanager did not take all alerts: " + e.answer }
