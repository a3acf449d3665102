package canary

import (
	"context"
	"fmt"
	"log/slog"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/testutil"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"go.uber.org/goleak"
	"google.golang.org/protobuf/encoding/protojson"

	"github.com/lifeboat-fleet/lifeboat/fleet/bus"
	"github.com/lifeboat-fleet/lifeboat/fleet/config"
	lifeboatv1 "github.com/lifeboat-fleet/lifeboat/proto/lifeboat/v1"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// log is a bus in memory with one stream of events, for tests of time. What the real one does is tested with it in nats_test.go.
type log struct {
	t         *testing.T
	mu        sync.Mutex
	followers []bus.Follower
	events    []*bus.Message
	ids       map[string]uint64
	published []*lifeboatv1.Notification
	at        []time.Time
	broken    bool
}

// first is how long it is to the first full hour.
const first = 55 * time.Minute

func newLog(t *testing.T) *log {
	t.Helper()
	pass(time.Hour - first)
	return &log{t: t, ids: map[string]uint64{}}
}

func (l *log) Follow(ctx context.Context, f bus.Follower) error {
	l.mu.Lock()
	last := map[string]*bus.Message{}
	for _, m := range l.events {
		last[m.Subject] = m
	}
	for _, m := range l.events {
		if last[m.Subject] == m {
			f.Message(ctx, m)
		}
	}
	l.followers = append(l.followers, f)
	l.mu.Unlock()
	f.CaughtUp()
	<-ctx.Done()
	return nil
}

func (l *log) Publish(_ context.Context, o bus.Outgoing) (uint64, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.broken {
		return 0, fmt.Errorf("no responders")
	}
	if seq, ok := l.ids[o.ID]; ok {
		return seq, nil
	}
	l.ids[o.ID] = uint64(100 + len(l.published))
	n, ok := o.Message.(*lifeboatv1.Notification)
	require.True(l.t, ok)
	l.published = append(l.published, n)
	l.at = append(l.at, time.Now())
	return l.ids[o.ID], nil
}

func (l *log) Emit(ctx context.Context, e *lifeboatv1.Event) error {
	l.mu.Lock()
	defer l.mu.Unlock()
	if e.GetId() != "" {
		if _, ok := l.ids[e.GetId()]; ok {
			return nil
		}
		l.ids[e.GetId()] = 1
	}
	data, err := protojson.Marshal(e)
	if err != nil {
		return err
	}
	m := &bus.Message{
		Subject: bus.EventSubject(e.GetNoun(), e.GetVerb(), e.GetTarget()), Data: data, Seq: uint64(len(l.events) + 1), Stored: time.Now(),
	}
	l.events = append(l.events, m)
	for _, f := range l.followers {
		f.Message(ctx, m)
	}
	return nil
}

func (l *log) History(_ context.Context, _ string, filters []string, since time.Time, each func(*bus.Message) error) error {
	l.mu.Lock()
	all := slices.Clone(l.events)
	l.mu.Unlock()
	for _, m := range all {
		if slices.Contains(filters, m.Subject) && !m.Stored.Before(since) {
			if err := each(m); err != nil {
				return err
			}
		}
	}
	return nil
}

// verbs are the events of canaries in the log: "sent", "delivered".
func (l *log) verbs() []string {
	l.mu.Lock()
	defer l.mu.Unlock()
	var out []string
	for _, m := range l.events {
		if p := strings.Split(m.Subject, "."); p[2] == noun {
			out = append(out, p[3])
		}
	}
	return out
}

// ends says what became of the delivery of the n-th notification.
func (l *log) ends(verb, receiver string, n int) {
	l.t.Helper()
	m := bus.Message{Stored: time.Now(), Seq: uint64(100 + n)}
	require.NoError(l.t, l.Emit(l.t.Context(), &lifeboatv1.Event{
		Noun: "alert", Verb: verb, Message: "the robot is gone",
		Attributes: map[string]string{"origin": "canary", "receiver": receiver, "delivery_id": m.ID() + "." + receiver},
	}))
}

func receivers(lines ...string) *config.Config {
	cfg := &config.Config{}
	for i, line := range lines {
		cfg.Notifier.Receivers = append(cfg.Notifier.Receivers, config.Receiver{
			Name: "r" + strconv.Itoa(i+1), TimeZone: "Asia/Shanghai", Canary: config.Canary{Schedule: line},
		})
	}
	return cfg
}

// replica is one notifier's.
type replica struct {
	*Canaries
	mu      sync.Mutex
	cfg     *config.Config
	changed chan struct{}
	stop    func()
}

func start(t *testing.T, l *log, cfg *config.Config) *replica {
	t.Helper()
	r := &replica{cfg: cfg, changed: make(chan struct{}, 1)}
	r.Canaries = New(Options{
		Bus: l, Config: func() *config.Config { r.mu.Lock(); defer r.mu.Unlock(); return r.cfg }, Changed: r.changed,
		Logger: slog.New(slog.DiscardHandler), Registerer: prometheus.NewRegistry(), Now: time.Now,
	})
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- r.Run(ctx) }()
	r.stop = sync.OnceFunc(func() { cancel(); assert.NoError(t, <-done) })
	t.Cleanup(r.stop)
	return r
}

