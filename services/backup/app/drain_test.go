package app

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/lifeboat-fleet/lifeboat/fleet/bus"
	"github.com/lifeboat-fleet/lifeboat/fleet/config"
	"github.com/lifeboat-fleet/lifeboat/fleet/service"
	lifeboatv1 "github.com/lifeboat-fleet/lifeboat/proto/lifeboat/v1"
)

// draining is the drain command in a process of its own.
type draining struct {
	t    *testing.T
	mu   sync.Mutex
	out  bytes.Buffer
	done chan struct{}
	code int
}

func (d *draining) Write(b []byte) (int, error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.out.Write(b)
}

func (d *draining) said() string {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.out.String()
}

func drainBy(t *testing.T, args ...string) *draining {
	t.Helper()
	ctx, cancel := context.WithCancel(context.Background())
	d := &draining{t: t, done: make(chan struct{})}
	program, err := exec.LookPath("lifeboat")
	require.NoError(t, err)
	cmd := exec.CommandContext(ctx, program, append([]string{"lifeboat-backup", "drain"}, args...)...)
	cmd.Stdout, cmd.Stderr = d, d
	require.NoError(t, cmd.Start())
	go func() {
		defer close(d.done)
		if exit, ok := errors.AsType[*exec.ExitError](cmd.Wait()); ok {
			d.code = exit.ExitCode()
		}
	}()
	t.Cleanup(func() { cancel(); <-d.done })
	return d
}

// says waits until the command has said something.
func (d *draining) says(text string) {
	d.t.Helper()
	require.Eventually(d.t, func() bool { return strings.Contains(d.said(), text) }, time.Minute, 10*time.Millisecond, "%q is not said", text)
}

// ends waits for its end.
func (d *draining) ends(code int, text string) {
	d.t.Helper()
	select {
	case <-d.done:
	case <-time.After(time.Minute):
		require.Fail(d.t, "drain goes on", d.said())
	}
	assert.Equal(d.t, code, d.code, d.said())
	assert.Contains(d.t, d.said(), text)
}

// get asks the worker's health and metrics.
func (h *hired) get(path string) (status int, body string) {
	h.t.Helper()
	var addr string
	require.Eventually(h.t, func() bool {
		if m := regexp.MustCompile(`"http_addr":"([^"]+)"`).FindStringSubmatch(h.said()); m != nil {
			addr = m[1]
		}
		return addr != ""
	}, time.Minute, 10*time.Millisecond)
	req, err := http.NewRequestWithContext(h.t.Context(), http.MethodGet, "http://"+addr+path, nil)
	require.NoError(h.t, err)
	resp, err := http.DefaultClient.Do(req)
	require.NoError(h.t, err)
	defer resp.Body.Close()
	b, err := io.ReadAll(resp.Body)
	require.NoError(h.t, err)
	return resp.StatusCode, string(b)
}

func (h *hired) metric(line string) {
	h.t.Helper()
	_, body := h.get("/metrics")
	assert.Contains(h.t, body, "\n"+line+"\n")
}

// started waits until the worker holds its pid file.
func started(t *testing.T, file string) {
	t.Helper()
	require.Eventually(t, func() bool {
		pid, err := peekPIDFile(file)
		return err == nil && pid > 0
	}, time.Minute, 10*time.Millisecond, "no worker holds %s", file)
}

