// Package backlog tells how many jobs wait and run in the whole fleet. Nobody but NATS knows: a job stays in its stream until it has
// ended, the claim of its target says who works on it, and the workers say whether they are there: one that was killed leaves its claim
// behind. All are asked now and then, and not when somebody scrapes.
package backlog

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"slices"
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
	// Workers are those that answer within half a second.
	Workers(ctx context.Context) ([]bus.WorkerInfo, error)
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

	// Only Run's: the workers with a claim that did not answer at the last look, and whether nobody could be asked then.
	missed map[string]bool
	deaf   bool
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
		waiting: desc("lifeboat_jobs_waiting", "Jobs of the whole fleet that nobody works on: those that wait for their next attempt, and those whose worker does not answer, included."),
		running: desc("lifeboat_jobs_running", "Jobs of the whole fleet that a worker works on which answers."),
		since:   desc("lifeboat_jobs_oldest_waiting_seconds", "Age of the oldest job that waits; 0 when none does."),
	}
	o.Registerer.MustRegister(b)
	return b
}

// Run looks until the context ends.
func (b *Backlog) Run(ctx context.Context) error {
	well := true
	for {
		last, took, err := b.look(ctx)
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
			pause = min(max(interval, share*took), longest)
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

// look counts, and says how long NATS was read for.
func (b *Backlog) look(ctx context.Context) (all map[config.Work]count, took time.Duration, err error) {
	ctx, cancel := context.WithTimeout(ctx, timeout)
	defer cancel()
	began := b.o.Now()
	var jobs []open
	err = b.o.Bus.Scan(ctx, bus.StreamJobs, "lifeboat.job.>", func(m *bus.Message) error {
		if work, target, ok := bus.ParseJobSubject(m.Subject); ok {
			jobs = append(jobs, open{work, target, m.ID(), m.Stored})
		}
		return nil
	})
	if err != nil {
		return nil, 0, fmt.Errorf("listing the jobs: %w", err)
	}
	claims, err := b.claims(ctx, jobs)
	if err != nil {
		return nil, 0, err
	}
	took = b.o.Now().Sub(began)
	claims = b.held(ctx, jobs, claims)
	all = map[config.Work]count{}
	for _, work := range config.Works() {
		all[work] = count{}
	}
	for _, j := range jobs {
		c, known := all[j.work]
		switch {
		case !known: // somebody published it by hand
			continue
		case claims[bus.ClaimSubject(j.target, j.work)].job == j.id:
			c.running++
		default:
			c.waiting++
			if c.oldest.IsZero() || j.stored.Before(c.oldest) {
				c.oldest = j.stored
			}
		}
		all[j.work] = c
	}
	return all, took, nil
}

// claim is which job a worker works on.
type claim struct{ job, worker string }

// claims are the claims in force, by their subject.
func (b *Backlog) claims(ctx context.Context, jobs []open) (map[string]claim, error) {
	inForce := map[string]claim{}
	note := func(m *bus.Message) error {
		c := &lifeboatv1.ClaimState{}
		if err := bus.Decode(m.Data, c); err != nil {
			return nil //nolint:nilerr // one that nobody understands says nothing
		}
		if p := c.GetPhase(); p == lifeboatv1.ClaimState_PHASE_RUNNING || p == lifeboatv1.ClaimState_PHASE_COMMITTING {
			inForce[m.Subject] = claim{job: c.GetJobId(), worker: c.GetWorker()}
		}
		return nil
	}
	if len(jobs) > fewJobs {
		if err := b.o.Bus.Scan(ctx, bus.StreamJobs, "lifeboat.state.claim.>", note); err != nil {
			return nil, fmt.Errorf("listing the claims: %w", err)
		}
		return inForce, nil
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
	return inForce, nil
}

// held are those of the claims of the jobs whose worker is there. One that is silent at a single look may be busy; at the second it is
// dead, and its job waits. When nobody can be asked all are believed.
func (b *Backlog) held(ctx context.Context, jobs []open, claims map[string]claim) map[string]claim {
	held := map[string]claim{}
	for _, j := range jobs {
		subject := bus.ClaimSubject(j.target, j.work)
		if c := claims[subject]; c.job == j.id {
			held[subject] = c
		}
	}
	missed := b.missed
	b.missed = nil
	if len(held) == 0 { // the question takes half a second
		return held
	}
	workers, err := b.o.Bus.Workers(ctx)
	if err != nil {
		if !b.deaf && ctx.Err() == nil {
			b.o.Logger.WarnContext(ctx, "could not ask which workers are there; their claims are believed", slog.Any("err", err))
		}
		b.deaf = true
		return held
	}
	b.deaf, b.missed = false, map[string]bool{}
	for subject, c := range held {
		if slices.ContainsFunc(workers, func(w bus.WorkerInfo) bool { return w.Actor == c.worker }) {
			continue
		}
		b.missed[c.worker] = true
		if missed[c.worker] {
			delete(held, subject)
		}
	}
	return held
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
