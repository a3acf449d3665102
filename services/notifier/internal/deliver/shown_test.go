package deliver_test

import (
	"errors"
	"fmt"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"google.golang.org/protobuf/types/known/timestamppb"

	"github.com/lifeboat-fleet/lifeboat/fleet/bus"
	lifeboatv1 "github.com/lifeboat-fleet/lifeboat/proto/lifeboat/v1"
	"github.com/lifeboat-fleet/lifeboat/services/notifier/internal/notice"
)

// shown is what stands in the chat: the last notice of each message.
func (l *lab) shown() map[string]notice.Notice {
	out := map[string]notice.Notice{}
	for _, m := range l.chat.messages() {
		out[m.ref.ID] = m.notice
	}
	return out
}

// last is the newest change in the chat.
func (l *lab) last() message {
	all := l.chat.messages()
	return all[len(all)-1]
}

// webhook stores a part of what Alertmanager said of a whole group.
func (l *lab) webhook(status string, part, parts int32, alerts ...*lifeboatv1.Alert) {
	l.t.Helper()
	_, err := l.bus.Publish(l.t.Context(), bus.Outgoing{Subject: bus.SubjectReceived, Message: &lifeboatv1.Notification{
		ReceivedAt: timestamppb.New(l.now()), Origin: "alertmanager", GroupKey: "g", Receiver: "lifeboat", Status: status, Part: part, Parts: parts,
		GroupLabels: map[string]string{"alertname": "Big"}, Alerts: alerts,
	}})
	require.NoError(l.t, err)
}

// The end of what flapped is told by itself: the group's message said that all had ended, while the other alert fired.
func TestTheEndOfWhatFlapsDoesNotEndItsGroup(t *testing.T) {
	t.Parallel()
	l := newLab(t, one+"\n  flapping: {changes: 2, window: 10m}\n")
	l.run("n1")
	l.send("g", alert("A", "firing", "critical"), alert("F", "firing", "warning"))
	l.waitEnded(map[string]int{"delivered": 2})
	for i, status := range []string{"resolved", "firing", "resolved"} {
		l.pass(30 * time.Second)
		f := alert("F", status, "warning")
		f.StartsAt.Seconds += int64(7200 * ((i + 1) / 2))
		l.send("g", alert("A", "firing", "critical"), f)
		l.wait("the ends", func() bool {
			e := l.ended()
			return e["delivered"]+e["folded"]+int(l.held()) >= 2*(i+2)
		})
	}
	l.pass(11 * time.Minute)
	l.wait("the sum", func() bool { return len(l.last().notice.Items) == 1 })
	m := l.last()
	require.Equal(t, "F", m.notice.Items[0].Name)
	require.NotEmpty(t, m.before.ID, "it changes the group's message")
	assert.Equal(t, notice.Firing, m.notice.Status)
	assert.Equal(t, "[FIRING:1] 2 alerts", m.notice.Title, "what ended does not stand there as what fires")
	assert.Equal(t, 1, m.notice.StillFires)
	assert.Empty(t, m.notice.Severity, "how bad the other one is does not stand in the state: it is red")

	l.send("g", alert("A", "resolved", "critical"))
	l.wait("the end", func() bool { return l.last().notice.Status == notice.Resolved })
	assert.Equal(t, m.before.ID, l.last().before.ID)
	assert.Zero(t, l.last().notice.StillFires)
}

