package app_test

import (
	"net/http"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/lifeboat-fleet/lifeboat/fleet/bus"
	"github.com/lifeboat-fleet/lifeboat/fleet/fleettest/chattest"
)

func TestWebhookReachesBothChatsWithTheRunbook(t *testing.T) {
	t.Parallel()
	f := newFleet(t, settings{})
	require.Equal(t, http.StatusOK, f.post(hook("EtcdNoLeader", "firing", "critical", map[string]string{
		"summary": "etcd-prod has no leader", "description": "members disagree",
	})))
	f.waitChat(func(ms []chattest.Message) bool {
		return len(of(ms, chattest.Slack)) == 1 && len(of(ms, chattest.DingTalk)) == 1
	})
	for _, k := range []chattest.Kind{chattest.Slack, chattest.DingTalk} {
		m := of(f.chat.Messages(), k)[0]
		assert.Contains(t, m.Title, "EtcdNoLeader etcd-prod (critical)", k)
		assert.Contains(t, m.Text, "EtcdNoLeader", k)
		assert.Contains(t, m.Text, "https://runbooks.example.com/lifeboat/etcd-no-leader.md", k)
		assert.Contains(t, m.Text, "etcd-prod has no leader", k)
		assert.Contains(t, m.Text, "2026-11-21 04:00:00 UTC", k)
	}
	f.await(f.events, "two delivered events", func(all []*bus.Message) bool {
		return len(events(t, all, "alert", "delivered")) == 2
	})
	for _, e := range events(t, f.events.snapshot(), "alert", "delivered") {
		assert.Equal(t, "etcd-prod", e.GetTarget())
		assert.Equal(t, "1", e.GetAttributes()["alerts"])
		assert.Equal(t, "alertmanager", e.GetAttributes()["origin"])
		assert.NotEmpty(t, e.GetAttributes()["lag_seconds"])
	}
	// A retry of the same webhook is stored once.
	require.Equal(t, http.StatusOK, f.post(hook("EtcdNoLeader", "firing", "critical", map[string]string{
		"summary": "etcd-prod has no leader", "description": "members disagree",
	})))
	require.Equal(t, http.StatusOK, f.post(hook("Other", "firing", "warning", nil)))
	f.waitChat(func(ms []chattest.Message) bool { return len(of(ms, chattest.Slack, "Other")) == 1 })
	assert.Len(t, of(f.chat.Messages(), chattest.Slack, "EtcdNoLeader"), 1)
	assert.Empty(t, of(f.chat.Messages(), chattest.DingTalk, "Other"), "a warning goes to Slack only")
	require.Equal(t, http.StatusOK, f.post(hook("EtcdNoLeader", "resolved", "critical", nil)))
	f.waitChat(func(ms []chattest.Message) bool {
		return len(of(ms, chattest.DingTalk, "RESOLVED:1", "EtcdNoLeader")) == 1
	})
}

func TestThrottledChatsAreDeliveredAfterwards(t *testing.T) {
	t.Parallel()
	f := newFleet(t, settings{})
	f.chat.FailNext(chattest.Slack, 1, chattest.Fault{
		Status: http.StatusTooManyRequests, Header: http.Header{"Retry-After": {"2"}}, Body: "rate_limited",
	})
	f.chat.FailNext(chattest.DingTalk, 1, chattest.Fault{ErrCode: -1, ErrMsg: "system busy"})
	f.send(hook("Throttled", "firing", "critical", nil))
	f.waitChat(func(ms []chattest.Message) bool {
		return len(of(ms, chattest.Slack)) == 1 && len(of(ms, chattest.DingTalk)) == 1
	})
	assert.Equal(t, 2, f.chat.Requests(chattest.Slack))
	assert.Contains(t, f.logs.String(), "Slack answered 429 rate_limited")
}

func TestPermanentErrorBecomesADeadLetterWithTheReason(t *testing.T) {
	t.Parallel()
	f := newFleet(t, settings{})
	f.chat.FailNext(chattest.Slack, 1, chattest.Fault{Status: http.StatusForbidden, Body: "action_prohibited"})
	f.send(hook("Prohibited", "firing", "warning", nil))
	f.await(f.dead, "the dead letter", func(all []*bus.Message) bool { return len(all) == 1 })
	d := letters(t, f.dead.snapshot())[0]
	assert.Equal(t, "lifeboat.alert.delivery.ops-slack", d.GetSubject())
	assert.Contains(t, d.GetReason(), "Slack answered 403 action_prohibited")
	assert.Contains(t, string(d.GetPayload()), "Prohibited")
	f.await(f.events, "alert.dead", func(all []*bus.Message) bool { return len(events(t, all, "alert", "dead")) == 1 })
	assert.Equal(t, "ops-slack", events(t, f.events.snapshot(), "alert", "dead")[0].GetAttributes()["receiver"])
}