// A drain hands nothing back: what is at hand goes on far beyond --grace and --ack-wait, whatever is new is others', of all roles, and the
// worker stays, ready and idle, until it is stopped.
func TestADrainLetsJobsEnd(t *testing.T) {
	y := newYard(t, "one", "two")
	file := filepath.Join(t.TempDir(), "backup.pid")
	h := y.hire(y.gate, "--grace", "0s", "--ack-wait", "2s", "--roles", "snapshot,drill", "--pid-file", file)
	y.publish("one")
	y.gate.uploading(t, 1)
	h.metric("lifeboat_worker_draining 0")
	d := drainBy(t, "--pid-file", file)
	d.says("waiting for 1 jobs: snapshot one (job ")
	h.metric("lifeboat_worker_draining 1")
	assert.Contains(t, h.said(), "draining: no more jobs are taken")
	require.Eventually(t, func() bool {
		all, err := y.bus.Workers(t.Context())
		return err == nil && len(all) == 1 && all[0].Draining && len(all[0].Roles) == 0
	}, time.Minute, 20*time.Millisecond, "it says that it drains")
	_, err := y.bus.AskHistory(t.Context(), "one")
	require.ErrorIs(t, err, bus.ErrNoWorker)

	// What comes now is left to others; until there are any, it waits.
	y.publish("two")
	_, err = y.bus.Publish(t.Context(), bus.Outgoing{Subject: bus.JobSubject(config.WorkDrill, "one"), Message: &lifeboatv1.Job{}})
	require.NoError(t, err)
	select {
	case <-time.After(5 * time.Second): // two and a half times ack-wait
	case <-d.done:
		require.Fail(t, "drain does not wait", d.said())
	case <-h.Done():
		require.Fail(t, "the worker ended", h.said())
	}
	assert.Equal(t, 1, y.have(bus.StreamJobs, bus.JobSubject(config.WorkSnapshot, "two")))
	assert.Equal(t, 1, y.have(bus.StreamJobs, bus.JobSubject(config.WorkDrill, "one")))
	assert.Equal(t, 1, y.have(bus.StreamEvents, bus.EventSubject("snapshot", "started", "*")))
	assert.Zero(t, y.have(bus.StreamEvents, bus.EventSubject("drill", "*", "*")))
	other := y.hire(nil, "--ack-wait", "2s", "--roles", "snapshot")
	require.Eventually(t, func() bool { return y.have(bus.StreamEvents, bus.EventSubject("snapshot", "committed", "two")) == 1 },
		time.Minute, 20*time.Millisecond)
	other.term()
	other.ended(20 * time.Second)

	close(y.gate.release)
	d.ends(service.ExitDone, "drained: nothing runs any more")
	y.good("one")
	y.good("two")
	assert.Zero(t, y.have(bus.StreamEvents, bus.EventSubject("job", "handed-back", "*")))
	assert.Zero(t, y.have(bus.StreamEvents, bus.EventSubject("snapshot", "interrupted", "*")))
	status, body := h.get("/readyz")
	assert.Equal(t, http.StatusOK, status, body)
	drainBy(t, "--pid-file", file).ends(service.ExitDone, "drained: nothing runs any more") // again, it is no news
	assert.Equal(t, 1, strings.Count(h.said(), "drained: nothing runs any more"))
	h.term()
	h.ended(20 * time.Second)
	drainBy(t, "--pid-file", file).ends(service.ExitFailed, "has ended, and nothing is to be drained")
}

// A job that waits for one of the fleet's places is at hand as well. SIGTERM would hand it back.
func TestADrainLetsJobsHaveTheirTurn(t *testing.T) {
	y := newYard(t, "one", "two", "three")
	y.fleet = "snapshot: 1"
	file := filepath.Join(t.TempDir(), "backup.pid")
	h := y.hire(y.gate, "--grace", "0s", "--concurrency", "3", "--roles", "snapshot", "--pid-file", file)
	for _, name := range y.names {
		y.publish(name)
	}
	y.gate.uploading(t, 1)
	d := drainBy(t, "--pid-file", file)
	d.says("waiting for 3 jobs: ")
	close(y.gate.release)
	d.ends(service.ExitDone, "drained: nothing runs any more")
	for _, name := range y.names {
		y.good(name)
	}
	assert.Zero(t, y.have(bus.StreamEvents, bus.EventSubject("job", "handed-back", "*")))
	h.term()
	h.ended(20 * time.Second)
}

