package app

import (
	"bytes"
	"context"
	"fmt"
	"log/slog"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	clientv3 "go.etcd.io/etcd/client/v3"

	"github.com/lifeboat-fleet/lifeboat/fleet/bus"
	"github.com/lifeboat-fleet/lifeboat/fleet/config"
	"github.com/lifeboat-fleet/lifeboat/fleet/fleettest/bintest"
	"github.com/lifeboat-fleet/lifeboat/fleet/fleettest/etcdtest"
	"github.com/lifeboat-fleet/lifeboat/fleet/fleettest/natstest"
	"github.com/lifeboat-fleet/lifeboat/fleet/fleettest/s3test"
	lifeboatv1 "github.com/lifeboat-fleet/lifeboat/proto/lifeboat/v1"
	"github.com/lifeboat-fleet/lifeboat/services/backup/internal/worker"
)

// yard is what workers in processes of their own need: NATS, a bucket, and an etcd that all targets are.
type yard struct {
	*lab
	t    *testing.T
	bus  *bus.Bus
	url  string
	etcd *etcdtest.Server
	gate *barrier
	// names are the targets; fleet is what stands under workers.fleet_concurrency.
	names []string
	fleet string
	// away are targets at whose address nobody listens.
	away []string
}

func newYard(t *testing.T, names ...string) *yard {
	t.Helper()
	nats := natstest.New(t)
	y := &yard{lab: labFor(t), t: t, url: nats.URL(), etcd: etcdtest.New(t, t.TempDir()), gate: newBarrier(), names: names}
	client, err := clientv3.New(clientv3.Config{Endpoints: []string{y.etcd.Endpoint}})
	require.NoError(t, err)
	_, err = client.Put(t.Context(), "/registry/a", strings.Repeat("x", 2000))
	require.NoError(t, err)
	require.NoError(t, client.Close())
	y.bus, err = bus.Connect(bus.Options{
		Config: config.NATS{URL: y.url}, Actor: "test", Logger: slog.New(slog.DiscardHandler), Registerer: prometheus.NewRegistry(),
	})
	require.NoError(t, err)
	t.Cleanup(func() { assert.NoError(t, y.bus.Close()) })
	require.NoError(t, y.bus.EnsureStreams(t.Context()))
	return y
}

// barrier holds up snapshots under way, and counts them.
type barrier struct {
	mu      sync.Mutex
	held    int
	release chan struct{}
}

func newBarrier() *barrier { return &barrier{release: make(chan struct{})} }

// fault waits for the barrier when a snapshot's data is about to be stored: the source's stream is open then. It is a request without
// a body, because only of such a one the server notices that the client has gone.
func (g *barrier) fault(r *http.Request) s3test.Fault {
	if r.Method != http.MethodHead || !strings.Contains(s3test.Key(r), "/data.") {
		return s3test.Pass()
	}
	g.count(1)
	defer g.count(-1)
	select {
	case <-g.release:
		return s3test.Pass()
	case <-r.Context().Done():
		return s3test.ResetBefore()
	}
}

func (g *barrier) count(n int) {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.held += n
}

func (g *barrier) now() int {
	g.mu.Lock()
	defer g.mu.Unlock()
	return g.held
}

// uploading waits until so many snapshots are at the gate.
func (g *barrier) uploading(t *testing.T, n int) {
	t.Helper()
	require.Eventually(t, func() bool { return g.now() == n }, 60*time.Second, 5*time.Millisecond, "%d snapshots are to be under way", n)
}

// hired is a worker in a process of its own.
type hired struct {
	*bintest.Process
	t   *testing.T
	log string
	// gate is where its uploads are held up; nil when they are not.
	gate *barrier
}

