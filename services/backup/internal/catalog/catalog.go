package catalog

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"

	"golang.org/x/sync/errgroup"
	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/proto"

	lifeboatv1 "github.com/lifeboat-fleet/lifeboat/proto/lifeboat/v1"
	"github.com/lifeboat-fleet/lifeboat/services/backup/internal/store"
)

// Format is the version of manifests and reports that this code writes, and the highest that it reads.
const Format = 1

// maxDocument bounds a manifest or report; they are a few kilobytes.
const maxDocument = 4 << 20

// ErrNoSnapshot means that the target has no snapshot that fits the selector.
var ErrNoSnapshot = errors.New("no such snapshot")

// ErrDamaged means that a document is there and is not what it should be: cut, of another target, or of a format that this version
// does not know. Reading it again changes nothing.
var ErrDamaged = errors.New("is damaged")

// Objects is what the catalog needs of a store.
type Objects interface {
	Put(ctx context.Context, key string, r io.Reader, sizeHint int64, c store.Condition) (store.Object, error)
	Get(ctx context.Context, key string) (io.ReadCloser, store.Object, error)
	List(ctx context.Context, prefix string, fn func(store.Object) error) error
}

// Catalog reads and writes manifests and drill reports.
type Catalog struct {
	Layout
	objects Objects
}

// New returns the catalog of a bucket's prefix.
func New(o Objects, prefix string) *Catalog { return &Catalog{Layout: Layout{prefix}, objects: o} }

// Snapshot is a committed snapshot with the reports of its drills, oldest first.
type Snapshot struct {
	*lifeboatv1.Manifest
	Drills []*lifeboatv1.DrillReport
	Marks  map[lifeboatv1.Mark_Kind]*lifeboatv1.Mark
}

// Pinned says whether retention must leave it.
func (s Snapshot) Pinned() bool { return s.Marks[lifeboatv1.Mark_KIND_PIN].GetHolds() }

// Damaged says whether the newest verification found that its data does not match its manifest.
func (s Snapshot) Damaged() bool {
	v := s.Marks[lifeboatv1.Mark_KIND_VERIFIED]
	return v != nil && !v.GetHolds()
}

// Proven is the newest drill that restored this snapshot and passed; nil when there is none.
func (s Snapshot) Proven() *lifeboatv1.DrillReport {
	for _, d := range slices.Backward(s.Drills) {
		if d.GetPassed() && d.GetLevel() == lifeboatv1.DrillReport_LEVEL_RESTORED {
			return d
		}
	}
	return nil
}

// List returns the target's snapshots, oldest first. A manifest that cannot be read is an error: a catalog with a hole
// would lie.
func (c *Catalog) List(ctx context.Context, target string) ([]Snapshot, error) {
	var manifests, drills, marks []string
	err := c.objects.List(ctx, c.snapshots(target), func(o store.Object) error {
		_, rest := c.parse(target, o.Key)
		switch {
		case rest == "manifest.json":
			manifests = append(manifests, o.Key)
		case strings.HasPrefix(rest, "drills/") && strings.HasSuffix(rest, ".json"):
			drills = append(drills, o.Key)
		case strings.HasPrefix(rest, "marks/") && strings.HasSuffix(rest, ".json"):
			marks = append(marks, o.Key)
		}
		return nil
	})
	if err != nil {
		return nil, fmt.Errorf("listing the snapshots of %s: %w", target, err)
	}
	snapshots := make([]Snapshot, len(manifests))
	reports := make([]*lifeboatv1.DrillReport, len(drills))
	marked := make([]*lifeboatv1.Mark, len(marks))
	g, ctx := errgroup.WithContext(ctx)
	g.SetLimit(16)
	for i, key := range manifests {
		g.Go(func() error {
			m := &lifeboatv1.Manifest{}
			snapshots[i].Manifest = m
			return c.read(ctx, key, m)
		})
	}
	for i, key := range drills {
		g.Go(func() error {
			reports[i] = &lifeboatv1.DrillReport{}
			return c.read(ctx, key, reports[i])
		})
	}
	for i, key := range marks {
		g.Go(func() error {
			marked[i] = &lifeboatv1.Mark{}
			return c.read(ctx, key, marked[i])
		})
	}
	if err := g.Wait(); err != nil {
		return nil, err
	}
	byID := map[string]int{}
	for i, s := range snapshots {
		byID[s.GetId()] = i
	}
	for _, r := range reports {
		if i, ok := byID[r.GetSnapshotId()]; ok {
			snapshots[i].Drills = append(snapshots[i].Drills, r)
		}
	}
	for _, m := range marked {
		i, ok := byID[m.GetSnapshotId()]
		if !ok {
			continue
		}
		if snapshots[i].Marks == nil {
			snapshots[i].Marks = map[lifeboatv1.Mark_Kind]*lifeboatv1.Mark{}
		}
		snapshots[i].Marks[m.GetKind()] = m
	}
	return snapshots, nil
}

