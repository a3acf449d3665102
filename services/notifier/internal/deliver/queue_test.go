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

	"github.com/lifeboat-fleet/lifeboat/fleet/bus"
	"github.com/lifeboat-fleet/lifeboat/services/notifier/internal/notice"
)

const one = `
  receivers: [{name: one, slack: {webhook_url_file: a}, limit: {messages: -1}}]
  route: {receiver: one}
`

func TestAGroupIsToldInOrderAndOnce(t *testing.T) {
	t.Parallel()
	l := newLab(t, one)
	l.send("g", alert("A", "firing", "warning"))
	l.send("g", alert("A", "firing", "warning"))                                    // Alertmanager's other replica
	l.send("g", alert("A", "firing", "warning"), alert("B", "firing", "warning"))   // one more
	l.send("g", alert("A", "resolved", "warning"), alert("B", "firing", "warning")) // one less
	l.send("g", alert("A", "firing", "warning"))                                    // late
	l.send("g", alert("A", "resolved", "warning"), alert("B", "resolved", "warning"))
	l.run("n1")
	l.waitEnded(map[string]int{"delivered": 7, "folded": 2})
	sent := l.chat.messages()
	require.Len(t, sent, 4, l.chat.titles())
	assert.Equal(t, []notice.Status{notice.Firing, notice.Firing, notice.Firing, notice.Resolved},
		[]notice.Status{sent[0].notice.Status, sent[1].notice.Status, sent[2].notice.Status, sent[3].notice.Status})
	assert.Zero(t, sent[0].before)
	for _, m := range sent[1:] {
		assert.Equal(t, sent[0].ref.ID, m.before.ID, "a group's message is edited")
	}
	// It fires again: nobody would see the change of an old message.
	again := alert("A", "firing", "warning")
	again.StartsAt.Seconds += 7200
	l.send("g", again)
	l.wait("the message", func() bool { return len(l.chat.messages()) == 5 })
	assert.Zero(t, l.chat.messages()[4].before)
}

func TestWhatWaitedIsToldCriticalFirstAndInADigest(t *testing.T) {
	t.Parallel()
	l := newLab(t, strings.ReplaceAll(one, "-1", "5, per: 2s"))
	l.chat.rule(func(string, notice.Notice) error {
		return bus.RetryAfter(20*time.Minute, fmt.Errorf("429: %w", notice.ErrThrottled))
	})
	l.run("n1")
	total := 0
	for i := range 60 {
		severity := "warning"
		if i%20 == 19 {
			severity = "critical"
		}
		l.send(fmt.Sprintf("g%d", i), alert(fmt.Sprintf("A%d", i), "firing", severity), alert(fmt.Sprintf("B%d", i), "firing", "info"))
		total += 2
	}
	l.wait("the first attempt", func() bool { return l.chat.requests() == 1 })
	l.waitQueued(60)
	l.chat.rule(nil)
	l.pass(21 * time.Minute)
	l.waitEnded(map[string]int{"delivered": total})
	assert.LessOrEqual(t, len(l.chat.messages()), 10, l.chat.titles())
	var digests, alone int
	for i, m := range l.chat.messages() {
		if !m.notice.Digest {
			alone++
			assert.Equal(t, "critical", m.notice.Severity)
			assert.Less(t, i, 3, "criticals come first: %v", l.chat.titles())
			assert.Contains(t, m.notice.Late, "Slack throttled")
			continue
		}
		digests++
		assert.Contains(t, m.notice.Title+m.notice.Late, "Slack throttled")
	}
	assert.Equal(t, 3, alone)
	assert.Positive(t, digests)
	assert.Equal(t, 1+len(l.chat.messages()), l.chat.requests(), "a throttled chat is left alone")
	// What follows is told as usual.
	l.send("later", alert("Later", "firing", "warning"))
	l.wait("the message", func() bool { return strings.Contains(strings.Join(l.chat.titles(), " "), "Later") })
	last := l.chat.messages()[len(l.chat.messages())-1]
	assert.Empty(t, last.notice.Late)
	assert.False(t, last.notice.Digest)
}

