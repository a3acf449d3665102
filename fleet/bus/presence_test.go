package bus_test

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"google.golang.org/protobuf/proto"

	"github.com/lifeboat-fleet/lifeboat/fleet/bus"
	lifeboatv1 "github.com/lifeboat-fleet/lifeboat/proto/lifeboat/v1"
)

type endpoints = map[string]func(context.Context, string, []byte) (proto.Message, error)

func announced(t *testing.T, b *bus.Bus, zone string, e endpoints) (stop func()) {
	t.Helper()
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() {
		done <- b.Announce(ctx, bus.Service{
			Name: "lifeboat-backup", Version: "v1.2.3-dirty build", Endpoints: e,
			Metadata: map[string]string{"zone": zone, "roles": "snapshot,verify", "actor": b.Actor(), "concurrency": "4"},
		})
	}()
	stop = func() {
		cancel()
		assert.NoError(t, <-done)
	}
	return stop
}

func workers(t *testing.T, b *bus.Bus, want int) []bus.WorkerInfo {
	t.Helper()
	var all []bus.WorkerInfo
	require.Eventually(t, func() bool {
		var err error
		all, err = b.Workers(t.Context())
		return err == nil && len(all) == want
	}, time.Minute, 20*time.Millisecond, "%v", &all)
	return all
}

func TestWorkersSayThatTheyAreThere(t *testing.T) {
	s, b := fleet(t)
	all, err := b.Workers(t.Context())
	require.NoError(t, err)
	assert.Empty(t, all)
	first, second := connect(t, s.URL(), "w@1"), connect(t, s.URL(), "w@2")
	stopSecond := announced(t, second, "shanghai", nil)
	stopFirst := announced(t, first, "beijing", nil)
	all = workers(t, b, 2)
	assert.NotEmpty(t, all[0].ID)
	all[0].ID = ""
	assert.Equal(t, bus.WorkerInfo{
		Version: "v1.2.3-dirty build", Actor: "w@1", Zone: "beijing", Roles: []string{"snapshot", "verify"}, Concurrency: 4,
	}, all[0])
	stopFirst()
	assert.Equal(t, "w@2", workers(t, b, 1)[0].Actor, "one that has stopped is gone at once")

	// They are there again after NATS was away, also after one that came back without data.
	require.NoError(t, s.Restart())
	require.Eventually(t, func() bool { return b.Connected() == nil && second.Connected() == nil }, time.Minute, 20*time.Millisecond)
	workers(t, b, 1)
	stopSecond()
	workers(t, b, 0)
}

func TestAWorkerIsAskedForTheHistory(t *testing.T) {
	s, b := fleet(t)
	_, err := b.AskHistory(t.Context(), "etcd-prod")
	require.ErrorIs(t, err, bus.ErrNoWorker)
	require.ErrorContains(t, err, "etcd-prod")
	asked := make(chan string, 10)
	stop := announced(t, connect(t, s.URL(), "w@1"), "", endpoints{
		bus.HistorySubject("*"): func(_ context.Context, subject string, data []byte) (proto.Message, error) {
			asked <- subject + " " + string(data)
			switch subject {
			case "lifeboat.ask.history.unknown":
				return nil, fmt.Errorf("%w: not mine", bus.ErrNoWorker)
			case "lifeboat.ask.history.broken":
				return nil, errors.New("S3 is\non fire")
			}
			return &lifeboatv1.History{Target: "etcd-prod", SnapshotId: "1"}, nil
		},
	})
	defer stop()
	workers(t, b, 1)
	h, err := b.AskHistory(t.Context(), "etcd-prod")
	require.NoError(t, err)
	assert.Equal(t, "1", h.GetSnapshotId())
	assert.Equal(t, "lifeboat.ask.history.etcd-prod ", receive(t, asked))
	_, err = b.AskHistoryBefore(t.Context(), "etcd-prod", time.Date(2026, 11, 21, 12, 0, 0, 5, time.FixedZone("x", 8*3600)))
	require.NoError(t, err)
	assert.Equal(t, "lifeboat.ask.history.etcd-prod 2026-11-21T04:00:00.000000005Z", receive(t, asked))
	_, err = b.AskHistory(t.Context(), "unknown")
	require.ErrorIs(t, err, bus.ErrNoWorker)
	_, err = b.AskHistory(t.Context(), "broken")
	require.ErrorContains(t, err, "S3 is on fire")
	require.NotErrorIs(t, err, bus.ErrNoWorker)
}

// One slow question does not hold up the others, and of several workers one is asked.
func TestQuestionsAreAnsweredSideBySide(t *testing.T) {
	s, b := fleet(t)
	finish, asked := make(chan struct{}), make(chan string, 10)
	for _, name := range []string{"w@1", "w@2"} {
		stop := announced(t, connect(t, s.URL(), name), "", endpoints{
			bus.HistorySubject("*"): func(_ context.Context, subject string, _ []byte) (proto.Message, error) {
				asked <- subject
				if subject == bus.HistorySubject("slow") {
					<-finish
				}
				return &lifeboatv1.History{}, nil
			},
		})
		defer stop()
	}
	workers(t, b, 2)
	slow := make(chan error, 2)
	for range 2 {
		go func() {
			_, err := b.AskHistory(t.Context(), "slow")
			slow <- err
		}()
		receive(t, asked)
	}
	for range 8 {
		_, err := b.AskHistory(t.Context(), "quick")
		require.NoError(t, err)
		receive(t, asked)
	}
	close(finish)
	require.NoError(t, receive(t, slow))
	require.NoError(t, receive(t, slow))
	assert.Empty(t, asked)
}

// A service that loses a subscription, or an error of the connection, still tells the log and ends nothing else.
func TestADeniedPresenceIsToldAtOnce(t *testing.T) {
	_, b := denying(t, nil, []string{"$SRV.>"})
	err := soon(t, func() error { return b.Announce(t.Context(), bus.Service{Name: "lifeboat-backup", Version: "1.0.0"}) })
	require.ErrorIs(t, err, bus.ErrDenied)
	require.ErrorContains(t, err, "$SRV.")
	require.NoError(t, b.Ready(t.Context()))
}

// Questions that came while a process stopped made it panic: a group that is waited for takes nobody in.
func TestAskedWhileItStops(t *testing.T) {
	_, b := fleet(t)
	ctx, cancel := context.WithCancel(t.Context())
	var wg sync.WaitGroup
	for range 8 {
		wg.Go(func() {
			for ctx.Err() == nil {
				_, _ = b.AskHistory(ctx, "etcd-prod")
			}
		})
	}
	for range 30 {
		answered := make(chan struct{})
		stop := announced(t, b, "", endpoints{bus.HistorySubject("*"): func(ctx context.Context, _ string, _ []byte) (proto.Message, error) {
			select {
			case answered <- struct{}{}:
			case <-ctx.Done():
			}
			return &lifeboatv1.History{}, nil
		}})
		for range 20 {
			<-answered
		}
		stop()
	}
	cancel()
	wg.Wait()
}
