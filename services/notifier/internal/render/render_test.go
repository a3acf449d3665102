package render_test

import (
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"google.golang.org/protobuf/types/known/timestamppb"

	"github.com/lifeboat-fleet/lifeboat/fleet/config"
	lifeboatv1 "github.com/lifeboat-fleet/lifeboat/proto/lifeboat/v1"
	"github.com/lifeboat-fleet/lifeboat/services/notifier/internal/notice"
	"github.com/lifeboat-fleet/lifeboat/services/notifier/internal/render"
)

// night is 3 a.m. in Shanghai, when it is the day before in UTC.
var night = time.Date(2026, 11, 20, 19, 2, 10, 0, time.UTC)

func alert(status, name, severity string, start int64) *lifeboatv1.Alert {
	return &lifeboatv1.Alert{
		Status: status, Labels: map[string]string{"alertname": name, "severity": severity, "target": "etcd-prod"},
		Annotations: map[string]string{"summary": name + " happened"}, StartsAt: timestamppb.New(time.Unix(start, 0)),
		Fingerprint: fmt.Sprint(name, start),
	}
}

func delivery(alerts ...*lifeboatv1.Alert) *lifeboatv1.Delivery {
	return &lifeboatv1.Delivery{
		Id: "d1", Receiver: "ops", Route: `{team="db"}`, Mentions: []string{"here"}, Notification: &lifeboatv1.Notification{
			Origin: "alertmanager", GroupKey: "{}:{}", ReceivedAt: timestamppb.New(night), Receiver: "lifeboat", Alerts: alerts,
		},
	}
}

func input(d *lifeboatv1.Delivery) render.Input {
	return render.Input{
		Receiver: config.Receiver{Name: "ops", Slack: &config.Slack{}, TimeZone: "UTC"}, Delivery: d, Now: night.Add(time.Second),
		Page: func(a *lifeboatv1.Alert) render.Page {
			return render.Page{Link: "https://rb/" + a.GetLabels()["alertname"]}
		},
	}
}

func renderer(tb testing.TB, receivers ...config.Receiver) *render.Renderer {
	tb.Helper()
	r, err := render.New(config.Notifier{Receivers: receivers})
	require.NoError(tb, err)
	return r
}

func message(tb testing.TB, in render.Input) notice.Notice {
	tb.Helper()
	n, err := renderer(tb, in.Receiver).Message(in)
	require.NoError(tb, err)
	return n
}

func of(tb testing.TB, truncated int64, alerts ...*lifeboatv1.Alert) notice.Notice {
	tb.Helper()
	d := delivery(alerts...)
	d.Notification.TruncatedAlerts = truncated
	return message(tb, input(d))
}

func TestTitleSaysStatusCountAndSeverity(t *testing.T) {
	t.Parallel()
	for want, alerts := range map[string][]*lifeboatv1.Alert{
		"[FIRING:1] A etcd-prod (critical)":         {alert("firing", "A", "critical", 1)},
		"[FIRING:2] A etcd-prod (critical)":         {alert("firing", "A", "warning", 1), alert("firing", "A", "critical", 2), alert("resolved", "A", "page", 3)},
		"[FIRING:2] 2 kinds of alert etcd-prod (x)": {alert("firing", "A", "x", 1), alert("firing", "B", "x", 2)},
		"[RESOLVED:1] A etcd-prod (info)":           {alert("resolved", "A", "info", 1)},
		"[EVENT] A etcd-prod (info)":                {alert("event", "A", "info", 1)},
		"[FIRING:1] alert without a name":           {{Status: "firing"}},
	} {
		assert.Equal(t, want, of(t, 0, alerts...).Title)
	}
	d := delivery(alert("firing", "A", "info", 1))
	d.Notification.Part, d.Notification.Parts = 2, 3
	assert.Equal(t, "[FIRING:1] A etcd-prod (info) part 2 of 3", message(t, input(d)).Title)
}

func TestTruncatedGroupIsNeverResolved(t *testing.T) {
	t.Parallel()
	n := of(t, 5, alert("resolved", "A", "info", 1))
	assert.Equal(t, notice.Partial, n.Status)
	assert.Equal(t, "[PARTIAL:1] A etcd-prod (info)", n.Title)
	assert.EqualValues(t, 5, n.Truncated)
	assert.Equal(t, notice.Firing, of(t, 5, alert("firing", "A", "info", 1)).Status)
}

func TestTheWorstComeFirstAndTheRestIsCounted(t *testing.T) {
	t.Parallel()
	var alerts []*lifeboatv1.Alert
	for i := range int64(40) {
		alerts = append(alerts, alert("resolved", "Old", "critical", i), alert("firing", "Warn", "warning", i))
	}
	n := of(t, 0, append(alerts, alert("firing", "Bad", "critical", 99))...)
	assert.Equal(t, "Bad", n.Items[0].Name)
	assert.Equal(t, "Warn", n.Items[1].Name)
	assert.Equal(t, 81, len(n.Items)+n.More)
	assert.Positive(t, n.More)
	assert.Equal(t, "https://rb/Bad", n.Items[0].Runbook)
	assert.Equal(t, notice.Label{Name: "severity", Value: "critical"}, n.Items[0].Labels[0])
	assert.Equal(t, "critical", n.Items[0].Severity)
}

