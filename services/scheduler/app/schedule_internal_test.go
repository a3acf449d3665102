package app

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"google.golang.org/protobuf/types/known/timestamppb"

	"github.com/lifeboat-fleet/lifeboat/fleet/bus"
	"github.com/lifeboat-fleet/lifeboat/fleet/config"
	"github.com/lifeboat-fleet/lifeboat/fleet/fleettest/natstest"
	lifeboatv1 "github.com/lifeboat-fleet/lifeboat/proto/lifeboat/v1"
)

func load(t *testing.T, targets string) []config.Target {
	t.Helper()
	path := filepath.Join(t.TempDir(), "lifeboat.yaml")
	require.NoError(t, os.WriteFile(path, []byte("store: {bucket: backups}\ntargets:\n"+targets), 0o600))
	cfg, err := config.Load(path)
	require.NoError(t, err)
	return cfg.Targets
}

func moment(t *testing.T, s string) time.Time {
	t.Helper()
	at, err := time.Parse(time.RFC3339, s)
	require.NoError(t, err)
	return at
}

// What daylight saving does to a tick is marked, and the clock shown is that of the moment.
func TestNextMarksWhatDaylightSavingDoes(t *testing.T) {
	targets := load(t, `
  - {name: ny, time_zone: America/New_York, schedule: "30 1,2 * * *", consul: {address: "http://127.0.0.1:8500"}}
`)
	show := func(from string) (lines []string) {
		n := next{days: 1, limit: 0}
		ticks, _, err := n.coming(t.Context(), targets, nil, moment(t, from))
		require.NoError(t, err)
		for _, c := range ticks {
			lines = append(lines, clock(c.At, c.target)+" | "+c.Note)
		}
		return lines
	}
	assert.Equal(t, []string{
		"2026-03-08 01:30:00 EST (America/New_York) | ",
		"2026-03-08 03:00:00 EDT (America/New_York) | 02:30 does not exist that day, runs right after the gap",
	}, show("2026-03-08T05:00:00Z"))
	assert.Equal(t, []string{
		"2026-11-01 01:30:00 EDT (America/New_York) | 01:30 comes twice, runs the first time",
		"2026-11-01 02:30:00 EST (America/New_York) | ",
	}, show("2026-11-01T04:00:00Z"))
}

// A pause that ends between two ticks stops only the first; one at whose end a tick stands does not stop that.
func TestNextKnowsWhenAPauseEnds(t *testing.T) {
	targets := load(t, `
  - {name: kv, schedule: "@hourly", consul: {address: "http://127.0.0.1:8500"}}
`)
	now := moment(t, "2026-11-21T11:30:00Z")
	states := map[string]*lifeboatv1.ScheduleState{bus.ScheduleSubject("kv", "snapshot"): {
		Pause: &lifeboatv1.Pause{Until: timestamppb.New(now.Add(90 * time.Minute)), Reason: "x"},
	}}
	n := next{days: 1, limit: 3}
	ticks, more, err := n.coming(t.Context(), targets, states, now)
	require.NoError(t, err)
	assert.True(t, more)
	var runs []bool
	for _, c := range ticks {
		runs = append(runs, c.Runs)
	}
	assert.Equal(t, []bool{false, true, true}, runs)
	assert.Equal(t, "paused until 2026-11-21 13:00:00 UTC: x", ticks[0].Note)
}

// Of many ticks the earliest are kept, whatever the order in which they come.
func TestEarliestKeepsTheEarliest(t *testing.T) {
	seed := rand.Uint64()
	t.Logf("seed %d", seed)
	r := rand.New(rand.NewPCG(seed, 1))
	var all []comingTick
	for range 500 {
		all = append(all, comingTick{At: time.Unix(r.Int64N(100), 0), Target: fmt.Sprint(r.IntN(5)), Schedule: fmt.Sprint(r.IntN(3))})
	}
	for _, limit := range []int{0, 1, 7, 499, 500, 501} {
		e := earliest{limit: limit}
		for _, c := range all {
			e.add(c)
		}
		want := slices.SortedFunc(slices.Values(all), byTime)
		if limit > 0 {
			want = want[:min(limit, len(want))]
		}
		assert.Equal(t, want, e.sorted(), "limit %d", limit)
		assert.Equal(t, limit > 0 && limit < len(all), e.more, "limit %d", limit)
	}
}

