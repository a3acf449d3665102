package budget_test

import (
	"context"
	"errors"
	"log/slog"
	"os"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/testutil"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"go.uber.org/goleak"
	"google.golang.org/protobuf/proto"

	"github.com/lifeboat-fleet/lifeboat/fleet/bus"
	"github.com/lifeboat-fleet/lifeboat/fleet/config"
	"github.com/lifeboat-fleet/lifeboat/fleet/fleettest/natstest"
	lifeboatv1 "github.com/lifeboat-fleet/lifeboat/proto/lifeboat/v1"
	"github.com/lifeboat-fleet/lifeboat/services/notifier/internal/budget"
)

func TestMain(m *testing.M) {
	if url := os.Getenv(childNATS); url != "" {
		child(url, os.Getenv(childSink))
		return
	}
	goleak.VerifyTestMain(m, goleak.IgnoreTopFunction("github.com/nats-io/nats-server/v2/server.(*OCSPMonitor).run"))
}

// connect makes a bus and the streams.
func connect(tb testing.TB, url string) *bus.Bus {
	tb.Helper()
	b, err := bus.Connect(bus.Options{
		Config: config.NATS{URL: url}, Actor: "lifeboat-notifier@test", Logger: slog.New(slog.DiscardHandler), Registerer: prometheus.NewRegistry(),
	})
	require.NoError(tb, err)
	tb.Cleanup(func() { _ = b.Close() })
	require.Eventually(tb, func() bool { return b.Connected() == nil }, time.Minute, 5*time.Millisecond)
	require.NoError(tb, b.EnsureStreams(tb.Context()))
	return b
}

// clock is one that stands still.
type clock struct{ ns atomic.Int64 }

func newClock() *clock {
	c := &clock{}
	c.ns.Store(time.Date(2026, 11, 21, 12, 0, 0, 500_000, time.UTC).UnixNano())
	return c
}

func (c *clock) now() time.Time          { return time.Unix(0, c.ns.Load()) }
func (c *clock) advance(d time.Duration) { c.ns.Add(int64(d)) }

// store counts what goes to the bus, and can spoil it.
type store struct {
	budget.Store
	reads, writes atomic.Int64
	// put stands instead of PutState when it is set.
	put func(ctx context.Context, s bus.State) (uint64, error)
}

func (s *store) Last(ctx context.Context, stream, subject string, into proto.Message) (uint64, time.Time, error) {
	s.reads.Add(1)
	return s.Store.Last(ctx, stream, subject, into)
}

func (s *store) PutState(ctx context.Context, state bus.State) (uint64, error) {
	s.writes.Add(1)
	if s.put != nil {
		return s.put(ctx, state)
	}
	return s.Store.PutState(ctx, state)
}

// process is one that sends: its own budgets on a bus.
type process struct {
	*budget.Budgets
	t     testing.TB
	store *store
	reg   *prometheus.Registry
}

func newProcess(tb testing.TB, b *bus.Bus, now func() time.Time) *process {
	tb.Helper()
	p := &process{t: tb, store: &store{Store: b}, reg: prometheus.NewRegistry()}
	p.Budgets = budget.New(budget.Options{Store: p.store, Now: now, Logger: slog.New(slog.DiscardHandler), Registerer: p.reg})
	return p
}

func (p *process) take(rule budget.Rule, critical bool) time.Duration {
	p.t.Helper()
	d, err := p.Take(p.t.Context(), "robot", rule, critical)
	require.NoError(p.t, err)
	return d
}

func (p *process) state(rule budget.Rule) budget.State {
	p.t.Helper()
	s, err := p.State(p.t.Context(), "robot", rule)
	require.NoError(p.t, err)
	return s
}

// traffic is how many reads and writes something took.
func (p *process) traffic(do func()) [2]int64 {
	reads, writes := p.store.reads.Load(), p.store.writes.Load()
	do()
	return [2]int64{p.store.reads.Load() - reads, p.store.writes.Load() - writes}
}