// hire starts a worker whose uploads wait at a gate of its own, or go straight to the bucket when that is nil.
func (y *yard) hire(g *barrier, args ...string) *hired {
	y.t.Helper()
	dir := y.t.TempDir()
	cfg := y.server.Config
	if g != nil {
		p := s3test.NewProxy(y.t, y.server)
		p.Handle(g.fault)
		cfg = p.Config
	}
	yaml := fmt.Sprintf("nats: {url: %q}\nstore: {bucket: %s, prefix: %s, endpoint: %q, region: %s, path_style: true, "+
		"access_key_id_file: %s, secret_access_key_file: %s}\nworkers: {fleet_concurrency: {%s}}\ntargets:\n", y.url, cfg.Bucket, y.prefix,
		cfg.Endpoint, cfg.Region, cfg.AccessKeyIDFile, cfg.SecretAccessKeyFile, y.fleet)
	for _, name := range y.names {
		yaml += fmt.Sprintf("  - {name: %s, etcd: {endpoints: [%q]}}\n", name, y.etcd.Endpoint)
	}
	for _, name := range y.away {
		yaml += fmt.Sprintf("  - {name: %s, etcd: {endpoints: ['http://127.0.0.1:1']}}\n", name)
	}
	file := filepath.Join(dir, "lifeboat.yaml")
	require.NoError(y.t, os.WriteFile(file, []byte(yaml), 0o600))
	program, err := exec.LookPath("lifeboat")
	require.NoError(y.t, err)
	h := &hired{t: y.t, log: filepath.Join(dir, "log"), gate: g}
	h.Process, err = bintest.Start(program, h.log, nil, append([]string{
		"lifeboat-backup", "--config", file, "--http-addr", "127.0.0.1:0", "--scratch-dir", filepath.Join(dir, "scratch"),
	}, args...)...)
	require.NoError(y.t, err)
	y.t.Cleanup(func() {
		assert.NoError(y.t, h.Kill())
		if y.t.Failed() {
			y.t.Logf("%s:\n%s", h.log, h.said())
		}
	})
	return h
}

func (h *hired) said() string {
	b, err := os.ReadFile(h.log)
	require.NoError(h.t, err)
	return string(b)
}

// term asks the worker to end.
func (h *hired) term() {
	h.t.Helper()
	require.NoError(h.t, h.Signal(syscall.SIGTERM))
}

// ended waits until the worker has ended by itself.
func (h *hired) ended(within time.Duration) {
	h.t.Helper()
	select {
	case <-h.Done():
	case <-time.After(within):
		require.Fail(h.t, "the worker goes on", "after %s:\n%s", within, h.said())
	}
}

// counts are the numbers of the line with which a worker ends.
func (h *hired) counts() string {
	for line := range bytes.Lines([]byte(h.said())) {
		if i := bytes.Index(line, []byte(`"finished"`)); i >= 0 {
			return strings.TrimSpace(string(line[i:]))
		}
	}
	return ""
}

func (y *yard) publish(name string) {
	y.t.Helper()
	_, err := y.bus.Publish(y.t.Context(), bus.Outgoing{Subject: bus.JobSubject(config.WorkSnapshot, name), Message: &lifeboatv1.Job{}})
	require.NoError(y.t, err)
}

// event waits for the newest event of a kind about the first target.
func (y *yard) event(noun, verb string, within time.Duration) *lifeboatv1.Event {
	y.t.Helper()
	e := &lifeboatv1.Event{}
	require.Eventually(y.t, func() bool {
		seq, _, err := y.bus.Last(y.t.Context(), bus.StreamEvents, bus.EventSubject(noun, verb, y.names[0]), e)
		return err == nil && seq > 0
	}, within, 20*time.Millisecond, "no event %s.%s", noun, verb)
	return e
}

// have is how many messages a stream holds of a subject.
func (y *yard) have(stream, subject string) (n int) {
	y.t.Helper()
	all, err := y.bus.Subjects(y.t.Context(), stream, subject)
	require.NoError(y.t, err)
	for _, count := range all {
		n += int(count)
	}
	return n
}

// good checks that the target has one snapshot, and that it is whole.
func (y *yard) good(name string) {
	y.t.Helper()
	all, err := y.catalog.List(y.t.Context(), name)
	require.NoError(y.t, err)
	require.Len(y.t, all, 1)
	_, err = worker.VerifySnapshot(y.t.Context(), y.objects, all[0].Manifest, nil, nil)
	require.NoError(y.t, err)
	require.Eventually(y.t, func() bool { return y.have(bus.StreamJobs, bus.JobSubject(config.WorkSnapshot, name)) == 0 },
		time.Minute, 20*time.Millisecond, "the job is left")
}

// A worker that is asked to end takes no more jobs, and finishes those that fit into the grace period.
func TestAWorkerFinishesWhatFitsItsGrace(t *testing.T) {
	y := newYard(t, "one", "two")
	h := y.hire(y.gate, "--grace", "1m", "--concurrency", "1", "--roles", "snapshot")
	y.publish("one")
	y.gate.uploading(t, 1)
	y.publish("two")
	h.term()
	require.Eventually(t, func() bool { return strings.Contains(h.said(), "no more jobs are taken") }, time.Minute, 10*time.Millisecond)
	close(y.gate.release)
	h.ended(20 * time.Second)
	y.event("snapshot", "committed", time.Second)
	y.good("one")
	assert.Equal(t, `"finished":1,"failed":0,"handed_back":0}`, h.counts())
	assert.Zero(t, y.have(bus.StreamEvents, bus.EventSubject("job", "handed-back", "*")))
	assert.Zero(t, y.have(bus.StreamEvents, bus.EventSubject("snapshot", "started", "two")), "it takes no more")
}

