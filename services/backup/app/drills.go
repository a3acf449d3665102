package app

import (
	"bufio"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"strings"
	"time"

	"github.com/spf13/cobra"
	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/durationpb"

	"github.com/lifeboat-fleet/lifeboat/fleet/config"
	"github.com/lifeboat-fleet/lifeboat/fleet/console"
	"github.com/lifeboat-fleet/lifeboat/fleet/service"
	lifeboatv1 "github.com/lifeboat-fleet/lifeboat/proto/lifeboat/v1"
)

// DrillCommand is `lifeboat drill`.
func DrillCommand() *cobra.Command {
	var r reader
	list := &cobra.Command{
		Use: "list [target...]", Short: "List drills, oldest first; needs only the bucket",
		Example: "  lifeboat drill list\n  lifeboat drill list etcd-prod --output json",
		RunE: func(cmd *cobra.Command, args []string) error {
			return r.listDrills(cmd.Context(), cmd.OutOrStdout(), args)
		},
	}
	r.add(list)
	return service.Group(&cobra.Command{
		Use: "drill", Short: "Run, list and show restore drills",
		Long: "A drill restores a snapshot into a throwaway server and compares what is there with what the source said. list and\n" +
			"show need only the bucket.",
	}, list, drillRunCommand(), drillShowCommand())
}

// drillRunCommand publishes a drill's job, as anybody may with `nats pub`.
func drillRunCommand() *cobra.Command {
	var f runFlags
	job := &lifeboatv1.Job{}
	var identity string
	cmd := &cobra.Command{
		Use: "run target", Short: "Ask a worker for a restore drill now",
		Long: "run publishes a job for a drill worker and prints the drill's id. With --wait it prints how the drill ended, with exit\n" +
			"code 1 when it failed.",
		Example: "  lifeboat drill run etcd-prod\n" +
			"  lifeboat drill run etcd-prod --wait --timeout 10m\n" +
			"  lifeboat drill run etcd-prod --snapshot random\n" +
			"  lifeboat drill run etcd-prod --identity escrow --wait    # does the key in the safe still decrypt?\n" +
			"  nats pub lifeboat.job.drill.etcd-prod ''                 # the same as the first\n" +
			"  nats req lifeboat.job.drill.etcd-prod '{\"snapshot\":\"oldest\"}'    # answers with the sequence: lifeboat drill show etcd-prod SEQUENCE",
		Args: cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			switch identity {
			case "", identityWorker:
			case config.IdentityEscrow:
				job.Identity = identity
			default:
				return console.Usagef("--identity: %q is not %s or %s", identity, identityWorker, config.IdentityEscrow)
			}
			return f.run(cmd, config.WorkDrill, args[0], job)
		},
	}
	f.add(cmd)
	cmd.Flags().StringVar(&job.Snapshot, "snapshot", "", "latest (also when empty), oldest, random or an `id`")
	cmd.Flags().StringVar(&identity, "identity", "", "the key to decrypt with: worker (also when empty), or escrow for the target's drill.escrow")
	console.CompleteFlag(cmd, "snapshot", "latest", "oldest", "random")
	console.CompleteFlag(cmd, "identity", identityWorker, config.IdentityEscrow)
	return cmd
}

// identityWorker is the usual one, in the words of drills' reports.
const identityWorker = "worker"

func (r *reader) listDrills(ctx context.Context, out io.Writer, args []string) error {
	cat, targets, err := r.open(ctx, args)
	if err != nil {
		return err
	}
	var messages []proto.Message
	t := console.NewTable(out, "TARGET", "DRILL", "SNAPSHOT", "AGE", "RESULT", "LEVEL", "RTO", "KEY", "FAILED PHASE", "SUMMARY")
	for _, target := range targets {
		snapshots, err := cat.List(ctx, target.Name)
		if err != nil {
			return err
		}
		for _, s := range snapshots {
			for _, d := range s.Drills {
				messages = append(messages, d)
				result, text := "passed", d.GetSummary()
				if !d.GetPassed() {
					result, text = console.Red(out, "FAILED"), d.GetFailure()
				}
				t.Row(target.Name, d.GetId(), d.GetSnapshotId(), console.Age(d.GetFinishedAt().AsTime()), result, levelName(d.GetLevel()),
					took(d.GetRto()), console.OrDash(d.GetIdentity()), console.OrDash(d.GetFailedPhase()), console.FirstLine(text))
			}
		}
	}
	if r.output == console.OutputJSON {
		return console.PrintJSON(out, messages)
	}
	return t.Flush("no drills yet; run one with: lifeboat drill run <target>")
}

