package ops

import (
	"context"
	"errors"
	"fmt"
	"io"
	"regexp"
	"slices"
	"time"

	"github.com/spf13/cobra"

	"github.com/lifeboat-fleet/lifeboat/fleet/bus"
	"github.com/lifeboat-fleet/lifeboat/fleet/config"
	"github.com/lifeboat-fleet/lifeboat/fleet/console"
	lifeboatv1 "github.com/lifeboat-fleet/lifeboat/proto/lifeboat/v1"
)

// letGoTimeout is how long --wait waits for a worker, which notices within seconds if it still runs.
const letGoTimeout = 2 * time.Minute

func jobsCancelCommand() *cobra.Command {
	var f flags
	var c cancellation
	cmd := &cobra.Command{
		Use: "cancel job-id | work target", Short: "End a job that waits or runs, without a result",
		Long: "cancel removes the job, so that the next one can come at once, and marks it as cancelled, so that a worker that has begun\n" +
			"stops within seconds and can commit nothing any more. A job that is being committed is left alone.",
		Example: "  lifeboat jobs cancel 20261121T040000.123Z-42\n" +
			"  lifeboat jobs cancel snapshot etcd-prod --reason 'the disk of the member is failing'\n" +
			"  lifeboat jobs cancel drill etcd-prod --wait",
		Args: cobra.RangeArgs(1, 2),
		ValidArgsFunction: func(cmd *cobra.Command, args []string, prefix string) ([]string, cobra.ShellCompDirective) {
			return completeCancel(cmd.Context(), f.config, args)
		},
		RunE: func(cmd *cobra.Command, args []string) (err error) {
			fl, err := f.open(cmd.Context())
			if err != nil {
				return err
			}
			defer func() { err = errors.Join(err, fl.close()) }()
			c.fleet, c.by = fl, "cli "+console.Whoami()
			work, target, err := c.which(cmd.Context(), args)
			if err != nil {
				return err
			}
			done, err := c.run(cmd.Context(), work, target)
			if err != nil {
				return err
			}
			if err := printCancelled(cmd.OutOrStdout(), f.output, done); err != nil {
				return err
			}
			if !c.wait || !done.WasRunning {
				return nil
			}
			cmd.PrintErrf("waiting for %s to let go\n", done.Worker)
			return c.await(cmd.Context(), done)
		},
	}
	f.add(cmd)
	cmd.Flags().StringVar(&c.reason, "reason", "", "why, for the audit log")
	cmd.Flags().BoolVar(&c.wait, "wait", false, "wait until the worker that runs it has let go")
	cmd.Flags().DurationVar(&c.timeout, "timeout", letGoTimeout, "how long to wait for that")
	return cmd
}

// cancellation ends one job.
type cancellation struct {
	*fleet
	by, reason string
	wait       bool
	timeout    time.Duration
	// expect is the id of the job that is meant; empty: whichever is there.
	expect string
}

// cancelled is a job that was ended.
type cancelled struct {
	JobID      string      `json:"job_id"`
	Work       config.Work `json:"work"`
	Target     string      `json:"target"`
	WasRunning bool        `json:"was_running"`
	// Worker and Attempt are of the delivery that had begun, if any.
	Worker  string `json:"worker,omitempty"`
	Attempt int64  `json:"attempt,omitempty"`
	By      string `json:"by"`
	Reason  string `json:"reason,omitempty"`
}

