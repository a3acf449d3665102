//go:build chaos

package chaos

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/proto"

	lifeboatv1 "github.com/lifeboat-fleet/lifeboat/proto/lifeboat/v1"
)

const (
	// leastTicks are that many moments at which some schedule fires, in real time.
	leastTicks = 2100
	// longest bounds the faults, and settling what comes after them.
	longest  = 6 * time.Minute
	settling = 4 * time.Minute
)

// Every tick is emitted once or recorded as missed, every job ends, no target has two runs at once, and every manifest tells the
// truth, through faults of every part. CHAOS_SEED repeats a choice of faults, CHAOS_DIR keeps logs and data.
func TestChaos(t *testing.T) {
	seed := rand.Uint64()
	if s := os.Getenv("CHAOS_SEED"); s != "" {
		var err error
		seed, err = strconv.ParseUint(s, 10, 64)
		require.NoError(t, err, "CHAOS_SEED")
	}
	t.Logf("CHAOS_SEED=%d", seed)
	f := start(t)
	trace := f.trace()
	log, err := os.Create(f.path("faults.log"))
	require.NoError(t, err)
	defer log.Close()

	var background sync.WaitGroup
	ctx, stop := context.WithCancel(t.Context())
	defer background.Wait()
	defer stop()
	background.Go(func() { assert.NoError(t, f.fill(ctx), "writing to etcd") })
	schedules := f.begin(trace)

	broken := &faults{fleet: f, seed: seed, done: map[string]int{}, begin: time.Now(), log: log}
	f.breakIt(broken, schedules)
	f.settle(schedules)
	stop()
	background.Wait()

	l := newLedger(schedules)
	f.readLog(l)
	f.readWaiting(l)
	f.readDead(l)
	l.close(f.ended)
	f.readBucket(l)
	f.readLogs(l)
	text := fmt.Sprintf("CHAOS_SEED=%d\nfaults\n%scounts\n%s", seed, broken.table(), l.report())
	t.Log("\n" + text)
	assert.GreaterOrEqual(t, l.counts["ticks"], 2000)
	assert.Greater(t, l.counts["ticks emitted"], l.counts["ticks"]/5, "few ticks were run: the faults were all that there was")
	for kind, all := range l.faults {
		assert.Empty(t, all[:min(len(all), namedFaults)], "%s, %d times; CHAOS_SEED=%d", kind, len(all), seed)
	}
}

// trace keeps what is published about schedules in memory, as a plain subscriber sees it, and writes all traffic into a file for
// whoever looks for a cause.
func (f *fleet) trace() *tracer {
	f.t.Helper()
	out, err := os.Create(f.path("trace.txt"))
	require.NoError(f.t, err)
	tr := &tracer{out: out, anchors: map[string]*lifeboatv1.ScheduleState{}}
	f.t.Cleanup(func() { _ = out.Close() })
	for _, subject := range []string{"lifeboat.state.>", "lifeboat.job.>", "lifeboat.event.>", "lifeboat.dead.>"} {
		_, err := f.nc.Subscribe(subject, tr.message)
		require.NoError(f.t, err)
	}
	require.NoError(f.t, f.nc.Flush())
	return tr
}

type tracer struct {
	mu  sync.Mutex
	out *os.File
	// anchors are the first ones, by subject.
	anchors map[string]*lifeboatv1.ScheduleState
}

func (tr *tracer) message(m *nats.Msg) {
	tr.mu.Lock()
	defer tr.mu.Unlock()
	fmt.Fprintf(tr.out, "%s %s %v %s\n", time.Now().UTC().Format("15:04:05.000"), m.Subject, m.Header, m.Data)
	s := &lifeboatv1.ScheduleState{}
	if !strings.HasPrefix(m.Subject, "lifeboat.state.schedule.") || tr.anchors[m.Subject] != nil || decode(m.Data, s) != nil {
		return
	}
	if s.GetOutcome() == lifeboatv1.ScheduleState_OUTCOME_ANCHOR {
		tr.anchors[m.Subject] = s
	}
}

func decode(data []byte, into proto.Message) error {
	return protojson.UnmarshalOptions{DiscardUnknown: true}.Unmarshal(data, into)
}

