package app

import (
	"context"
	"errors"
	"slices"
	"time"

	"github.com/spf13/cobra"

	"github.com/lifeboat-fleet/lifeboat/fleet/config"
	"github.com/lifeboat-fleet/lifeboat/fleet/console"
	"github.com/lifeboat-fleet/lifeboat/fleet/service"
	"github.com/lifeboat-fleet/lifeboat/services/backup/internal/catalog"
	"github.com/lifeboat-fleet/lifeboat/services/backup/internal/store/s3"
)

// The values of --store.
const (
	storePrimary = "primary"
	storeCopy    = "copy"
)

// reader are the flags of a command that needs only a bucket.
type reader struct {
	config string
	output string
	store  string
}

// add declares all flags, for a command that lists or shows.
func (r *reader) add(cmd *cobra.Command) {
	r.addStore(cmd)
	console.AddOutput(cmd, &r.output)
}

// addStore declares the flags of a command whose output has one form only.
func (r *reader) addStore(cmd *cobra.Command) {
	r.addConfig(cmd)
	cmd.Flags().StringVar(&r.store, "store", storePrimary, "bucket to read: primary, or copy for the second one")
	console.CompleteFlag(cmd, "store", storePrimary, storeCopy)
}

// addConfig declares the configuration alone, and completes targets.
func (r *reader) addConfig(cmd *cobra.Command) {
	console.AddConfig(cmd, &r.config)
	cmd.ValidArgsFunction = r.completeTargets
}

// bucket is the place that a command reads.
type bucket struct {
	objects *s3.Store
	catalog *catalog.Catalog
	config  *config.Config
}

// bucket reads the configuration and prepares a client. It does not talk to the store.
func (r *reader) bucket(ctx context.Context) (*bucket, error) {
	if r.output != "" {
		if err := console.CheckOutput(r.output); err != nil {
			return nil, err
		}
	}
	cfg, err := config.Load(r.config)
	if err != nil {
		return nil, &service.UsageError{Err: err}
	}
	chosen := cfg.Store.ObjectStore
	switch r.store {
	case "", storePrimary:
	case storeCopy:
		if cfg.Store.Copy == nil {
			return nil, console.Usagef("--store copy: %s has no store.copy", r.config)
		}
		chosen = *cfg.Store.Copy
	default:
		return nil, console.Usagef("--store: %q is not primary or copy", r.store)
	}
	objects, err := s3.New(ctx, chosen)
	if err != nil {
		return nil, &service.UsageError{Err: err}
	}
	return &bucket{objects: objects, catalog: catalog.New(objects, chosen.Prefix), config: cfg}, nil
}

// targets are those named; all when none is.
func (r *reader) targets(cfg *config.Config, names []string) ([]config.Target, error) {
	if len(names) == 0 {
		return cfg.Targets, nil
	}
	chosen := make([]config.Target, 0, len(names))
	for _, name := range names {
		t, err := console.FindTarget(cfg, r.config, name)
		if err != nil {
			return nil, err
		}
		chosen = append(chosen, t)
	}
	return chosen, nil
}

// open connects to the bucket and finds the targets named; all when none is.
func (r *reader) open(ctx context.Context, names []string) (*catalog.Catalog, []config.Target, error) {
	b, err := r.bucket(ctx)
	if err != nil {
		return nil, nil, err
	}
	targets, err := r.targets(b.config, names)
	return b.catalog, targets, err
}

// openOne connects to the bucket for a command about one target.
func (r *reader) openOne(ctx context.Context, name string) (*bucket, error) {
	b, err := r.bucket(ctx)
	if err != nil {
		return nil, err
	}
	_, err = console.FindTarget(b.config, r.config, name)
	return b, err
}

// The longest that pressing Tab may take.
const completionTimeout = 2 * time.Second

// completeTargets offers the configuration's targets for every argument.
func (r *reader) completeTargets(_ *cobra.Command, args []string, _ string) ([]string, cobra.ShellCompDirective) {
	return console.TargetNames(r.config, args), cobra.ShellCompDirectiveNoFileComp
}

// completeSnapshot offers a target and then its snapshots, newest first, after the words given.
func (r *reader) completeSnapshot(words ...string) cobra.CompletionFunc {
	return func(cmd *cobra.Command, args []string, _ string) ([]string, cobra.ShellCompDirective) {
		const directive = cobra.ShellCompDirectiveNoFileComp | cobra.ShellCompDirectiveKeepOrder
		switch len(args) {
		case 0:
			return console.TargetNames(r.config, nil), directive
		case 1:
			return slices.Concat(words, r.snapshotIDs(cmd.Context(), args[0])), directive
		}
		return nil, directive
	}
}

func (r *reader) snapshotIDs(ctx context.Context, target string) []string {
	ctx, cancel := context.WithTimeoutCause(ctx, completionTimeout, errors.New("completion took too long"))
	defer cancel()
	b, err := r.bucket(ctx)
	if err != nil {
		return nil
	}
	ids, err := b.catalog.IDs(ctx, target)
	if err != nil {
		return nil
	}
	slices.Reverse(ids)
	return ids
}
