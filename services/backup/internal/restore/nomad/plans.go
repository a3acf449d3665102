package nomad

import (
	"context"
	"errors"
	"fmt"

	"github.com/lifeboat-fleet/lifeboat/fleet/config"
	"github.com/lifeboat-fleet/lifeboat/services/backup/internal/restore"
)

// Plans asks the region of dest, for each job of the snapshot, what registering it would change, and tells each the job, as
// "<namespace>/<id>", and the names of the fields that would change: nothing when Nomad would change nothing. Jobs come one at a time
// and in the order of the data. Nothing is written.
//
// Where allocations would go is no difference: a region without clients cannot place any. Two things make a plan differ although the
// job was restored:
//
//   - The region's Nomad is another version than the one that the snapshot is of, and gives jobs other defaults, or its agents are
//     configured to add something to jobs, as default identities for Consul and Vault are.
//   - Somebody, or an autoscaler, has changed the job since.
//
// A job that Restore leaves out, or that Nomad will not plan, differs: why is what is told of it. An error means that not all jobs
// were asked about.
func Plans(ctx context.Context, dest config.Nomad, open restore.Open, each func(job, difference string)) error {
	d, err := dial(dest)
	if err != nil {
		return err
	}
	defer d.close()
	if err = d.ready(ctx); err != nil {
		return err
	}
	all := kinds()
	feed := func(ctx context.Context, yield func(thing) error) error {
		a := newAssembler(yield)
		want := func(f file) bool { return f.kind != nil && f.kind.id == kindJob && f.role == roleObject }
		if perr := pass(ctx, open, all, want, a.add); perr != nil {
			return perr
		}
		return a.flush()
	}
	do := func(ctx context.Context, t thing) (outcome, error) {
		difference, derr := d.difference(ctx, t)
		return outcome{thing: t, item: restore.Item{Detail: difference}}, derr
	}
	return ordered(ctx, workers, feed, do, func(o outcome) { each(o.thing.label, o.item.Detail) })
}

// difference is what a plan of one job would change.
func (d *destination) difference(ctx context.Context, t thing) (string, error) {
	o, err := t.object()
	if err != nil {
		return "", fmt.Errorf("reading job %s: %w", t.label, err)
	}
	o = o.without(t.kind.strip...)
	if why := skipJob(o); why != "" {
		return "it was not restored: " + why, nil
	}
	var difference string
	err = d.patiently(ctx, func() error {
		plan, perr := d.plan(ctx, t.name, o, true)
		if perr == nil {
			difference = list(changed(plan.Diff))
		}
		return perr
	})
	switch {
	case statusOf(err) != 0 && !errors.Is(err, errGone):
		return "it cannot be planned: " + err.Error(), nil
	case err != nil:
		return "", d.failed("planning job "+t.label, err)
	}
	return difference, nil
}