func TestRemovedReceiverLeavesDeadLettersAndNewOneWorks(t *testing.T) {
	t.Parallel()
	var ahead atomic.Int64
	f := newFleet(t, settings{now: func() time.Time { return time.Now().Add(time.Duration(ahead.Load())) }})
	f.chat.FailAll(chattest.DingTalk, chattest.Fault{ErrCode: -1})
	f.send(hook("Pending", "firing", "critical", nil))
	f.waitRequests(chattest.DingTalk, 1)
	f.configure(settings{notifier: `
  receivers:
    - name: second-slack
      slack: {webhook_url_file: slack-url}
  route: {receiver: second-slack}
`})
	require.Eventually(t, func() bool {
		return strings.Contains(f.logs.String(), "in this notifier's configuration; another notifier's may have it")
	}, patience, 50*time.Millisecond)
	assert.Empty(t, f.dead.snapshot())
	ahead.Store(int64(11 * time.Minute))
	f.await(f.dead, "the dead letter", func(all []*bus.Message) bool { return len(all) == 1 })
	assert.Contains(t, letters(t, f.dead.snapshot())[0].GetReason(), `no receiver is named "ops-dingtalk" in this notifier's configuration`)
	f.send(hook("AfterReload", "firing", "critical", nil))
	f.waitChat(func(ms []chattest.Message) bool { return len(of(ms, chattest.Slack, "AfterReload")) == 1 })
}

func TestDeliveriesOfAReceiverThatIsGoneAtTheStartBecomeDeadLetters(t *testing.T) {
	t.Parallel()
	var ahead atomic.Int64
	f := newFleet(t, settings{now: func() time.Time { return time.Now().Add(time.Duration(ahead.Load())) }})
	f.chat.FailAll(chattest.DingTalk, chattest.Fault{ErrCode: -1})
	f.send(hook("Pending", "firing", "critical", nil))
	f.waitRequests(chattest.DingTalk, 1)
	f.stop()
	f.configure(settings{notifier: `
  receivers:
    - name: ops-slack
      slack: {webhook_url_file: slack-url}
  route: {receiver: ops-slack}
`})
	f.start()
	f.send(hook("AfterTheStart", "firing", "warning", nil))
	f.waitChat(func(ms []chattest.Message) bool { return len(of(ms, chattest.Slack, "AfterTheStart")) == 1 })
	assert.Empty(t, f.dead.snapshot(), "another notifier may have it still")
	ahead.Store(int64(11 * time.Minute))
	f.await(f.dead, "the dead letter", func(all []*bus.Message) bool { return len(all) == 1 })
	assert.Equal(t, "lifeboat.alert.delivery.ops-dingtalk.critical", letters(t, f.dead.snapshot())[0].GetSubject())
}

func TestMalformedWebhookIsRefusedAndKept(t *testing.T) {
	t.Parallel()
	f := newFleet(t, settings{})
	assert.Equal(t, http.StatusBadRequest, f.post(`{"version":"5","alerts":[{}]}`))
	assert.Equal(t, http.StatusRequestEntityTooLarge, f.post(strings.Repeat(" ", 17<<20)))
	f.await(f.dead, "the dead letters", func(all []*bus.Message) bool { return len(all) == 2 })
	d := letters(t, f.dead.snapshot())
	assert.Equal(t, "webhook", d[0].GetSubject())
	assert.JSONEq(t, `{"version":"5","alerts":[{}]}`, string(d[0].GetPayload()))
	assert.True(t, d[1].GetTruncated())
	f.nats.Stop()
	assert.Equal(t, http.StatusServiceUnavailable, f.post(`nonsense`), "not kept, so it must come again")
	assert.Equal(t, http.StatusServiceUnavailable, f.post(hook("A", "firing", "warning", nil)))
	require.NoError(t, f.nats.Restart())
}

// Guarantee 8, as far as it is ours: the addresses and the secret appear nowhere, whatever goes wrong.
func TestGuarantee8NoSecretInLogsEventsAndDeadLetters(t *testing.T) {
	t.Parallel()
	f := newFleet(t, settings{})
	echo := f.chat.SlackURL() + " " + f.chat.DingTalkURL() + " " + f.chat.DingTalkSecret()
	f.chat.FailNext(chattest.Slack, 1, chattest.Fault{Status: http.StatusBadGateway, Body: "cannot reach " + echo})
	f.chat.FailNext(chattest.Slack, 1, chattest.Fault{Status: http.StatusBadRequest, Body: "no such page " + echo})
	f.chat.FailNext(chattest.DingTalk, 1, chattest.Fault{ErrCode: 40035, ErrMsg: "bad: " + f.chat.DingTalkURL()})
	f.send(hook("Leaky", "firing", "critical", nil))
	f.await(f.dead, "the dead letters", func(all []*bus.Message) bool { return len(all) == 2 })
	// Nothing listens at the address: the error of the HTTP client holds it.
	f.write("slack-url", "http://127.0.0.1:1/services/x/"+f.chat.SlackToken())
	f.write("dingtalk-url", "http://\x7f"+f.chat.DingTalkToken())
	f.send(hook("Unreachable", "firing", "critical", nil))
	f.write("lifeboat.yaml", "nats: {url: 1}\nbroken: true")
	f.await(f.events, "config.refused", func(all []*bus.Message) bool { return len(events(t, all, "config", "refused")) > 0 })
	f.stop()
	all := f.logs.String()
	for _, m := range append(f.events.snapshot(), f.dead.snapshot()...) {
		all += string(m.Data)
	}
	for _, d := range letters(t, f.dead.snapshot()) {
		all += d.GetReason() + string(d.GetPayload())
	}
	for _, secret := range []string{f.chat.SlackToken(), f.chat.DingTalkToken(), f.chat.DingTalkSecret()} {
		assert.NotContains(t, all, secret)
	}
	assert.Contains(t, all, "Slack answered 400")
}
