package main

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"iter"
	"os"
	"slices"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"

	"github.com/lifeboat-fleet/lifeboat/fleet/bus"
	"github.com/lifeboat-fleet/lifeboat/fleet/fleettest/bintest"
	"github.com/lifeboat-fleet/lifeboat/fleet/fleettest/s3test"
	"github.com/lifeboat-fleet/lifeboat/tests/bench/internal/testbed"
)

// Subjects in the stream of jobs.
const (
	snapshotJobs   = "lifeboat.job.snapshot.*"
	scheduleStates = "lifeboat.state.schedule.*.*"
)

// A step of a benchmark that takes longer than this will not end.
const patience = 10 * time.Minute

// bench measures on a test bed.
type bench struct {
	*testbed.Bed
	options
	files int
}

// reset deletes all streams. Nobody may be connected who needs them.
func (b *bench) reset(ctx context.Context) error {
	for _, name := range []string{bus.StreamJobs, bus.StreamEvents, bus.StreamAlerts, bus.StreamDead} {
		if err := b.JetStream.DeleteStream(ctx, name); err != nil && !errors.Is(err, jetstream.ErrStreamNotFound) {
			return fmt.Errorf("deleting stream %s: %w", name, err)
		}
	}
	return nil
}

// targets is a configuration with n targets of the same schedule; source is never asked.
func targets(n int, schedule string) iter.Seq[string] {
	return func(yield func(string) bool) {
		for i := range n {
			if !yield(fmt.Sprintf("{name: target-%06d, consul: {address: 'http://127.0.0.1:8500'}, %s}", i, schedule)) {
				return
			}
		}
	}
}

// configure writes a lifeboat.yaml and gives its path.
func (b *bench) configure(targets iter.Seq[string]) (_ string, err error) {
	b.files++
	path := b.Path(fmt.Sprintf("lifeboat-%d.yaml", b.files))
	file, err := os.Create(path)
	if err != nil {
		return "", err
	}
	defer func() { err = errors.Join(err, file.Close()) }()
	w := bufio.NewWriter(file)
	fmt.Fprintf(w, "nats: {url: %q}\nstore: {bucket: %s}\ntargets:\n", b.NATS.URL, s3test.Bucket)
	for t := range targets {
		fmt.Fprintf(w, "  - %s\n", t)
	}
	return path, w.Flush()
}

// scheduler is one that runs as a process.
type scheduler struct {
	*bintest.Process
	// metrics is where it tells them; log is its log.
	metrics, log string
}

func (b *bench) startScheduler(conf string) (*scheduler, error) {
	ports, err := bintest.FreePorts(1)
	if err != nil {
		return nil, err
	}
	addr := fmt.Sprintf("127.0.0.1:%d", ports[0])
	s := &scheduler{metrics: "http://" + addr + "/metrics", log: b.Path("scheduler.log")}
	s.Process, err = bintest.Start(b.Binary, s.log, nil, "scheduler", "--config", conf, "--http-addr", addr)
	return s, err
}

// until polls until ok, and fails when the process has ended.
func (s *scheduler) until(ctx context.Context, what string, every time.Duration, ok func(context.Context) (bool, error)) error {
	ctx, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	tick := time.NewTicker(every)
	defer tick.Stop()
	for {
		done, err := ok(ctx)
		if err != nil || done {
			return err
		}
		select {
		case <-s.Done():
			text, _ := os.ReadFile(s.log) // it is only to say more
			return fmt.Errorf("waiting for %s: the scheduler ended: %s", what, text[max(0, len(text)-2000):])
		case <-ctx.Done():
			return fmt.Errorf("waiting for %s: %w", what, ctx.Err())
		case <-tick.C:
		}
	}
}

// holds says whether the stream of jobs has at least n messages.
func (b *bench) holds(n int) func(context.Context) (bool, error) {
	return func(ctx context.Context) (bool, error) {
		have, _, err := b.messages(ctx, bus.StreamJobs)
		return have >= n, err
	}
}

