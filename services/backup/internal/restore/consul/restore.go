// Package consul brings a snapshot of Consul's keys, or a part of one, into a Consul KV store (Restore), and a raft snapshot of all
// that a datacenter holds into a server (RestoreRaft).
//
// # Two passes
//
// The first pass reads the snapshot to its end, which proves it whole, and compares it with the destination: both are sorted by
// name, so that one entry of each is held at a time. It writes nothing. It is all that happens without Apply.
//
// The second pass reads the snapshot again, compares it with a new list of the destination, and writes. What it reads has to be
// what the first pass read, piece by piece, before any of it is used: never is written what was not proven. Writes go in
// transactions of check-and-set operations, several at once; a transaction happens as a whole or not at all. Each is so decided
// by what is at the destination at that moment, whatever the lists said:
//
//   - A key that appeared, or changed since it was listed, makes its transaction fail. It is read again and decided anew; the
//     others go on without it.
//   - A transaction whose answer was lost is sent again. If it had happened, its keys are there as they should be, and count as
//     written.
//   - A restore that was interrupted at any point leaves whole transactions behind, and a second one finds those keys the same.
//
// # What is not restored
//
// Sessions and the locks that they hold belong to the cluster that was: a key that was locked comes back unlocked. Create, modify
// and lock indexes are the destination's own. A key that is replaced while it is locked at the destination stays locked.
//
// # Names
//
// A transaction takes any name as it is. A value that is too large for one goes by a plain PUT, which takes most names; with
// another name it is Failed, with the setting of Consul that would help. Names with U+FFFD, which Consul's JSON has in place of
// bytes that are no UTF-8, are sorted by bytes that nobody can see any more; each of them is looked up for itself, and their names
// are held in memory.
package consul

import (
	"context"
	"errors"
	"fmt"
	"io"
	"slices"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/lifeboat-fleet/lifeboat/fleet/config"
	"github.com/lifeboat-fleet/lifeboat/services/backup/internal/restore"
	"github.com/lifeboat-fleet/lifeboat/services/backup/internal/source"
	"github.com/lifeboat-fleet/lifeboat/services/backup/internal/source/consulkv"
)

// Selection says which part of a snapshot is restored, and under which names.
type Selection struct {
	// Prefixes of the keys, as the snapshot names them; all keys when empty. Each has to fit a key of the snapshot.
	Prefixes []string
	// Rename gives keys another beginning. Of several that fit a key the one with the longest Old applies. Two keys never come to
	// the same name: what could lead to that is refused before anything is written. Each Old has to fit a selected key.
	Rename []restore.Rename
}

// whole says whether nothing is left out.
func (s Selection) whole() bool {
	return len(s.Prefixes) == 0 || slices.Contains(s.Prefixes, "")
}

// settings are what tests may want otherwise.
type settings struct {
	// inFlight is how many transactions wait for their answers at once.
	inFlight int
	// patience is how long a request is repeated that fails, or a list that breaks, before the restore gives up.
	patience time.Duration
	// idle is how long the destination may send nothing.
	idle time.Duration
}

func defaults() settings {
	return settings{inFlight: 8, patience: time.Minute, idle: source.DefaultIdle}
}

// Restore brings the selected keys to dest, by the rules of package restore. open is called once without Apply and twice with it.
//
// The error says why the restore did not come to its end: the snapshot is damaged (nothing was written then), the destination is
// not reachable for a minute, or lets nobody connect when the restore begins, or may not be listed in full by the token;
// restore.ErrNotEmpty; restore.ErrNothingSelected. A key that could not be written is no error, but an Item that Failed, which
// Summary.Left counts. Of the destination's list, the token needs all: without it a plan would lie.
//
// Items come in the order of the snapshot, and what is only at the destination where it would stand; with Apply and
// without an error they are those of the second pass. When the restore is refused, they are what is in the way.
//
// Progress counts the selected keys of the snapshot, from zero again in the second pass. The total is known from the end of the
// first pass on.
func Restore(
	ctx context.Context, dest config.Consul, open restore.Open, sel Selection, o restore.Options,
) (restore.Summary, error) {
	return restoreWith(ctx, defaults(), dest, open, sel, o)
}

