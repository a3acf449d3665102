package bus_test

import (
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/lifeboat-fleet/lifeboat/fleet/bus"
	"github.com/lifeboat-fleet/lifeboat/fleet/config"
	"github.com/lifeboat-fleet/lifeboat/fleet/fleettest/natstest"
	lifeboatv1 "github.com/lifeboat-fleet/lifeboat/proto/lifeboat/v1"
)

func states(first, n int) []bus.Outgoing {
	all := make([]bus.Outgoing, 0, n)
	for i := range n {
		all = append(all, bus.Outgoing{
			Subject: bus.ScheduleSubject(fmt.Sprintf("t-%06d", first+i), "snapshot"),
			Message: &lifeboatv1.ScheduleState{Schedule: "0 4 * * *", TimeZone: "Asia/Shanghai", Outcome: lifeboatv1.ScheduleState_OUTCOME_EMITTED},
		})
	}
	return all
}

func publishStates(t *testing.T, b *bus.Bus, first, n int) {
	t.Helper()
	for part := range slices.Chunk(states(first, n), 1000) {
		require.NoError(t, b.PublishAll(t.Context(), part))
	}
}

func TestAScanFindsEveryMatchingMessageInOrder(t *testing.T) {
	_, b := fleet(t)
	filter := bus.ScheduleSubject("*", "*")
	scan := func(filter string) (subjects []string, seqs []uint64) {
		require.NoError(t, b.Scan(t.Context(), bus.StreamJobs, filter, func(m *bus.Message) error {
			subjects, seqs = append(subjects, m.Subject), append(seqs, m.Seq)
			assert.WithinDuration(t, time.Now(), m.Stored, time.Minute)
			return nil
		}))
		return subjects, seqs
	}
	subjects, _ := scan(filter)
	assert.Empty(t, subjects, "an empty stream")
	_, err := b.Publish(t.Context(), job("etcd-prod"))
	require.NoError(t, err)
	subjects, _ = scan(filter)
	assert.Empty(t, subjects, "nothing that matches")
	// Just a page, one more than a page, and several.
	stored := 0
	for _, n := range []int{5000, 1, 6500} {
		publishStates(t, b, stored, n)
		stored += n
		found, seqs := scan(filter)
		require.Len(t, found, stored)
		assert.IsIncreasing(t, found)
		assert.IsIncreasing(t, seqs)
	}
	subjects, _ = scan(bus.ScheduleSubject("t-000003", "snapshot"))
	assert.Equal(t, []string{"lifeboat.state.schedule.t-000003.snapshot"}, subjects)
	no := errors.New("enough")
	times := 0
	require.ErrorIs(t, b.Scan(t.Context(), bus.StreamJobs, filter, func(*bus.Message) error { times++; return no }), no)
	assert.Equal(t, 1, times)
	err = b.Scan(t.Context(), "NO_SUCH_STREAM", filter, func(*bus.Message) error { return nil })
	require.Error(t, err)
	require.ErrorContains(t, err, "NO_SUCH_STREAM")
}

// Messages of 100 KiB make pages of forty: what limits a page is its size.
func TestAScanOfLargeMessages(t *testing.T) {
	_, b := fleet(t)
	const n = 60
	for i := range n {
		_, err := b.Publish(t.Context(), bus.Outgoing{
			Subject: fmt.Sprintf("lifeboat.dead.job.snapshot.t-%d", i), Message: &lifeboatv1.DeadLetter{Reason: strings.Repeat("x", 100<<10)},
		})
		require.NoError(t, err)
	}
	count := 0
	require.NoError(t, b.Scan(t.Context(), bus.StreamDead, "lifeboat.dead.>", func(m *bus.Message) error {
		count++
		d := &lifeboatv1.DeadLetter{}
		assert.Len(t, m.Data, len(d.GetReason())+100<<10+len(`{"reason":""}`))
		return nil
	}))
	assert.Equal(t, n, count)
}

// The connection breaks in the middle of pages: they are read again, and no message is told twice or not at all.
func TestAScanGoesOnAfterABrokenConnection(t *testing.T) {
	s, b := fleet(t)
	const n = 20_000
	publishStates(t, b, 0, n)
	proxy := newProxy(t, s.URL())
	reader := connect(t, proxy.url(), "reader")
	require.Eventually(t, func() bool { return reader.Connected() == nil }, time.Minute, 10*time.Millisecond)
	var subjects []string
	pages := 0
	require.NoError(t, reader.Scan(t.Context(), bus.StreamJobs, bus.ScheduleSubject("*", "*"), func(m *bus.Message) error {
		subjects = append(subjects, m.Subject)
		if len(subjects)%6000 == 0 {
			pages++
			proxy.cutAfter(100 << 10) // in the middle of the next page's answer
		}
		return nil
	}))
	assert.Equal(t, 3, pages)
	assert.Positive(t, proxy.cuts())
	require.Len(t, subjects, n)
	assert.IsIncreasing(t, subjects)
}

