package rpo_test

import (
	"fmt"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"google.golang.org/protobuf/types/known/durationpb"
	"google.golang.org/protobuf/types/known/timestamppb"

	"github.com/lifeboat-fleet/lifeboat/fleet/bus"
	"github.com/lifeboat-fleet/lifeboat/fleet/config"
	lifeboatv1 "github.com/lifeboat-fleet/lifeboat/proto/lifeboat/v1"
)

// series are the values of all series of a replica, by name and labels.
func series(t *testing.T, r *replica) map[string]float64 {
	t.Helper()
	families, err := r.registry.Gather()
	require.NoError(t, err)
	all := map[string]float64{}
	for _, f := range families {
		for _, m := range f.GetMetric() {
			name := f.GetName()
			for _, l := range m.GetLabel() {
				name += " " + l.GetName() + "=" + l.GetValue()
			}
			all[name] = m.GetGauge().GetValue()
		}
	}
	return all
}

func (l *auditLog) say(t *testing.T, e *lifeboatv1.Event) {
	t.Helper()
	require.NoError(t, l.PublishAll(t.Context(), []bus.Outgoing{{
		Subject: bus.EventSubject(e.GetNoun(), e.GetVerb(), e.GetTarget()), Message: e, ID: fmt.Sprint(e.GetNoun(), e.GetVerb(), time.Now()),
	}}))
}

// What became of each target is known of all targets, also of what another process saw, and by a replica that starts afterwards.
func TestResultsOutliveTheProcess(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l, cfg := newLog(), fileOf(2, time.Hour)
		cfg.Targets[1] = config.Target{Name: "t-1", Zone: "beijing", Etcd: &config.Etcd{}}
		first := start(t, l, cfg, 0)
		after(time.Second)
		assert.InDelta(t, 1, series(t, first)["lifeboat_target_info kind= target=t-0 zone="], 0)
		assert.InDelta(t, 1, series(t, first)["lifeboat_target_info kind=etcd target=t-1 zone=beijing"], 0)
		assert.InDelta(t, 3600, series(t, first)["lifeboat_target_rpo_seconds target=t-0"], 0)
		for name := range series(t, first) {
			assert.NotContains(t, name, "last_", "nothing has ended yet")
			assert.NotContains(t, name, "proven")
			assert.NotEqual(t, "lifeboat_target_rpo_seconds target=t-1", name, "it has none")
		}
		begin := time.Now().Unix()
		l.commit(t, "t-0", time.Minute)
		at := map[string]int64{}
		for _, e := range []string{"verify.passed", "drill.failed", "prune.failed", "drill.escrow-passed", "copy.failed", "snapshot.failed"} {
			after(time.Minute)
			at[e] = time.Now().Unix()
			noun, verb, _ := strings.Cut(e, ".")
			l.say(t, &lifeboatv1.Event{Noun: noun, Verb: verb, Target: "t-0"})
		}
		// Two drills pass: one that restored, and one that has only read and proves nothing.
		after(time.Minute)
		drilled := time.Now()
		l.say(t, &lifeboatv1.Event{Noun: "drill", Verb: "passed", Target: "t-0", Detail: &lifeboatv1.Event_Drill{Drill: &lifeboatv1.DrillReport{
			StartedAt: timestamppb.New(drilled), DataAge: durationpb.New(5 * time.Minute), Rto: durationpb.New(1500 * time.Millisecond),
			Level: lifeboatv1.DrillReport_LEVEL_RESTORED,
		}}})
		l.say(t, &lifeboatv1.Event{Noun: "drill", Verb: "passed", Target: "t-1", Detail: &lifeboatv1.Event_Drill{Drill: &lifeboatv1.DrillReport{
			StartedAt: timestamppb.New(drilled), DataAge: durationpb.New(5 * time.Minute), Level: lifeboatv1.DrillReport_LEVEL_DECODED,
		}}})
		after(time.Second)
		want := map[string]int64{
			"lifeboat_target_last_good_snapshot_timestamp_seconds target=t-0":             begin - 60,
			"lifeboat_target_last_success_timestamp_seconds target=t-0 work=snapshot":     begin,
			"lifeboat_target_last_failure_timestamp_seconds target=t-0 work=snapshot":     at["snapshot.failed"],
			"lifeboat_target_last_success_timestamp_seconds target=t-0 work=verify":       at["verify.passed"],
			"lifeboat_target_last_failure_timestamp_seconds target=t-0 work=drill":        at["drill.failed"],
			"lifeboat_target_last_success_timestamp_seconds target=t-0 work=drill":        drilled.Unix(),
			"lifeboat_target_last_failure_timestamp_seconds target=t-0 work=prune":        at["prune.failed"],
			"lifeboat_target_last_success_timestamp_seconds target=t-0 work=drill-escrow": at["drill.escrow-passed"],
			"lifeboat_target_last_failure_timestamp_seconds target=t-0 work=copy":         at["copy.failed"],
			"lifeboat_target_proven_timestamp_seconds target=t-0":                         drilled.Add(-5 * time.Minute).Unix(),
		}
		second := start(t, l, cfg, 0)
		after(time.Second)
		for _, r := range []*replica{first, second} {
			have := series(t, r)
			for name, value := range want {
				assert.InDelta(t, float64(value), have[name], 0.5, name)
			}
			assert.InDelta(t, 1.5, have["lifeboat_target_proven_rto_seconds target=t-0"], 0.001)
			assert.NotContains(t, have, "lifeboat_target_proven_timestamp_seconds target=t-1")
			assert.NotContains(t, have, "lifeboat_target_last_success_timestamp_seconds target=t-0 work=prune")
		}
		assert.Equal(t, series(t, first), series(t, second), "every replica tells the same")
		// A target that is taken out is told of no more; a log that was lost takes nothing away from who knows it.
		l.lose()
		first.reload(fileOf(1, time.Hour))
		after(time.Minute)
		assert.Contains(t, series(t, first), "lifeboat_target_proven_timestamp_seconds target=t-0")
		for name := range series(t, first) {
			assert.NotContains(t, name, "t-1")
		}
	})
}

// Retention that is held is no success that is overdue, but has ended, and badly.
func TestPruneHeldIsAFailure(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := newLog()
		r := start(t, l, fileOf(1, time.Hour), 0)
		after(time.Second)
		l.say(t, &lifeboatv1.Event{Noun: "prune", Verb: "held", Target: "t-0"})
		at := time.Now().Unix()
		after(time.Second)
		assert.InDelta(t, float64(at), series(t, r)["lifeboat_target_last_failure_timestamp_seconds target=t-0 work=prune"], 0.5)
	})
}

// A snapshot is proven by whichever identity, as catalog.Snapshot.Proven of the backup service has it.
func TestTheEscrowIdentityProves(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := newLog()
		r := start(t, l, fileOf(1, time.Hour), 0)
		after(time.Second)
		drilled := time.Now()
		l.say(t, &lifeboatv1.Event{Noun: "drill", Verb: "escrow-passed", Target: "t-0", Detail: &lifeboatv1.Event_Drill{Drill: &lifeboatv1.DrillReport{
			StartedAt: timestamppb.New(drilled), DataAge: durationpb.New(time.Minute), Level: lifeboatv1.DrillReport_LEVEL_RESTORED,
		}}})
		after(time.Second)
		assert.InDelta(t, float64(drilled.Add(-time.Minute).Unix()), series(t, r)["lifeboat_target_proven_timestamp_seconds target=t-0"], 0.5)
	})
}
