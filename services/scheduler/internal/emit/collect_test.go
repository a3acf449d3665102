package emit

import (
	"log/slog"
	"testing"
	"testing/synctest"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"google.golang.org/protobuf/types/known/timestamppb"

	lifeboatv1 "github.com/lifeboat-fleet/lifeboat/proto/lifeboat/v1"
)

// Of each schedule the next tick, its interval and whether it is paused are told, also while somebody works on it.
func TestSchedulesAreTold(t *testing.T) {
	cfg, reg := parse(t, "schedule: '@every 1h'", "schedule: '0 4 * * 1-5', paused: true",
		"schedule: '0 * * * *', blackout: [{weekdays: ['saturday', 'sunday'], location: America/New_York}]"), prometheus.NewRegistry()
	var c wallClock
	e := New(Options{Bus: newMemory(1), Logger: slog.New(slog.DiscardHandler), Registerer: reg, Now: c.Now})
	told := func() map[string]float64 {
		t.Helper()
		families, err := reg.Gather()
		require.NoError(t, err)
		all := map[string]float64{}
		for _, f := range families {
			for _, m := range f.GetMetric() {
				if l := m.GetLabel(); len(l) == 2 && l[1].GetName() == "target" {
					all[f.GetName()+" "+l[1].GetValue()+" "+l[0].GetValue()] = m.GetGauge().GetValue()
				}
			}
		}
		return all
	}
	synctest.Test(t, func(t *testing.T) {
		now := c.Now()
		var entries []*entry
		for i := range cfg.Targets {
			target := &cfg.Targets[i]
			en, err := newEntry(key{target.Name, "snapshot"}, &spec{Schedule: target.Schedules()[0]}, target)
			require.NoError(t, err)
			e.known[en.key] = en
			entries = append(entries, en)
		}
		assert.Empty(t, told(), "their states were not read yet")
		for _, en := range entries {
			en.adopt(&lifeboatv1.ScheduleState{Tick: timestamppb.New(now)}, 1, now)
		}
		want := map[string]float64{
			"lifeboat_next_tick_timestamp_seconds t-0 snapshot": float64(now.Truncate(time.Hour).Add(time.Hour).Unix()),
			"lifeboat_next_tick_timestamp_seconds t-1 snapshot": float64(entries[1].Next.Unix()),
			"lifeboat_schedule_interval_seconds t-0 snapshot":   3600,
			"lifeboat_schedule_interval_seconds t-1 snapshot":   3 * 24 * 3600, // over a weekend
			"lifeboat_next_tick_timestamp_seconds t-2 snapshot": float64(entries[2].Next.Unix()),
			"lifeboat_schedule_interval_seconds t-2 snapshot":   49 * 3600,
			"lifeboat_schedule_paused t-2 snapshot":             0,
			"lifeboat_schedule_paused t-0 snapshot":             0,
			"lifeboat_schedule_paused t-1 snapshot":             1,
		}
		assert.Equal(t, want, told())
		// Whoever has taken an entry owns it: what it was is told, and nothing is read that is being changed.
		e.takes(entries[0])
		entries[0].pause, entries[0].unread = &lifeboatv1.Pause{}, true
		entries[0].Next = time.Time{}
		assert.Equal(t, want, told())
		entries[0].unread = false
		entries[0].Decided(now)
		e.put(entries[0], false)
		want["lifeboat_schedule_paused t-0 snapshot"] = 1
		assert.Equal(t, want, told())
		assert.Empty(t, e.shown)
	})
}
