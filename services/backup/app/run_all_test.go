package app

import (
	"context"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/lifeboat-fleet/lifeboat/fleet/bus"
	"github.com/lifeboat-fleet/lifeboat/fleet/config"
	"github.com/lifeboat-fleet/lifeboat/fleet/fleettest/bintest"
	"github.com/lifeboat-fleet/lifeboat/fleet/fleettest/rolestest"
	"github.com/lifeboat-fleet/lifeboat/fleet/service"
	lifeboatv1 "github.com/lifeboat-fleet/lifeboat/proto/lifeboat/v1"
)

// deployNATS is found out before the S3 server changes the process's working folder.
var deployNATS, errDeployNATS = filepath.Abs(filepath.Join("..", "..", "..", "deploy", "nats"))

// targets writes a configuration of some etcds.
func (j *jobs) targets(nats string, names ...string) {
	j.t.Helper()
	yaml := fmt.Sprintf("nats: {%s}\nstore: {bucket: none}\ntargets:\n", nats)
	for _, name := range names {
		yaml += fmt.Sprintf("  - {name: %s, etcd: {endpoints: [\"http://127.0.0.1:1\"]}}\n", name)
	}
	require.NoError(j.t, os.WriteFile(filepath.Join(j.dir, "lifeboat.yaml"), []byte(yaml), 0o600))
}

// ends tells how the snapshot of a target ended.
func ends(b *bus.Bus, failing string) bus.Handler {
	return func(ctx context.Context, m *bus.Message) error {
		target := m.Subject[strings.LastIndex(m.Subject, ".")+1:]
		verb := "committed"
		if target == failing {
			verb = "failed"
		}
		e := event(m, "snapshot", verb, "of "+target)
		e.Target = target
		return b.Emit(ctx, e)
	}
}

func TestRunAllAsksForEachTarget(t *testing.T) {
	j := newJobs(t)
	j.targets(fmt.Sprintf("url: %q", j.url), "etcd-a", "etcd-b", "etcd-c")
	_, err := j.bus.Publish(t.Context(), bus.Outgoing{Subject: bus.JobSubject(config.WorkSnapshot, "etcd-b"), Message: &lifeboatv1.Job{}})
	require.NoError(t, err)
	out, _, code := j.lifeboat("snapshot", "run", "--all")
	assert.Zero(t, code, "one that waits already is no failure")
	assert.Regexp(t, `^etcd-a: asked for snapshot \d{8}T\d{6}\.\d{3}Z-\d+\netcd-b: a snapshot waits or runs already\netcd-c: asked for snapshot \S+\n$`, out)
	job := &lifeboatv1.Job{}
	_, _, err = j.bus.Last(t.Context(), bus.StreamJobs, bus.JobSubject(config.WorkSnapshot, "etcd-c"), job)
	require.NoError(t, err)
	assert.True(t, strings.HasPrefix(job.GetRequestedBy(), "cli "), "the audit log says who")

	out, _, code = j.lifeboat("snapshot", "run", "--all")
	assert.Zero(t, code)
	assert.Equal(t, 3, strings.Count(out, "a snapshot waits or runs already\n"))
}

func TestRunAllWaitsForEach(t *testing.T) {
	for _, failing := range []string{"", "etcd-b"} {
		t.Run("failing "+failing, func(t *testing.T) {
			j := newJobs(t)
			j.targets(fmt.Sprintf("url: %q", j.url), "etcd-a", "etcd-b", "etcd-c")
			j.work(config.WorkSnapshot, ends(j.bus, failing))
			out, errs, code := j.lifeboat("snapshot", "run", "--all", "--wait", "--timeout", "30s")
			assert.Contains(t, out, "etcd-a: snapshot.committed: of etcd-a\n")
			assert.Contains(t, out, "etcd-c: snapshot.committed: of etcd-c\n", "one's failure is not the others'")
			if failing == "" {
				assert.Zero(t, code, errs)
				return
			}
			assert.Equal(t, service.ExitFailed, code)
			assert.Contains(t, errs, "1 of 3 snapshots failed:\netcd-b: snapshot.failed: of etcd-b")
		})
	}
}

