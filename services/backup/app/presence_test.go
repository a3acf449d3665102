package app

import (
	"errors"
	"net/http"
	"os"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"google.golang.org/protobuf/types/known/timestamppb"

	"github.com/lifeboat-fleet/lifeboat/fleet/config"
	"github.com/lifeboat-fleet/lifeboat/fleet/fleettest/s3test"
	"github.com/lifeboat-fleet/lifeboat/fleet/service"
	lifeboatv1 "github.com/lifeboat-fleet/lifeboat/proto/lifeboat/v1"
	"github.com/lifeboat-fleet/lifeboat/services/backup/internal/catalog"
	"github.com/lifeboat-fleet/lifeboat/services/backup/internal/store/s3"
)

// hour is a moment of the day that these tests are about.
func hour(h int) time.Time { return time.Date(2026, 11, 21, h, 0, 0, 0, time.UTC) }

// past commits a snapshot that was begun at an hour, for the tick of that hour if it was for one.
func (l *lab) past(t *testing.T, h int, scheduled bool) string {
	t.Helper()
	id := hour(h).Format("20060102T150405.000Z") + "-1"
	m := &lifeboatv1.Manifest{Format: catalog.Format, Id: id, Target: etcdTarget, StartedAt: timestamppb.New(hour(h))}
	if scheduled {
		m.Tick = timestamppb.New(hour(h))
	}
	require.NoError(t, l.catalog.Commit(t.Context(), m))
	return id
}

// rehearsed adds the report of a drill that ended at an hour.
func (l *lab) rehearsed(t *testing.T, snapshot string, h int, change func(*lifeboatv1.DrillReport)) {
	t.Helper()
	r := &lifeboatv1.DrillReport{
		Format: catalog.Format, Id: hour(h).Format("20060102T150405.000Z") + "-2", Target: etcdTarget, SnapshotId: snapshot,
		FinishedAt: timestamppb.New(hour(h)), Identity: "worker",
	}
	change(r)
	require.NoError(t, l.catalog.AddDrill(t.Context(), r))
}

func TestHistoryIsTheNewestOfEachKind(t *testing.T) {
	l := labFor(t)
	target := config.Target{Name: etcdTarget, Schedule: "@hourly", Drill: config.Drill{Schedule: "@daily", Escrow: config.Escrow{Schedule: "@weekly"}}}
	ask := func(before time.Time) *lifeboatv1.History {
		t.Helper()
		h, err := history(t.Context(), l.catalog, target, before)
		require.NoError(t, err)
		return h
	}
	at := func(ts *timestamppb.Timestamp) int { return ts.AsTime().Hour() }
	none := ask(time.Time{})
	assert.Equal(t, etcdTarget, none.GetTarget())
	assert.Empty(t, none.GetSnapshotId())
	assert.Nil(t, none.GetSnapshotTick())

	l.past(t, 1, true)
	second := l.past(t, 2, true)
	third := l.past(t, 3, false)
	broken := l.past(t, 4, true)
	require.NoError(t, l.catalog.SetMark(t.Context(), &lifeboatv1.Mark{
		Kind: lifeboatv1.Mark_KIND_VERIFIED, Target: etcdTarget, SnapshotId: broken, Reason: "damaged",
	}))
	h := ask(time.Time{})
	assert.Equal(t, third, h.GetSnapshotId(), "the newest good one, also by hand")
	assert.Equal(t, 3, at(h.GetSnapshotStartedAt()))
	assert.Equal(t, 4, at(h.GetSnapshotTick()), "a tick that was run is one, whatever became of the snapshot")
	h = ask(hour(3))
	assert.Equal(t, second, h.GetSnapshotId())
	assert.Equal(t, 2, at(h.GetSnapshotTick()))
	assert.Empty(t, ask(hour(1)).GetSnapshotId())

	// What cannot be read now cannot be read later: it hides nothing else.
	require.NoError(t, os.WriteFile(l.server.Path(l.catalog.Layout.Manifest(etcdTarget, broken)), []byte("{"), 0o600))
	assert.Equal(t, 2, at(ask(time.Time{}).GetSnapshotTick()))

	tick := func(h int) func(*lifeboatv1.DrillReport) {
		return func(r *lifeboatv1.DrillReport) { r.Tick = timestamppb.New(hour(h)) }
	}
	l.rehearsed(t, second, 10, tick(9))
	l.rehearsed(t, third, 11, func(r *lifeboatv1.DrillReport) { r.Tick, r.Identity = timestamppb.New(hour(8)), "escrow" })
	l.rehearsed(t, third, 12, func(r *lifeboatv1.DrillReport) { r.RequestedBy = "cli somebody" })
	h = ask(time.Time{})
	assert.Equal(t, 9, at(h.GetDrillTick()), "a person's drill is no tick")
	assert.Equal(t, 8, at(h.GetEscrowDrillTick()))
	l.rehearsed(t, third, 13, func(r *lifeboatv1.DrillReport) { r.RequestedBy = "scheduler" })
	assert.Equal(t, 13, at(ask(time.Time{}).GetDrillTick()), "an older version's report does not say its tick")
	assert.Equal(t, 9, at(ask(hour(13)).GetDrillTick()))
}

