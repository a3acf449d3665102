package render_test

import (
	"fmt"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"google.golang.org/protobuf/types/known/timestamppb"

	lifeboatv1 "github.com/lifeboat-fleet/lifeboat/proto/lifeboat/v1"
	"github.com/lifeboat-fleet/lifeboat/services/notifier/internal/notice"
	"github.com/lifeboat-fleet/lifeboat/services/notifier/internal/render"
)

// waiting is a delivery of one group that was received some minutes after the night began.
func waiting(minutes int, key string, alerts ...*lifeboatv1.Alert) render.Input {
	in := input(delivery(alerts...))
	in.Delivery.Notification.GroupKey = key
	in.Delivery.Notification.ReceivedAt = timestamppb.New(night.Add(time.Duration(minutes) * time.Minute))
	in.Now = night.Add(21 * time.Minute)
	return in
}

func TestDigestHasALineForEachGroupTheWorstFirst(t *testing.T) {
	t.Parallel()
	in := []render.Input{
		waiting(0, "warn", alert("firing", "HighLoad", "warning", night.Unix())),
		waiting(1, "over", alert("resolved", "Over", "critical", night.Unix())),
		waiting(5, "disk", alert("firing", "DiskFull", "critical", night.Unix()), alert("firing", "DiskFull", "critical", night.Unix()+60)),
	}
	in[2].Delivery.Notification.Alerts[1].Annotations["summary"] = "another disk"
	n := renderer(t).Digest(in, "Slack throttled")
	assert.Equal(t, `[FIRING:3] 3 groups, 4 alerts (critical), late: Slack throttled
! fired 19:02, delivered 19:23: Slack throttled
DiskFull etcd-prod | x2
  since 2026-11-20 19:02:10 UTC
  severity=critical
  target=etcd-prod
  (fired 19:07)
  Runbook https://rb/DiskFull
HighLoad etcd-prod | HighLoad happened x1
  since 2026-11-20 19:02:10 UTC
  severity=warning
  target=etcd-prod
  (fired 19:02)
  Runbook https://rb/HighLoad
Over etcd-prod | Over happened x1
  since 2026-11-20 19:02:10 UTC
  severity=critical
  target=etcd-prod
  (came 19:03)
  Runbook https://rb/Over
times in UTC
`, screen(n))
	assert.True(t, n.Digest)
	assert.True(t, n.Critical)
	assert.Nil(t, n.Silence)
	assert.Equal(t, []bool{true, true, false}, []bool{n.Items[0].Firing, n.Items[1].Firing, n.Items[2].Firing})
}

func TestDigestInChinese(t *testing.T) {
	t.Parallel()
	in := []render.Input{
		waiting(0, "a", alert("firing", "A", "warning", 1)), waiting(1, "b", alert("resolved", "B", "info", 1)),
	}
	for i := range in {
		in[i].Receiver.Language, in[i].Receiver.TimeZone = "zh", "Asia/Shanghai"
	}
	n := renderer(t).Digest(in, "钉钉限流")
	assert.Equal(t, "[告警:1] 2 组、2 条告警 (warning)，延迟送达：钉钉限流", n.Title)
	assert.Equal(t, "触发于 03:02，送达于 03:23：钉钉限流", n.Late)
	assert.Equal(t, "时间按 Asia/Shanghai", n.Footer)
	assert.Equal(t, []string{"触发于 03:02", "收到于 03:03"}, []string{n.Items[0].Note, n.Items[1].Note})
}

func TestDigestTellsOfEachGroupOnceInItsNewestState(t *testing.T) {
	t.Parallel()
	ended := alert("resolved", "A", "critical", 1)
	other := alert("firing", "B", "info", 1)
	in := []render.Input{
		waiting(7, "a", ended), waiting(3, "a", alert("firing", "A", "critical", 1), other), waiting(4, "", other), waiting(4, "", other),
	}
	n := renderer(t).Digest(in, "")
	require.Len(t, n.Items, 3, "those without a key are groups by themselves")
	assert.Equal(t, "[FIRING:3] 3 groups, 4 alerts (info), late", n.Title)
	assert.Equal(t, 2, n.Items[0].Count)
	assert.Equal(t, "fired 19:05", n.Items[0].Note)
}

func TestDigestOfWhatEndedLooksEndedButNotWhenSomeAreMissing(t *testing.T) {
	t.Parallel()
	in := []render.Input{waiting(0, "a", alert("resolved", "A", "info", 1)), waiting(0, "b", alert("resolved", "B", "info", 1))}
	n := renderer(t).Digest(in, "x")
	assert.Equal(t, notice.Resolved, n.Status)
	assert.Equal(t, "[RESOLVED:2] 2 groups, 2 alerts (info), late: x", n.Title)
	in[1].Delivery.Notification.TruncatedAlerts = 4
	n = renderer(t).Digest(in, "x")
	assert.Equal(t, notice.Partial, n.Status)
	assert.EqualValues(t, 4, n.Truncated)
}

func TestDigestMentionsEachOnceAndOnlyWhereToldTo(t *testing.T) {
	t.Parallel()
	in := []render.Input{
		waiting(0, "a", alert("firing", "A", "info", 1)), waiting(0, "b", alert("firing", "B", "info", 1)), waiting(0, "c", alert("firing", "B", "info", 1)),
	}
	in[0].Delivery.Mentions, in[1].Delivery.Mentions, in[2].Delivery.Mentions = []string{"U1", "here"}, []string{"here"}, []string{"everyone"}
	in[0].Mention, in[1].Mention = true, true
	assert.Equal(t, []string{"U1", "here"}, renderer(t).Digest(in, "x").Mentions)
}

func TestDigestSaysWhatElseIsToBeSaidOfItsAlerts(t *testing.T) {
	t.Parallel()
	one := waiting(0, "a", alert("firing", "A", "info", 1), alert("firing", "A", "info", 2))
	one.Notes = map[string]string{"A1": "flapped 6 times in 10m0s", "A2": "flapped 6 times in 10m0s"}
	one.Delivery.HeldFor, one.Trouble = "held by time interval nights", "said above"
	two := waiting(0, "b", alert("firing", "B", "info", 1))
	two.Delivery.HandedFrom = []string{"ops-slack"}
	n := renderer(t).Digest([]render.Input{one, two}, "x")
	assert.Equal(t, "fired 19:02; held by time interval nights; flapped 6 times in 10m0s", n.Items[0].Note)
	assert.Equal(t, "fired 19:02; instead of ops-slack", n.Items[1].Note)
}

func TestNothingDisappearsFromADigest(t *testing.T) {
	t.Parallel()
	var in []render.Input
	alerts := 0
	for i := range 100 {
		var all []*lifeboatv1.Alert
		for j := range i%7 + 1 {
			all = append(all, alert("firing", fmt.Sprint("A", i), "info", int64(j)))
		}
		alerts += len(all)
		in = append(in, waiting(i, fmt.Sprint(i), all...))
	}
	n := renderer(t).Digest(in, "x")
	assert.Len(t, n.Items, 100)
	counted := 0
	for _, it := range n.Items {
		counted += it.Count
	}
	assert.Equal(t, alerts, counted)
	assert.Empty(t, renderer(t).Digest(nil, "x").Items)
}
