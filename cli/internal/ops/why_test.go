package ops

import (
	"fmt"
	"slices"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"google.golang.org/protobuf/types/known/durationpb"
	"google.golang.org/protobuf/types/known/timestamppb"

	"github.com/lifeboat-fleet/lifeboat/fleet/bus"
	"github.com/lifeboat-fleet/lifeboat/fleet/config"
	"github.com/lifeboat-fleet/lifeboat/fleet/fleettest/natstest"
	lifeboatv1 "github.com/lifeboat-fleet/lifeboat/proto/lifeboat/v1"
	backup "github.com/lifeboat-fleet/lifeboat/services/backup/app"
)

// From the tick to the object with a real scheduler and a real worker.
func TestWhyOfACommittedSnapshot(t *testing.T) {
	l := newLab(t).withServers()
	l.configure("    schedule: \"@every 1s\"\n    time_zone: Asia/Shanghai\n    rpo: 1h\n    drill: {schedule: \"0 4 * * 0\"}\n")
	l.worker(backup.Options{Roles: []string{"snapshot"}})
	stop := l.scheduler()
	e := l.event("snapshot", "committed", etcdTarget)
	stop() // the newest stays the newest
	require.Eventually(t, func() bool {
		jobs, err := l.bus.Subjects(t.Context(), bus.StreamJobs, "lifeboat.job.>")
		return assert.NoError(t, err) && len(jobs) == 0
	}, patience, 50*time.Millisecond)
	p := l.why(etcdTarget, "--job", e.GetJobId())
	s := p.Job
	m := e.GetManifest()
	require.NotNil(t, s)
	assert.Equal(t, e.GetJobId(), s.ID)
	assert.Equal(t, "committed", s.Outcome)
	assert.Equal(t, "scheduler", s.RequestedBy)
	assert.Equal(t, "snapshot", s.Schedule)
	require.NotNil(t, s.Tick)
	assert.True(t, m.GetTick().AsTime().Equal(*s.Tick))
	assert.Less(t, s.LateSeconds, 10.0)
	require.Len(t, s.Attempts, 1)
	assert.Equal(t, "1", s.Attempts[0].Number)
	assert.NotNil(t, s.Attempts[0].Began)
	assert.Contains(t, s.Attempts[0].Worker, "lifeboat-backup")
	var names []string
	for _, ph := range s.Phases {
		names = append(names, ph.Name)
	}
	assert.Equal(t, []string{"wait for a worker", "read and upload", "read back", "commit"}, names)
	require.Len(t, s.Objects, 1)
	assert.Equal(t, m.GetData().GetKey(), s.Objects[0].Key)
	assert.Equal(t, m.GetData().GetStored().GetSha256(), s.Objects[0].StoredSHA256)
	assert.Equal(t, m.GetData().GetRaw().GetBytes(), s.Objects[0].RawBytes)
	assert.Equal(t, e.GetTraceId(), s.TraceID)
	assert.NotEmpty(t, s.TraceID)
	require.NotNil(t, p.RPO)
	require.Len(t, p.Schedules, 1)
	require.NotNil(t, p.Schedules[0].Next)
	assert.Equal(t, "ok", p.Findings[0].Level)

	out := l.ok("why", etcdTarget, "--job", e.GetJobId())
	for _, line := range []string{
		`(?m)^snapshot \S+ committed \d+s ago, in `,
		`(?m)^TARGET +etcd-prod \(etcd\)$`,
		`(?m)^SCHEDULE +snapshot: "@every 1s" in Asia/Shanghai$`,
		`(?m)^ +newest tick 20\S+ \S+ CST: \w+, decided \S+ \(\S+ late\)$`,
		`(?m)^ +next tick 20\S+ \S+ CST, in \d+s$`,
		`(?m)^RPO +1h0m0s, never exceeded; the newest data is of 20\S+ \S+ CST$`,
		`(?m)^TICK +20\S+ \S+ CST, of schedule snapshot, \S+ late$`,
		`(?m)^JOB +\S+, sequence \d+, stored 20\S+ \S+ CST, asked for by scheduler$`,
		`(?m)^ATTEMPT 1 +lifeboat-backup\S* \S+ to \S+: committed$`,
		`(?m)^PHASES +wait for a worker \S+, read and upload \S+, read back \S+, commit \S+$`,
		`(?m)^OBJECT +s3://lifeboat/p/etcd-prod/snapshots/\S+/data\.db\.zst$`,
		`(?m)^ +[0-9.]+ KiB raw \(sha256 [0-9a-f]{64}\)$`,
		`(?m)^SNAPSHOT +` + m.GetId() + `$`,
		`(?m)^DRILL +none yet of this snapshot$`,
		`(?m)^TRACE +` + e.GetTraceId() + ` \(in Grafana: Explore, Tempo, this trace id\)$`,
		`(?m)^TICK +OUTCOME +TOOK +JOB +OBJECT$`,
		`(?m)^20\S+ \S+ CST +committed +\S+ +\S+ +\S+/data\.db\.zst$`,
	} {
		assert.Regexp(t, line, out)
	}
	_, errs, code := l.lifeboat("why", etcdTarget, "--job", "20260101T000000.000Z-1")
	assert.Equal(t, 1, code)
	assert.Contains(t, errs, "mistyped, another --work, or longer ago than --since?")
}

