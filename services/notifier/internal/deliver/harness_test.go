package deliver_test

import (
	"context"
	"errors"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/stretchr/testify/require"
	"go.opentelemetry.io/otel/trace"
	"go.uber.org/goleak"
	"google.golang.org/protobuf/types/known/timestamppb"

	"github.com/lifeboat-fleet/lifeboat/fleet/bus"
	"github.com/lifeboat-fleet/lifeboat/fleet/config"
	"github.com/lifeboat-fleet/lifeboat/fleet/fleettest/natstest"
	"github.com/lifeboat-fleet/lifeboat/fleet/service"
	"github.com/lifeboat-fleet/lifeboat/fleet/tracing"
	lifeboatv1 "github.com/lifeboat-fleet/lifeboat/proto/lifeboat/v1"
	"github.com/lifeboat-fleet/lifeboat/services/notifier/internal/budget"
	"github.com/lifeboat-fleet/lifeboat/services/notifier/internal/deliver"
	"github.com/lifeboat-fleet/lifeboat/services/notifier/internal/notice"
	"github.com/lifeboat-fleet/lifeboat/services/notifier/internal/runbook"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// patience bounds every wait; a test that passes takes a small part of it.
const patience = 60 * time.Second

// lab is a NATS server, a chat that does as it is told, and the records of what happened.
type lab struct {
	t    *testing.T
	nats *natstest.Server
	bus  *bus.Bus
	chat *chat
	cfg  func() *config.Config

	mu     sync.Mutex
	ahead  time.Duration
	ends   []*lifeboatv1.Event
	letter []*lifeboatv1.DeadLetter
	news   chan struct{}
	// broken is a receiver whose sender cannot be made.
	broken string
	// refuses makes NATS refuse so many states of groups.
	refuses atomic.Int64
	// tracer makes the spans of the notifiers; nil: nobody does.
	tracer trace.Tracer
}

func newLab(t *testing.T, notifier string) *lab {
	t.Helper()
	l := &lab{t: t, nats: natstest.New(t), chat: newChat(), news: make(chan struct{})}
	dir := t.TempDir()
	for _, name := range []string{"a", "b"} {
		require.NoError(t, os.WriteFile(filepath.Join(dir, name), []byte("http://127.0.0.1/"+name), 0o600))
	}
	cfg, err := config.Parse(filepath.Join(dir, "lifeboat.yaml"), []byte("nats: {url: "+l.nats.URL()+"}\nnotifier:\n"+notifier))
	require.NoError(t, err)
	l.cfg = func() *config.Config { return cfg }
	l.bus = l.connect("observer")
	require.NoError(t, l.bus.EnsureStreams(t.Context()))
	ctx, cancel := context.WithCancel(context.Background())
	var wg sync.WaitGroup
	began := make(chan struct{}, 2)
	follow := func(stream, filter string, take func(*bus.Message)) {
		wg.Go(func() {
			_ = l.bus.Follow(ctx, bus.Follower{
				Stream: stream, Filters: []string{filter}, CaughtUp: func() { began <- struct{}{} },
				Message: func(_ context.Context, m *bus.Message) { take(m); l.changed() },
			})
		})
	}
	follow(bus.StreamEvents, "lifeboat.event.alert.>", func(m *bus.Message) {
		e := &lifeboatv1.Event{}
		if bus.Decode(m.Data, e) == nil {
			l.mu.Lock()
			l.ends = append(l.ends, e)
			l.mu.Unlock()
		}
	})
	follow(bus.StreamDead, "lifeboat.dead.>", func(m *bus.Message) {
		d := &lifeboatv1.DeadLetter{}
		if bus.Decode(m.Data, d) == nil {
			l.mu.Lock()
			l.letter = append(l.letter, d)
			l.mu.Unlock()
		}
	})
	<-began
	<-began
	t.Cleanup(func() { cancel(); wg.Wait() })
	return l
}

func (l *lab) connect(actor string) *bus.Bus {
	l.t.Helper()
	log, err := service.NewLogger(io.Discard, "error")
	require.NoError(l.t, err)
	b, err := bus.Connect(bus.Options{Config: config.NATS{URL: l.nats.URL()}, Actor: actor, Logger: log, Registerer: prometheus.NewRegistry()})
	require.NoError(l.t, err)
	l.t.Cleanup(func() { _ = b.Close() }) // the server may be stopped
	return b
}

// now is the clock of all parts; pass moves it.
func (l *lab) now() time.Time {
	l.mu.Lock()
	defer l.mu.Unlock()
	return time.Now().Add(l.ahead)
}

func (l *lab) pass(d time.Duration) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.ahead += d
}

