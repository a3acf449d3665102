package page

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"google.golang.org/protobuf/encoding/protojson"

	"github.com/lifeboat-fleet/lifeboat/cli/internal/ops"
	"github.com/lifeboat-fleet/lifeboat/fleet/bus"
	"github.com/lifeboat-fleet/lifeboat/fleet/config"
	lifeboatv1 "github.com/lifeboat-fleet/lifeboat/proto/lifeboat/v1"
)

const two = `  - {name: a, etcd: {endpoints: ["http://127.0.0.1:1"]}, rpo: 4h}
  - {name: b, etcd: {endpoints: ["http://127.0.0.1:1"]}, rpo: 4h}
`

func (l *told) screen(lang string) *screen {
	l.t.Helper()
	r, err := newRenderer()
	require.NoError(l.t, err)
	return r.screen(l.view(), request{lang: lang, page: 1})
}

// Of what nobody knows nobody may say that it is well.
func TestUnknownIsNotWell(t *testing.T) {
	l := newTold(t, two)
	require.Equal(t, [good + 1]int{unknown: 2}, l.view().counts)
	assert.Equal(t, "unknown", l.screen(english).Level())
	assert.Equal(t, "? Nothing is known to be red; 2 not known – Lifeboat Beijing", l.screen(english).PageTitle())
	assert.Equal(t, "没有已知的告急；2 项未知", l.screen(chinese).Verdict())
	l.committed("a", time.Hour) // and was never proven
	require.Equal(t, [good + 1]int{amber: 1, unknown: 1}, l.view().counts)
	assert.Equal(t, "unknown", l.screen(english).Level())
	l.committed("b", time.Hour)
	assert.Equal(t, "amber", l.screen(english).Level())
	l.proven("a", time.Hour)
	l.proven("b", time.Hour)
	assert.Equal(t, "All is well", l.screen(english).Verdict())
}

// What was not read of the audit log may say otherwise.
func TestNothingIsWellBeforeTheAuditLogIsRead(t *testing.T) {
	l := newTold(t, two)
	for _, name := range []string{"a", "b"} {
		l.committed(name, time.Hour)
		l.proven(name, time.Hour)
	}
	l.f.caughtUp, l.f.troubles["dead letters"] = false, "denied"
	assert.Equal(t, [good + 1]int{unknown: 2}, l.view().counts)
	l.f.caughtUp = true
	assert.Equal(t, [good + 1]int{good: 2}, l.view().counts)
	l.f.trouble(auditLog, errors.New("denied"))
	assert.Equal(t, [good + 1]int{unknown: 2}, l.view().counts)
}

// A job whose worker is gone does not run, whatever its claim says.
func TestAJobWhoseWorkerDoesNotAnswer(t *testing.T) {
	l := newTold(t, two)
	since := threeAM().Add(-time.Minute)
	l.f.jobs = []ops.Job{{ID: "1", Work: config.WorkSnapshot, Target: "a", State: "running", Worker: "w1", Attempt: 1, Since: &since, StoredAt: since}}
	level := func() (level, state string) {
		row := l.screen(english).Jobs()[0]
		return row.Level, row.State
	}
	asked := func(at time.Time, err error, actors ...string) {
		all := make([]bus.WorkerInfo, 0, len(actors))
		for _, a := range actors {
			all = append(all, bus.WorkerInfo{Actor: a, Roles: []string{"snapshot"}})
		}
		l.f.crew, l.f.crewAt = ops.NewCrew(all, err), at
	}
	asked(threeAM(), nil, "w2")
	of, state := level()
	assert.Equal(t, "red", of)
	assert.Equal(t, "its worker does not answer", state)
	assert.Equal(t, "其 worker 没有应答", l.screen(chinese).Jobs()[0].State)
	for what, ask := range map[string]func(){
		"it answers":                           func() { asked(threeAM(), nil, "w2", "w1") },
		"nobody could be asked":                func() { asked(threeAM(), errors.New("denied")) },
		"they were asked before the job began": func() { asked(since.Add(-time.Second), nil, "w2") },
	} {
		ask()
		of, state = level()
		assert.Equal(t, "good", of, what)
		assert.Equal(t, "running", state, what)
	}
}