func two(t *testing.T) (*clock, *process, *process) {
	t.Helper()
	url := natstest.New(t).URL()
	c := newClock()
	return c, newProcess(t, connect(t, url), c.now), newProcess(t, connect(t, url), c.now)
}

func TestRuleOf(t *testing.T) {
	assert.Equal(t, budget.Rule{Messages: 18, Per: time.Minute, Reserve: 4}, budget.RuleOf(config.Limit{Messages: 18, Per: time.Minute, Reserve: 4}))
	assert.Equal(t, budget.Rule{Messages: -1, Per: time.Minute}, budget.RuleOf(config.Limit{Messages: -1, Per: time.Minute, Reserve: -1}))
}

func TestTwoProcessesShareARobot(t *testing.T) {
	c, a, b := two(t)
	rule := budget.Rule{Messages: 6, Per: time.Minute, Reserve: 2}
	assert.Equal(t, 6, a.state(rule).Left)
	for range 2 {
		assert.Zero(t, a.take(rule, false))
		c.advance(time.Second)
		assert.Zero(t, b.take(rule, false))
		c.advance(time.Second)
	}
	assert.Equal(t, 2, b.state(rule).Left)
	// The first was sent at 0 s, and it is 4 s.
	assert.Equal(t, 56*time.Second, a.take(rule, false).Round(10*time.Millisecond), "the reserve is not for everybody")
	assert.Equal(t, 56*time.Second, b.take(rule, false).Round(10*time.Millisecond))
	assert.Zero(t, a.take(rule, true), "critical ones find it")
	assert.Zero(t, b.take(rule, true))
	assert.Equal(t, 56*time.Second, a.take(rule, true).Round(10*time.Millisecond), "there is no more than that")
	assert.Equal(t, 58*time.Second, b.take(rule, false).Round(10*time.Millisecond), "the others wait until the reserve is filled up again")
	assert.Zero(t, b.state(rule).Left)

	c.advance(a.take(rule, true) - time.Millisecond)
	assert.Positive(t, b.take(rule, true))
	c.advance(time.Millisecond)
	assert.Zero(t, b.take(rule, true), "the window slides")
	assert.Positive(t, a.take(rule, true))
	c.advance(time.Hour)
	assert.Equal(t, 6, a.state(rule).Left)
}

func TestTheUsualTakeIsOneWrite(t *testing.T) {
	_, a, b := two(t)
	rule := budget.Rule{Messages: 100, Per: time.Minute}
	assert.Equal(t, [2]int64{1, 1}, a.traffic(func() { a.take(rule, false) }), "the first one reads")
	assert.Equal(t, [2]int64{0, 5}, a.traffic(func() {
		for range 5 {
			a.take(rule, false)
			require.NoError(t, a.Well(t.Context(), "robot"))
		}
	}))
	b.take(rule, false)
	assert.Equal(t, [2]int64{1, 2}, a.traffic(func() { a.take(rule, false) }), "somebody else wrote")
	assert.Equal(t, 92, a.state(rule).Left)
}

func TestWithoutALimitThereIsNoTraffic(t *testing.T) {
	c, a, _ := two(t)
	rule := budget.RuleOf(config.Limit{Messages: -1, Per: time.Second, Reserve: -1})
	assert.Equal(t, [2]int64{}, a.traffic(func() {
		for range 100 {
			assert.Zero(t, a.take(rule, false))
		}
		require.NoError(t, a.Late(t.Context(), "robot", rule, c.now(), c.now().Add(time.Minute)))
	}))
	assert.Equal(t, -1, a.state(rule).Left)
	require.NoError(t, a.Pause(t.Context(), "robot", c.now().Add(time.Minute), "told to"))
	assert.Equal(t, time.Minute, a.take(rule, false), "what the chat says holds all the same")
}

