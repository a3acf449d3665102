package app

import (
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"google.golang.org/protobuf/types/known/timestamppb"

	"github.com/lifeboat-fleet/lifeboat/fleet/config"
	lifeboatv1 "github.com/lifeboat-fleet/lifeboat/proto/lifeboat/v1"
	"github.com/lifeboat-fleet/lifeboat/services/backup/internal/catalog"
)

func TestStatusIsWhatAPersonMustKnow(t *testing.T) {
	now := time.Date(2026, 11, 21, 4, 0, 0, 0, time.UTC)
	target := config.Target{Name: "a", Etcd: &config.Etcd{}, RPO: time.Hour, Schedule: "@every 30m"}
	snapshot := func(ago time.Duration, drills ...*lifeboatv1.DrillReport) catalog.Snapshot {
		at := timestamppb.New(now.Add(-ago))
		return catalog.Snapshot{Manifest: &lifeboatv1.Manifest{Id: ago.String(), StartedAt: at, Tick: at}, Drills: drills}
	}
	drill := func(ago time.Duration, passed bool, level lifeboatv1.DrillReport_Level) *lifeboatv1.DrillReport {
		return &lifeboatv1.DrillReport{FinishedAt: timestamppb.New(now.Add(-ago)), Passed: passed, Level: level}
	}
	const restored, decoded = lifeboatv1.DrillReport_LEVEL_RESTORED, lifeboatv1.DrillReport_LEVEL_DECODED

	s := statusOf(target, nil, now)
	assert.Equal(t, stateNone, s.State)

	s = statusOf(target, []catalog.Snapshot{snapshot(2 * time.Hour)}, now)
	assert.Equal(t, stateExceeded, s.State)

	s = statusOf(target, []catalog.Snapshot{
		snapshot(2*time.Hour, drill(90*time.Minute, true, restored)),
		snapshot(10*time.Minute, drill(5*time.Minute, true, decoded)),
	}, now)
	assert.Equal(t, stateOK, s.State)
	assert.Equal(t, "10m0s", s.Newest)
	assert.Equal(t, "2h0m0s", s.Proven, "a decoded snapshot is not proven")
	require.NotNil(t, s.NextSnapshot)
	assert.Equal(t, now.Add(20*time.Minute), *s.NextSnapshot, "an interval counts from the last tick")

	s = statusOf(target, []catalog.Snapshot{
		snapshot(10*time.Minute, drill(8*time.Minute, true, restored), drill(5*time.Minute, false, restored)),
	}, now)
	assert.Equal(t, stateFailed, s.State, "the newest drill counts")
}
