package rpo

import (
	"context"
	"fmt"
	"log/slog"
	"runtime"
	"testing"
	"time"
	"unsafe"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/lifeboat-fleet/lifeboat/fleet/bus"
	"github.com/lifeboat-fleet/lifeboat/fleet/config"
	lifeboatv1 "github.com/lifeboat-fleet/lifeboat/proto/lifeboat/v1"
)

const many = 100_000

// silentBus takes everything and answers nothing.
type silentBus struct{ published int }

func (*silentBus) Actor() string { return "test" }

func (*silentBus) Follow(ctx context.Context, _ bus.Follower) error {
	<-ctx.Done()
	return nil
}

func (b *silentBus) PublishAll(_ context.Context, all []bus.Outgoing) error {
	b.published += len(all)
	return nil
}

func (*silentBus) AskHistory(context.Context, string) (*lifeboatv1.History, error) {
	return nil, bus.ErrNoWorker
}

// fleet is a watch of many targets that has heard of a snapshot of each, and a clock that is set by hand.
func fleet(tb testing.TB) (w *Watch, now *time.Time) {
	tb.Helper()
	begin := time.Date(2026, 11, 21, 12, 0, 0, 0, time.UTC)
	cfg := &config.Config{Targets: make([]config.Target, many)}
	for i := range cfg.Targets {
		cfg.Targets[i] = config.Target{Name: fmt.Sprintf("target-%d", i), RPO: 12 * time.Hour}
	}
	now = &begin
	w = New(Options{
		Bus: &silentBus{}, Config: func() *config.Config { return cfg }, Logger: slog.New(slog.DiscardHandler),
		Registerer: prometheus.NewRegistry(), Now: func() time.Time { return *now },
	})
	for i := range cfg.Targets {
		// Each began some other second of the last hours.
		w.hear(&bus.Message{
			Subject: bus.EventSubject("snapshot", "committed", cfg.Targets[i].Name),
			Data:    fmt.Appendf(nil, `{"manifest":{"id":"x","startedAt":%q}}`, begin.Add(-time.Duration(i%36000)*time.Second).Format(time.RFC3339)),
			Stored:  begin,
		})
	}
	w.begin()
	require.Equal(tb, maxSleep, w.round(tb.Context()))
	return w, now
}

// An idle minute of 100,000 targets is a few looks at the clock, each of which touches and allocates nothing; and a target costs
// little memory.
func TestManyTargetsCostLittle(t *testing.T) {
	var before, after runtime.MemStats
	runtime.GC()
	runtime.ReadMemStats(&before)
	w, now := fleet(t)
	cfg := w.config
	runtime.GC()
	runtime.ReadMemStats(&after)
	perTarget := float64(after.HeapAlloc-before.HeapAlloc)/many - float64(unsafe.Sizeof(config.Target{})) - 16 // and its name
	t.Logf("%.0f bytes a target, beside the configuration", perTarget)
	assert.Less(t, perTarget, 400.0)

	allocations := testing.AllocsPerRun(100, func() {
		*now = now.Add(time.Millisecond)
		if events, sleep := w.due(context.Background()); len(events) > 0 || sleep < time.Second {
			t.Fatal("something is due")
		}
	})
	assert.Zero(t, allocations, "nothing is looked at that is not due")
	// Three hours later those are late that had been read nine hours before: twice 3,600, as the ages go round.
	*now = now.Add(3 * time.Hour)
	for w.round(t.Context()) == batchPause {
		*now = now.Add(time.Microsecond)
	}
	b, ok := w.Bus.(*silentBus)
	require.True(t, ok)
	assert.InDelta(t, 7200, b.published, 10)
	runtime.KeepAlive(cfg)
}

// BenchmarkIdleMinute is what the watch does in a minute in which nothing happens. Beside it a minute is 6e10 ns.
func BenchmarkIdleMinute(b *testing.B) {
	w, now := fleet(b)
	b.ReportAllocs()
	for b.Loop() {
		for range int(time.Minute / maxSleep) {
			*now = now.Add(time.Microsecond)
			w.due(context.Background())
		}
	}
	b.ReportMetric(many, "targets")
}

// BenchmarkHear is one event of a target among many.
func BenchmarkHear(b *testing.B) {
	w, _ := fleet(b)
	m := &bus.Message{
		Subject: bus.EventSubject("snapshot", "committed", "target-7"),
		Data:    []byte(`{"manifest":{"id":"x","startedAt":"2026-11-21T11:00:00Z"}}`), Stored: w.Now(),
	}
	b.ReportAllocs()
	for b.Loop() {
		w.hear(m)
	}
}

// BenchmarkStart is the judgement of all targets, as at a start and a reload.
func BenchmarkStart(b *testing.B) {
	w, now := fleet(b)
	for b.Loop() {
		w.planAll(now.UnixNano())
		w.due(context.Background())
	}
}

// BenchmarkScrape is what is gathered of all targets when somebody scrapes, each with five series.
func BenchmarkScrape(b *testing.B) {
	w, _ := fleet(b)
	reg := prometheus.NewRegistry()
	reg.MustRegister(w)
	b.ReportAllocs()
	for b.Loop() {
		families, err := reg.Gather()
		require.NoError(b, err)
		require.Len(b, families, 5)
	}
	b.ReportMetric(5*many, "series")
}