// A webhook that is too large for one message comes in parts, what has ended in the last one: the message of all ended as "resolved".
func TestTheLastPartOfAWebhookDoesNotEndItsGroup(t *testing.T) {
	t.Parallel()
	l := newLab(t, one)
	l.run("n1")
	some := func(from int, status string) (out []*lifeboatv1.Alert) {
		for i := range 3 {
			a := alert("Big", status, "critical")
			a.Fingerprint = fmt.Sprint("f-", from+i)
			out = append(out, a)
		}
		return out
	}
	l.webhook("firing", 1, 2, some(0, "firing")...)
	l.webhook("firing", 2, 2, some(3, "firing")...)
	l.waitEnded(map[string]int{"delivered": 6})
	assert.Equal(t, "[FIRING:6] Big (critical)", l.last().notice.Title)
	l.webhook("firing", 1, 2, some(0, "firing")...)
	l.webhook("firing", 2, 2, some(3, "resolved")...)
	l.waitEnded(map[string]int{"delivered": 9, "folded": 3})
	require.Len(t, l.shown(), 1, "a group has one message")
	assert.Equal(t, "[FIRING:3] Big", l.last().notice.Title)
	assert.Equal(t, notice.Firing, l.last().notice.Status)
	assert.Equal(t, 3, l.last().notice.StillFires)

	// Alertmanager says that all of it has ended, and leaves out what somebody silenced: of that no end will ever be told.
	l.pass(time.Minute)
	l.webhook("resolved", 1, 1, some(0, "resolved")[:2]...)
	l.waitEnded(map[string]int{"delivered": 11, "folded": 3})
	assert.Equal(t, notice.Resolved, l.last().notice.Status)
	assert.Equal(t, "[RESOLVED:2] Big (critical)", l.last().notice.Title)
}

// What nothing was heard of for a day does not keep a group's message red for ever.
func TestWhatNeverEndsIsBelievedForADay(t *testing.T) {
	t.Parallel()
	l := newLab(t, one)
	l.run("n1")
	l.send("g", alert("A", "firing", "warning"), alert("B", "firing", "warning"), alert("C", "firing", "warning"))
	l.waitEnded(map[string]int{"delivered": 3})
	l.pass(time.Hour)
	l.send("g", alert("A", "resolved", "warning"))
	l.waitEnded(map[string]int{"delivered": 4})
	assert.Equal(t, notice.Firing, l.last().notice.Status)
	l.pass(24 * time.Hour)
	l.send("g", alert("B", "resolved", "warning"))
	l.waitEnded(map[string]int{"delivered": 5})
	assert.Equal(t, notice.Resolved, l.last().notice.Status)
}

// A repeat was a new message, and the one before stayed red when the alert ended.
func TestARepeatChangesTheMessageOfItsGroup(t *testing.T) {
	t.Parallel()
	l := newLab(t, one)
	l.run("n1")
	l.send("g", alert("A", "firing", "warning"))
	l.waitEnded(map[string]int{"delivered": 1})
	for i := range 2 {
		l.pass(5 * time.Hour)
		l.send("g", alert("A", "firing", "warning"))
		l.waitEnded(map[string]int{"delivered": 2 + i})
		require.Len(t, l.last().notice.Items, 1)
		assert.False(t, l.last().notice.Items[0].Told, "so that its thread rings")
	}
	l.pass(time.Minute)
	l.send("g", alert("A", "resolved", "warning"))
	l.waitEnded(map[string]int{"delivered": 4})
	require.Len(t, l.shown(), 1)
	for _, n := range l.shown() {
		assert.Equal(t, notice.Resolved, n.Status)
	}
}

// The end of an alert was told in a digest, and the message of its group stayed red. There are more of them than may be changed in a
// minute, and one change fails.
func TestADigestBringsTheMessagesOfItsGroupsUpToDate(t *testing.T) {
	t.Parallel()
	l := newLab(t, strings.Replace(one, "-1", "1000, per: 1m, reserve: 10", 1))
	l.run("n1")
	const groups = 38 // of 45 changes a minute, 15 are for those that tell something
	var quiet atomic.Int64
	l.digest(groups, func() error {
		if quiet.Add(1) == 1 {
			return errors.New("the chat answered 502")
		}
		return nil
	})
	l.wait("the first messages", func() bool { return len(l.red()) == groups-29 }) // one was tried twice
	l.waitQueued(0)
	// What comes now does not wait for the rest, and leaves nothing red behind it.
	name := l.red()[0].Items[0].Name
	again := alert(name, "firing", "warning")
	again.StartsAt.Seconds += 7200
	l.send("g"+strings.TrimPrefix(name, "A"), again)
	l.wait("it fires again", func() bool { return len(l.shown()) == groups+2 })
	assert.Greater(t, len(l.red()), 1)
	// The rest follows though nothing else comes.
	l.pass(2 * time.Minute)
	l.wait("all messages", func() bool { return len(l.red()) == 1 })
	assert.Equal(t, name, l.red()[0].Items[0].Name)
	assert.Equal(t, notice.Resolved, l.shown()[l.state("g0").GetMessage().GetId()].Status, "it is still its group's message")
	for _, n := range l.shown() {
		assert.False(t, n.Quiet && (n.Status != notice.Resolved || len(n.Mentions) > 0))
	}
}

