package app

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"
	"github.com/prometheus/client_golang/prometheus"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/lifeboat-fleet/lifeboat/fleet/bus"
	"github.com/lifeboat-fleet/lifeboat/fleet/config"
	"github.com/lifeboat-fleet/lifeboat/fleet/fleettest/natstest"
	"github.com/lifeboat-fleet/lifeboat/fleet/service"
	lifeboatv1 "github.com/lifeboat-fleet/lifeboat/proto/lifeboat/v1"
)

// jobs is NATS with a worker that does as it is told.
type jobs struct {
	t   *testing.T
	dir string
	url string
	bus *bus.Bus
}

func newJobs(t *testing.T) *jobs {
	t.Helper()
	server := natstest.New(t)
	j := &jobs{t: t, dir: t.TempDir(), url: server.URL()}
	yaml := fmt.Sprintf("nats: {url: %q}\nstore: {bucket: none}\ntargets:\n  - name: etcd-prod\n    etcd: {endpoints: [\"http://127.0.0.1:1\"]}\n"+
		"    drill: {escrow: {identity_file: escrow.key}}\n", server.URL())
	require.NoError(t, os.WriteFile(filepath.Join(j.dir, "lifeboat.yaml"), []byte(yaml), 0o600))
	b, err := bus.Connect(bus.Options{
		Config: config.NATS{URL: server.URL()}, Actor: "worker", Logger: slog.New(slog.DiscardHandler), Registerer: prometheus.NewRegistry(),
	})
	require.NoError(t, err)
	t.Cleanup(func() { assert.NoError(t, b.Close()) })
	require.NoError(t, b.EnsureStreams(t.Context()))
	j.bus = b
	return j
}

// work takes the jobs of one kind until the test ends.
func (j *jobs) work(work config.Work, handle bus.Handler) {
	j.t.Helper()
	ctx, cancel := context.WithCancel(j.t.Context())
	var wg sync.WaitGroup
	wg.Go(func() {
		assert.NoError(j.t, j.bus.Consume(ctx, bus.Consumer{
			Stream: bus.StreamJobs, Durable: "w", Filter: bus.AllJobs(work), AckWait: 2 * time.Second, MaxAttempts: 2,
			Backoff: func(int64) time.Duration { return time.Millisecond }, Handle: handle,
			OnDead: func(ctx context.Context, m *bus.Message, failed error) error {
				return j.bus.Emit(ctx, event(m, string(work), "failed", failed.Error()))
			},
		}))
	})
	j.t.Cleanup(func() { cancel(); wg.Wait() })
}

func event(m *bus.Message, noun, verb, message string) *lifeboatv1.Event {
	return &lifeboatv1.Event{
		Id: noun + "." + verb + "." + m.ID(), Noun: noun, Verb: verb, Target: "etcd-prod", JobId: m.ID(), Message: message,
	}
}

func (j *jobs) lifeboat(args ...string) (stdout, stderr string, code int) {
	j.t.Helper()
	return (&lab{dir: j.dir}).lifeboat(j.t, args...)
}

func TestRunWaitsForTheOutcomeOfItsOwnJob(t *testing.T) {
	j := newJobs(t)
	// Outcomes of earlier jobs, which are not to be taken for this one's.
	old := &bus.Message{Subject: "lifeboat.job.snapshot.etcd-prod", Seq: 1, Stored: time.Now().Add(-time.Hour)}
	require.NoError(t, j.bus.Emit(t.Context(), event(old, "snapshot", "failed", "an old failure")))
	require.NoError(t, j.bus.Emit(t.Context(), event(old, "snapshot", "committed", "an old success")))
	var by string
	j.work(config.WorkSnapshot, func(ctx context.Context, m *bus.Message) error {
		job := &lifeboatv1.Job{}
		if err := bus.DecodeStrict(m.Data, job); err != nil {
			return err
		}
		by = job.GetRequestedBy()
		e := event(m, "snapshot", "interrupted", "the source went away")
		return errors.Join(j.bus.Emit(ctx, e), j.bus.Emit(ctx, event(m, "snapshot", "committed", "42 keys")))
	})
	out, errs, code := j.lifeboat("snapshot", "run", "etcd-prod", "--wait")
	assert.Zero(t, code)
	assert.Equal(t, "snapshot.committed: 42 keys\n", out)
	assert.NotContains(t, errs, "an old")
	assert.True(t, strings.HasPrefix(by, "cli "), by)
}