// A scheduler writes the same state all the while: neither what it writes nor the pause is lost.
func TestPauseAndASchedulerDoNotOverwriteEachOther(t *testing.T) {
	server := natstest.New(t)
	connectTo := func() *bus.Bus {
		b, err := bus.Connect(bus.Options{
			Config: config.NATS{URL: server.URL()}, Actor: "test", Logger: slog.New(slog.DiscardHandler), Registerer: prometheus.NewRegistry(),
		})
		require.NoError(t, err)
		t.Cleanup(func() { assert.NoError(t, b.Close()) })
		return b
	}
	b := connectTo()
	require.NoError(t, b.EnsureStreams(t.Context()))
	target := load(t, `
  - {name: kv, schedule: "@hourly", consul: {address: "http://127.0.0.1:8500"}}
`)[0]
	schedule := target.Schedules()[0]
	subject := bus.ScheduleSubject("kv", "snapshot")
	const writes = 200
	written := 0
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	other, failed := connectTo(), make(chan error, 1)
	go func() {
		var err error
		for written < writes && err == nil {
			state := &lifeboatv1.ScheduleState{}
			var seq uint64
			if seq, _, err = other.Last(ctx, bus.StreamJobs, subject, state); err != nil {
				break
			}
			state.Missed = []*lifeboatv1.MissedTicks{{Reason: "down", Count: int64(written + 1)}}
			_, err = other.PutState(ctx, bus.State{Outgoing: bus.Outgoing{Subject: subject, Message: state}, Expect: seq})
			switch {
			case err == nil:
				written++
			case errors.Is(err, bus.ErrConflict):
				err = nil // as a scheduler does: read it again
			}
		}
		failed <- err
	}()
	s := &switcher{bus: b, target: &target, say: io.Discard}
	switched := 0
	for i := 0; ctx.Err() == nil; i++ {
		reason := fmt.Sprint("round ", i)
		require.NoError(t, s.pause(ctx, schedule, &lifeboatv1.Pause{Since: timestamppb.Now(), By: "test", Reason: reason}))
		state := &lifeboatv1.ScheduleState{}
		_, _, err := b.Last(ctx, bus.StreamJobs, subject, state)
		require.NoError(t, err)
		require.Equal(t, reason, state.GetPause().GetReason())
		require.NoError(t, s.resume(ctx, schedule))
		switched++
		_, _, err = b.Last(ctx, bus.StreamJobs, subject, state)
		require.NoError(t, err)
		if len(state.GetMissed()) > 0 && state.GetMissed()[0].GetCount() >= writes {
			break
		}
	}
	require.NoError(t, <-failed)
	require.NoError(t, ctx.Err())
	assert.Equal(t, writes, written)
	assert.Positive(t, switched)
	state := &lifeboatv1.ScheduleState{}
	_, _, err := b.Last(t.Context(), bus.StreamJobs, subject, state)
	require.NoError(t, err)
	assert.Nil(t, state.GetPause())
	assert.Equal(t, int64(writes), state.GetMissed()[0].GetCount())
}

// A pause that stopped a tick which no scheduler has decided, because none ran: whoever resumes does not make it run after all.
func TestResumeKeepsWhatThePauseStopped(t *testing.T) {
	target := load(t, `
  - {name: kv, schedule: "@hourly", consul: {address: "http://127.0.0.1:8500"}}
`)[0]
	s, hourly := &switcher{target: &target}, target.Schedules()[0]
	now := moment(t, "2026-11-21T12:30:00Z")
	state := func(tick, since string) *lifeboatv1.ScheduleState {
		return &lifeboatv1.ScheduleState{
			Tick:  timestamppb.New(moment(t, tick)),
			Pause: &lifeboatv1.Pause{Since: timestamppb.New(moment(t, since)), By: "a", Reason: "b"},
		}
	}
	kept := s.ended(hourly, state("2026-11-21T09:00:00Z", "2026-11-21T11:30:00Z"), now)
	require.NotNil(t, kept)
	assert.Equal(t, now, kept.GetUntil().AsTime())
	assert.Equal(t, moment(t, "2026-11-21T11:30:00Z"), kept.GetSince().AsTime())
	assert.False(t, pausedAt(kept, now), "it is over")
	assert.NotNil(t, s.ended(hourly, state("2026-11-21T09:00:00Z", "2026-11-21T12:00:00Z"), now), "a tick at its very beginning")
	assert.Nil(t, s.ended(hourly, state("2026-11-21T12:00:00Z", "2026-11-21T11:30:00Z"), now), "all were decided")
	assert.Nil(t, s.ended(hourly, state("2026-11-21T09:00:00Z", "2026-11-21T12:10:00Z"), now), "it stopped none: the one of 12:00 is run late")
}

// Ctrl-C ends a listing that nobody wants to wait for.
func TestNextCanBeInterrupted(t *testing.T) {
	targets := load(t, `
  - {name: kv, schedule: "@every 1s", consul: {address: "http://127.0.0.1:8500"}}
`)
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	n := next{days: mostDays}
	_, _, err := n.coming(ctx, targets, nil, time.Now())
	require.ErrorIs(t, err, context.Canceled)
}
