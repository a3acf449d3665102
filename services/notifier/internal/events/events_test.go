package events_test

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"
	"github.com/prometheus/client_golang/prometheus"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"go.uber.org/goleak"

	"github.com/lifeboat-fleet/lifeboat/fleet/bus"
	"github.com/lifeboat-fleet/lifeboat/fleet/config"
	"github.com/lifeboat-fleet/lifeboat/fleet/fleettest/natstest"
	lifeboatv1 "github.com/lifeboat-fleet/lifeboat/proto/lifeboat/v1"
	"github.com/lifeboat-fleet/lifeboat/services/notifier/internal/events"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

const patience = 30 * time.Second

// fleet is a real NATS server, and notifiers that come and go.
type fleet struct {
	t    *testing.T
	nats *natstest.Server
	bus  *bus.Bus
}

func newFleet(t *testing.T) *fleet {
	t.Helper()
	f := &fleet{t: t, nats: natstest.New(t)}
	f.bus = f.connect()
	require.NoError(t, f.bus.EnsureStreams(t.Context()))
	return f
}

func (f *fleet) connect() *bus.Bus {
	f.t.Helper()
	b, err := bus.Connect(bus.Options{
		Config: config.NATS{URL: f.nats.URL()}, Actor: "test", Logger: slog.New(slog.DiscardHandler), Registerer: prometheus.NewRegistry(),
	})
	require.NoError(f.t, err)
	f.t.Cleanup(func() { assert.NoError(f.t, b.Close()) })
	return b
}

// notifier is one that runs.
type notifier struct {
	f       *fleet
	config  atomic.Pointer[config.Config]
	changed chan struct{}
	stop    func()
}

func (f *fleet) start(named ...string) *notifier {
	f.t.Helper()
	n := &notifier{f: f, changed: make(chan struct{}, 1)}
	n.config.Store(&config.Config{Notifier: config.Notifier{Events: named}})
	e := events.New(events.Options{
		Bus: f.connect(), Config: n.config.Load, Changed: n.changed, Logger: slog.New(slog.DiscardHandler),
		Registerer: prometheus.NewRegistry(), Now: time.Now,
	})
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- e.Run(ctx) }()
	n.stop = sync.OnceFunc(func() {
		cancel()
		assert.NoError(f.t, <-done)
	})
	f.t.Cleanup(n.stop)
	return n
}

func (n *notifier) reload(named ...string) {
	n.config.Store(&config.Config{Notifier: config.Notifier{Events: named}})
	select {
	case n.changed <- struct{}{}:
	default:
	}
}

// ready waits until the consumer takes events: one before that would not be new to it. It empties what was received, and says of which
// targets that was.
func (f *fleet) ready(noun, verb string) (targets []string) {
	f.t.Helper()
	before := len(f.received())
	require.Eventually(f.t, func() bool {
		f.emit(noun, verb, "probe", "")
		return len(f.received()) > before
	}, patience, 50*time.Millisecond)
	// What was emitted meanwhile is taken as well before the test goes on.
	f.emit(noun, verb, "last-probe", "")
	require.Eventually(f.t, func() bool {
		all := f.received()
		return all[len(all)-1].GetAlerts()[0].GetLabels()["target"] == "last-probe"
	}, patience, 20*time.Millisecond)
	for _, n := range f.received() {
		targets = append(targets, n.GetAlerts()[0].GetLabels()["target"])
	}
	require.NoError(f.t, f.bus.Scan(f.t.Context(), bus.StreamAlerts, bus.SubjectReceived, func(m *bus.Message) error {
		return f.bus.Delete(f.t.Context(), bus.StreamAlerts, m.Seq)
	}))
	return targets
}

func (f *fleet) emit(noun, verb, target, id string) {
	f.t.Helper()
	require.NoError(f.t, f.bus.Emit(f.t.Context(), &lifeboatv1.Event{
		Id: id, Noun: noun, Verb: verb, Target: target, Message: "all is well", RequestedBy: "cli ann",
		Attributes: map[string]string{"checks_passed": "7"},
	}))
}

func (f *fleet) received() (all []*lifeboatv1.Notification) {
	f.t.Helper()
	require.NoError(f.t, f.bus.Scan(f.t.Context(), bus.StreamAlerts, bus.SubjectReceived, func(m *bus.Message) error {
		n := &lifeboatv1.Notification{}
		all = append(all, n)
		return bus.DecodeStrict(m.Data, n)
	}))
	return all
}

// targets waits until so many were received, and says which.
func (f *fleet) targets(count int) (out []string) {
	f.t.Helper()
	require.Eventually(f.t, func() bool { return len(f.received()) >= count }, patience, 20*time.Millisecond)
	for _, n := range f.received() {
		labels := n.GetAlerts()[0].GetLabels()
		out = append(out, labels["event"]+" "+labels["target"])
	}
	return out
}

func TestAnEventBecomesANotification(t *testing.T) {
	t.Parallel()
	f := newFleet(t)
	f.start("drill.passed")
	f.ready("drill", "passed")
	f.emit("drill", "passed", "etcd-prod", "drill.passed.7")
	f.targets(1)
	n := f.received()[0]
	assert.Equal(t, "event", n.GetOrigin())
	assert.Equal(t, "event/drill.passed/etcd-prod", n.GetGroupKey())
	assert.Regexp(t, "^event-[0-9a-f]{32}$", n.GetId())
	a := n.GetAlerts()[0]
	assert.Equal(t, "event", a.GetStatus())
	assert.Equal(t, map[string]string{
		"alertname": "LifeboatEvent", "event": "drill.passed", "noun": "drill", "verb": "passed", "target": "etcd-prod",
		"severity": "info", "service": "lifeboat",
	}, a.GetLabels())
	assert.Equal(t, "Restore drill of etcd-prod passed", a.GetAnnotations()["summary"])
	assert.Equal(t, "all is well\nrequested by: cli ann\nchecks passed: 7", a.GetAnnotations()["description"])
	assert.WithinDuration(t, time.Now(), a.GetStartsAt().AsTime(), time.Minute)
	assert.Nil(t, a.GetEndsAt())
}