// fewAtATime is a stream of dead letters of which one question gets a few.
type fewAtATime struct {
	reader
	letters, few int
}

func (r *fewAtATime) Subjects(context.Context, string, string) (map[string]uint64, error) {
	return map[string]uint64{"lifeboat.dead.test": uint64(r.letters)}, nil
}

func (r *fewAtATime) ScanFrom(_ context.Context, _, _ string, from uint64, each func(*bus.Message) error) error {
	for i := range r.few {
		seq := from + uint64(i)
		if seq > uint64(r.letters) {
			return nil
		}
		b, err := protojson.Marshal(&lifeboatv1.DeadLetter{Id: fmt.Sprint(seq)})
		if err != nil {
			return err
		}
		if err = each(&bus.Message{Subject: "lifeboat.dead.test", Seq: seq, Data: b, Stored: threeAM().Add(time.Duration(seq) * time.Second)}); err != nil {
			return err
		}
	}
	return context.DeadlineExceeded
}

// More dead letters than one question has time for are read by several.
func TestManyDeadLettersAreReadBySeveralQuestions(t *testing.T) {
	f, b := newFleet(), &fewAtATime{letters: 250, few: 100}
	var r letterReader
	require.ErrorIs(t, r.read(t.Context(), b, f), context.DeadlineExceeded)
	require.ErrorIs(t, r.read(t.Context(), b, f), context.DeadlineExceeded)
	require.NoError(t, r.read(t.Context(), b, f))
	assert.Equal(t, uint64(250), f.dead.total)
	require.Len(t, f.dead.newest, maxLetters)
	assert.Equal(t, "250", f.dead.newest[0].id)
	assert.Equal(t, "151", f.dead.newest[maxLetters-1].id)
}

// hubOf is a hub of a told fleet, with a clock of its own.
func hubOf(t *testing.T, l *told, now func() time.Time) (*hub, *server) {
	t.Helper()
	render, err := newRenderer()
	require.NoError(t, err)
	h := newHub(l.f, func() *config.Config { return l.cfg }, "lifeboat.yaml", render, now, newMetrics(newRegistry(), l.f, now))
	s, err := newServer(h, render, discard())
	require.NoError(t, err)
	return h, s
}

// Who comes back to an open page when nobody looked meanwhile is shown how it is, and not how it was.
func TestTheFirstViewerSeesWhatIsNow(t *testing.T) {
	l := newTold(t, two)
	l.committed("a", time.Hour)
	now := threeAM()
	h, s := hubOf(t, l, func() time.Time { return now })
	_, v, err := h.parts(request{lang: english, page: 1})
	require.NoError(t, err)
	require.Empty(t, v.problems)
	l.hear(0, &lifeboatv1.Event{Noun: "snapshot", Verb: "failed", Target: "a"})
	now = now.Add(time.Hour)

	ctx, cancel := context.WithCancel(t.Context())
	l2 := &lab{t: t, Addresses: Addresses{Page: serveOn(ctx, t, s.handler())}}
	events := l2.stream("?lang=en")
	defer cancel()
	until(t, events, "The last snapshot of a failed")
	until(t, events, `"at":"04:00:00"`)
	// Without a newer view the time stays that of what is shown.
	h.mu.Lock()
	now = now.Add(time.Minute)
	for c := range h.viewers {
		c <- struct{}{}
	}
	h.mu.Unlock()
	until(t, events, `"at":"04:00:00"`)
}