func TestControlCharactersAreDropped(t *testing.T) {
	t.Parallel()
	a := alert("firing", "A\u202e\x1b[31m", "info", 1)
	a.Annotations["description"] = "two\nlines\u2066\x00\u2028\U000E0041"
	a.Annotations["summary"] = "one\nline\tonly\xff"
	n := of(t, 0, a)
	assert.Equal(t, "A[31m", n.Items[0].Name)
	assert.Equal(t, "two\nlines", n.Items[0].Description)
	assert.Equal(t, "one line only\uFFFD", n.Items[0].Summary)
	assert.NotContains(t, n.Title, "\x1b")
}

func TestAlertWithoutAnythingStillSaysSomething(t *testing.T) {
	t.Parallel()
	n := of(t, 0, &lifeboatv1.Alert{Status: "firing"})
	assert.Equal(t, "alert without a name", n.Items[0].Summary)
	assert.NotEmpty(t, n.Title)
	assert.NotEmpty(t, of(t, 0).Title)
	_, err := renderer(t).Message(render.Input{})
	assert.ErrorContains(t, err, "holds no notification")
}

func TestCriticalIsBySeverityAlone(t *testing.T) {
	t.Parallel()
	for _, s := range []string{"critical", "page", "emergency", "Critical"} {
		assert.True(t, render.Critical([]*lifeboatv1.Alert{alert("firing", "A", "info", 1), alert("resolved", "A", s, 1)}), s)
	}
	for _, s := range []string{"", "warning", "high", "criticalish"} {
		assert.False(t, render.Critical([]*lifeboatv1.Alert{alert("firing", "A", s, 1)}), s)
	}
	assert.False(t, render.Critical(nil))
	assert.True(t, of(t, 0, alert("firing", "A", "page", 1)).Critical)
}

func TestPeopleAreMentionedOnlyWhenTold(t *testing.T) {
	t.Parallel()
	in := input(delivery(alert("firing", "A", "critical", 1)))
	assert.Empty(t, message(t, in).Mentions)
	in.Mention = true
	assert.Equal(t, []string{"here"}, message(t, in).Mentions)
}

func TestNotesAndWhatWasToldBelongToTheirAlert(t *testing.T) {
	t.Parallel()
	in := input(delivery(alert("firing", "A", "info", 1), alert("firing", "A", "info", 2)))
	in.Notes = map[string]string{"A2": "flapped 6 times in 10m0s"}
	in.Told = map[string]bool{"A1": true}
	n := message(t, in)
	assert.Equal(t, []string{"", "flapped 6 times in 10m0s"}, []string{n.Items[0].Note, n.Items[1].Note})
	assert.Equal(t, []bool{true, false}, []bool{n.Items[0].Told, n.Items[1].Told})
}

func TestFirstStepsStandOnceAndNotBelowWhatEnded(t *testing.T) {
	t.Parallel()
	steps := []notice.Step{{Text: "Look at the disk."}, {Text: "df -h", Code: true}}
	in := input(delivery(alert("resolved", "C", "page", 0), alert("firing", "A", "info", 1), alert("firing", "A", "info", 2), alert("firing", "B", "info", 3)))
	in.Page = func(a *lifeboatv1.Alert) render.Page {
		return render.Page{Link: "https://rb/" + a.GetLabels()["alertname"], Dead: "404", Steps: steps}
	}
	n := message(t, in)
	require.Len(t, n.Items, 4)
	for i, want := range []int{2, 0, 2, 0} {
		assert.Len(t, n.Items[i].Steps, want, "item %d", i)
		assert.Equal(t, "404", n.Items[i].RunbookDead)
	}
	in.Page = nil
	assert.Empty(t, message(t, in).Items[0].Runbook)
}

