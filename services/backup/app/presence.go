package app

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"sync"
	"time"

	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/timestamppb"

	"github.com/lifeboat-fleet/lifeboat/fleet/bus"
	"github.com/lifeboat-fleet/lifeboat/fleet/config"
	"github.com/lifeboat-fleet/lifeboat/fleet/service"
	lifeboatv1 "github.com/lifeboat-fleet/lifeboat/proto/lifeboat/v1"
	"github.com/lifeboat-fleet/lifeboat/services/backup/internal/catalog"
	"github.com/lifeboat-fleet/lifeboat/services/backup/internal/drill"
	"github.com/lifeboat-fleet/lifeboat/services/backup/internal/store"
)

// presence says on NATS that this worker is here, where, and what it does. Workers that take snapshots or verify them also answer
// what the bucket knows of a target: the scheduler, which may not read the bucket, asks for it when NATS has lost its own memory.
// Once it drains, it says only that it is there, and that nothing is to be expected of it.
func presence(base *service.Base, cat *catalog.Catalog, roles []config.Work, o Options, drain <-chan struct{}) service.Actor {
	names := make([]string, len(roles))
	for i, role := range roles {
		names[i] = string(role)
	}
	s := bus.Service{
		Name: base.Name, Version: service.Version(),
		Metadata: map[string]string{
			"zone": o.Zone, "roles": strings.Join(names, ","), "actor": base.Bus.Actor(), "concurrency": fmt.Sprint(o.Concurrency),
		},
	}
	if slices.Contains(roles, config.WorkSnapshot) || slices.Contains(roles, config.WorkVerify) {
		s.Endpoints = map[string]func(context.Context, string, []byte) (proto.Message, error){
			bus.HistorySubject("*"): historian{base.Config, cat}.answer,
		}
	}
	return service.Actor{Name: "presence", Run: func(ctx context.Context) error {
		// A user who may not say so still does its work.
		announce := func(ctx context.Context, s bus.Service) {
			base.Until(ctx, "telling NATS that this worker is here", func(ctx context.Context) error { return base.Bus.Announce(ctx, s) })
		}
		working, drained := context.WithCancel(ctx)
		var wg sync.WaitGroup
		wg.Go(func() {
			defer drained()
			select {
			case <-drain:
			case <-ctx.Done():
			}
		})
		announce(working, s)
		wg.Wait()
		announce(ctx, idle(s))
		return nil
	}}
}

// idle is what a worker that drains says of itself.
func idle(s bus.Service) bus.Service {
	s.Endpoints, s.Metadata = nil, maps.Clone(s.Metadata)
	s.Metadata["roles"], s.Metadata["draining"] = "", "true"
	return s
}

// historian answers what the bucket knows of targets.
type historian struct {
	config  func() *config.Config
	catalog *catalog.Catalog
}

// answer reads the history of the target that the subject names. The question may hold a moment, in RFC 3339: then only what is of
// before that counts.
func (h historian) answer(ctx context.Context, subject string, data []byte) (proto.Message, error) {
	name := strings.TrimPrefix(subject, bus.HistorySubject(""))
	t, ok := h.config().Target(name)
	if !ok {
		return nil, fmt.Errorf("no target is named %q in this worker's configuration", name)
	}
	var before time.Time
	if len(data) > 0 {
		var err error
		if before, err = time.Parse(time.RFC3339Nano, string(data)); err != nil {
			return nil, fmt.Errorf("the question about %s holds no moment: %w", name, err)
		}
	}
	return history(ctx, h.catalog, t, before)
}

// history is what the bucket knows of a target from before a moment; of all time when that is zero. What was damaged in the bucket is
// passed over: it would be as damaged the next time.
func history(ctx context.Context, cat *catalog.Catalog, t config.Target, before time.Time) (*lifeboatv1.History, error) {
	h := &lifeboatv1.History{Target: t.Name}
	if err := snapshotHistory(ctx, cat, t, h, before); err != nil {
		return nil, fmt.Errorf("reading what the bucket knows of %s: %w", t.Name, err)
	}
	if err := drillHistory(ctx, cat, t, h, before); err != nil {
		return nil, fmt.Errorf("reading what the bucket knows of the drills of %s: %w", t.Name, err)
	}
	return h, nil
}

