package ops

import (
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
