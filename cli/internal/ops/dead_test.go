package ops

import (
	"strings"
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

// bury stores a letter and gives its id.
func (l *lab) bury(d *lifeboatv1.DeadLetter) string {
	l.t.Helper()
	require.NoError(l.t, l.bus.DeadLetter(l.t.Context(), "test", d))
	return d.GetId()
}

func TestDeadLettersAreListedAndShown(t *testing.T) {
	l := newLab(t)
	assert.Equal(t, "no dead letters\n", l.ok("dead", "list"))
	old := timestamppb.Now()
	old.Seconds -= 40 * 24 * 3600
	l.bury(&lifeboatv1.DeadLetter{Id: "new", Subject: "lifeboat.job.drill.etcd-prod", Payload: []byte(`{"snapshot":"x"}`), Reason: "no\x1b[2J snapshot\nat all", Attempts: 5, Headers: map[string]string{"traceparent": "00-1-2-01"}})
	l.bury(&lifeboatv1.DeadLetter{Id: "old", Time: old, Subject: "lifeboat.alert.delivery.ops", Payload: []byte(strings.Repeat("a", 5000)), Reason: "the chat is gone", Attempts: 3})
	l.bury(&lifeboatv1.DeadLetter{Id: "hook", Subject: "webhook", Payload: []byte("{\x07\"version\""), Reason: "malformed"})
	l.bury(&lifeboatv1.DeadLetter{Id: "raw", Subject: "lifeboat.job.prune.etcd-prod", Payload: []byte{0xff, 0xfe}, Reason: "the payload is not a job"})

	assert.Equal(t, []string{"old", "new", "hook", "raw"}, deadIDs(l), "newest last")
	out := l.ok("dead", "list", "--since", "30d", "--subject", "lifeboat.job.>")
	assert.Regexp(t, `(?m)^new +\S+ +lifeboat\.job\.drill\.etcd-prod +5 +no\[2J snapshot$`, out)
	assert.NotContains(t, out, "hook")
	assert.NotContains(t, l.ok("dead", "list", "--since", "30d"), "old ")
	assert.Contains(t, l.ok("dead", "list", "--subject", "webhook"), "malformed")
	assert.Contains(t, l.ok("dead", "list", "--output", "json"), `"payload": "`)

	out = l.ok("dead", "show", "new")
	assert.Regexp(t, `(?m)^HEADER +traceparent: 00-1-2-01$`, out)
	assert.Contains(t, out, `{"snapshot":"x"}`)
	assert.Contains(t, out, "lifeboat dead replay new -c ")
	assert.NotContains(t, out, "\x1b")
	out = l.ok("dead", "show", "old")
	assert.Contains(t, out, "(4096 of 5000 bytes; all of it with --payload)")
	assert.Len(t, l.ok("dead", "show", "old", "--payload"), 5000)
	out = l.ok("dead", "show", "hook")
	assert.NotContains(t, out, "\x07")
	assert.Contains(t, out, "curl -X POST --data-binary @body.json http://127.0.0.1:9095/api/v1/alertmanager")
	assert.Equal(t, "{\x07\"version\"", l.ok("dead", "show", "hook", "--payload"), "a file gets it as it is")
	assert.Contains(t, l.ok("dead", "show", "raw"), "2 bytes that are no text")

	_, errs, code := l.lifeboat("dead", "show", "nothing")
	assert.Equal(t, 1, code)
	assert.Contains(t, errs, `no dead letter is named "nothing"; see which there are: lifeboat dead list`)
	_, _, code = l.lifeboat("dead", "list", "--since", "yesterday")
	assert.Equal(t, 2, code)
	for _, odd := range []string{"", "a b", "lifeboat.>.x", "lifeboat..job", "job.", "jo*"} {
		_, errs, code = l.lifeboat("dead", "list", "--subject", odd)
		assert.Equal(t, 2, code, odd)
		assert.Contains(t, errs, "is no subject")
	}
}

// A letter that somebody else put there, which nobody here can read: it has the age of its message, and is not the end of the list.
func TestALetterThatCannotBeRead(t *testing.T) {
	l := newLab(t)
	_, err := l.bus.PublishRaw(t.Context(), "lifeboat.dead.job.snapshot.etcd-prod", []byte("{\x1b[2J"), nil, "")
	require.NoError(t, err)
	_, err = l.bus.PublishRaw(t.Context(), "lifeboat.dead.job.snapshot.etcd-prod", []byte(`{"id": "bare", "subject": "lifeboat.job.snapshot.etcd-prod"}`), nil, "")
	require.NoError(t, err)
	out := l.ok("dead", "list", "--since", "1h")
	assert.Regexp(t, `(?m)^undecodable-\S+ +\d+s +lifeboat.dead.job.snapshot.etcd-prod +0 +this letter cannot be decoded: `, out)
	assert.Regexp(t, `(?m)^bare +\d+s +lifeboat.job.snapshot.etcd-prod`, out)
	assert.NotContains(t, out, "\x1b")
	_, errs, code := l.lifeboat("dead", "replay", deadIDs(l)[0], "--yes")
	assert.Equal(t, 1, code)
	assert.Contains(t, errs, "nobody takes messages of its subject")

	// Two without an id are two: sending one again does not take the other away.
	for _, target := range []string{"a", "b"} {
		_, err = l.bus.PublishRaw(t.Context(), "lifeboat.dead.job.snapshot."+target, []byte(`{"subject": "lifeboat.job.snapshot.`+target+`"}`), nil, "")
		require.NoError(t, err)
	}
	ids := deadIDs(l)
	require.Len(t, ids, 4)
	assert.Contains(t, l.ok("dead", "replay", ids[2], "--yes"), "lifeboat.job.snapshot.a")
	assert.Equal(t, []string{ids[0], ids[1], ids[3]}, deadIDs(l))
}

func TestTheHintForAWebhookNamesAnAddressThatCanBeAsked(t *testing.T) {
	for listen, want := range map[string]string{
		":9095": "127.0.0.1:9095", "0.0.0.0:9095": "127.0.0.1:9095", "[::]:9095": "127.0.0.1:9095", "10.1.2.3:9095": "10.1.2.3:9095", "notifier:1": "notifier:1",
	} {
		assert.Equal(t, want, reachable(listen), listen)
	}
}

func TestReplayRefusesWhatCannotBeSent(t *testing.T) {
	l := newLab(t)
	l.bury(&lifeboatv1.DeadLetter{Id: "hook", Subject: "webhook", Payload: []byte("{")})
	l.bury(&lifeboatv1.DeadLetter{Id: "cut", Subject: "lifeboat.job.snapshot.etcd-prod", Payload: make([]byte, 900<<10)})
	l.bury(&lifeboatv1.DeadLetter{Id: "busy", Subject: "lifeboat.job.snapshot.etcd-prod"})
	l.bury(&lifeboatv1.DeadLetter{Id: "odd", Subject: "lifeboat.event.a.b.c"})
	for id, want := range map[string]string{
		"hook": "only Alertmanager's side can send", "cut": "only the beginning of its payload was kept", "odd": "nobody takes messages",
		"nothing": "no dead letter is named",
	} {
		_, errs, code := l.lifeboat("dead", "replay", "busy", id, "--yes")
		assert.Equal(t, 1, code)
		assert.Contains(t, errs, want)
	}
	_, errs, code := l.lifeboat("dead", "replay", "busy")
	assert.Equal(t, 2, code)
	assert.Contains(t, errs, "add --yes")

	l.publish(config.WorkSnapshot, etcdTarget, &lifeboatv1.Job{})
	_, errs, code = l.lifeboat("dead", "replay", "busy", "--yes")
	assert.Equal(t, 1, code)
	assert.Contains(t, errs, "already waiting or running")
	assert.Contains(t, errs, "the letter stays")
	assert.Len(t, deadIDs(l), 4)
}

// A letter that was published and not removed, because the command died, is sent once by the second try.
func TestAReplayThatWasInterruptedSendsOnce(t *testing.T) {
	l := newLab(t)
	id := l.bury(&lifeboatv1.DeadLetter{Id: "a", Subject: "lifeboat.alert.delivery.ops", Payload: []byte("{}"), Headers: map[string]string{"traceparent": "00-1-2-01"}})
	first, err := l.bus.PublishRaw(t.Context(), "lifeboat.alert.delivery.ops", []byte("{}"), nil, "replay-a-1")
	require.NoError(t, err)
	var done []replayed
	l.json(&done, "dead", "replay", id, "--yes")
	require.Len(t, done, 1)
	assert.Equal(t, first, done[0].Sequence)
	assert.Empty(t, deadIDs(l))
	count, err := l.bus.Subjects(t.Context(), bus.StreamAlerts, "lifeboat.alert.>")
	require.NoError(t, err)
	assert.Equal(t, map[string]uint64{"lifeboat.alert.delivery.ops": 1}, count)
	assert.Equal(t, "a", l.event("dead", "replayed", "").GetAttributes()["dead_id"])

	l.bury(&lifeboatv1.DeadLetter{Id: "b", Subject: "lifeboat.alert.delivery.ops", Payload: []byte("{}"), Headers: map[string]string{"traceparent": "00-1-2-01"}})
	for range 2 {
		assert.Contains(t, l.ok("dead", "replay", "b", "--yes", "--keep"), "b: sent again to lifeboat.alert.delivery.ops")
	}
	assert.Equal(t, []string{"b"}, deadIDs(l))
	count, err = l.bus.Subjects(t.Context(), bus.StreamAlerts, "lifeboat.alert.>")
	require.NoError(t, err)
	assert.Equal(t, map[string]uint64{"lifeboat.alert.delivery.ops": 3}, count, "what is kept may be sent as often as wanted")
	var header string
	require.NoError(t, l.bus.Scan(t.Context(), bus.StreamAlerts, "lifeboat.alert.>", func(m *bus.Message) error {
		header = m.Header.Get("traceparent")
		return nil
	}))
	assert.Equal(t, "00-1-2-01", header)
}

// A drill of a target without a snapshot is a dead letter; with a snapshot there, the same letter becomes a drill that passes.
func TestAReplayedJobSucceedsWhenItsCauseIsMended(t *testing.T) {
	l := newLab(t).withServers()
	l.worker(backup.Options{Roles: []string{"snapshot", "drill"}})
	job := l.publish(config.WorkDrill, etcdTarget, &lifeboatv1.Job{RequestedBy: "ops"})
	l.event("drill", "failed", etcdTarget)
	require.Eventually(t, func() bool { return len(deadIDs(l)) == 1 }, patience, 50*time.Millisecond)
	p := l.why(etcdTarget, "--job", job)
	assert.Equal(t, config.WorkDrill, p.Work, "the job tells the work")
	require.NotNil(t, p.Job.Dead)
	assert.Equal(t, job, p.Job.ID)
	assert.True(t, p.Job.Failed)
	assert.Contains(t, texts(p), "problem: drill "+job+" failed after 1 attempt and is a dead letter: ")
	assert.Contains(t, texts(p), "when the cause is mended: "+p.Job.Dead.Replay)

	l.ok("snapshot", "run", etcdTarget, "--wait")
	out := l.ok("dead", "replay", p.Job.Dead.ID, "--yes")
	assert.Contains(t, out, "sent again to lifeboat.job.drill.etcd-prod")
	passed := l.event("drill", "passed", etcdTarget)
	assert.Equal(t, "ops", passed.GetRequestedBy(), "the payload is the original one")
	assert.Empty(t, deadIDs(l))
	e := l.event("dead", "replayed", etcdTarget)
	assert.Contains(t, e.GetRequestedBy(), "cli ")

	p = l.why(etcdTarget, "--work", "drill")
	assert.Equal(t, "passed", p.Job.Outcome)
	assert.Equal(t, passed.GetJobId(), p.Job.ID)
	assert.Equal(t, "ops", p.Job.RequestedBy)
	assert.NotContains(t, texts(p), "dead letter", "what came after it went well")
	require.Len(t, p.Recent, 2)
	assert.Equal(t, []string{"failed", "passed"}, []string{p.Recent[0].Outcome, p.Recent[1].Outcome})
	assert.True(t, p.Job.Drill.Passed)
	assert.NotEmpty(t, p.Job.Phases)
	p = l.why(etcdTarget)
	require.NotNil(t, p.Job.Drill, "the snapshot's page tells of its drill")
	assert.Equal(t, passed.GetJobId(), p.Job.Drill.ID)
}
