package app

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"strings"

	"github.com/spf13/cobra"

	"github.com/lifeboat-fleet/lifeboat/fleet/console"
	"github.com/lifeboat-fleet/lifeboat/fleet/service"
)

// SnapshotCommand is `lifeboat snapshot`.
func SnapshotCommand() *cobra.Command {
	var r reader
	list := &cobra.Command{
		Use: "list [target...]", Short: "List committed snapshots, oldest first; needs only the bucket",
		Example: "  lifeboat snapshot list\n  lifeboat snapshot list etcd-prod --output json\n" +
			"  lifeboat snapshot list etcd-prod --store copy",
		RunE: func(cmd *cobra.Command, args []string) error {
			return r.listSnapshots(cmd.Context(), cmd.OutOrStdout(), args)
		},
	}
	r.add(list)
	return service.Group(&cobra.Command{
		Use: "snapshot", Short: "Take, list, show, verify, fetch and pin snapshots",
		Long: "All but run need only the bucket and, for what is encrypted, the age identity: no NATS and no running service.",
	}, list, showCommand(), verifyCommand(), fetchCommand(), pinCommand(), unpinCommand(),
		snapshotRunCommand(),
	)
}

func (r *reader) listSnapshots(ctx context.Context, out io.Writer, args []string) error {
	cat, targets, err := r.open(ctx, args)
	if err != nil {
		return err
	}
	all := []json.RawMessage{}
	t := console.NewTable(out, "TARGET", "SNAPSHOT", "AGE", "RAW", "STORED", "REVISION", "COUNTED", "VERIFIED", "PROVEN", "FLAGS")
	for _, target := range targets {
		snapshots, err := cat.List(ctx, target.Name)
		if err != nil {
			return err
		}
		for _, s := range snapshots {
			b, err := snapshotJSON(s)
			if err != nil {
				return err
			}
			all = append(all, b)
			proven := "-"
			if p := s.Proven(); p != nil {
				proven = p.GetId()
			}
			f := console.OrDash(strings.Join(flags(s), " "))
			if s.Damaged() {
				f = console.Red(out, f)
			}
			t.Row(target.Name, s.GetId(), console.Age(s.GetCommittedAt().AsTime()), size(s.GetData().GetRaw().GetBytes()),
				size(s.GetData().GetStored().GetBytes()), fmt.Sprint(s.GetSource().GetRevision()),
				counted(s.GetKind(), s.GetSource()), s.GetVerification().GetMethod(), proven, f)
		}
	}
	if r.output == console.OutputJSON {
		return console.WriteJSON(out, all)
	}
	return t.Flush("no snapshots yet; take one with: lifeboat snapshot run <target>")
}