func TestRunAllWithoutAnswer(t *testing.T) {
	j := newJobs(t)
	j.targets(fmt.Sprintf("url: %q", j.url), "etcd-a", "etcd-b")
	_, errs, code := j.lifeboat("snapshot", "run", "--all", "--wait", "--timeout", "300ms")
	assert.Equal(t, service.ExitFailed, code)
	assert.Equal(t, 2, strings.Count(errs, "stopped waiting (no outcome within 300ms)"))
	j.targets(fmt.Sprintf("url: %q", j.url))
	_, errs, code = j.lifeboat("snapshot", "run", "--all")
	assert.Equal(t, service.ExitUsage, code)
	assert.Contains(t, errs, "has no targets")
	for _, args := range [][]string{{"etcd-a", "--all"}, {}, {"etcd-a", "etcd-b"}} {
		_, _, code = j.lifeboat(append([]string{"snapshot", "run"}, args...)...)
		assert.Equal(t, service.ExitUsage, code, args)
	}
}

// The scheduler's user may do all that this command needs, in the scheduler's place and with its inbox. A worker's may not, and is told.
func TestRunAllAsARole(t *testing.T) {
	require.NoError(t, errDeployNATS)
	dir := t.TempDir()
	seeds := rolestest.Deploy(t, deployNATS, dir)
	server, err := bintest.StartNATSWith(t.Context(), dir, bintest.NATSOptions{Conf: "include ./lifeboat.conf"})
	require.NoError(t, err)
	t.Cleanup(func() { assert.NoError(t, server.Kill()) })
	as := func(role string) *bus.Bus {
		b, failed := bus.Connect(bus.Options{
			Config: config.NATS{URL: server.URL, NkeyFile: config.SecretFile(seeds[role]), InboxPrefix: "_INBOX_{role}"}, Actor: role, Role: role,
			Logger: slog.New(slog.DiscardHandler), Registerer: prometheus.NewRegistry(),
		})
		require.NoError(t, failed)
		t.Cleanup(func() { assert.NoError(t, b.Close()) })
		return b
	}
	require.NoError(t, as("scheduler").EnsureStreams(t.Context()))
	worker := as("snapshot")
	ctx, cancel := context.WithCancel(t.Context())
	var wg sync.WaitGroup
	t.Cleanup(func() { cancel(); wg.Wait() })
	wg.Go(func() {
		assert.NoError(t, worker.Consume(ctx, bus.Consumer{
			Stream: bus.StreamJobs, Durable: "backup-snapshot", Filter: bus.AllJobs(config.WorkSnapshot), AckWait: 5 * time.Second,
			Handle: ends(worker, ""),
		}))
	})
	for role, want := range map[string]int{"scheduler": service.ExitDone, "cli": service.ExitDone, "drill": service.ExitFailed, "page": service.ExitFailed} {
		t.Run(role, func(t *testing.T) {
			before := violations(t, server)
			j := &jobs{t: t, dir: t.TempDir()}
			j.targets(fmt.Sprintf("url: %q, nkey_file: %s, inbox_prefix: _INBOX_%s", server.URL, seeds[role], role), "etcd-a", "etcd-b")
			out, errs, code := j.lifeboat("snapshot", "run", "--all", "--wait", "--timeout", "30s")
			assert.Equal(t, want, code, errs)
			if want == service.ExitDone {
				assert.Contains(t, out, "etcd-a: snapshot.committed: of etcd-a\netcd-b: snapshot.committed: of etcd-b\n")
				assert.Equal(t, before, violations(t, server), "nothing that it asks for is denied")
				return
			}
			assert.Contains(t, errs, "asking for a snapshot of etcd-a: ")
			assert.Contains(t, errs, "do not let it publish to lifeboat.job.snapshot.etcd-a")
		})
	}
}

func violations(t *testing.T, server *bintest.NATS) int {
	t.Helper()
	b, err := os.ReadFile(server.Log())
	require.NoError(t, err)
	return strings.Count(string(b), "Violation")
}
