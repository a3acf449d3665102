package ingest

import (
	"fmt"

	"github.com/lifeboat-fleet/lifeboat/fleet/bus"
	lifeboatv1 "github.com/lifeboat-fleet/lifeboat/proto/lifeboat/v1"
)

// Parse reads a webhook of Alertmanager that somebody recorded, as the endpoint does, into one notification with all alerts.
func Parse(data []byte) (*lifeboatv1.Notification, error) {
	read, err := parse(data)
	if err != nil {
		return nil, err
	}
	var whole *lifeboatv1.Notification
	for _, part := range split(read) {
		n := &lifeboatv1.Notification{}
		if err := bus.Decode(part.Data, n); err != nil {
			return nil, fmt.Errorf("decoding what the endpoint would store: %w", err)
		}
		if whole == nil {
			whole = n
			continue
		}
		whole.Alerts = append(whole.Alerts, n.GetAlerts()...)
	}
	whole.Part, whole.Parts = 1, 1
	return whole, nil
}
