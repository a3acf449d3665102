package emit

import (
	"cmp"
	"context"
	"log/slog"
	"maps"
	"math/rand/v2"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/timestamppb"

	"github.com/lifeboat-fleet/lifeboat/fleet/bus"
	"github.com/lifeboat-fleet/lifeboat/fleet/config"
	lifeboatv1 "github.com/lifeboat-fleet/lifeboat/proto/lifeboat/v1"
)

// memory is the bus as the emitter knows it, in memory, for clocks that are not real. Each call takes some time, and fails
// sometimes, before or behind its effect.
type memory struct {
	mu    sync.Mutex
	rand  *rand.Rand
	slow  time.Duration
	fails int // one in so many; 0: none
	seq   uint64
	last  map[string]*bus.Message
	// log is every write of a state, with the job that was stored with it. jobs and events are all that were ever stored.
	log    []logged
	jobs   []*lifeboatv1.Job
	events map[string]*lifeboatv1.Event
	// ask is the worker; nil: there is none.
	ask func(target string, before time.Time) (*lifeboatv1.History, error)
}

type logged struct {
	state *lifeboatv1.ScheduleState
	job   *lifeboatv1.Job
}

func newMemory(seed uint64) *memory {
	return &memory{
		rand: rand.New(rand.NewPCG(seed, 9)), last: map[string]*bus.Message{}, events: map[string]*lifeboatv1.Event{},
	}
}

// call takes its time, and says whether it fails before or behind the effect.
func (m *memory) call() (before, behind error) {
	m.mu.Lock()
	wait := time.Duration(m.rand.Int64N(int64(m.slow + 1)))
	fails := m.fails > 0 && m.rand.IntN(m.fails) == 0
	late := m.rand.IntN(2) == 0
	m.mu.Unlock()
	<-time.After(wait)
	switch {
	case !fails:
		return nil, nil
	case late:
		return nil, errBroken
	}
	return errBroken, nil
}

