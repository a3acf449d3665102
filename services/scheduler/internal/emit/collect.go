package emit

import (
	"encoding/json"
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/lifeboat-fleet/lifeboat/fleet/config"
	lifeboatv1 "github.com/lifeboat-fleet/lifeboat/proto/lifeboat/v1"
	"github.com/lifeboat-fleet/lifeboat/services/scheduler/internal/gauges"
)

// collector tells of each schedule when it is asked. Of 100,000 targets anything that is kept for that would take as much memory as the
// entries do, which know it.
type collector struct {
	e                      *Emitter
	next, paused, interval *prometheus.Desc

	mu sync.Mutex
	// gaps are the longest ones between coming ticks. Targets share what they have alike.
	gaps map[gapKey]gap
}

func newCollector(e *Emitter) *collector {
	labels := []string{"target", "schedule"}
	return &collector{
		e: e,
		next: prometheus.NewDesc("lifeboat_next_tick_timestamp_seconds",
			"The earliest tick that is not decided yet, splay included. Absent for a schedule that has no further tick.", labels, nil),
		paused: prometheus.NewDesc("lifeboat_schedule_paused",
			"1 while the schedule is paused, by a person or by the configuration, else 0.", labels, nil),
		interval: prometheus.NewDesc("lifeboat_schedule_interval_seconds",
			"The longest time between two ticks outside of blackouts, of the last week and to come. Absent for a schedule that has no two further ticks.", labels, nil),
		gaps: map[gapKey]gap{},
	}
}

// Describe implements prometheus.Collector.
func (c *collector) Describe(out chan<- *prometheus.Desc) {
	out <- c.next
	out <- c.paused
	out <- c.interval
}

// shown is what is told of an entry.
type shown struct {
	next  time.Time
	pause *lifeboatv1.Pause
	// read: the stream's state is known.
	read bool
}

func (en *entry) show() shown { return shown{next: en.Next, pause: en.pause, read: !en.unread} }

// Collect implements prometheus.Collector. Whoever works on an entry owns it; what it was before is told then.
func (c *collector) Collect(out chan<- prometheus.Metric) {
	type told struct {
		entry  *entry
		target *config.Target
		next   time.Time
		paused bool
	}
	now := c.e.now()
	c.e.mu.Lock()
	all := make([]told, 0, len(c.e.known))
	for _, en := range c.e.known {
		s, ok := c.e.shown[en]
		if !ok {
			s = en.show()
		}
		if s.read {
			all = append(all, told{en, en.target, s.next, en.target.Paused || inForce(s.pause, now)})
		}
	}
	c.e.mu.Unlock()
	c.mu.Lock()
	defer c.mu.Unlock()
	gaps := make(map[gapKey]gap, len(c.gaps))
	for i := range all {
		en := all[i].entry // of which what is read here never changes
		labels := gauges.NewLabels("target", en.key.target, "schedule", en.key.schedule)
		if next := all[i].next; !next.IsZero() {
			out <- gauges.New(c.next, labels, float64(next.UnixMilli())/1000)
			k, err := newGapKey(en.spec, all[i].target)
			if err != nil {
				out <- prometheus.NewInvalidMetric(c.interval, err)
				continue
			}
			g, known := gaps[k]
			if !known {
				if g, known = c.gaps[k]; !known || now.Sub(g.at).Abs() >= gapFor {
					g = gap{all[i].target.LongestGap(en.spec.Schedule, now).Seconds(), now}
				}
				gaps[k] = g
			}
			if g.seconds > 0 {
				out <- gauges.New(c.interval, labels, g.seconds)
			}
		}
		paused := 0.0
		if all[i].paused {
			paused = 1
		}
		out <- gauges.New(c.paused, labels, paused)
	}
	c.gaps = gaps // those that no schedule has any more are forgotten
}

// gap is a longest gap, and when it was looked for.
type gap struct {
	seconds float64
	at      time.Time
}

// gapFor is how long it is taken for true: blackouts come and go.
const gapFor = time.Hour

// gapKey is what schedules have alike whose longest gaps are the same.
type gapKey struct {
	spec *spec
	// blackout is the target's, as JSON; empty for none. With a splay it is the target's own which of its ticks lie in one.
	blackout, target string
}

func newGapKey(s *spec, t *config.Target) (gapKey, error) {
	if len(t.Blackout) == 0 {
		return gapKey{spec: s}, nil
	}
	text, err := json.Marshal(t.Blackout)
	k := gapKey{spec: s, blackout: string(text)}
	if s.splay > 0 {
		k.target = t.Name
	}
	return k, err
}
