package ops

import (
	"bytes"
	"fmt"
	"path/filepath"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"google.golang.org/protobuf/types/known/timestamppb"

	"github.com/lifeboat-fleet/lifeboat/fleet/bus"
	"github.com/lifeboat-fleet/lifeboat/fleet/config"
	lifeboatv1 "github.com/lifeboat-fleet/lifeboat/proto/lifeboat/v1"
	backup "github.com/lifeboat-fleet/lifeboat/services/backup/app"
)

func TestJobsListTellsWhatNobodyTakes(t *testing.T) {
	l := newLab(t)
	assert.Contains(t, l.ok("jobs", "list"), "no job waits or runs; ask for one with: lifeboat snapshot run TARGET")
	l.configure("    zone: beijing\n")
	tick := timestamppb.New(time.Date(2026, 11, 21, 4, 0, 0, 0, time.UTC))
	first := l.publish(config.WorkSnapshot, etcdTarget, &lifeboatv1.Job{Tick: tick, RequestedBy: "scheduler"})
	second := l.publish(config.WorkDrill, hungTarget, &lifeboatv1.Job{RequestedBy: "a\x1b[2Jb"})

	var all []openJob
	l.json(&all, "jobs", "list")
	require.Len(t, all, 2)
	assert.Equal(t, []string{first, second}, []string{all[0].ID, all[1].ID}, "oldest first")
	assert.Equal(t, stateNoWorker, all[0].State)
	assert.Equal(t, "waiting for a worker of zone beijing: no worker answers", all[0].Detail)
	assert.Equal(t, tick.AsTime(), *all[0].Tick)
	assert.Equal(t, "waiting for a worker: no worker answers", all[1].Detail)
	assert.Equal(t, "a[2Jb", all[1].RequestedBy, "nobody moves the cursor of who looks")

	out := l.ok("jobs", "list", etcdTarget)
	assert.Regexp(t, `ID +WORK +TARGET +STATE +AGE +TICK +REQUESTED BY`, out)
	assert.Contains(t, out, "2026-11-21T04:00:00Z")
	assert.NotContains(t, out, second)
	_, errs, code := l.lifeboat("jobs", "list", "nowhere")
	assert.Equal(t, 2, code)
	assert.Contains(t, errs, "etcd-prod")
}

// The claim of an earlier job says nothing of this one, and each phase has its words.
func TestAJobIsDescribedByItsOwnClaim(t *testing.T) {
	now := timestamppb.New(time.Now().Add(-time.Minute))
	claim := func(phase lifeboatv1.ClaimState_Phase) *lifeboatv1.ClaimState {
		return &lifeboatv1.ClaimState{JobId: "j", Worker: "w1", Attempt: 2, Phase: phase, StartedAt: now, CancelledBy: "ops@desk"}
	}
	workers := crew{workers: []bus.WorkerInfo{{Actor: "w1", Roles: []string{"snapshot"}}}}
	for name, c := range map[string]struct {
		claim  *lifeboatv1.ClaimState
		work   config.Work
		crew   crew
		zone   string
		state  string
		detail string
	}{
		"none":        {nil, config.WorkSnapshot, workers, "", stateWaiting, "waiting for a free worker"},
		"another's":   {&lifeboatv1.ClaimState{JobId: "i", Worker: "w1", Phase: lifeboatv1.ClaimState_PHASE_RUNNING}, config.WorkSnapshot, workers, "", stateWaiting, "waiting for a free worker"},
		"running":     {claim(lifeboatv1.ClaimState_PHASE_RUNNING), config.WorkSnapshot, workers, "", stateRunning, "running on w1, attempt 2, since 1m"},
		"gone":        {claim(lifeboatv1.ClaimState_PHASE_RUNNING), config.WorkSnapshot, crew{workers: []bus.WorkerInfo{{Actor: "w2", Roles: []string{"snapshot"}}}}, "", stateRunning, "running on w1, which does not answer; the job goes to another one, attempt 2, since 1m"},
		"committing":  {claim(lifeboatv1.ClaimState_PHASE_COMMITTING), config.WorkSnapshot, workers, "", stateCommitting, "committing on w1, attempt 2, since 1m"},
		"retrying":    {claim(lifeboatv1.ClaimState_PHASE_RELEASED), config.WorkSnapshot, workers, "", stateRetrying, "retrying after attempt 2 on w1"},
		"handed back": {claim(lifeboatv1.ClaimState_PHASE_HANDED_BACK), config.WorkSnapshot, workers, "", stateHandedBack, "handed back by w1, waiting"},
		"cancelled":   {claim(lifeboatv1.ClaimState_PHASE_CANCELLED), config.WorkSnapshot, workers, "", stateCancelled, "cancelled by ops@desk, ending"},
		"no role":     {nil, config.WorkDrill, workers, "", stateNoWorker, "waiting for a worker: no worker takes drills"},
		"no zone":     {nil, config.WorkSnapshot, workers, "seoul", stateNoWorker, "waiting for a worker of zone seoul: zone seoul has no worker"},
		"not known":   {nil, config.WorkSnapshot, crew{unknown: assert.AnError}, "seoul", stateWaiting, "waiting for a free worker"},
	} {
		t.Run(name, func(t *testing.T) {
			j := openJob{ID: "j", Work: c.work, Zone: c.zone}
			j.describe(c.claim, c.crew)
			assert.Equal(t, c.state, j.State)
			assert.Equal(t, c.detail, j.Detail)
		})
	}
}

