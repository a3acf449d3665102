// Package backlog tells how many jobs wait and run in the whole fleet. Nobody but NATS knows: a job stays in its stream until it has
// ended, and the claim of its target says whether somebody works on it. Both are read now and then, and not when somebody scrapes.
package backlog

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/lifeboat-fleet/lifeboat/fleet/bus"
	"github.com/lifeboat-fleet/lifeboat/fleet/config"
	lifeboatv1 "github.com/lifeboat-fleet/lifeboat/proto/lifeboat/v1"
)

const (
	// interval is how often the jobs are looked at.
	interval = 10 * time.Second
	// share limits what a look may cost: after one the next waits for so many times as long as it took, but not longer than longest.
	share   = 50
	longest = 2 * time.Minute
	// fewJobs is up to how many claims are read one by one rather than all that there are.
	fewJobs = 200
	// timeout bounds one look.
	timeout = 2 * time.Minute
)

// Bus is what is needed of the bus.
type Bus interface {
	// Scan calls each for every message of a subject filter that is in the stream.
	Scan(ctx context.Context, stream, filter string, each func(*bus.Message) error) error
	// First is the oldest message of a filter; errors.Is(err, bus.ErrNoMessage) when there is none.
	First(ctx context.Context, stream, filter string) (*bus.Message, error)
}

// Options of a backlog.
type Options struct {
	Bus        Bus
	Logger     *slog.Logger
	Registerer prometheus.Registerer
	Now        func() time.Time
}

// Backlog counts the jobs.
type Backlog struct {
	o                       Options
	waiting, running, since *prometheus.Desc

	mu sync.Mutex
	// last is what the last look found, by work; nil when it failed.
	last map[config.Work]count
}

// count is of one kind of work.
type count struct {
	waiting, running int
	// oldest is when the one was stored that waits for longest; zero when none waits.
	oldest time.Time
}

// New returns a backlog.
func New(o Options) *Backlog {
	desc := func(name, help string) *prometheus.Desc { return prometheus.NewDesc(name, help, []string{"work"}, nil) }
	b := &Backlog{
		o:       o,
		waiting: desc("lifeboat_jobs_waiting", "Jobs of the whole fleet that nobody works on, those that wait for their next attempt included."),
		running: desc("lifeboat_jobs_running", "Jobs of the whole fleet that a worker works on."),
		since:   desc("lifeboat_jobs_oldest_waiting_seconds", "Age of the oldest job that waits; 0 when none does."),
	}
	o.Registerer.MustRegister(b)
	return b
}

// Run looks until the context ends.
func (b *Backlog) Run(ctx context.Context) error {
	well := true
	for {
		began := b.o.Now()
		last, err := b.look(ctx)
		if ctx.Err() != nil {
			return nil //nolint:nilerr // a stop is how this ends
		}
		if err != nil && well { // and not again every time: the metrics are absent, which says it as well
			b.o.Logger.WarnContext(ctx, "could not count the jobs that wait and run, trying again", slog.Any("err", err))
		}
		well = err == nil
		b.mu.Lock()
		b.last = last
		b.mu.Unlock()
		pause := interval
		if err == nil { // how long a failed one took says how long NATS was waited for, and not what a look costs
			pause = min(max(interval, share*b.o.Now().Sub(began)), longest)
		}
		t := time.NewTimer(pause)
		select {
		case <-ctx.Done():
			t.Stop()
			return nil
		case <-t.C:
		}
	}
}

// open is a job that has not ended.
type open struct {
	work   config.Work
	target string
	id     string
	stored time.Time
}

func (b *Backlog) look(ctx context.Context) (map[config.Work]count, error) {
	ctx, cancel := context.WithTimeout(ctx, timeout)
	defer cancel()
	var jobs []open
	err := b.o.Bus.Scan(ctx, bus.StreamJobs, "lifeboat.job.>", func(m *bus.Message) error {
		if work, target, ok := bus.ParseJobSubject(m.Subject); ok {
			jobs = append(jobs, open{work, target, m.ID(), m.Stored})
		}
		return nil
	})
	if err != nil {
		return nil, fmt.Errorf("listing the jobs: %w", err)
	}
	running, err := b.claimed(ctx, jobs)
	if err != nil {
		return nil, err
	}
	all := map[config.Work]count{}
	for _, work := range config.Works() {
		all[work] = count{}
	}
	for _, j := range jobs {
		c, known := all[j.work]
		switch {
		case !known: // somebody published it by hand
			continue
		case running[bus.ClaimSubject(j.target, j.work)] == j.id:
			c.running++
		default:
			c.waiting++
			if c.oldest.IsZero() || j.stored.Before(c.oldest) {
				c.oldest = j.stored
			}
		}
		all[j.work] = c
	}
	return all, nil
}

// claimed are the ids of the jobs that are worked on, by the subject of their claim.
func (b *Backlog) claimed(ctx context.Context, jobs []open) (map[string]string, error) {
	running := map[string]string{}
	note := func(m *bus.Message) error {
		c := &lifeboatv1.ClaimState{}
		if err := bus.Decode(m.Data, c); err != nil {
			return nil //nolint:nilerr // one that nobody understands says nothing
		}
		if p := c.GetPhase(); p == lifeboatv1.ClaimState_PHASE_RUNNING || p == lifeboatv1.ClaimState_PHASE_COMMITTING {
			running[m.Subject] = c.GetJobId()
		}
		return nil
	}
	if len(jobs) > fewJobs {
		if err := b.o.Bus.Scan(ctx, bus.StreamJobs, "lifeboat.state.claim.>", note); err != nil {
			return nil, fmt.Errorf("listing the claims: %w", err)
		}
		return running, nil
	}
	for _, j := range jobs {
		m, err := b.o.Bus.First(ctx, bus.StreamJobs, bus.ClaimSubject(j.target, j.work))
		switch {
		case errors.Is(err, bus.ErrNoMessage):
			continue
		case err != nil:
			return nil, fmt.Errorf("reading the claim of %s: %w", j.target, err)
		}
		_ = note(m) // it returns nil
	}
	return running, nil
}

// Describe implements prometheus.Collector.
func (b *Backlog) Describe(out chan<- *prometheus.Desc) {
	out <- b.waiting
	out <- b.running
	out <- b.since
}

// Collect implements prometheus.Collector.
func (b *Backlog) Collect(out chan<- prometheus.Metric) {
	b.mu.Lock()
	last := b.last
	b.mu.Unlock()
	now := b.o.Now()
	for work, c := range last {
		age := 0.0
		if !c.oldest.IsZero() {
			age = max(now.Sub(c.oldest), 0).Seconds()
		}
		for desc, value := range map[*prometheus.Desc]float64{b.waiting: float64(c.waiting), b.running: float64(c.running), b.since: age} {
			out <- prometheus.MustNewConstMetric(desc, prometheus.GaugeValue, value, string(work))
		}
	}
}
