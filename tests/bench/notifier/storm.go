package main

import (
	"context"
	"fmt"
	"strconv"
	"strings"
	"time"

	"github.com/nats-io/nats.go"

	"github.com/lifeboat-fleet/lifeboat/fleet/bus"
	"github.com/lifeboat-fleet/lifeboat/fleet/fleettest/chattest"
	lifeboatv1 "github.com/lifeboat-fleet/lifeboat/proto/lifeboat/v1"
	"github.com/lifeboat-fleet/lifeboat/tests/bench/internal/testbed"
)

// stormAlerts are in each webhook of the storm; every tenth webhook is critical.
const (
	stormAlerts   = 100
	stormCritical = 10
)

// storming sends many alerts at once to chats with their real limits, and counts what becomes of them.
func (b *bench) storming(ctx context.Context, f *figures) error {
	n, err := b.start(ctx, limited, chattest.Options{})
	if err != nil {
		return err
	}
	defer n.stop() //nolint:contextcheck // it must end also when the context has
	counted := make(chan *lifeboatv1.Event, 1000)
	sub, err := b.Conn.Subscribe("lifeboat.event.alert.>", func(m *nats.Msg) {
		e := &lifeboatv1.Event{}
		if bus.Decode(m.Data, e) == nil {
			counted <- e
		}
	})
	if err != nil {
		return err
	}
	defer func() { _ = sub.Unsubscribe() }()
	if err = b.Conn.Flush(); err != nil {
		return err
	}
	begun := time.Now()
	for i := range b.storm {
		name, severity := fmt.Sprintf("Storm%03d", i), "warning"
		if i%stormCritical == stormCritical-1 {
			severity = "critical"
		}
		if err = n.post(ctx, b.webhook(name, severity, stormAlerts)); err != nil {
			return err
		}
	}
	taken := time.Since(begun)
	left := map[string]int{"ops-slack": b.storm * stormAlerts, "ops-dingtalk": b.storm * stormAlerts}
	verbs := map[string]int{}
	late := time.NewTimer(patience)
	defer late.Stop()
	for left["ops-slack"] > 0 || left["ops-dingtalk"] > 0 {
		select {
		case e := <-counted:
			alerts, wrong := strconv.Atoi(e.GetAttributes()["alerts"])
			if wrong != nil {
				return fmt.Errorf("an event without its alerts: %w", wrong)
			}
			left[e.GetAttributes()["receiver"]] -= alerts
			verbs[e.GetAttributes()["receiver"]+" "+e.GetVerb()] += alerts
		case <-late.C:
			f.Lost = left["ops-slack"] + left["ops-dingtalk"]
			fmt.Fprintf(b.Out, "after %s this has come to an end: %v\n", patience, verbs)
			return nil
		case <-ctx.Done():
			return ctx.Err()
		}
	}
	took := time.Since(begun)
	f.RSSMiB, err = testbed.PeakRSS(n.PID())
	if err != nil {
		return err
	}
	before, messages := b.order(n.chat.Messages())
	fmt.Fprintf(b.Out, "storm: %d alerts in %d webhooks, taken in %.1f s, all told in %.1f s by %d messages: %v; throttled by Slack or DingTalk: %d requests refused\n",
		b.storm*stormAlerts, b.storm, taken.Seconds(), took.Seconds(), messages, verbs,
		n.chat.Requests(chattest.Slack)+n.chat.Requests(chattest.DingTalk)-messages)
	fmt.Fprintf(b.Out, "storm: before the last message about critical alerts, %d of the others were told (those that came before the chat was full)\n", before)
	return nil
}

// order counts the messages that are not about critical alerts and came before the last one that is.
func (b *bench) order(all []chattest.Message) (before, messages int) {
	last := map[chattest.Kind]int{}
	for i, m := range all {
		if strings.Contains(m.Title, "critical") {
			last[m.Kind] = i
		}
	}
	for i, m := range all {
		if i < last[m.Kind] && !strings.Contains(m.Title, "critical") {
			before++
		}
	}
	return before, len(all)
}