func drillShowCommand() *cobra.Command {
	var r reader
	cmd := &cobra.Command{
		Use: "show target [latest|id|sequence]", Short: "Show a drill's whole report; needs only the bucket",
		Long: "show prints what a drill did and found: each phase with its time, each comparison, what it used, and how old the data was.\n" +
			"A drill is named by its id, or by the number at its end, which is the sequence that `nats req` answers.",
		Example: "  lifeboat drill show etcd-prod\n" +
			"  lifeboat drill show etcd-prod 20261121T040000.123Z-42\n" +
			"  lifeboat drill show etcd-prod 42 --output json | jq .comparisons",
		Args: cobra.RangeArgs(1, 2),
		RunE: func(cmd *cobra.Command, args []string) error {
			return r.showDrill(cmd, args[0], argument(args, "latest"))
		},
	}
	r.add(cmd)
	cmd.ValidArgsFunction = func(cmd *cobra.Command, args []string, _ string) ([]string, cobra.ShellCompDirective) {
		const directive = cobra.ShellCompDirectiveNoFileComp | cobra.ShellCompDirectiveKeepOrder
		switch len(args) {
		case 0:
			return console.TargetNames(r.config, nil), directive
		case 1:
			return append([]string{"latest"}, r.drillIDs(cmd.Context(), args[0])...), directive
		}
		return nil, directive
	}
	return cmd
}

// drillIDs are for completion: newest first, and none when that takes long.
func (r *reader) drillIDs(ctx context.Context, target string) []string {
	ctx, cancel := context.WithTimeout(ctx, completionTimeout)
	defer cancel()
	b, err := r.bucket(ctx)
	if err != nil {
		return nil
	}
	ids, err := b.catalog.DrillIDs(ctx, target)
	if err != nil {
		return nil
	}
	return ids
}

func (r *reader) showDrill(cmd *cobra.Command, target, selector string) error {
	b, err := r.openOne(cmd.Context(), target)
	if err != nil {
		return err
	}
	d, err := b.catalog.FindDrill(cmd.Context(), target, selector)
	if err != nil {
		return fmt.Errorf("%w; see what there is with: lifeboat drill list %s", err, target)
	}
	if r.output == console.OutputJSON {
		j, err := protojson.Marshal(d)
		if err != nil {
			return fmt.Errorf("encoding the report: %w", err)
		}
		return console.WriteJSON(cmd.OutOrStdout(), json.RawMessage(j))
	}
	return printDrill(cmd.OutOrStdout(), d)
}

func printDrill(out io.Writer, d *lifeboatv1.DrillReport) error {
	p := &page{bufio.NewWriter(out), out}
	fmt.Fprintln(p, console.Printable(fmt.Sprintf("Drill %s of %s", d.GetId(), d.GetTarget())))
	if d.GetPassed() {
		p.line("result", "passed: "+d.GetSummary())
	} else {
		p.warn("FAILED", d.GetFailure())
		p.line("phase", d.GetFailedPhase())
		p.line("summary", d.GetSummary())
		runbook := "lifeboat-drill-failed"
		if d.GetIdentity() == config.IdentityEscrow {
			runbook = "lifeboat-escrow-drill-failed"
		}
		p.line("runbook", "docs/runbooks/"+runbook+".md")
	}
	p.line("snapshot", d.GetSnapshotId())
	p.line("kind", kindName(d.GetKind()))
	p.line("level", levelName(d.GetLevel()))
	rto := took(d.GetRto())
	if d.GetMaxRto() != nil {
		rto += ", of " + took(d.GetMaxRto()) + " allowed"
	}
	p.line("RTO", rto)
	if d.GetDataAge() != nil {
		p.line("data age", took(d.GetDataAge())+" when the drill began: what a disaster then would have lost")
	}
	p.line("isolation", d.GetIsolation())
	p.line("key", d.GetIdentity())
	p.line("began", when(d.GetStartedAt()))
	p.line("ended", when(d.GetFinishedAt()))
	p.line("asked by", d.GetRequestedBy())
	p.line("job", d.GetJobId())
	p.line("by", "Lifeboat "+d.GetLifeboatVersion())
	p.line("trace", d.GetTraceId())
	p.usage(d.GetUsage())
	if err := p.phases(d); err != nil {
		return err
	}
	for _, checks := range []bool{false, true} {
		if err := p.comparisons(d, checks); err != nil {
			return err
		}
	}
	return p.Flush()
}