// The worker's zone is not the target's, so that its job waits, and the page says for whom.
func TestWhyOfATargetWhoseZoneHasNoWorker(t *testing.T) {
	l := newLab(t).withServers()
	l.configure("    zone: beijing\n    schedule: \"0 4 * * *\"\n")
	l.worker(backup.Options{Roles: []string{"snapshot"}, Zone: "seoul"})
	id := l.publish(config.WorkSnapshot, etcdTarget, &lifeboatv1.Job{RequestedBy: "ops"})
	require.EventuallyWithT(t, func(c *assert.CollectT) {
		workers, err := l.bus.Workers(t.Context())
		assert.NoError(c, err)
		assert.Len(c, workers, 1)
	}, patience, 50*time.Millisecond)
	p := l.why(etcdTarget)
	assert.Equal(t, id, p.Job.ID)
	assert.Equal(t, stateNoWorker, p.Job.Outcome)
	assert.Equal(t, finding{
		levelProblem, "snapshot " + id + " is waiting for a worker of zone beijing: zone beijing has no worker",
		"start one in zone beijing: lifeboat-backup --zone beijing --roles snapshot",
	}, p.Findings[0])

	out, errs, code := l.lifeboat("status")
	assert.Equal(t, 1, code)
	assert.Contains(t, out, "zone beijing has no worker (targets: etcd-prod)")
	assert.Contains(t, out, "workers of zone seoul: 1 (snapshot 1)")
	assert.Contains(t, errs, "at least one zone has targets and no worker")
}

// at4 is a tick of the schedules below.
func at4(daysAgo int) time.Time {
	now := time.Now().UTC()
	return time.Date(now.Year(), now.Month(), now.Day()-daysAgo, 4, 0, 0, 0, time.UTC)
}

// newestTick is the newest 4 o'clock in UTC that has passed long enough for a decision to be no news.
func newestTick() time.Time {
	if t := at4(0); time.Since(t) > 0 {
		return t
	}
	return at4(1)
}

