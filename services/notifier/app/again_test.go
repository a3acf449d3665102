package app_test

import (
	"sync/atomic"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"

	"github.com/lifeboat-fleet/lifeboat/fleet/bus"
	"github.com/lifeboat-fleet/lifeboat/fleet/fleettest/chattest"
)

// With two Prometheus of which one still fires, Alertmanager tells that an alert has ended and, at its next flush, that it fires with the
// startsAt that it had: the same webhook as the first. That is news. A webhook that is posted twice because an answer was lost is none.
func TestAnAlertThatFiresOnIsToldAgain(t *testing.T) {
	var ahead atomic.Int64
	f := newFleet(t, settings{chat: loose(), now: func() time.Time { return time.Now().Add(time.Duration(ahead.Load())) }})
	told := func(n int) {
		t.Helper()
		f.waitChat(func(ms []chattest.Message) bool { return len(of(ms, chattest.Slack, "Flip")) >= n })
	}
	for i, status := range []string{"firing", "resolved", "firing"} {
		for range 2 {
			f.send(hook("Flip", status, "warning", nil))
		}
		told(i + 1)
		ahead.Add(int64(70 * time.Second))
	}
	f.send(hook("Other", "firing", "warning", nil))
	f.waitChat(func(ms []chattest.Message) bool { return len(of(ms, chattest.Slack, "Other")) == 1 })
	f.await(f.events, "delivered four times", func(all []*bus.Message) bool { return len(events(t, all, "alert", "delivered")) >= 4 })
	assert.Len(t, of(f.chat.Messages(), chattest.Slack, "Flip"), 3)
}