// historyDepth is how many of a target's snapshots, and of its drills, are looked at, from the newest back. Whoever asks waits half a
// minute, and asks again then: an answer that takes longer would never come. A target that has more than that without the tick of a
// schedule has none to speak of.
const historyDepth = 200

// snapshotHistory looks for the newest good snapshot, and for the newest tick that has one if the target has a schedule. They are usually
// the same.
func snapshotHistory(ctx context.Context, cat *catalog.Catalog, t config.Target, h *lifeboatv1.History, before time.Time) error {
	ids, err := cat.IDs(ctx, h.GetTarget())
	if err != nil {
		return err
	}
	for _, id := range slices.Backward(ids[max(0, len(ids)-historyDepth):]) {
		m, err := cat.Manifest(ctx, h.GetTarget(), id)
		if gone(err) {
			continue
		}
		if err != nil {
			return err
		}
		if h.GetSnapshotTick() == nil && isBefore(m.GetTick(), before) {
			h.SnapshotTick = m.GetTick()
		}
		if h.GetSnapshotId() == "" && isBefore(m.GetStartedAt(), before) {
			s, err := cat.Snapshot(ctx, h.GetTarget(), id)
			switch {
			case errors.Is(err, catalog.ErrDamaged): // a mark that cannot be read says nothing about the snapshot
			case gone(err):
				continue
			case err != nil:
				return err
			}
			if err != nil || !s.Damaged() {
				h.SnapshotId, h.SnapshotStartedAt = id, m.GetStartedAt()
			}
		}
		if h.GetSnapshotId() != "" && (h.GetSnapshotTick() != nil || t.Schedule == "") {
			return nil
		}
	}
	return nil
}

// drillHistory looks for the newest ticks that have a drill, among the kinds of drills that the target has a schedule for.
func drillHistory(ctx context.Context, cat *catalog.Catalog, t config.Target, h *lifeboatv1.History, before time.Time) error {
	wanted := func() bool {
		return (t.Drill.Schedule != "" && h.GetDrillTick() == nil) || (t.Drill.Escrow.Schedule != "" && h.GetEscrowDrillTick() == nil)
	}
	if !wanted() {
		return nil
	}
	depth := 0
	for report, err := range cat.EachDrill(ctx, t.Name) {
		if depth++; depth > historyDepth {
			return nil
		}
		if gone(err) {
			continue
		}
		if err != nil {
			return err
		}
		tick := tickOf(report)
		switch {
		case !isBefore(tick, before):
		case report.GetIdentity() == drill.IdentityEscrow:
			h.EscrowDrillTick = newer(h.GetEscrowDrillTick(), tick)
		default:
			h.DrillTick = newer(h.GetDrillTick(), tick)
		}
		if !wanted() {
			return nil
		}
	}
	return nil
}

// tickOf is the tick of a scheduled drill. Reports of earlier versions do not hold it: it was not after their end.
func tickOf(r *lifeboatv1.DrillReport) *timestamppb.Timestamp {
	if r.GetTick() == nil && r.GetRequestedBy() == "scheduler" {
		return r.GetFinishedAt()
	}
	return r.GetTick()
}

func newer(a, b *timestamppb.Timestamp) *timestamppb.Timestamp {
	if a != nil && a.AsTime().After(b.AsTime()) {
		return a
	}
	return b
}

// isBefore says whether there is a moment, and it is before another one; before any for the zero one.
func isBefore(at *timestamppb.Timestamp, before time.Time) bool {
	return at != nil && (before.IsZero() || at.AsTime().Before(before))
}

// gone says whether something was deleted since it was listed, or is damaged.
func gone(err error) bool {
	return errors.Is(err, catalog.ErrNoSnapshot) || errors.Is(err, catalog.ErrDamaged) || errors.Is(err, store.ErrNotFound)
}