// run starts a notifier's deliveries, and returns how to stop them.
func (l *lab) run(actor string) (stop func()) {
	l.t.Helper()
	log, err := service.NewLogger(testWriter{l.t}, "warn")
	require.NoError(l.t, err)
	b, reg := l.connect(actor), prometheus.NewRegistry()
	d := deliver.New(deliver.Options{
		Bus: &store{b, l}, Config: l.cfg, Changed: make(chan struct{}), Logger: log, Registerer: reg, Now: l.now, Pages: noPages{},
		Sender: func(r config.Receiver) (deliver.Sender, error) {
			if r.Name == l.broken {
				return nil, errors.New("its file is not there")
			}
			return &sender{l.chat, r.Name, actor}, nil
		},
		Budgets: budget.New(budget.Options{Store: b, Now: l.now, Logger: log, Registerer: reg}),
	})
	ctx, cancel := context.WithCancel(context.Background())
	if l.tracer != nil {
		ctx = tracing.With(ctx, l.tracer)
	}
	done := make(chan error, 1)
	go func() { done <- d.Run(ctx) }()
	stop = sync.OnceFunc(func() {
		cancel()
		if err := <-done; err != nil {
			l.t.Errorf("%s ended with: %v", actor, err)
		}
	})
	l.t.Cleanup(stop)
	return stop
}

// store is NATS, but for what it refuses.
type store struct {
	*bus.Bus
	l *lab
}

func (s *store) PutState(ctx context.Context, state bus.State) (uint64, error) {
	if strings.HasPrefix(state.Subject, bus.GroupSubject("one", "")) && s.l.refuses.Add(-1) >= 0 {
		return 0, errors.New("no space left on device")
	}
	return s.Bus.PutState(ctx, state)
}

type testWriter struct{ t *testing.T }

func (w testWriter) Write(p []byte) (int, error) {
	w.t.Logf("%s", p)
	return len(p), nil
}

func (l *lab) changed() {
	l.mu.Lock()
	defer l.mu.Unlock()
	close(l.news)
	l.news = make(chan struct{})
}

// wait returns when done says so; it is asked after each event, dead letter and message.
func (l *lab) wait(what string, done func() bool) {
	l.t.Helper()
	ctx, cancel := context.WithTimeout(l.t.Context(), patience)
	defer cancel()
	for {
		l.mu.Lock()
		news := l.news
		l.mu.Unlock()
		sent := l.chat.news()
		if done() {
			return
		}
		select {
		case <-news:
		case <-sent:
		case <-ctx.Done():
			l.t.Fatalf("waiting for %s\nchat: %v\nends: %v", what, l.chat.titles(), l.ended())
		}
	}
}

// ended sums up the alerts of the events by verb.
func (l *lab) ended() map[string]int {
	l.mu.Lock()
	defer l.mu.Unlock()
	sum := map[string]int{}
	for _, e := range l.ends {
		n, _ := strconv.Atoi(e.GetAttributes()["alerts"])
		held, _ := strconv.Atoi(e.GetAttributes()["held"])
		sum[e.GetVerb()] += n - held
	}
	return sum
}

// waitEnded waits until so many alerts have come to an end, and asserts how.
func (l *lab) waitEnded(want map[string]int) {
	l.t.Helper()
	total := 0
	for _, n := range want {
		total += n
	}
	l.wait("the ends of all alerts", func() bool {
		sum := 0
		for _, n := range l.ended() {
			sum += n
		}
		return sum >= total
	})
	require.Equal(l.t, want, l.ended())
}

func (l *lab) letters() []*lifeboatv1.DeadLetter {
	l.mu.Lock()
	defer l.mu.Unlock()
	return slices.Clone(l.letter)
}

// send stores a notification of one group, as the webhook does.
func (l *lab) send(group string, alerts ...*lifeboatv1.Alert) {
	l.t.Helper()
	n := &lifeboatv1.Notification{
		ReceivedAt: timestamppb.New(l.now()), Origin: "alertmanager", GroupKey: group, Receiver: "lifeboat", Alerts: alerts,
	}
	_, err := l.bus.Publish(l.t.Context(), bus.Outgoing{Subject: bus.SubjectReceived, Message: n})
	require.NoError(l.t, err)
}

// trouble is what stands in a budget.
func (l *lab) trouble(key string) string {
	b := &lifeboatv1.Budget{}
	if _, _, err := l.bus.Last(l.t.Context(), bus.StreamAlerts, bus.BudgetSubject(key), b); err != nil {
		return err.Error()
	}
	return b.GetTrouble()
}

func alert(name, status, severity string) *lifeboatv1.Alert {
	starts := time.Date(2026, 11, 21, 4, 0, 0, 0, time.UTC)
	a := &lifeboatv1.Alert{
		Status: status, Labels: map[string]string{"alertname": name, "severity": severity}, Fingerprint: "f-" + name, StartsAt: timestamppb.New(starts),
	}
	if status == "resolved" {
		a.EndsAt = timestamppb.New(starts.Add(time.Hour))
	}
	return a
}

// noPages has no runbooks.
type noPages struct{}

func (noPages) Page(context.Context, config.Runbooks, string, map[string]string) runbook.Page {
	return runbook.Page{}
}
func (noPages) Count(string) {}

// message is one that the chat took.
type message struct {
	by, receiver string
	notice       notice.Notice
	before       notice.Ref
	ref          notice.Ref
}

// waitQueued waits until so many deliveries are in the stream.
func (l *lab) waitQueued(n uint64) {
	l.t.Helper()
	require.Eventually(l.t, func() bool {
		subjects, err := l.bus.Subjects(l.t.Context(), bus.StreamAlerts, bus.DeliverySubject(">"))
		sum := uint64(0)
		for _, waiting := range subjects {
			sum += waiting
		}
		return err == nil && sum == n
	}, patience, 10*time.Millisecond)
}
