package emit

import (
	"context"
	"fmt"
	"log/slog"
	"sync"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"go.uber.org/goleak"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/timestamppb"

	"github.com/lifeboat-fleet/lifeboat/fleet/bus"
	"github.com/lifeboat-fleet/lifeboat/fleet/config"
	"github.com/lifeboat-fleet/lifeboat/fleet/fleettest/natstest"
	lifeboatv1 "github.com/lifeboat-fleet/lifeboat/proto/lifeboat/v1"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// wallClock is a clock that tests set. It goes on by itself.
type wallClock struct {
	mu     sync.Mutex
	offset time.Duration
}

func (c *wallClock) Now() time.Time {
	c.mu.Lock()
	defer c.mu.Unlock()
	return time.Now().Add(c.offset).Round(0)
}

func (c *wallClock) step(by time.Duration) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.offset += by
}

// set makes it a time of 2026-11-21.
func (c *wallClock) set(t *testing.T, s string) {
	t.Helper()
	c.step(clock(t, s).Sub(c.Now()))
}

// target is the one that most tests are about.
const target = "t-0"

// lab is a NATS with the streams, and a clock.
type lab struct {
	*wallClock
	t   *testing.T
	bus *bus.Bus
	url string
}

func newLab(t *testing.T, at string) *lab {
	t.Helper()
	s := natstest.New(t)
	l := &lab{wallClock: &wallClock{}, t: t, url: s.URL()}
	l.bus = l.connect("test")
	require.NoError(t, l.bus.EnsureStreams(t.Context()))
	l.set(t, at)
	return l
}

func (l *lab) connect(actor string) *bus.Bus {
	l.t.Helper()
	b, err := bus.Connect(bus.Options{
		Config: config.NATS{URL: l.url}, Actor: actor, Logger: slog.New(slog.DiscardHandler), Registerer: prometheus.NewRegistry(),
	})
	require.NoError(l.t, err)
	l.t.Cleanup(func() { assert.NoError(l.t, b.Close()) })
	return b
}

// parse reads a configuration whose targets are etcds named t-0, t-1, ... with the given settings.
func parse(t *testing.T, targets ...string) *config.Config {
	t.Helper()
	yaml := "store: {bucket: backups}\ntargets:\n"
	for i, settings := range targets {
		yaml += fmt.Sprintf("  - {name: t-%d, etcd: {endpoints: [\"http://127.0.0.1:2379\"]}, %s}\n", i, settings)
	}
	if len(targets) == 0 {
		yaml = "store: {bucket: backups}\n"
	}
	cfg, err := config.Parse("lifeboat.yaml", []byte(yaml))
	require.NoError(t, err)
	return cfg
}

// replica is one scheduler.
type replica struct {
	mu      sync.Mutex
	cfg     *config.Config
	changed chan struct{}
	stop    func()
}

func (r *replica) config() *config.Config {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.cfg
}

// reload gives it a configuration; without one it only wakes up.
func (r *replica) reload(cfg *config.Config) {
	if cfg != nil {
		r.mu.Lock()
		r.cfg = cfg
		r.mu.Unlock()
	}
	select {
	case r.changed <- struct{}{}:
	default:
	}
}

func (l *lab) start(cfg *config.Config) *replica {
	l.t.Helper()
	return startReplica(l.t, l.connect("scheduler"), cfg, l.Now)
}

func startReplica(t *testing.T, b Bus, cfg *config.Config, now func() time.Time) *replica {
	t.Helper()
	return replicaWith(t, b, cfg, now, slog.New(slog.NewTextHandler(t.Output(), nil)), prometheus.NewRegistry())
}

func replicaWith(
	t *testing.T, b Bus, cfg *config.Config, now func() time.Time, log *slog.Logger, reg *prometheus.Registry,
) *replica {
	t.Helper()
	r := &replica{cfg: cfg, changed: make(chan struct{}, 1)}
	e := New(Options{Bus: b, Config: r.config, Changed: r.changed, Logger: log, Registerer: reg, Now: now})
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- e.Run(ctx) }()
	r.stop = sync.OnceFunc(func() {
		cancel()
		assert.NoError(t, <-done)
	})
	t.Cleanup(r.stop)
	return r
}

func (l *lab) state(target string) (*lifeboatv1.ScheduleState, uint64) {
	l.t.Helper()
	s := &lifeboatv1.ScheduleState{}
	seq, _, err := l.bus.Last(l.t.Context(), bus.StreamJobs, bus.ScheduleSubject(target, "snapshot"), s)
	require.NoError(l.t, err)
	return s, seq
}

