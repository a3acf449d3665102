package budget

import (
	"context"
	"log/slog"
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"
)

// scrapeTimeout bounds what a scrape asks NATS for. Without an answer it shows what this process knows.
const scrapeTimeout = time.Second

// Shown is a budget that is shown as a metric.
type Shown struct {
	Key  string
	Rule Rule
}

// Show says which budgets the metric lifeboat_notify_budget_left shows, by receiver. It replaces the earlier ones.
func (b *Budgets) Show(all map[string]Shown) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.shown = all
}

// collector reads the budgets when somebody asks: what was left a while ago says nothing, and others send, too.
type collector struct{ b *Budgets }

var _ prometheus.Collector = &collector{}

func (c *collector) desc() *prometheus.Desc {
	return prometheus.NewDesc("lifeboat_notify_budget_left", "Messages that the robot or channel of a receiver may be sent now; -1 without a limit.",
		[]string{"receiver"}, nil)
}

func (c *collector) Describe(out chan<- *prometheus.Desc) { out <- c.desc() }

func (c *collector) Collect(out chan<- prometheus.Metric) {
	c.b.mu.Lock()
	shown := c.b.shown
	c.b.mu.Unlock()
	ctx, cancel := context.WithTimeout(context.Background(), scrapeTimeout)
	defer cancel()
	var wg sync.WaitGroup
	for receiver, s := range shown {
		wg.Go(func() {
			if n, ok := c.left(ctx, s); ok {
				out <- prometheus.MustNewConstMetric(c.desc(), prometheus.GaugeValue, float64(n), receiver)
			}
		})
	}
	wg.Wait()
}

func (c *collector) left(ctx context.Context, s Shown) (int, bool) {
	r, err := c.b.enter(ctx, s.Key)
	if err != nil {
		return 0, false
	}
	defer r.leave()
	if !s.Rule.unlimited() {
		if err := c.b.read(ctx, r); err != nil {
			c.b.o.Logger.DebugContext(ctx, "could not read a budget for the metrics", slog.String("key", s.Key), slog.Any("err", err))
			if !r.known {
				return 0, false
			}
		}
	}
	return left(r.state, s.Rule, c.b.o.Now()), true
}
