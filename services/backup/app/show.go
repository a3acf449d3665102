package app

import (
	"bufio"
	"fmt"
	"io"
	"maps"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"
	"google.golang.org/protobuf/types/known/timestamppb"

	"github.com/lifeboat-fleet/lifeboat/fleet/console"
	lifeboatv1 "github.com/lifeboat-fleet/lifeboat/proto/lifeboat/v1"
	"github.com/lifeboat-fleet/lifeboat/services/backup/internal/catalog"
)

func showCommand() *cobra.Command {
	var r reader
	cmd := &cobra.Command{
		Use: "show target [latest|oldest|id]", Short: "Show all that is known of a snapshot, and the commands that restore it",
		Example: "  lifeboat snapshot show etcd-prod\n" +
			"  lifeboat snapshot show etcd-prod 20261121T040000.123Z-42\n" +
			"  lifeboat snapshot show etcd-prod -o json | jq -r '.restoreCommands[]'",
		Args: cobra.RangeArgs(1, 2),
		RunE: func(cmd *cobra.Command, args []string) error {
			return r.show(cmd, args[0], argument(args, "latest"))
		},
	}
	r.add(cmd)
	cmd.ValidArgsFunction = r.completeSnapshot("latest", "oldest")
	return cmd
}

func (r *reader) show(cmd *cobra.Command, target, selector string) error {
	b, err := r.openOne(cmd.Context(), target)
	if err != nil {
		return err
	}
	s, err := b.catalog.Snapshot(cmd.Context(), target, selector)
	if err != nil {
		return fmt.Errorf("%w; see what there is with: lifeboat snapshot list %s", err, target)
	}
	if r.output == console.OutputJSON {
		j, err := snapshotJSON(s)
		if err != nil {
			return err
		}
		return console.WriteJSON(cmd.OutOrStdout(), j)
	}
	return printSnapshot(cmd.OutOrStdout(), s)
}

// page prints sections of labelled lines.
type page struct {
	*bufio.Writer
	out io.Writer
}

func (p *page) section(title string) { fmt.Fprintf(p, "\n%s\n", title) }

// line prints a value, of which each line gets its place; nothing when it is empty.
func (p *page) line(label, value string) {
	for i, l := range strings.Split(strings.TrimSpace(value), "\n") {
		if l == "" {
			continue
		}
		if i > 0 {
			label = ""
		}
		fmt.Fprintf(p, "  %-12s %s\n", label, console.Printable(l))
	}
}

// warn prints what a person should worry about.
func (p *page) warn(label, value string) {
	if value != "" {
		fmt.Fprintf(p, "  %-12s %s\n", label, console.Red(p.out, console.Printable(value)))
	}
}

func printSnapshot(out io.Writer, s catalog.Snapshot) error {
	p := &page{bufio.NewWriter(out), out}
	title := fmt.Sprintf("Snapshot %s of %s", s.GetId(), s.GetTarget())
	if f := strings.Join(flags(s), " "); f != "" {
		title += "  [" + f + "]"
	}
	fmt.Fprintln(p, console.Printable(title))
	p.times(s.Manifest)
	p.section("Source")
	p.source(s.GetSource())
	p.section("Data")
	p.data(s.GetData())
	for _, part := range s.GetParts() {
		p.section("Part " + part.GetFormat())
		p.data(part)
		p.source(part.GetSource())
	}
	p.section("Verification, before it was committed")
	p.verification(s.GetVerification())
	p.section("Store, as it was seen to be")
	p.store(s.GetStore())
	p.marks(s)
	if err := p.drills(s.Drills); err != nil {
		return err
	}
	p.section("To restore it with stock tools")
	for _, c := range s.GetRestoreCommands() {
		fmt.Fprintln(p, console.Printable(c)) // at the margin, ready to paste
	}
	return p.Flush()
}

func (p *page) times(m *lifeboatv1.Manifest) {
	p.line("kind", kindName(m.GetKind()))
	p.line("scheduled", when(m.GetTick()))
	p.line("started", when(m.GetStartedAt()))
	p.line("uploaded", when(m.GetUploadedAt()))
	committed := when(m.GetCommittedAt())
	if m.GetCommittedAt() != nil {
		took := m.GetCommittedAt().AsTime().Sub(m.GetStartedAt().AsTime())
		committed += fmt.Sprintf(", %s ago, after %s", console.Age(m.GetCommittedAt().AsTime()), took.Round(time.Millisecond))
	}
	p.line("committed", committed)
	p.line("job", m.GetJobId())
	p.line("written by", "Lifeboat "+m.GetLifeboatVersion())
	p.line("trace", m.GetTraceId())
}

