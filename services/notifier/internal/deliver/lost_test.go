package deliver_test

import (
	"errors"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/timestamppb"

	"github.com/lifeboat-fleet/lifeboat/fleet/bus"
	lifeboatv1 "github.com/lifeboat-fleet/lifeboat/proto/lifeboat/v1"
	"github.com/lifeboat-fleet/lifeboat/services/notifier/internal/deliver"
	"github.com/lifeboat-fleet/lifeboat/services/notifier/internal/notice"
)

// put stores a delivery, as the router or the sweeper does.
func (l *lab) put(subject string, d *lifeboatv1.Delivery) {
	l.t.Helper()
	_, err := l.bus.Publish(l.t.Context(), bus.Outgoing{Subject: subject, Message: d})
	require.NoError(l.t, err)
}

func (l *lab) delivery(id, group string, alerts ...*lifeboatv1.Alert) *lifeboatv1.Delivery {
	return &lifeboatv1.Delivery{Id: id, Receiver: "one", Notification: &lifeboatv1.Notification{
		ReceivedAt: timestamppb.New(l.now()), Origin: "alertmanager", GroupKey: group, Receiver: "lifeboat", Alerts: alerts,
	}}
}

// state is what receiver one was told of a group.
func (l *lab) state(group string) *lifeboatv1.Group {
	l.t.Helper()
	g := &lifeboatv1.Group{}
	_, _, err := l.bus.Last(l.t.Context(), bus.StreamAlerts, bus.GroupSubject("one", deliver.GroupName(group, "lifeboat")), g)
	require.NoError(l.t, err)
	return g
}

func (l *lab) putState(group string, told ...*lifeboatv1.Told) {
	l.t.Helper()
	_, err := l.bus.PutState(l.t.Context(), bus.State{Outgoing: bus.Outgoing{
		Subject: bus.GroupSubject("one", deliver.GroupName(group, "lifeboat")), Message: &lifeboatv1.Group{GroupKey: group, Alerts: told},
	}})
	require.NoError(l.t, err)
}

func (l *lab) held() uint64 {
	subjects, err := l.bus.Subjects(l.t.Context(), bus.StreamAlerts, bus.HeldSubject(">"))
	if err != nil {
		return 0
	}
	return subjects[bus.HeldSubject("one")]
}

// Two alerts of one group that were told within one second flap: the second one was dropped as a duplicate of the first.
func TestEverythingThatFlapsIsPutBy(t *testing.T) {
	t.Parallel()
	l := newLab(t, one+"\n  flapping: {changes: 2, window: 10m}\n")
	at := l.now().Add(-time.Minute).Truncate(time.Second)
	told := func(name string, ms int64) *lifeboatv1.Told {
		a := alert(name, "firing", "warning")
		stamp := timestamppb.New(at.Add(time.Duration(ms) * time.Millisecond))
		return &lifeboatv1.Told{
			Fingerprint: a.GetFingerprint(), StartsAt: a.GetStartsAt(), Status: "firing", ToldStatus: "firing", ToldAt: stamp,
			Changes: []*timestamppb.Timestamp{stamp, stamp, stamp},
		}
	}
	l.putState("g", told("A", 100), told("B", 200))
	l.run("n1")
	l.send("g", alert("A", "resolved", "warning"), alert("B", "resolved", "warning"))
	l.wait("what flaps", func() bool { _, ended := l.ended()["folded"]; return ended })
	assert.Equal(t, uint64(2), l.held())
	l.pass(11 * time.Minute)
	l.waitEnded(map[string]int{"folded": 0, "delivered": 2})
}

// What flaps was kept back for as long as anything else of its group was held: here until tomorrow.
func TestWhatFlapsDoesNotWaitForATimeInterval(t *testing.T) {
	t.Parallel()
	l := newLab(t, muting(one))
	flaps, muted := l.delivery("flaps", "g", alert("Flaps", "resolved", "critical")), l.delivery("muted", "g", alert("Muted", "firing", "warning"))
	flaps.HeldUntil = timestamppb.New(l.now().Add(-time.Second))
	muted.ActiveTimeIntervals = []string{"tomorrow"}
	l.put(bus.HeldSubject("one"), muted)
	l.put(bus.HeldSubject("one"), flaps)
	l.run("n1")
	l.waitEnded(map[string]int{"delivered": 1})
	assert.Contains(t, l.chat.titles()[0], "Flaps")
	l.wait("that it is held no more", func() bool { return l.held() == 1 })
}