func TestWhyNothingRan(t *testing.T) {
	const schedule = "    schedule: \"0 4 * * *\"\n"
	tick := newestTick()
	base := func() *lifeboatv1.ScheduleState {
		return &lifeboatv1.ScheduleState{
			Tick: timestamppb.New(tick), Outcome: lifeboatv1.ScheduleState_OUTCOME_EMITTED, Schedule: "0 4 * * *",
			DecidedAt: timestamppb.New(tick.Add(200 * time.Millisecond)),
		}
	}
	missedFor := func(reason, job string) *lifeboatv1.ScheduleState {
		s := base()
		s.Outcome = lifeboatv1.ScheduleState_OUTCOME_MISSED
		s.Missed = []*lifeboatv1.MissedTicks{{Reason: reason, Count: 1, From: s.GetTick(), To: s.GetTick(), JobId: job}}
		return s
	}
	when := tick.Format(moment)
	for name, c := range map[string]struct {
		yaml  string
		state *lifeboatv1.ScheduleState
		want  []string
	}{
		"no schedule":    {"", nil, []string{"no schedule asks for snapshots of etcd-prod | ask for one: lifeboat snapshot run etcd-prod"}},
		"no scheduler":   {schedule, nil, []string{"no scheduler has seen schedule snapshot | see whether lifeboat-scheduler runs"}},
		"no worker":      {schedule, base(), []string{"problem: no worker answers, so the next job will wait | start one: lifeboat-backup --roles snapshot"}},
		"blackout":       {schedule, missedFor("blackout", ""), []string{"the tick of " + when + " was not run: it was in a blackout"}},
		"down":           {schedule, missedFor("down", ""), []string{"no scheduler decided in time (down)"}},
		"overlap":        {schedule, missedFor("overlap", "j-1"), []string{"job j-1 waited or ran (overlap) | lifeboat why etcd-prod --work snapshot --job j-1"}},
		"paused by file": {schedule + "    paused: true\n", missedFor("paused", ""), []string{"is paused by paused: true in ", "the schedule was paused"}},
		"another line":   {"    schedule: \"0 5 * * *\"\n", base(), []string{`schedule snapshot is "0 5 * * *" in `, `the scheduler has "0 4 * * *"`}},
		"another splay":  {schedule + "    splay: 10m\n", base(), []string{"the scheduler has it with a splay of 0s"}},
		"removed": {schedule, func() *lifeboatv1.ScheduleState {
			s := base()
			s.Outcome = lifeboatv1.ScheduleState_OUTCOME_REMOVED
			return s
		}(), []string{"the scheduler's configuration does not have it"}},
		"overdue": {schedule, func() *lifeboatv1.ScheduleState {
			s := base()
			s.Tick = timestamppb.New(tick.AddDate(0, 0, -2))
			return s
		}(), []string{"the tick of snapshot at " + tick.AddDate(0, 0, -1).Format(moment) + " is not decided: no scheduler runs"}},
		"queued": {schedule, func() *lifeboatv1.ScheduleState {
			s := base()
			s.Outcome, s.Pending = lifeboatv1.ScheduleState_OUTCOME_QUEUED, []*timestamppb.Timestamp{s.GetTick()}
			return s
		}(), []string{"the tick of " + when + " is queued and is run when the job before it has ended (1 tick in all)"}},
		"paused": {schedule, func() *lifeboatv1.ScheduleState {
			s := missedFor("paused", "")
			s.Pause = &lifeboatv1.Pause{
				By: "cli ops@desk", Reason: "migration", Since: timestamppb.New(tick.Add(-time.Hour)),
				Until: timestamppb.New(time.Date(2099, 1, 1, 0, 0, 0, 0, time.UTC)),
			}
			return s
		}(), []string{"schedule snapshot is paused by cli ops@desk since " + tick.Add(-time.Hour).Format(moment) +
			", until 2099-01-01 00:00:00 UTC: migration | lifeboat schedule resume etcd-prod"}},
		"a pause that has passed": {schedule, func() *lifeboatv1.ScheduleState {
			s := base()
			s.Pause = &lifeboatv1.Pause{By: "x", Until: timestamppb.New(tick)}
			return s
		}(), []string{"no snapshot of etcd-prod is known since"}},
	} {
		t.Run(name, func(t *testing.T) {
			l := newLab(t)
			l.configure(c.yaml)
			if c.state != nil {
				l.state(etcdTarget, "snapshot", c.state)
			}
			got := texts(l.why(etcdTarget))
			for _, w := range c.want {
				assert.Contains(t, got, w)
			}
			if name == "a pause that has passed" {
				assert.NotContains(t, got, "paused")
			}
			l.ok("why", etcdTarget)
		})
	}
}

