package deliver_test

import (
	"errors"
	"fmt"
	"testing"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"google.golang.org/protobuf/types/known/timestamppb"

	"github.com/lifeboat-fleet/lifeboat/fleet/bus"
	lifeboatv1 "github.com/lifeboat-fleet/lifeboat/proto/lifeboat/v1"
	"github.com/lifeboat-fleet/lifeboat/services/notifier/internal/notice"
)

// newer is one with a second receiver, as a rolling update brings it to one notifier after the other.
const newer = `
  receivers: [{name: one, slack: {webhook_url_file: a}, limit: {messages: -1}}, {name: two, slack: {webhook_url_file: b}, limit: {messages: -1}}]
  route: {receiver: one, routes: [{receiver: two, matchers: ['severity="critical"']}]}
`

// attempts are how often the server has handed out messages to a consumer.
func (l *lab) attempts(consumer string) uint64 {
	l.t.Helper()
	nc, err := nats.Connect(l.nats.URL())
	require.NoError(l.t, err)
	defer nc.Close()
	js, err := jetstream.New(nc)
	require.NoError(l.t, err)
	c, err := js.Consumer(l.t.Context(), bus.StreamAlerts, consumer)
	if errors.Is(err, jetstream.ErrConsumerNotFound) {
		return 0
	}
	require.NoError(l.t, err)
	info, err := c.Info(l.t.Context())
	require.NoError(l.t, err)
	return info.Delivered.Consumer
}

// only stores an alert for one receiver, as a canary is.
func (l *lab) only(receiver string, a *lifeboatv1.Alert) {
	l.t.Helper()
	_, err := l.bus.Publish(l.t.Context(), bus.Outgoing{Subject: bus.SubjectReceived, Message: &lifeboatv1.Notification{
		ReceivedAt: timestamppb.New(l.now()), Origin: "canary", GroupKey: "only", Receiver: "lifeboat", OnlyReceiver: receiver,
		Alerts: []*lifeboatv1.Alert{a},
	}})
	require.NoError(l.t, err)
}

// During a rolling update the notifier with the older configuration buried what the one with the newer could deliver.
func TestAnOlderConfigurationBuriesNothingOfANewerOne(t *testing.T) {
	t.Parallel()
	l := newLab(t, newer)
	latest, older := l.cfg, newLab(t, one).cfg
	l.chat.rule(func(string, notice.Notice) error { return errors.New("the chat answered 500") })
	l.run("new")
	l.send("g", alert("First", "firing", "critical"))
	l.wait("an attempt", func() bool { return l.chat.requests() > 0 })
	l.cfg = older
	l.run("old") // a delivery that it does not know stands in the stream
	l.cfg = latest
	l.chat.rule(nil)
	for i := range 20 {
		l.put(bus.CriticalSubject("two"), &lifeboatv1.Delivery{Id: fmt.Sprint("d", i), Receiver: "two", Notification: &lifeboatv1.Notification{
			ReceivedAt: timestamppb.New(l.now()), GroupKey: fmt.Sprint("g", i), Alerts: []*lifeboatv1.Alert{alert(fmt.Sprint("A", i), "firing", "critical")},
		}})
	}
	l.waitEnded(map[string]int{"delivered": 21})
	assert.Empty(t, l.letters())
}

// A new receiver's first canary was a dead letter when a notifier with the older configuration got it.
func TestAnAlertForAReceiverThatIsNotKnownYetWaits(t *testing.T) {
	t.Parallel()
	l := newLab(t, newer)
	latest := l.cfg
	l.cfg = newLab(t, one).cfg
	stop := l.run("old")
	l.only("two", alert("Canary", "firing", "info"))
	require.Eventually(t, func() bool { return l.attempts("notifier-route") >= 2 }, patience, 50*time.Millisecond)
	assert.Empty(t, l.letters())
	stop()
	l.cfg = latest
	l.run("new")
	l.waitEnded(map[string]int{"delivered": 1})
}

func TestAnAlertForAReceiverThatNobodyKnowsIsADeadLetterAfterAWhile(t *testing.T) {
	t.Parallel()
	l := newLab(t, one)
	l.run("n1")
	l.only("nobody", alert("Canary", "firing", "info"))
	require.Eventually(t, func() bool { return l.attempts("notifier-route") >= 2 }, patience, 50*time.Millisecond)
	assert.Empty(t, l.letters())
	l.pass(11 * time.Minute)
	l.wait("the letter", func() bool { return len(l.letters()) == 1 })
	assert.Contains(t, l.letters()[0].GetReason(), `no receiver is named "nobody" in this notifier's configuration`)
}