// digest has a digest tell the ends of groups that were told to fire. quiet answers the changes of their messages that follow.
func (l *lab) digest(groups int, quiet func() error) {
	l.t.Helper()
	for i := range groups {
		l.send(fmt.Sprint("g", i), alert(fmt.Sprint("A", i), "firing", "warning"))
	}
	l.waitEnded(map[string]int{"delivered": groups})
	require.Len(l.t, l.shown(), groups)
	l.chat.rule(func(string, notice.Notice) error { return errors.New("the chat answered 500") })
	n := l.chat.requests()
	for i := range groups {
		l.send(fmt.Sprint("g", i), alert(fmt.Sprint("A", i), "resolved", "warning"))
	}
	l.wait("an attempt", func() bool { return l.chat.requests() > n })
	l.waitQueued(uint64(groups))
	l.pass(20 * time.Minute)
	l.chat.rule(func(_ string, n notice.Notice) error {
		if n.Quiet {
			return quiet()
		}
		return nil
	})
}

// red are the messages that say that something fires.
func (l *lab) red() (all []notice.Notice) {
	for _, n := range l.shown() {
		if n.Status == notice.Firing {
			all = append(all, n)
		}
	}
	return all
}

// Nobody waits for the changes that follow a digest, also when the chat takes none of them; and what it did not take it shows once it
// takes them again.
func TestNobodyWaitsForTheChangesAfterADigest(t *testing.T) {
	t.Parallel()
	l := newLab(t, strings.Replace(one, "-1", "1000, per: 1m, reserve: 10", 1))
	l.run("n1")
	const groups = 4
	var began atomic.Int64
	hangs := make(chan struct{})
	l.digest(groups, func() error {
		began.Add(1)
		<-hangs
		return errors.New("the chat answered 503")
	})
	l.wait("a change", func() bool { return began.Load() == 1 })
	for i := range 3 {
		l.send(fmt.Sprint("crit", i), alert(fmt.Sprint("C", i), "firing", "critical"))
	}
	l.wait("the critical ones", func() bool { return len(l.red()) == groups+3 })
	close(hangs)
	l.wait("another try", func() bool { return began.Load() > 1 })
	l.chat.rule(nil)
	l.pass(time.Hour)
	l.wait("green", func() bool { return len(l.red()) == 3 })
}

// The message of an event stands there once, also when its details could not be posted at first.
func TestAnEventIsPostedOnce(t *testing.T) {
	t.Parallel()
	l := newLab(t, one)
	l.run("n1")
	var tries atomic.Int64
	l.chat.rule(func(string, notice.Notice) error {
		if tries.Add(1) <= 2 {
			return errors.New("the thread failed")
		}
		return nil
	})
	l.send("g", alert("Passed", "event", "info"))
	l.waitEnded(map[string]int{"delivered": 1})
	assert.EqualValues(t, 3, tries.Load())
	assert.Len(t, l.shown(), 1)
}

// The second event of a kind changed the message of the first one, which nobody notices.
func TestEveryEventIsPosted(t *testing.T) {
	t.Parallel()
	l := newLab(t, one)
	l.run("n1")
	l.send("g", alert("A", "firing", "warning"))
	l.waitEnded(map[string]int{"delivered": 1})
	for i := range 2 {
		e := alert("Passed", "event", "info")
		e.StartsAt.Seconds += int64(i)
		l.send("g", e)
		l.waitEnded(map[string]int{"delivered": 2 + i})
		assert.Zero(t, l.last().before)
		assert.Equal(t, notice.Event, l.last().notice.Status)
	}
	l.send("g", alert("A", "resolved", "warning"))
	l.waitEnded(map[string]int{"delivered": 4})
	assert.Equal(t, "1", l.last().before.ID, "the group keeps its message")
	assert.Len(t, l.shown(), 3)
}