func TestCancelOfAWaitingJobMakesRoom(t *testing.T) {
	l := newLab(t)
	id := l.publish(config.WorkSnapshot, etcdTarget, &lifeboatv1.Job{})
	out := l.ok("jobs", "cancel", id, "--reason", "no longer wanted")
	assert.Equal(t, "cancelled snapshot of etcd-prod, job "+id+": it was waiting, and no worker had begun\n", out)
	e := l.event("job", "cancelled", etcdTarget)
	assert.Equal(t, id, e.GetJobId())
	assert.Contains(t, e.GetRequestedBy(), "cli ")
	assert.Contains(t, e.GetMessage(), "no longer wanted")
	assert.Equal(t, "waiting", e.GetAttributes()["was"])

	_, errs, code := l.lifeboat("jobs", "cancel", id)
	assert.Equal(t, 1, code)
	assert.Contains(t, errs, "no job "+id+" waits or runs; see which do: lifeboat jobs list")
	l.publish(config.WorkSnapshot, etcdTarget, &lifeboatv1.Job{}) // there is room

	var done cancelled
	l.json(&done, "jobs", "cancel", "snapshot", etcdTarget)
	assert.False(t, done.WasRunning)
	_, errs, code = l.lifeboat("jobs", "cancel", "snapshot", etcdTarget)
	assert.Equal(t, 1, code)
	assert.Contains(t, errs, "no snapshot of etcd-prod waits or runs")
	for _, args := range [][]string{{"snap", etcdTarget}, {"snapshot", "No Name"}, {"42"}} {
		_, _, code = l.lifeboat(append([]string{"jobs", "cancel"}, args...)...)
		assert.Equal(t, 2, code, args)
	}
	p := l.why(etcdTarget)
	assert.Equal(t, stateCancelled, p.Job.Outcome)
	assert.Contains(t, texts(p), "note: snapshot "+done.JobID+" was cancelled")
}

func TestCancelOfARunningJobStopsItsWorker(t *testing.T) {
	l := newLab(t).withServers()
	l.worker(backup.Options{Roles: []string{"snapshot"}, Concurrency: 1})
	id := l.publish(config.WorkSnapshot, hungTarget, &lifeboatv1.Job{RequestedBy: "ops"})
	l.event("snapshot", "started", hungTarget)

	var all []openJob
	l.json(&all, "jobs", "list", hungTarget)
	require.Len(t, all, 1)
	assert.Equal(t, stateRunning, all[0].State)
	assert.Regexp(t, `^running on lifeboat-backup\S*@\S+, attempt 1, since \d+s$`, all[0].Detail)
	p := l.why(hungTarget)
	require.NotNil(t, p.Job)
	assert.Equal(t, stateRunning, p.Job.Outcome)
	require.Len(t, p.Job.Attempts, 1)

	out := l.ok("jobs", "cancel", "snapshot", hungTarget, "--wait")
	assert.Contains(t, out, "it was running on lifeboat-backup")
	assert.Contains(t, out, "which stops within seconds")
	stopped := l.event("job", "stopped", hungTarget)
	assert.Equal(t, id, stopped.GetJobId())
	assert.Contains(t, l.ok("jobs", "list"), "no job waits or runs")

	p = l.why(hungTarget)
	require.NotNil(t, p.Job)
	assert.Equal(t, stateCancelled, p.Job.Outcome)
	require.Len(t, p.Job.Attempts, 1)
	assert.Equal(t, "stopped", p.Job.Attempts[0].How)
	assert.Contains(t, texts(p), "was cancelled: cli ")
	assert.Empty(t, deadIDs(l), "what is cancelled is no dead letter")
}

