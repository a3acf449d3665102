// Package nomad restores what source/nomad read of a Nomad region into a region: a whole one, some namespaces, or single jobs
// (Restore), and an operator snapshot of all that a region's servers hold (RestoreRaft).
//
// # What is restored, and in which order
//
//  1. node pools, quotas (Enterprise), namespaces: a namespace may name a quota, which must be there first
//  2. ACL policies, roles, auth methods, binding rules
//  3. variables, volumes
//  4. jobs, with the source that was submitted, eight at a time
//  5. the scheduler's configuration
//
// The rules are those of package restore. Check-and-set guards jobs (EnforceIndex), variables and the scheduler's configuration, and
// the creation of a role. Nomad has none for the others: they are read right before they are written, and what somebody else writes
// in the milliseconds between is lost.
//
// What Nomad makes by itself counts as nothing: the namespace "default" and the scheduler's configuration while nobody changed
// them, and the node pools "all" and "default".
//
// # What is not
//
//   - Versions of a job: they are history, and the restored job begins at version 0. They stay in the archive.
//   - ACL tokens, the secrets of auth methods, and those of CSI volumes: Nomad tells nobody. An auth method that has a secret is
//     left out, and so are its binding rules, until somebody has made it: one with a wrong secret would look restored.
//   - CSI volumes whose plugin does not run at the destination: plugins are jobs. Once they run, the same restore registers them.
//   - Host volumes, unless the node that holds them is at the destination.
//   - Multiregion jobs (Enterprise): to register one here is to register it in all its regions.
//
// Each is an item with the action Skip and says what to do.
//
// # Jobs
//
// A job's region is always the destination's: with the region that it was read in, an agent of a federation would send it there, and
// it would overwrite the original. Counts are those that the snapshot has, scaled ones too: PreserveCounts is not set, because it
// would keep those of the job that is replaced. A stopped job stays stopped. A periodic job runs at its next time. ACLs and, where
// these are on, namespaces of a federation belong to its authoritative region, wherever they are written.
//
// Two jobs are the same when their fields are, apart from what Nomad sets, or when Nomad's plan finds nothing to change: a newer Nomad
// gives a job fields that an older one did not have. What was submitted is not compared, nor is how often a constraint is repeated:
// Nomad 1.11 adds one to a group that has a task with an identity, at each registration, so that a restored job has it once more.
//
// The eval broker stays paused where it is paused: whoever paused it, or a drill's server, waits for something.
//
// # Selections
//
// Namespaces select the namespaces with all their variables, volumes and jobs, and what these need if it is not there: node pools and
// quotas. Jobs select jobs of any namespace, or of the selected ones, and what they need if it is not there: their namespace with its
// quota, and their node pool. Variables do not come with a job: they may be newer and are restored by namespace. What is needed and
// there is left as it is, without an item.
//
// # Passes
//
// The archive is sorted by path. It is read to its end, and all of it checked, before anything is written. What is small is then kept
// in memory; the kinds of which there is much are read again when their turn comes. Memory holds that, the names of everything, and
// eight objects.
package nomad

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"

	"github.com/lifeboat-fleet/lifeboat/fleet/config"
	"github.com/lifeboat-fleet/lifeboat/services/backup/internal/restore"
)

// everything is a namespace that means all, as in the configuration.
const everything = "*"

// Selection is the part of a snapshot that is restored; the zero value is all of it.
type Selection struct {
	// Namespaces, by name; "*" or none means all.
	Namespaces []string
	// Jobs, by id, in the selected namespaces.
	Jobs []string
}

// ErrNotInSnapshot means that what was selected is not in the snapshot. Nothing was written.
var ErrNotInSnapshot = errors.New("it is not in the snapshot")

// whole says whether everything is selected.
func (s Selection) whole() bool { return len(s.Namespaces) == 0 && len(s.Jobs) == 0 }

func (s Selection) hasNamespace(name string) bool {
	return len(s.Namespaces) == 0 || slices.Contains(s.Namespaces, name)
}