// SetMark writes a mark, in place of an earlier one of its kind.
func (c *Catalog) SetMark(ctx context.Context, m *lifeboatv1.Mark) error {
	m.Format = Format
	return c.write(ctx, c.Mark(m.GetTarget(), m.GetSnapshotId(), m.GetKind()), m, store.Condition{})
}

// Find returns one snapshot: "latest" (or empty), "oldest", or an id.
func (c *Catalog) Find(ctx context.Context, target, selector string) (*lifeboatv1.Manifest, error) {
	if selector != "" && selector != "latest" && selector != "oldest" {
		return c.Manifest(ctx, target, selector)
	}
	newest := ""
	err := c.objects.List(ctx, c.snapshots(target), func(o store.Object) error {
		if id, rest := c.parse(target, o.Key); rest == "manifest.json" && (newest == "" || selector != "oldest") {
			newest = id
		}
		return nil
	})
	if err != nil {
		return nil, fmt.Errorf("looking for the %s snapshot of %s: %w", selector, target, err)
	}
	if newest == "" {
		return nil, fmt.Errorf("%w: %s has none yet", ErrNoSnapshot, target)
	}
	return c.Manifest(ctx, target, newest)
}

// Manifest reads one manifest; ErrNoSnapshot when it does not exist.
func (c *Catalog) Manifest(ctx context.Context, target, id string) (*lifeboatv1.Manifest, error) {
	m := &lifeboatv1.Manifest{}
	err := c.read(ctx, c.Layout.Manifest(target, id), m)
	if errors.Is(err, store.ErrNotFound) {
		return nil, fmt.Errorf("%w: %s has no snapshot %s", ErrNoSnapshot, target, id)
	}
	if err != nil {
		return nil, err
	}
	if m.GetId() != id || m.GetTarget() != target {
		return nil, fmt.Errorf("the manifest of %s of %s %w: it says that it is %s of %s", id, target, ErrDamaged, m.GetId(), m.GetTarget())
	}
	return m, nil
}

// Commit writes a manifest, if none exists. From then on the snapshot exists. It returns store.ErrPrecondition when
// there is one already.
func (c *Catalog) Commit(ctx context.Context, m *lifeboatv1.Manifest) error {
	return c.write(ctx, c.Layout.Manifest(m.GetTarget(), m.GetId()), m, store.Condition{Absent: true})
}

// AddDrill writes a drill's report beside its snapshot. Writing the same drill again is no error.
func (c *Catalog) AddDrill(ctx context.Context, r *lifeboatv1.DrillReport) error {
	key := c.Drill(r.GetTarget(), r.GetSnapshotId(), r.GetId())
	if err := c.write(ctx, key, r, store.Condition{Absent: true}); err != nil && !errors.Is(err, store.ErrPrecondition) {
		return err
	}
	return nil
}

func (c *Catalog) write(ctx context.Context, key string, m proto.Message, cond store.Condition) error {
	b, err := protojson.MarshalOptions{Multiline: true}.Marshal(m)
	if err != nil {
		return fmt.Errorf("encoding %s: %w", key, err)
	}
	_, err = c.objects.Put(ctx, key, bytes.NewReader(b), int64(len(b)), cond)
	return err
}

type formatted interface {
	proto.Message
	GetFormat() int32
}

func (c *Catalog) read(ctx context.Context, key string, into formatted) error {
	r, _, err := c.objects.Get(ctx, key)
	if err != nil {
		return err
	}
	defer r.Close()
	b, err := io.ReadAll(io.LimitReader(r, maxDocument))
	if err != nil {
		return fmt.Errorf("reading %s: %w", key, err)
	}
	if err := (protojson.UnmarshalOptions{DiscardUnknown: true}).Unmarshal(b, into); err != nil {
		return fmt.Errorf("%s %w: %w", key, ErrDamaged, err)
	}
	if f := into.GetFormat(); f < 1 || f > Format {
		return fmt.Errorf("%s %w: it has format %d; this version reads up to %d", key, ErrDamaged, f, Format)
	}
	return nil
}
