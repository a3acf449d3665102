package render_test

import (
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	lifeboatv1 "github.com/lifeboat-fleet/lifeboat/proto/lifeboat/v1"
	"github.com/lifeboat-fleet/lifeboat/services/notifier/internal/notice"
)

// The message of a group said that all had ended when that was true of the alerts that came last.
func TestAGroupFiresWhileAnythingOfItDoes(t *testing.T) {
	t.Parallel()
	ended, fires := alert("resolved", "A", "critical", 1), alert("firing", "A", "critical", 2)
	of := func(still int, labels map[string]string, alerts ...*lifeboatv1.Alert) notice.Notice {
		d := delivery(alerts...)
		d.Notification.GroupLabels, d.Notification.CommonLabels = labels, map[string]string{"target": "etcd-prod"}
		d.Notification.Part, d.Notification.Parts = 3, 3
		in := input(d)
		in.StillFires, in.Now = still, night.Add(time.Hour)
		return message(t, in)
	}
	name := map[string]string{"alertname": "A"}
	for _, c := range []struct {
		n     notice.Notice
		title string
	}{
		{of(0, name, ended), "[RESOLVED:1] A etcd-prod (critical) part 3 of 3"},
		{of(700, name, ended), "[FIRING:700] A etcd-prod"},
		{of(1, nil, ended), "[FIRING:1] 2 alerts etcd-prod"},
		{of(1, map[string]string{"alertname": "A", "severity": "warning", "job": "etcd"}, ended), "[FIRING:1] A etcd-prod (warning)"},
		{of(2, name, fires, ended), "[FIRING:3] A etcd-prod (critical)"},
		{of(1, name, alert("firing", "A", "warning", 3)), "[FIRING:2] A etcd-prod"},
	} {
		assert.Equal(t, c.title, c.n.Title)
	}
	d := delivery(ended)
	d.Notification.CommonLabels = map[string]string{"alertname": "A", "severity": "critical"}
	in := input(d)
	in.StillFires = 1
	assert.Equal(t, "[FIRING:1] 2 alerts", message(t, in).Title, "others may have come since, of which nothing is known")
	n := of(700, name, ended)
	assert.Equal(t, notice.Firing, n.Status)
	assert.Equal(t, 700, n.StillFires)
	assert.Zero(t, n.More, "they are not of this delivery")
	assert.Contains(t, n.Late, "ended 19:02", "what is told here has ended")
	require.NotNil(t, n.Silence)
	assert.Equal(t, map[string]string{"alertname": "A", "target": "etcd-prod"}, n.Silence.Matchers, "not what only those that ended share")
}
