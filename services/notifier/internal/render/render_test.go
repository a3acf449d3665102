package render_test

import (
	"fmt"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"google.golang.org/protobuf/types/known/timestamppb"

	lifeboatv1 "github.com/lifeboat-fleet/lifeboat/proto/lifeboat/v1"
	"github.com/lifeboat-fleet/lifeboat/services/notifier/internal/notice"
	"github.com/lifeboat-fleet/lifeboat/services/notifier/internal/render"
)

func alert(status, name, severity string, start int64) *lifeboatv1.Alert {
	return &lifeboatv1.Alert{
		Status: status, Labels: map[string]string{"alertname": name, "severity": severity, "target": "etcd-prod"},
		Annotations: map[string]string{"summary": name + " happened"}, StartsAt: timestamppb.New(time.Unix(start, 0)),
		Fingerprint: fmt.Sprint(name, start),
	}
}

func of(truncated int64, alerts ...*lifeboatv1.Alert) notice.Notice {
	return render.Render(&lifeboatv1.Delivery{
		Id: "d1", Route: "{}", Notification: &lifeboatv1.Notification{
			Origin: "alertmanager", TruncatedAlerts: truncated, Alerts: alerts,
		},
	}, func(name string, _ map[string]string) string { return "https://rb/" + name })
}

func TestTitleSaysStatusCountAndSeverity(t *testing.T) {
	t.Parallel()
	for want, n := range map[string]notice.Notice{
		"[FIRING:1] A etcd-prod (critical)":         of(0, alert("firing", "A", "critical", 1)),
		"[FIRING:2] A etcd-prod (critical)":         of(0, alert("firing", "A", "warning", 1), alert("firing", "A", "critical", 2), alert("resolved", "A", "page", 3)),
		"[FIRING:2] 2 kinds of alert etcd-prod (x)": of(0, alert("firing", "A", "x", 1), alert("firing", "B", "x", 2)),
		"[RESOLVED:1] A etcd-prod (info)":           of(0, alert("resolved", "A", "info", 1)),
	} {
		assert.Equal(t, want, n.Title)
	}
}

func TestTruncatedGroupIsNeverResolved(t *testing.T) {
	t.Parallel()
	n := of(5, alert("resolved", "A", "info", 1))
	assert.Equal(t, notice.Partial, n.Status)
	assert.Equal(t, "[PARTIAL:1] A etcd-prod (info)", n.Title)
	assert.EqualValues(t, 5, n.Truncated)
	assert.Equal(t, notice.Firing, of(5, alert("firing", "A", "info", 1)).Status)
}

func TestTheWorstComeFirstAndTheRestIsCounted(t *testing.T) {
	t.Parallel()
	var alerts []*lifeboatv1.Alert
	for i := range int64(40) {
		alerts = append(alerts, alert("resolved", "Old", "critical", i), alert("firing", "Warn", "warning", i))
	}
	n := of(0, append(alerts, alert("firing", "Bad", "critical", 99))...)
	assert.Equal(t, "Bad", n.Items[0].Name)
	assert.Equal(t, "Warn", n.Items[1].Name)
	assert.Equal(t, 81, len(n.Items)+n.More)
	assert.Positive(t, n.More)
	assert.Equal(t, "https://rb/Bad", n.Items[0].Runbook)
	assert.Equal(t, notice.Label{Name: "severity", Value: "critical"}, n.Items[0].Labels[0])
}

func TestControlCharactersAreDropped(t *testing.T) {
	t.Parallel()
	a := alert("firing", "A\u202e\x1b[31m", "info", 1)
	a.Annotations["description"] = "two\nlines\u2066\x00"
	n := of(0, a)
	assert.Equal(t, "A[31m", n.Items[0].Name)
	assert.Equal(t, "two\nlines", n.Items[0].Description)
	assert.NotContains(t, n.Title, "\x1b")
}

func TestAlertWithoutAnythingStillSaysSomething(t *testing.T) {
	t.Parallel()
	n := of(0, &lifeboatv1.Alert{Status: "firing"})
	assert.Equal(t, "alert without a name", n.Items[0].Summary)
	assert.NotEmpty(t, n.Title)
}
