package app

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"strings"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/spf13/cobra"

	"github.com/lifeboat-fleet/lifeboat/fleet/bus"
	"github.com/lifeboat-fleet/lifeboat/fleet/config"
	"github.com/lifeboat-fleet/lifeboat/fleet/console"
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
	console.AddConfig(cmd, &f.config)
	cmd.Flags().BoolVar(&f.wait, "wait", false, "wait for the outcome; exit code 1 if it failed")
	cmd.Flags().DurationVar(&f.timeout, "timeout", 0, "how long to wait for the outcome (default: until Ctrl-C)")
	cmd.ValidArgsFunction = console.CompleteTarget(&f.config)
}

// snapshotRunCommand publishes a snapshot's job, as anybody may with `nats pub`.
func snapshotRunCommand() *cobra.Command {
	var f runFlags
	cmd := &cobra.Command{
		Use: "run target", Short: "Ask a worker for a snapshot now",
		Example: "  lifeboat snapshot run etcd-prod\n  lifeboat snapshot run etcd-prod --wait --timeout 10m\n" +
			"  nats pub lifeboat.job.snapshot.etcd-prod ''    # the same",
		Args: cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			return f.run(cmd, config.WorkSnapshot, args[0], &lifeboatv1.Job{})
		},
	}
	f.add(cmd)
	return cmd
}

