package app

import (
	"errors"
	"fmt"

	"github.com/spf13/cobra"

	"github.com/lifeboat-fleet/lifeboat/fleet/bus"
	"github.com/lifeboat-fleet/lifeboat/fleet/config"
	"github.com/lifeboat-fleet/lifeboat/fleet/console"
	"github.com/lifeboat-fleet/lifeboat/fleet/service"
	lifeboatv1 "github.com/lifeboat-fleet/lifeboat/proto/lifeboat/v1"
)

// runAll asks for a snapshot of every target. What one target refuses does not keep the others from theirs; what would refuse all ends it.
func (f *runFlags) runAll(cmd *cobra.Command) (err error) {
	cfg, err := config.Load(f.config)
	if err != nil {
		return &service.UsageError{Err: err}
	}
	if len(cfg.Targets) == 0 {
		return console.Usagef("%s has no targets", f.config)
	}
	p, err := f.publisher(cmd, cfg)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, p.bus.Close()) }()
	ctx, out := cmd.Context(), cmd.OutOrStdout()
	var waiters []*waiter
	for _, t := range cfg.Targets {
		w, failed := p.publish(ctx, config.WorkSnapshot, t.Name, &lifeboatv1.Job{})
		line := "a snapshot waits or runs already"
		switch {
		case failed == nil:
			line = "asked for snapshot " + w.name()
			waiters = append(waiters, w)
		case !errors.Is(failed, bus.ErrBusy):
			return fmt.Errorf("asking for a snapshot of %s: %w", t.Name, failed)
		}
		if _, failed = fmt.Fprintf(out, "%s: %s\n", t.Name, line); failed != nil {
			return failed
		}
	}
	if !f.wait {
		return nil
	}
	ctx, cancel := f.patience(ctx)
	defer cancel()
	cmd.PrintErrf("waiting for %d snapshots; Ctrl-C ends the waiting, not the jobs\n", len(waiters))
	var failures []error
	for _, w := range waiters { // in turn: what has ended meanwhile is in the audit log
		text, failed := w.outcome(ctx)
		if failed != nil {
			failures = append(failures, fmt.Errorf("%s: %w", w.target, failed))
			continue
		}
		if _, failed = fmt.Fprintf(out, "%s: %s\n", w.target, text); failed != nil {
			return failed
		}
	}
	if len(failures) > 0 {
		return fmt.Errorf("%d of %d snapshots failed:\n%w", len(failures), len(waiters), errors.Join(failures...))
	}
	return nil
}
