package ops

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"slices"
	"time"

	"github.com/spf13/cobra"
	"google.golang.org/protobuf/types/known/timestamppb"

	"github.com/lifeboat-fleet/lifeboat/fleet/bus"
	"github.com/lifeboat-fleet/lifeboat/fleet/config"
	"github.com/lifeboat-fleet/lifeboat/fleet/console"
	"github.com/lifeboat-fleet/lifeboat/fleet/service"
	lifeboatv1 "github.com/lifeboat-fleet/lifeboat/proto/lifeboat/v1"
)

// JobsCommand is `lifeboat jobs`.
func JobsCommand() *cobra.Command {
	return service.Group(&cobra.Command{
		Use: "jobs", Short: "List and cancel the jobs that wait or run",
		Long: "A job waits in NATS until a worker takes it, and stays there while it runs. What has ended is told by lifeboat why TARGET.",
	}, jobsListCommand(), jobsCancelCommand())
}

func jobsListCommand() *cobra.Command {
	var f flags
	cmd := &cobra.Command{
		Use: "list [target...]", Short: "List the jobs that wait or run, oldest first",
		Example:           "  lifeboat jobs list\n  lifeboat jobs list etcd-prod consul-kv\n  lifeboat jobs list --output json",
		ValidArgsFunction: console.CompleteTargets(&f.config),
		RunE: func(cmd *cobra.Command, args []string) (err error) {
			fl, err := f.open(cmd.Context())
			if err != nil {
				return err
			}
			defer func() { err = errors.Join(err, fl.close()) }()
			for _, name := range args {
				if _, err = console.FindTarget(fl.config, f.config, name); err != nil {
					return err
				}
			}
			all, err := fl.jobs(cmd.Context(), args)
			if err != nil {
				return err
			}
			return printJobs(cmd.OutOrStdout(), f.output, all, time.Now())
		},
	}
	f.add(cmd)
	return cmd
}

// States of a job that has not ended.
const (
	stateWaiting    = "waiting"
	stateNoWorker   = "no worker"
	stateRunning    = "running"
	stateCommitting = "committing"
	stateRetrying   = "retrying"
	stateHandedBack = "handed back"
	stateCancelled  = "cancelled"
)

// openJob is a job that waits or runs.
type openJob struct {
	ID     string      `json:"id"`
	Work   config.Work `json:"work"`
	Target string      `json:"target"`
	Zone   string      `json:"zone,omitempty"`
	// State is one of the words above, and Detail a sentence about it.
	State       string     `json:"state"`
	Detail      string     `json:"detail"`
	Worker      string     `json:"worker,omitempty"`
	Attempt     int64      `json:"attempt,omitempty"`
	Since       *time.Time `json:"since,omitempty"`
	Subject     string     `json:"subject"`
	Sequence    uint64     `json:"sequence"`
	StoredAt    time.Time  `json:"stored_at"`
	Tick        *time.Time `json:"tick,omitempty"`
	RequestedBy string     `json:"requested_by"`
}

// newJob is a job as its message tells it.
func newJob(m *bus.Message) openJob {
	work, target, _ := bus.ParseJobSubject(m.Subject)
	j := openJob{
		ID: m.ID(), Work: work, Target: target, Subject: m.Subject, Sequence: m.Seq, StoredAt: m.Stored, RequestedBy: "by hand", State: stateWaiting,
	}
	payload := &lifeboatv1.Job{}
	if err := bus.Decode(m.Data, payload); err != nil {
		j.RequestedBy = "unknown: the payload is no job"
		return j
	}
	j.RequestedBy = cmp.Or(clean(payload.GetRequestedBy()), j.RequestedBy)
	j.Tick = at(payload.GetTick())
	return j
}

func at(t *timestamppb.Timestamp) *time.Time {
	if t == nil {
		return nil
	}
	return pointer(t.AsTime())
}

// fewJobs is up to how many claims are read one by one rather than all that there are.
const fewJobs = 200

// jobs are those that wait or run for some targets; for all of them when none is named.
func (f *fleet) jobs(ctx context.Context, targets []string) ([]openJob, error) {
	filters := []string{"lifeboat.job.>"}
	if len(targets) > 0 {
		filters = nil
		for _, t := range slices.Compact(slices.Sorted(slices.Values(targets))) {
			filters = append(filters, bus.JobSubject("*", t))
		}
	}
	var all []openJob
	for _, filter := range filters {
		err := f.bus.Scan(ctx, bus.StreamJobs, filter, func(m *bus.Message) error {
			all = append(all, newJob(m))
			return nil
		})
		if err != nil {
			return nil, fmt.Errorf("listing the jobs: %w", explain(err))
		}
	}
	if len(all) == 0 {
		return all, nil
	}
	claims, err := f.claims(ctx, all)
	if err != nil {
		return nil, err
	}
	workers := f.crew(ctx)
	for i := range all {
		j := &all[i]
		t, known := f.config.Target(j.Target)
		j.Zone = t.Zone
		j.describe(claims[bus.ClaimSubject(j.Target, j.Work)], workers)
		if !known && j.State == stateWaiting {
			j.Detail += "; no target has this name in " + f.file
		}
	}
	slices.SortFunc(all, func(a, b openJob) int { return cmp.Compare(a.Sequence, b.Sequence) })
	return all, nil
}