// In a cluster the replica that is asked for the job may not have it yet. Such a job was taken for one that had ended, unseen.
func TestRunWaitsForAJobThatAReplicaDidNotHaveYet(t *testing.T) {
	j := newJobs(t)
	subject := bus.JobSubject(config.WorkSnapshot, "etcd-prod")
	seq, err := j.bus.Publish(t.Context(), bus.Outgoing{Subject: subject, Message: &lifeboatv1.Job{}})
	require.NoError(t, err)
	w := &waiter{bus: j.bus, work: config.WorkSnapshot, target: "etcd-prod", progress: io.Discard, seq: seq} // not identified
	ended := make(chan struct{})
	var text string
	go func() {
		defer close(ended)
		text, err = w.outcome(t.Context())
	}()
	select {
	case <-ended:
		require.Fail(t, "it did not wait", "%q %v", text, err)
	case <-time.After(500 * time.Millisecond):
	}
	j.work(config.WorkSnapshot, func(ctx context.Context, m *bus.Message) error {
		return j.bus.Emit(ctx, event(m, "snapshot", "committed", "42 keys"))
	})
	select {
	case <-ended:
	case <-time.After(time.Minute):
		require.Fail(t, "it waits on")
	}
	require.NoError(t, err)
	assert.Equal(t, "snapshot.committed: 42 keys", text)
}

// The acknowledgement names the job's sequence, which ends its id; the rest is asked for. A job that is quicker than that question
// is found in the audit log.
// said is closed by the first word of progress.
type said chan struct{}

func (s said) Write(b []byte) (int, error) {
	select {
	case <-s:
	default:
		close(s)
	}
	return len(b), nil
}

// Right after a server of a cluster was lost its streams have no leader, and nobody answers: as here, where there is no stream yet.
func TestRunWaitsForALeader(t *testing.T) {
	j := newJobs(t)
	nc, err := nats.Connect(j.url)
	require.NoError(t, err)
	t.Cleanup(nc.Close)
	js, err := jetstream.New(nc)
	require.NoError(t, err)
	require.NoError(t, js.DeleteStream(t.Context(), bus.StreamJobs))
	p := &publisher{bus: j.bus, progress: make(said), where: j.url}
	done := make(chan error, 1)
	go func() {
		_, failed := p.publish(t.Context(), config.WorkSnapshot, "etcd-prod", &lifeboatv1.Job{})
		done <- failed
	}()
	<-p.progress.(said) //nolint:errcheck,forcetypeassert // it is what was put there
	require.NoError(t, j.bus.EnsureStreams(t.Context()))
	require.NoError(t, <-done)
}

func TestRunTellsTheJobsID(t *testing.T) {
	for _, wait := range []bool{false, true} {
		for _, quick := range []bool{false, true} {
			t.Run(fmt.Sprintf("wait %t quick %t", wait, quick), func(t *testing.T) {
				j := newJobs(t)
				// What went before, also a drill whose sequence ends alike.
				old := &bus.Message{Subject: "lifeboat.job.drill.etcd-prod", Seq: 11, Stored: time.Now().Add(-time.Hour)}
				require.NoError(t, j.bus.Emit(t.Context(), event(old, "drill", "passed", "an old drill")))
				ids, jobs := make(chan string, 1), make(chan *lifeboatv1.Job, 1)
				release := make(chan struct{})
				if quick {
					close(release)
				}
				j.work(config.WorkDrill, func(ctx context.Context, m *bus.Message) error {
					job := &lifeboatv1.Job{}
					if err := bus.DecodeStrict(m.Data, job); err != nil {
						return err
					}
					ids <- m.ID()
					jobs <- job
					<-release
					return j.bus.Emit(ctx, event(m, "drill", "escrow-passed", "42 keys"))
				})
				args := []string{"drill", "run", "etcd-prod", "--snapshot", "oldest", "--identity", "escrow"}
				if wait {
					args = append(args, "--wait")
				}
				var out, errs string
				var code int
				var wg sync.WaitGroup
				wg.Go(func() { out, errs, code = j.lifeboat(args...) })
				id, job := <-ids, <-jobs
				if !quick && !wait {
					wg.Wait() // it does not wait for the job
				}
				if !quick {
					close(release)
				}
				wg.Wait()
				assert.Zero(t, code, errs)
				assert.Equal(t, "oldest", job.GetSnapshot())
				assert.Equal(t, "escrow", job.GetIdentity())
				if wait {
					assert.Equal(t, "drill.escrow-passed: 42 keys\n", out)
					assert.Contains(t, errs, id[strings.LastIndex(id, "-")+1:])
				} else {
					assert.Equal(t, id+"\n", out)
					assert.Contains(t, errs, "lifeboat drill show etcd-prod "+id)
				}
			})
		}
	}
}

