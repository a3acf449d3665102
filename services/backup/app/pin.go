package app

import (
	"fmt"
	"strings"
	"time"

	"github.com/spf13/cobra"
	"google.golang.org/protobuf/types/known/timestamppb"

	"github.com/lifeboat-fleet/lifeboat/fleet/console"
	lifeboatv1 "github.com/lifeboat-fleet/lifeboat/proto/lifeboat/v1"
)

func pinCommand() *cobra.Command {
	var r reader
	var reason string
	cmd := &cobra.Command{
		Use: "pin target latest|oldest|id", Short: "Keep a snapshot whatever retention says, until it is unpinned",
		Long: "pin writes a mark beside the snapshot: it needs the right to write to the bucket, and nothing else.",
		Example: "  lifeboat snapshot pin etcd-prod 20261121T040000.123Z-42 --reason 'before the migration, INC-42'\n" +
			"  lifeboat snapshot unpin etcd-prod 20261121T040000.123Z-42",
		Args: cobra.ExactArgs(2),
		RunE: func(cmd *cobra.Command, args []string) error {
			if strings.TrimSpace(reason) == "" {
				return console.Usagef("--reason is missing: say why, for whoever wonders in a year")
			}
			return r.mark(cmd, lifeboatv1.Mark_KIND_PIN, args[0], args[1], reason, true)
		},
	}
	cmd.Flags().StringVar(&reason, "reason", "", "why, in a person's words")
	r.addConfig(cmd)
	cmd.ValidArgsFunction = r.completeSnapshot("latest", "oldest")
	return cmd
}

func unpinCommand() *cobra.Command {
	var r reader
	var reason string
	cmd := &cobra.Command{
		Use: "unpin target latest|oldest|id", Short: "Give a snapshot back to retention",
		Long:    "unpin takes a pin back. A record of who did it stays beside the snapshot.",
		Example: "  lifeboat snapshot unpin etcd-prod 20261121T040000.123Z-42 --reason 'migration is done'",
		Args:    cobra.ExactArgs(2),
		RunE: func(cmd *cobra.Command, args []string) error {
			return r.mark(cmd, lifeboatv1.Mark_KIND_PIN, args[0], args[1], reason, false)
		},
	}
	cmd.Flags().StringVar(&reason, "reason", "", "why, in a person's words")
	r.addConfig(cmd)
	cmd.ValidArgsFunction = r.completeSnapshot("latest", "oldest")
	return cmd
}

// mark sets a mark on a snapshot that exists, and says so.
func (r *reader) mark(cmd *cobra.Command, kind lifeboatv1.Mark_Kind, target, selector, reason string, holds bool) error {
	b, err := r.openOne(cmd.Context(), target)
	if err != nil {
		return err
	}
	s, err := b.catalog.Snapshot(cmd.Context(), target, selector)
	if err != nil {
		return fmt.Errorf("%w; see what there is with: lifeboat snapshot list %s", err, target)
	}
	if kind == lifeboatv1.Mark_KIND_PIN && !holds && !s.Pinned() {
		fmt.Fprintf(cmd.OutOrStdout(), "%s is not pinned; nothing was changed\n", s.GetId())
		return nil
	}
	if err = b.setMark(cmd, kind, s.GetTarget(), s.GetId(), reason, holds); err != nil {
		return err
	}
	done := "pinned; retention will leave it"
	if !holds {
		done = "no longer pinned; retention decides about it"
	}
	fmt.Fprintf(cmd.OutOrStdout(), "%s of %s is %s\n", s.GetId(), target, done)
	return nil
}

func (b *bucket) setMark(cmd *cobra.Command, kind lifeboatv1.Mark_Kind, target, id, reason string, holds bool) error {
	err := b.catalog.SetMark(cmd.Context(), &lifeboatv1.Mark{
		Kind: kind, Target: target, SnapshotId: id, By: console.Whoami(), At: timestamppb.New(time.Now()), Reason: reason, Holds: holds,
	})
	if err != nil {
		return fmt.Errorf("writing the mark beside %s: %w", id, err)
	}
	return nil
}
