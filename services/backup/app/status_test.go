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
		return &lifeboatv1.DrillReport{Id: "d", FinishedAt: timestamppb.New(now.Add(-ago)), Passed: passed, Level: level}
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
	assert.Equal(t, now.Add(-2*time.Hour), *s.ProvenAt, "the age of what is proven is that of its data")
	assert.Equal(t, now.Add(-90*time.Minute), *s.LastProvenAt, "and when it was proven is another question")
	require.NotNil(t, s.NextSnapshot)
	assert.Equal(t, now.Add(30*time.Minute), *s.NextSnapshot, "an interval counts from the epoch, whenever it began")
	paused := target
	paused.Paused = true
	assert.Nil(t, statusOf(paused, nil, now).NextSnapshot, "what is paused has no next snapshot")

	s = statusOf(target, []catalog.Snapshot{
		snapshot(10*time.Minute, drill(8*time.Minute, true, restored), drill(5*time.Minute, false, restored)),
	}, now)
	assert.Equal(t, stateFailed, s.State, "the newest drill counts")

	broken := drill(time.Minute, false, restored)
	broken.Id, broken.FailedPhase, broken.Failure = "b", "restore", "restore: the disk is full"
	s = statusOf(target, []catalog.Snapshot{snapshot(10*time.Minute, drill(8*time.Minute, true, restored), broken)}, now)
	assert.Equal(t, "restore", s.FailedPhase)
	assert.Equal(t, "restore: the disk is full", s.DrillFailure)
	assert.Equal(t, ": restore", inPhase(s), "the phase shows on the line")

	escrow := drill(5*time.Minute, false, restored)
	escrow.Id, escrow.Identity = "e", config.IdentityEscrow
	both := []catalog.Snapshot{snapshot(10*time.Minute, escrow, drill(2*time.Minute, true, restored))}
	assert.Equal(t, stateOK, statusOf(target, both, now).State, "a key that is not drilled any more makes nobody worry")
	target.Drill.Escrow.IdentityFile = "escrow.key"
	s = statusOf(target, both, now)
	assert.Equal(t, stateFailed, s.State, "a drill with the worker's key does not prove the escrow key")
	assert.Equal(t, "e", s.FailedDrill)
	assert.True(t, *s.DrillPassed)
}
