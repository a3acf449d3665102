package catalog

import (
	"context"
	"errors"
	"fmt"
	"iter"
	"path"
	"slices"
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

// ErrNoDrill means that the target has no drill that fits the selector.
var ErrNoDrill = errors.New("no such drill")

// FindDrill returns one drill's report: "latest" (or empty), an id, or the number at the end of one, which is the sequence of its
// job. Nothing else is read, so that a report or manifest which cannot be read does not hide the others.
func (c *Catalog) FindDrill(ctx context.Context, target, selector string) (*lifeboatv1.DrillReport, error) {
	keys, err := c.drillKeys(ctx, target)
	if err != nil {
		return nil, err
	}
	// Of several drills under one number, which streams that were made anew give, the newest is meant.
	for _, key := range keys {
		id := drillID(key)
		if selector == "" || selector == "latest" || id == selector || strings.HasSuffix(id, "-"+selector) {
			r := &lifeboatv1.DrillReport{}
			return r, c.read(ctx, key, r)
		}
	}
	if len(keys) == 0 {
		return nil, fmt.Errorf("%w: %s has none yet", ErrNoDrill, target)
	}
	return nil, fmt.Errorf("%w: %s has no drill %s", ErrNoDrill, target, selector)
}

// DrillIDs lists the ids of the target's drills, newest first.
func (c *Catalog) DrillIDs(ctx context.Context, target string) ([]string, error) {
	keys, err := c.drillKeys(ctx, target)
	ids := make([]string, len(keys))
	for i, key := range keys {
		ids[i] = drillID(key)
	}
	return ids, err
}

// EachDrill gives the reports of the target's drills, newest first, reading one after the other as they are asked for. With one that
// cannot be read comes the error, and the others follow.
func (c *Catalog) EachDrill(ctx context.Context, target string) iter.Seq2[*lifeboatv1.DrillReport, error] {
	return func(yield func(*lifeboatv1.DrillReport, error) bool) {
		keys, err := c.drillKeys(ctx, target)
		if err != nil {
			yield(nil, err)
			return
		}
		for _, key := range keys {
			r := &lifeboatv1.DrillReport{}
			if !yield(r, c.read(ctx, key, r)) {
				return
			}
		}
	}
}

// drillKeys are those of the target's reports, newest first: their ids sort by time.
func (c *Catalog) drillKeys(ctx context.Context, target string) ([]string, error) {
	var keys []string
	err := c.objects.List(ctx, c.snapshots(target), func(o store.Object) error {
		if _, rest := c.parse(target, o.Key); strings.HasPrefix(rest, "drills/") && strings.HasSuffix(rest, ".json") {
			keys = append(keys, o.Key)
		}
		return nil
	})
	if err != nil {
		return nil, fmt.Errorf("listing the drills of %s: %w", target, err)
	}
	slices.SortStableFunc(keys, func(a, b string) int { return strings.Compare(drillID(b), drillID(a)) })
	return keys, nil
}

func drillID(key string) string { return strings.TrimSuffix(path.Base(key), ".json") }

// Choose returns the id of one snapshot: "latest" (or empty), "oldest", "random", or an id, which is returned as it is. pick gives a
// number below n; it is asked for a random one only. It returns ErrNoSnapshot when the target has none.
func (c *Catalog) Choose(ctx context.Context, target, selector string, pick func(n int) int) (string, error) {
	switch selector {
	case "", "latest", "oldest", "random":
	default:
		return selector, nil
	}
	ids, err := c.IDs(ctx, target)
	if err != nil {
		return "", err
	}
	switch {
	case len(ids) == 0:
		return "", fmt.Errorf("%w: %s has none yet", ErrNoSnapshot, target)
	case selector == "oldest":
		return ids[0], nil
	case selector == "random":
		return ids[pick(len(ids))], nil
	}
	return ids[len(ids)-1], nil
}