// Who does not take an answer does not hold a connection for ever; an open page stays open for as long as it takes what it is sent.
func TestAnswersHaveATime(t *testing.T) {
	l := newTold(t, two)
	h, s := hubOf(t, l, time.Now)
	ctx, cancel := context.WithCancel(t.Context())
	srv := httpServer(ctx, s.handler())
	require.Positive(t, srv.WriteTimeout)
	srv.WriteTimeout = 100 * time.Millisecond
	var lc net.ListenConfig
	ln, err := lc.Listen(ctx, "tcp", "127.0.0.1:0")
	require.NoError(t, err)
	var wg sync.WaitGroup
	wg.Go(func() { assert.ErrorIs(t, srv.Serve(ln), http.ErrServerClosed) })
	wg.Go(func() { assert.NoError(t, h.run(ctx)) })
	t.Cleanup(func() { cancel(); assert.NoError(t, srv.Close()); wg.Wait() })
	l2 := &lab{t: t, Addresses: Addresses{Page: ln.Addr().String()}}
	events := l2.stream("?lang=en")
	until(t, events, "event: now")
	<-time.After(3 * srv.WriteTimeout)
	l.hear(0, &lifeboatv1.Event{Noun: "snapshot", Verb: "failed", Target: "a"})
	h.changed()
	until(t, events, "The last snapshot of a failed")

	// 64 MiB are more than the sockets hold.
	failed := make(chan error, 1)
	slow := httpServer(ctx, http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		_, wrong := io.Copy(w, strings.NewReader(strings.Repeat("x", 64<<20)))
		failed <- wrong
	}))
	slow.WriteTimeout = srv.WriteTimeout
	lazy, err := lc.Listen(ctx, "tcp", "127.0.0.1:0")
	require.NoError(t, err)
	wg.Go(func() { assert.ErrorIs(t, slow.Serve(lazy), http.ErrServerClosed) })
	t.Cleanup(func() { assert.NoError(t, slow.Close()) })
	var d net.Dialer
	conn, err := d.DialContext(ctx, "tcp", lazy.Addr().String())
	require.NoError(t, err)
	defer conn.Close()
	_, err = io.WriteString(conn, "GET / HTTP/1.1\r\nHost: x\r\n\r\n")
	require.NoError(t, err)
	select {
	case err = <-failed:
		require.Error(t, err)
	case <-time.After(patience):
		require.Fail(t, "it still waits for who does not read")
	}
}

// queues is a stream of deliveries that wait.
type queues struct {
	reader
	waiting map[string]uint64
}

func (q *queues) Subjects(context.Context, string, string) (map[string]uint64, error) {
	return q.waiting, nil
}

// A chat that is dead, or no notifier: what waits and does not become less is red after ten minutes, and not before.
func TestDeliveriesThatAreStuck(t *testing.T) {
	l, q, at := newTold(t, two), &queues{}, threeAM().Add(-time.Hour)
	for _, name := range []string{"a", "b"} {
		l.committed(name, time.Hour)
		l.proven(name, time.Hour)
	}
	w := &watcher{bus: q, fleet: l.f, now: func() time.Time { return at }}
	wait := func(ago time.Duration, slack, critical uint64) {
		at, q.waiting = threeAM().Add(-ago), map[string]uint64{}
		for subject, n := range map[string]uint64{bus.DeliverySubject("ops-slack"): slack, bus.CriticalSubject("ops-slack"): critical} {
			if n > 0 {
				q.waiting[subject] = n
			}
		}
		require.NoError(t, w.readWaiting(t.Context()))
	}
	wait(20*time.Minute, 100, 1)
	wait(11*time.Minute, 50, 1) // some were told
	wait(9*time.Minute, 90, 1)
	require.Len(t, l.view().problems, 1)
	p := l.view().problems[0]
	assert.Equal(t, "91 deliveries wait for ops-slack, and none gets through", l.screen(english).Problems()[0].Lines[0].Text)
	assert.Equal(t, red, p.level)
	assert.Equal(t, threeAM().Add(-11*time.Minute), p.since)
	assert.Equal(t, "lifeboat notify deliveries --receiver ops-slack", p.command)
	assert.Equal(t, "https://runbooks.example.com/lifeboat-deliveries-stuck.md", l.screen(english).Problems()[0].Lines[0].Runbook)
	assert.Equal(t, "1 项告急", l.screen(chinese).Verdict())
	wait(5*time.Minute, 89, 1)
	assert.Equal(t, "All is well", l.screen(english).Verdict(), "some are told again")
	wait(4*time.Minute, 0, 0)
	wait(3*time.Minute, 2, 0)
	assert.Equal(t, threeAM().Add(-3*time.Minute), l.f.waiting.since["ops-slack"], "an empty queue begins anew")
}

