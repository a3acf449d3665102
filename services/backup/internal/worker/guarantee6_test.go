package worker_test

import (
	"context"
	"os"
	"strings"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/lifeboat-fleet/lifeboat/fleet/config"
	"github.com/lifeboat-fleet/lifeboat/fleet/fleettest/s3test"
	lifeboatv1 "github.com/lifeboat-fleet/lifeboat/proto/lifeboat/v1"
	"github.com/lifeboat-fleet/lifeboat/services/backup/internal/catalog"
	"github.com/lifeboat-fleet/lifeboat/services/backup/internal/store"
	"github.com/lifeboat-fleet/lifeboat/services/backup/internal/store/s3"
	"github.com/lifeboat-fleet/lifeboat/services/backup/internal/worker"
)

// Guarantee 6: prune stops when a target suddenly shrank, until somebody confirms it.
func TestGuarantee6AShrunkTargetIsHeldUntilSomebodyConfirms(t *testing.T) {
	f := newFleet(t)
	f.target(func(c *config.Target) { c.Retention = config.Retention{Last: 2, ShrinkGuard: 40} })
	for d, keys := range map[int]int64{9: 100, 8: 100, 7: 10, 6: 11, 5: 12} {
		f.seed(f.catalog, f.objects, target, seeded{days: d, keys: keys})
	}
	f.put(f.catalog.Data(target, "orphan", "json", false))
	before := f.keys(target)
	require.NoError(t, f.prune(t.Context(), pruner{job: 1}))
	e := f.event("prune", "held", target)
	assert.Contains(t, e.GetMessage(), "holds 12 keys, 88 % less than the 100 of ")
	assert.Contains(t, e.GetMessage(), "lifeboat prune consul-kv --confirm-shrink "+dayID(5))
	assert.Equal(t, dayID(5), e.GetSnapshotId())
	assert.Equal(t, before, f.keys(target), "nothing at all is deleted, orphans neither")
	started := f.told("prune", "started", target)
	require.Len(t, started, 1)
	assert.Empty(t, started[0].GetAttributes()["snapshots"])
	assert.Equal(t, "0", started[0].GetAttributes()["orphans"])
	assert.Empty(t, f.told("prune", "passed", target))

	f.mark(dayID(5), lifeboatv1.Mark_KIND_SHRINK_CONFIRMED)
	require.NoError(t, f.prune(t.Context(), pruner{job: 2}))
	f.event("prune", "passed", target)
	assert.Equal(t, []string{dayID(6), dayID(5)}, f.ids(f.catalog))
}

// during does something when the nth object is removed, before it is.
type during struct {
	store.Remover
	n  int
	do func(v store.Version)
}

func (d *during) Remove(ctx context.Context, v store.Version) error {
	if d.n--; d.n == 0 {
		d.do(v)
	}
	return d.Remover.Remove(ctx, v)
}

// Guarantee 6: a pin that is set while a prune runs protects as well, and so does a drill that passes meanwhile.
func TestGuarantee6WhatIsPinnedOrProvenWhileAPruneRunsStays(t *testing.T) {
	f := newFleet(t)
	f.target(func(c *config.Target) { c.Retention = config.Retention{Last: 1} })
	f.days(6)
	require.NoError(t, f.prune(t.Context(), pruner{remover: &during{f.objects, 1, func(store.Version) {
		f.mark(dayID(5), lifeboatv1.Mark_KIND_PIN)
		f.proven(target, dayID(4))
	}}}))
	assert.Equal(t, []string{dayID(5), dayID(4), dayID(1)}, f.ids(f.catalog))
	assert.Contains(t, f.event("prune", "passed", target).GetMessage(), "spared 2")
}

// Guarantee 6: a bucket that does not show the snapshot that is to stay is not the one that the plan was made for.
func TestGuarantee6NothingMoreIsDeletedWhenTheSurvivorIsGone(t *testing.T) {
	f := newFleet(t)
	f.target(func(c *config.Target) { c.Retention = config.Retention{Last: 1} })
	f.days(6)
	err := f.prune(t.Context(), pruner{remover: &during{f.objects, 1, func(store.Version) {
		assert.NoError(t, os.Remove(f.s3.Path(f.catalog.Layout.Manifest(target, dayID(1)))))
	}}})
	require.ErrorContains(t, err, "looking for the snapshot that is to stay")
	assert.Equal(t, []string{dayID(5), dayID(4), dayID(3), dayID(2)}, f.ids(f.catalog))
}

// Guarantee 6: a snapshot whose data is gone or cut is not the newest good one, even if nobody has verified it since.
func TestGuarantee6ASnapshotWithoutItsDataIsNotTheNewestGood(t *testing.T) {
	f := newFleet(t)
	f.target(func(c *config.Target) { c.Retention = config.Retention{Last: 1} })
	f.days(5)
	require.NoError(t, os.Remove(f.s3.Path(f.catalog.Data(target, dayID(1), "json", false))))
	require.NoError(t, os.Truncate(f.s3.Path(f.catalog.Data(target, dayID(2), "json", false)), 7))
	require.NoError(t, f.prune(t.Context(), pruner{}))
	assert.Equal(t, []string{dayID(3), dayID(1)}, f.ids(f.catalog))
}

// Guarantee 6: object lock, which no credentials of ours bypass.
func TestGuarantee6LockedSnapshotsStay(t *testing.T) {
	f := newFleet(t, s3test.WithObjectLock())
	f.target(func(c *config.Target) { c.Retention = config.Retention{Last: 1} })
	locking := f.s3.Config
	locking.ObjectLock = config.ObjectLock{Mode: "GOVERNANCE", Days: 30}
	locked, err := s3.New(t.Context(), locking)
	require.NoError(t, err)
	f.seed(f.catalog, f.objects, target, seeded{days: 5, keys: 100})
	f.seed(catalog.New(locked, "p"), locked, target, seeded{days: 4, keys: 100})
	f.seed(f.catalog, f.objects, target, seeded{days: 3, keys: 100})
	f.seed(f.catalog, f.objects, target, seeded{days: 2, keys: 100})
	_, err = locked.Put(t.Context(), f.catalog.Data(target, "orphan", "json", false), strings.NewReader("locked"), 0, store.Condition{})
	require.NoError(t, err)

	plan, err := worker.PlanFor(t.Context(), f.catalog, f.objects, f.config.Load().Targets[0], later())
	require.NoError(t, err)
	assert.Equal(t, []string{"locked"}, plan.Verdicts[1].Reasons)
	require.NoError(t, f.prune(t.Context(), pruner{}))
	assert.Equal(t, []string{dayID(4), dayID(2)}, f.ids(f.catalog))
	assert.Contains(t, f.keys(target), "orphan/data.json.zst")
	assert.Contains(t, f.event("prune", "passed", target).GetMessage(), "object lock protects 1 more")
	assert.Empty(t, f.told("orphan", "deleted", target), "what stays is not told to be deleted")
}
