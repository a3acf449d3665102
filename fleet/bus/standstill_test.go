package bus_test

import (
	"bufio"
	"context"
	"fmt"
	"log/slog"
	"os"
	"os/exec"
	"os/signal"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/lifeboat-fleet/lifeboat/fleet/bus"
	"github.com/lifeboat-fleet/lifeboat/fleet/config"
)

// The test binary is a worker when this names a NATS server: only a whole process can be stopped or killed.
const workerEnv = "LIFEBOAT_TEST_WORKER"

// worker takes jobs and slots, and tells on its output what happens to it.
func worker(url string) int {
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM)
	defer stop()
	b, err := bus.Connect(bus.Options{
		Config: config.NATS{URL: url}, Actor: "process", Logger: slog.New(slog.NewTextHandler(os.Stderr, nil)),
		Registerer: prometheus.NewRegistry(),
	})
	if err != nil {
		fmt.Fprintln(os.Stdout, "error", err)
		return 1
	}
	defer b.Close()
	say := func(words ...any) { fmt.Fprintln(os.Stdout, words...) }
	if n := os.Getenv(workerEnv + "_SLOTS"); n != "" {
		slot, err := b.Slot(ctx, config.WorkSnapshot, len(n))
		if err != nil {
			say("error", err)
			return 1
		}
		say("slot")
		<-ctx.Done()
		say("freed", slot.Free(context.WithoutCancel(ctx)))
		return 0
	}
	c := jobs(func(ctx context.Context, m *bus.Message) error {
		claim, err := b.Claim(ctx, config.WorkSnapshot, "etcd-prod", m)
		if err != nil {
			say("refused", err)
			return err
		}
		say("begun", m.Delivery, m.Attempt)
		<-ctx.Done()
		say("ended", context.Cause(ctx))
		_, _, err = claim.Commit(context.WithoutCancel(ctx))
		say("commit", err)
		return context.Cause(ctx)
	})
	c.CountsByClaim, c.MaxAttempts = true, 3
	say("pulling")
	if err := b.Consume(ctx, c); err != nil {
		say("error", err)
		return 1
	}
	return 0
}

// process is the test binary as a worker.
type process struct {
	*exec.Cmd
	lines chan string
}

func spawn(t *testing.T, url string, env ...string) *process {
	t.Helper()
	p := &process{Cmd: exec.CommandContext(t.Context(), os.Args[0]), lines: make(chan string, 100)}
	p.Env = append(append(os.Environ(), workerEnv+"="+url), env...)
	p.Stderr = t.Output()
	out, err := p.StdoutPipe()
	require.NoError(t, err)
	require.NoError(t, p.Start())
	go func() {
		for s := bufio.NewScanner(out); s.Scan(); {
			p.lines <- s.Text()
		}
		close(p.lines)
	}()
	t.Cleanup(func() {
		_ = p.Process.Signal(syscall.SIGCONT)
		_ = p.Process.Kill()
		for range p.lines { // until it is gone
		}
		_ = p.Wait()
	})
	return p
}

// says waits for a line that begins so.
func (p *process) says(t *testing.T, beginning string) string {
	t.Helper()
	for {
		line := receive(t, p.lines)
		if strings.HasPrefix(line, beginning) {
			return line
		}
	}
}