func TestPause(t *testing.T) {
	c, a, b := two(t)
	rule := budget.Rule{Messages: 6, Per: time.Minute, Reserve: 2}
	assert.Zero(t, b.take(rule, false))
	begun := c.now()
	require.NoError(t, a.Pause(t.Context(), "robot", begun.Add(10*time.Minute), "DingTalk throttles the robot"))
	c.advance(time.Minute)
	assert.Equal(t, 9*time.Minute, b.take(rule, true), "every process keeps it, for critical ones too")
	require.NoError(t, b.Pause(t.Context(), "robot", c.now().Add(time.Minute), "once more"))
	s := a.state(rule)
	assert.Equal(t, begun.Add(10*time.Minute).UnixNano(), s.PausedUntil.UnixNano(), "the longer one stays")
	assert.Equal(t, "once more", s.Trouble)
	assert.Equal(t, begun.UnixNano(), s.Since.UnixNano(), "since stays")
	assert.Zero(t, s.Left)

	c.advance(9 * time.Minute)
	assert.Zero(t, b.take(rule, false))
	require.NoError(t, b.Well(t.Context(), "robot"))
	assert.Equal(t, budget.State{Left: 5}, a.state(rule))
}

func TestTrouble(t *testing.T) {
	c, a, b := two(t)
	rule := budget.Rule{Messages: 6, Per: time.Minute}
	begun := c.now()
	require.NoError(t, a.Trouble(t.Context(), "robot", "Slack does not answer"))
	assert.Equal(t, [2]int64{1, 0}, a.traffic(func() { require.NoError(t, a.Trouble(t.Context(), "robot", "Slack does not answer")) }))
	c.advance(time.Minute)
	require.NoError(t, b.Trouble(t.Context(), "robot", "Slack throttled"))
	assert.Equal(t, budget.State{Left: 6, Trouble: "Slack throttled", Since: begun.UTC()}, utc(a.state(rule)))

	require.NoError(t, b.Well(t.Context(), "robot"))
	assert.Equal(t, budget.State{Left: 6}, a.state(rule))
	require.NoError(t, b.Trouble(t.Context(), "robot", "Slack throttled"), "though this process knew nothing else")
	assert.Equal(t, c.now().UnixNano(), a.state(rule).Since.UnixNano(), "new trouble begins anew")

	// a did not see the trouble that b noted; its next message does, and then it is over.
	require.NoError(t, a.Well(t.Context(), "robot"))
	assert.Zero(t, a.take(rule, false))
	require.NoError(t, b.Trouble(t.Context(), "robot", "again"))
	assert.Zero(t, a.take(rule, false))
	require.NoError(t, a.Well(t.Context(), "robot"))
	assert.Equal(t, budget.State{Left: 4}, b.state(rule))
	assert.Equal(t, [2]int64{}, a.traffic(func() { require.NoError(t, a.Well(t.Context(), "robot")) }))
}

func utc(s budget.State) budget.State {
	s.Since = s.Since.UTC()
	return s
}

func TestLate(t *testing.T) {
	c, a, b := two(t)
	rule := budget.Rule{Messages: 2, Per: 10 * time.Second}
	require.Zero(t, a.take(rule, false))
	begun := c.now()
	c.advance(time.Second)
	assert.Equal(t, [2]int64{}, a.traffic(func() { require.NoError(t, a.Late(t.Context(), "robot", rule, begun, c.now())) }))
	c.advance(7 * time.Second)
	require.NoError(t, a.Late(t.Context(), "robot", rule, begun, c.now()))
	assert.Equal(t, 1, b.state(rule).Left, "it is moved, and not counted twice")
	require.Zero(t, b.take(rule, false))
	c.advance(3 * time.Second)
	assert.Equal(t, 7*time.Second, b.take(rule, false).Round(10*time.Millisecond), "it counts from its end")
	c.advance(20 * time.Second)
	// What was counted was forgotten meanwhile.
	require.NoError(t, a.Late(t.Context(), "robot", rule, begun, c.now()))
	assert.Equal(t, 1, b.state(rule).Left)
	// And what somebody else was sent long before it began is not moved in its place.
	begun = c.now().Add(3 * time.Second)
	c.advance(5 * time.Second)
	require.NoError(t, a.Late(t.Context(), "robot", rule, begun, c.now()))
	assert.Zero(t, b.state(rule).Left)
}