// has says whether a thing is selected for itself, not because another needs it.
func (s Selection) has(k *kind, n name) bool {
	switch {
	case s.whole():
		return true
	case len(s.Jobs) > 0:
		return k.id == kindJob && slices.Contains(s.Jobs, n.id) && s.hasNamespace(n.space)
	case k.id == kindNamespace:
		return s.hasNamespace(n.id)
	default:
		return k.spaced && s.hasNamespace(n.space)
	}
}

// Restore brings a snapshot's data, as source/nomad reads it, into the region of dest; the namespaces that dest names do not matter.
// It needs a management token where ACLs are on.
//
// One thing that fails does not keep the others from being restored: it is an item, and the error is nil. An error means that the rest
// was not tried: the data is damaged or what was selected is not in it (nothing was written then), the destination is not empty
// (restore.ErrNotEmpty; nothing was written, and the items are what it holds), it no longer answers, or the context ended. After
// any of them the same call may be made again.
func Restore(
	ctx context.Context, dest config.Nomad, open restore.Open, sel Selection, o restore.Options,
) (restore.Summary, error) {
	d, err := dial(dest)
	if err != nil {
		return restore.Summary{}, err
	}
	defer d.close()
	if slices.Contains(sel.Namespaces, everything) {
		sel.Namespaces = nil
	}
	r := &run{dest: d, kinds: kinds(), sel: sel, options: o, recorder: &restore.Recorder{Options: o}}
	r.contents = newContents(open, r.kinds, sel)
	err = r.restore(ctx)
	if errors.Is(err, restore.ErrNotEmpty) {
		return r.refused, err
	}
	return r.recorder.Summary(), err
}

// run is one restore.
type run struct {
	dest     *destination
	kinds    []*kind
	sel      Selection
	options  restore.Options
	recorder *restore.Recorder

	contents *contents
	there    map[*kind]*inventory
	skipped  map[*kind]map[name]bool
	failed   map[*kind]map[name]bool   // they are not there
	same     map[*kind]map[name]string // what the check found to be the same, with what was to say about it
	done     int64
	refused  restore.Summary
}

func (r *run) restore(ctx context.Context) error {
	if err := r.dest.ready(ctx); err != nil {
		return err
	}
	if err := r.contents.read(ctx); err != nil {
		return err
	}
	if err := r.contents.checkSelection(); err != nil {
		return err
	}
	if err := r.survey(ctx); err != nil {
		return err
	}
	if r.options.Apply && !r.options.Force && r.sel.whole() {
		if err := r.checkEmpty(ctx); err != nil {
			return err
		}
	}
	m := modePlan
	if r.options.Apply {
		m = modeApply
	}
	for _, k := range r.kinds {
		if err := r.stage(ctx, k, m, r.recorder); err != nil {
			return err
		}
	}
	for _, u := range r.contents.unknown() {
		r.recorder.Item(u)
	}
	return nil
}

// checkEmpty refuses a destination that holds something else. Only what it holds is told.
func (r *run) checkEmpty(ctx context.Context) error {
	rec := &restore.Recorder{Options: restore.Options{Item: func(i restore.Item) {
		if r.options.Item != nil && (i.Action == restore.Differs || i.Action == restore.Extra) {
			r.options.Item(i)
		}
	}}}
	for _, k := range r.kinds {
		if err := r.stage(ctx, k, modeCheck, rec); err != nil {
			return err
		}
	}
	if s := rec.Summary(); s.Differs+s.Extra > 0 {
		r.refused = s
		return restore.NotEmpty(s)
	}
	return nil
}

// name is that of a thing; space is empty for what belongs to no namespace.
type name struct{ space, id string }

func (n name) String() string {
	if n.space == "" {
		return n.id
	}
	return n.space + "/" + n.id
}

// compare is the order in which what is only at the destination is told.
func (n name) compare(other name) int { return strings.Compare(n.String(), other.String()) }

// notInSnapshot names what was asked for in vain.
func notInSnapshot(what string, names []string) error {
	return fmt.Errorf("%s %s: %w; list what there is with a plan of the whole snapshot", what, strings.Join(names, ", "), ErrNotInSnapshot)
}