func restoreWith(
	ctx context.Context, set settings, cfg config.Consul, open restore.Open, sel Selection, o restore.Options,
) (restore.Summary, error) {
	parts, err := newRegions(sel)
	if err != nil {
		return restore.Summary{}, err
	}
	d, err := newDestination(ctx, cfg, set)
	if err != nil {
		return restore.Summary{}, err
	}
	defer d.Close()
	r := &run{set: set, open: open, dest: d, regions: parts, unmet: newUnmet(sel), whole: sel.whole(), o: o}
	planned, err := r.plan(ctx)
	switch {
	case err != nil && o.Apply:
		return restore.Summary{}, err // none of what was counted was done
	case err != nil || !o.Apply:
		return planned, err
	}
	if r.refuses() && planned.Differs+planned.Extra > 0 {
		return planned, restore.NotEmpty(planned)
	}
	return r.apply(ctx)
}

// run is one restore.
type run struct {
	set     settings
	open    restore.Open
	dest    *destination
	regions *regions
	unmet   *unmet // after the first pass: what of the selection fits nothing
	whole   bool
	o       restore.Options

	pieces pieces // of the snapshot, from the first pass
	total  int64  // selected keys, from the first pass
}

// refuses says whether anything that is in the way ends the restore before it writes.
func (r *run) refuses() bool { return r.o.Apply && r.whole && !r.o.Force }

// tellEvery is after how many keys of the first pass somebody is told.
const tellEvery = 1000

// plan is the first pass.
func (r *run) plan(ctx context.Context) (restore.Summary, error) {
	rec := restore.Recorder{Options: r.o}
	if r.o.Apply {
		rec.Options.Item = nil
		if r.refuses() && r.o.Item != nil {
			// Whatever is told here is told once: a restore that meets one of these ends after this pass.
			rec.Options.Item = func(i restore.Item) {
				if i.Action == restore.Differs || i.Action == restore.Extra {
					r.o.Item(i)
				}
			}
		}
	}
	data, err := r.open(ctx)
	if err != nil {
		return rec.Summary(), fmt.Errorf("opening the snapshot: %w", err)
	}
	defer data.Close()
	r.pieces = newPieces()
	err = r.join().run(ctx, newEntries(r.pieces.record(data)), func(s step) error {
		if s.action == restore.Differs && r.o.Force {
			s.action = restore.Change
		}
		rec.Item(s.item())
		if s.action == restore.Extra {
			return nil
		}
		r.unmet.meet(s.from)
		rec.Bytes(s.entry.Size)
		if r.total++; r.total%tellEvery == 0 {
			rec.Progress(r.total, 0)
		}
		return nil
	})
	if err == nil {
		rec.Progress(r.total, r.total)
		err = restore.NothingSelected(r.unmet.prefixes, r.unmet.renames)
	}
	return rec.Summary(), err
}

// apply is the second pass.
func (r *run) apply(ctx context.Context) (restore.Summary, error) {
	rec := &restore.Recorder{Options: r.o}
	rec.Progress(0, r.total)
	data, err := r.open(ctx)
	if err != nil {
		return rec.Summary(), fmt.Errorf("opening the snapshot again: %w", err)
	}
	defer data.Close()
	group, ctx := errgroup.WithContext(ctx)
	w := newWriter(ctx, group, r.dest, rec, r.o.Force, r.total)
	err = w.finish(r.join().run(ctx, newEntries(r.pieces.compare(data)), w.add))
	if err != nil {
		err = fmt.Errorf("%w; what was written stays, and the restore can be run again", err)
	}
	return rec.Summary(), err
}

func (r *run) join() *join { return &join{dest: r.dest, regions: r.regions} }

// entries reads a snapshot's keys.
type entries struct {
	scan  *consulkv.Scanner
	begun bool
	last  string
}

func newEntries(src io.Reader) *entries {
	return &entries{scan: consulkv.NewScanner(src, consulkv.Export())}
}

// next gives a key and its name. It returns io.EOF only when the list ended and the data with it.
func (e *entries) next() (consulkv.Entry, string, error) {
	if !e.begun {
		if err := e.scan.Begin(); err != nil {
			return consulkv.Entry{}, "", fmt.Errorf("reading the snapshot: %w", err)
		}
		e.begun = true
	}
	entry, err := e.scan.Next()
	if errors.Is(err, io.EOF) {
		return entry, "", io.EOF
	}
	if err != nil {
		return entry, "", fmt.Errorf("reading the snapshot: %w", err)
	}
	name := consulkv.NameOf(entry.Key)
	if odd(name) {
		return entry, name, nil
	}
	if name <= e.last && e.last != "" {
		return entry, "", fmt.Errorf("reading the snapshot: %w: the key %q follows %q, and they are not in order", consulkv.ErrDamaged, name, e.last)
	}
	e.last = name
	return entry, name, nil
}
