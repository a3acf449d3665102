package ingest

import (
	"encoding/json"
	"fmt"
	"strings"
)

// Payload is a webhook of so many alerts of usual size, about 0.9 KB each. run makes it another one of the same length.
func Payload(alerts, run int) []byte {
	list := make([]map[string]any, alerts)
	for i := range list {
		list[i] = map[string]any{
			"status": "firing",
			"labels": map[string]string{
				"alertname": "HighLatency", "severity": "critical", "cluster": "eu-central", "namespace": "production", "job": "node",
				"instance": fmt.Sprintf("10.0.%03d.%03d:9100", i/256, i%256), "team": "platform", "service": "checkout",
			},
			"annotations": map[string]string{
				"summary":     "The latency of checkout is high",
				"description": strings.Repeat("The 99th percentile is above 2s for \"10m\". ", 8), "runbook_url": "https://runbooks.example.com/high-latency",
			},
			"startsAt": "2026-11-21T04:00:00.123Z", "endsAt": "0001-01-01T00:00:00Z",
			"generatorURL": "http://prometheus.example.com:9090/graph?g0.expr=histogram_quantile%280.99%29+%3E+2&g0.tab=1",
			"fingerprint":  fmt.Sprintf("%08x%08x", run, i),
		}
	}
	common := map[string]string{"alertname": "HighLatency", "severity": "critical", "cluster": "eu-central"}
	b, err := json.Marshal(map[string]any{
		"version": "4", "groupKey": `{}/{severity="critical"}:{alertname="HighLatency"}`, "status": "firing", "receiver": `team\.x`,
		"groupLabels": map[string]string{"alertname": "HighLatency"}, "commonLabels": common, "commonAnnotations": common,
		"routeLabels": map[string]string{"a": "b"}, "externalURL": "http://alertmanager.example.com:9093", "truncatedAlerts": 0,
		"notification_reason": "first notification", "alerts": list,
	})
	if err != nil {
		panic(err)
	}
	return b
}
