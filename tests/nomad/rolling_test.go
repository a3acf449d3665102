//go:build e2e

package nomad

import (
	"context"
	"fmt"
	"maps"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/lifeboat-fleet/lifeboat/fleet/bus"
	"github.com/lifeboat-fleet/lifeboat/fleet/fleettest/chattest"
	lifeboatv1 "github.com/lifeboat-fleet/lifeboat/proto/lifeboat/v1"
)

// tickers are targets whose snapshots are due all the time, by seconds between two ticks.
func tickers() map[string]int { return map[string]int{"tick-a": 1, "tick-b": 2, "tick-c": 3} }

// Every job is updated, NATS included, and then reads its configuration and its secrets from Nomad variables and has TLS on its health, while
// schedules tick each second and an alert fires each second. Each tick is emitted once or recorded as missed with its reason, and each alert is
// told.
func (s *site) rollingUpdate() {
	t := s.t
	var more strings.Builder
	for _, name := range slices.Sorted(maps.Keys(tickers())) {
		fmt.Fprintf(&more, "  - {name: %s, etcd: {endpoints: [%q]}, schedule: \"@every %ds\"}\n", name, s.etcd.Endpoint, tickers()[name])
	}
	s.configure(s.targets(more.String()))
	s.configureByNomad(s.targets(more.String()))
	for name := range tickers() {
		s.event("snapshot", "committed", name, time.Minute, nil)
	}
	s.run("deploy/nomad/secrets", s.path("keys"))
	alerts := s.fireAll()
	for _, job := range jobs() {
		before := s.identity(job)
		s.deploy(job, "-var=log_level=debug", "-var=config_source=nomad", "-var=secrets_source=nomad", "-var=web_tls=true")
		for id := range s.identity(job) {
			assert.NotContains(t, before, id, "%s: every allocation is a new one", job)
		}
	}
	fired := alerts.end(t)
	for name, seconds := range tickers() {
		s.countTicks(name, time.Duration(seconds)*time.Second)
	}
	s.countAlerts(fired)
	assert.Empty(t, s.dead())

	before := s.identity("scheduler")
	s.configureByNomad(s.targets(more.String() + fmt.Sprintf("  - {name: etcd-last, etcd: {endpoints: [%q]}, schedule: \"@every 2s\"}\n", s.etcd.Endpoint)))
	s.event("snapshot", "committed", "etcd-last", time.Minute, nil)
	assert.Equal(t, before, s.identity("scheduler"), "a change of the variable is live too")
}

// firing posts an alert each second until it is told to end.
type firing struct {
	stop  context.CancelFunc
	done  sync.WaitGroup
	names []string
	err   error
}

func (s *site) fireAll() *firing {
	ctx, stop := context.WithCancel(s.t.Context())
	f := &firing{stop: stop}
	f.done.Go(func() {
		tick := time.NewTicker(time.Second)
		defer tick.Stop()
		for n := 1; ; n++ {
			name := fmt.Sprintf("Rolling%04d", n)
			if err := s.tryFire(ctx, name, "warning"); err != nil {
				if ctx.Err() == nil {
					f.err = err
				}
				return
			}
			f.names = append(f.names, name)
			select {
			case <-ctx.Done():
				return
			case <-tick.C:
			}
		}
	})
	return f
}

func (f *firing) end(t *testing.T) []string {
	t.Helper()
	f.stop()
	f.done.Wait()
	require.NoError(t, f.err)
	return f.names
}

// countAlerts waits until the chat has heard of every alert, and says how often.
func (s *site) countAlerts(fired []string) {
	s.t.Helper()
	told := map[string]int{}
	missing := func() (names []string) {
		clear(told)
		for _, m := range s.chat.Messages() {
			for _, name := range fired {
				if m.Kind == chattest.Slack && strings.Contains(m.Title+m.Text+string(m.Raw), name) {
					told[name]++
				}
			}
		}
		for _, name := range fired {
			if told[name] == 0 {
				names = append(names, name)
			}
		}
		return names
	}
	ok := assert.Eventually(s.t, func() bool { return len(missing()) == 0 }, 2*time.Minute, time.Second)
	assert.True(s.t, ok, "of %d alerts the chat has not heard of %v", len(fired), missing())
	twice := 0
	for _, n := range told {
		if n > 1 {
			twice++
		}
	}
	answers, err := s.traefik.answers(s.t.Context())
	require.NoError(s.t, err)
	assert.NotEmpty(s.t, answers["200"], "none came by Traefik")
	s.t.Logf("%d alerts fired, all told, %d more than once; Traefik's answers to Alertmanager: %v", len(fired), twice, answers)
}

// ticks is what the audit log tells of a schedule's ticks.
type ticks struct {
	// jobs are the ids of the jobs of each tick.
	jobs map[time.Time]map[string]bool
	// missed is how many ticks were recorded as missed, by reason.
	missed map[string]int
	first  time.Time
}

func (s *site) readTicks(target string, until time.Time) *ticks {
	s.t.Helper()
	k := &ticks{jobs: map[time.Time]map[string]bool{}, missed: map[string]int{}}
	seen := func(at time.Time) {
		if k.first.IsZero() || at.Before(k.first) {
			k.first = at
		}
	}
	for _, e := range s.events("snapshot", "*", target) {
		at, err := time.Parse(time.RFC3339, e.GetAttributes()["tick"])
		if m := e.GetManifest().GetTick(); err != nil && m != nil {
			at, err = m.AsTime(), nil
		}
		if err != nil || at.After(until) {
			continue
		}
		at = at.UTC()
		seen(at)
		if k.jobs[at] == nil {
			k.jobs[at] = map[string]bool{}
		}
		k.jobs[at][e.GetJobId()] = true
	}
	for _, e := range s.events("tick", "missed", target) {
		a := e.GetAttributes()
		for _, reason := range []string{"down", "paused", "blackout", "overlap", "removed"} {
			count, err := strconv.Atoi(a[reason+"_count"])
			if err != nil {
				continue
			}
			from, err := time.Parse(time.RFC3339, a[reason+"_from"])
			require.NoError(s.t, err)
			if to, err := time.Parse(time.RFC3339, a[reason+"_to"]); err == nil && to.After(until) {
				continue
			}
			seen(from.UTC())
			k.missed[reason] += count
		}
	}
	return k
}

// countTicks holds the audit log against the timetable, from the first tick that it tells of to the last that was decided.
func (s *site) countTicks(target string, every time.Duration) {
	s.t.Helper()
	state := &lifeboatv1.ScheduleState{}
	_, _, err := s.bus.Last(s.t.Context(), bus.StreamJobs, bus.ScheduleSubject(target, "snapshot"), state)
	require.NoError(s.t, err)
	until := state.GetTick().AsTime()
	var k *ticks
	var due, missed int
	assert.Eventually(s.t, func() bool {
		k = s.readTicks(target, until)
		due, missed = int(until.Sub(k.first)/every)+1, 0
		for _, n := range k.missed {
			missed += n
		}
		return len(k.jobs)+missed == due
	}, time.Minute, time.Second, "%s", target)
	assert.Equal(s.t, due, len(k.jobs)+missed, "%s: each tick is emitted or recorded as missed", target)
	for at, ids := range k.jobs {
		assert.Len(s.t, ids, 1, "%s: the tick of %s", target, at)
	}
	s.t.Logf("%s: %d ticks, %d emitted, missed %v", target, due, len(k.jobs), k.missed)
}