// A worker process is stopped (SIGSTOP) for longer than AckWait, and its job goes to another. When it wakes, its work ends at once,
// it cannot commit, and the job stays with the other, which keeps it by heartbeats.
func TestAStoppedProcessLosesItsJobAndLeavesItAlone(t *testing.T) {
	t.Parallel()
	s, b := fleet(t)
	p := spawn(t, s.URL())
	p.says(t, "pulling")
	_, err := b.Publish(t.Context(), job("etcd-prod"))
	require.NoError(t, err)
	assert.Equal(t, "begun 1 1", p.says(t, "begun"))
	require.NoError(t, p.Process.Signal(syscall.SIGSTOP))

	type begun struct{ delivery, attempt int64 }
	taken, finish, ended := make(chan begun, 10), make(chan struct{}), make(chan error, 10)
	c := jobs(func(ctx context.Context, m *bus.Message) error {
		claim, err := b.Claim(ctx, config.WorkSnapshot, "etcd-prod", m)
		if err != nil {
			return err
		}
		taken <- begun{m.Delivery, m.Attempt}
		select {
		case <-finish:
		case <-ctx.Done():
		}
		_, done, err := claim.Commit(ctx)
		if err == nil {
			defer done()
		}
		ended <- err
		return err
	})
	c.CountsByClaim, c.MaxAttempts = true, 3
	start(t, b, c)
	assert.Equal(t, begun{2, 2}, receive(t, taken), "a delivery that ended with its process counts")
	require.NoError(t, p.Process.Signal(syscall.SIGCONT))
	assert.Contains(t, p.says(t, "ended"), bus.ErrLostMessage.Error())
	assert.Contains(t, p.says(t, "commit"), bus.ErrClaimLost.Error())
	select {
	case again := <-taken:
		assert.Fail(t, "taken from who has it", "%v", again)
	case <-time.After(4 * time.Second): // twice AckWait
	}
	close(finish)
	require.NoError(t, receive(t, ended))
	require.Eventually(t, func() bool {
		_, err := b.Publish(t.Context(), job("etcd-prod"))
		return err == nil
	}, time.Minute, 10*time.Millisecond, "it ended the job")
}

// A process that is stopped while it waits for work finds on waking what was given to it meanwhile, and by then to somebody else.
func TestAProcessThatWokeDoesNotBeginWhatOthersHave(t *testing.T) {
	t.Parallel()
	s, b := fleet(t)
	p := spawn(t, s.URL())
	p.says(t, "pulling")
	js := raw(t, s.URL())
	require.Eventually(t, func() bool {
		cons, err := js.Consumer(t.Context(), bus.StreamJobs, "test")
		return err == nil && cons.CachedInfo().NumWaiting == 1
	}, time.Minute, 10*time.Millisecond)
	require.NoError(t, p.Process.Signal(syscall.SIGSTOP))
	_, err := b.Publish(t.Context(), job("etcd-prod"))
	require.NoError(t, err)

	taken, finish := make(chan int64, 10), make(chan struct{})
	c := jobs(func(ctx context.Context, m *bus.Message) error {
		taken <- m.Delivery
		select {
		case <-finish:
			return nil
		case <-ctx.Done():
			return context.Cause(ctx)
		}
	})
	start(t, b, c)
	assert.Equal(t, int64(2), receive(t, taken), "the first delivery went to the process that stood still")
	require.NoError(t, p.Process.Signal(syscall.SIGCONT))
	select {
	case line := <-p.lines:
		assert.Fail(t, "it did something", line)
	case again := <-taken:
		assert.Fail(t, "taken from who has it", "delivery %d", again)
	case <-time.After(5 * time.Second): // more than twice AckWait
	}
	close(finish)
	require.NoError(t, p.Process.Signal(syscall.SIGTERM))
	_, more := <-p.lines
	assert.False(t, more, "it ends, and says nothing")
}

// A job that kills its worker must not go round for ever.
func TestAJobThatKillsItsWorkerBecomesADeadLetter(t *testing.T) {
	t.Parallel()
	s, b := fleet(t)
	_, err := b.Publish(t.Context(), job("etcd-prod"))
	require.NoError(t, err)
	for attempt := range 3 {
		p := spawn(t, s.URL())
		assert.Equal(t, fmt.Sprintf("begun %d %[1]d", attempt+1), p.says(t, "begun"))
		require.NoError(t, p.Process.Kill())
	}
	p := spawn(t, s.URL())
	assert.Contains(t, p.says(t, "refused"), "attempts")
	d := dead(t, s.URL(), "lifeboat.dead.job.snapshot.etcd-prod")
	assert.Equal(t, int64(3), d.GetAttempts())
	assert.Contains(t, d.GetReason(), bus.ErrExhausted.Error())
	require.Eventually(t, func() bool {
		_, err = b.Publish(t.Context(), job("etcd-prod"))
		return err == nil
	}, time.Minute, 10*time.Millisecond, "the subject is free: %v", &err)
}