// SIGTERM while it drains is as always: what fits into --grace ends, the rest is handed back at once, and whoever waits is told.
func TestSIGTERMWhileDraining(t *testing.T) {
	for _, fits := range []bool{false, true} {
		t.Run(fmt.Sprintf("fits into the grace: %t", fits), func(t *testing.T) {
			y := newYard(t, "one")
			file := filepath.Join(t.TempDir(), "backup.pid")
			grace := map[bool]string{false: "300ms", true: "1m"}[fits]
			h := y.hire(y.gate, "--grace", grace, "--ack-wait", "10m", "--roles", "snapshot", "--pid-file", file)
			y.publish("one")
			y.gate.uploading(t, 1)
			d := drainBy(t, "--pid-file", file)
			d.says("waiting for 1 jobs")
			h.term()
			if fits {
				require.Eventually(t, func() bool { return strings.Contains(h.said(), "stopping: no more jobs are taken") }, time.Minute, 10*time.Millisecond)
				close(y.gate.release)
				h.ended(20 * time.Second)
				d.ends(service.ExitDone, "drained: nothing runs any more")
				assert.Equal(t, `"finished":1,"failed":0,"handed_back":0}`, h.counts())
				y.good("one")
				return
			}
			h.ended(20 * time.Second)
			d.ends(service.ExitFailed, "was stopped meanwhile, and handed back 1 jobs")
			assert.Equal(t, `"finished":0,"failed":0,"handed_back":1}`, h.counts())
			y.hire(nil, "--roles", "snapshot")
			y.event("snapshot", "committed", 30*time.Second)
			y.good("one")
		})
	}
}

func TestDrainSaysWhatItWaitsFor(t *testing.T) {
	y := newYard(t, "one")
	file := filepath.Join(t.TempDir(), "backup.pid")
	h := y.hire(y.gate, "--roles", "snapshot", "--ack-wait", "2s", "--pid-file", file)
	y.publish("one")
	y.gate.uploading(t, 1)
	d := drainBy(t, "--pid-file", file, "--timeout", "1s")
	d.ends(service.ExitFailed, "stopped waiting (--timeout 1s is over): it still does 1 jobs: snapshot one (job ")
	assert.Contains(t, d.said(), "it goes on draining")
	assert.Equal(t, 1, y.gate.now(), "the job goes on")
	// A worker that is killed says nothing more.
	d = drainBy(t, "--pid-file", file)
	d.says("waiting for 1 jobs")
	require.NoError(t, h.Kill())
	d.ends(service.ExitFailed, "has ended while it did 1 jobs: snapshot one")

	// Its number is still there, and nobody is sent a signal for it; the next worker takes the file over, and does not drain.
	left, err := os.ReadFile(file)
	require.NoError(t, err)
	assert.NotEmpty(t, strings.TrimSpace(string(left)))
	drainBy(t, "--pid-file", file).ends(service.ExitFailed, "no worker holds "+file+" any more")
	next := y.hire(nil, "--roles", "snapshot", "--ack-wait", "2s", "--pid-file", file)
	y.event("snapshot", "committed", 30*time.Second)
	y.good("one")
	next.metric("lifeboat_worker_draining 0")
}

// A worker that has not reached NATS yet has nothing to do, and takes nothing once it has.
func TestADrainWithoutNATS(t *testing.T) {
	y := newYard(t, "one")
	y.url = "nats://127.0.0.1:1"
	file := filepath.Join(t.TempDir(), "backup.pid")
	h := y.hire(nil, "--pid-file", file)
	started(t, file)
	drainBy(t, "--pid-file", file).ends(service.ExitDone, "drained: nothing runs any more")
	h.metric("lifeboat_worker_draining 1")
	h.term()
	h.ended(20 * time.Second)
}