func TestWhatHappensWhileNoNotifierRunsIsKeptAndToldOnce(t *testing.T) {
	t.Parallel()
	f := newFleet(t)
	f.emit("drill", "passed", "before-the-first-start", "")
	n := f.start("drill.passed")
	assert.NotContains(t, f.ready("drill", "passed"), "before-the-first-start")
	n.stop()
	for i := range 20 {
		f.emit("drill", "passed", fmt.Sprintf("t-%02d", i), "")
		f.emit("drill", "failed", fmt.Sprintf("t-%02d", i), "")
	}
	require.NoError(t, f.nats.Restart())
	f.start("drill.passed")
	f.start("drill.passed")
	var want []string
	for i := range 20 {
		want = append(want, fmt.Sprintf("drill.passed t-%02d", i))
	}
	assert.ElementsMatch(t, want, f.targets(20))
	f.emit("drill", "passed", "afterwards", "")
	assert.ElementsMatch(t, append(want, "drill.passed afterwards"), f.targets(21))
}

func TestTwoNotifiersTellEachEventOnce(t *testing.T) {
	t.Parallel()
	f := newFleet(t)
	one := f.start("drill.*", "drill.passed", "snapshot.deleted")
	f.start("drill.*", "drill.passed", "snapshot.deleted")
	f.ready("drill", "passed")
	var want []string
	for i := range 60 {
		if i == 30 {
			one.stop()
		}
		f.emit("drill", "passed", fmt.Sprintf("t-%02d", i), "")
		want = append(want, fmt.Sprintf("drill.passed t-%02d", i))
	}
	f.emit("snapshot", "deleted", "last", "")
	assert.ElementsMatch(t, append(want, "snapshot.deleted last"), f.targets(61))
}

func TestAReloadTakesOtherEventsAndNoneOfThePast(t *testing.T) {
	t.Parallel()
	f := newFleet(t)
	n := f.start("drill.passed")
	f.ready("drill", "passed")
	f.emit("snapshot", "deleted", "past", "")
	f.emit("drill", "passed", "a", "")
	assert.Equal(t, []string{"drill.passed a"}, f.targets(1))
	n.reload("drill.passed", "snapshot.*")
	assert.NotContains(t, f.ready("snapshot", "deleted"), "past")
	f.emit("snapshot", "deleted", "b", "")
	f.emit("drill", "passed", "c", "")
	assert.ElementsMatch(t, []string{"snapshot.deleted b", "drill.passed c"}, f.targets(2))
	// None at all, and then some again: what happened in between is over.
	n.reload()
	nc, err := nats.Connect(f.nats.URL())
	require.NoError(t, err)
	defer nc.Close()
	js, err := jetstream.New(nc)
	require.NoError(t, err)
	require.Eventually(t, func() bool {
		_, gone := js.Consumer(t.Context(), bus.StreamEvents, events.Durable)
		return errors.Is(gone, jetstream.ErrConsumerNotFound)
	}, patience, 20*time.Millisecond)
	f.emit("drill", "passed", "unheard", "")
	n.reload("drill.passed")
	assert.NotContains(t, f.ready("drill", "passed"), "unheard")
	f.emit("drill", "passed", "d", "")
	assert.Equal(t, []string{"drill.passed d"}, f.targets(1))
}

func TestNoLoops(t *testing.T) {
	t.Parallel()
	f := newFleet(t)
	f.start("alert.*", "config.*", "drill.passed")
	f.ready("drill", "passed")
	f.emit("alert", "delivered", "a", "")
	f.emit("config", "reloaded", "b", "")
	f.emit("drill", "passed", "c", "")
	assert.Equal(t, []string{"drill.passed c"}, f.targets(1))
}

// What a person publishes may lack everything but the subject, and what is no event must not stand in the way of the next ones.
func TestAnEventThatAPersonTyped(t *testing.T) {
	t.Parallel()
	f := newFleet(t)
	f.start("drill.*", "shop.opened")
	f.ready("drill", "passed")
	for subject, payload := range map[string]string{
		"lifeboat.event.drill.passed.empty": "", "lifeboat.event.drill.passed.broken": "{", "lifeboat.event.shop.opened.late-shift": `{"message":"m","verb":"x"}`,
	} {
		_, err := f.bus.PublishRaw(t.Context(), subject, []byte(payload), nil, "")
		require.NoError(t, err)
	}
	assert.ElementsMatch(t, []string{"drill.passed empty", "shop.opened late-shift"}, f.targets(2))
	for _, n := range f.received() {
		a := n.GetAlerts()[0]
		assert.WithinDuration(t, time.Now(), a.GetStartsAt().AsTime(), time.Minute)
		if a.GetLabels()["noun"] == "shop" {
			assert.Equal(t, map[string]string{"summary": "Shop opened: late-shift", "description": "m"}, a.GetAnnotations())
		}
	}
	require.Eventually(t, func() bool {
		dead, err := f.bus.Subjects(t.Context(), bus.StreamDead, "lifeboat.dead.>")
		return err == nil && dead["lifeboat.dead.event.drill.passed.broken"] == 1
	}, patience, 20*time.Millisecond)
}
