package consul

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"maps"
	"slices"
	"strings"

	"github.com/lifeboat-fleet/lifeboat/services/backup/internal/restore"
	"github.com/lifeboat-fleet/lifeboat/services/backup/internal/source/consulkv"
)

// state is a key at the destination. It is absent when index is 0, which no key's is.
type state struct {
	index uint64 // ModifyIndex
	flags uint64
	size  int64
}

// step is one key of the snapshot or, with Extra, of the destination only.
type step struct {
	name   string         // at the destination
	entry  consulkv.Entry // of the snapshot; the texts are valid until the next step
	there  state
	other  bool           // the values differ
	action restore.Action // Create, Same, Differs, Skip or Extra
	from   string         // its name in the snapshot; empty with Extra
}

// decide compares a key of the snapshot with what is at the destination.
func decide(name string, e consulkv.Entry, there state, value []byte) step {
	s := step{name: name, entry: e, there: there, action: restore.Same}
	if there.index == 0 {
		s.action = restore.Create
		return s
	}
	// Both are base64 in the one way there is to write it.
	s.other = !bytes.Equal(e.Value, value)
	if s.other || e.Flags != there.flags {
		s.action = restore.Differs
	}
	return s
}

func (s step) item() restore.Item {
	i := restore.Item{Kind: "key", Name: s.name, Action: s.action}
	switch s.action {
	case restore.Create:
		i.Detail = amount(s.entry.Size, s.entry.Flags)
	case restore.Skip:
		i.Detail = "the snapshot has another key of this name: they differed in bytes that are no UTF-8, which Consul does not show"
	case restore.Extra:
		i.Detail = amount(s.there.size, s.there.flags)
	case restore.Differs, restore.Change:
		i.Detail = difference(s.there, s.entry.Size, s.entry.Flags, s.other)
	}
	return i
}

// amount shows a key without its value.
func amount(size int64, flags uint64) string {
	if flags == 0 {
		return fmt.Sprintf("value %d B", size)
	}
	return fmt.Sprintf("value %d B, flags %d", size, flags)
}

// difference shows what differs without its value.
func difference(there state, size int64, flags uint64, other bool) string {
	var parts []string
	if other {
		parts = append(parts, fmt.Sprintf("value %d B -> %d B", there.size, size))
	}
	if there.flags != flags {
		parts = append(parts, fmt.Sprintf("flags %d -> %d", there.flags, flags))
	}
	return strings.Join(parts, ", ")
}

// odd says whether a name may stand for bytes that are no UTF-8, and is sorted by those.
func odd(name string) bool { return strings.Contains(name, "\ufffd") }

// join goes through the snapshot and the lists of the destination side by side, in the order of the names. There is one list for
// each region. One is open while the snapshot is in its region, and that of each region around it.
type join struct {
	dest    *destination
	regions *regions

	todo []*region            // whose lists were not read to the end, those within others before these
	open map[*region]*listing // of those, which were begun
	// Odd names, of the snapshot and of the destination.
	met   map[string]bool
	there map[string]state
}

// run visits every key. It returns nil only if the snapshot was read to its end and every list, too.
func (j *join) run(ctx context.Context, e *entries, visit func(step) error) error {
	j.todo, j.open = slices.Clone(j.regions.byFrom), make(map[*region]*listing)
	slices.SortFunc(j.todo, func(a, b *region) int { return strings.Compare(a.from+"\xff", b.from+"\xff") })
	j.met, j.there = make(map[string]bool), make(map[string]state)
	defer func() {
		for _, l := range j.open {
			l.close()
		}
	}()
	for {
		if ctx.Err() != nil {
			return fmt.Errorf("restoring: %w", context.Cause(ctx))
		}
		entry, name, err := e.next()
		if errors.Is(err, io.EOF) {
			return j.rest(ctx, visit)
		}
		if err != nil {
			return err
		}
		to, r, err := j.regions.place(name)
		if err != nil {
			return err
		}
		if r == nil {
			continue
		}
		s, err := j.meet(ctx, name, to, r, entry, visit)
		if err != nil {
			return err
		}
		s.from = name
		if err := visit(s); err != nil {
			return err
		}
	}
}

// meet finds a key of the snapshot at the destination, and visits what is only there and comes before it.
func (j *join) meet(
	ctx context.Context, name, to string, r *region, entry consulkv.Entry, visit func(step) error,
) (step, error) {
	if odd(name) || odd(to) {
		if j.met[to] {
			return step{name: to, entry: entry, action: restore.Skip}, nil
		}
		j.met[to] = true
		there, value, err := j.dest.look(ctx, to)
		return decide(to, entry, there, value), err
	}
	if err := j.pass(ctx, name, visit); err != nil {
		return step{}, err
	}
	l := j.list(r)
	for {
		found, err := l.peek(ctx)
		if err != nil {
			return step{}, err
		}
		if found == nil || found.name > to {
			return decide(to, entry, state{}, nil), nil
		}
		l.take()
		if found.name == to {
			return decide(to, entry, found.state, found.value), nil
		}
		if err := visit(extra(found.name, found.state)); err != nil {
			return step{}, err
		}
	}
}

func extra(name string, s state) step { return step{name: name, there: s, action: restore.Extra} }

// list gives the list of a region.
func (j *join) list(r *region) *listing {
	l := j.open[r]
	if l == nil {
		l = newListing(j.dest, j.regions, r, j.there)
		j.open[r] = l
	}
	return l
}

// pass visits what is left of the lists of regions that the snapshot has no more keys of, once it is at name.
func (j *join) pass(ctx context.Context, name string, visit func(step) error) error {
	for i := 0; i < len(j.todo); {
		r := j.todo[i]
		if r.from > name || strings.HasPrefix(name, r.from) {
			i++
			continue
		}
		if err := j.drain(ctx, r, visit); err != nil {
			return err
		}
		j.todo = slices.Delete(j.todo, i, i+1)
	}
	return nil
}

// drain visits what is left of a region's list.
func (j *join) drain(ctx context.Context, r *region, visit func(step) error) error {
	l := j.list(r)
	for {
		found, err := l.peek(ctx)
		if err != nil {
			return err
		}
		if found == nil {
			break
		}
		l.take()
		if err := visit(extra(found.name, found.state)); err != nil {
			return err
		}
	}
	l.close()
	delete(j.open, r)
	return nil
}

// rest visits what is only at the destination and was not come by.
func (j *join) rest(ctx context.Context, visit func(step) error) error {
	for _, r := range j.todo {
		if err := j.drain(ctx, r, visit); err != nil {
			return err
		}
	}
	for _, name := range slices.Sorted(maps.Keys(j.there)) {
		if !j.met[name] {
			if err := visit(extra(name, j.there[name])); err != nil {
				return err
			}
		}
	}
	return nil
}