func muting(notifier string) string {
	return strings.Replace(notifier, "  route:", `  time_intervals:
    - name: tomorrow
      time_intervals: [{days_of_month: ["`+fmt.Sprint(time.Now().UTC().Add(24*time.Hour).Day())+`"]}]
  route:`, 1)
}

// Alerts without a fingerprint, and events of one, were taken for one alert when they were brought back. And what ended and fires on
// with the same start was told to have ended.
func TestNothingHeldIsLost(t *testing.T) {
	t.Parallel()
	l := newLab(t, muting(one))
	bare := func(name string) *lifeboatv1.Alert {
		a := alert(name, "firing", "warning")
		a.Fingerprint = ""
		return a
	}
	happened := func(second int64) *lifeboatv1.Alert {
		a := alert("Event", "event", "info")
		a.StartsAt.Seconds += second
		return a
	}
	on := alert("On", "firing", "warning")
	l.putState("g", &lifeboatv1.Told{
		Fingerprint: on.GetFingerprint(), StartsAt: on.GetStartsAt(), Status: "firing", ToldStatus: "firing", ToldAt: timestamppb.New(l.now().Add(-8 * time.Hour)),
	})
	var all []*lifeboatv1.Delivery
	for i, alerts := range [][]*lifeboatv1.Alert{
		{bare("A"), bare("B"), bare("C"), happened(1), alert("On", "resolved", "warning")}, {happened(2), happened(3), on}, {happened(3 + 1)},
	} {
		d := l.delivery(fmt.Sprint("held-", i), "g", alerts...)
		d.ActiveTimeIntervals = []string{"tomorrow"}
		d.Notification.ReceivedAt = timestamppb.New(l.now().Add(time.Duration(i-4) * time.Hour))
		all = append(all, d)
	}
	for _, d := range all {
		l.put(bus.HeldSubject("one"), d)
	}
	l.pass(24 * time.Hour)
	l.run("n1")
	l.waitEnded(map[string]int{"delivered": 8, "folded": 1})
	require.Len(t, l.chat.messages(), 1)
	assert.Equal(t, notice.Firing, l.chat.messages()[0].notice.Status)
	for _, told := range l.state("g").GetAlerts() {
		assert.NotEqual(t, "resolved", told.GetToldStatus())
	}
}

// What comes out of a time interval is older than fallback_after at once: it was all handed on when there was no room for a moment.
func TestWhatWasMutedIsNotHandedOnForThat(t *testing.T) {
	t.Parallel()
	l := newLab(t, strings.Replace(two, "-1", "2, per: 3s, reserve: -1", 1))
	for i := range 4 {
		d := l.delivery(fmt.Sprint("held-", i), fmt.Sprint("g", i), alert(fmt.Sprint("A", i), "firing", "warning"))
		d.MuteTimeIntervals = []string{"over"} // nobody knows it any more
		d.Notification.ReceivedAt = timestamppb.New(l.now().Add(-8 * time.Hour))
		l.put(bus.HeldSubject("one"), d)
	}
	l.run("n1")
	l.waitEnded(map[string]int{"delivered": 4})
	for _, m := range l.chat.messages() {
		assert.Equal(t, "one", m.receiver)
	}
}

// A merged message mentions whom any of its deliveries mentions, not only those of the last.
func TestNobodyIsForgottenInAMergedMessage(t *testing.T) {
	t.Parallel()
	l := newLab(t, one)
	down := make(chan struct{})
	l.chat.rule(func(string, notice.Notice) error {
		select {
		case <-down:
			return nil
		default:
			return errors.New("the chat answered 502")
		}
	})
	l.run("n1")
	first := l.delivery("first", "g", alert("A", "firing", "critical"))
	first.Mentions = []string{"oncall"}
	l.put(bus.CriticalSubject("one"), first)
	l.wait("an attempt", func() bool { return l.chat.requests() > 0 })
	l.put(bus.DeliverySubject("one"), l.delivery("second", "g", alert("B", "resolved", "info")))
	close(down)
	l.waitEnded(map[string]int{"delivered": 2})
	require.Len(t, l.chat.messages(), 1)
	assert.Equal(t, []string{"oncall"}, l.chat.messages()[0].notice.Mentions)
}

// The same messages are not sent of another content: what was sent of the first three parts is not what the first three are now.
func TestAnotherPartitionBeginsAnew(t *testing.T) {
	t.Parallel()
	l := newLab(t, one)
	l.chat.parts = 3
	l.chat.rule(func(_ string, n notice.Notice) error {
		if n.Footer == "part 3" {
			return errors.New("the connection broke")
		}
		return nil
	})
	stop := l.run("n1")
	l.send("g", alert("A", "firing", "warning"))
	l.wait("the failure", func() bool { return l.chat.requests() >= 3 })
	stop()
	l.chat.rule(nil)
	l.chat.mu.Lock()
	l.chat.parts = 2 // a person changed the template
	l.chat.mu.Unlock()
	l.run("n2")
	l.waitEnded(map[string]int{"delivered": 1})
	var parts []string
	for _, m := range l.chat.messages() {
		parts = append(parts, m.notice.Footer)
	}
	assert.Equal(t, []string{"part 1", "part 2", "part 1", "part 2"}, parts)
}

