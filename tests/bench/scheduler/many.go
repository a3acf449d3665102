package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"regexp"
	"strconv"
	"time"

	"github.com/nats-io/nats.go/jetstream"

	"github.com/lifeboat-fleet/lifeboat/fleet/bus"
	"github.com/lifeboat-fleet/lifeboat/fleet/config"
	"github.com/lifeboat-fleet/lifeboat/tests/bench/internal/testbed"
)

// extra is the one target that has ticks while the others have none.
const extra = "extra"

// What goes on after a start is waited for so long at most before the idle time begins.
const settling = 15 * time.Second

// manyTargets measures a scheduler with very many targets: its start, its memory, and what it does when there is nothing to do.
func (b *bench) manyTargets(ctx context.Context, f *figures) error {
	// No tick of the others within half a day.
	hour := time.Now().UTC().Add(12 * time.Hour).Hour()
	conf, err := b.configure(func(yield func(string) bool) {
		for t := range targets(b.many, fmt.Sprintf("schedule: '0 %d * * *', splay: 1h, rpo: 48h", hour)) {
			if !yield(t) {
				return
			}
		}
		yield("{name: " + extra + ", consul: {address: 'http://127.0.0.1:8500'}, schedule: '@every 1s'}")
	})
	if err != nil {
		return err
	}
	if err := b.firstStart(ctx, conf); err != nil {
		return err
	}
	var starts []float64
	for i := range b.rounds {
		s, took, err := b.untilJob(ctx, conf)
		if err != nil {
			return err
		}
		peak, err := testbed.PeakRSS(s.PID())
		if err != nil {
			return errors.Join(err, s.Stop())
		}
		fmt.Fprintf(b.Out, "round %d: start with the states of %d targets there: the first job after %.2f s, in which the scheduler took %.2f s of the "+
			"processor and at most %.0f MiB\n", i+1, b.many, took.Seconds(), testbed.CPUSeconds(s.PID()), peak)
		starts = append(starts, took.Seconds())
		if i == b.rounds-1 {
			err = b.idles(ctx, s, f)
		}
		if err = errors.Join(err, s.Stop()); err != nil {
			return err
		}
	}
	f.StartS = testbed.Median(starts)
	return nil
}

// firstStart has a scheduler see all targets for the first time.
func (b *bench) firstStart(ctx context.Context, conf string) error {
	began := time.Now()
	s, took, err := b.untilJob(ctx, conf)
	if err != nil {
		return err
	}
	defer func() { _ = s.Stop() }()
	if err = s.until(ctx, "the states of all schedules", 100*time.Millisecond, b.holds(b.many+2)); err != nil { // and one job
		return err
	}
	fmt.Fprintf(b.Out, "first start, with an empty stream: the first job after %.2f s, the states of %d targets after %.2f s\n",
		took.Seconds(), b.many, time.Since(began).Seconds())
	var last uint64
	err = s.until(ctx, "the first events", 3*time.Second, func(ctx context.Context) (few bool, err error) {
		before := last
		_, last, err = b.messages(ctx, bus.StreamEvents)
		return last-before < 10, err // the extra target's missed ticks are events too
	})
	fmt.Fprintf(b.Out, "  and after %.2f s its first %d events were stored\n", time.Since(began).Seconds(), last)
	return err
}

// untilJob starts a scheduler and gives the time from there to the extra target's first job.
func (b *bench) untilJob(ctx context.Context, conf string) (*scheduler, time.Duration, error) {
	subject := bus.JobSubject(config.WorkSnapshot, extra)
	now, _, err := b.messages(ctx, bus.StreamJobs)
	if err == nil && now > 0 {
		err = b.purge(ctx, subject)
	}
	if err != nil {
		return nil, 0, err
	}
	began := time.Now()
	s, err := b.startScheduler(conf)
	if err != nil {
		return nil, 0, err
	}
	var at time.Time
	err = s.until(ctx, "the first job", 10*time.Millisecond, func(ctx context.Context) (_ bool, err error) {
		at, err = b.storedAt(ctx, subject)
		return !at.IsZero(), err
	})
	if err != nil {
		return nil, 0, errors.Join(err, s.Stop())
	}
	return s, at.Sub(began), nil
}