const two = `
  receivers:
    - {name: one, slack: {webhook_url_file: a}, limit: {messages: -1}, fallback: two, fallback_after: 10m}
    - {name: two, slack: {webhook_url_file: b}, limit: {messages: -1}, fallback: three}
    - {name: three, slack: {webhook_url_file: b}, limit: {messages: -1}}
  route: {receiver: one}
`

func TestTheFallbackTakesOver(t *testing.T) {
	t.Parallel()
	l := newLab(t, two)
	l.chat.rule(func(receiver string, _ notice.Notice) error {
		if receiver == "one" {
			return errors.New("the chat answered 503")
		}
		return nil
	})
	l.run("n1")
	l.send("g", alert("A", "firing", "critical"))
	l.send("h", alert("B", "firing", "warning"))
	l.wait("the first attempts", func() bool { return l.chat.requests() >= 2 })
	assert.Empty(t, l.chat.messages())
	l.pass(11 * time.Minute)
	l.waitEnded(map[string]int{"handed-on": 2, "delivered": 2})
	for _, m := range l.chat.messages() {
		assert.Equal(t, "two", m.receiver)
		assert.Contains(t, m.notice.Late, "503")
	}
	// The first one is well again and hears that it has ended. So does who was told that it fires.
	// What comes in the same turn, or while the chat is left alone, would be handed on as well: by this clock it is eleven minutes old.
	l.waitQueued(0)
	l.pass(time.Minute)
	l.chat.rule(nil)
	l.send("g", alert("A", "resolved", "critical"))
	l.wait("the end in both", func() bool {
		told := map[string]bool{}
		for _, m := range l.chat.messages() {
			told[m.receiver] = told[m.receiver] || m.notice.Status == notice.Resolved
		}
		return told["one"] && told["two"]
	})
	// Once is enough.
	l.send("g", alert("A", "resolved", "critical"))
	l.waitEnded(map[string]int{"handed-on": 2, "delivered": 4, "folded": 1})
}

func TestARefusalGoesToTheFallbackAtOnceAndElseIntoTheDeadLetters(t *testing.T) {
	t.Parallel()
	l := newLab(t, two)
	l.chat.rule(func(receiver string, _ notice.Notice) error {
		return bus.Terminal("refused", fmt.Errorf("%s answered 403 action_prohibited", receiver))
	})
	l.run("n1")
	l.send("g", alert("A", "firing", "critical"))
	l.waitEnded(map[string]int{"handed-on": 2, "dead": 1})
	l.wait("the letter", func() bool { return len(l.letters()) == 1 })
	assert.Equal(t, "lifeboat.alert.delivery.three.critical", l.letters()[0].GetSubject())
	assert.Contains(t, l.letters()[0].GetReason(), "three answered 403 action_prohibited")
}

func TestADigestThatIsRefusedIsSentOneByOne(t *testing.T) {
	t.Parallel()
	l := newLab(t, strings.ReplaceAll(one, "-1", "50, per: 1m"))
	var down atomic.Bool
	down.Store(true)
	l.chat.rule(func(_ string, n notice.Notice) error {
		switch {
		case down.Load():
			return bus.RetryAfter(5*time.Minute, notice.ErrThrottled)
		case n.Digest || strings.Contains(n.Title, "A7"):
			return bus.Terminal("invalid", errors.New("invalid_blocks"))
		}
		return nil
	})
	l.run("n1")
	for i := range 12 {
		l.send(fmt.Sprintf("g%d", i), alert(fmt.Sprintf("A%d", i), "firing", "warning"))
	}
	l.wait("the first attempt", func() bool { return l.chat.requests() == 1 })
	l.waitQueued(12)
	down.Store(false)
	l.pass(6 * time.Minute)
	l.waitEnded(map[string]int{"delivered": 11, "dead": 1})
	assert.Len(t, l.chat.messages(), 11)
}

func TestAMessageOfSeveralPartsGoesOnWhereItWas(t *testing.T) {
	t.Parallel()
	l := newLab(t, one)
	l.chat.parts = 3
	fail := make(chan struct{})
	l.chat.rule(func(_ string, n notice.Notice) error {
		select {
		case <-fail:
			return nil
		default:
		}
		if n.Footer == "part 2" {
			return errors.New("the connection broke")
		}
		return nil
	})
	stop := l.run("n1")
	l.send("g", alert("A", "firing", "warning"))
	l.wait("the failure", func() bool { return l.chat.requests() >= 2 })
	stop() // a successor knows how far it came
	close(fail)
	l.run("n2")
	l.waitEnded(map[string]int{"delivered": 1})
	var parts []string
	for _, m := range l.chat.messages() {
		parts = append(parts, m.notice.Footer)
	}
	assert.Equal(t, []string{"part 1", "part 2", "part 3"}, parts)
}