// After an attempt whose end is not known, what was muted and ended is told: people may believe that it fires.
func TestWhatMayHaveBeenToldIsToldToHaveEnded(t *testing.T) {
	t.Parallel()
	l := newLab(t, one)
	lost := make(chan struct{})
	l.chat.rule(func(string, notice.Notice) error {
		select {
		case <-lost:
			return nil
		default:
			return errors.New("the answer was lost")
		}
	})
	muted := l.delivery("one", "g", alert("A", "firing", "warning"))
	muted.HeldFor = "held by time interval nights"
	l.put(bus.DeliverySubject("one"), muted)
	l.run("n1")
	l.wait("an attempt", func() bool { return l.chat.requests() > 0 })
	ended := proto.CloneOf(muted)
	ended.Id, ended.Notification.Alerts = "two", []*lifeboatv1.Alert{alert("A", "resolved", "warning")}
	l.put(bus.DeliverySubject("one"), ended)
	l.waitQueued(2)
	close(lost)
	l.waitEnded(map[string]int{"delivered": 2})
	last := l.chat.messages()[len(l.chat.messages())-1].notice
	assert.Equal(t, notice.Resolved, last.Status)
}

// While NATS took no states, the chat was sent the same message again every few seconds.
func TestAStateThatCannotBeWrittenFloodsNobody(t *testing.T) {
	t.Parallel()
	l := newLab(t, one)
	l.refuses.Store(6)
	l.run("n1")
	l.send("g", alert("A", "firing", "warning"))
	l.waitEnded(map[string]int{"delivered": 1})
	require.Eventually(t, func() bool { return len(l.state("g").GetAlerts()) == 1 }, patience, 10*time.Millisecond)
	l.send("g", alert("A", "resolved", "warning"))
	l.waitEnded(map[string]int{"delivered": 2})
	assert.Len(t, l.chat.messages(), 2, l.chat.titles())
}

func TestWhatIsHeldAndCannotBeReadIsADeadLetter(t *testing.T) {
	t.Parallel()
	l := newLab(t, one)
	_, err := l.bus.PublishRaw(t.Context(), bus.HeldSubject("one"), []byte(`{"id":"empty"}`), nil, "")
	require.NoError(t, err)
	l.run("n1")
	l.wait("the letter", func() bool { return len(l.letters()) == 1 })
	assert.Equal(t, bus.HeldSubject("one"), l.letters()[0].GetSubject())
	assert.Contains(t, l.letters()[0].GetReason(), "holds no alerts")
	require.Eventually(t, func() bool {
		left, err := l.bus.Subjects(t.Context(), bus.StreamAlerts, bus.HeldSubject(">"))
		return err == nil && len(left) == 0
	}, patience, 10*time.Millisecond)
}

// The fallback was given both the beginning and the end: later ends are not its business.
func TestTheFallbackHearsOnlyTheEndOfWhatItTookOver(t *testing.T) {
	t.Parallel()
	l := newLab(t, two)
	l.chat.rule(func(receiver string, _ notice.Notice) error {
		if receiver == "one" {
			return bus.Terminal("refused", errors.New("one answered 403"))
		}
		return nil
	})
	l.run("n1")
	l.send("g", alert("A", "firing", "critical"))
	l.wait("its beginning", func() bool { return len(l.chat.messages()) == 1 })
	l.send("g", alert("A", "resolved", "critical"))
	l.wait("its end", func() bool { return len(l.chat.messages()) == 2 })
	l.chat.rule(nil)
	again := alert("A", "firing", "critical")
	again.StartsAt.Seconds += 7200
	l.send("g", again)
	ended := alert("A", "resolved", "critical")
	ended.StartsAt.Seconds += 7200
	ended.EndsAt.Seconds += 7200
	l.wait("it in the first one again", func() bool { return len(l.chat.messages()) == 3 })
	l.send("g", ended)
	l.waitEnded(map[string]int{"handed-on": 2, "delivered": 4})
	for i, m := range l.chat.messages() {
		assert.Equal(t, map[bool]string{true: "two", false: "one"}[i < 2], m.receiver, l.chat.titles())
	}
}