// What was well long ago is to be watched: a proof after two drills and the rpo, a snapshot without an rpo after two ticks and an hour.
func TestWhatWasWellLongAgo(t *testing.T) {
	l := newTold(t, `  - {name: a, etcd: {endpoints: ["http://127.0.0.1:1"]}, rpo: 4h, drill: {schedule: "@every 24h"}}
  - {name: b, etcd: {endpoints: ["http://127.0.0.1:1"]}, schedule: "@every 2h"}
  - {name: c, etcd: {endpoints: ["http://127.0.0.1:1"]}}
`)
	levels := func() map[string]string {
		all := map[string]string{}
		for _, v := range l.view().targets {
			all[v.name] = v.level.String()
			for _, n := range v.notes {
				all[v.name] += " " + n.alert
			}
		}
		return all
	}
	l.committed("a", time.Hour)
	l.proven("a", 50*time.Hour) // of data of an hour and two minutes before
	l.committed("b", 4*time.Hour+50*time.Minute)
	l.proven("b", 10000*time.Hour) // no drill is due
	l.committed("c", 10000*time.Hour)
	l.proven("c", 10000*time.Hour)
	assert.Equal(t, map[string]string{"a": "good", "b": "good", "c": "good"}, levels())
	l.proven("a", 51*time.Hour)
	l.committed("b", 5*time.Hour+time.Minute)
	assert.Equal(t, map[string]string{"a": "amber LifeboatNothingProven", "b": "amber LifeboatWorkOverdue", "c": "good"}, levels())
	l.cfg.Targets[1].Paused = true
	assert.Equal(t, "amber ", levels()["b"], "it is meant so, and said")
}

// The audit log is not for ever: the page says no more than what it has.
func TestWhatIsNotInTheAuditLog(t *testing.T) {
	l := newTold(t, two)
	l.committed("a", time.Hour)
	for lang, want := range map[string][2]string{
		english: {"none in the audit log", "The audit log has no drill that proves that a restores"},
		chinese: {"审计日志中没有", "审计日志中没有演练证明 a 可以恢复"},
	} {
		row := l.screen(lang).Rows()[0]
		assert.Equal(t, want, [2]string{row.Proof.None, row.Why})
	}
}

// A canary that was taken out never arrives again, and is nobody's trouble.
func TestACanaryThatWasTakenOut(t *testing.T) {
	l := newTold(t, two)
	l.cfg.Notifier.Receivers = []config.Receiver{{Name: "ops", Canary: config.Canary{Schedule: "@daily"}}, {Name: "web"}}
	for _, receiver := range []string{"ops", "web", "left"} {
		l.hear(30*24*time.Hour, &lifeboatv1.Event{Noun: "canary", Verb: "late", Target: receiver})
	}
	require.Len(t, l.view().problems, 1)
	assert.Equal(t, "The canary of receiver ops did not arrive", l.screen(english).Problems()[0].Lines[0].Text)
	l.cfg.Notifier.Receivers[0].Canary = config.Canary{}
	assert.Empty(t, l.view().problems)
}

// A configuration without targets is one in which nothing is backed up: a key that was misspelt, or a file that was cut.
func TestNoTargetIsNotWell(t *testing.T) {
	l := newTold(t, two)
	l.cfg.Targets = nil
	s := l.screen(english)
	assert.Equal(t, "unknown", s.Level())
	assert.Equal(t, "? No target is watched – Lifeboat Beijing", s.PageTitle())
	assert.Equal(t, "没有任何目标受到监视", l.screen(chinese).Verdict())
	l.f.caughtUp, l.f.answered = false, time.Time{}
	assert.Equal(t, "Reading what there is…", l.screen(english).Verdict())
	l.f.troubles["workers"] = "denied"
	assert.Equal(t, "red", l.screen(english).Level())
}