// storedAt is the timestamp of a subject's message in the stream of jobs; zero when there is none, or no stream yet.
func (b *bench) storedAt(ctx context.Context, subject string) (time.Time, error) {
	stream, err := b.JetStream.Stream(ctx, bus.StreamJobs)
	if errors.Is(err, jetstream.ErrStreamNotFound) {
		return time.Time{}, nil
	}
	if err != nil {
		return time.Time{}, fmt.Errorf("looking up stream %s: %w", bus.StreamJobs, err)
	}
	m, err := stream.GetLastMsgForSubject(ctx, subject)
	if errors.Is(err, jetstream.ErrMsgNotFound) {
		return time.Time{}, nil
	}
	if err != nil {
		return time.Time{}, fmt.Errorf("reading %s: %w", subject, err)
	}
	return m.Time, nil
}

// idles measures memory, and the processor over a time in which only the extra target has ticks, each of which is missed: its job waits.
func (b *bench) idles(ctx context.Context, s *scheduler, f *figures) error {
	if err := wait(ctx, time.Now().Add(settling)); err != nil {
		return err
	}
	_, jobs, err := b.messages(ctx, bus.StreamJobs)
	if err != nil {
		return err
	}
	_, events, err := b.messages(ctx, bus.StreamEvents)
	if err != nil {
		return err
	}
	began, before, server := time.Now(), testbed.CPUSeconds(s.PID()), testbed.CPUSeconds(b.NATS.PID())
	if err = wait(ctx, began.Add(b.idle)); err != nil {
		return err
	}
	percent := func(now, before float64) float64 { return 100 * (now - before) / time.Since(began).Seconds() }
	f.IdleCPU = percent(testbed.CPUSeconds(s.PID()), before)
	server = percent(testbed.CPUSeconds(b.NATS.PID()), server)
	rss, err := testbed.RSS(s.PID())
	if err != nil {
		return err
	}
	if f.RSSMiB, err = testbed.PeakRSS(s.PID()); err != nil {
		return err
	}
	_, jobsAfter, err := b.messages(ctx, bus.StreamJobs)
	if err != nil {
		return err
	}
	_, eventsAfter, err := b.messages(ctx, bus.StreamEvents)
	if err != nil {
		return err
	}
	fmt.Fprintf(b.Out, "idle for %s: the scheduler took %.2f %% of a core, nats-server %.2f %%; stored were %d states or jobs and %d events, of the extra target\n",
		b.idle, f.IdleCPU, server, jobsAfter-jobs, eventsAfter-events)
	schedules, size, err := scrape(ctx, s.metrics)
	if err != nil {
		return err
	}
	if schedules != b.many+1 {
		return fmt.Errorf("the scheduler says that it has %d schedules, of %d", schedules, b.many+1)
	}
	scraped, err := testbed.PeakRSS(s.PID())
	fmt.Fprintf(b.Out, "resident memory: %.0f MiB after that, at most %.0f MiB ever; at most %.0f MiB after its metrics (%d KiB) were read once\n",
		rss, f.RSSMiB, scraped, size>>10)
	return err
}

var schedulesLine = regexp.MustCompile(`(?m)^lifeboat_schedules (\S+)$`)

// scrape reads a scheduler's metrics and gives how many schedules it says that it has, and the size of all metrics in bytes.
func scrape(ctx context.Context, url string) (schedules, size int, err error) {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, url, nil)
	if err != nil {
		return 0, 0, err
	}
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		return 0, 0, fmt.Errorf("reading metrics: %w", err)
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(resp.Body)
	if err != nil {
		return 0, 0, fmt.Errorf("reading metrics: %w", err)
	}
	m := schedulesLine.FindSubmatch(body)
	if m == nil {
		return 0, 0, errors.New("the metrics do not say how many schedules there are")
	}
	n, err := strconv.ParseFloat(string(m[1]), 64)
	return int(n), len(body), err
}