// messages is how many there are in a stream, and how many were ever stored; 0 when there is no such stream.
func (b *bench) messages(ctx context.Context, stream string) (now int, ever uint64, err error) {
	s, err := b.JetStream.Stream(ctx, stream)
	if errors.Is(err, jetstream.ErrStreamNotFound) {
		return 0, 0, nil
	}
	if err != nil {
		return 0, 0, fmt.Errorf("looking up stream %s: %w", stream, err)
	}
	state := s.CachedInfo().State
	return int(state.Msgs), state.LastSeq, nil //nolint:gosec // a count
}

// purge deletes what the stream of jobs has of a subject.
func (b *bench) purge(ctx context.Context, subject string) error {
	s, err := b.JetStream.Stream(ctx, bus.StreamJobs)
	if err == nil {
		err = s.Purge(ctx, jetstream.WithPurgeSubject(subject))
	}
	if err != nil {
		return fmt.Errorf("purging %s: %w", subject, err)
	}
	return nil
}

// stored is a message as the stream has it.
type stored struct {
	subject string
	data    []byte
	header  nats.Header
	at      time.Time
}

// read gives everything that the stream of jobs has of some subjects, in order, and leaves it there.
func (b *bench) read(ctx context.Context, subjects ...string) (all []stored, err error) {
	c, err := b.JetStream.CreateConsumer(ctx, bus.StreamJobs, jetstream.ConsumerConfig{
		FilterSubjects: subjects, AckPolicy: jetstream.AckExplicitPolicy, MaxAckPending: -1, MemoryStorage: true,
		InactiveThreshold: time.Minute,
	})
	if err != nil {
		return nil, fmt.Errorf("reading the jobs: %w", err)
	}
	defer func() {
		err = errors.Join(err, b.JetStream.DeleteConsumer(ctx, bus.StreamJobs, c.CachedInfo().Name))
	}()
	for left := int(c.CachedInfo().NumPending); left > 0; { //nolint:gosec // a count
		batch, err := c.Fetch(min(left, 1000), jetstream.FetchContext(ctx))
		if err != nil {
			return nil, fmt.Errorf("reading the jobs: %w", err)
		}
		for m := range batch.Messages() {
			meta, err := m.Metadata()
			if err != nil {
				return nil, fmt.Errorf("reading the jobs: %w", err)
			}
			all = append(all, stored{m.Subject(), m.Data(), m.Headers(), meta.Timestamp})
			left--
		}
		if err := batch.Error(); err != nil {
			return nil, fmt.Errorf("reading the jobs: %w", err)
		}
	}
	return all, nil
}

// cpu starts to count the processor time of everybody involved; what it returns prints it.
func (b *bench) cpu(s *scheduler) func(what string) {
	type counted struct {
		name   string
		pid    int
		before float64
	}
	all := []counted{{name: "nats-server", pid: b.NATS.PID()}, {name: "this process", pid: os.Getpid()}}
	if s != nil {
		all = append(all, counted{name: "scheduler", pid: s.PID()})
	}
	for i := range all {
		all[i].before = testbed.CPUSeconds(all[i].pid)
	}
	return func(what string) {
		fmt.Fprintf(b.Out, "  processor time during the %s:", what)
		for _, c := range all {
			fmt.Fprintf(b.Out, " %s %.2f s", c.name, testbed.CPUSeconds(c.pid)-c.before)
		}
		fmt.Fprintln(b.Out)
	}
}

// next is the coming moment that is a multiple of d since the Unix epoch, which is when `@every d` is due.
func next(d time.Duration) time.Time {
	now := time.Now()
	return now.Add(d - time.Duration(now.UnixNano())%d)
}

// wait ends at a moment.
func wait(ctx context.Context, until time.Time) error {
	t := time.NewTimer(time.Until(until))
	defer t.Stop()
	select {
	case <-ctx.Done():
		return ctx.Err()
	case <-t.C:
		return nil
	}
}

// quantile of what was measured: 0.5 is the median.
func quantile(d []time.Duration, q float64) time.Duration {
	d = slices.Sorted(slices.Values(d))
	return d[min(int(float64(len(d))*q), len(d)-1)]
}

func ms(d time.Duration) float64 { return float64(d) / float64(time.Millisecond) }
