package worker

import (
	"cmp"
	"context"
	"fmt"
	"slices"
	"sync"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/lifeboat-fleet/lifeboat/fleet/config"
	"github.com/lifeboat-fleet/lifeboat/services/backup/internal/catalog"
	"github.com/lifeboat-fleet/lifeboat/services/backup/internal/retention"
	"github.com/lifeboat-fleet/lifeboat/services/backup/internal/store"
)

const (
	// lockQuestions is how many versions are asked about at once.
	lockQuestions = 8
	// The configuration sets the age; no target may ever have none.
	defaultOrphanAge = 24 * time.Hour
)

// Survey is what prune would do to a target in one bucket, and why.
type Survey struct {
	Plan retention.Plan
	// Orphans are what no snapshot needs, old enough to be removed. While the plan is held nothing is removed, orphans
	// neither.
	Orphans []catalog.Orphan
	// Hidden are snapshots whose manifest somebody hid with a delete marker, which can still be taken back. They are left.
	Hidden []string
	// Wrong says what is wrong with the data of the snapshots whose damage the listing alone shows, by id.
	Wrong map[string]string

	inventory *catalog.Inventory
}

// PlanFor says what retention would do to a target now. It only reads: it needs the right to list versions and to read
// manifests, retention and legal hold.
func PlanFor(
	ctx context.Context, cat *catalog.Catalog, rem store.Remover, target config.Target, now time.Time,
) (retention.Plan, error) {
	s, err := SurveyFor(ctx, cat, rem, target, now)
	if err != nil {
		return retention.Plan{}, err
	}
	return s.Plan, nil
}

// SurveyFor is PlanFor with what there is besides snapshots.
func SurveyFor(
	ctx context.Context, cat *catalog.Catalog, rem store.Remover, target config.Target, now time.Time,
) (*Survey, error) {
	return survey(ctx, place{catalog: cat, remover: rem}, target, now)
}

func survey(ctx context.Context, p place, target config.Target, now time.Time) (*Survey, error) {
	zone, err := time.LoadLocation(target.TimeZone)
	if err != nil {
		return nil, fmt.Errorf("the time zone of %s: %w", target.Name, err)
	}
	inv, err := p.catalog.Inventory(ctx, p.remover, target.Name)
	if err != nil {
		return nil, err
	}
	s := &Survey{inventory: inv, Wrong: map[string]string{}}
	snapshots := s.facts()
	policy := target.Retention
	if p.besides != nil {
		for _, other := range p.besides.survivors {
			for _, key := range other.DataKeys() {
				inv.Refer(p.catalog.Rebase(p.besides.layout, key))
			}
		}
		for i := range snapshots { // people confirm in the first bucket
			for _, other := range p.besides.survivors {
				if other.GetId() == snapshots[i].ID && confirmed(other) {
					snapshots[i].ShrinkConfirmed = true
				}
			}
		}
	}
	decide := func() {
		s.Plan = retention.Decide(now, zone, policy, snapshots)
		s.keepMore(p)
	}
	decide()
	locked, err := lockedOf(ctx, p.remover, inv, s.Plan.Unkept(), now)
	if err != nil {
		return nil, err
	}
	if len(locked) > 0 {
		for i := range snapshots {
			snapshots[i].Locked = locked[snapshots[i].ID]
		}
		decide()
	}
	if s.Plan.Shrunk != "" {
		s.Plan.Held += fmt.Sprintf(": lifeboat prune %s --confirm-shrink %s", target.Name, s.Plan.Shrunk)
	}
	s.Orphans, s.Hidden = inv.Orphans(now.Add(-cmp.Or(target.Prune.OrphanAge, defaultOrphanAge)))
	doomed := s.Plan.Delete()
	alone := len(s.survivors()) == 0
	s.Orphans = slices.DeleteFunc(s.Orphans, func(o catalog.Orphan) bool {
		// What lies beside a doomed snapshot goes with it. Without any good snapshot, data that nobody refers to may be all that
		// is left of the target, and only uploads, which nobody can read, are removed.
		return slices.Contains(doomed, o.ID) || (alone && len(o.Versions) > 0)
	})
	return s, nil
}

// facts are what retention needs to know. Data that the listing shows to be missing or cut counts as damaged, whether or not a
// verification has seen it.
func (s *Survey) facts() []retention.Snapshot {
	var all []retention.Snapshot
	for _, m := range s.inventory.Snapshots {
		count, known := Size(m.Manifest)
		if !known {
			count = -1
		}
		unit := "keys"
		if _, ok := m.GetSource().GetCounts()[unit]; !ok {
			unit = "jobs"
		}
		wrong := s.inventory.Wrong(m)
		if wrong != "" {
			s.Wrong[m.GetId()] = wrong
		}
		all = append(all, retention.Snapshot{
			ID: m.GetId(), At: m.GetStartedAt().AsTime(), Count: count, Unit: unit, Bytes: m.GetData().GetRaw().GetBytes(),
			Damaged: m.Damaged() || wrong != "", Proven: m.Proven() != nil, Pinned: m.Pinned(), ShrinkConfirmed: confirmed(m),
		})
	}
	return all
}

// keepMore keeps what retention cannot know of: the newest by id, whose data a snapshot that is being taken right now may
// come to refer to, and in a second bucket what the first one keeps.
func (s *Survey) keepMore(p place) {
	unkept := s.Plan.Unkept()
	if n := len(s.inventory.Snapshots); n > 0 {
		if newest := s.inventory.Snapshots[n-1].GetId(); slices.Contains(unkept, newest) {
			s.Plan.Keep(newest, "newest by id")
		}
	}
	if p.besides == nil {
		return
	}
	for _, other := range p.besides.survivors {
		if slices.Contains(unkept, other.GetId()) {
			s.Plan.Keep(other.GetId(), "kept in the first bucket")
		}
	}
}

// survivors are the good snapshots that stay, oldest first.
func (s *Survey) survivors() []string {
	var ids []string
	for _, v := range s.Plan.Verdicts {
		if len(v.Reasons) > 0 && !v.Damaged {
			ids = append(ids, v.ID)
		}
	}
	return ids
}

// lockedOf asks object lock about the snapshots that would be deleted.
func lockedOf(
	ctx context.Context, rem store.Remover, inv *catalog.Inventory, ids []string, now time.Time,
) (map[string]bool, error) {
	owners := map[store.Version][]string{} // data may be that of several snapshots, and is asked about once
	for _, s := range inv.Snapshots {
		if !slices.Contains(ids, s.GetId()) {
			continue
		}
		for _, o := range append(inv.Data(s), inv.Manifest(s.GetId())) {
			for _, v := range o.Versions {
				owners[v] = append(owners[v], s.GetId())
			}
		}
	}
	var mu sync.Mutex
	locked := map[string]bool{}
	g, ctx := errgroup.WithContext(ctx)
	g.SetLimit(lockQuestions)
	for v, of := range owners {
		g.Go(func() error {
			lock, err := rem.Lock(ctx, v)
			if err != nil || !lock.Held(now) {
				return err
			}
			mu.Lock()
			defer mu.Unlock()
			for _, id := range of {
				locked[id] = true
			}
			return nil
		})
	}
	if err := g.Wait(); err != nil {
		return nil, err
	}
	return locked, nil
}
