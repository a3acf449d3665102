package emit

import (
	"context"
	"fmt"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/timestamppb"

	"github.com/lifeboat-fleet/lifeboat/fleet/bus"
	lifeboatv1 "github.com/lifeboat-fleet/lifeboat/proto/lifeboat/v1"
)

// answers is a worker that tells what the bucket knows, until the test ends. It returns the moments that it was asked about.
func (l *lab) answers(histories map[string]*lifeboatv1.History) func() []string {
	l.t.Helper()
	var mu sync.Mutex
	var asked []string
	ctx, cancel := context.WithCancel(l.t.Context())
	b, done := l.connect("worker"), make(chan error, 1)
	go func() {
		done <- b.Announce(ctx, bus.Service{
			Name: "lifeboat-backup", Version: "test",
			Endpoints: map[string]func(context.Context, string, []byte) (proto.Message, error){
				bus.HistorySubject("*"): func(_ context.Context, subject string, data []byte) (proto.Message, error) {
					mu.Lock()
					defer mu.Unlock()
					target := subject[strings.LastIndex(subject, ".")+1:]
					asked = append(asked, target+" "+string(data))
					if h := histories[target]; h != nil {
						return h, nil
					}
					return &lifeboatv1.History{Target: target}, nil
				},
			},
		})
	}()
	l.t.Cleanup(func() {
		cancel()
		assert.NoError(l.t, <-done)
	})
	return func() []string {
		mu.Lock()
		defer mu.Unlock()
		return asked
	}
}

func (l *lab) history(tick string) *lifeboatv1.History {
	return &lifeboatv1.History{
		Target: target, SnapshotId: "20261121T030000.000Z-7", SnapshotStartedAt: timestamppb.New(clock(l.t, tick)), SnapshotTick: timestamppb.New(clock(l.t, tick)),
	}
}

func confirmed(s *lifeboatv1.ScheduleState) bool { return !s.GetUnconfirmed() }

// NATS lost its data at some time between 03:00 and 06:30. The bucket knows the tick of 03:00.
func TestLostStateIsRebuiltFromTheBucket(t *testing.T) {
	for name, c := range map[string]struct {
		settings string
		emitted  []string
		missed   []string
	}{
		"latest": {"overlap: skip", []string{"06:00:00"}, []string{"down 2 04:00:00 05:00:00"}},
		"all":    {"catch_up: all", []string{"04:00:00", "05:00:00", "06:00:00"}, nil},
		"none":   {"catch_up: none", nil, []string{"down 3 04:00:00 06:00:00"}},
	} {
		t.Run(name, func(t *testing.T) {
			l := newLab(t, "06:30:00")
			asked := l.answers(map[string]*lifeboatv1.History{"t-0": l.history("03:00:00")})
			cfg := parse(t, fmt.Sprintf("schedule: %q, %s", hourly, c.settings))
			l.start(cfg)
			l.start(cfg)
			for _, want := range c.emitted {
				l.eventually(want, func() bool { tick, _, _ := l.job(); return tick == want })
				l.end()
			}
			s := l.settled("confirmed, and nothing waits", func(s *lifeboatv1.ScheduleState) bool { return confirmed(s) && len(s.GetPending()) == 0 })
			assert.Nil(t, s.GetAnchoredAt())
			assert.Equal(t, c.missed, l.missed(), "by two replicas, once")
			assert.Empty(t, l.events("schedule", "anchored"))
			assert.Contains(t, asked()[0], "t-0 2026-11-21T06:30:0")
			_, seq, _ := l.job()
			assert.Zero(t, seq)
		})
	}
}

// Firing does not wait for a worker, and the time before the anchor is not forgotten over it.
func TestLostStateWithoutAWorkerAtFirst(t *testing.T) {
	l := newLab(t, "06:59:59")
	first := l.start(parse(t, fmt.Sprintf("schedule: %q", hourly)))
	l.eventually("it fires", func() bool { tick, _, _ := l.job(); return tick == "07:00:00" })
	l.end()
	s, _ := l.state("t-0")
	require.True(t, s.GetUnconfirmed())
	anchored := s.GetAnchoredAt().AsTime()
	assert.Equal(t, "06:59:59", show([]time.Time{anchored})[0])
	first.stop() // another replica goes on from what the state says
	l.set(t, "07:30:00")
	asked := l.answers(map[string]*lifeboatv1.History{"t-0": l.history("03:00:00")})
	l.start(parse(t, fmt.Sprintf("schedule: %q", hourly)))
	s = l.settled("confirmed", confirmed)
	assert.Equal(t, "07:00:00", at(s))
	assert.Equal(t, []string{"down 3 04:00:00 06:00:00"}, l.missed(), "latest: a newer one ran already")
	assert.Equal(t, "t-0 "+anchored.Format(time.RFC3339Nano), asked()[0], "what the bucket knew before the anchor")
	_, seq, _ := l.job()
	assert.Zero(t, seq)
}

func TestANewTargetIsConfirmedWithoutAWord(t *testing.T) {
	l := newLab(t, "06:30:00")
	l.answers(nil)
	l.start(parse(t, fmt.Sprintf("schedule: %q", hourly)))
	s := l.settled("confirmed", confirmed)
	assert.Equal(t, lifeboatv1.ScheduleState_OUTCOME_ANCHOR, s.GetOutcome())
	assert.Empty(t, l.missed())
	assert.Empty(t, l.events("schedule", "anchored"))
}

// Verify and prune leave nothing in the bucket that names a tick.
func TestWhatTheBucketCannotTellIsSaid(t *testing.T) {
	l := newLab(t, "06:30:00")
	l.answers(map[string]*lifeboatv1.History{"t-0": l.history("06:00:00")})
	l.start(parse(t, fmt.Sprintf("schedule: %q, verify: {schedule: %q}", hourly, hourly)))
	l.eventually("said", func() bool { return len(l.events("schedule", "anchored")) > 0 })
	l.eventually("confirmed", func() bool {
		s := &lifeboatv1.ScheduleState{}
		seq, _, err := l.bus.Last(t.Context(), bus.StreamJobs, bus.ScheduleSubject("t-0", "verify"), s)
		return err == nil && seq > 0 && confirmed(s)
	})
	l.settled("confirmed", confirmed)
	events := l.events("schedule", "anchored")
	require.Len(t, events, 1)
	assert.Equal(t, "verify", events[0].GetAttributes()["schedule"])
	assert.Contains(t, events[0].GetMessage(), "count from 2026-11-21T06:30:0")
	assert.Empty(t, l.missed())
}

func TestAWriteRacesWithTheConfirmation(t *testing.T) {
	l := newLab(t, "06:30:00")
	l.start(parse(t, fmt.Sprintf("schedule: %q, catch_up: all", hourly)))
	s := l.settled("anchored", func(*lifeboatv1.ScheduleState) bool { return true })
	_, seq := l.state("t-0")
	s.Pause = &lifeboatv1.Pause{Since: timestamppb.New(l.Now()), By: "me"}
	l.write("t-0", s, seq)
	l.answers(map[string]*lifeboatv1.History{"t-0": l.history("03:00:00")})
	s = l.settled("confirmed", confirmed)
	assert.Equal(t, "me", s.GetPause().GetBy())
	assert.Equal(t, []string{"paused 3 04:00:00 06:00:00"}, l.missed(), "nothing is run in a pause")
}