// which finds the job that is meant by its id, or by its work and target.
func (c *cancellation) which(ctx context.Context, args []string) (work config.Work, target string, err error) {
	if len(args) > 1 {
		work, target = config.Work(args[0]), args[1]
		if !slices.Contains(config.Works(), work) {
			return "", "", console.Usagef("%q is not one of %v", args[0], config.Works())
		}
		if !config.ValidName(target) { // one that has left the configuration may still have a job
			return "", "", console.Usagef("%q cannot be a target's name", clean(target))
		}
		return work, target, nil
	}
	if !regexp.MustCompile(`^\d{8}T\d{6}\.\d{3}Z-\d+$`).MatchString(args[0]) {
		return "", "", console.Usagef("%q is no job's id, such as 20261121T040000.123Z-42; name a job by its id, or by work and target: "+
			"lifeboat jobs cancel snapshot etcd-prod", clean(args[0]))
	}
	c.expect = args[0]
	err = c.bus.Scan(ctx, bus.StreamJobs, "lifeboat.job.>", func(m *bus.Message) error {
		if m.ID() == c.expect {
			work, target, _ = bus.ParseJobSubject(m.Subject)
		}
		return nil
	})
	if err != nil {
		return "", "", fmt.Errorf("looking for job %s: %w", c.expect, explain(err))
	}
	if work == "" {
		return "", "", fmt.Errorf("no job %s waits or runs; see which do: lifeboat jobs list -c %s", c.expect, c.file)
	}
	return work, target, nil
}

func (c *cancellation) run(ctx context.Context, work config.Work, target string) (cancelled, error) {
	done := cancelled{Work: work, Target: target, By: c.by, Reason: c.reason}
	id, was, err := c.end(ctx, work, target)
	if err != nil {
		return done, err
	}
	done.JobID = id
	if was != nil {
		done.Worker, done.Attempt = was.GetWorker(), was.GetAttempt()
		done.WasRunning = was.GetPhase() == lifeboatv1.ClaimState_PHASE_RUNNING || was.GetPhase() == lifeboatv1.ClaimState_PHASE_COMMITTING
	}
	state := stateWaiting
	message := fmt.Sprintf("%s cancelled %s %s, which waited", c.by, work, id)
	if done.WasRunning {
		state, message = stateRunning, fmt.Sprintf("%s cancelled %s %s, which ran on %s", c.by, work, id, done.Worker)
	}
	attributes := map[string]string{"work": string(work), "was": state}
	if c.reason != "" {
		message += ": " + c.reason
		attributes["reason"] = c.reason
	}
	if done.Worker != "" {
		attributes["worker"], attributes["attempt"] = done.Worker, fmt.Sprint(done.Attempt)
	}
	err = c.bus.Emit(ctx, &lifeboatv1.Event{
		Id: "job.cancelled." + id, Noun: "job", Verb: "cancelled", Target: target, JobId: id, RequestedBy: c.by, Message: message,
		Attributes: attributes,
	})
	if err != nil {
		return done, fmt.Errorf("job %s is cancelled, and that could not be recorded: %w", id, err)
	}
	return done, nil
}

// end cancels the job that is meant.
func (c *cancellation) end(ctx context.Context, work config.Work, target string) (id string, was *lifeboatv1.ClaimState, err error) {
	id, was, err = c.bus.CancelJob(ctx, work, target, c.expect, c.by)
	return id, was, c.judge(ctx, work, target, id, was, err)
}

// judge says what became of a job that was to be cancelled. One that is gone by the time its message is to be removed was removed by its
// worker: because that found the claim cancelled, or because the job had ended just before, which the audit log tells.
func (c *cancellation) judge(
	ctx context.Context, work config.Work, target, id string, was *lifeboatv1.ClaimState, err error,
) error {
	gone := errors.Is(err, bus.ErrNoMessage)
	itself := func(id string) error {
		return fmt.Errorf("job %s ended by itself meanwhile; see how: lifeboat why %s --work %s --job %s -c %s", id, target, work, id, c.file)
	}
	switch {
	case gone && id == "" && c.expect != "":
		return itself(c.expect)
	case gone && id == "":
		return fmt.Errorf("no %s of %s waits or runs; see which jobs do: lifeboat jobs list -c %s", work, target, c.file)
	case errors.Is(err, bus.ErrCommitting):
		return fmt.Errorf("%w; it was left alone. See how it ends: lifeboat why %s --work %s -c %s", err, target, work, c.file)
	case err != nil && !gone:
		return explain(err)
	case gone && was.GetPhase() == lifeboatv1.ClaimState_PHASE_CANCELLED:
		return fmt.Errorf("job %s was cancelled already, by %s", id, clean(was.GetCancelledBy()))
	case was != nil && c.ended(ctx, id, work, target, gone):
		return itself(id)
	}
	return nil
}