// A bucket that cannot be read is an error, so that the question is asked again, and not the answer that there is nothing.
func TestHistoryOfABucketThatCannotBeRead(t *testing.T) {
	l := labFor(t)
	id := l.past(t, 1, true)
	proxy := s3test.NewProxy(t, l.server)
	objects, err := s3.New(t.Context(), proxy.Config)
	require.NoError(t, err)
	cat := catalog.New(objects, l.prefix)
	target := config.Target{Name: etcdTarget, Drill: config.Drill{Schedule: "@daily"}}
	for _, op := range []string{"ListObjectsV2", "GetObject"} {
		proxy.Handle(s3test.Always(op, s3test.Answer(http.StatusForbidden, "AccessDenied")))
		_, err = history(t.Context(), cat, target, time.Time{})
		require.Error(t, err, op)
	}
	proxy.Handle(nil)
	h, err := history(t.Context(), cat, target, time.Time{})
	require.NoError(t, err)
	assert.Equal(t, id, h.GetSnapshotId())
}

// Whoever has thousands of snapshots and never a tick gets an answer in time: the bucket is not read as a whole.
func TestHistoryReadsAFewOfMany(t *testing.T) {
	l := labFor(t)
	begin := hour(0)
	for i := range historyDepth + 50 {
		at := begin.Add(time.Duration(i) * time.Minute)
		require.NoError(t, l.catalog.Commit(t.Context(), &lifeboatv1.Manifest{
			Format: catalog.Format, Id: at.Format("20060102T150405.000Z") + "-1", Target: etcdTarget, StartedAt: timestamppb.New(at),
		}))
	}
	proxy := s3test.NewProxy(t, l.server)
	objects, err := s3.New(t.Context(), proxy.Config)
	require.NoError(t, err)
	cat := catalog.New(objects, l.prefix)
	for schedule, most := range map[string]int{"": 3, "@hourly": historyDepth + 3} {
		proxy.Forget()
		h, err := history(t.Context(), cat, config.Target{Name: etcdTarget, Schedule: schedule}, time.Time{})
		require.NoError(t, err)
		assert.NotEmpty(t, h.GetSnapshotId())
		assert.Nil(t, h.GetSnapshotTick())
		assert.LessOrEqual(t, proxy.Count("GetObject"), most)
		assert.Positive(t, proxy.Count("GetObject"))
	}
}

// A zone that no target can have is a mistake, and would leave the worker without that zone's jobs.
func TestAZoneThatCannotBe(t *testing.T) {
	err := Run(t.Context(), Options{ConfigPath: "none.yaml", Zone: "Beijing 1"})
	usage, ok := errors.AsType[*service.UsageError](err)
	require.True(t, ok, err)
	assert.ErrorContains(t, usage, "--zone")
}

func TestAQuestionWithoutAMomentIsRefused(t *testing.T) {
	l := labFor(t)
	h := historian{func() *config.Config { return &config.Config{Targets: []config.Target{{Name: etcdTarget}}} }, l.catalog}
	_, err := h.answer(t.Context(), "lifeboat.ask.history."+etcdTarget, []byte("yesterday"))
	require.ErrorContains(t, err, "holds no moment")
	l.past(t, 1, true)
	m, err := h.answer(t.Context(), "lifeboat.ask.history."+etcdTarget, []byte("2026-11-21T00:30:00.5Z"))
	require.NoError(t, err)
	got, ok := m.(*lifeboatv1.History)
	require.True(t, ok)
	assert.Equal(t, etcdTarget, got.GetTarget())
	assert.Empty(t, got.GetSnapshotId())
}