// A scheduler that finds every moment blacked out runs nothing, and the page says so from what it wrote.
func TestWhyOfATickThatAnActualSchedulerMissed(t *testing.T) {
	l := newLab(t)
	l.configure(fmt.Sprintf("    schedule: \"@every 1s\"\n    blackout: [{years: [\"%d\"]}]\n", time.Now().UTC().Year()))
	stop := l.scheduler()
	e := l.event("tick", "missed", etcdTarget)
	stop()
	p := l.why(etcdTarget)
	assert.Contains(t, texts(p), "blackout")
	require.NotEmpty(t, p.Recent)
	assert.Equal(t, "missed", p.Recent[0].Outcome)
	require.NotNil(t, p.Recent[0].Tick)
	assert.Contains(t, p.Recent[0].Message+e.GetMessage(), "blackout")
	assert.Contains(t, p.Schedules[0].NextNote, "in a blackout: not run")
}

// What waits is in the way of the next tick, and the line of that tick names it.
func TestWhyOfATickThatFoundAJobInTheWay(t *testing.T) {
	l := newLab(t)
	l.configure("    schedule: \"@every 1s\"\n")
	id := l.publish(config.WorkSnapshot, etcdTarget, &lifeboatv1.Job{RequestedBy: "ops"})
	stop := l.scheduler()
	l.event("tick", "missed", etcdTarget)
	stop()
	p := l.why(etcdTarget)
	assert.Equal(t, id, p.Job.ID)
	assert.Contains(t, texts(p), "job "+id+" waited or ran (overlap) | lifeboat why etcd-prod --work snapshot --job "+id)
	i := slices.IndexFunc(p.Recent, func(o outcome) bool { return o.Outcome == "missed" })
	require.GreaterOrEqual(t, i, 0)
	assert.Equal(t, id, p.Recent[i].JobID)
}

func TestWhyOfAnExceededRPOAndARetry(t *testing.T) {
	l := newLab(t)
	l.configure("    rpo: 1h\n")
	id := l.publish(config.WorkSnapshot, etcdTarget, &lifeboatv1.Job{})
	for i, verb := range []string{"started", "interrupted"} {
		require.NoError(t, l.bus.Emit(t.Context(), &lifeboatv1.Event{
			Id: fmt.Sprint(i), Noun: "snapshot", Verb: verb, Target: etcdTarget, JobId: id, Message: "the member \x1b[2Jwent away", Actor: "w1",
			Attributes: map[string]string{"attempt": "1"},
		}))
	}
	require.NoError(t, l.bus.Emit(t.Context(), &lifeboatv1.Event{Noun: "rpo", Verb: "exceeded", Target: etcdTarget, Message: "no good snapshot for 2h"}))
	_, err := l.bus.PutState(t.Context(), bus.State{Outgoing: bus.Outgoing{
		Subject: bus.ClaimSubject(etcdTarget, config.WorkSnapshot),
		Message: &lifeboatv1.ClaimState{JobId: id, Attempt: 1, Worker: "w1", Phase: lifeboatv1.ClaimState_PHASE_RELEASED},
	}})
	require.NoError(t, err)
	p := l.why(etcdTarget)
	assert.Equal(t, []attempt{{Number: "1", Worker: "w1", Began: p.Job.Attempts[0].Began, Ended: p.Job.Attempts[0].Ended, How: "interrupted", Why: "the member [2Jwent away"}},
		p.Job.Attempts)
	assert.Contains(t, texts(p), "the rpo is exceeded: no good snapshot for 2h")
	assert.Equal(t, "exceeded", p.RPO.State)
	assert.NotContains(t, l.ok("why", etcdTarget), "\x1b")
}

