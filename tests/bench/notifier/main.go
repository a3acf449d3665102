// Command notifier measures the notifier on a real NATS server with one replica, all in one run, each figure beside the raw limit that
// it is compared with. `make bench-notifier` runs it; its last line is JSON.
//
// What is compared, the notifier and the raw side in turn, so that a noisy neighbour meets both:
//
//   - accept_ratio: webhooks that are answered with 200 in a second, by 16 connections. Raw is 16 goroutines of this process that store
//     the same bytes with a synchronous publish each, into a stream that was made with the same settings. Whatever the notifier does
//     besides, routing and delivering what it took, goes on meanwhile.
//   - latency_ratio: from just before a webhook is posted until the chat has taken the message, one at a time, p50; over the time from
//     just before a message is published until the handler of a consumer with the same settings has it, p50.
//   - p99_over_p50: the first of these while 200 webhooks a second come, p99 over p50.
//   - storm_lost, storm_rss_mib: 10,000 alerts in 100 webhooks, to a Slack and a DingTalk with their real limits. Lost is what no event
//     says the end of; memory is the most that was ever resident (VmHWM).
//
// Slack and DingTalk are local servers in this process.
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
	accept  time.Duration
	alerts  int
	singles int
	rate    int
	load    time.Duration
	storm   int
}

func main() {
	var o options
	flag.IntVar(&o.rounds, "rounds", 3, "how many times each thing is measured; the median counts")
	flag.DurationVar(&o.accept, "accept", 4*time.Second, "how long webhooks are posted as fast as they are taken, each round")
	flag.IntVar(&o.alerts, "alerts", 1, "alerts in a webhook; one is about 0.94 KB, as Alertmanager's are")
	flag.IntVar(&o.singles, "singles", 300, "webhooks whose way is timed one by one, each round")
	flag.IntVar(&o.rate, "rate", 200, "webhooks a second under load")
	flag.DurationVar(&o.load, "load", 10*time.Second, "how long the load lasts, each round")
	flag.IntVar(&o.storm, "storm", 100, "webhooks of 100 alerts in the storm")
	only := flag.String("only", "", "measure one part: accept, latency, load or storm")
	binary := flag.String("lifeboat", ".bin/lifeboat", "the lifeboat `binary` to measure")
	scratch := flag.String("scratch", "/dev/shm", "`folder` for the data of NATS")
	flag.Parse()
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	if err := run(ctx, o, *only, *binary, *scratch); err != nil {
		fmt.Fprintln(os.Stderr, "bench-notifier:", err)
		stop()
		os.Exit(1) //nolint:gocritic // stop was called
	}
}

// figures are what is measured; the last line of the output.
type figures struct {
	Accept  float64 `json:"accept_ratio"`
	Latency float64 `json:"latency_ratio"`
	Spread  float64 `json:"p99_over_p50"`
	Lost    int     `json:"storm_lost"`
	RSSMiB  float64 `json:"storm_rss_mib"`
}

// What must be reached.
const (
	minAccept  = 0.4
	maxLatency = 10
	maxSpread  = 8
	maxLost    = 0
	maxRSS     = 128
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
	}{{"latency", b.latency}, {"load", b.underLoad}, {"accept", b.acceptance}, {"storm", b.storming}} {
		if only != "" && only != part.name {
			continue
		}
		if err := part.measure(ctx, &f); err != nil {
			return fmt.Errorf("%s: %w", part.name, err)
		}
	}
	return report(f, only)
}

func report(f figures, only string) error {
	return testbed.Report(only, []testbed.Row{
		testbed.Figure(
			"accept", "webhooks accepted and persisted / raw synchronous publishes, 16 at once", fmt.Sprintf("%.2f", f.Accept),
			fmt.Sprintf(">= %.1f", minAccept), f.Accept >= minAccept,
		),
		testbed.Figure(
			"latency", "webhook to chat / raw publish to handler, p50", fmt.Sprintf("%.1f", f.Latency),
			fmt.Sprintf("<= %d", maxLatency), f.Latency <= maxLatency,
		),
		testbed.Figure("load", "webhook to chat under load, p99 / p50", fmt.Sprintf("%.1f", f.Spread), fmt.Sprintf("<= %d", maxSpread), f.Spread <= maxSpread),
		testbed.Figure("storm", "alerts lost in the storm", fmt.Sprint(f.Lost), fmt.Sprintf("<= %d", maxLost), f.Lost <= maxLost),
		testbed.Figure("storm", "memory of the notifier in the storm", fmt.Sprintf("%.0f MiB", f.RSSMiB), fmt.Sprintf("<= %d MiB", maxRSS), f.RSSMiB <= maxRSS),
	}, f)
}
