package deliver

import (
	"log/slog"
	"slices"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/lifeboat-fleet/lifeboat/fleet/config"
)

// A file that is rendered anew every few minutes puts nobody's dead letters off: the time counts from when a receiver was missing first.
func TestReloadsDoNotPutOffWhatNobodyTakes(t *testing.T) {
	t.Parallel()
	now := time.Date(2026, 11, 21, 4, 0, 0, 0, time.UTC)
	var cfg *config.Config
	d := &Deliverer{o: Options{
		Config: func() *config.Config { return cfg }, Now: func() time.Time { return now }, Logger: slog.New(slog.DiscardHandler),
		Sender: func(config.Receiver) (Sender, error) { return nil, nil },
	}}
	orphaned := func(receivers ...string) (a, never bool) {
		t.Helper()
		cfg = &config.Config{}
		for _, name := range receivers {
			cfg.Notifier.Receivers = append(cfg.Notifier.Receivers, config.Receiver{Name: name})
		}
		cfg.Notifier.Route.Receiver = receivers[0]
		c, err := d.current()
		require.NoError(t, err)
		long := now.Add(-time.Hour)
		return c.orphaned("a", long, now), c.orphaned("never", long, now)
	}
	type both struct{ a, never bool }
	for _, step := range []struct {
		minutes   int
		receivers []string
		want      both
	}{
		{0, []string{"a", "b"}, both{}},
		{5, []string{"b"}, both{}},
		{5, []string{"b"}, both{never: true}},
		{4, []string{"b", "c"}, both{never: true}},
		{1, []string{"b"}, both{a: true, never: true}},
		{1, []string{"b", "a"}, both{never: true}}, // it is back, and asked for by name
		{1, []string{"b"}, both{never: true}},
		{10, []string{"b"}, both{a: true, never: true}},
	} {
		now = now.Add(time.Duration(step.minutes) * time.Minute)
		a, never := orphaned(step.receivers...)
		assert.Equal(t, step.want, both{a && !slices.Contains(step.receivers, "a"), never}, "%s: %v", now, step.receivers)
	}
}
