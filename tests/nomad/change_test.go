//go:build e2e

package nomad

import (
	"bytes"
	"fmt"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/lifeboat-fleet/lifeboat/fleet/bus"
	"github.com/lifeboat-fleet/lifeboat/fleet/config"
	"github.com/lifeboat-fleet/lifeboat/fleet/fleettest/s3test"
	lifeboatv1 "github.com/lifeboat-fleet/lifeboat/proto/lifeboat/v1"
)

// identity is which allocations of a job run, and how often their tasks were started again.
func (s *site) identity(job string) map[string]uint64 {
	ids := map[string]uint64{}
	for _, a := range s.running(job, "") {
		for _, task := range a.TaskStates {
			ids[a.ID] += task.Restarts
		}
	}
	require.NotEmpty(s.t, ids, "%s: nothing runs, or Nomad does not answer", job)
	return ids
}

// What the job files offer to whoever is on call.
func (s *site) actions() {
	t := s.t
	before := len(s.events("snapshot", "committed", "*"))
	s.change("/registry/actions")
	out := s.run("nomad", "action", "-job", "lifeboat-scheduler", "-group", "scheduler", "-task", "scheduler", "snapshot-now")
	for _, target := range []string{"etcd-prod", "consul-kv", "nomad-jobs"} {
		assert.Contains(t, out, target)
	}
	require.Eventually(t, func() bool { return len(s.events("snapshot", "committed", "*")) >= before+3 }, time.Minute, 250*time.Millisecond)

	verify := s.running("backup", "verify")
	require.Len(t, verify, 1)
	t.Log(s.run("nomad", "action", "-job", "lifeboat-backup", "-alloc", verify[0].ID, "-task", "worker", "drain"))
	workers, err := s.bus.Workers(t.Context())
	require.NoError(t, err)
	require.NotEmpty(t, workers)
	for _, w := range workers {
		assert.NotContains(t, w.Roles, "verify", "one that is drained is not announced")
	}
	// It stays until it is stopped, and what replaces it works again.
	assert.Equal(t, verify[0].ID, s.running("backup", "verify")[0].ID)
	s.run("nomad", "alloc", "stop", "-detach", verify[0].ID)
	s.publish(config.WorkVerify, "etcd-prod")
	s.event("verify", "passed", "etcd-prod", time.Minute, nil)
}

// change makes the next snapshot of etcd another one.
func (s *site) change(key string) {
	s.t.Helper()
	_, err := s.client.Put(s.t.Context(), key, rand())
	require.NoError(s.t, err)
}

// Configuration is an edit of a key: no allocation is replaced, no task is started again, and the new target is worked on.
func (s *site) configurationIsLive() {
	t := s.t
	before := map[string]map[string]uint64{}
	for _, job := range jobs() {
		before[job] = s.identity(job)
	}
	s.configure(s.targets(fmt.Sprintf("  - {name: etcd-new, etcd: {endpoints: [%q]}, schedule: \"@every 2s\"}\n", s.etcd.Endpoint)))
	s.event("snapshot", "committed", "etcd-new", time.Minute, func(e *lifeboatv1.Event) bool { return e.GetRequestedBy() == "scheduler" })
	actors := map[string]bool{}
	for _, e := range s.events("config", "reloaded", "*") {
		service, _, _ := strings.Cut(e.GetActor(), "@")
		actors[service] = true
	}
	assert.Equal(t, map[string]bool{"lifeboat-scheduler": true, "lifeboat-backup": true, "lifeboat-notifier": true}, actors)
	// One that is not good is refused, and the one before it goes on.
	s.run("consul", "kv", "put", "lifeboat/lifeboat.yaml", "targets: [{name: '!'}]\nstore: {bucket: nothing}\n")
	s.event("config", "refused", "*", time.Minute, nil)
	n := len(s.events("snapshot", "committed", "etcd-new"))
	require.Eventually(t, func() bool { return len(s.events("snapshot", "committed", "etcd-new")) > n+1 }, time.Minute, 250*time.Millisecond)
	s.configure(s.targets(""))
	for _, job := range jobs() {
		assert.Equal(t, before[job], s.identity(job), "%s: the same allocations, not started again", job)
	}
}

