package ops

import (
	"bytes"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/lifeboat-fleet/lifeboat/fleet/console"
)

// The page as a person and a script see it.
func TestThePageOfAJobThatFailed(t *testing.T) {
	zone := time.FixedZone("CST", 8*3600)
	when := func(h, m, s int) *time.Time { return new(time.Date(2026, 11, 21, h, m, s, 0, zone)) }
	p := &page{
		Target: "etcd-prod", Kind: "etcd", Work: "snapshot", Zone: "beijing", TimeZone: "Asia/Shanghai",
		Findings: []finding{
			{levelProblem, "snapshot 20261121T040012.300Z-42 failed after 2 attempts and is a dead letter: the disk is full", "when the cause is mended: lifeboat dead replay d"},
			{levelNote, "the rpo ends soon", ""},
		},
		Schedules: []scheduleState{{
			Name: "snapshot", Line: "0 12 * * *", TimeZone: "Asia/Shanghai", Splay: "30s", Tick: when(12, 0, 12), Outcome: "emitted",
			DecidedAt: when(12, 0, 12), LateSeconds: 0.3, Next: new(when(12, 0, 12).AddDate(0, 0, 1)), NextNote: "in a blackout: not run",
		}},
		RPO: &rpoState{RPO: "36h0m0s", State: "met", Newest: when(0, 0, 0)},
		Job: &jobStory{
			ID: "20261121T040012.300Z-42", Work: "snapshot", Outcome: "failed", Message: "the disk is full", Ended: true, Failed: true,
			Tick: when(12, 0, 12), Schedule: "snapshot", LateSeconds: 0.3, Sequence: 42, StoredAt: when(12, 0, 12), RequestedBy: "scheduler",
			Attempts: []attempt{
				{Number: "1", Worker: "w1", Began: when(12, 0, 13), Ended: when(12, 1, 0), How: "interrupted", Why: "the disk is full"},
				{Number: "2", Worker: "w2", Began: when(12, 1, 2), How: "running"},
			},
			Dead: &deadRef{ID: "d", Reason: "the disk is full", Attempts: 2}, TraceID: "abc",
		},
		Recent:  []outcome{{At: *when(11, 0, 0), Outcome: "committed", TookSeconds: 71, JobID: "j", Object: "p/etcd-prod/snapshots/j/data.db.zst"}},
		Unknown: []string{"the workers: denied"},
	}
	var out bytes.Buffer
	require.NoError(t, p.print(&out, *when(13, 0, 12)))
	assert.Equal(t, `snapshot 20261121T040012.300Z-42 failed after 2 attempts and is a dead letter: the disk is full
  when the cause is mended: lifeboat dead replay d
the rpo ends soon
could not be read: the workers: denied

TARGET       etcd-prod (etcd, zone beijing)
SCHEDULE     snapshot: "0 12 * * *" in Asia/Shanghai, splay 30s
             newest tick 2026-11-21 12:00:12 CST: emitted, decided 12:00:12 (300ms late)
             next tick 2026-11-22 12:00:12 CST, in 23h0m, in a blackout: not run
RPO          36h0m0s, met; the newest data is of 2026-11-21 00:00:00 CST
TICK         2026-11-21 12:00:12 CST, of schedule snapshot, 300ms late
JOB          20261121T040012.300Z-42, sequence 42, stored 2026-11-21 12:00:12 CST, asked for by scheduler
ATTEMPT 1    w1 12:00:13 to 12:01:00: interrupted: the disk is full
ATTEMPT 2    w2 since 12:01:02: running
OUTCOME      failed: the disk is full
DEAD LETTER  d
TRACE        abc (in Grafana: Explore, Tempo, this trace id)

TICK                             OUTCOME    TOOK  JOB  OBJECT
2026-11-21 11:00:00 CST by hand  committed  1m    j    j/data.db.zst
`, out.String())

	p.Schedules, p.Job, p.RPO = []scheduleState{}, nil, nil
	out.Reset()
	require.NoError(t, console.WriteJSON(&out, p))
	assert.JSONEq(t, `{"target": "etcd-prod", "kind": "etcd", "work": "snapshot", "zone": "beijing", "time_zone": "Asia/Shanghai",
		"findings": [{"level": "problem", "text": "snapshot 20261121T040012.300Z-42 failed after 2 attempts and is a dead letter: the disk is full",
			"do": "when the cause is mended: lifeboat dead replay d"}, {"level": "note", "text": "the rpo ends soon"}],
		"schedules": [], "unknown": ["the workers: denied"],
		"recent": [{"at": "2026-11-21T11:00:00+08:00", "outcome": "committed", "job_id": "j", "took_seconds": 71, "object": "p/etcd-prod/snapshots/j/data.db.zst"}]}`,
		out.String())
}
