package deliver_test

import (
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/lifeboat-fleet/lifeboat/fleet/bus"
	"github.com/lifeboat-fleet/lifeboat/services/notifier/internal/notice"
)

// One critical message that a chat answers with a 500 each time kept everything else waiting until it was given up.
func TestWhatAlwaysFailsDoesNotKeepTheOthersWaiting(t *testing.T) {
	t.Parallel()
	l := newLab(t, one)
	l.chat.rule(func(_ string, n notice.Notice) error {
		if strings.Contains(n.Title, "Poison") {
			return errors.New("the chat answered 500")
		}
		return nil
	})
	l.run("n1")
	l.send("poison", alert("Poison", "firing", "critical"))
	l.wait("an attempt", func() bool { return l.chat.requests() > 0 })
	for i := range 3 {
		l.send(fmt.Sprint("g", i), alert(fmt.Sprint("A", i), "firing", "warning"))
	}
	l.waitEnded(map[string]int{"delivered": 3})
	l.chat.rule(nil)
	l.waitEnded(map[string]int{"delivered": 4})
}

// A chat that hangs ran into the deadline of the budget's own record, so that nobody ever learned that the chat does not answer, and
// the fallback never took over.
func TestTheFallbackTakesOverFromAChatThatHangs(t *testing.T) {
	t.Parallel()
	l := newLab(t, strings.Replace(two, "-1", "20, per: 1m", 1))
	l.chat.hang("one")
	l.run("n1")
	l.send("g", alert("A", "firing", "critical"))
	l.wait("the first attempt", func() bool { return l.chat.requests() >= 1 })
	l.pass(11 * time.Minute)
	l.waitEnded(map[string]int{"handed-on": 1, "delivered": 1})
	assert.Equal(t, "two", l.chat.messages()[0].receiver)
}

// Trouble that ended within seconds stayed in the budget, as the reason of everything that came late afterwards.
func TestTroubleThatIsOverIsForgotten(t *testing.T) {
	t.Parallel()
	l := newLab(t, strings.ReplaceAll(one, "-1", "50, per: 1m"))
	failed := false
	l.chat.rule(func(string, notice.Notice) error {
		if failed {
			return nil
		}
		failed = true
		return errors.New("the connection broke")
	})
	l.run("n1")
	l.send("g", alert("A", "firing", "warning"))
	l.waitEnded(map[string]int{"delivered": 1})
	require.Eventually(t, func() bool { return l.trouble("chat-one") == "" }, patience, 10*time.Millisecond)
}

// Criticals that never cease kept everything else waiting.
func TestOthersGetATurnBetweenCriticals(t *testing.T) {
	t.Parallel()
	l := newLab(t, strings.ReplaceAll(one, "-1", "2, per: 4s, reserve: 1"))
	down := true
	l.chat.rule(func(string, notice.Notice) error {
		if down {
			down = false
			return bus.RetryAfter(6*time.Minute, notice.ErrThrottled)
		}
		l.pass(40 * time.Second)
		return nil
	})
	l.run("n1")
	l.send("first", alert("First", "firing", "critical"))
	l.wait("the first attempt", func() bool { return l.chat.requests() == 1 })
	for i := range 20 {
		l.send(fmt.Sprint("g", i), alert(fmt.Sprint("A", i), "firing", []string{"critical", "warning"}[i/15]))
	}
	l.waitQueued(21)
	l.pass(7 * time.Minute)
	l.waitEnded(map[string]int{"delivered": 21})
	sent := l.chat.messages()
	i := slices.IndexFunc(sent, func(m message) bool { return m.notice.Severity == "warning" })
	assert.True(t, i > 1 && i < 6, "they come as number %d of %d", i, len(sent))
	assert.True(t, sent[i].notice.Digest)
}

// A receiver that cannot be prepared kept all alerts of all receivers from being routed.
func TestABrokenReceiverIsNobodyElsesMatter(t *testing.T) {
	t.Parallel()
	l := newLab(t, two)
	l.broken = "one"
	l.run("n1")
	l.send("g", alert("A", "firing", "warning"))
	l.waitQueued(1)
	l.pass(11 * time.Minute)
	l.waitEnded(map[string]int{"handed-on": 1, "delivered": 1})
}