func (p *page) usage(u *lifeboatv1.Usage) {
	of := func(used, budget int64) string {
		if budget == 0 {
			return size(used) + ", no budget"
		}
		return fmt.Sprintf("%s of a budget of %s", size(used), size(budget))
	}
	if u == nil {
		return
	}
	p.line("disk", of(u.GetDiskBytes(), u.GetDiskBudget()))
	p.line("memory", of(u.GetMemoryBytes(), u.GetMemoryBudget()))
}

// barWidth is how many characters the whole of a drill is.
const barWidth = 40

// phases draws each phase where it was in the drill.
func (p *page) phases(d *lifeboatv1.DrillReport) error {
	if len(d.GetPhases()) == 0 {
		return nil
	}
	p.section("Phases")
	var whole, at time.Duration
	type span struct{ from, took time.Duration }
	spans := make([]span, len(d.GetPhases()))
	for i, ph := range d.GetPhases() {
		from := at // reports of older versions do not say when a phase began; there each began when the one before had ended
		if ph.GetBegan() != nil {
			from = ph.GetBegan().AsDuration()
		}
		spans[i] = span{from, ph.GetTook().AsDuration()}
		at = from + spans[i].took
		whole = max(whole, at)
	}
	t := console.NewTable(p, "  PHASE", "TOOK", "")
	for i, ph := range d.GetPhases() {
		name := "  " + ph.GetName()
		if ph.GetName() == d.GetFailedPhase() {
			name = "  " + console.Red(p.out, ph.GetName()+" FAILED")
		}
		t.Row(name, took(ph.GetTook()), bar(spans[i].from, spans[i].took, whole))
	}
	return t.Flush("")
}

// bar shows a span of a whole.
func bar(from, took, whole time.Duration) string {
	if whole <= 0 {
		return ""
	}
	left := int(from * barWidth / whole)
	length := max(1, int((took*barWidth+whole/2)/whole))
	left = min(left, barWidth-1)
	return strings.Repeat(" ", left) + strings.Repeat("#", min(length, barWidth-left))
}

// comparisons are what the drill looked at by itself, or the checks that the user wrote.
func (p *page) comparisons(d *lifeboatv1.DrillReport, checks bool) error {
	title := "Compared with what the source said"
	if checks {
		title = "Checks of the target's drill.checks"
	}
	t := console.NewTable(p, "  WHAT", "RESULT", "WANT", "GOT")
	for _, c := range d.GetComparisons() {
		if c.GetCheck() != checks {
			continue
		}
		result := "equal"
		if checks {
			result = "ok"
		}
		switch {
		case c.GetNotComparable() != "":
			result = "not comparable: " + console.FirstLine(c.GetNotComparable())
		case !c.GetOk():
			result = console.Red(p.out, "DIFFERS")
		}
		t.Row("  "+console.FirstLine(c.GetWhat()), result, console.OrDash(console.FirstLine(c.GetWant())), console.OrDash(console.FirstLine(c.GetGot())))
	}
	if t.Length() == 0 {
		return nil
	}
	p.section(title)
	return t.Flush("")
}

// took is a duration as a person reads it.
func took(d *durationpb.Duration) string {
	if d == nil {
		return "-"
	}
	return d.AsDuration().Round(time.Millisecond).String()
}
