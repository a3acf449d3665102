package render_test

import (
	"fmt"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"google.golang.org/protobuf/types/known/timestamppb"

	"github.com/lifeboat-fleet/lifeboat/fleet/config"
	lifeboatv1 "github.com/lifeboat-fleet/lifeboat/proto/lifeboat/v1"
	"github.com/lifeboat-fleet/lifeboat/services/notifier/internal/render"
)

func renderNew(receivers ...config.Receiver) (*render.Renderer, error) {
	return render.New(config.Notifier{Receivers: receivers})
}

// storm is a group of many alerts with labels as a Kubernetes cluster has them.
func storm(alerts int) *lifeboatv1.Delivery {
	d := delivery()
	for i := range alerts {
		severity := []string{"warning", "critical", "info"}[i%3]
		d.Notification.Alerts = append(d.Notification.Alerts, &lifeboatv1.Alert{
			Status: "firing", Fingerprint: fmt.Sprintf("%016x", i*7919), StartsAt: timestamppb.New(night.Add(time.Duration(i%600) * time.Second)),
			Labels: map[string]string{
				"alertname": "KubePodCrashLooping", "severity": severity, "namespace": "prod", "pod": fmt.Sprint("api-", i), "container": "api",
				"cluster": "beijing-1", "prometheus": "monitoring/k8s", "job": "kube-state-metrics", "instance": "10.0.0.1:8080", "team": "platform",
			},
			Annotations: map[string]string{
				"summary":     fmt.Sprintf("Pod api-%d is crash looping.", i),
				"description": "Pod prod/api (api) is in waiting state (reason: \"CrashLoopBackOff\") on cluster beijing-1 for longer than 5 minutes.",
				"runbook_url": "https://runbooks.example.com/KubePodCrashLooping",
			},
			GeneratorUrl: "http://prom:9090/graph?g0.expr=up&g0.tab=1",
		})
	}
	return d
}

func benchmark(b *testing.B, receiver config.Receiver, alerts int) {
	b.Helper()
	in := input(storm(alerts))
	in.Receiver = receiver
	r, err := renderNew(receiver)
	require.NoError(b, err)
	b.ReportAllocs()
	for b.Loop() {
		if _, err := r.Message(in); err != nil {
			b.Fatal(err)
		}
	}
}

func BenchmarkOneAlert(b *testing.B) { benchmark(b, slack("", ""), 1) }

func BenchmarkOneAlertByTemplate(b *testing.B) {
	benchmark(b, slack(`{{ template "slack.default.title" . }}`, `{{ range .Alerts }}*{{ .Annotations.summary }}* {{ .Labels.pod }} <{{ .GeneratorURL }}|Graph>{{ end }}`), 1)
}

func Benchmark10000Alerts(b *testing.B) { benchmark(b, slack("", ""), 10_000) }

func Benchmark10000AlertsByTemplate(b *testing.B) {
	benchmark(b, slack("", `{{ template "telegram.default.message" . }}`), 10_000)
}

func BenchmarkNew(b *testing.B) {
	for b.Loop() {
		if _, err := renderNew(slack("", "{{ .Status }}"), dingtalk("{{ .Status }}")); err != nil {
			b.Fatal(err)
		}
	}
}

func TestStormKeepsTheWorst(t *testing.T) {
	t.Parallel()
	n := message(t, input(storm(10_000)))
	assert.Equal(t, "[FIRING:10000] KubePodCrashLooping kube-state-metrics (critical)", n.Title)
	assert.Equal(t, 10_000, len(n.Items)+n.More)
	for _, it := range n.Items {
		assert.Equal(t, "critical", it.Severity)
	}
}