func TestRunWithWaitFailsWhenTheJobFails(t *testing.T) {
	for work, args := range map[config.Work][]string{
		config.WorkSnapshot: {"snapshot", "run"}, config.WorkDrill: {"drill", "run"}, config.WorkPrune: {"prune"},
	} {
		t.Run(string(work), func(t *testing.T) {
			j := newJobs(t)
			j.work(work, func(context.Context, *bus.Message) error { return bus.Terminal("x", errors.New("the disk is full")) })
			_, errs, code := j.lifeboat(append(args, "etcd-prod", "--wait")...)
			assert.Equal(t, service.ExitFailed, code)
			assert.Contains(t, errs, string(work)+".failed: the disk is full")
		})
	}
}

// A job that somebody cancels has ended for whoever waits for it; a job of another kind that is cancelled meanwhile has nothing to do with
// it.
func TestRunWithWaitEndsWhenTheJobIsCancelled(t *testing.T) {
	j := newJobs(t)
	began := make(chan struct{})
	j.work(config.WorkSnapshot, func(ctx context.Context, m *bus.Message) error {
		other := event(&bus.Message{Seq: m.Seq + 1, Stored: m.Stored.Add(time.Second)}, "job", "cancelled", "the drill was cancelled")
		other.Attributes = map[string]string{"work": "drill"}
		own := event(m, "job", "handed-back", "the worker stops")
		own.Attributes = map[string]string{"work": "snapshot"}
		defer close(began)
		return errors.Join(j.bus.Emit(ctx, other), j.bus.Emit(ctx, own), bus.ErrCancelled)
	})
	var errs string
	var code int
	var wg sync.WaitGroup
	wg.Go(func() { _, errs, code = j.lifeboat("snapshot", "run", "etcd-prod", "--wait", "--timeout", "20s") })
	<-began
	e := event(&bus.Message{Seq: 1, Stored: time.Now()}, "job", "cancelled", "cancelled by somebody")
	last := &lifeboatv1.Event{}
	_, _, err := j.bus.Last(t.Context(), bus.StreamEvents, "lifeboat.event.job.handed-back.etcd-prod", last)
	require.NoError(t, err)
	e.Id, e.JobId, e.Attributes = "job.cancelled."+last.GetJobId(), last.GetJobId(), map[string]string{"work": "snapshot"}
	require.NoError(t, j.bus.Emit(t.Context(), e))
	wg.Wait()
	assert.Equal(t, service.ExitFailed, code)
	assert.Contains(t, errs, "job.cancelled: cancelled by somebody")
	assert.NotContains(t, errs, "the drill was cancelled")
}

func TestPruneThatIsHeldIsToldAsSuch(t *testing.T) {
	j := newJobs(t)
	j.work(config.WorkPrune, func(ctx context.Context, m *bus.Message) error {
		return j.bus.Emit(ctx, event(m, "prune", "held", "the newest snapshot shrank"))
	})
	out, _, code := j.lifeboat("prune", "etcd-prod", "--wait")
	assert.Zero(t, code)
	assert.Equal(t, "prune.held: the newest snapshot shrank\n", out)
}

func TestRunWithoutAWorker(t *testing.T) {
	j := newJobs(t)
	_, errs, code := j.lifeboat("snapshot", "run", "etcd-prod", "--wait", "--timeout", "300ms")
	assert.Equal(t, service.ExitFailed, code)
	assert.Contains(t, errs, "no outcome within 300ms")
	_, errs, code = j.lifeboat("snapshot", "run", "etcd-prod")
	assert.Equal(t, service.ExitFailed, code)
	assert.Contains(t, errs, "already waiting or running")
	assert.Contains(t, errs, "nats sub")
}