// decided writes a state of before: a line, and the tick that was decided last.
func (l *lab) decided(line, tick string, change func(*lifeboatv1.ScheduleState)) {
	l.t.Helper()
	s := &lifeboatv1.ScheduleState{
		Tick: timestamppb.New(clock(l.t, tick)), Outcome: lifeboatv1.ScheduleState_OUTCOME_EMITTED, Schedule: line,
		DecidedAt: timestamppb.New(clock(l.t, tick)),
	}
	if change != nil {
		change(s)
	}
	_, seq := l.state(target)
	l.write(target, s, seq)
}

func (l *lab) write(target string, s *lifeboatv1.ScheduleState, seq uint64) {
	l.t.Helper()
	_, err := l.put(target, s, seq)
	require.NoError(l.t, err)
}

func (l *lab) put(target string, s *lifeboatv1.ScheduleState, seq uint64) (uint64, error) {
	return l.bus.PutState(l.t.Context(), bus.State{
		Outgoing: bus.Outgoing{Subject: bus.ScheduleSubject(target, "snapshot"), Message: s}, Expect: seq,
	})
}

// job is the one that waits for the target: its tick, or "" when there is none.
func (l *lab) job() (tick string, seq uint64, id string) {
	l.t.Helper()
	j := &lifeboatv1.Job{}
	seq, at, err := l.bus.Last(l.t.Context(), bus.StreamJobs, bus.JobSubject(config.WorkSnapshot, target), j)
	require.NoError(l.t, err)
	if seq == 0 {
		return "", 0, ""
	}
	return j.GetTick().AsTime().UTC().Format("15:04:05"), seq, (&bus.Message{Seq: seq, Stored: at}).ID()
}

// end ends the job that waits for the target, as a worker does that did it.
func (l *lab) end() {
	l.t.Helper()
	_, seq, _ := l.job()
	require.NotZero(l.t, seq)
	require.NoError(l.t, l.bus.Delete(l.t.Context(), bus.StreamJobs, seq))
}

// events are those of a noun and verb about the target, in order.
func (l *lab) events(noun, verb string) []*lifeboatv1.Event {
	l.t.Helper()
	var all []*lifeboatv1.Event
	err := l.bus.History(l.t.Context(), bus.StreamEvents, []string{bus.EventSubject(noun, verb, target)}, time.Time{}, func(m *bus.Message) error {
		e := &lifeboatv1.Event{}
		all = append(all, e)
		return bus.Decode(m.Data, e)
	})
	require.NoError(l.t, err)
	return all
}

// missed are what the audit log says of the target's missed ticks: "<reason> <count> <from> <to>".
func (l *lab) missed() []string {
	l.t.Helper()
	var all []string
	for _, e := range l.events("tick", "missed") {
		a := e.GetAttributes()
		assert.Equal(l.t, "snapshot", a["work"])
		assert.NotEmpty(l.t, e.GetMessage())
		for _, reason := range []string{reasonDown, reasonPaused, reasonBlackout, reasonOverlap, reasonRemoved} {
			if a[reason+"_count"] == "" {
				continue
			}
			var times [2]string
			for i, end := range []string{"_from", "_to"} {
				at, err := time.Parse(time.RFC3339, a[reason+end])
				require.NoError(l.t, err)
				times[i] = at.Format("15:04:05")
			}
			all = append(all, fmt.Sprintf("%s %s %s %s", reason, a[reason+"_count"], times[0], times[1]))
		}
	}
	return all
}

func (l *lab) eventually(what string, ok func() bool) {
	l.t.Helper()
	require.Eventually(l.t, ok, time.Minute, 10*time.Millisecond, what)
}

// settled waits until the target's state says something, its missed ticks are recorded and its anchor, if it is one, is written.
func (l *lab) settled(what string, ok func(*lifeboatv1.ScheduleState) bool) *lifeboatv1.ScheduleState {
	l.t.Helper()
	var found *lifeboatv1.ScheduleState
	l.eventually(what, func() bool {
		s, _ := l.state(target)
		found, _ = proto.Clone(s).(*lifeboatv1.ScheduleState)
		return s.GetTick() != nil && (s.GetRecorded() || len(s.GetMissed()) == 0) && ok(s)
	})
	return found
}

func at(s *lifeboatv1.ScheduleState) string { return s.GetTick().AsTime().UTC().Format("15:04:05") }

func pendingOf(s *lifeboatv1.ScheduleState) []string {
	var all []time.Time
	for _, p := range s.GetPending() {
		all = append(all, p.AsTime())
	}
	return show(all)
}
