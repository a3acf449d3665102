// Command scheduler measures the scheduler and the way of a job to a worker on a real NATS server with one replica, all in one run,
// each beside the raw limit that it is compared with. `make bench-scheduler` runs it; its last line is JSON.
//
// What is compared, the scheduler and the raw side in turn, so that a noisy neighbour meets both:
//
//   - emit_ratio: many targets whose ticks are all due at the same moment. The rate is that of the jobs' timestamps, which the server
//     writes, from the first to the last. Raw is a program that only stores the same messages, byte for byte, in the same atomic
//     batches (the state with roll-up and expected sequence, the job), 16 at once, into a stream that was made with the same settings.
//   - lateness_p99_ms: a thousand targets whose ticks are due at the same moment; the server's timestamp of each job, less the tick.
//   - start_ratio: from just before a job is published until this process sees the first thing that the worker does with it, which is
//     to ask the server who had the claim last, less what a message takes back to here; over the time from just before a message is
//     published until the handler of a program that does nothing else has it, by the clock of that program. The way back is the time
//     from there until a message of that handler is seen here. The second stream and its consumer have the settings of the first.
//   - start_s, rss_mib, idle_cpu_pct: a scheduler with very many targets. Seconds from its start as a process to the first job of one
//     target that is due every second, while the states of all targets are there already; the most that was ever resident (VmHWM);
//     processor time over a minute in which only that one target has ticks.
package main

import (
	"context"
	"flag"
	"fmt"
	"os"
	"os/signal"
	"syscall"
	"time"

	"github.com/lifeboat-fleet/lifeboat/tests/bench/internal/testbed"
)

// options are how much is measured.
type options struct {
	rounds  int
	targets int
	every   time.Duration
	late    int
	jobs    int
	many    int
	idle    time.Duration
}

func main() {
	var o options
	flag.IntVar(&o.rounds, "rounds", 3, "how many times each thing is measured; the median counts")
	flag.IntVar(&o.targets, "targets", 20_000, "targets whose ticks are due at once, for the rate")
	flag.DurationVar(&o.every, "every", 20*time.Second, "how often they are due; the scheduler must be able to start within")
	flag.IntVar(&o.late, "late-targets", 1000, "targets whose ticks are due at once, for the lateness")
	flag.IntVar(&o.jobs, "jobs", 300, "jobs whose way to a worker is timed, over all rounds")
	flag.IntVar(&o.many, "many", 100_000, "targets of the scheduler whose start, memory and idleness are measured")
	flag.DurationVar(&o.idle, "idle", time.Minute, "how long it is idle")
	only := flag.String("only", "", "measure one part: emit, lateness, start or many")
	binary := flag.String("lifeboat", ".bin/lifeboat", "the lifeboat `binary` to measure")
	scratch := flag.String("scratch", "/dev/shm", "`folder` for the data of NATS and S3")
	url := flag.String("handle", "", "only be the raw handler, at this `URL` of NATS; the benchmark starts itself so")
	flag.Parse()
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	measure := func() error { return run(ctx, o, *only, *binary, *scratch) }
	if *url != "" {
		measure = func() error { return handle(ctx, *url) }
	}
	if err := measure(); err != nil {
		fmt.Fprintln(os.Stderr, "bench-scheduler:", err)
		stop()
		os.Exit(1) //nolint:gocritic // stop was called
	}
}

// figures are what is measured; the last line of the output.
type figures struct {
	EmitRatio   float64 `json:"emit_ratio"`
	LatenessP99 float64 `json:"lateness_p99_ms"`
	StartRatio  float64 `json:"start_ratio"`
	RSSMiB      float64 `json:"rss_mib"`
	IdleCPU     float64 `json:"idle_cpu_pct"`
	StartS      float64 `json:"start_s"`
}

// What must be reached.
const (
	minEmitRatio  = 0.8
	maxStartRatio = 3
	maxRSS        = 300
	maxIdleCPU    = 2
	maxStart      = 5
)

func run(ctx context.Context, o options, only, binary, scratch string) error {
	return testbed.WithFleet(ctx, binary, scratch, func(bed *testbed.Bed) error { return measure(ctx, bed, o, only) })
}

func measure(ctx context.Context, bed *testbed.Bed, o options, only string) error {
	b := &bench{Bed: bed, options: o}
	var f figures
	for _, part := range []struct {
		name    string
		measure func(context.Context, *figures) error
	}{{"emit", b.emit}, {"lateness", b.lateness}, {"start", b.start}, {"many", b.manyTargets}} {
		if only != "" && only != part.name {
			continue
		}
		if err := b.reset(ctx); err != nil {
			return err
		}
		if err := part.measure(ctx, &f); err != nil {
			return fmt.Errorf("%s: %w", part.name, err)
		}
	}
	return report(f, o, only)
}

func report(f figures, o options, only string) error {
	return testbed.Report(only, []testbed.Row{
		testbed.Figure(
			"emit", "ticks emitted / raw atomic batches, 16 at once", fmt.Sprintf("%.2f", f.EmitRatio),
			fmt.Sprintf(">= %.1f", minEmitRatio), f.EmitRatio >= minEmitRatio,
		),
		testbed.Figure("lateness", fmt.Sprintf("lateness of %d ticks due at once, p99", o.late), fmt.Sprintf("%.0f ms", f.LatenessP99), "", true),
		testbed.Figure(
			"start", "job published to work begun / raw publish to handler, p50", fmt.Sprintf("%.2f", f.StartRatio),
			fmt.Sprintf("<= %d", maxStartRatio), f.StartRatio <= maxStartRatio,
		),
		testbed.Figure(
			"many", fmt.Sprintf("%d targets: most memory ever resident", o.many), fmt.Sprintf("%.0f MiB", f.RSSMiB),
			fmt.Sprintf("<= %d MiB", maxRSS), f.RSSMiB <= maxRSS,
		),
		testbed.Figure(
			"many", fmt.Sprintf("%d targets: processor over an idle %s", o.many, o.idle), fmt.Sprintf("%.2f %% of a core", f.IdleCPU),
			fmt.Sprintf("<= %d %%", maxIdleCPU), f.IdleCPU <= maxIdleCPU,
		),
		testbed.Figure(
			"many", fmt.Sprintf("%d targets: start to the first job", o.many), fmt.Sprintf("%.2f s", f.StartS),
			fmt.Sprintf("<= %d s", maxStart), f.StartS <= maxStart,
		),
	}, f)
}
