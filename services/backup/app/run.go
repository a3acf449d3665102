package app

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/spf13/cobra"

	"github.com/lifeboat-fleet/lifeboat/fleet/bus"
	"github.com/lifeboat-fleet/lifeboat/fleet/config"
	"github.com/lifeboat-fleet/lifeboat/fleet/service"
	lifeboatv1 "github.com/lifeboat-fleet/lifeboat/proto/lifeboat/v1"
)

// runFlags are those of a command that publishes a job.
type runFlags struct {
	config  string
	wait    bool
	timeout time.Duration
}

func (f *runFlags) add(cmd *cobra.Command) {
	addConfig(cmd, &f.config)
	cmd.Flags().BoolVar(&f.wait, "wait", false, "wait for the outcome; exit code 1 if it failed")
	cmd.Flags().DurationVar(&f.timeout, "timeout", 0, "how long to wait for the outcome (default: until Ctrl-C)")
	cmd.ValidArgsFunction = completeTarget(&f.config)
}

// runCommand is `lifeboat snapshot run` and `lifeboat drill run`: they publish a job, as anybody may with `nats pub`.
func runCommand(work config.Work, short string) *cobra.Command {
	var f runFlags
	cmd := &cobra.Command{
		Use: "run target", Short: short,
		Example: fmt.Sprintf("  lifeboat %[1]s run etcd-prod\n  lifeboat %[1]s run etcd-prod --wait --timeout 10m\n"+
			"  nats pub lifeboat.job.%[1]s.etcd-prod ''    # the same", work),
		Args: cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error { return f.run(cmd, work, args[0]) },
	}
	f.add(cmd)
	return cmd
}

// run publishes a job and, if asked to, waits for its outcome.
func (f *runFlags) run(cmd *cobra.Command, work config.Work, target string) (err error) {
	cfg, err := config.Load(f.config)
	if err != nil {
		return &service.UsageError{Err: err}
	}
	if _, err = findTarget(cfg, f.config, target); err != nil {
		return err
	}
	b, err := bus.Connect(bus.Options{
		Config: cfg.NATS, Actor: service.Instance("lifeboat-cli"), Logger: slog.New(slog.DiscardHandler),
		Registerer: prometheus.NewRegistry(),
	})
	if err != nil {
		return &service.UsageError{Err: err}
	}
	defer func() { err = errors.Join(err, b.Close()) }()
	ctx := cmd.Context()
	subject := bus.JobSubject(work, target)
	seq, err := b.Publish(ctx, bus.Outgoing{Subject: subject, Message: &lifeboatv1.Job{RequestedBy: "cli " + whoami()}})
	if errors.Is(err, bus.ErrBusy) {
		return fmt.Errorf("%w; see what it does with: nats sub 'lifeboat.event.%s.*.%s'", err, work, target)
	}
	if err != nil {
		return fmt.Errorf("%w; does NATS answer at %s (nats.url in %s)?", err, cfg.NATS.URL, f.config)
	}
	if !f.wait {
		cmd.Printf("published %s; --wait would tell how it ends\n", subject)
		return nil
	}
	w := &waiter{bus: b, work: work, target: target, progress: cmd.ErrOrStderr()}
	if f.timeout > 0 {
		var cancel context.CancelFunc
		ctx, cancel = context.WithTimeoutCause(ctx, f.timeout, fmt.Errorf("no outcome within %s", f.timeout))
		defer cancel()
	}
	if err := w.identify(ctx, subject, seq); err != nil {
		return err
	}
	return w.wait(ctx, cmd.OutOrStdout())
}

// waiter follows the audit log until a job's outcome is in it.
type waiter struct {
	bus      *bus.Bus
	work     config.Work
	target   string
	progress io.Writer
	// job is the id; empty when the job had ended before it could be asked for.
	job string
}

// identify finds the id of the job that was just published. A job that is gone already has ended, and its outcome is the
// newest there is.
func (w *waiter) identify(ctx context.Context, subject string, seq uint64) error {
	have, stored, err := w.bus.Last(ctx, bus.StreamJobs, subject, &lifeboatv1.Job{})
	if err != nil {
		return err
	}
	if have == seq {
		w.job = (&bus.Message{Subject: subject, Seq: seq, Stored: stored}).ID()
		fmt.Fprintf(w.progress, "waiting for job %s; Ctrl-C ends the waiting, not the job\n", w.job)
	}
	return nil
}

// wait prints the outcome. It is an error when the job failed.
func (w *waiter) wait(ctx context.Context, out io.Writer) error {
	following, stop := context.WithCancel(ctx)
	defer stop()
	var outcome, newest *lifeboatv1.Event
	err := w.bus.Follow(following, bus.Follower{
		Stream: bus.StreamEvents,
		Filters: []string{
			bus.EventSubject(string(w.work), "*", w.target), bus.EventSubject("job", "rejected", w.target),
		},
		Message: func(_ context.Context, m *bus.Message) {
			e := &lifeboatv1.Event{}
			if outcome != nil || bus.Decode(m.Data, e) != nil || e.GetJobId() == "" {
				return
			}
			switch {
			case isOutcome(e) && w.job == "":
				if newest == nil || e.GetJobId() > newest.GetJobId() { // ids sort by time
					newest = e
				}
			case isOutcome(e) && e.GetJobId() >= w.job:
				outcome = e
				stop()
			case e.GetJobId() == w.job && e.GetMessage() != "":
				fmt.Fprintf(w.progress, "%s.%s: %s\n", e.GetNoun(), e.GetVerb(), firstLine(e.GetMessage()))
			}
		},
		CaughtUp: func() {
			if w.job == "" {
				outcome = newest
				stop()
			}
		},
	})
	switch {
	case err != nil:
		return err
	case ctx.Err() != nil:
		return fmt.Errorf("stopped waiting (%w); the job goes on: see lifeboat status", context.Cause(ctx))
	case outcome == nil || w.job != "" && outcome.GetJobId() != w.job:
		return fmt.Errorf("the job has ended, and its outcome was not seen: see lifeboat status, or nats sub 'lifeboat.event.%s.*.%s'",
			w.work, w.target)
	}
	text := printable(outcome.GetMessage())
	if failed(outcome) {
		return fmt.Errorf("%s.%s: %s", outcome.GetNoun(), outcome.GetVerb(), text)
	}
	_, err = fmt.Fprintf(out, "%s.%s: %s\n", outcome.GetNoun(), outcome.GetVerb(), text)
	return err
}

// isOutcome says whether an event ends a job, as against one attempt or one step of it.
func isOutcome(e *lifeboatv1.Event) bool {
	switch e.GetVerb() {
	case "committed", "passed", "checked", "held", "failed", "rejected":
		return true
	}
	return false
}

func failed(e *lifeboatv1.Event) bool { return e.GetVerb() == "failed" || e.GetVerb() == "rejected" }
