package app

import (
	"errors"
	"fmt"
	"io"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/lifeboat-fleet/lifeboat/fleet/config"
	"github.com/lifeboat-fleet/lifeboat/fleet/console"
	lifeboatv1 "github.com/lifeboat-fleet/lifeboat/proto/lifeboat/v1"
	"github.com/lifeboat-fleet/lifeboat/services/backup/internal/retention"
	"github.com/lifeboat-fleet/lifeboat/services/backup/internal/store"
	"github.com/lifeboat-fleet/lifeboat/services/backup/internal/worker"
)

// pruneFlags are those of `lifeboat prune`.
type pruneFlags struct {
	runFlags
	output  string
	dryRun  bool
	confirm string
	reason  string
}

// PruneCommand is `lifeboat prune`.
func PruneCommand() *cobra.Command {
	var f pruneFlags
	cmd := &cobra.Command{
		Use: "prune target", Short: "Ask a worker to apply retention now, or show with --dry-run what it would do",
		Long: "prune publishes a job for a prune worker. With --dry-run nothing is published and nothing deleted: the plan is made\n" +
			"here, from the bucket alone, and says of every snapshot why it is kept.\n" +
			"When the newest snapshot suddenly holds much less than those before it, nothing is deleted until somebody has\n" +
			"looked why and confirms it with --confirm-shrink.",
		Example: "  lifeboat prune etcd-prod --dry-run\n" +
			"  lifeboat prune etcd-prod --wait\n" +
			"  lifeboat prune etcd-prod --confirm-shrink 20261121T040000.123Z-42 --reason 'tenant-7 was moved, INC-42'",
		Args: cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error { return f.do(cmd, args[0]) },
	}
	f.add(cmd)
	console.AddOutput(cmd, &f.output)
	cmd.Flags().BoolVar(&f.dryRun, "dry-run", false, "show the plan; needs only the bucket")
	cmd.Flags().StringVar(&f.confirm, "confirm-shrink", "", "`id` of the snapshot that rightly holds less than those before it")
	cmd.Flags().StringVar(&f.reason, "reason", "", "why, in a person's words, with --confirm-shrink")
	return cmd
}

func (f *pruneFlags) do(cmd *cobra.Command, target string) error {
	if err := console.CheckOutput(f.output); err != nil {
		return err
	}
	switch {
	case f.confirm != "" && f.dryRun:
		return console.Usagef("--confirm-shrink and --dry-run exclude each other")
	case f.reason != "" && f.confirm == "":
		return console.Usagef("--reason belongs to --confirm-shrink")
	case f.confirm != "" && strings.TrimSpace(f.reason) == "":
		return console.Usagef("--reason is missing: say why the snapshot rightly holds less")
	case f.confirm == "" && !f.dryRun:
		return f.run(cmd, config.WorkPrune, target, &lifeboatv1.Job{})
	}
	r := reader{config: f.config}
	b, err := r.openOne(cmd.Context(), target)
	if err != nil {
		return err
	}
	t, _ := b.config.Target(target)
	survey, err := worker.SurveyFor(cmd.Context(), b.catalog, b.objects, t, time.Now())
	if errors.Is(err, store.ErrDenied) {
		return fmt.Errorf("%w; the plan needs the rights to list versions and uploads and to read manifests, retention and legal hold", err)
	}
	if err != nil {
		return err
	}
	if f.confirm != "" {
		return f.confirmShrink(cmd, b, target, survey.Plan)
	}
	if f.output == console.OutputJSON {
		return console.WriteJSON(cmd.OutOrStdout(), newPruneReport(target, survey))
	}
	return printPlan(cmd.OutOrStdout(), target, newPruneReport(target, survey))
}

// confirmShrink marks the snapshot that holds deletions back, and no other one: a confirmation of an earlier or later one would
// say nothing about it.
func (f *pruneFlags) confirmShrink(cmd *cobra.Command, b *bucket, target string, plan retention.Plan) error {
	switch plan.Shrunk {
	case f.confirm:
	case "":
		return console.Usagef("no snapshot of %s waits for a confirmation; see what retention would do with: lifeboat prune %s --dry-run",
			target, target)
	default:
		return console.Usagef("it is %s that waits for a confirmation, not %s: %s", plan.Shrunk, f.confirm, plan.Held)
	}
	if err := b.setMark(cmd, lifeboatv1.Mark_KIND_SHRINK_CONFIRMED, target, f.confirm, f.reason, true); err != nil {
		return err
	}
	_, err := fmt.Fprintf(cmd.OutOrStdout(), "confirmed: %s of %s rightly holds less\nsee what goes now: lifeboat prune %s --dry-run\n"+
		"and apply it:      lifeboat prune %s --wait\n", f.confirm, target, target, target)
	return err
}