// ended says whether the audit log tells that a job did what it was asked for; of one that is gone, also that it failed. A log that
// cannot be read tells nothing: the claim is cancelled, and that is what counts.
func (c *cancellation) ended(ctx context.Context, id string, work config.Work, target string, gone bool) bool {
	verbs := goodEnds()
	if gone {
		verbs = append(verbs, "failed", "escrow-failed")
	}
	for _, verb := range verbs {
		e := &lifeboatv1.Event{}
		_, _, err := c.bus.Last(ctx, bus.StreamEvents, bus.EventSubject(string(work), verb, target), e)
		if err == nil && e.GetJobId() == id && ends(e) {
			return true
		}
	}
	return false
}

// await returns when the worker has told that it has let go of the job.
func (c *cancellation) await(ctx context.Context, done cancelled) error {
	ctx, cancel := context.WithTimeoutCause(ctx, c.timeout, fmt.Errorf("it did not tell within %s", c.timeout))
	defer cancel()
	following, stop := context.WithCancel(ctx)
	defer stop()
	told := false
	err := c.bus.Follow(following, bus.Follower{
		Stream:  bus.StreamEvents,
		Filters: []string{bus.EventSubject("job", "*", done.Target), bus.EventSubject(string(done.Work), "*", done.Target)},
		Message: func(_ context.Context, m *bus.Message) {
			e := &lifeboatv1.Event{}
			if bus.Decode(m.Data, e) == nil && letGo(e, done) {
				told = true
				stop()
			}
		},
		CaughtUp: func() {},
	})
	if err == nil && !told {
		err = fmt.Errorf("job %s is cancelled and gone, but %s has not told that it stopped: %w; it can commit nothing of it", done.JobID,
			done.Worker, context.Cause(ctx))
	}
	return err
}

// letGo says whether an event is a worker's word that an attempt of a job has ended.
func letGo(e *lifeboatv1.Event, done cancelled) bool {
	if e.GetJobId() != done.JobID || e.GetActor() != done.Worker {
		return false
	}
	switch e.GetVerb() {
	case "stopped", "cancelled":
		return true
	case "interrupted", "handed-back":
		return e.GetAttributes()["attempt"] == fmt.Sprint(done.Attempt)
	}
	return ends(e)
}

func printCancelled(out io.Writer, output string, done cancelled) error {
	if output == console.OutputJSON {
		return console.WriteJSON(out, done)
	}
	how := "it was waiting, and no worker had begun"
	switch {
	case done.WasRunning:
		how = fmt.Sprintf("it was running on %s (attempt %d), which stops within seconds", clean(done.Worker), done.Attempt)
	case done.Worker != "":
		how = fmt.Sprintf("it was waiting for its next attempt, after attempt %d on %s", done.Attempt, clean(done.Worker))
	}
	_, err := fmt.Fprintf(out, "cancelled %s of %s, job %s: %s\n", done.Work, done.Target, done.JobID, how)
	return err
}

// completeCancel offers kinds of work and the ids of jobs, and targets behind a kind of work.
func completeCancel(ctx context.Context, file string, args []string) ([]string, cobra.ShellCompDirective) {
	const directive = cobra.ShellCompDirectiveNoFileComp | cobra.ShellCompDirectiveKeepOrder
	switch {
	case len(args) == 1 && slices.Contains(config.Works(), config.Work(args[0])):
		return console.TargetNames(file, nil), directive
	case len(args) > 0:
		return nil, directive
	}
	var words []string
	for _, w := range config.Works() {
		words = append(words, string(w))
	}
	cfg, err := config.Load(file)
	if err != nil {
		return words, directive
	}
	ctx, cancel := context.WithTimeout(ctx, completionTimeout)
	defer cancel()
	fl, err := connect(ctx, cfg, file, completionTimeout)
	if err != nil {
		return words, directive
	}
	defer func() { _ = fl.close() }() // a shell has no place for errors
	// What was seen before an error is offered all the same.
	_ = fl.bus.Scan(ctx, bus.StreamJobs, "lifeboat.job.>", func(m *bus.Message) error {
		words = append(words, m.ID())
		return nil
	})
	return words, directive
}
