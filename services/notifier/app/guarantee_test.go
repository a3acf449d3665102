package app_test

import (
	"fmt"
	"net/http"
	"strings"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/lifeboat-fleet/lifeboat/fleet/bus"
	"github.com/lifeboat-fleet/lifeboat/fleet/fleettest/chattest"
)

// Guarantee 7: 200 to a webhook means the alert is on disk, and each one ends delivered or in the dead letters with a
// reason. Between the steps NATS goes away and the notifier is stopped in the middle of a delivery; the chats hang, fail
// for a while and refuse for good.
func TestGuarantee7EveryAcceptedAlertIsDeliveredOrDead(t *testing.T) {
	t.Parallel()
	f := newFleet(t, settings{chat: loose()})
	var sent []string
	next := func() string {
		name := fmt.Sprintf("Alert%02dEnd", len(sent))
		sent = append(sent, name)
		return hook(name, "firing", "critical", map[string]string{"summary": name})
	}
	send := func() {
		f.send(next())
	}

	// A delivery hangs in Slack and DingTalk loses its answer while the notifier goes down.
	f.chat.FailNext(chattest.Slack, 1, chattest.Fault{Hang: true})
	f.chat.FailNext(chattest.DingTalk, 1, chattest.Fault{Status: http.StatusBadGateway, Body: "lost", Accept: true})
	send()
	send()
	f.waitRequests(chattest.Slack, 1)
	f.waitRequests(chattest.DingTalk, 1)
	f.stop()
	f.start()

	// NATS restarts while a delivery hangs; what comes meanwhile is refused until it is back.
	f.chat.FailNext(chattest.Slack, 1, chattest.Fault{Hang: true})
	before := f.chat.Requests(chattest.Slack)
	send()
	f.waitRequests(chattest.Slack, before+1)
	f.nats.Stop()
	body := next()
	assert.Equal(t, http.StatusServiceUnavailable, f.post(body))
	require.NoError(t, f.nats.Restart())
	f.send(body) // as Alertmanager does after a 503
	send()

	// What was accepted so far is told before the next faults, so that each fault meets a fresh alert.
	f.waitChat(func(ms []chattest.Message) bool {
		for _, name := range sent {
			if len(of(ms, chattest.Slack, name)) == 0 || len(of(ms, chattest.DingTalk, name)) == 0 {
				return false
			}
		}
		// The one whose answer was lost is told twice: delivery is at least once.
		return len(of(ms, chattest.DingTalk)) > len(sent)
	})

	// A robot that refuses one for good, and a webhook that refuses another.
	f.chat.FailNext(chattest.Slack, 1, chattest.Fault{Status: http.StatusGone, Body: "channel_is_archived"})
	f.chat.FailNext(chattest.DingTalk, 1, chattest.Fault{ErrCode: 43004, ErrMsg: "bad request"})
	send()
	f.await(f.dead, "the refused ones", func(all []*bus.Message) bool { return len(all) >= 2 })
	f.stop()
	f.start()
	send()

	ended := func(k chattest.Kind, receiver, name string, dead []*bus.Message) (delivered, buried bool) {
		for _, d := range letters(t, dead) {
			if strings.HasSuffix(d.GetSubject(), receiver+".critical") && strings.Contains(string(d.GetPayload()), name) {
				buried = d.GetReason() != ""
			}
		}
		return len(of(f.chat.Messages(), k, name)) > 0, buried
	}
	chats := map[chattest.Kind]string{chattest.Slack: "ops-slack", chattest.DingTalk: "ops-dingtalk"}
	f.waitChat(func([]chattest.Message) bool {
		dead := f.dead.snapshot()
		for k, receiver := range chats {
			for _, name := range sent {
				if delivered, buried := ended(k, receiver, name, dead); !delivered && !buried {
					return false
				}
			}
		}
		return true
	})
	for k, receiver := range chats {
		delivered, dead := 0, 0
		for _, name := range sent {
			d, b := ended(k, receiver, name, f.dead.snapshot())
			assert.NotEqual(t, d, b, "%s is either delivered or dead at %s", name, receiver)
			if d {
				delivered++
			} else {
				dead++
			}
		}
		assert.Equal(t, len(sent), delivered+dead, receiver)
		assert.Equal(t, 1, dead, receiver)
	}
	// Nothing is left in the stream: delivered and dead are all there is.
	f.await(f.events, "all records", func(all []*bus.Message) bool {
		return len(events(t, all, "alert", "delivered")) >= 2*len(sent)-2
	})
	f.stop()
	for _, filter := range []string{bus.SubjectReceived, bus.DeliverySubject(">"), bus.HeldSubject(">")} {
		left, err := f.bus.Subjects(t.Context(), bus.StreamAlerts, filter)
		require.NoError(t, err)
		assert.Empty(t, left)
	}
}
