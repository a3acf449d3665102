package canary

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"log/slog"
	"time"

	"github.com/robfig/cron/v3"
	"google.golang.org/protobuf/types/known/timestamppb"

	"github.com/lifeboat-fleet/lifeboat/fleet/config"
	lifeboatv1 "github.com/lifeboat-fleet/lifeboat/proto/lifeboat/v1"
)

// timetable is when one receiver's canaries are due.
type timetable struct {
	receiver config.Receiver
	line     string
	zone     string
	schedule cron.Schedule
	// last is the newest tick that is done with; from the start on it is a moment before the first one.
	last time.Time
}

// replan takes over another configuration. What is new counts from a moment on, what was there keeps its place.
func (c *Canaries) replan(ctx context.Context, from time.Time) {
	cfg := c.o.Config()
	if cfg == c.seen {
		return
	}
	c.seen = cfg
	before := c.times
	defer func() { c.forget(before) }()
	c.times = map[string]*timetable{}
	for _, r := range cfg.Notifier.Receivers {
		if r.Canary.Schedule == "" {
			continue
		}
		if t := before[r.Name]; t != nil && t.line == r.Canary.Schedule && t.zone == r.TimeZone {
			t.receiver = r
			c.times[r.Name] = t
			continue
		}
		schedule, err := config.ParseSchedule(r.Canary.Schedule, r.TimeZone)
		if err != nil { // Load refuses such a line
			c.o.Logger.ErrorContext(ctx, "a receiver has no canary: its schedule cannot be read", slog.String("receiver", r.Name), slog.Any("err", err))
			continue
		}
		c.times[r.Name] = &timetable{receiver: r, line: r.Canary.Schedule, zone: r.TimeZone, schedule: schedule, last: from}
	}
}

// forget takes the metrics of receivers back that have no canary any more.
func (c *Canaries) forget(before map[string]*timetable) {
	for name := range before {
		if c.times[name] == nil {
			c.metrics.delivered.DeleteLabelValues(name)
			c.metrics.sent.DeleteLabelValues(name)
			c.metrics.late.DeleteLabelValues(name)
		}
	}
}

// due is the newest tick that has come and that is not done with; the zero time when there is none. missed says that an earlier one is too
// long ago by now.
func (t *timetable) due(now time.Time) (tick time.Time, missed bool) {
	if t.last.After(now.Add(grace)) {
		t.last = now // the clock was set back
	}
	next := t.schedule.Next(t.last)
	if oldest := now.Add(-grace); t.last.Before(oldest) {
		missed = !next.IsZero() && !next.After(oldest)
		t.last = oldest
		next = t.schedule.Next(oldest)
	}
	for !next.IsZero() && !next.After(now) {
		tick, next = next, t.schedule.Next(next)
	}
	return tick, missed
}

// wait is how long it is to the next tick; at most recheck.
func (t *timetable) wait(now time.Time) time.Duration {
	if next := t.schedule.Next(now); !next.IsZero() {
		return min(next.Sub(now), recheck)
	}
	return recheck
}

// id of a canary; every replica comes to the same.
func id(receiver string, tick time.Time) string {
	return fmt.Sprintf("canary-%s-%d", receiver, tick.Unix())
}

// notification is the canary's message. It goes past the routes to its receiver.
func notification(r config.Receiver, tick, now time.Time) *lifeboatv1.Notification {
	summary := "Canary: alerts reach this chat"
	description := "A test that is sent on a schedule to prove that the receiver works. There is nothing to do."
	if r.Language == "zh" {
		summary, description = "探测消息：告警可以送达此群", "这是按计划发送的测试消息，用来证明接收端正常工作，无需处理。"
	}
	labels := map[string]string{"alertname": "LifeboatCanary", "receiver": r.Name, "severity": "info"}
	annotations := map[string]string{"summary": summary, "description": description}
	group := "lifeboat/canary/" + r.Name
	sum := sha256.Sum256([]byte(group))
	return &lifeboatv1.Notification{
		Id: id(r.Name, tick), ReceivedAt: timestamppb.New(now), Origin: origin, GroupKey: group, Receiver: "lifeboat",
		GroupLabels:  map[string]string{"alertname": "LifeboatCanary", "receiver": r.Name},
		CommonLabels: labels, CommonAnnotations: annotations, OnlyReceiver: r.Name, Status: "event", Part: 1, Parts: 1,
		Alerts: []*lifeboatv1.Alert{{
			Status: "event", Labels: labels, Annotations: annotations, StartsAt: timestamppb.New(tick), Fingerprint: hex.EncodeToString(sum[:8]),
		}},
	}
}