// claims are the claims of jobs, by subject.
func (f *fleet) claims(ctx context.Context, jobs []openJob) (map[string]*lifeboatv1.ClaimState, error) {
	claims := map[string]*lifeboatv1.ClaimState{}
	if len(jobs) > fewJobs {
		err := f.bus.Scan(ctx, bus.StreamJobs, "lifeboat.state.claim.>", func(m *bus.Message) error {
			c := &lifeboatv1.ClaimState{}
			if err := bus.Decode(m.Data, c); err == nil { // one that nobody understands says nothing
				claims[m.Subject] = c
			}
			return nil
		})
		if err != nil {
			return nil, fmt.Errorf("listing the claims: %w", err)
		}
		return claims, nil
	}
	for _, j := range jobs {
		c, subject := &lifeboatv1.ClaimState{}, bus.ClaimSubject(j.Target, j.Work)
		if _, _, err := f.bus.Last(ctx, bus.StreamJobs, subject, c); err != nil {
			return nil, fmt.Errorf("reading the claim of %s: %w", j.Target, err)
		}
		claims[subject] = c
	}
	return claims, nil
}

// describe says how far a job is. The claim may be of an earlier job, and is then no claim of this one.
func (j *openJob) describe(c *lifeboatv1.ClaimState, workers crew) {
	phase := c.GetPhase()
	if c.GetJobId() != j.ID {
		phase = lifeboatv1.ClaimState_PHASE_UNSPECIFIED
	} else {
		j.Worker, j.Attempt, j.Since = clean(c.GetWorker()), c.GetAttempt(), at(c.GetStartedAt())
	}
	lacking := workers.lacking(j.Work, j.Zone)
	gone := ""
	if !workers.answers(c.GetWorker()) {
		gone = ", which does not answer; the job goes to another one"
	}
	switch phase {
	case lifeboatv1.ClaimState_PHASE_RUNNING:
		j.State, j.Detail = stateRunning, fmt.Sprintf("running on %s%s, attempt %d%s", j.Worker, gone, j.Attempt, j.since())
	case lifeboatv1.ClaimState_PHASE_COMMITTING:
		j.State, j.Detail = stateCommitting, fmt.Sprintf("committing on %s%s, attempt %d%s", j.Worker, gone, j.Attempt, j.since())
	case lifeboatv1.ClaimState_PHASE_RELEASED:
		j.State, j.Detail = stateRetrying, fmt.Sprintf("retrying after attempt %d on %s", j.Attempt, j.Worker)
	case lifeboatv1.ClaimState_PHASE_HANDED_BACK:
		j.State, j.Detail = stateHandedBack, fmt.Sprintf("handed back by %s, waiting", j.Worker)
	case lifeboatv1.ClaimState_PHASE_CANCELLED:
		j.State, j.Detail = stateCancelled, fmt.Sprintf("cancelled by %s, ending", clean(c.GetCancelledBy()))
	case lifeboatv1.ClaimState_PHASE_UNSPECIFIED:
		fallthrough
	default:
		j.State, j.Detail = stateWaiting, "waiting for a free worker"
	}
	if lacking == "" || !slices.Contains([]string{stateWaiting, stateRetrying, stateHandedBack}, j.State) {
		return
	}
	if j.State == stateWaiting {
		j.Detail = "waiting for a worker"
		if j.Zone != "" {
			j.Detail += " of zone " + j.Zone
		}
	}
	j.State, j.Detail = stateNoWorker, j.Detail+": "+lacking
}

func (j *openJob) since() string {
	if j.Since == nil {
		return ""
	}
	return ", since " + console.Age(*j.Since)
}

func printJobs(out io.Writer, output string, all []openJob, now time.Time) error {
	if output == console.OutputJSON {
		if all == nil {
			all = []openJob{}
		}
		return console.WriteJSON(out, all)
	}
	t := console.NewTable(out, "ID", "WORK", "TARGET", "STATE", "AGE", "TICK", "REQUESTED BY")
	for _, j := range all {
		tick := "-"
		if j.Tick != nil {
			tick = j.Tick.UTC().Format(time.RFC3339)
		}
		state := j.Detail
		if j.State == stateNoWorker {
			state = console.Red(out, state)
		}
		t.Row(j.ID, clean(string(j.Work)), clean(j.Target), state, console.Duration(now.Sub(j.StoredAt)), tick, j.RequestedBy)
	}
	return t.Flush("no job waits or runs; ask for one with: lifeboat snapshot run TARGET; what has ended tells: lifeboat why TARGET")
}