func (m *memory) Last(_ context.Context, _, subject string, into proto.Message) (uint64, time.Time, error) {
	if before, behind := m.call(); cmp.Or(before, behind) != nil {
		return 0, time.Time{}, errBroken
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	found := m.last[subject]
	if found == nil {
		return 0, time.Time{}, nil
	}
	return found.Seq, found.Stored, bus.Decode(found.Data, into)
}

func (m *memory) Scan(_ context.Context, _, filter string, each func(*bus.Message) error) error {
	m.mu.Lock()
	var all []*bus.Message
	for subject, message := range m.last {
		if strings.HasPrefix(subject, strings.TrimSuffix(filter, ">")) {
			all = append(all, message)
		}
	}
	m.mu.Unlock()
	for _, message := range all {
		if err := each(message); err != nil {
			return err
		}
	}
	return nil
}

func (m *memory) store(o bus.Outgoing) error {
	data, err := protojson.Marshal(o.Message)
	m.seq++
	m.last[o.Subject] = &bus.Message{Subject: o.Subject, Data: data, Seq: m.seq, Stored: time.Now()}
	return err
}

func (m *memory) write(s bus.State, with *bus.Outgoing) (uint64, error) {
	before, behind := m.call()
	if before != nil {
		return 0, before
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	last := uint64(0)
	if found := m.last[s.Subject]; found != nil {
		last = found.Seq
	}
	if last != s.Expect {
		return 0, bus.ErrConflict
	}
	if with != nil && m.last[with.Subject] != nil {
		return 0, bus.ErrBusy
	}
	if err := m.store(s.Outgoing); err != nil {
		return 0, err
	}
	seq := m.seq
	state, _ := proto.Clone(s.Message).(*lifeboatv1.ScheduleState)
	m.log = append(m.log, logged{state: state})
	if with != nil {
		job, _ := with.Message.(*lifeboatv1.Job)
		m.jobs = append(m.jobs, job)
		m.log[len(m.log)-1].job = job
		if err := m.store(*with); err != nil {
			return 0, err
		}
	}
	return seq, behind
}

func (m *memory) PutState(_ context.Context, s bus.State) (uint64, error) { return m.write(s, nil) }

func (m *memory) PutStateWith(_ context.Context, s bus.State, with bus.Outgoing) (uint64, error) {
	return m.write(s, &with)
}

func (m *memory) Emit(_ context.Context, e *lifeboatv1.Event) error {
	before, behind := m.call()
	if before != nil {
		return before
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	m.events[e.GetId()] = e
	return behind
}

func (m *memory) AskHistoryBefore(_ context.Context, target string, before time.Time) (*lifeboatv1.History, error) {
	if m.ask == nil {
		return nil, bus.ErrNoWorker
	}
	return m.ask(target, before)
}

// lose is NATS that lost its data.
func (m *memory) lose() {
	m.mu.Lock()
	defer m.mu.Unlock()
	clear(m.last)
}

// endJobs ends what waits or runs.
func (m *memory) endJobs() {
	m.mu.Lock()
	defer m.mu.Unlock()
	maps.DeleteFunc(m.last, func(subject string, _ *bus.Message) bool { return strings.HasPrefix(subject, "lifeboat.job.") })
}

func (m *memory) state(t *testing.T) *lifeboatv1.ScheduleState {
	t.Helper()
	m.mu.Lock()
	defer m.mu.Unlock()
	s := &lifeboatv1.ScheduleState{}
	if found := m.last[bus.ScheduleSubject("t-0", "snapshot")]; found != nil {
		require.NoError(t, bus.Decode(found.Data, s))
	}
	return s
}

// A timer does not notice that the wall clock was set, or that the machine slept.
func TestASteppedClockIsNoticedWithinHalfAMinute(t *testing.T) {
	cfg := parse(t, "schedule: '0 * * * *'")
	synctest.Test(t, func(t *testing.T) {
		m, c := newMemory(1), &wallClock{}
		c.set(t, "03:10:00")
		startReplica(t, m, cfg, c.Now)
		time.Sleep(time.Minute) //nolint:forbidigo // of a clock that is not real
		assert.Equal(t, "03:10:00", at(m.state(t)))
		assert.Empty(t, m.jobs)
		c.set(t, "04:00:00")
		time.Sleep(maxSleep) //nolint:forbidigo // as above
		synctest.Wait()
		require.Len(t, m.jobs, 1)
		assert.Equal(t, "04:00:00", show([]time.Time{m.jobs[0].GetTick().AsTime()})[0])
	})
}

// Replicas whose configurations change at different moments, between two lines and none, on a bus that is slow and breaks, with
// clocks that are a little apart and now and then set, and a person who pauses and resumes: no tick is emitted twice or in a pause,
// and every tick of a timetable that was in force is emitted or missed.
func TestReplicasWithDifferentConfigurations(t *testing.T) {
	configs := []*config.Config{
		parse(t, "schedule: '@every 20s', overlap: queue"), parse(t, "schedule: '@every 30s', catch_up: all"), parse(t),
	}
	seed := rand.Uint64()
	t.Logf("seed %d", seed)
	ticks, jobs, missed, changes := 0, 0, 0, 0
	for round := range uint64(30) {
		synctest.Test(t, func(t *testing.T) {
			m := newMemory(seed + round)
			m.slow, m.fails = 300*time.Millisecond, 12
			r := rand.New(rand.NewPCG(seed+round, 11))
			var replicas []*replica
			var clocks []*wallClock
			for range 3 {
				c := &wallClock{offset: time.Duration(r.IntN(100)) * time.Millisecond}
				clocks = append(clocks, c)
				replicas = append(replicas, quietReplica(t, m, configs[0], c.Now))
			}
			for range 60 {
				time.Sleep(time.Duration(r.IntN(20_000)) * time.Millisecond) //nolint:forbidigo // of a clock that is not real
				if r.IntN(2) == 0 {
					m.endJobs()
				}
				if r.IntN(4) == 0 {
					replicas[r.IntN(3)].reload(configs[r.IntN(3)])
					changes++
				}
				if r.IntN(8) == 0 {
					by := time.Duration(r.IntN(120)-60) * time.Second
					c := clocks[r.IntN(3)]
					c.step(by)
					time.Sleep(time.Duration(r.IntN(20_000)) * time.Millisecond) //nolint:forbidigo // as above
					c.step(-by)
				}
				if r.IntN(6) == 0 {
					m.pause(t, time.Duration(r.IntN(3)*30)*time.Second)
				}
			}
			m.pause(t, 0)
			for _, replica := range replicas {
				replica.reload(configs[0])
			}
			for range 12 { // what waits goes out, and what was missed is recorded
				time.Sleep(10 * time.Second) //nolint:forbidigo // as above
				m.endJobs()
			}
			m.mu.Lock()
			m.fails = 0
			m.mu.Unlock()
			time.Sleep(21 * time.Second) //nolint:forbidigo // as above
			m.endJobs()
			time.Sleep(14 * time.Second) //nolint:forbidigo // as above
			for _, replica := range replicas {
				replica.stop()
			}
			a := m.account(t)
			ticks, jobs, missed = ticks+a.ticks, jobs+len(m.jobs), missed+a.missed
		})
	}
	t.Logf("%d reloads, %d ticks in force, %d emitted, %d missed", changes, ticks, jobs, missed)
}

// pause does what a person does who pauses the schedule for a time; 0: who resumes it.
func (m *memory) pause(t *testing.T, length time.Duration) {
	t.Helper()
	m.mu.Lock()
	defer m.mu.Unlock()
	found := m.last[bus.ScheduleSubject(target, "snapshot")]
	if found == nil {
		return
	}
	s := &lifeboatv1.ScheduleState{}
	require.NoError(t, bus.Decode(found.Data, s))
	now := time.Now()
	if length > 0 {
		s.Pause = &lifeboatv1.Pause{Since: timestamppb.New(now), Until: timestamppb.New(now.Add(length))}
	} else if s.Pause != nil {
		s.Pause.Until = timestamppb.New(now)
	}
	require.NoError(t, m.store(bus.Outgoing{Subject: found.Subject, Message: s}))
	m.log = append(m.log, logged{state: s})
}

func quietReplica(t *testing.T, b Bus, cfg *config.Config, now func() time.Time) *replica {
	t.Helper()
	return replicaWith(t, b, cfg, now, slog.New(slog.DiscardHandler), prometheus.NewRegistry())
}

type account struct{ ticks, missed int }

// account goes over every decision that was written and holds it against the one before: the ticks between the two, and those that
// waited, are what it emitted, lets wait or calls missed.
func (m *memory) account(t *testing.T) (a account) {
	t.Helper()
	emitted := map[time.Time]bool{}
	prev := m.log[0].state
	require.Equal(t, lifeboatv1.ScheduleState_OUTCOME_ANCHOR, prev.GetOutcome())
	for i, l := range m.log[1:] {
		s := l.state
		noted, _ := proto.Clone(prev).(*lifeboatv1.ScheduleState)
		noted.Pause, noted.Recorded = s.GetPause(), s.GetRecorded()
		if proto.Equal(noted, s) { // it was recorded, paused or resumed
			prev = s
			continue
		}
		require.True(t, len(prev.GetMissed()) == 0 || prev.GetRecorded(), "write %d replaces what is not recorded: %s", i, prev)
		anchor := s.GetOutcome() == lifeboatv1.ScheduleState_OUTCOME_ANCHOR
		require.True(t, anchor || prev.GetSchedule() == s.GetSchedule(), "write %d changes the timetable without an anchor", i)
		require.False(t, s.GetTick().AsTime().Before(prev.GetTick().AsTime()), "write %d goes back", i)
		due := len(prev.GetPending())
		if !anchor || prev.GetOutcome() != lifeboatv1.ScheduleState_OUTCOME_REMOVED {
			due += ticksBetween(t, prev.GetSchedule(), prev.GetTick().AsTime(), s.GetTick().AsTime())
		}
		found := len(s.GetPending())
		if l.job != nil {
			found++
			tick := l.job.GetTick().AsTime()
			require.False(t, emitted[tick], "%s was emitted twice", tick)
			require.False(t, inForce(prev.GetPause(), tick), "%s was emitted in a pause", tick)
			emitted[tick] = true
		}
		for _, missed := range s.GetMissed() {
			found += int(missed.GetCount())
			a.missed += int(missed.GetCount())
		}
		require.Equal(t, due, found, "write %d: %s, after %s", i, s, prev)
		if len(s.GetMissed()) > 0 {
			e := missedEvent(&entry{key: key{"t-0", "snapshot"}, spec: &spec{}}, s)
			require.Contains(t, m.events, e.GetId(), "write %d is not in the audit log", i)
		}
		a.ticks += due - len(prev.GetPending())
		prev = s
	}
	assert.Empty(t, prev.GetPending())
	require.Equal(t, "@every 20s", prev.GetSchedule(), "the last configuration is in force")
	require.NotEqual(t, lifeboatv1.ScheduleState_OUTCOME_REMOVED, prev.GetOutcome())
	return a
}

func ticksBetween(t *testing.T, line string, from, to time.Time) (n int) {
	t.Helper()
	table, err := config.ParseSchedule(line, "")
	require.NoError(t, err)
	for next := table.Next(from); !next.After(to); next = table.Next(next) {
		n++
	}
	return n
}
