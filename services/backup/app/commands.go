package app

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"strings"
	"time"

	"github.com/jedib0t/go-pretty/v6/table"
	"github.com/spf13/cobra"
	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/proto"

	"github.com/lifeboat-fleet/lifeboat/fleet/config"
	"github.com/lifeboat-fleet/lifeboat/fleet/service"
	lifeboatv1 "github.com/lifeboat-fleet/lifeboat/proto/lifeboat/v1"
	"github.com/lifeboat-fleet/lifeboat/services/backup/internal/catalog"
	"github.com/lifeboat-fleet/lifeboat/services/backup/internal/store/s3"
)

// reader are the flags of a command that needs only the bucket.
type reader struct {
	config string
	output string
}

func (r *reader) add(cmd *cobra.Command) {
	cmd.Flags().StringVarP(&r.config, "config", "c", "lifeboat.yaml", "configuration `file`")
	cmd.Flags().StringVarP(&r.output, "output", "o", "table", "table or json")
}

// open reads the configuration and connects to the bucket. targets limits what is listed; all when empty.
func (r *reader) open(ctx context.Context, targets []string) (*catalog.Catalog, []config.Target, error) {
	if r.output != "table" && r.output != "json" {
		return nil, nil, &service.UsageError{Err: fmt.Errorf("--output: %q is not table or json", r.output)}
	}
	cfg, err := config.Load(r.config)
	if err != nil {
		return nil, nil, &service.UsageError{Err: err}
	}
	chosen := cfg.Targets
	if len(targets) > 0 {
		chosen = nil
		for _, name := range targets {
			t, ok := cfg.Target(name)
			if !ok {
				return nil, nil, &service.UsageError{Err: fmt.Errorf("no target is named %q in %s", name, r.config)}
			}
			chosen = append(chosen, t)
		}
	}
	objects, err := s3.New(ctx, cfg.Store.ObjectStore)
	if err != nil {
		return nil, nil, &service.UsageError{Err: err}
	}
	return catalog.New(objects, cfg.Store.Prefix), chosen, nil
}

// SnapshotCommand is `lifeboat snapshot`.
func SnapshotCommand() *cobra.Command {
	var r reader
	list := &cobra.Command{
		Use: "list [target...]", Short: "List committed snapshots, oldest first; needs only the bucket",
		Example: "  lifeboat snapshot list\n  lifeboat snapshot list etcd-prod --output json",
		RunE: func(cmd *cobra.Command, args []string) error {
			return r.listSnapshots(cmd.Context(), cmd.OutOrStdout(), args)
		},
	}
	r.add(list)
	return service.Group(&cobra.Command{Use: "snapshot", Short: "List and take snapshots"},
		list, runCommand(config.WorkSnapshot, "Ask a worker for a snapshot now"))
}

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
	return service.Group(&cobra.Command{Use: "drill", Short: "List and run restore drills"},
		list, runCommand(config.WorkDrill, "Ask a worker for a restore drill of the newest snapshot now"))
}

func (r *reader) listSnapshots(ctx context.Context, out io.Writer, args []string) error {
	cat, targets, err := r.open(ctx, args)
	if err != nil {
		return err
	}
	var messages []proto.Message
	t := newTable(out, "TARGET", "SNAPSHOT", "AGE", "RAW", "STORED", "REVISION", "COUNTED", "VERIFIED", "PROVEN")
	for _, target := range targets {
		snapshots, err := cat.List(ctx, target.Name)
		if err != nil {
			return err
		}
		for _, s := range snapshots {
			messages = append(messages, s.Manifest)
			proven := "-"
			if p := s.Proven(); p != nil {
				proven = p.GetId()
			}
			t.row(target.Name, s.GetId(), age(s.GetCommittedAt().AsTime()), size(s.GetData().GetRaw().GetBytes()),
				size(s.GetData().GetStored().GetBytes()), fmt.Sprint(s.GetSource().GetRevision()),
				counted(s.GetKind(), s.GetSource()), s.GetVerification().GetMethod(), proven)
		}
	}
	if r.output == "json" {
		return printJSON(out, messages)
	}
	return t.flush("no snapshots yet; take one with: nats pub lifeboat.job.snapshot.<target> ''")
}