// The events of a prune, and of damage that other work came upon, are not taken for jobs of another kind.
func TestAJobIsWhatItDoesAndNotWhatItTells(t *testing.T) {
	l := newLab(t)
	at := func(n int) string { return fmt.Sprintf("%s-%d", time.Now().UTC().Format("20060102T150405.000Z"), n) }
	prune, snapshot := at(1), at(2)
	for _, e := range []*lifeboatv1.Event{
		{Noun: "prune", Verb: "started", JobId: prune},
		{Noun: "snapshot", Verb: "deleted", JobId: prune, SnapshotId: "s0"},
		{Noun: "prune", Verb: "passed", JobId: prune, Message: "kept 1"},
		{Noun: "snapshot", Verb: "started", JobId: snapshot},
		{Id: "verify.failed.rot.s1", Noun: "verify", Verb: "failed", JobId: snapshot, Message: "s1 is damaged"},
		{
			Noun: "snapshot", Verb: "committed", JobId: snapshot, SnapshotId: snapshot,
			Detail: &lifeboatv1.Event_Manifest{Manifest: &lifeboatv1.Manifest{Id: snapshot, Data: &lifeboatv1.Data{Key: "k"}}},
		},
		{
			Noun: "drill", Verb: "failed", JobId: at(3), SnapshotId: snapshot,
			Detail: &lifeboatv1.Event_Drill{Drill: &lifeboatv1.DrillReport{
				Id: "d1", SnapshotId: snapshot, Failure: "compare: the hash differs", Rto: durationpb.New(time.Second),
				Phases: []*lifeboatv1.Phase{{Name: "fetch", Took: durationpb.New(2 * time.Second)}},
			}},
		},
	} {
		e.Target, e.Actor = etcdTarget, "w1"
		require.NoError(t, l.bus.Emit(t.Context(), e))
	}
	p := l.why(etcdTarget)
	require.NotNil(t, p.Job)
	assert.Equal(t, snapshot, p.Job.ID)
	assert.Equal(t, "committed", p.Job.Outcome)
	assert.Len(t, p.Recent, 1)
	assert.Equal(t, []string{"verify failed: s1 is damaged"}, p.Job.Notes)
	require.NotNil(t, p.Job.Drill)
	assert.False(t, p.Job.Drill.Passed)
	assert.Equal(t, "compare: the hash differs", p.Job.Drill.Failure)
	assert.Contains(t, l.ok("why", etcdTarget), "failed: compare: the hash differs, restored in 1s")
	assert.Equal(t, prune, l.why(etcdTarget, "--work", "prune").Job.ID)
	assert.Nil(t, l.why(etcdTarget, "--work", "verify").Job)
	p = l.why(etcdTarget, "--work", "drill")
	assert.Equal(t, []phase{{"fetch", 2}}, p.Job.Phases)
}

func TestWhyWithoutNATSSaysWhere(t *testing.T) {
	l := newLab(t)
	l.nats.Stop()
	_, errs, code := l.lifeboat("why", etcdTarget)
	assert.Equal(t, 1, code)
	assert.Contains(t, errs, "NATS at "+l.nats.URL()+" is not connected")
	assert.Contains(t, errs, "see nats.url in ")
	_, errs, code = l.lifeboat("why", etcdTarget, "--work", "nothing")
	assert.Equal(t, 2, code)
	assert.Contains(t, errs, "--work")
}

// What was said of the rpo holds until something else is said, however short the time that is asked about.
func TestWhyKnowsAnRPOThatWasExceededLongAgo(t *testing.T) {
	l := newLab(t)
	l.configure("    rpo: 1h\n")
	began := timestamppb.New(time.Now().Add(-3 * time.Hour))
	require.NoError(t, l.bus.Emit(t.Context(), &lifeboatv1.Event{
		Noun: "snapshot", Verb: "committed", Target: etcdTarget, JobId: "20261121T040000.123Z-42",
		Detail: &lifeboatv1.Event_Manifest{Manifest: &lifeboatv1.Manifest{StartedAt: began}},
	}))
	p := l.why(etcdTarget, "--since", "30d")
	assert.Contains(t, texts(p), "and no scheduler has said that it is exceeded")
	require.NoError(t, l.bus.Emit(t.Context(), &lifeboatv1.Event{Noun: "rpo", Verb: "exceeded", Target: etcdTarget, Message: "no good snapshot for 3h"}))
	stored := time.Now()
	require.Eventually(t, func() bool { return time.Since(stored) > 1100*time.Millisecond }, patience, 50*time.Millisecond)
	p = l.why(etcdTarget, "--since", "1s")
	assert.Nil(t, p.Job, "that is before")
	assert.Equal(t, "exceeded", p.RPO.State)
	require.NotNil(t, p.RPO.Newest)
	assert.WithinDuration(t, began.AsTime(), *p.RPO.Newest, time.Millisecond)
	assert.Contains(t, texts(p), "problem: the rpo is exceeded: no good snapshot for 3h")
	assert.NotContains(t, texts(p), "no scheduler has said")
}