func TestCancelLeavesAJobThatIsBeingCommitted(t *testing.T) {
	l := newLab(t)
	id := l.publish(config.WorkSnapshot, etcdTarget, &lifeboatv1.Job{})
	_, err := l.bus.PutState(t.Context(), bus.State{Outgoing: bus.Outgoing{
		Subject: bus.ClaimSubject(etcdTarget, config.WorkSnapshot),
		Message: &lifeboatv1.ClaimState{JobId: id, Attempt: 1, Worker: "w1", Phase: lifeboatv1.ClaimState_PHASE_COMMITTING},
	}})
	require.NoError(t, err)
	_, errs, code := l.lifeboat("jobs", "cancel", id)
	assert.Equal(t, 1, code)
	assert.Contains(t, errs, "being committed right now")
	assert.Contains(t, errs, "it was left alone. See how it ends: lifeboat why etcd-prod")
	var all []openJob
	l.json(&all, "jobs", "list")
	require.Len(t, all, 1)
	assert.Equal(t, stateCommitting, all[0].State)
}

func deadIDs(l *lab) []string {
	var all []struct{ ID string }
	l.json(&all, "dead", "list")
	ids := []string{}
	for _, d := range all {
		ids = append(ids, d.ID)
	}
	return ids
}

// A job is named by its id, ends, and the next one of its target takes its place before the command cancels: that one is left alone.
func TestCancelByIDLeavesTheNextJobAlone(t *testing.T) {
	l := newLab(t)
	first := l.publish(config.WorkSnapshot, etcdTarget, &lifeboatv1.Job{})
	f := flags{config: filepath.Join(l.dir, "lifeboat.yaml"), output: "table"}
	fl, err := f.open(t.Context())
	require.NoError(t, err)
	t.Cleanup(func() { assert.NoError(t, fl.close()) })
	c := &cancellation{fleet: fl, by: "test"}
	work, target, err := c.which(t.Context(), []string{first})
	require.NoError(t, err)
	l.ok("jobs", "cancel", first)
	second := l.publish(config.WorkSnapshot, etcdTarget, &lifeboatv1.Job{})
	_, err = c.run(t.Context(), work, target)
	require.ErrorContains(t, err, "job "+first+" ended by itself meanwhile")
	var all []openJob
	l.json(&all, "jobs", "list")
	require.Len(t, all, 1)
	assert.Equal(t, second, all[0].ID)
	assert.Equal(t, stateNoWorker, all[0].State)
}