func TestWhatIsMutedIsToldAfterwardsIfItStillFires(t *testing.T) {
	t.Parallel()
	l := newLab(t, `
  receivers: [{name: one, slack: {webhook_url_file: a}, limit: {messages: -1}}]
  time_intervals:
    - name: tomorrow
      time_intervals: [{days_of_month: ["`+fmt.Sprint(time.Now().UTC().Add(24*time.Hour).Day())+`"]}]
  route:
    receiver: one
    routes: [{matchers: ['severity!="critical"'], active_time_intervals: [tomorrow]}]
`)
	l.run("n1")
	l.send("g", alert("Stays", "firing", "warning"), alert("Ends", "firing", "warning"), alert("Urgent", "firing", "critical"))
	l.send("g", alert("Ends", "resolved", "warning"))
	l.waitEnded(map[string]int{"delivered": 1})
	require.Eventually(t, func() bool { return l.held() == 2 }, patience, 10*time.Millisecond)
	assert.Contains(t, l.chat.titles()[0], "Urgent")
	l.pass(24 * time.Hour)
	l.wait("what was held", func() bool { return len(l.chat.messages()) == 2 })
	m := l.chat.messages()[1]
	assert.Contains(t, m.notice.Title, "Stays")
	assert.Contains(t, m.notice.Late, "tomorrow")
	assert.Len(t, m.notice.Items, 1)
}

func TestWhatFlapsIsToldInSum(t *testing.T) {
	t.Parallel()
	l := newLab(t, one+"\n  flapping: {changes: 3, window: 10m}\n")
	l.run("n1")
	sent := 0
	for i := range 5 {
		a := alert("Flappy", "firing", "warning")
		a.StartsAt.Seconds += int64(i)
		l.send("g", a)
		b := alert("Flappy", "resolved", "warning")
		b.StartsAt.Seconds += int64(i)
		l.send("g", b)
		sent += 2
	}
	l.wait("the first ones", func() bool { return len(l.chat.messages()) >= 3 })
	l.wait("the others to be put by", func() bool { return l.ended()["folded"]+l.ended()["delivered"]+int(l.held()) >= sent })
	l.pass(11 * time.Minute)
	l.wait("the sum", func() bool {
		all := l.chat.messages()
		last := all[len(all)-1].notice
		return len(last.Items) == 1 && strings.Contains(last.Items[0].Note, "flapped") && last.Status == notice.Resolved
	})
	assert.Less(t, len(l.chat.messages()), sent)
}

func TestTooOldIsADeadLetter(t *testing.T) {
	t.Parallel()
	l := newLab(t, one+"\n  give_up_after: 1h\n")
	l.chat.rule(func(string, notice.Notice) error { return errors.New("the chat answered 502") })
	l.run("n1")
	l.send("g", alert("A", "firing", "critical"))
	l.send("h", alert("B", "firing", "warning"))
	l.wait("an attempt", func() bool { return l.chat.requests() >= 1 })
	l.pass(2 * time.Hour)
	l.waitEnded(map[string]int{"dead": 2})
	for _, d := range l.letters() {
		assert.Contains(t, d.GetReason(), "not delivered within 1h0m0s: ")
		assert.Contains(t, d.GetReason(), "502")
	}
}

func TestTwoNotifiersTellEverythingOnce(t *testing.T) {
	t.Parallel()
	l := newLab(t, one)
	l.run("n1")
	stop := l.run("n2")
	const each = 40
	for i := range each {
		l.send(fmt.Sprintf("g%d", i), alert(fmt.Sprintf("A%d", i), "firing", "warning"))
		if i == each/2 {
			stop()
		}
	}
	l.waitEnded(map[string]int{"delivered": each})
	assert.Len(t, l.chat.messages(), each, "a stop waits for the answer of what it is sending")
}