// pruneReport is what `lifeboat prune --dry-run` says.
type pruneReport struct {
	Target string `json:"target"`
	// Held is why nothing at all would be deleted; Shrunk the snapshot to confirm, if that is why.
	Held      string         `json:"held,omitempty"`
	Shrunk    string         `json:"shrunk,omitempty"`
	Snapshots []pruneVerdict `json:"snapshots"`
	Orphans   []pruneOrphan  `json:"orphans"`
	// Hidden are snapshots whose manifest somebody hid with a delete marker. They are left.
	Hidden []string `json:"hidden"`
}

// What becomes of a snapshot: "held" is one that would be deleted if the plan were not held.
const (
	verdictKeep   = "keep"
	verdictDelete = "delete"
	verdictHeld   = "held"
)

type pruneVerdict struct {
	Snapshot string    `json:"snapshot_id"`
	At       time.Time `json:"at"`
	Verdict  string    `json:"verdict"`
	Reasons  []string  `json:"reasons"`
	// Count is -1 when it is not known.
	Count   int64  `json:"count"`
	Unit    string `json:"unit"`
	Bytes   int64  `json:"raw_bytes"`
	Damaged bool   `json:"damaged"`
	Wrong   string `json:"wrong,omitempty"`
}

type pruneOrphan struct {
	Key   string    `json:"key"`
	Why   string    `json:"why"`
	Since time.Time `json:"since"`
	// Bytes is 0 for an unfinished upload, of which it is not known.
	Bytes int64 `json:"bytes"`
}

func newPruneReport(target string, s *worker.Survey) pruneReport {
	r := pruneReport{
		Target: target, Held: s.Plan.Held, Shrunk: s.Plan.Shrunk, Snapshots: []pruneVerdict{}, Orphans: []pruneOrphan{},
		Hidden: append([]string{}, s.Hidden...),
	}
	for _, v := range s.Plan.Verdicts {
		p := pruneVerdict{
			Snapshot: v.ID, At: v.At, Verdict: verdictKeep, Reasons: append([]string{}, v.Reasons...), Count: v.Count, Unit: v.Unit,
			Bytes: v.Bytes, Damaged: v.Damaged, Wrong: s.Wrong[v.ID],
		}
		switch {
		case len(v.Reasons) > 0:
		case r.Held != "":
			p.Verdict = verdictHeld
		default:
			p.Verdict = verdictDelete
		}
		r.Snapshots = append(r.Snapshots, p)
	}
	for _, o := range s.Orphans {
		r.Orphans = append(r.Orphans, pruneOrphan{Key: o.Key, Why: o.Why, Since: o.Since, Bytes: o.Bytes})
	}
	return r
}

func printPlan(out io.Writer, target string, r pruneReport) error {
	switch r.Held {
	case "":
	case retention.NoPolicy: // nobody has to look at that
		fmt.Fprintf(out, "%s\n\n", r.Held)
	default:
		fmt.Fprintf(out, "%s %s\n\n", console.Red(out, "HELD:"), console.Printable(r.Held))
	}
	t := console.NewTable(out, "SNAPSHOT", "AGE", "COUNTED", "RAW", "VERDICT", "WHY")
	var deleted int
	for _, v := range r.Snapshots {
		verdict, why := v.Verdict, strings.Join(v.Reasons, ", ")
		switch v.Verdict {
		case verdictDelete:
			deleted++
			verdict, why = console.Red(out, "DELETE"), "no rule keeps it"
		case verdictHeld:
			why = "no rule keeps it, but nothing is deleted"
		}
		if v.Damaged {
			why += "; damaged"
		}
		if v.Wrong != "" {
			why += ": " + v.Wrong
		}
		count := "-"
		if v.Count >= 0 {
			count = fmt.Sprintf("%d %s", v.Count, console.OrDash(v.Unit))
		}
		t.Row(v.Snapshot, console.Age(v.At), count, size(v.Bytes), verdict, console.FirstLine(why))
	}
	if err := t.Flush("no snapshots yet, so there is nothing to prune"); err != nil {
		return err
	}
	if len(r.Orphans) > 0 {
		fmt.Fprintln(out)
		orphans := console.NewTable(out, "ORPHAN", "AGE", "SIZE", "WHY")
		for _, o := range r.Orphans {
			bytes := "-"
			if o.Bytes > 0 {
				bytes = size(o.Bytes)
			}
			orphans.Row(o.Key, console.Age(o.Since), bytes, console.FirstLine(o.Why))
		}
		if err := orphans.Flush(""); err != nil {
			return err
		}
	}
	for _, id := range r.Hidden {
		fmt.Fprintf(out, "\nhidden: somebody set a delete marker on the manifest of %s; it is left\n", id)
	}
	if r.Held != "" || deleted+len(r.Orphans) == 0 {
		_, err := fmt.Fprintf(out, "\nnothing would be deleted\n")
		return err
	}
	_, err := fmt.Fprintf(out, "\n%d of %d snapshots and %d orphans would be deleted; do it with: lifeboat prune %s --wait\n",
		deleted, len(r.Snapshots), len(r.Orphans), target)
	return err
}