func (r *reader) listDrills(ctx context.Context, out io.Writer, args []string) error {
	cat, targets, err := r.open(ctx, args)
	if err != nil {
		return err
	}
	var messages []proto.Message
	t := newTable(out, "TARGET", "DRILL", "SNAPSHOT", "AGE", "RESULT", "LEVEL", "RTO", "SUMMARY")
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
					result, text = "FAILED", d.GetFailure()
				}
				level := strings.ToLower(strings.TrimPrefix(d.GetLevel().String(), "LEVEL_"))
				t.row(target.Name, d.GetId(), d.GetSnapshotId(), age(d.GetFinishedAt().AsTime()), result, level,
					d.GetRto().AsDuration().Round(time.Millisecond).String(), firstLine(text))
			}
		}
	}
	if r.output == "json" {
		return printJSON(out, messages)
	}
	return t.flush("no drills yet; run one with: nats pub lifeboat.job.drill.<target> ''")
}

// counted is the count that a person asks for first.
func counted(k lifeboatv1.Kind, s *lifeboatv1.SourceInfo) string {
	what := "keys"
	if k == lifeboatv1.Kind_KIND_NOMAD {
		what = "jobs"
	}
	n, ok := s.GetCounts()[what]
	if !ok {
		return "-"
	}
	return fmt.Sprintf("%d %s", n, what)
}

func firstLine(s string) string {
	line, _, _ := strings.Cut(s, "\n")
	return line
}

func age(t time.Time) string {
	d := time.Since(t)
	switch {
	case d < time.Minute:
		return d.Round(time.Second).String()
	case d < 48*time.Hour:
		return strings.TrimSuffix(d.Round(time.Minute).String(), "0s")
	}
	return fmt.Sprintf("%dd", int(d.Hours()/24))
}

func size(n int64) string {
	const unit = 1024
	if n < unit {
		return fmt.Sprintf("%d B", n)
	}
	f, suffix := float64(n), ""
	for _, suffix = range []string{"KiB", "MiB", "GiB", "TiB"} {
		f /= unit
		if f < unit {
			break
		}
	}
	return fmt.Sprintf("%.1f %s", f, suffix)
}

// listing is a table for a terminal.
type listing struct {
	table.Writer
	out io.Writer
}

func newTable(out io.Writer, header ...string) *listing {
	t := &listing{Writer: table.NewWriter(), out: out}
	style := table.StyleDefault
	style.Options = table.OptionsNoBordersAndSeparators
	style.Box.PaddingLeft, style.Box.PaddingRight = "", "  "
	t.SetStyle(style)
	t.SuppressTrailingSpaces()
	t.AppendHeader(cells(header))
	return t
}

func cells(texts []string) table.Row {
	row := make(table.Row, len(texts))
	for i, c := range texts {
		row[i] = c
	}
	return row
}

func (t *listing) row(texts ...string) { t.AppendRow(cells(texts)) }

// flush prints the table, or a hint when it is empty.
func (t *listing) flush(empty string) error {
	text := empty
	if t.Length() > 0 {
		text = t.Render()
	}
	_, err := fmt.Fprintln(t.out, text)
	return err
}

// printJSON prints messages as one JSON array.
func printJSON(out io.Writer, messages []proto.Message) error {
	all := make([]json.RawMessage, 0, len(messages))
	for _, m := range messages {
		b, err := protojson.Marshal(m)
		if err != nil {
			return fmt.Errorf("encoding: %w", err)
		}
		all = append(all, b)
	}
	enc := json.NewEncoder(out)
	enc.SetIndent("", "  ")
	return enc.Encode(all)
}