func (p *page) source(s *lifeboatv1.SourceInfo) {
	if s == nil {
		return
	}
	p.line("version", s.GetVersion())
	p.line("identity", pairs(s.GetIdentity()))
	p.line("revision", fmt.Sprint(s.GetRevision()))
	p.line("counted", pairs(s.GetCounts()))
	if h := s.GetHashKv(); h != nil {
		compacted := "never compacted"
		if h.GetCompactRevision() > 0 { // etcd says -1 before its first compaction
			compacted = fmt.Sprintf("compacted at %d", h.GetCompactRevision())
		}
		p.line("HashKV", fmt.Sprintf("%d at revision %d, %s", h.GetHash(), h.GetRevision(), compacted))
	}
	if h := s.GetEtcdHealth(); h != nil {
		p.line("database", fmt.Sprintf("%s, of it %s in use; quota %s", size(h.GetDbBytes()), size(h.GetDbBytesInUse()), size(h.GetQuotaBytes())))
		for _, a := range h.GetAlarms() {
			p.warn("alarm", a)
		}
	}
	for _, w := range s.GetWorries() {
		p.warn("worry", w)
	}
	for _, w := range s.GetMissing() {
		p.warn("missing", w)
	}
}

func (p *page) data(d *lifeboatv1.Data) {
	p.line("object", d.GetKey())
	form := d.GetFormat() + ", " + d.GetCompression()
	if len(d.GetRecipients()) == 0 {
		form += ", not encrypted"
	}
	p.line("form", form)
	for i, r := range d.GetRecipients() {
		label := ""
		if i == 0 {
			label = "encrypted to"
		}
		p.line(label, r)
	}
	p.digest("raw", d.GetRaw())
	p.digest("stored", d.GetStored())
	if since := d.GetUnchangedSince(); since != "" {
		p.line("unchanged", "since "+since+": the object is that snapshot's")
	}
}

func (p *page) digest(label string, d *lifeboatv1.Digest) {
	p.line(label, fmt.Sprintf("%s (%d bytes), sha256 %s", size(d.GetBytes()), d.GetBytes(), d.GetSha256()))
}

func (p *page) verification(v *lifeboatv1.Verification) {
	if v == nil {
		p.warn("method", "none: nothing was compared")
		return
	}
	how := map[string]string{
		"decoded": "decoded: read back, decoded, and equal to what the source sent",
		"stored":  "stored: read back and equal to what was uploaded; only a recipient can decode it",
		"sampled": "sampled: some chunks read back and equal to what was uploaded",
	}[v.GetMethod()]
	if how == "" {
		how = v.GetMethod()
	}
	p.line("method", how)
	p.line("at", when(v.GetAt()))
	read := size(v.GetBytes()) + " read back"
	if v.GetChunks() > 0 {
		read += fmt.Sprintf(", %d of %d chunks", v.GetChunksRead(), v.GetChunks())
	}
	p.line("compared", read)
}

func (p *page) store(s *lifeboatv1.StoreCapabilities) {
	p.line("bucket", s.GetBucket()+" at "+s.GetEndpoint())
	yes := map[bool]string{true: "yes", false: "no"}
	p.line("does", fmt.Sprintf("conditional writes %s, checksums %s, aborts uploads %s, versioning %s, object lock %s",
		yes[s.GetConditionalWrites()], yes[s.GetChecksums()], yes[s.GetMultipartAbort()],
		console.OrDash(s.GetVersioning()), console.OrDash(s.GetObjectLock())))
}

func (p *page) marks(s catalog.Snapshot) {
	if len(s.Marks) == 0 {
		return
	}
	p.section("Marks")
	for _, k := range markKinds() {
		m, ok := s.Marks[k]
		if !ok {
			continue
		}
		name := strings.ReplaceAll(strings.ToLower(strings.TrimPrefix(k.String(), "KIND_")), "_", "-")
		text := fmt.Sprintf("by %s at %s", m.GetBy(), when(m.GetAt()))
		if m.GetReason() != "" {
			text += ": " + m.GetReason()
		}
		switch {
		case m.GetHolds():
			p.line(name, text)
		case k == lifeboatv1.Mark_KIND_VERIFIED:
			p.warn("DAMAGED", "found "+text)
		default:
			p.line(name, "taken back "+text)
		}
	}
}

func (p *page) drills(all []*lifeboatv1.DrillReport) error {
	p.section("Drills")
	t := console.NewTable(p, "DRILL", "RESULT", "LEVEL", "RTO", "AGE", "SUMMARY")
	for _, d := range all {
		result, text := "passed", d.GetSummary()
		if !d.GetPassed() {
			result, text = console.Red(p.out, "FAILED"), d.GetFailure()
		}
		t.Row(d.GetId(), result, levelName(d.GetLevel()), took(d.GetRto()),
			console.Age(d.GetFinishedAt().AsTime()), console.FirstLine(text))
	}
	return t.Flush("  none yet: that it can be restored is not proven")
}

func kindName(k lifeboatv1.Kind) string {
	return strings.ToLower(strings.TrimPrefix(k.String(), "KIND_"))
}

func levelName(l lifeboatv1.DrillReport_Level) string {
	return strings.ToLower(strings.TrimPrefix(l.String(), "LEVEL_"))
}

func when(t *timestamppb.Timestamp) string {
	if t == nil {
		return ""
	}
	return t.AsTime().UTC().Format("2006-01-02 15:04:05 MST")
}

// pairs prints a map in the order of its keys.
func pairs[V any](m map[string]V) string {
	texts := make([]string, 0, len(m))
	for _, k := range slices.Sorted(maps.Keys(m)) {
		texts = append(texts, fmt.Sprintf("%s %v", k, m[k]))
	}
	return strings.Join(texts, ", ")
}