// Without a pid file the signal does the same.
func TestSIGUSR1WithoutAPIDFile(t *testing.T) {
	y := newYard(t, "one")
	h := y.hire(nil, "--roles", "snapshot,verify,drill,prune")
	require.Eventually(t, func() bool {
		all, err := y.bus.Workers(t.Context())
		return err == nil && len(all) == 1
	}, time.Minute, 20*time.Millisecond)
	for range 3 {
		require.NoError(t, h.Signal(syscall.SIGUSR1))
	}
	require.Eventually(t, func() bool { return strings.Contains(h.said(), "drained: nothing runs any more") }, time.Minute, 10*time.Millisecond)
	h.term()
	h.ended(20 * time.Second)
	assert.Equal(t, 1, strings.Count(h.said(), `"draining: `))
}

// Two workers do not share a pid file: one of them could not be drained.
func TestAPIDFileIsOneWorkers(t *testing.T) {
	y := newYard(t, "one")
	file := filepath.Join(t.TempDir(), "backup.pid")
	first := y.hire(nil, "--pid-file", file)
	started(t, file)
	second := y.hire(nil, "--pid-file", file)
	second.ended(20 * time.Second)
	assert.Contains(t, second.said(), "another worker has "+file)
	b, err := os.ReadFile(file)
	require.NoError(t, err)
	assert.Equal(t, strconv.Itoa(first.PID()), strings.TrimSpace(string(b)))
	third := y.hire(nil, "--pid-file", filepath.Join(t.TempDir(), "none", "backup.pid"))
	third.ended(20 * time.Second)
	assert.Contains(t, third.said(), "opening the pid file")
}

// A number that means another process here, as in a container, is sent no signal: most processes would end.
func TestDrainSparesStrangers(t *testing.T) {
	file := filepath.Join(t.TempDir(), "backup.pid")
	drainBy(t, "--pid-file", file).ends(service.ExitFailed, "no worker has made "+file)
	bystander := exec.CommandContext(t.Context(), "cat")
	_, err := bystander.StdinPipe()
	require.NoError(t, err)
	require.NoError(t, bystander.Start())
	require.NoError(t, os.WriteFile(file, []byte(strconv.Itoa(bystander.Process.Pid)), 0o600))
	drainBy(t, "--pid-file", file).ends(service.ExitFailed, "no worker holds "+file)
	f, err := os.Open(file)
	require.NoError(t, err)
	defer f.Close()
	require.NoError(t, flock(f, syscall.LOCK_EX))
	drainBy(t, "--pid-file", file).ends(service.ExitFailed, fmt.Sprintf("held by a process that is not process %d here", bystander.Process.Pid))
	require.NoError(t, bystander.Process.Signal(syscall.Signal(0)), "it lives")
	require.NoError(t, bystander.Process.Kill())
	require.Error(t, bystander.Wait())
	require.NoError(t, os.WriteFile(file, []byte("soon\n"), 0o600))
	drainBy(t, "--pid-file", file).ends(service.ExitFailed, "holds no number of a process")
	drainBy(t).ends(service.ExitUsage, "--pid-file: name the file")
	drainBy(t, "--pid-file", file, "--timeout", "-1s").ends(service.ExitUsage, "--timeout")
}

// Whoever looks whether a file is held keeps no worker from holding it.
func TestLookingDoesNotKeepAWorkerOut(t *testing.T) {
	path := filepath.Join(t.TempDir(), "backup.pid")
	require.NoError(t, os.WriteFile(path, nil, 0o600))
	ctx, stop := context.WithCancel(t.Context())
	var wg sync.WaitGroup
	for range 4 {
		wg.Go(func() {
			for ctx.Err() == nil {
				_, _ = peekPIDFile(path)
			}
		})
	}
	t.Cleanup(func() { stop(); wg.Wait() })
	for range 20 {
		p, err := holdPIDFile(path)
		require.NoError(t, err)
		pid, err := peekPIDFile(path)
		require.NoError(t, err)
		assert.Equal(t, os.Getpid(), pid)
		require.NoError(t, p.release())
	}
}
