package ops

import (
	"encoding/json"
	"os"
	"strings"
	"syscall"
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

func TestStatusTellsOfTheFleet(t *testing.T) {
	l := newLab(t).withServers()
	l.configure("    schedule: \"0 4 * * *\"\n    drill: {schedule: \"0 5 * * *\"}\n")
	l.state(etcdTarget, "drill", &lifeboatv1.ScheduleState{
		Tick: timestamppb.Now(), Pause: &lifeboatv1.Pause{By: "cli ops@desk", Reason: "migration", Since: timestamppb.Now()},
	})
	l.state(etcdTarget, "snapshot", &lifeboatv1.ScheduleState{
		Tick: timestamppb.Now(), Pause: &lifeboatv1.Pause{By: "over", Until: timestamppb.New(time.Now().Add(-time.Hour))},
	})
	out, errs, _ := l.lifeboat("status")
	assert.Contains(t, out, "TARGET")
	assert.Contains(t, out, "\nwarning: no worker answers (targets: etcd-prod)\n")
	assert.Contains(t, out, "warning: NATS could lose what it acknowledged: ")
	assert.Contains(t, out, "paused: drill of etcd-prod, by cli ops@desk: migration\n")
	assert.NotContains(t, out, "by over")
	assert.NotContains(t, errs, "zone")

	out, _, _ = l.lifeboat("status", "--no-fleet")
	assert.NotContains(t, out, "warning")
	assert.NotContains(t, out, "paused")

	var doc struct {
		Targets []struct{ Target string }
		Fleet   fleetView
	}
	out, _, code := l.lifeboat("status", "--output", "json")
	assert.Equal(t, 1, code, "there is no snapshot")
	require.NoError(t, json.Unmarshal([]byte(out), &doc))
	assert.Len(t, doc.Targets, 2)
	assert.Equal(t, "ok", doc.Fleet.NATS)
	assert.Len(t, doc.Fleet.Paused, 1)
	assert.NotEmpty(t, doc.Fleet.Durability)
	out, _, _ = l.lifeboat("status", "--output", "json", "--no-fleet")
	assert.NotContains(t, out, `"fleet"`)
}

// The table is from the bucket, so that it is there without NATS, and the exit code is the table's.
func TestStatusWithoutNATSIsFromTheBucketAlone(t *testing.T) {
	l := newLab(t).withServers()
	l.configure("    zone: beijing\n")
	l.nats.Stop()
	begin := time.Now()
	out, errs, code := l.lifeboat("status")
	assert.Less(t, time.Since(begin), 30*time.Second, "it does not wait until NATS is there")
	assert.Contains(t, out, "etcd-prod")
	assert.Contains(t, out, "fleet: the table is from the bucket alone, because NATS at "+l.nats.URL()+" is not connected")
	assert.Equal(t, 1, code, "there is no snapshot")
	assert.NotContains(t, errs, "zone")
}

func TestWhatNoWorkerTakesIsNamed(t *testing.T) {
	targets := []config.Target{
		{Name: "a", Zone: "beijing", Schedule: "@daily"},
		{Name: "b", Zone: "beijing", Schedule: "@daily", Drill: config.Drill{Schedule: "@daily"}},
		{Name: "c", Schedule: "@daily", Verify: config.Verify{Schedule: "@daily"}},
		{Name: "d", Zone: "seoul"},
	}
	worker := func(zone string, roles ...string) bus.WorkerInfo { return bus.WorkerInfo{Zone: zone, Roles: roles} }
	look := func(c crew) *fleetView {
		v := &fleetView{}
		v.lacking(c, targets)
		return v
	}
	v := look(crew{workers: []bus.WorkerInfo{worker("beijing", "snapshot"), worker("", "verify")}})
	assert.Equal(t, []lackView{{Text: "zone seoul has no worker", Zone: "seoul", Targets: []string{"d"}}}, v.Problems)
	assert.Equal(t, []string{"no worker of zone beijing takes drills (targets: b)"}, v.Warnings)
	v = look(crew{})
	assert.Len(t, v.Problems, 2)
	assert.Equal(t, []string{"a", "b"}, v.Problems[0].Targets)
	assert.Equal(t, []string{"no worker answers (targets: c)"}, v.Warnings)
	v = look(crew{unknown: assert.AnError})
	assert.Empty(t, v.Problems, "who could not be asked is not missing")
	assert.Empty(t, v.Warnings)
	v = look(crew{workers: []bus.WorkerInfo{worker("beijing", "snapshot", "drill"), worker("seoul", "snapshot", "verify")}})
	assert.Empty(t, v.Problems)
	assert.Empty(t, v.Warnings, "a target without a zone is anybody's")
	drains := worker("seoul")
	drains.Draining = true
	v = look(crew{workers: []bus.WorkerInfo{worker("beijing", "snapshot", "drill", "verify"), drains}})
	assert.Equal(t, []lackView{{Text: "zone seoul has no worker", Zone: "seoul", Targets: []string{"d"}}}, v.Problems, "one that drains takes nothing")
	assert.Equal(t, "a, b, c, d, e, f, g, h, i, j and 2 more", several([]string{"a", "b", "c", "d", "e", "f", "g", "h", "i", "j", "k", "l"}))
}

// A worker that drains is still there, and nobody counts on it.
func TestStatusTellsWhoDrains(t *testing.T) {
	l := newLab(t).withServers()
	l.configure("    schedule: \"0 4 * * *\"\n")
	l.worker(backup.Options{Zone: "seoul"})
	status := func(text string) (out string) {
		require.Eventually(t, func() bool {
			out, _, _ = l.lifeboat("status")
			return strings.Contains(out, text)
		}, time.Minute, 20*time.Millisecond, text)
		return out
	}
	assert.NotContains(t, status("workers of zone seoul: 1 (snapshot 1, verify 1, drill 1, prune 1)\n"), "draining")
	require.NoError(t, syscall.Kill(os.Getpid(), syscall.SIGUSR1))
	out := status("draining: lifeboat-backup@")
	assert.Regexp(t, `draining: lifeboat-backup@\S+ takes no more jobs until it is started anew\n`, out)
	assert.NotContains(t, out, "workers of")
	assert.Contains(t, out, "warning: no worker takes snapshots (targets: etcd-prod)")
	out, _, _ = l.lifeboat("status", "--output", "json")
	assert.Contains(t, out, `"draining": true`)
	out, _, _ = l.lifeboat("why", etcdTarget)
	assert.Contains(t, out, "no worker takes snapshots")
}

// Every command says by example how it is used, and completes.
func TestEveryCommandHasAnExample(t *testing.T) {
	for _, c := range root().Commands() {
		all := c.Commands()
		if !c.HasAvailableSubCommands() {
			all = append(all, c)
		}
		for _, c := range all {
			assert.NotEmpty(t, c.Example, c.CommandPath())
			assert.NotEmpty(t, c.Short, c.CommandPath())
			require.NotNil(t, c.ValidArgsFunction, c.CommandPath())
		}
	}
	l := newLab(t)
	id := l.publish(config.WorkSnapshot, etcdTarget, &lifeboatv1.Job{})
	l.bury(&lifeboatv1.DeadLetter{Id: "letter", Subject: "webhook"})
	complete := func(args ...string) string {
		out, _, _ := l.lifeboat(append([]string{"__complete"}, args...)...)
		return out
	}
	file := l.dir + "/lifeboat.yaml"
	assert.Contains(t, complete("jobs", "cancel", "--config", file, ""), "snapshot\nverify\ndrill\nprune\n"+id+"\n")
	assert.Contains(t, complete("jobs", "cancel", "--config", file, "drill", ""), etcdTarget)
	assert.Contains(t, complete("dead", "show", "--config", file, ""), "letter\n")
	assert.Contains(t, complete("why", "--config", file, ""), etcdTarget)
}