// begin starts the services and returns the schedules with their anchors. One scheduler comes first and alone, so that what it
// writes first is what the schedules count from.
func (f *fleet) begin(tr *tracer) []*schedule {
	f.t.Helper()
	require.NoError(f.t, f.schedulers[0].start())
	var all []*schedule
	for _, target := range f.targets {
		for _, s := range target.Schedules() {
			table, err := target.Timetable(s)
			require.NoError(f.t, err)
			require.Equal(f.t, string(s.Work), s.Name, "one schedule per kind of work")
			all = append(all, &schedule{id: scheduleID{target.Name, s.Name}, table: table})
		}
	}
	require.Eventually(f.t, func() bool {
		tr.mu.Lock()
		defer tr.mu.Unlock()
		return len(tr.anchors) == len(all)
	}, 60*time.Second, 50*time.Millisecond, "the first scheduler does not write its anchors")
	for _, s := range all {
		s.anchor = tr.anchors[stateSubject(s.id)].GetTick().AsTime()
	}
	for _, s := range append(f.schedulers[1:], f.workers...) {
		require.NoError(f.t, s.start())
	}
	require.Eventually(f.t, func() bool {
		s, err := f.stream(f.t.Context(), streamEvents)
		return err == nil && s.CachedInfo().State.Msgs > 2*targets
	}, 60*time.Second, 100*time.Millisecond, "the fleet does not begin to work")
	return all
}

func stateSubject(id scheduleID) string {
	return "lifeboat.state.schedule." + id.target + "." + id.work
}

// breakIt makes faults until there were enough ticks and each kind of fault was made.
func (f *fleet) breakIt(b *faults, schedules []*schedule) {
	f.t.Helper()
	ctx, stop := context.WithTimeout(f.t.Context(), longest)
	defer stop()
	failed := make(chan error, 1)
	go func() { failed <- b.run(ctx) }()
	ticker := time.NewTicker(time.Second)
	defer ticker.Stop()
	for ctx.Err() == nil {
		select {
		case err := <-failed:
			require.NoError(f.t, err)
			return
		case now := <-ticker.C:
			if b.enough() && ticksUntil(schedules, now) >= leastTicks {
				stop()
			}
		}
	}
	require.NoError(f.t, <-failed)
	require.True(f.t, b.enough(), "not every fault was made:\n%s", b.table())
}

func ticksUntil(schedules []*schedule, now time.Time) (n int) {
	for _, s := range schedules {
		for at := s.table.Next(s.anchor); !at.After(now); at = s.table.Next(at) {
			n++
		}
	}
	return n
}

// settle waits until every schedule has decided again, stops the schedulers, and waits until no job is left.
func (f *fleet) settle(schedules []*schedule) {
	f.t.Helper()
	ctx, cancel := context.WithTimeout(f.t.Context(), settling)
	defer cancel()
	since := time.Now()
	f.until(ctx, "every schedule decides again", func() error {
		return f.readStates(ctx, schedules, func(s *lifeboatv1.ScheduleState) bool {
			return s.GetDecidedAt().AsTime().After(since) || s.GetTick().AsTime().After(time.Now())
		})
	})
	f.ended = time.Now()
	for _, s := range f.schedulers {
		require.NoError(f.t, s.terminate(ctx))
	}
	f.until(ctx, "no job is left", func() error { return f.left(ctx) })
	for _, w := range f.workers {
		require.NoError(f.t, w.terminate(ctx))
	}
	f.until(ctx, "the last states can be read", func() error {
		return f.readStates(ctx, schedules, func(*lifeboatv1.ScheduleState) bool { return true })
	})
}

// until tries until it succeeds. What is not so in time is a finding, so the account is made all the same.
func (f *fleet) until(ctx context.Context, what string, try func() error) {
	f.t.Helper()
	for {
		err := try()
		if err == nil {
			return
		}
		if ctx.Err() != nil {
			assert.NoError(f.t, err, "waiting until %s", what)
			return
		}
		rest(ctx, 500*time.Millisecond)
	}
}

func (f *fleet) readStates(ctx context.Context, schedules []*schedule, good func(*lifeboatv1.ScheduleState) bool) error {
	stream, err := f.stream(ctx, streamJobs)
	if err != nil {
		return err
	}
	for _, s := range schedules {
		if s.state, err = f.last(ctx, stream, stateSubject(s.id)); err != nil {
			return fmt.Errorf("%s: %w", s.id, err)
		}
		if !good(s.state) {
			return fmt.Errorf("%s: the last decision is about %s, of %s", s.id, stamp(s.state.GetTick().AsTime()), stamp(s.state.GetDecidedAt().AsTime()))
		}
	}
	return nil
}