// gate holds up uploads of snapshots while it is closed.
type gate struct {
	mu      sync.Mutex
	held    int
	release chan struct{}
}

func (g *gate) fault(r *http.Request) s3test.Fault {
	if r.Method != http.MethodHead || !strings.Contains(s3test.Key(r), "/data.") {
		return s3test.Pass()
	}
	g.add(1)
	defer g.add(-1)
	select {
	case <-g.release:
		return s3test.Pass()
	case <-r.Context().Done():
		return s3test.ResetBefore()
	}
}

func (g *gate) add(n int) int {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.held += n
	return g.held
}

// A worker's allocation that is stopped while its upload is held up: the job is handed back, another worker does it, and what is
// committed is whole.
func (s *site) workerStopped() {
	t := s.t
	g := &gate{release: make(chan struct{})}
	s.proxy.Handle(g.fault)
	defer s.proxy.Handle(nil)
	done := s.manifests("etcd-prod")
	s.change("/registry/stopped")
	s.publish(config.WorkSnapshot, "etcd-prod")
	require.Eventually(t, func() bool { return g.add(0) == 1 }, time.Minute, 50*time.Millisecond, "a snapshot is under way")
	started := s.events("snapshot", "started", "etcd-prod")
	e := started[len(started)-1]
	s.run("nomad", "alloc", "stop", "-detach", s.allocationOf(e.GetActor()))
	back := s.event("job", "handed-back", "etcd-prod", time.Minute, func(b *lifeboatv1.Event) bool { return b.GetJobId() == e.GetJobId() })
	assert.Equal(t, e.GetActor(), back.GetActor())
	assert.Equal(t, done, s.manifests("etcd-prod"), "nothing is committed yet")
	close(g.release)
	committed := s.event("snapshot", "committed", "etcd-prod", time.Minute, func(c *lifeboatv1.Event) bool { return c.GetJobId() == e.GetJobId() })
	assert.NotEqual(t, e.GetActor(), committed.GetActor(), "another worker did it")
	assert.Equal(t, "1", committed.GetAttributes()["attempt"], "it is the same attempt")
	assert.Equal(t, done+1, s.manifests("etcd-prod"), "once")
	s.publish(config.WorkVerify, "etcd-prod")
	last := s.event("verify", "passed", "etcd-prod", time.Minute, func(v *lifeboatv1.Event) bool {
		return v.GetTime().AsTime().After(committed.GetTime().AsTime())
	})
	assert.Equal(t, "0", last.GetAttributes()["damaged"])
	assert.Empty(t, s.dead())
}

// manifests is how many snapshots of a target are in the bucket, by its files.
func (s *site) manifests(target string) int {
	all, err := filepath.Glob(s.s3.Path(target + "/snapshots/*/manifest.json"))
	require.NoError(s.t, err)
	return len(all)
}

// dead are the subjects of the dead letters.
func (s *site) dead() (subjects []string) {
	s.t.Helper()
	require.NoError(s.t, s.bus.Scan(s.t.Context(), bus.StreamDead, "lifeboat.dead.>", func(m *bus.Message) error {
		subjects = append(subjects, m.Subject)
		return nil
	}))
	return subjects
}

// allocationOf finds the allocation of a process that signed an event: its environment names it.
func (s *site) allocationOf(actor string) string {
	s.t.Helper()
	pid := actor[strings.LastIndex(actor, ":")+1:]
	env, err := os.ReadFile("/proc/" + pid + "/environ")
	require.NoError(s.t, err, actor)
	for entry := range bytes.SplitSeq(env, []byte{0}) {
		if id, ok := bytes.CutPrefix(entry, []byte("NOMAD_ALLOC_ID=")); ok {
			return string(id)
		}
	}
	require.Fail(s.t, "no allocation", "%s is not of a task", actor)
	return ""
}