func TestASlowCountIsLate(t *testing.T) {
	c, a, b := two(t)
	rule := budget.Rule{Messages: 1, Per: 10 * time.Second}
	a.store.put = func(ctx context.Context, s bus.State) (uint64, error) {
		c.advance(3 * time.Second)
		a.store.put = nil
		return a.store.Store.PutState(ctx, s)
	}
	require.Zero(t, a.take(rule, false))
	assert.Equal(t, 10*time.Second, b.take(rule, false).Round(10*time.Millisecond), "it is sent only now")
}

func TestAWrongClockDoesNotBlockForLong(t *testing.T) {
	c, a, b := two(t)
	rule := budget.Rule{Messages: 2, Per: 10 * time.Second}
	c.advance(365 * 24 * time.Hour)
	require.Zero(t, a.take(rule, false))
	require.Zero(t, a.take(rule, false))
	c.advance(-365 * 24 * time.Hour)
	assert.LessOrEqual(t, b.take(rule, false), 11*time.Second)
	// Nothing is written while it waits, so that is so at every time; what is written next puts it right.
	require.NoError(t, b.Late(t.Context(), "robot", rule, c.now(), c.now().Add(2*time.Second)))
	c.advance(13 * time.Second)
	assert.Zero(t, b.take(rule, false))
}

func TestReceiversShareARobotWithDifferentLimits(t *testing.T) {
	c, a, _ := two(t)
	long, short := budget.Rule{Messages: 3, Per: time.Minute}, budget.Rule{Messages: 3, Per: time.Second}
	require.Zero(t, a.take(long, false))
	for range 2 {
		c.advance(2 * time.Second)
		require.Zero(t, a.take(short, false))
	}
	assert.Positive(t, a.take(long, false), "the shorter window does not forget what the longer one needs")
}

func TestAWholeReserveLeavesOneForTheOthers(t *testing.T) {
	_, a, _ := two(t)
	rule := budget.Rule{Messages: 2, Per: time.Minute, Reserve: 5}
	assert.Zero(t, a.take(rule, false))
	assert.Positive(t, a.take(rule, false))
	assert.Zero(t, a.take(rule, true))
}

func TestALostAnswerIsCounted(t *testing.T) {
	_, a, _ := two(t)
	rule := budget.Rule{Messages: 3, Per: time.Minute}
	a.store.put = func(ctx context.Context, s bus.State) (uint64, error) {
		_, err := a.store.Store.PutState(ctx, s)
		return 0, errors.Join(err, context.DeadlineExceeded)
	}
	_, err := a.Take(t.Context(), "robot", rule, false)
	require.ErrorIs(t, err, context.DeadlineExceeded)
	assert.NotContains(t, err.Error(), "lifeboat.alert.budget", "the error is the store's own")
	a.store.put = nil
	assert.Equal(t, [2]int64{1, 1}, a.traffic(func() { assert.Zero(t, a.take(rule, false)) }), "it looks what became of the other one")
	assert.Equal(t, 1, a.state(rule).Left)
}

func TestAStormOfConflictsEnds(t *testing.T) {
	_, a, _ := two(t)
	rule := budget.Rule{Messages: 3, Per: time.Minute}
	a.store.put = func(context.Context, bus.State) (uint64, error) { return 0, bus.ErrConflict }
	var wait time.Duration
	traffic := a.traffic(func() { wait = a.take(rule, false) })
	assert.Positive(t, wait, "it is asked for again")
	assert.LessOrEqual(t, traffic[1], int64(40))
	require.ErrorIs(t, a.Pause(t.Context(), "robot", time.Now(), "why"), bus.ErrConflict)
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	_, err := a.Take(ctx, "robot", rule, false)
	require.Error(t, err)
}