// left is an error while jobs wait or run.
func (f *fleet) left(ctx context.Context) error {
	s, err := f.stream(ctx, streamJobs)
	if err != nil {
		return err
	}
	info, err := s.Info(ctx, jetstream.WithSubjectFilter("lifeboat.job.>"))
	if err != nil {
		return err
	}
	if n := len(info.State.Subjects); n > 0 {
		return fmt.Errorf("%d jobs wait or run: %v", n, info.State.Subjects)
	}
	return nil
}

// readAll reads every message of a stream, in order. It is tried again until as many came as the stream says that it has.
func (f *fleet) readAll(stream string, each func(jetstream.Msg)) {
	f.t.Helper()
	ctx, cancel := context.WithTimeout(f.t.Context(), time.Minute)
	defer cancel()
	for {
		all, err := f.tryReadAll(ctx, stream)
		if err == nil {
			for _, m := range all {
				each(m)
			}
			return
		}
		require.True(f.t, rest(ctx, 500*time.Millisecond), "reading %s: %v", stream, err)
	}
}

func (f *fleet) tryReadAll(ctx context.Context, stream string) (all []jetstream.Msg, err error) {
	s, err := f.stream(ctx, stream)
	if err != nil {
		return nil, err
	}
	want := s.CachedInfo().State.Msgs
	c, err := s.OrderedConsumer(ctx, jetstream.OrderedConsumerConfig{})
	if err != nil {
		return nil, err
	}
	for uint64(len(all)) < want {
		batch, err := c.Fetch(min(500, int(want)-len(all)), jetstream.FetchMaxWait(5*time.Second))
		if err != nil {
			return nil, err
		}
		before := len(all)
		for m := range batch.Messages() {
			all = append(all, m)
		}
		if err := errors.Join(batch.Error(), ctx.Err()); err != nil {
			return nil, err
		}
		if len(all) == before {
			return nil, fmt.Errorf("%d of %d messages came", before, want)
		}
	}
	return all, nil
}

func (f *fleet) readLog(l *ledger) {
	f.t.Helper()
	f.readAll(streamEvents, func(m jetstream.Msg) {
		e := &lifeboatv1.Event{}
		if err := decode(m.Data(), e); err != nil {
			l.fault("an event cannot be read", "%s: %v", m.Subject(), err)
			return
		}
		l.event(e)
	})
}

// readWaiting reads the jobs that are left. Their stream takes no further consumer.
func (f *fleet) readWaiting(l *ledger) {
	f.t.Helper()
	s, err := f.stream(f.t.Context(), streamJobs)
	require.NoError(f.t, err)
	info, err := s.Info(f.t.Context(), jetstream.WithSubjectFilter("lifeboat.job.>"))
	require.NoError(f.t, err)
	for subject := range info.State.Subjects {
		m, err := s.GetLastMsgForSubject(f.t.Context(), subject)
		require.NoError(f.t, err)
		j := &lifeboatv1.Job{}
		require.NoError(f.t, decode(m.Data, j))
		parts := strings.Split(subject, ".")
		l.waiting = append(l.waiting, waiting{scheduleID{parts[3], parts[2]}, j.GetTick().AsTime()})
	}
}

func (f *fleet) readDead(l *ledger) {
	f.t.Helper()
	f.readAll(streamDead, func(m jetstream.Msg) {
		d := &lifeboatv1.DeadLetter{}
		if err := decode(m.Data(), d); err != nil {
			l.fault("a dead letter cannot be read", "%s: %v", m.Subject(), err)
			return
		}
		l.deadLetter(d)
	})
}

// readLogs looks for services that died of themselves.
func (f *fleet) readLogs(l *ledger) {
	f.t.Helper()
	for _, s := range append(f.schedulers[:schedulers:schedulers], f.workers...) {
		content, err := os.ReadFile(s.log)
		require.NoError(f.t, err)
		for line := range strings.Lines(string(content)) {
			if strings.HasPrefix(line, "panic:") || strings.HasPrefix(line, "fatal error:") || strings.HasPrefix(line, "lifeboat:") {
				l.fault("a service died of itself", "%s: %s", s.name, strings.TrimSpace(line))
			}
		}
	}
}