// A job that was committed before somebody cancelled it is committed.
func TestWhyOfAJobThatWasCancelledBehindItsCommit(t *testing.T) {
	l := newLab(t)
	const id = "20261121T040000.123Z-42"
	require.NoError(t, l.bus.Emit(t.Context(), &lifeboatv1.Event{Noun: "snapshot", Verb: "committed", Target: etcdTarget, JobId: id, SnapshotId: id}))
	require.NoError(t, l.bus.Emit(t.Context(), &lifeboatv1.Event{
		Noun: "job", Verb: "cancelled", Target: etcdTarget, JobId: id, Message: "ops cancelled it", Attributes: map[string]string{"work": "snapshot"},
	}))
	p := l.why(etcdTarget)
	require.NotNil(t, p.Job)
	assert.Equal(t, "committed", p.Job.Outcome)
	assert.Contains(t, p.Job.Notes, "job cancelled, behind its end: ops cancelled it")
}

// Nobody is told that there is nothing when it is only that nothing could be read.
func TestWhyDoesNotCallNothingWhatItCouldNotRead(t *testing.T) {
	q := question{target: config.Target{Name: etcdTarget}, work: config.WorkSnapshot, loc: time.UTC}
	found := q.headline(&page{Unknown: []string{"the audit log: denied"}})
	assert.Equal(t, levelProblem, found.Level)
	assert.Contains(t, found.Text, "is not known: not everything could be read")
	assert.Contains(t, q.headline(&page{}).Text, "no snapshot of etcd-prod is known since")
}

// A worker tells of the commit and dies before it acknowledges: the snapshot is there, and the page says so.
func TestWhyOfACommittedJobThatIsStillInTheStream(t *testing.T) {
	l := newLab(t)
	id := l.publish(config.WorkSnapshot, etcdTarget, &lifeboatv1.Job{})
	require.NoError(t, l.bus.Emit(t.Context(), &lifeboatv1.Event{Noun: "snapshot", Verb: "committed", Target: etcdTarget, JobId: id, SnapshotId: id}))
	p := l.why(etcdTarget)
	require.NotNil(t, p.Job)
	assert.Equal(t, "committed", p.Job.Outcome)
	assert.True(t, p.Job.Ended)
	assert.Contains(t, p.Job.Notes, "the job's message is still there: waiting for a worker: no worker answers")

	// One that failed is tried again: it has not ended.
	id = l.publish(config.WorkDrill, etcdTarget, &lifeboatv1.Job{})
	require.NoError(t, l.bus.Emit(t.Context(), &lifeboatv1.Event{Noun: "drill", Verb: "failed", Target: etcdTarget, JobId: id}))
	p = l.why(etcdTarget, "--work", "drill")
	assert.Equal(t, stateNoWorker, p.Job.Outcome)
	assert.False(t, p.Job.Ended)
}

// A server on which nobody has made the streams: no command calls that an empty fleet, and each says what to look at.
func TestAServerWithoutStreamsIsNotAnEmptyFleet(t *testing.T) {
	l := newLab(t)
	bare := natstest.New(t)
	l.settings = fmt.Sprintf("{url: %q}", bare.URL())
	l.configure("    schedule: \"@hourly\"\n")
	for _, args := range [][]string{{"jobs", "list"}, {"jobs", "cancel", "snapshot", etcdTarget}, {"dead", "list"}, {"dead", "show", "x"}} {
		_, errs, code := l.lifeboat(args...)
		assert.Equal(t, 1, code, args)
		assert.Contains(t, errs, "is a service of the fleet running that has made the streams", args)
	}
	out, errs, code := l.lifeboat("why", etcdTarget)
	assert.Equal(t, 1, code)
	assert.Contains(t, errs, "nothing that NATS knows of etcd-prod could be read")
	assert.Contains(t, out, "whether there is a snapshot of etcd-prod is not known")
	assert.NotContains(t, out, "no scheduler has seen")
}
