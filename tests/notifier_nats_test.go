package tests

import (
	"bytes"
	"fmt"
	"slices"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/lifeboat-fleet/lifeboat/fleet/fleettest/chattest"
)

// NATS is killed with -9 in the middle of a stream of alerts and comes back with what it had.
func TestNotifierWhenNATSIsKilledMidStream(t *testing.T) {
	t.Parallel()
	d := newDesk(t, chattest.Options{NoLimits: true}, looseLimits)
	d.run()
	names, done := d.stream(60, 50*time.Millisecond)
	var kills []time.Time
	for _, messages := range []int{10, 70} {
		d.seen("the stream", func(all []chattest.Message) bool { return len(all) >= messages })
		require.NoError(t, d.nats.Kill())
		kills = append(kills, time.Now())
		require.NoError(t, d.nats.Restart(t.Context()))
	}
	require.NoError(t, <-done)
	// What was stored without an answer is stored again: the server that died knew its ids. It is folded.
	d.accounted(bothChats(), names, len(names)+2*10)
	for _, k := range bothChats() {
		t.Logf("%s: %d alerts told twice in %d kills", k, d.twice(k, names, kills), len(kills))
	}
	assert.Empty(t, d.letters())
	d.unseen()
}

// NATS is away for half a minute. Webhooks are answered with 503, so that Alertmanager comes again, and nothing is lost.
func TestNotifierWhileNATSIsAway(t *testing.T) {
	t.Parallel()
	d := newDesk(t, chattest.Options{NoLimits: true}, looseLimits)
	d.run()
	am := d.alertmanager("http://"+d.hook+"/api/v1/alertmanager", "")
	d.sends(hookOf(t, "Before", fires("Before", "warning")))
	d.seen("the first", func([]chattest.Message) bool { return len(d.naming(chattest.Slack, "Before")) == 1 })
	require.Eventually(t, func() bool { return d.waiting() == 0 }, time.Minute, 50*time.Millisecond) // and it is recorded
	require.NoError(t, d.nats.Kill())
	back := time.After(30 * time.Second)
	assert.Equal(t, 503, d.ask(bytes.NewReader(hookOf(t, "Meanwhile", fires("Meanwhile", "warning"))), ""))
	d.tellAlertmanager(am, diskFull("db-1", false))
	names, done := d.stream(10, 200*time.Millisecond)
	<-back
	require.Empty(t, done, "something was taken while NATS was away")
	require.NoError(t, d.nats.Restart(t.Context()))
	require.NoError(t, <-done)
	d.seen("Alertmanager's own retry", func([]chattest.Message) bool { return len(d.naming(chattest.Slack, "DiskFull")) > 0 })
	require.Eventually(t, func() bool { return d.waiting() == 0 }, alertPatience, 100*time.Millisecond)
	// What is refused with 503 may have been stored: nobody knows, so it has to come again, and would be stored once.
	refused := len(d.naming(chattest.Slack, "Meanwhile"))
	assert.LessOrEqual(t, refused, 1)
	for _, name := range append(names, "Before", "DiskFull") {
		for _, k := range bothChats() {
			assert.Len(t, d.naming(k, name), 1, "%s at %s", name, k)
		}
	}
	all := d.tally()
	for receiver := range bothChats() {
		assert.Equal(t, 12+refused, all[receiver]["delivered"], "%s: %v", receiver, all[receiver])
	}
	assert.Empty(t, d.letters())
	d.unseen()
}

// oneRobot are two receivers that post into the same group of DingTalk.
const oneRobot = `
  receivers:
    - {name: robot-a, dingtalk: {webhook_url_file: dingtalk, secret_file: dingtalk-secret}}
    - {name: robot-b, dingtalk: {webhook_url_file: dingtalk, secret_file: dingtalk-secret}}
  route:
    receiver: robot-a
    routes:
      - {receiver: robot-b, matchers: ['alertname=~"Storm.*Odd"']}
`

// A storm of 300 alerts meets two notifiers, two receivers and one robot, which takes 20 messages a minute and is deaf for ten minutes
// after the 21st. The notifier that holds the heads of both queues is killed with -9. The robot is never asked too often, and all is told.
func TestTwoNotifiersShareTheBudgetOfOneRobot(t *testing.T) {
	t.Parallel()
	d := newDesk(t, chattest.Options{}, oneRobot)
	names := map[string][]string{}
	post := func(i int) {
		receiver, kind := "robot-a", "Even"
		if i%2 == 1 {
			receiver, kind = "robot-b", "Odd"
		}
		name := fmt.Sprintf("Storm%03d%s", i, kind)
		names[receiver] = append(names[receiver], name)
		d.sends(hookOf(t, name, fires(name, []string{"critical", "warning"}[min(i%10, 1)])))
	}
	holder := d.run()
	for i := range 100 { // until it has nothing left to send with
		post(i)
	}
	require.Eventually(t, func() bool { return d.chat.Requests(chattest.DingTalk) >= 18 }, 60*time.Second, 50*time.Millisecond)
	for i := 100; i < 150; i++ {
		post(i)
	}
	d.elsewhere()
	d.run()
	require.NoError(t, holder.Kill())
	killed := time.Now()
	for i := 150; i < 300; i++ {
		post(i)
	}
	d.accounted(map[string]chattest.Kind{"robot-a": chattest.DingTalk, "robot-b": chattest.DingTalk}, nil, 150)
	all := d.tally()
	for receiver, told := range names {
		assert.Len(t, told, 150)
		assert.Equal(t, 150, all.ended(receiver), "%s: %v", receiver, all[receiver])
		for _, name := range told {
			assert.NotEmpty(t, d.naming(chattest.DingTalk, name), "%s never reached %s", name, receiver)
		}
	}
	again := d.twice(chattest.DingTalk, slices.Concat(names["robot-a"], names["robot-b"]), []time.Time{killed})
	messages := d.chat.Messages()
	t.Logf("%d messages in %s, %d alerts told twice", len(messages), time.Since(messages[0].Time), again)
	assert.Equal(t, len(messages), d.chat.Requests(chattest.DingTalk), "the robot refused a request: it was asked too often")
	assert.Empty(t, d.letters())
	d.unseen()
}