func TestLateMessagesSayWhenAndWhy(t *testing.T) {
	t.Parallel()
	for name, c := range map[string]struct {
		change func(*render.Input)
		want   string
	}{
		"in time":          {func(in *render.Input) { in.Now, in.Trouble = night.Add(time.Minute), "Slack throttled" }, ""},
		"throttled":        {func(in *render.Input) { in.Trouble = "Slack throttled" }, "fired 19:02, delivered 19:23: Slack throttled"},
		"nobody knows why": {func(*render.Input) {}, "fired 19:02, delivered 19:23"},
		"the zone":         {func(in *render.Input) { in.Receiver.TimeZone = "Asia/Shanghai" }, "fired 03:02, delivered 03:23"},
		"over midnight": {
			func(in *render.Input) { in.Now, in.Trouble = night.Add(5*time.Hour), "Slack is down" },
			"fired 2026-11-20 19:02, delivered 2026-11-21 00:02: Slack is down",
		},
		"in Chinese, and no midnight in Shanghai": {
			func(in *render.Input) {
				in.Now, in.Receiver.TimeZone, in.Receiver.Language = night.Add(5*time.Hour), "Asia/Shanghai", "zh"
				in.Trouble = "DingTalk 限流"
			},
			"触发于 03:02，送达于 08:02：DingTalk 限流",
		},
		"ended": {
			func(in *render.Input) { in.Delivery.Notification.Alerts[0].Status = "resolved" },
			"ended 19:02, delivered 19:23",
		},
		"event": {func(in *render.Input) { in.Delivery.Notification.Alerts[0].Status = "event" }, "happened 19:02, delivered 19:23"},
		"held": {
			func(in *render.Input) { in.Delivery.HeldFor = "held by time interval nights" },
			"fired 19:02, delivered 19:23: held by time interval nights",
		},
		"handed on": {
			func(in *render.Input) {
				in.Delivery.HandedFrom, in.Delivery.HandedReason = []string{"ops-slack", "ops-ding"}, "Slack is down"
				in.Trouble = "the robot is paused"
			},
			"fired 19:02, delivered 19:23: instead of ops-slack, ops-ding (Slack is down); the robot is paused",
		},
		"handed on at once": {
			func(in *render.Input) { in.Now, in.Delivery.HandedFrom = night, []string{"ops-slack"} }, "instead of ops-slack",
		},
		"never received": {func(in *render.Input) { in.Delivery.Notification.ReceivedAt = nil }, ""},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			in := input(delivery(alert("firing", "A", "info", 1)))
			in.Now = night.Add(21 * time.Minute)
			c.change(&in)
			assert.Equal(t, c.want, message(t, in).Late)
		})
	}
}

func TestSilenceMatchesWhatAllAlertsShare(t *testing.T) {
	t.Parallel()
	one, other := alert("firing", "A", "critical", 1), alert("firing", "A", "warning", 2)
	in := input(delivery(one, other))
	in.Buttons = true
	in.Links = func(m map[string]string, comment string) []notice.Link {
		return []notice.Link{{Label: comment, URL: fmt.Sprint(len(m))}}
	}
	n := message(t, in)
	assert.Equal(t, &notice.Silence{
		Matchers: map[string]string{"alertname": "A", "target": "etcd-prod"}, Comment: "[FIRING:2] A etcd-prod (critical)", Buttons: true,
		Links: []notice.Link{{Label: "[FIRING:2] A etcd-prod (critical)", URL: "2"}},
	}, n.Silence)
}

func TestThereIsNoSilenceThatWouldHideWhatNobodySaw(t *testing.T) {
	t.Parallel()
	only := func(status string, labels map[string]string) *lifeboatv1.Alert {
		return &lifeboatv1.Alert{Status: status, Labels: labels}
	}
	for name, alerts := range map[string][]*lifeboatv1.Alert{
		"no labels":        {only("firing", nil)},
		"nothing shared":   {only("firing", map[string]string{"a": "1"}), only("firing", map[string]string{"a": "2"})},
		"only how bad":     {only("firing", map[string]string{"a": "1", "severity": "x"}), only("firing", map[string]string{"a": "2", "severity": "x"})},
		"an empty value":   {only("firing", map[string]string{"a": ""})},
		"ended":            {only("resolved", map[string]string{"a": "1"})},
		"an event":         {only("event", map[string]string{"a": "1"})},
		"no alerts at all": nil,
	} {
		assert.Nil(t, message(t, input(delivery(alerts...))).Silence, name)
	}
	for _, origin := range []string{"canary", "test", "event", "webhook"} {
		d := delivery(alert("firing", "A", "critical", 1))
		d.Notification.Origin = origin
		assert.Nil(t, message(t, input(d)).Silence, origin)
	}
	for _, origin := range []string{"alertmanager", "lifeboat", "reconcile"} {
		d := delivery(alert("firing", "A", "critical", 1))
		d.Notification.Origin = origin
		assert.NotNil(t, message(t, input(d)).Silence, origin)
	}
}

func TestSizesAreBoundedWhateverAlertsHold(t *testing.T) {
	t.Parallel()
	for _, some := range []string{"长<", "a b", "\xff\u202e"} {
		bounded(t, strings.Repeat(some, 1<<20))
	}
}

func bounded(t *testing.T, huge string) {
	t.Helper()
	a := &lifeboatv1.Alert{Status: "firing", Labels: map[string]string{"alertname": huge, "severity": huge}, Annotations: map[string]string{"summary": huge, "description": huge}}
	for i := range 1000 {
		a.Labels[fmt.Sprint(huge[:90], i)] = huge
	}
	d := delivery(a)
	d.Route, d.Id, d.HeldFor, d.HandedFrom = huge, huge, huge, []string{huge}
	in := input(d)
	in.Notes = map[string]string{"": huge}
	n := message(t, in)
	size := len(n.Title) + len(n.Footer) + len(n.Late) + len(n.Severity)
	for _, it := range n.Items {
		size += len(it.Name) + len(it.Summary) + len(it.Description) + len(it.Note) + len(it.Severity)
		for _, l := range it.Labels {
			size += len(l.Name) + len(l.Value)
		}
	}
	assert.Less(t, size, 100_000)
	assert.Contains(t, n.Title, "[FIRING:1]")
}
