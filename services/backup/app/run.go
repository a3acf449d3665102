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
	var all bool
	cmd := &cobra.Command{
		Use: "run {target | --all}", Short: "Ask a worker for a snapshot now",
		Long: "run publishes the job of a snapshot, and prints its id. With --all it does so for every target of the configuration, and prints a\n" +
			"line for each: one whose snapshot waits or runs already is said to, and is no failure.",
		Example: "  lifeboat snapshot run etcd-prod\n  lifeboat snapshot run etcd-prod --wait --timeout 10m\n" +
			"  lifeboat snapshot run --all --wait             # exit code 1 when one of them failed\n" +
			"  nats pub lifeboat.job.snapshot.etcd-prod ''    # one, without this command",
		Args: func(cmd *cobra.Command, args []string) error {
			if all {
				return cobra.NoArgs(cmd, args)
			}
			if len(args) == 0 {
				return errors.New("name a target, or --all")
			}
			return cobra.ExactArgs(1)(cmd, args)
		},
		RunE: func(cmd *cobra.Command, args []string) error {
			if all {
				return f.runAll(cmd)
			}
			return f.run(cmd, config.WorkSnapshot, args[0], &lifeboatv1.Job{})
		},
	}
	f.add(cmd)
	cmd.Flags().BoolVar(&all, "all", false, "every target of the configuration")
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
	p, err := f.publisher(cmd, cfg)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, p.bus.Close()) }()
	ctx := cmd.Context()
	w, err := p.publish(ctx, work, target, job)
	if errors.Is(err, bus.ErrBusy) {
		return fmt.Errorf("%w; see what it does with: nats sub 'lifeboat.event.%s.*.%s'", err, work, target)
	}
	if err != nil {
		return err
	}
	if !f.wait {
		w.recall(ctx)
		// The id alone is on standard output, for a script.
		cmd.PrintErrf("published %s; --wait would tell how it ends%s\n", bus.JobSubject(work, target), w.later())
		_, err = fmt.Fprintln(cmd.OutOrStdout(), w.name())
		return err
	}
	ctx, cancel := f.patience(ctx)
	defer cancel()
	cmd.PrintErrf("waiting for %s %s; Ctrl-C ends the waiting, not the job\n", work, w.name())
	return w.wait(ctx, cmd.OutOrStdout())
}

// patience is a context for the waiting.
func (f *runFlags) patience(ctx context.Context) (context.Context, context.CancelFunc) {
	if f.timeout > 0 {
		return context.WithTimeoutCause(ctx, f.timeout, fmt.Errorf("no outcome within %s", f.timeout))
	}
	return context.WithCancel(ctx)
}

// publisher asks for jobs in a person's name.
type publisher struct {
	bus      *bus.Bus
	by       string
	progress io.Writer
	// where says which address was tried.
	where string
}

func (f *runFlags) publisher(cmd *cobra.Command, cfg *config.Config) (*publisher, error) {
	b, err := bus.Connect(bus.Options{
		Config: cfg.NATS, Actor: service.Instance("lifeboat-cli"), Logger: slog.New(slog.DiscardHandler),
		Registerer: prometheus.NewRegistry(),
	})
	if err != nil {
		return nil, &service.UsageError{Err: err}
	}
	where := fmt.Sprintf("%s (nats.url in %s)", cfg.NATS.URL, f.config)
	return &publisher{bus: b, by: "cli " + console.Whoami(), progress: cmd.ErrOrStderr(), where: where}, nil
}

// For so long after a server of the cluster was lost somebody may have to wait for the next leader of the stream.
const (
	leaderPatience = 10 * time.Second
	leaderEvery    = 500 * time.Millisecond
)

// publish asks for a job, which can be waited for. ErrBusy: one waits or runs already.
func (p *publisher) publish(ctx context.Context, work config.Work, target string, job *lifeboatv1.Job) (*waiter, error) {
	subject := bus.JobSubject(work, target)
	job.RequestedBy = p.by
	seq, err := p.bus.Publish(ctx, bus.Outgoing{Subject: subject, Message: job})
	if bus.Leaderless(err) {
		fmt.Fprintln(p.progress, "NATS answers, and nobody has the stream: waiting for its next leader")
	}
	for end := time.Now().Add(leaderPatience); bus.Leaderless(err) && time.Now().Before(end); {
		select {
		case <-ctx.Done():
			return nil, fmt.Errorf("%w (%w)", err, context.Cause(ctx))
		case <-time.After(leaderEvery):
			seq, err = p.bus.Publish(ctx, bus.Outgoing{Subject: subject, Message: job})
		}
	}
	if errors.Is(err, bus.ErrBusy) || errors.Is(err, bus.ErrDenied) {
		return nil, err
	}
	if err != nil {
		return nil, fmt.Errorf("%w; does NATS answer at %s?", err, p.where)
	}
	w := &waiter{bus: p.bus, work: work, target: target, progress: p.progress, seq: seq}
	return w, w.identify(ctx, subject)
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

// In a cluster any replica answers, also one that lags behind and has not got the job yet, which looks as if it had ended.
const (
	identifyTries = 5
	identifyEvery = 50 * time.Millisecond
)

// identify finds the id of the job that was just published, of which the acknowledgement says the sequence only.
func (w *waiter) identify(ctx context.Context, subject string) error {
	again := time.NewTicker(identifyEvery)
	defer again.Stop()
	for range identifyTries {
		have, stored, err := w.bus.Last(ctx, bus.StreamJobs, subject, &lifeboatv1.Job{})
		if err != nil {
			return err
		}
		if have == w.seq {
			w.job = (&bus.Message{Subject: subject, Seq: w.seq, Stored: stored}).ID()
		}
		if have >= w.seq {
			return nil
		}
		select {
		case <-ctx.Done():
			return nil
		case <-again.C:
		}
	}
	return nil
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
	text, err := w.outcome(ctx)
	if err != nil {
		return err
	}
	_, err = fmt.Fprintln(out, text)
	return err
}

// outcome says how the job ended. It is an error when the job failed.
func (w *waiter) outcome(ctx context.Context) (string, error) {
	outcome, err := w.follow(ctx)
	switch {
	case err != nil:
		return "", err
	case ctx.Err() != nil:
		return "", fmt.Errorf("stopped waiting (%w); %s %s goes on: see lifeboat status%s", context.Cause(ctx), w.work, w.name(), w.later())
	case outcome == nil:
		return "", fmt.Errorf("%s %s has ended, and its outcome was not seen: see lifeboat status, or nats sub 'lifeboat.event.%s.*.%s'",
			w.work, w.name(), w.work, w.target)
	}
	w.job = outcome.GetJobId()
	text := fmt.Sprintf("%s.%s: %s", outcome.GetNoun(), outcome.GetVerb(), console.Printable(outcome.GetMessage()))
	if w.work == config.WorkDrill && outcome.GetDrill() != nil {
		text += fmt.Sprintf("\nsee all of it with: lifeboat drill show %s %s", w.target, w.job)
	}
	if failed(outcome) {
		return "", errors.New(text)
	}
	return text, nil
}

// follow gives the event that ends the job; nil when that was passed over, because later jobs have ended since.
func (w *waiter) follow(ctx context.Context) (outcome *lifeboatv1.Event, err error) {
	ctx, stop := context.WithCancel(ctx)
	defer stop()
	var newest *lifeboatv1.Event
	caughtUp := false
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
				if caughtUp && newest != nil {
					outcome = newest
					stop()
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
			caughtUp = true
			// It has ended already, so there is nothing to wait for; or no replica that was asked had it yet, and it will end.
			if w.job == "" && newest != nil {
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