func (r *replica) reload(cfg *config.Config) {
	r.mu.Lock()
	r.cfg = cfg
	r.mu.Unlock()
	r.changed <- struct{}{}
}

// pass lets time go by: the clock of a synctest bubble begins at midnight UTC, 2000-01-01, 08:00 in Shanghai.
func pass(d time.Duration) {
	<-time.After(d)
	synctest.Wait()
}

func TestEachTickIsSentOnceByTwoReplicas(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		l := newLog(t)
		begin := time.Now().Truncate(time.Hour)
		for range 2 {
			start(t, l, receivers("30 8,9 * * *", "@every 45m", ""))
		}
		pass(24 * time.Hour)
		var got []string
		for i, n := range l.published {
			if n.GetOnlyReceiver() == "r1" {
				got = append(got, l.at[i].Sub(begin).String())
				assert.Equal(t, fmt.Sprintf("canary-r1-%d", l.at[i].Unix()), n.GetId())
			}
		}
		assert.Equal(t, []string{"30m0s", "1h30m0s"}, got, "in the receiver's zone")
		assert.Len(t, l.published, 2+24*60/45)
		n := l.published[0]
		assert.Equal(t, "canary", n.GetOrigin())
		require.Len(t, n.GetAlerts(), 1)
		a := n.GetAlerts()[0]
		assert.Equal(t, "event", a.GetStatus())
		assert.Equal(t, map[string]string{"alertname": "LifeboatCanary", "receiver": "r1", "severity": "info"}, a.GetLabels())
		assert.NotEmpty(t, a.GetFingerprint())
		assert.Equal(t, l.at[0].UTC(), a.GetStartsAt().AsTime())
	})
}

func TestALateReplicaDoesNotSend(t *testing.T) {
	t.Parallel()
	for delay, sent := range map[time.Duration]int{0: 1, 59 * time.Second: 1, 61 * time.Second: 0, time.Hour: 0} {
		t.Run(delay.String(), func(t *testing.T) {
			t.Parallel()
			synctest.Test(t, func(t *testing.T) {
				l := newLog(t)
				pass(first - 30*time.Minute + delay)
				start(t, l, receivers("30 8 * * *"))
				pass(time.Minute)
				assert.Len(t, l.published, sent)
			})
		})
	}
}

