package deliver

import (
	"context"
	"errors"
	"log/slog"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/lifeboat-fleet/lifeboat/fleet/bus"
	"github.com/lifeboat-fleet/lifeboat/fleet/config"
	"github.com/lifeboat-fleet/lifeboat/services/notifier/internal/budget"
)

// oneEach is a stream in which one delivery waits for each of two receivers.
type oneEach struct {
	Bus
	stored time.Time
	err    error
}

func (q *oneEach) Subjects(_ context.Context, _, filter string) (map[string]uint64, error) {
	if filter != bus.DeliverySubject(">") {
		return map[string]uint64{}, nil
	}
	return map[string]uint64{bus.DeliverySubject("one"): 1, bus.DeliverySubject("two"): 1}, nil
}

func (q *oneEach) First(context.Context, string, string) (*bus.Message, error) {
	return &bus.Message{Stored: q.stored}, q.err
}

// unlimited is a budget of which nothing was ever used.
type unlimited struct{ Budgets }

func (unlimited) State(context.Context, string, budget.Rule) (budget.State, error) {
	return budget.State{}, nil
}
func (unlimited) Show(map[string]budget.Shown) {}

// keyed is a sender of which only the key is asked.
type keyed struct{ Sender }

func (keyed) Key() (string, error) { return "key", nil }

// What is not known stays as it was, and who is no receiver any more has no gauges.
func TestGaugesOfReceivers(t *testing.T) {
	parsed := func(names ...string) *config.Config {
		text := "notifier:\n  route: {receiver: one}\n  receivers:\n"
		for _, n := range names {
			text += "    - {name: " + n + ", slack: {webhook_url_file: /nowhere}}\n"
		}
		cfg, err := config.Parse("lifeboat.yaml", []byte(text))
		require.NoError(t, err)
		return cfg
	}
	now := time.Now()
	reg, q, cfg := prometheus.NewRegistry(), &oneEach{stored: now.Add(-time.Minute)}, parsed("one", "two")
	d := New(Options{
		Bus: q, Config: func() *config.Config { return cfg }, Budgets: unlimited{}, Logger: slog.New(slog.DiscardHandler), Registerer: reg,
		Now: func() time.Time { return now }, Sender: func(config.Receiver) (Sender, error) { return keyed{}, nil },
	})
	swept := func() map[string]float64 {
		t.Helper()
		forgot := now
		require.NoError(t, d.sweepOnce(t.Context(), &forgot))
		families, err := reg.Gather()
		require.NoError(t, err)
		all := map[string]float64{}
		for _, f := range families {
			for _, m := range f.GetMetric() {
				all[f.GetName()+" "+m.GetLabel()[0].GetValue()] = m.GetGauge().GetValue()
			}
		}
		return all
	}
	have := swept()
	assert.InDelta(t, 60, have["lifeboat_deliveries_oldest_seconds one"], 0)
	assert.Len(t, have, 8, "four of each")

	q.err = errors.New("it is away")
	assert.InDelta(t, 60, swept()["lifeboat_deliveries_oldest_seconds one"], 0, "nobody knows better")
	q.err = bus.ErrNoMessage
	assert.InDelta(t, 0, swept()["lifeboat_deliveries_oldest_seconds one"], 0, "it was delivered meanwhile")

	cfg = parsed("one")
	have = swept()
	assert.Len(t, have, 4)
	assert.Contains(t, have, "lifeboat_deliveries_waiting one")
}
