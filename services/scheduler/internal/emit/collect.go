package emit

import (
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"

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
	gaps map[*spec]float64
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
			"The longest time between two ticks, of the coming ones. Absent for a schedule that has no two further ticks.", labels, nil),
		gaps: map[*spec]float64{},
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
			all = append(all, told{en, s.next, en.target.Paused || inForce(s.pause, now)})
		}
	}
	c.e.mu.Unlock()
	c.mu.Lock()
	defer c.mu.Unlock()
	gaps := make(map[*spec]float64, len(c.gaps))
	for i := range all {
		en := all[i].entry // of which what is read here never changes
		labels := gauges.NewLabels("target", en.key.target, "schedule", en.key.schedule)
		if next := all[i].next; !next.IsZero() {
			out <- gauges.New(c.next, labels, float64(next.UnixMilli())/1000)
			gap, known := gaps[en.spec]
			if !known {
				if gap, known = c.gaps[en.spec]; !known {
					gap = longestGap(en, next)
				}
				gaps[en.spec] = gap
			}
			if gap > 0 {
				out <- gauges.New(c.interval, labels, gap)
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

// gapsSeen is over how many coming ticks the longest gap is looked for: a week of a daily line, a year of a monthly one.
const gapsSeen = 12

// longestGap is the longest time between the coming ticks, in seconds; 0 when there are no two.
func longestGap(en *entry, next time.Time) float64 {
	most := time.Duration(0)
	for range gapsSeen {
		after := en.Schedule.Next(next)
		if after.IsZero() {
			break
		}
		most, next = max(most, after.Sub(next)), after
	}
	return most.Seconds()
}