// What does not fit is handed back at once, named in the log, and done by another worker long before AckWait. It is the same attempt.
func TestAWorkerHandsBackWhatDoesNotFitItsGrace(t *testing.T) {
	y := newYard(t, "one")
	h := y.hire(y.gate, "--grace", "300ms", "--ack-wait", "10m", "--roles", "snapshot")
	y.publish("one")
	y.gate.uploading(t, 1)
	began := time.Now()
	h.term()
	h.ended(20 * time.Second)
	assert.Greater(t, time.Since(began), 300*time.Millisecond)
	e := y.event("job", "handed-back", time.Second)
	assert.Contains(t, e.GetAttributes()["why"], bus.ErrStopping.Error())
	assert.Equal(t, "1", e.GetAttributes()["attempt"])
	assert.Equal(t, `"finished":0,"failed":0,"handed_back":1}`, h.counts())
	assert.Contains(t, h.said(), fmt.Sprintf(`"target":"one","job_id":%q`, e.GetJobId()))

	y.hire(nil, "--ack-wait", "10m", "--roles", "snapshot")
	e = y.event("snapshot", "committed", 30*time.Second)
	assert.Equal(t, "1", e.GetAttributes()["attempt"], "it is the same attempt")
	y.good("one")
	assert.Zero(t, y.have(bus.StreamEvents, bus.EventSubject("snapshot", "interrupted", "*")))
}

// However often a job is handed back, it is no dead letter. One whose worker is killed each time is one after the last attempt, and
// the subject is free again.
func TestOnlyAttemptsThatBeganAndDiedCount(t *testing.T) {
	y := newYard(t, "one")
	y.publish("one")
	for range maxAttempts + 2 {
		h := y.hire(y.gate, "--grace", "0s", "--ack-wait", "10m", "--roles", "snapshot")
		y.gate.uploading(t, 1)
		h.term()
		h.ended(20 * time.Second)
		y.gate.uploading(t, 0)
	}
	assert.Equal(t, maxAttempts+2, y.have(bus.StreamEvents, bus.EventSubject("job", "handed-back", "one")))
	assert.Zero(t, y.have(bus.StreamDead, "lifeboat.dead.>"))

	for range maxAttempts {
		h := y.hire(y.gate, "--ack-wait", "2s", "--roles", "snapshot")
		y.gate.uploading(t, 1)
		require.NoError(t, h.Kill())
		y.gate.uploading(t, 0)
	}
	y.hire(y.gate, "--ack-wait", "2s", "--roles", "snapshot")
	e := y.event("snapshot", "failed", 30*time.Second)
	assert.Equal(t, fmt.Sprint(maxAttempts), e.GetAttributes()["attempts"])
	d := &lifeboatv1.DeadLetter{}
	_, _, err := y.bus.Last(t.Context(), bus.StreamDead, "lifeboat.dead.job.snapshot.one", d)
	require.NoError(t, err)
	assert.Equal(t, int64(maxAttempts), d.GetAttempts())
	close(y.gate.release)
	require.Eventually(t, func() bool {
		_, err := y.bus.Publish(t.Context(), bus.Outgoing{Subject: bus.JobSubject(config.WorkSnapshot, "one"), Message: &lifeboatv1.Job{}})
		return err == nil
	}, time.Minute, 20*time.Millisecond, "the subject is free again")
	y.event("snapshot", "committed", 30*time.Second)
	y.good("one")
}

// A second SIGTERM does not wait for the grace period.
func TestASecondSignalEndsAWorkerAtOnce(t *testing.T) {
	y := newYard(t, "one")
	h := y.hire(y.gate, "--grace", "10m", "--roles", "snapshot")
	y.publish("one")
	y.gate.uploading(t, 1)
	h.term()
	require.Eventually(t, func() bool { return strings.Contains(h.said(), "no more jobs are taken") }, time.Minute, 10*time.Millisecond)
	h.term()
	h.ended(10 * time.Second)
}