// run publishes a job, prints its id and, if asked to, waits for its outcome.
func (f *runFlags) run(cmd *cobra.Command, work config.Work, target string, job *lifeboatv1.Job) (err error) {
	cfg, err := config.Load(f.config)
	if err != nil {
		return &service.UsageError{Err: err}
	}
	t, err := console.FindTarget(cfg, f.config, target)
	if err != nil {
		return err
	}
	if job.GetIdentity() == config.IdentityEscrow && t.Drill.Escrow.IdentityFile == "" {
		return console.Usagef("--identity %s: %s has no drill.escrow.identity_file in %s", config.IdentityEscrow, target, f.config)
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
	job.RequestedBy = "cli " + console.Whoami()
	seq, err := b.Publish(ctx, bus.Outgoing{Subject: subject, Message: job})
	if errors.Is(err, bus.ErrBusy) {
		return fmt.Errorf("%w; see what it does with: nats sub 'lifeboat.event.%s.*.%s'", err, work, target)
	}
	if errors.Is(err, bus.ErrDenied) {
		return err
	}
	if err != nil {
		return fmt.Errorf("%w; does NATS answer at %s (nats.url in %s)?", err, cfg.NATS.URL, f.config)
	}
	w := &waiter{bus: b, work: work, target: target, progress: cmd.ErrOrStderr(), seq: seq}
	if err = w.identify(ctx, subject); err != nil {
		return err
	}
	if !f.wait {
		w.recall(ctx)
		// The id alone is on standard output, for a script.
		cmd.PrintErrf("published %s; --wait would tell how it ends%s\n", subject, w.later())
		_, err = fmt.Fprintln(cmd.OutOrStdout(), w.name())
		return err
	}
	if f.timeout > 0 {
		var cancel context.CancelFunc
		ctx, cancel = context.WithTimeoutCause(ctx, f.timeout, fmt.Errorf("no outcome within %s", f.timeout))
		defer cancel()
	}
	cmd.PrintErrf("waiting for %s %s; Ctrl-C ends the waiting, not the job\n", work, w.name())
	return w.wait(ctx, cmd.OutOrStdout())
}

// waiter follows the audit log until a job's outcome is in it.
type waiter struct {
	bus      *bus.Bus
	work     config.Work
	target   string
	progress io.Writer
	// seq is the job's place in its stream, and the end of its id.
	seq uint64
	// job is the id; empty when the job had ended before it could be asked for.
	job string
}

// identify finds the id of the job that was just published, of which the acknowledgement says the sequence only.
func (w *waiter) identify(ctx context.Context, subject string) error {
	have, stored, err := w.bus.Last(ctx, bus.StreamJobs, subject, &lifeboatv1.Job{})
	if err == nil && have == w.seq {
		w.job = (&bus.Message{Subject: subject, Seq: w.seq, Stored: stored}).ID()
	}
	return err
}

// recallTimeout is how long the audit log is asked for the id of a job that has ended already.
const recallTimeout = 2 * time.Second

// recall finds the id of a job that was quicker than identify.
func (w *waiter) recall(ctx context.Context) {
	if w.job != "" {
		return
	}
	ctx, cancel := context.WithTimeout(ctx, recallTimeout)
	defer cancel()
	if outcome, err := w.follow(ctx); err == nil && outcome != nil {
		w.job = outcome.GetJobId()
	}
}

// name is the job's id, or what is known of it.
func (w *waiter) name() string {
	if w.job == "" {
		return fmt.Sprint(w.seq)
	}
	return w.job
}

// is says whether an event's job is the one that is waited for.
func (w *waiter) is(id string) bool {
	if w.job == "" {
		return strings.HasSuffix(id, fmt.Sprintf("-%d", w.seq))
	}
	return id == w.job
}

// later is where a job's result can be looked at.
func (w *waiter) later() string {
	if w.work != config.WorkDrill {
		return ""
	}
	return fmt.Sprintf(", and afterwards: lifeboat drill show %s %s", w.target, w.name())
}

// wait prints the outcome. It is an error when the job failed.
func (w *waiter) wait(ctx context.Context, out io.Writer) error {
	outcome, err := w.follow(ctx)
	switch {
	case err != nil:
		return err
	case ctx.Err() != nil:
		return fmt.Errorf("stopped waiting (%w); %s %s goes on: see lifeboat status%s", context.Cause(ctx), w.work, w.name(), w.later())
	case outcome == nil:
		return fmt.Errorf("%s %s has ended, and its outcome was not seen: see lifeboat status, or nats sub 'lifeboat.event.%s.*.%s'",
			w.work, w.name(), w.work, w.target)
	}
	w.job = outcome.GetJobId()
	text := fmt.Sprintf("%s.%s: %s", outcome.GetNoun(), outcome.GetVerb(), console.Printable(outcome.GetMessage()))
	if w.work == config.WorkDrill && outcome.GetDrill() != nil {
		text += fmt.Sprintf("\nsee all of it with: lifeboat drill show %s %s", w.target, w.job)
	}
	if failed(outcome) {
		return errors.New(text)
	}
	_, err = fmt.Fprintln(out, text)
	return err
}

// follow gives the event that ends the job; nil when that was passed over, because later jobs have ended since.
func (w *waiter) follow(ctx context.Context) (outcome *lifeboatv1.Event, err error) {
	ctx, stop := context.WithCancel(ctx)
	defer stop()
	var newest *lifeboatv1.Event
	err = w.bus.Follow(ctx, bus.Follower{
		Stream: bus.StreamEvents,
		Filters: []string{
			bus.EventSubject(string(w.work), "*", w.target), bus.EventSubject("job", "*", w.target),
		},
		Message: func(_ context.Context, m *bus.Message) {
			e := &lifeboatv1.Event{}
			if outcome != nil || bus.Decode(m.Data, e) != nil || e.GetJobId() == "" || !w.sameWork(e) {
				return
			}
			switch {
			case isOutcome(e) && w.job == "":
				// Of several, which streams that were made anew number alike, the newest is meant: ids sort by time.
				if w.is(e.GetJobId()) && e.GetJobId() > newest.GetJobId() {
					newest = e
				}
			case isOutcome(e) && w.is(e.GetJobId()):
				outcome = e
				stop()
			case isOutcome(e) && e.GetJobId() > w.job: // jobs of a target run one by one
				stop()
			case w.is(e.GetJobId()) && e.GetMessage() != "":
				fmt.Fprintf(w.progress, "%s.%s: %s\n", e.GetNoun(), e.GetVerb(), console.FirstLine(e.GetMessage()))
			}
		},
		CaughtUp: func() {
			if w.job == "" { // it has ended already, so there is nothing to wait for
				outcome = newest
				stop()
			}
		},
	})
	return outcome, err
}

// sameWork is false for an event about a job of another kind, which ends when it likes.
func (w *waiter) sameWork(e *lifeboatv1.Event) bool {
	work, told := e.GetAttributes()["work"]
	return !told || e.GetNoun() != "job" || work == string(w.work)
}

// isOutcome says whether an event ends a job, as against one attempt or one step of it.
func isOutcome(e *lifeboatv1.Event) bool {
	switch e.GetVerb() {
	case "committed", "passed", "escrow-passed", "checked", "held":
		return true
	}
	return failed(e)
}

func failed(e *lifeboatv1.Event) bool {
	switch e.GetVerb() {
	case "failed", "escrow-failed", "rejected", "cancelled", "stopped":
		return true
	}
	return false
}