// A worker that has committed and not yet acknowledged: the job did what it was asked for, and nobody is told otherwise.
func TestCancelOfAJobThatHasCommittedSaysSo(t *testing.T) {
	l := newLab(t)
	id := l.publish(config.WorkSnapshot, etcdTarget, &lifeboatv1.Job{})
	_, err := l.bus.PutState(t.Context(), bus.State{Outgoing: bus.Outgoing{
		Subject: bus.ClaimSubject(etcdTarget, config.WorkSnapshot),
		Message: &lifeboatv1.ClaimState{JobId: id, Attempt: 1, Worker: "w1", Phase: lifeboatv1.ClaimState_PHASE_RELEASED},
	}})
	require.NoError(t, err)
	require.NoError(t, l.bus.Emit(t.Context(), &lifeboatv1.Event{Noun: "snapshot", Verb: "committed", Target: etcdTarget, JobId: id}))
	_, errs, code := l.lifeboat("jobs", "cancel", id)
	assert.Equal(t, 1, code)
	assert.Contains(t, errs, "job "+id+" ended by itself meanwhile")
	seq, _, err := l.bus.Last(t.Context(), bus.StreamEvents, bus.EventSubject("job", "cancelled", etcdTarget), &lifeboatv1.Event{})
	require.NoError(t, err)
	assert.Zero(t, seq)

	// One that was between two attempts is cancelled.
	id = l.publish(config.WorkDrill, etcdTarget, &lifeboatv1.Job{})
	_, err = l.bus.PutState(t.Context(), bus.State{Outgoing: bus.Outgoing{
		Subject: bus.ClaimSubject(etcdTarget, config.WorkDrill),
		Message: &lifeboatv1.ClaimState{JobId: id, Attempt: 2, Worker: "w1", Phase: lifeboatv1.ClaimState_PHASE_RELEASED},
	}})
	require.NoError(t, err)
	assert.Contains(t, l.ok("jobs", "cancel", id), "waiting for its next attempt, after attempt 2 on w1")
}

// The worker sees that its claim was cancelled and removes the job before the command does: it is cancelled all the same.
func TestAWorkerThatRemovesACancelledJobFirst(t *testing.T) {
	l := newLab(t)
	f := flags{config: filepath.Join(l.dir, "lifeboat.yaml"), output: "table"}
	fl, err := f.open(t.Context())
	require.NoError(t, err)
	t.Cleanup(func() { assert.NoError(t, fl.close()) })
	c := &cancellation{fleet: fl, by: "test"}
	const id = "20261121T040000.123Z-42"
	gone := fmt.Errorf("deleting: %w", bus.ErrNoMessage)
	running := &lifeboatv1.ClaimState{JobId: id, Worker: "w1", Phase: lifeboatv1.ClaimState_PHASE_RUNNING}
	require.NoError(t, c.judge(t.Context(), config.WorkSnapshot, etcdTarget, id, nil, gone))
	require.NoError(t, c.judge(t.Context(), config.WorkSnapshot, etcdTarget, id, running, gone))
	again := &lifeboatv1.ClaimState{JobId: id, Phase: lifeboatv1.ClaimState_PHASE_CANCELLED, CancelledBy: "ops@desk"}
	require.ErrorContains(t, c.judge(t.Context(), config.WorkSnapshot, etcdTarget, id, again, gone), "was cancelled already, by ops@desk")
	// Unless it had ended by then.
	require.NoError(t, l.bus.Emit(t.Context(), &lifeboatv1.Event{Noun: "snapshot", Verb: "failed", Target: etcdTarget, JobId: id}))
	require.ErrorContains(t, c.judge(t.Context(), config.WorkSnapshot, etcdTarget, id, running, gone), "ended by itself meanwhile")
	require.ErrorIs(t, c.judge(t.Context(), config.WorkSnapshot, etcdTarget, id, running, assert.AnError), assert.AnError)
}

func TestATargetsNameMovesNobodysCursor(t *testing.T) {
	var out bytes.Buffer
	require.NoError(t, printJobs(&out, "table", []openJob{{ID: "j", Work: "snapshot", Target: "a\x1b[2J\u202eb"}}, time.Now()))
	assert.Contains(t, out.String(), " a[2Jb ")
	assert.NotContains(t, out.String(), "\x1b")
	out.Reset()
	p := &page{
		Findings: []finding{{levelNote, "see \x1b]0;x\x07", "do \x1b[1A"}},
		Job: &jobStory{
			ID: "j\x1b[H", Outcome: "x\u009b2J", TraceID: "t\x1b", SnapshotID: "s\x1b", Attempts: []attempt{{Number: "1\x1b[H", Worker: "w\x1b"}},
			Objects: []object{{Bucket: "b\x1b", Key: "k\x1b"}}, Drill: &drill{ID: "d\x1b", Summary: "\x1b", Passed: true},
		},
		Recent: []outcome{{Outcome: "o\x1b", JobID: "j\x1b", Object: "a/k\x1b"}},
	}
	require.NoError(t, p.print(&out, time.Now()))
	assert.NotRegexp(t, `[\x00-\x08\x0b-\x1f\x7f-\x{9f}]`, out.String())
}