func TestAStreamThatWasMadeAnew(t *testing.T) {
	_, a, b := two(t)
	rule := budget.Rule{Messages: 30, Per: time.Minute}
	for range 10 {
		a.take(rule, false)
	}
	fresh := newProcess(t, connect(t, natstest.New(t).URL()), newClock().now)
	a.store.Store, b.store.Store = fresh.store.Store, fresh.store.Store
	require.Zero(t, b.take(rule, false), "with lower sequences than it knows")
	require.Eventually(t, func() bool { return a.take(rule, false) == 0 }, time.Minute, time.Millisecond)
	assert.Equal(t, 28, a.state(rule).Left)
}

func TestNothingIsSentWhileNATSIsAway(t *testing.T) {
	s := natstest.New(t)
	a := newProcess(t, connect(t, s.URL()), time.Now)
	rule := budget.Rule{Messages: 3, Per: time.Minute}
	require.Zero(t, a.take(rule, false))
	s.Stop()
	ctx, cancel := context.WithTimeout(t.Context(), 200*time.Millisecond)
	defer cancel()
	_, err := a.Take(ctx, "robot", rule, false)
	require.Error(t, err)
	require.NoError(t, s.Restart())
	require.Eventually(t, func() bool {
		d, taking := a.Take(t.Context(), "robot", rule, false)
		return taking == nil && d == 0
	}, time.Minute, 10*time.Millisecond)
	var raw lifeboatv1.Budget
	_, _, err = a.store.Store.Last(t.Context(), bus.StreamAlerts, bus.BudgetSubject("robot"), &raw)
	require.NoError(t, err)
	assert.GreaterOrEqual(t, len(raw.GetSentMs()), 2, "what was counted before is known afterwards")
}

func TestAWaiterForTheTurnLeavesWithItsContext(t *testing.T) {
	_, a, _ := two(t)
	entered, leave := make(chan struct{}), make(chan struct{})
	a.store.put = func(context.Context, bus.State) (uint64, error) {
		close(entered)
		<-leave
		return 0, errors.New("stop")
	}
	var wg sync.WaitGroup
	wg.Go(func() { _ = a.Trouble(t.Context(), "robot", "x") })
	<-entered
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	_, err := a.Take(ctx, "robot", budget.Rule{Messages: 1, Per: time.Second}, true)
	require.ErrorIs(t, err, context.Canceled)
	close(leave)
	wg.Wait()
}

func TestMetric(t *testing.T) {
	c, a, b := two(t)
	rule := budget.Rule{Messages: 6, Per: time.Minute}
	a.Show(map[string]budget.Shown{"ops": {Key: "robot", Rule: rule}, "dev": {Key: "other", Rule: rule}, "free": {Key: "third", Rule: budget.Rule{Messages: -1}}})
	b.take(rule, false)
	expect := func(ops string) string {
		return `
# HELP lifeboat_notify_budget_left Messages that the robot or channel of a receiver may be sent now; -1 without a limit.
# TYPE lifeboat_notify_budget_left gauge
lifeboat_notify_budget_left{receiver="dev"} 6
lifeboat_notify_budget_left{receiver="free"} -1
lifeboat_notify_budget_left{receiver="ops"} ` + ops + "\n"
	}
	require.NoError(t, testutil.GatherAndCompare(a.reg, strings.NewReader(expect("5"))), "what others sent is in it")
	c.advance(2 * time.Minute)
	require.NoError(t, testutil.GatherAndCompare(a.reg, strings.NewReader(expect("6"))), "and fills up again by itself")
	b.Show(nil)
	require.NoError(t, testutil.GatherAndCompare(b.reg, strings.NewReader("")))
}
