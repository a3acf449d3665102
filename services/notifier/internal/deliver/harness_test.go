package deliver_test

import (
	"context"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"sync"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/stretchr/testify/require"
	"go.uber.org/goleak"
	"google.golang.org/protobuf/types/known/timestamppb"

	"github.com/lifeboat-fleet/lifeboat/fleet/bus"
	"github.com/lifeboat-fleet/lifeboat/fleet/config"
	"github.com/lifeboat-fleet/lifeboat/fleet/fleettest/natstest"
	"github.com/lifeboat-fleet/lifeboat/fleet/service"
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
		Bus: b, Config: l.cfg, Changed: make(chan struct{}), Logger: log, Registerer: reg, Now: l.now, Pages: noPages{},
		Sender:  func(r config.Receiver) (deliver.Sender, error) { return &sender{l.chat, r.Name, actor}, nil },
		Budgets: budget.New(budget.Options{Store: b, Now: l.now, Logger: log, Registerer: reg}),
	})
	ctx, cancel := context.WithCancel(context.Background())
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

// chat takes messages, or answers as it is told.
type chat struct {
	mu      sync.Mutex
	sent    []message
	answers []func(receiver string, n notice.Notice) error
	asked   int
	parts   int
	changed chan struct{}
}

func newChat() *chat { return &chat{changed: make(chan struct{}), parts: 1} }

// answer is asked for each request until it says nil-able; a rule returns nil to let it pass.
func (c *chat) rule(f func(receiver string, n notice.Notice) error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.answers = nil
	if f != nil {
		c.answers = append(c.answers, f)
	}
}

func (c *chat) messages() []message {
	c.mu.Lock()
	defer c.mu.Unlock()
	return slices.Clone(c.sent)
}

func (c *chat) requests() int {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.asked
}

func (c *chat) titles() []string {
	var out []string
	for _, m := range c.messages() {
		out = append(out, m.receiver+": "+m.notice.Title)
	}
	return out
}

func (c *chat) news() <-chan struct{} {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.changed
}

// sender is a receiver's way into the chat.
type sender struct {
	chat     *chat
	receiver string
	by       string
}

func (s *sender) Key() (string, error) { return "chat-" + s.receiver, nil }

func (s *sender) Split(n notice.Notice) []notice.Notice {
	s.chat.mu.Lock()
	defer s.chat.mu.Unlock()
	out := make([]notice.Notice, 0, s.chat.parts)
	for i := range s.chat.parts {
		part := n
		if s.chat.parts > 1 {
			part.Footer = fmt.Sprintf("part %d", i+1)
		}
		out = append(out, part)
	}
	return out
}

func (s *sender) Send(ctx context.Context, n notice.Notice, before notice.Ref, take notice.Take) (notice.Ref, error) {
	call := notice.Post
	if before.ID != "" {
		call = notice.Update
	}
	if err := take(ctx, call); err != nil {
		return notice.Ref{}, err
	}
	c := s.chat
	c.mu.Lock()
	rules := slices.Clone(c.answers)
	c.asked++
	close(c.changed)
	c.changed = make(chan struct{})
	c.mu.Unlock()
	for _, rule := range rules {
		if err := rule(s.receiver, n); err != nil {
			return notice.Ref{}, err
		}
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	ref := before
	if ref.ID == "" {
		ref = notice.Ref{Channel: s.receiver, ID: strconv.Itoa(len(c.sent) + 1), Posted: time.Now()}
	}
	c.sent = append(c.sent, message{s.by, s.receiver, n, before, ref})
	close(c.changed)
	c.changed = make(chan struct{})
	return ref, nil
}