func TestATickWaitsForNATSAMinuteAndNoLonger(t *testing.T) {
	t.Parallel()
	for away, sent := range map[time.Duration]int{40 * time.Second: 1, 90 * time.Second: 0} {
		t.Run(away.String(), func(t *testing.T) {
			t.Parallel()
			synctest.Test(t, func(t *testing.T) {
				l := newLog(t)
				l.broken = true
				start(t, l, receivers("30 8 * * *"))
				pass(first - 30*time.Minute + away)
				l.mu.Lock()
				l.broken = false
				l.mu.Unlock()
				pass(time.Hour)
				assert.Len(t, l.published, sent)
			})
		})
	}
}

func TestDeliveredIsKnownAndTold(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		l := newLog(t)
		cfg := receivers("0 * * * *")
		a, b := start(t, l, cfg), start(t, l, cfg)
		pass(first + 2*time.Second)
		l.ends("delivered", "another", 0)
		synctest.Wait()
		assert.Equal(t, []string{"sent"}, l.verbs(), "another receiver's says nothing")
		l.ends("delivered", "r1", 0)
		at := float64(time.Now().Unix())
		synctest.Wait()
		assert.Equal(t, []string{"sent", "delivered"}, l.verbs())
		for _, r := range []*replica{a, b} {
			assert.InDelta(t, at, testutil.ToFloat64(r.metrics.delivered.WithLabelValues("r1")), 0)
			assert.InDelta(t, 0, testutil.ToFloat64(r.metrics.late.WithLabelValues("r1")), 0)
		}
		b.stop()
		pass(20 * time.Minute)
		c := start(t, l, cfg)
		synctest.Wait()
		assert.InDelta(t, at, testutil.ToFloat64(c.metrics.delivered.WithLabelValues("r1")), 0, "also after a restart")
		pass(20 * time.Minute)
		assert.Equal(t, []string{"sent", "delivered"}, l.verbs())
	})
}

func TestLateIsToldOnceUntilOneIsDelivered(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		l := newLog(t)
		cfg := receivers("0 * * * *")
		start(t, l, cfg)
		r := start(t, l, cfg)
		pass(first + 10*time.Minute - time.Second)
		assert.Equal(t, []string{"sent"}, l.verbs())
		pass(time.Second)
		assert.Equal(t, []string{"sent", "late"}, l.verbs())
		assert.InDelta(t, 1, testutil.ToFloat64(r.metrics.late.WithLabelValues("r1")), 0)
		pass(2 * time.Hour)
		start(t, l, cfg) // after a restart, too
		pass(30 * time.Minute)
		assert.Equal(t, []string{"sent", "late", "sent", "sent"}, l.verbs(), "once")
		l.ends("delivered", "r1", 2) // in order: the two before it will not come any more
		synctest.Wait()
		assert.Equal(t, []string{"sent", "late", "sent", "sent", "delivered"}, l.verbs())
		assert.InDelta(t, 0, testutil.ToFloat64(r.metrics.late.WithLabelValues("r1")), 0)
		pass(time.Hour)
		assert.Equal(t, []string{"sent", "late", "sent", "sent", "delivered", "sent", "late"}, l.verbs(), "another outage")
	})
}

func TestADeadCanaryIsLateAtOnce(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		l := newLog(t)
		start(t, l, receivers("0 * * * *"))
		pass(first + time.Second)
		l.ends("dead", "r1", 0)
		synctest.Wait()
		assert.Equal(t, []string{"sent", "late"}, l.verbs())
		assert.Contains(t, string(l.events[len(l.events)-1].Data), "the robot is gone")
	})
}

func TestAnOutcomeThatComesBeforeItsCanaryIsKept(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		l := newLog(t)
		start(t, l, receivers("0 * * * *"))
		pass(first - time.Second)
		l.ends("delivered", "r1", 0) // the log's order is not the order of what happened
		pass(time.Minute)
		assert.Equal(t, []string{"sent", "delivered"}, l.verbs())
	})
}

