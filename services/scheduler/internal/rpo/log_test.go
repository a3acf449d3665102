package rpo_test

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"path"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"go.uber.org/goleak"
	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/types/known/timestamppb"

	"github.com/lifeboat-fleet/lifeboat/fleet/bus"
	"github.com/lifeboat-fleet/lifeboat/fleet/config"
	lifeboatv1 "github.com/lifeboat-fleet/lifeboat/proto/lifeboat/v1"
	"github.com/lifeboat-fleet/lifeboat/services/scheduler/internal/rpo"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// auditLog is LIFEBOAT_EVENTS in memory, on the clock of a synctest bubble: it keeps events, knows their ids, and tells followers.
type auditLog struct {
	mu        sync.Mutex
	events    []*bus.Message
	ids       map[string]bool
	followers map[*follower]bool
	// broken is what storing returns.
	broken error
	// history is what the bucket knows; nil: no worker is there.
	history func(target string) (*lifeboatv1.History, error)
	asked   int
	// held keeps a follower from catching up until it is closed.
	held chan struct{}
}

type follower struct {
	bus.Follower
	messages chan *bus.Message
	reset    chan struct{}
}

func newLog() *auditLog {
	return &auditLog{ids: map[string]bool{}, followers: map[*follower]bool{}}
}

func (l *auditLog) Actor() string { return "lifeboat-scheduler@test" }

func (l *auditLog) Follow(ctx context.Context, f bus.Follower) error {
	tell := f.Message
	f.Message = func(ctx context.Context, m *bus.Message) {
		if slices.ContainsFunc(f.Filters, func(filter string) bool {
			ok, _ := path.Match(strings.ReplaceAll(filter, ".", "/"), strings.ReplaceAll(m.Subject, ".", "/")) // the patterns are well-formed
			return ok
		}) {
			tell(ctx, m)
		}
	}
	fl := &follower{Follower: f, messages: make(chan *bus.Message, 1000), reset: make(chan struct{})}
	l.mu.Lock()
	held := l.held
	for _, m := range l.events {
		fl.messages <- m
	}
	l.followers[fl] = true
	l.mu.Unlock()
	defer func() {
		l.mu.Lock()
		defer l.mu.Unlock()
		delete(l.followers, fl)
	}()
	if held != nil {
		select {
		case <-held:
		case <-ctx.Done():
			return nil
		}
	}
	for len(fl.messages) > 0 {
		f.Message(ctx, <-fl.messages)
	}
	f.CaughtUp()
	for {
		select {
		case m := <-fl.messages:
			f.Message(ctx, m)
		case <-fl.reset:
			f.Reset()
		case <-ctx.Done():
			return nil
		}
	}
}

func (l *auditLog) PublishAll(_ context.Context, all []bus.Outgoing) error {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.broken != nil {
		return l.broken
	}
	for _, o := range all {
		if l.ids[o.ID] {
			continue
		}
		l.ids[o.ID] = true
		data, err := protojson.Marshal(o.Message)
		if err != nil {
			return err
		}
		m := &bus.Message{Subject: o.Subject, Data: data, Seq: uint64(len(l.events) + 1), Stored: time.Now()}
		l.events = append(l.events, m)
		for f := range l.followers {
			f.messages <- m
		}
	}
	return nil
}

func (l *auditLog) AskHistory(_ context.Context, target string) (*lifeboatv1.History, error) {
	<-time.After(time.Millisecond) // as a server's answer takes
	l.mu.Lock()
	defer l.mu.Unlock()
	l.asked++
	if l.history == nil {
		return nil, fmt.Errorf("asking: %w", bus.ErrNoWorker)
	}
	return l.history(target)
}

// lose makes the stream anew: everything in it is gone.
func (l *auditLog) lose() {
	l.mu.Lock()
	l.events, l.ids = nil, map[string]bool{}
	var all []*follower
	for f := range l.followers {
		all = append(all, f)
	}
	l.mu.Unlock()
	for _, f := range all {
		f.reset <- struct{}{}
	}
}

func (l *auditLog) set(change func(*auditLog)) {
	l.mu.Lock()
	defer l.mu.Unlock()
	change(l)
}

// commit is a worker's snapshot whose data was read some time ago.
func (l *auditLog) commit(t *testing.T, target string, ago time.Duration) {
	t.Helper()
	require.NoError(t, l.PublishAll(t.Context(), []bus.Outgoing{{
		Subject: bus.EventSubject("snapshot", "committed", target), ID: fmt.Sprint("committed", target, time.Now()),
		Message: &lifeboatv1.Event{Detail: &lifeboatv1.Event_Manifest{Manifest: &lifeboatv1.Manifest{
			Id: "s", StartedAt: timestamppb.New(time.Now().Add(-ago)),
		}}},
	}}))
}

// said are the events of a kind about a target, with when they were stored.
func (l *auditLog) said(noun, verb, target string) (at []time.Time) {
	l.mu.Lock()
	defer l.mu.Unlock()
	for _, m := range l.events {
		if m.Subject == bus.EventSubject(noun, verb, target) {
			at = append(at, m.Stored)
		}
	}
	return at
}

func (l *auditLog) last(t *testing.T, verb string) *lifeboatv1.Event {
	t.Helper()
	l.mu.Lock()
	defer l.mu.Unlock()
	e := &lifeboatv1.Event{}
	for _, m := range l.events {
		if m.Subject == bus.EventSubject("rpo", verb, "t-0") {
			require.NoError(t, bus.Decode(m.Data, e))
		}
	}
	return e
}

// replica is a watch with a clock and a configuration of its own.
type replica struct {
	registry *prometheus.Registry
	config   atomic.Pointer[config.Config]
	changed  chan struct{}
	skew     atomic.Int64
	stop     func()
}

func fileOf(targets int, rpo time.Duration) *config.Config {
	cfg := &config.Config{}
	for i := range targets {
		cfg.Targets = append(cfg.Targets, config.Target{Name: fmt.Sprintf("t-%d", i), RPO: rpo})
	}
	return cfg
}

// start runs a replica in the bubble until the test ends.
func start(t *testing.T, l rpo.Bus, cfg *config.Config, skew time.Duration) *replica {
	t.Helper()
	r := &replica{registry: prometheus.NewRegistry(), changed: make(chan struct{}, 1)}
	r.config.Store(cfg)
	r.skew.Store(int64(skew))
	w := rpo.New(rpo.Options{
		Bus: l, Config: r.config.Load, Changed: r.changed, Registerer: r.registry,
		Logger: slog.New(slog.DiscardHandler),
		Now:    func() time.Time { return time.Now().Add(time.Duration(r.skew.Load())) },
	})
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- w.Run(ctx) }()
	r.stop = sync.OnceFunc(func() {
		cancel()
		assert.NoError(t, <-done)
	})
	t.Cleanup(r.stop)
	return r
}

func (r *replica) reload(cfg *config.Config) {
	r.config.Store(cfg)
	r.changed <- struct{}{}
}

// after lets the bubble's time pass and everything settle.
func after(d time.Duration) {
	<-time.After(d)
	synctest.Wait()
}

var errNATS = errors.New("NATS is away")

// deafLog is the log of a replica to which no worker answers.
type deafLog struct{ *auditLog }

func (*deafLog) AskHistory(context.Context, string) (*lifeboatv1.History, error) {
	return nil, bus.ErrNoWorker
}
