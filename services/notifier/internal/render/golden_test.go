package render_test

import (
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"google.golang.org/protobuf/types/known/timestamppb"

	lifeboatv1 "github.com/lifeboat-fleet/lifeboat/proto/lifeboat/v1"
	"github.com/lifeboat-fleet/lifeboat/services/notifier/internal/notice"
	"github.com/lifeboat-fleet/lifeboat/services/notifier/internal/render"
)

// screen writes a notice as one would read it, whatever chat it is.
func screen(n notice.Notice) string {
	var b strings.Builder
	say := func(format string, args ...any) { fmt.Fprintf(&b, format+"\n", args...) }
	say("%s", n.Title)
	if n.Late != "" {
		say("! %s", n.Late)
	}
	for _, it := range n.Items {
		say("%s x%d", strings.TrimSpace(it.Name+" | "+it.Summary), it.Count)
		say("  "+n.Words.Since, n.Stamp(it.Starts))
		if !it.Ends.IsZero() {
			say("  "+n.Words.Ended, n.Stamp(it.Ends))
		}
		for _, l := range it.Labels {
			say("  %s=%s", l.Name, l.Value)
		}
		if it.Note != "" {
			say("  (%s)", it.Note)
		}
		if it.Runbook == "" {
			say("  %s", n.Words.NoRunbook)
		} else {
			say("  %s %s", n.Words.Runbook, it.Runbook)
		}
		if it.RunbookDead != "" {
			say("  "+n.Words.DeadLink, it.RunbookDead)
		}
	}
	if n.More > 0 {
		say(n.Words.More, n.More)
	}
	if n.Truncated > 0 {
		say(n.Words.Truncated, n.Truncated)
	}
	say("%s", n.Footer)
	return b.String()
}

// woken is a group of which one alert fires and one has ended, late.
func woken() render.Input {
	bad := &lifeboatv1.Alert{
		Status: "firing", Fingerprint: "f1", StartsAt: timestamppb.New(night.Add(-time.Minute)),
		Labels:      map[string]string{"alertname": "DiskFull", "severity": "critical", "instance": "node-3", "job": "node"},
		Annotations: map[string]string{"summary": "node-3: 97% of /var is used"},
	}
	good := &lifeboatv1.Alert{
		Status: "resolved", Fingerprint: "f2", StartsAt: timestamppb.New(night.Add(-time.Hour)), EndsAt: timestamppb.New(night),
		Labels:      map[string]string{"alertname": "DiskFull", "severity": "warning", "instance": "node-4", "job": "node"},
		Annotations: map[string]string{"summary": "node-4: 81% of /var is used"},
	}
	d := delivery(good, bad)
	d.Notification.TruncatedAlerts = 3
	in := input(d)
	in.Now, in.Trouble = night.Add(21*time.Minute), "Slack throttled"
	in.Notes = map[string]string{"f1": "flapped 6 times in 10m0s"}
	in.Page = func(a *lifeboatv1.Alert) render.Page {
		if a.GetFingerprint() == "f1" {
			return render.Page{Link: "https://rb/disk-full", Dead: "404"}
		}
		return render.Page{}
	}
	return in
}

func TestMessageInEnglish(t *testing.T) {
	t.Parallel()
	assert.Equal(t, `[FIRING:1] DiskFull node (critical)
! fired 19:02, delivered 19:23: Slack throttled
DiskFull | node-3: 97% of /var is used x0
  since 2026-11-20 19:01:10 UTC
  instance=node-3
  job=node
  severity=critical
  (flapped 6 times in 10m0s)
  Runbook https://rb/disk-full
  the link is dead (404)
DiskFull | node-4: 81% of /var is used x0
  since 2026-11-20 18:02:10 UTC
  ended 2026-11-20 19:02:10 UTC
  instance=node-4
  job=node
  severity=warning
  No runbook.
Alertmanager left out 3 more (max_alerts); their state is unknown.
from alertmanager · received 2026-11-20 19:02:10 UTC · route {team="db"} · delivery d1
`, screen(message(t, woken())))
}

func TestMessageInChineseAndInShanghai(t *testing.T) {
	t.Parallel()
	in := woken()
	in.Receiver.Language, in.Receiver.TimeZone = "zh", "Asia/Shanghai"
	in.Trouble, in.Notes["f1"] = "Slack 限流", "10m0s 内抖动 6 次"
	assert.Equal(t, `[告警:1] DiskFull node (critical)
! 触发于 03:02，送达于 03:23：Slack 限流
DiskFull | node-3: 97% of /var is used x0
  开始于 2026-11-21 03:01:10 CST
  instance=node-3
  job=node
  severity=critical
  (10m0s 内抖动 6 次)
  处置手册 https://rb/disk-full
  链接失效（404）
DiskFull | node-4: 81% of /var is used x0
  开始于 2026-11-21 02:02:10 CST
  结束于 2026-11-21 03:02:10 CST
  instance=node-4
  job=node
  severity=warning
  没有处置手册。
Alertmanager 省略了另外 3 条（max_alerts），状态未知。
来自 alertmanager · 收到于 2026-11-21 03:02:10 CST · 路由 {team="db"} · 投递 d1
`, screen(message(t, in)))
}

func TestEventIsToldByItsName(t *testing.T) {
	t.Parallel()
	a := alert("event", "LifeboatEvent", "info", night.Unix())
	a.Labels["event"] = "drill.passed"
	a.Annotations["summary"] = "etcd-prod was restored in 2.1 s"
	in := input(delivery(a))
	in.Delivery.Notification.Origin = "event"
	n := message(t, in)
	assert.Equal(t, notice.Event, n.Status)
	assert.Equal(t, "[EVENT] drill.passed etcd-prod (info)", n.Title)
	assert.Equal(t, "drill.passed", n.Items[0].Name)
	assert.False(t, n.Items[0].Firing)
	in.Receiver.Language = "zh"
	assert.Equal(t, "[事件] drill.passed etcd-prod (info)", message(t, in).Title)
}

func TestFleetsOwnAlertsSayWhereTheyComeFrom(t *testing.T) {
	t.Parallel()
	in := input(delivery(alert("firing", "A", "critical", 1)))
	in.Delivery.Notification.Origin, in.Delivery.Route, in.Delivery.Id = "lifeboat", "", ""
	assert.Equal(t, "from lifeboat itself: no Alertmanager took it · received 2026-11-20 19:02:10 UTC", message(t, in).Footer)
}
