package app_test

import (
	"bytes"
	"context"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"net/http"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
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
	"github.com/lifeboat-fleet/lifeboat/fleet/fleettest/bintest"
	"github.com/lifeboat-fleet/lifeboat/fleet/fleettest/natstest"
	"github.com/lifeboat-fleet/lifeboat/fleet/service"
	lifeboatv1 "github.com/lifeboat-fleet/lifeboat/proto/lifeboat/v1"
	"github.com/lifeboat-fleet/lifeboat/services/scheduler/app"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// writeConfig writes a file with targets that need no servers: the scheduler never talks to them.
func writeConfig(t *testing.T, url string, targets int, line string) string {
	t.Helper()
	var b strings.Builder
	fmt.Fprintf(&b, "nats: {url: %q}\nstore: {bucket: backups}\ntargets:\n", url)
	for i := range targets {
		fmt.Fprintf(&b, "  - {name: t-%d, schedule: %q, etcd: {endpoints: [\"http://127.0.0.1:2379\"]}}\n", i, line)
	}
	path := filepath.Join(t.TempDir(), "lifeboat.yaml")
	require.NoError(t, os.WriteFile(path, []byte(b.String()), 0o600))
	return path
}

// run starts a scheduler and returns its health address and how to stop it.
func run(t *testing.T, config string) (addr string, stop func()) {
	t.Helper()
	ctx, cancel := context.WithCancel(t.Context())
	started, done := make(chan string, 1), make(chan error, 1)
	go func() {
		done <- app.Run(ctx, app.Options{
			ConfigPath: config, HTTPAddr: "127.0.0.1:0", Logger: slog.New(slog.NewTextHandler(t.Output(), nil)),
			Started: func(addr string) { started <- addr },
		})
	}()
	stop = sync.OnceFunc(func() {
		cancel()
		assert.NoError(t, <-done)
	})
	t.Cleanup(stop)
	select {
	case addr = <-started:
	case err := <-done:
		require.NoError(t, err)
	}
	return addr, stop
}

// worker takes jobs and counts how often each tick came as a job of its own.
type worker struct {
	mu   sync.Mutex
	jobs map[string]map[uint64]bool // target and tick -> sequences
}

func (w *worker) handle(_ context.Context, m *bus.Message) error {
	j := &lifeboatv1.Job{}
	if err := bus.Decode(m.Data, j); err != nil {
		return err
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	key := fmt.Sprintf("%s %d", m.Subject, j.GetTick().AsTime().UnixNano())
	if w.jobs[key] == nil {
		w.jobs[key] = map[uint64]bool{}
	}
	w.jobs[key][m.Seq] = true
	return nil
}

func (w *worker) count() int {
	w.mu.Lock()
	defer w.mu.Unlock()
	return len(w.jobs)
}

func newWorker(t *testing.T, url string) *worker {
	t.Helper()
	b, err := bus.Connect(bus.Options{
		Config: config.NATS{URL: url}, Actor: "test-worker", Logger: slog.New(slog.DiscardHandler), Registerer: prometheus.NewRegistry(),
	})
	require.NoError(t, err)
	w := &worker{jobs: map[string]map[uint64]bool{}}
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() {
		done <- b.Consume(ctx, bus.Consumer{
			Stream: bus.StreamJobs, Durable: "test", Filter: bus.AllJobs(config.WorkSnapshot), AckWait: 5 * time.Second,
			Concurrency: 4, Handle: w.handle,
		})
	}()
	t.Cleanup(func() {
		cancel()
		assert.NoError(t, <-done)
		assert.NoError(t, b.Close())
	})
	return w
}

// missed are the ticks that the audit log calls missed, as target -> number.
func missed(t *testing.T, url string) (ticks int, events []*lifeboatv1.Event) {
	t.Helper()
	nc, err := nats.Connect(url)
	require.NoError(t, err)
	defer nc.Close()
	js, err := jetstream.New(nc)
	require.NoError(t, err)
	s, err := js.Stream(t.Context(), bus.StreamEvents)
	require.NoError(t, err)
	cons, err := s.OrderedConsumer(t.Context(), jetstream.OrderedConsumerConfig{FilterSubjects: []string{"lifeboat.event.tick.missed.*"}})
	require.NoError(t, err)
	info, err := s.Info(t.Context(), jetstream.WithSubjectFilter("lifeboat.event.tick.missed.*"))
	require.NoError(t, err)
	n := 0
	for _, c := range info.State.Subjects {
		n += int(c)
	}
	for range n {
		m, err := cons.Next(jetstream.FetchMaxWait(5 * time.Second))
		require.NoError(t, err)
		e := &lifeboatv1.Event{}
		require.NoError(t, bus.Decode(m.Data(), e))
		events = append(events, e)
		for _, reason := range []string{"down", "overlap", "paused", "blackout", "removed"} {
			if s := e.GetAttributes()[reason+"_count"]; s != "" {
				count, err := strconv.Atoi(s)
				require.NoError(t, err)
				ticks += count
			}
		}
	}
	return ticks, events
}

// Guarantee 1: every tick is emitted exactly once, or recorded as missed with the reason. Three replicas, a NATS that is
// killed with -9 twice, and replicas that are killed and started again; then every tick between a target's first and its
// last is accounted for.
func TestGuarantee1EveryTickOnceThroughKills(t *testing.T) {
	const targets, every = 8, time.Second
	seed := rand.Uint64()
	t.Logf("seed %d", seed)
	r := rand.New(rand.NewPCG(seed, 3))
	server, err := bintest.StartNATS(t.Context(), t.TempDir())
	require.NoError(t, err)
	t.Cleanup(func() { assert.NoError(t, server.Kill()) })
	path := writeConfig(t, server.URL, targets, "@every 1s")
	stops := make([]func(), 3)
	for i := range stops {
		_, stops[i] = run(t, path)
	}
	w := newWorker(t, server.URL)
	for round := range 2 {
		reached := w.count() + targets*(2+r.IntN(2))
		require.Eventually(t, func() bool { return w.count() >= reached }, time.Minute, 10*time.Millisecond)
		require.NoError(t, server.Kill())
		require.NoError(t, server.Restart(t.Context()))
		stops[round]()
		_, stops[round] = run(t, path)
	}
	reached := w.count() + 2*targets
	require.Eventually(t, func() bool { return w.count() >= reached }, time.Minute, 10*time.Millisecond)
	for _, stop := range stops {
		stop()
	}
	require.Eventually(t, func() bool { return pending(t, server.URL) == 0 }, time.Minute, 20*time.Millisecond)

	w.mu.Lock()
	defer w.mu.Unlock()
	first, last := map[string]int64{}, map[string]int64{}
	for key, seqs := range w.jobs {
		assert.Len(t, seqs, 1, "%s was emitted more than once", key)
		var subject string
		var tick int64
		_, err := fmt.Sscan(key, &subject, &tick)
		require.NoError(t, err)
		if first[subject] == 0 || tick < first[subject] {
			first[subject] = tick
		}
		last[subject] = max(last[subject], tick)
	}
	require.Len(t, first, targets)
	want := 0
	for subject := range first {
		want += int((last[subject]-first[subject])/int64(every)) + 1
	}
	lost, events := missed(t, server.URL)
	for _, e := range events {
		assert.NotEmpty(t, e.GetMessage())
		// A tick that was missed after the last job lies outside the span that is counted.
		tick, err := time.Parse(time.RFC3339, e.GetAttributes()["tick"])
		require.NoError(t, err)
		if e.GetAttributes()["reason"] == "overlap" && tick.UnixNano() > last[bus.JobSubject(config.WorkSnapshot, e.GetTarget())] {
			lost--
		}
	}
	t.Logf("%d ticks in the spans, %d emitted, %d recorded as missed", want, len(w.jobs), lost)
	assert.LessOrEqual(t, want, len(w.jobs)+lost, "a tick is neither emitted nor recorded")
	assert.LessOrEqual(t, len(w.jobs), want)
}

// pending counts the jobs in the stream.
func pending(t *testing.T, url string) int {
	t.Helper()
	nc, err := nats.Connect(url)
	require.NoError(t, err)
	defer nc.Close()
	js, err := jetstream.New(nc)
	require.NoError(t, err)
	s, err := js.Stream(t.Context(), bus.StreamJobs)
	require.NoError(t, err)
	info, err := s.Info(t.Context(), jetstream.WithSubjectFilter("lifeboat.job.>"))
	require.NoError(t, err)
	return len(info.State.Subjects)
}

func TestABusyTargetsTickIsRecordedAsMissed(t *testing.T) {
	s := natstest.New(t)
	run(t, writeConfig(t, s.URL(), 1, "@every 1s"))
	// No worker runs: the first tick's job waits, and the second one finds it.
	require.Eventually(t, func() bool {
		nc, err := nats.Connect(s.URL())
		require.NoError(t, err)
		defer nc.Close()
		js, err := jetstream.New(nc)
		require.NoError(t, err)
		_, err = js.Stream(t.Context(), bus.StreamEvents)
		if err != nil {
			return false
		}
		n, events := missed(t, s.URL())
		return n > 0 && strings.Contains(events[0].GetMessage(), "a job waits or runs")
	}, time.Minute, 50*time.Millisecond)
	assert.Equal(t, 1, pending(t, s.URL()))
}

// The escrow key has a schedule of its own: its jobs say which identity to decrypt with, and its ticks are accounted for on
// their own, also those that find the other schedule's drill running.
func TestDrillsWithTheEscrowIdentityHaveTheirOwnSchedule(t *testing.T) {
	s := natstest.New(t)
	path := filepath.Join(t.TempDir(), "lifeboat.yaml")
	require.NoError(t, os.WriteFile(path, fmt.Appendf(nil, "nats: {url: %q}\nstore: {bucket: backups}\ntargets:\n"+
		"  - name: t-0\n    etcd: {endpoints: [\"http://127.0.0.1:2379\"]}\n"+
		"    drill: {schedule: '@every 2s', escrow: {schedule: '@every 1s', identity_file: escrow.key}}\n", s.URL()), 0o600))
	run(t, path)
	b, err := bus.Connect(bus.Options{
		Config: config.NATS{URL: s.URL()}, Actor: "test", Logger: slog.New(slog.DiscardHandler), Registerer: prometheus.NewRegistry(),
	})
	require.NoError(t, err)
	t.Cleanup(func() { assert.NoError(t, b.Close()) })
	// Nobody takes the jobs at first: whichever schedule fires next finds one waiting.
	lost := map[string]bool{}
	require.Eventually(t, func() bool {
		if b.Ready(t.Context()) != nil {
			return false
		}
		_, events := missed(t, s.URL())
		for _, e := range events {
			assert.Equal(t, "drill", e.GetAttributes()["work"])
			lost[e.GetAttributes()["schedule"]] = true
		}
		return lost["drill"] && lost["drill-escrow"]
	}, time.Minute, 20*time.Millisecond)
	ctx, cancel := context.WithCancel(t.Context())
	identities, done := make(chan string, 1), make(chan error, 1)
	go func() {
		done <- b.Consume(ctx, bus.Consumer{
			Stream: bus.StreamJobs, Durable: "test", Filter: bus.AllJobs(config.WorkDrill), AckWait: 5 * time.Second,
			Handle: func(ctx context.Context, m *bus.Message) error {
				j := &lifeboatv1.Job{}
				if bad := bus.DecodeStrict(m.Data, j); bad != nil {
					return bad
				}
				assert.Equal(t, "scheduler", j.GetRequestedBy())
				assert.NotNil(t, j.GetTick())
				select {
				case identities <- j.GetIdentity():
				case <-ctx.Done():
				}
				return nil
			},
		})
	}()
	seen := map[string]bool{}
	for !seen[""] || !seen[config.IdentityEscrow] {
		seen[<-identities] = true
	}
	cancel()
	require.NoError(t, <-done)
	assert.Len(t, seen, 2)
	for _, schedule := range []string{"drill", "drill-escrow"} {
		state := &lifeboatv1.ScheduleState{}
		seq, _, err := b.Last(t.Context(), bus.StreamJobs, "lifeboat.state.schedule.t-0."+schedule, state)
		require.NoError(t, err)
		assert.NotZero(t, seq, schedule)
	}
}

func TestTicksThatPassedWhileDownAreRecordedAndTheNewestRuns(t *testing.T) {
	s := natstest.New(t)
	path := writeConfig(t, s.URL(), 1, "@every 1s")
	w := newWorker(t, s.URL())
	_, stop := run(t, path)
	require.Eventually(t, func() bool { return w.count() >= 1 }, time.Minute, 10*time.Millisecond)
	stop()
	before := w.count()
	<-time.After(3500 * time.Millisecond) // the time that passes is what is tested
	run(t, path)
	require.Eventually(t, func() bool { return w.count() > before }, time.Minute, 10*time.Millisecond)
	require.Eventually(t, func() bool {
		n, events := missed(t, s.URL())
		return n >= 2 && strings.Contains(events[0].GetMessage(), "passed while no scheduler ran")
	}, time.Minute, 20*time.Millisecond)
}

// A NATS that lost its data: the schedule starts again from the present, and nothing is said to have been missed since 1970.
func TestANATSThatLostItsDataStartsAgainFromThePresent(t *testing.T) {
	dir := t.TempDir()
	server, err := bintest.StartNATS(t.Context(), dir)
	require.NoError(t, err)
	t.Cleanup(func() { assert.NoError(t, server.Kill()) })
	w := newWorker(t, server.URL)
	run(t, writeConfig(t, server.URL, 2, "@every 1s"))
	require.Eventually(t, func() bool { return w.count() >= 4 }, time.Minute, 10*time.Millisecond)
	require.NoError(t, server.Kill())
	require.NoError(t, os.RemoveAll(filepath.Join(dir, "data")))
	lost := time.Now()
	require.NoError(t, server.Restart(t.Context()))
	before := w.count()
	require.Eventually(t, func() bool { return w.count() >= before+4 }, 60*time.Second, 20*time.Millisecond)
	_, events := missed(t, server.URL)
	for _, e := range events {
		if from := e.GetAttributes()["down_from"]; from != "" {
			at, err := time.Parse(time.RFC3339, from)
			require.NoError(t, err)
			assert.WithinDuration(t, lost, at, time.Minute, e.GetMessage())
		}
	}
}

func TestAnAbsentNATSIsNamedAndWaitedFor(t *testing.T) {
	s := natstest.New(t)
	s.Stop()
	addr, _ := run(t, writeConfig(t, s.URL(), 1, "@every 1s"))
	assert.Equal(t, http.StatusOK, status(t, addr, "/healthz", ""), "alive")
	assert.Equal(t, http.StatusServiceUnavailable, status(t, addr, "/readyz", s.URL()), "not ready, and says what for")
	require.NoError(t, s.Restart())
	require.Eventually(t, func() bool { return status(t, addr, "/readyz", "") == http.StatusOK }, time.Minute, 50*time.Millisecond)
}

func status(t *testing.T, addr, path, body string) int {
	t.Helper()
	resp, err := http.Get("http://" + addr + path)
	require.NoError(t, err)
	var b bytes.Buffer
	_, err = b.ReadFrom(resp.Body)
	require.NoError(t, err)
	require.NoError(t, resp.Body.Close())
	assert.Contains(t, b.String(), body)
	http.DefaultClient.CloseIdleConnections()
	return resp.StatusCode
}

func TestReload(t *testing.T) {
	s := natstest.New(t)
	path := writeConfig(t, s.URL(), 1, "@every 1s")
	w := newWorker(t, s.URL())
	addr, _ := run(t, path)
	require.Eventually(t, func() bool { return w.count() >= 1 }, time.Minute, 10*time.Millisecond)

	good, err := os.ReadFile(path)
	require.NoError(t, err)
	require.NoError(t, os.WriteFile(path, []byte(strings.ReplaceAll(string(good), "@every 1s", "@every tomorrow")), 0o600))
	require.Eventually(t, func() bool { return metric(t, addr, "lifeboat_config_last_reload_successful 0") },
		time.Minute, 20*time.Millisecond, "the refusal shows")
	before := w.count()
	require.Eventually(t, func() bool { return w.count() > before }, time.Minute, 10*time.Millisecond, "the old one stays in force")

	more := strings.ReplaceAll(string(good), "t-0", "added")
	require.NoError(t, os.WriteFile(path, []byte(more), 0o600))
	require.Eventually(t, func() bool {
		w.mu.Lock()
		defer w.mu.Unlock()
		for key := range w.jobs {
			if strings.Contains(key, ".added ") {
				return true
			}
		}
		return false
	}, time.Minute, 20*time.Millisecond, "the new target's ticks are emitted without a restart")
}

func metric(t *testing.T, addr, line string) bool {
	t.Helper()
	resp, err := http.Get("http://" + addr + "/metrics")
	require.NoError(t, err)
	var b bytes.Buffer
	_, err = b.ReadFrom(resp.Body)
	require.NoError(t, err)
	require.NoError(t, resp.Body.Close())
	http.DefaultClient.CloseIdleConnections()
	return strings.Contains(b.String(), line)
}

func TestABadFileIsAUsageError(t *testing.T) {
	path := writeConfig(t, "nats://127.0.0.1:1", 1, "whenever")
	err := app.Run(t.Context(), app.Options{ConfigPath: path, HTTPAddr: "127.0.0.1:0", Logger: slog.New(slog.DiscardHandler)})
	require.ErrorContains(t, err, "lifeboat.yaml:4:")
	require.ErrorContains(t, err, "targets[0].schedule")
	assert.Equal(t, service.ExitUsage, service.ExitCode(err))
}

// RPO: an alarm even when nothing ran at all, and an all-clear when a snapshot is there.
func TestRPOIsWatchedWithoutAnySnapshot(t *testing.T) {
	s := natstest.New(t)
	path := filepath.Join(t.TempDir(), "lifeboat.yaml")
	require.NoError(t, os.WriteFile(path, fmt.Appendf(nil,
		"nats: {url: %q}\nstore: {bucket: backups}\ntargets: [{name: etcd-prod, rpo: 1s, etcd: {endpoints: [\"http://127.0.0.1:2379\"]}}]\n", s.URL()), 0o600))
	run(t, path)
	b, err := bus.Connect(bus.Options{
		Config: config.NATS{URL: s.URL()}, Actor: "test", Logger: slog.New(slog.DiscardHandler), Registerer: prometheus.NewRegistry(),
	})
	require.NoError(t, err)
	t.Cleanup(func() { assert.NoError(t, b.Close()) })
	says := func(verb string) func() bool {
		return func() bool {
			seq, _, err := b.Last(t.Context(), bus.StreamEvents, bus.EventSubject("rpo", verb, "etcd-prod"), &lifeboatv1.Event{})
			return err == nil && seq > 0
		}
	}
	require.Eventually(t, says("exceeded"), time.Minute, 50*time.Millisecond)
	assert.False(t, says("met")())
	require.NoError(t, b.Emit(t.Context(), &lifeboatv1.Event{Noun: "snapshot", Verb: "committed", Target: "etcd-prod"}))
	require.Eventually(t, says("met"), time.Minute, 50*time.Millisecond)
}