func TestAnOutcomeThatPassedWhileNobodyFollowedIsFound(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		l := newLog(t)
		r := start(t, l, receivers("0 * * * *"))
		pass(first + time.Second)
		r.stop()
		l.followers = nil
		l.ends("delivered", "r1", 0)
		l.ends("delivered", "r2", 7) // the last one of the subject is all that a new follower is told
		start(t, l, receivers("0 * * * *"))
		pass(30 * time.Minute)
		assert.Equal(t, []string{"sent", "delivered"}, l.verbs())
	})
}

func TestTheLastWordIsTheTrueOne(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		l := newLog(t)
		start(t, l, receivers("0 * * * *"))
		pass(first + time.Second)
		l.ends("delivered", "r1", 0)
		synctest.Wait()
		// A replica that had not heard of it yet.
		require.NoError(t, l.Emit(t.Context(), lateEvent("r1", flight{tick: time.Now().Truncate(time.Hour)})))
		pass(time.Minute)
		assert.Equal(t, []string{"sent", "delivered", "late", "delivered"}, l.verbs())
	})
}

func TestReload(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		l := newLog(t)
		r := start(t, l, receivers("0 * * * *", "0 * * * *"))
		pass(first + time.Second)
		require.Len(t, l.published, 2)
		r.reload(receivers("30 * * * *")) // another time, and one canary less
		pass(time.Hour)
		require.Len(t, l.published, 3)
		assert.Equal(t, "r1", l.published[2].GetOnlyReceiver())
		assert.NotContains(t, l.verbs()[3:], "late", "of a canary that is gone nobody needs to hear") // r1's is late
		r.reload(receivers("* * * * *"))
		pass(time.Minute)
		assert.Len(t, l.published, 4, "a new schedule has no ticks before it was there")
	})
}

// A receiver without a canary has no metrics of one, also when its last one was late: LifeboatCanaryLateUnreported would never end.
func TestACanaryThatWasTakenOutHasNoMetrics(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		l := newLog(t)
		r := start(t, l, receivers("0 * * * *", "0 * * * *"))
		pass(first + time.Second)
		l.ends("delivered", "r2", 1)
		pass(20 * time.Minute)
		require.InDelta(t, 1, testutil.ToFloat64(r.metrics.late.WithLabelValues("r1")), 0)
		r.reload(receivers("", ""))
		pass(time.Second)
		after := start(t, l, receivers("", "")) // a new process knows of them by the log only
		pass(time.Hour)
		for _, c := range []*replica{r, after} {
			for _, metric := range []prometheus.Collector{c.metrics.late, c.metrics.sent, c.metrics.delivered} {
				assert.Zero(t, testutil.CollectAndCount(metric))
			}
		}
	})
}

func TestAClockThatIsSet(t *testing.T) {
	t.Parallel()
	schedule, err := config.ParseSchedule("0 * * * *", "UTC")
	require.NoError(t, err)
	at := func(hour, minute int) time.Time { return time.Date(2026, 11, 21, hour, minute, 30, 0, time.UTC) }
	due := func(tt *timetable, now time.Time) string {
		tick, missed := tt.due(now)
		if !tick.IsZero() {
			tt.last = tick
		}
		return fmt.Sprintf("%s %t", tick.Format("15:04"), missed)
	}
	tt := &timetable{schedule: schedule, last: at(4, 0)}
	assert.Equal(t, "00:00 false", due(tt, at(4, 59)))
	assert.Equal(t, "05:00 false", due(tt, at(5, 0)))
	assert.Equal(t, "00:00 false", due(tt, at(5, 0)))
	assert.Equal(t, "09:00 true", due(tt, at(9, 0)), "the machine slept")
	assert.Equal(t, "00:00 true", due(tt, at(12, 30)))
	assert.Equal(t, "00:00 false", due(tt, at(12, 31)), "a tick is missed once")
	assert.Equal(t, "00:00 false", due(tt, at(2, 30)), "set back")
	assert.Equal(t, "03:00 false", due(tt, at(3, 0)))
	assert.LessOrEqual(t, tt.wait(at(3, 0)), recheck)
}
