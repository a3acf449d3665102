package catalog

import (
	"context"
	"fmt"
	"strings"

	lifeboatv1 "github.com/lifeboat-fleet/lifeboat/proto/lifeboat/v1"
	"github.com/lifeboat-fleet/lifeboat/services/backup/internal/store"
)

// Snapshot returns one snapshot with its drills and marks. selector is as for Find. It reads nothing of the target's other
// snapshots, so that a manifest which cannot be read does not hide the others.
func (c *Catalog) Snapshot(ctx context.Context, target, selector string) (Snapshot, error) {
	m, err := c.Find(ctx, target, selector)
	if err != nil {
		return Snapshot{}, err
	}
	s := Snapshot{Manifest: m, Marks: map[lifeboatv1.Mark_Kind]*lifeboatv1.Mark{}}
	var drills, marks []string
	err = c.objects.List(ctx, c.snapshot(target, m.GetId()), func(o store.Object) error {
		_, rest := c.parse(target, o.Key)
		switch {
		case !strings.HasSuffix(rest, ".json"):
		case strings.HasPrefix(rest, "drills/"):
			drills = append(drills, o.Key)
		case strings.HasPrefix(rest, "marks/"):
			marks = append(marks, o.Key)
		}
		return nil
	})
	if err != nil {
		return Snapshot{}, fmt.Errorf("listing what is known of %s: %w", m.GetId(), err)
	}
	for _, key := range drills {
		r := &lifeboatv1.DrillReport{}
		if err := c.read(ctx, key, r); err != nil {
			return Snapshot{}, err
		}
		s.Drills = append(s.Drills, r)
	}
	for _, key := range marks {
		mark := &lifeboatv1.Mark{}
		if err := c.read(ctx, key, mark); err != nil {
			return Snapshot{}, err
		}
		s.Marks[mark.GetKind()] = mark
	}
	return s, nil
}

// IDs lists the ids of the target's snapshots, oldest first, without reading their manifests.
func (c *Catalog) IDs(ctx context.Context, target string) ([]string, error) {
	var ids []string
	err := c.objects.List(ctx, c.snapshots(target), func(o store.Object) error {
		if id, rest := c.parse(target, o.Key); rest == "manifest.json" {
			ids = append(ids, id)
		}
		return nil
	})
	if err != nil {
		return nil, fmt.Errorf("listing the snapshots of %s: %w", target, err)
	}
	return ids, nil
}
