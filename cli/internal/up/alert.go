package up

import (
	"context"
	"fmt"
	"net/http"
	"strings"
	"time"

	httptransport "github.com/go-openapi/runtime/client"
	"github.com/go-openapi/strfmt"
	amclient "github.com/prometheus/alertmanager/api/v2/client"
	"github.com/prometheus/alertmanager/api/v2/client/alert"
	"github.com/prometheus/alertmanager/api/v2/models"
)

// The sample alert's name and runbook, to look for in the chats.
const (
	SampleAlert   = "CheckoutLatencyHigh"
	SampleRunbook = "https://runbooks.example.com/checkout-latency-high"
)

// SendSampleAlert fires an alert as Prometheus would, through Alertmanager; without one, as Alertmanager's webhook would.
func (f *Fleet) SendSampleAlert(ctx context.Context) error {
	labels := models.LabelSet{"alertname": SampleAlert, "severity": "critical", "service": "checkout", "region": "beijing"}
	annotations := models.LabelSet{
		"summary": "p99 of checkout is above 2 s", "description": "Since 10 minutes, in beijing <and> seoul.",
		"runbook_url": SampleRunbook,
	}
	if f.Alertmanager == nil {
		return f.sendWebhook(ctx, labels, annotations)
	}
	host := strings.TrimPrefix(f.Alertmanager.URL, "http://")
	client := amclient.New(httptransport.New(host, "/api/v2", []string{"http"}), strfmt.Default)
	_, err := client.Alert.PostAlerts(alert.NewPostAlertsParams().WithContext(ctx).WithAlerts(models.PostableAlerts{{
		Alert: models.Alert{Labels: labels}, Annotations: annotations, StartsAt: strfmt.DateTime(time.Now()),
	}}))
	if err != nil {
		return fmt.Errorf("posting an alert to Alertmanager: %w", err)
	}
	return nil
}

func (f *Fleet) sendWebhook(ctx context.Context, labels, annotations models.LabelSet) error {
	body := mustJSON(map[string]any{
		"version": "4", "groupKey": "{}:{alertname=\"" + SampleAlert + "\"}", "status": "firing", "receiver": "lifeboat",
		"groupLabels": map[string]string{"alertname": SampleAlert}, "commonLabels": labels, "commonAnnotations": annotations,
		"externalURL": "http://127.0.0.1", "alerts": []map[string]any{{
			"status": "firing", "labels": labels, "annotations": annotations, "startsAt": time.Now().Format(time.RFC3339),
			"endsAt": "0001-01-01T00:00:00Z", "fingerprint": "0123456789abcdef",
		}},
	})
	// The webhook answers 503 until the streams exist, as it would to Alertmanager, which then comes again.
	tick := time.NewTicker(100 * time.Millisecond)
	defer tick.Stop()
	for {
		err := send(ctx, http.MethodPost, "http://"+f.WebhookAddr+"/api/v1/alertmanager", body)
		if err == nil {
			return nil
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("posting an alert to the webhook: %w", err)
		case <-tick.C:
		}
	}
}
