package main

import (
	"context"
	"fmt"
	"time"

	"github.com/lifeboat-fleet/lifeboat/fleet/bus"
	lifeboatv1 "github.com/lifeboat-fleet/lifeboat/proto/lifeboat/v1"
	"github.com/lifeboat-fleet/lifeboat/tests/bench/internal/testbed"
)

// emit measures the rate of ticks and of raw batches in turn.
func (b *bench) emit(ctx context.Context, f *figures) error {
	conf, err := b.configure(targets(b.targets, fmt.Sprintf("schedule: '@every %s'", b.every)))
	if err != nil {
		return err
	}
	var ratios []float64
	for i := range b.rounds {
		if err := b.reset(ctx); err != nil {
			return err
		}
		all, err := b.scheduled(ctx, conf)
		if err != nil {
			return err
		}
		emitted, err := rate(all)
		if err != nil {
			return err
		}
		raw, err := b.raw(ctx, all)
		if err != nil {
			return err
		}
		fmt.Fprintf(b.Out, "round %d: %d ticks due at once were emitted at %.0f/s; raw atomic batches %.0f/s\n", i+1, b.targets, emitted, raw)
		ratios = append(ratios, emitted/raw)
	}
	fmt.Fprintf(b.Out, "ratios of the rounds: %.2f\n", ratios)
	f.EmitRatio = testbed.Median(ratios)
	return nil
}

// scheduled has a scheduler emit one tick of every target, and gives the jobs and states that it stored.
func (b *bench) scheduled(ctx context.Context, conf string) ([]stored, error) {
	// Just after one tick, so that all targets are loaded before the next one.
	if err := wait(ctx, next(b.every)); err != nil {
		return nil, err
	}
	began := time.Now()
	s, err := b.startScheduler(conf)
	if err != nil {
		return nil, err
	}
	defer func() { _ = s.Stop() }()
	if err := s.until(ctx, "the schedules' states", 200*time.Millisecond, b.holds(b.targets)); err != nil {
		return nil, err
	}
	loaded := time.Since(began)
	if loaded > b.every-time.Second {
		return nil, fmt.Errorf("the scheduler took %s to write the states of %d schedules; the ticks of -every %s come too soon", loaded, b.targets, b.every)
	}
	if err := wait(ctx, next(b.every)); err != nil {
		return nil, err
	}
	spent := b.cpu(s)
	if err := s.until(ctx, "the jobs", 200*time.Millisecond, b.holds(2*b.targets)); err != nil {
		return nil, err
	}
	spent("ticks")
	return b.read(ctx, snapshotJobs, scheduleStates)
}

// rate is of the jobs' timestamps. All jobs must be for the same tick.
func rate(all []stored) (float64, error) {
	late, err := latenesses(all)
	if err != nil {
		return 0, err
	}
	return float64(len(late)-1) / (quantile(late, 1) - quantile(late, 0)).Seconds(), nil
}

// latenesses are from the tick, the same one for all jobs, to the timestamp that the server gave each job.
func latenesses(all []stored) ([]time.Duration, error) {
	var late []time.Duration
	var tick time.Time
	for _, m := range all {
		if _, _, ok := bus.ParseJobSubject(m.subject); !ok {
			continue
		}
		job := &lifeboatv1.Job{}
		if err := bus.Decode(m.data, job); err != nil {
			return nil, fmt.Errorf("reading a job: %w", err)
		}
		at := job.GetTick().AsTime()
		if len(late) == 0 {
			tick = at
		}
		if !at.Equal(tick) {
			return nil, fmt.Errorf("the ticks are of %s and of %s, and should be of one moment", tick, at)
		}
		late = append(late, m.at.Sub(at))
	}
	return late, nil
}

// latePeriod is how often the ticks are due whose lateness is measured.
const latePeriod = 10 * time.Second

// lateness measures ticks that are due at the same moment, of one scheduler, once per round.
func (b *bench) lateness(ctx context.Context, f *figures) error {
	conf, err := b.configure(targets(b.late, fmt.Sprintf("schedule: '@every %s'", latePeriod)))
	if err != nil {
		return err
	}
	if err = wait(ctx, next(latePeriod)); err != nil {
		return err
	}
	s, err := b.startScheduler(conf)
	if err != nil {
		return err
	}
	defer func() { _ = s.Stop() }()
	var p99s []float64
	for i := range b.rounds {
		if err := s.until(ctx, "the jobs", 50*time.Millisecond, b.holds(2*b.late)); err != nil {
			return err
		}
		all, err := b.read(ctx, snapshotJobs)
		if err != nil {
			return err
		}
		if err = b.purge(ctx, snapshotJobs); err != nil {
			return err
		}
		late, err := latenesses(all)
		if err != nil {
			return err
		}
		p99 := ms(quantile(late, 0.99))
		fmt.Fprintf(b.Out, "round %d: %d ticks due at once: the first job was stored %.1f ms after the tick, p50 %.1f, p99 %.1f, the last %.1f ms\n",
			i+1, len(late), ms(quantile(late, 0)), ms(quantile(late, 0.5)), p99, ms(quantile(late, 1)))
		p99s = append(p99s, p99)
	}
	f.LatenessP99 = testbed.Median(p99s)
	return nil
}