// Three workers that could do four jobs each do two at once, as the fleet may. When one is killed, its places come back.
func TestTheFleetsConcurrencyThroughAKill(t *testing.T) {
	names := make([]string, 12)
	for i := range names {
		names[i] = fmt.Sprintf("t-%02d", i)
	}
	y := newYard(t, names...)
	y.fleet = "snapshot: 2"
	// A barrier each, to see who is at it.
	release := make(chan struct{})
	workers := make([]*hired, 3)
	for i := range workers {
		g := newBarrier()
		g.release = release
		workers[i] = y.hire(g, "--concurrency", "4", "--ack-wait", "2s", "--roles", "snapshot")
	}
	held := func() (sum int) {
		for _, h := range workers {
			sum += h.gate.now()
		}
		assert.LessOrEqual(t, sum, 2, "never more than two at once")
		return sum
	}
	for _, name := range names {
		y.publish(name)
	}
	require.Eventually(t, func() bool { return held() == 2 }, 60*time.Second, 5*time.Millisecond)
	for range 3 {
		release <- struct{}{}
		require.Eventually(t, func() bool { return held() == 2 }, 60*time.Second, 5*time.Millisecond)
	}
	for i, h := range workers {
		if n := h.gate.now(); n > 0 {
			require.NoError(t, h.Kill())
			t.Logf("killed worker %d, which held %d places", i, n)
			workers = append(workers[:i], workers[i+1:]...)
			break
		}
	}
	require.Eventually(t, func() bool { return held() == 2 }, 60*time.Second, 20*time.Millisecond, "its places come back")
	// One by one, so that the number stays to be seen, until all are there: one more than there are snapshots when the worker was killed
	// after the barrier had let its snapshot through.
	all := make(chan struct{})
	var letting sync.WaitGroup
	letting.Go(func() {
		for {
			select {
			case release <- struct{}{}:
			case <-all:
				return
			}
		}
	})
	t.Cleanup(letting.Wait)
	t.Cleanup(func() { close(all) })
	require.Eventually(t, func() bool {
		held()
		return y.have(bus.StreamEvents, bus.EventSubject("snapshot", "committed", "*")) == len(names)
	}, 90*time.Second, 20*time.Millisecond)
	for _, name := range names {
		y.good(name)
	}
}

// One target's outage does not keep a worker from taking an old one's place; that it reaches none does, and the reasons are named.
func TestReadyWhenATargetAnswers(t *testing.T) {
	y := newYard(t)
	y.away = []string{"away", "too"}
	lost := y.hire(nil, "--roles", "snapshot")
	require.Eventually(t, func() bool {
		status, body := lost.get("/readyz")
		return status == http.StatusServiceUnavailable && strings.Contains(body, "target away: ") && strings.Contains(body, "target too: ") &&
			!strings.Contains(body, errNotAsked.Error())
	}, time.Minute, 20*time.Millisecond)
	y.names = []string{"one"}
	h := y.hire(nil, "--roles", "snapshot")
	require.Eventually(t, func() bool {
		status, _ := h.get("/readyz")
		return status == http.StatusOK
	}, 60*time.Second, 20*time.Millisecond)
	assert.Contains(t, h.said(), "target away: ")
	status, body := lost.get("/readyz")
	assert.Equal(t, http.StatusServiceUnavailable, status, body)
}

// Workers say that they are there, where, and what they do; and answer what the bucket knows.
func TestWorkersAnnounceThemselves(t *testing.T) {
	y := newYard(t, "one")
	h := y.hire(nil, "--roles", "snapshot,drill", "--zone", "a", "--concurrency", "3")
	y.publish("one")
	m := y.event("snapshot", "committed", 30*time.Second).GetManifest()
	var all []bus.WorkerInfo
	require.Eventually(t, func() bool {
		var err error
		all, err = y.bus.Workers(t.Context())
		return err == nil && len(all) == 1
	}, time.Minute, 50*time.Millisecond)
	assert.Equal(t, "a", all[0].Zone)
	assert.Equal(t, []string{"snapshot", "drill"}, all[0].Roles)
	assert.Equal(t, 3, all[0].Concurrency)
	assert.Regexp(t, `^lifeboat-backup@.+:\d+$`, all[0].Actor, "two on one host are told apart")

	got, err := y.bus.AskHistory(t.Context(), "one")
	require.NoError(t, err)
	assert.Equal(t, m.GetId(), got.GetSnapshotId())
	_, err = y.bus.AskHistory(t.Context(), "nobody")
	require.ErrorContains(t, err, "no target is named")

	h.term()
	h.ended(20 * time.Second)
	_, err = y.bus.AskHistory(t.Context(), "one")
	require.ErrorIs(t, err, bus.ErrNoWorker)
	all, err = y.bus.Workers(context.WithoutCancel(t.Context()))
	require.NoError(t, err)
	assert.Empty(t, all)
}