func TestAHistoryEndsWithTheNewest(t *testing.T) {
	_, b := fleet(t)
	filters := []string{"lifeboat.event.snapshot.committed.*", "lifeboat.event.drill.passed.*"}
	read := func(since time.Time) (subjects []string) {
		require.NoError(t, b.History(t.Context(), bus.StreamEvents, filters, since, func(m *bus.Message) error {
			subjects = append(subjects, m.Subject)
			return nil
		}))
		return subjects
	}
	assert.Empty(t, read(time.Time{}), "nothing there")
	emit(t, b, "snapshot", "failed")
	assert.Empty(t, read(time.Time{}), "nothing that matches")
	emit(t, b, "snapshot", "committed")
	emit(t, b, "tick", "missed")
	var middle time.Time
	require.NoError(t, b.Scan(t.Context(), bus.StreamEvents, "lifeboat.event.tick.>", func(m *bus.Message) error {
		middle = m.Stored
		return nil
	}))
	emit(t, b, "drill", "passed")
	all := []string{"lifeboat.event.snapshot.committed.etcd-prod", "lifeboat.event.drill.passed.etcd-prod"}
	assert.Equal(t, all, read(time.Time{}))
	assert.Equal(t, all[1:], read(middle))
	assert.Empty(t, read(time.Now().Add(time.Hour)))
	no := errors.New("enough")
	require.ErrorIs(t, b.History(t.Context(), bus.StreamEvents, filters, time.Time{}, func(*bus.Message) error { return no }), no)
}

func TestADeletedMessageIsGone(t *testing.T) {
	_, b := fleet(t)
	seq, err := b.Publish(t.Context(), job("etcd-prod"))
	require.NoError(t, err)
	require.NoError(t, b.Delete(t.Context(), bus.StreamJobs, seq))
	require.ErrorIs(t, b.Delete(t.Context(), bus.StreamJobs, seq), bus.ErrNoMessage)
	require.ErrorIs(t, b.Delete(t.Context(), bus.StreamJobs, 1_000_000), bus.ErrNoMessage)
	err = b.Delete(t.Context(), "NO_SUCH_STREAM", 1)
	require.Error(t, err)
	require.NotErrorIs(t, err, bus.ErrNoMessage)
	_, err = b.Publish(t.Context(), job("etcd-prod"))
	require.NoError(t, err)
}

// BenchmarkScan reads 100,000 schedules' states, as the scheduler does at its start.
func BenchmarkScan(b *testing.B) {
	s, err := natstest.Start(b.TempDir(), -1)
	require.NoError(b, err)
	b.Cleanup(s.Stop)
	c, err := bus.Connect(bus.Options{
		Config: config.NATS{URL: s.URL()}, Actor: "bench", Logger: slog.New(slog.DiscardHandler), Registerer: prometheus.NewRegistry(),
	})
	require.NoError(b, err)
	b.Cleanup(func() { require.NoError(b, c.Close()) })
	require.NoError(b, c.EnsureStreams(b.Context()))
	const n = 100_000
	for i := 0; i < n; i += 1000 {
		require.NoError(b, c.PublishAll(b.Context(), states(i, 1000)))
	}
	b.ResetTimer()
	for range b.N {
		count := 0
		require.NoError(b, c.Scan(b.Context(), bus.StreamJobs, bus.ScheduleSubject("*", "*"), func(*bus.Message) error {
			count++
			return nil
		}))
		require.Equal(b, n, count)
	}
	b.ReportMetric(float64(n)*float64(b.N)/b.Elapsed().Seconds(), "messages/s")
}

func TestFirstIsTheOldestThatMatches(t *testing.T) {
	t.Parallel()
	_, b := fleet(t)
	_, err := b.First(t.Context(), bus.StreamAlerts, "lifeboat.alert.delivery.>")
	require.ErrorIs(t, err, bus.ErrNoMessage)
	for _, s := range []string{bus.SubjectReceived, bus.DeliverySubject("b"), bus.CriticalSubject("a"), bus.DeliverySubject("b")} {
		_, err = b.Publish(t.Context(), bus.Outgoing{Subject: s, Message: &lifeboatv1.Delivery{}})
		require.NoError(t, err)
	}
	first, err := b.First(t.Context(), bus.StreamAlerts, "lifeboat.alert.delivery.>")
	require.NoError(t, err)
	assert.EqualValues(t, 2, first.Seq)
	var seqs []uint64
	require.NoError(t, b.ScanFrom(t.Context(), bus.StreamAlerts, bus.DeliverySubject("b"), 3, func(m *bus.Message) error {
		seqs = append(seqs, m.Seq)
		return nil
	}))
	assert.Equal(t, []uint64{4}, seqs)
}
