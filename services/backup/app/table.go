package app

import (
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"maps"
	"os"
	"slices"
	"strings"
	"time"
	"unicode"

	"github.com/jedib0t/go-pretty/v6/table"
	"github.com/mattn/go-isatty"
	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/proto"

	lifeboatv1 "github.com/lifeboat-fleet/lifeboat/proto/lifeboat/v1"
	"github.com/lifeboat-fleet/lifeboat/services/backup/internal/catalog"
)

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

// isTerminal says whether a person reads what is written.
func isTerminal(w any) bool {
	f, ok := w.(*os.File)
	return ok && isatty.IsTerminal(f.Fd())
}

// red is for what a person must see first; only a terminal shows colour.
func red(out io.Writer, text string) string {
	if !isTerminal(out) || os.Getenv("NO_COLOR") != "" {
		return text
	}
	return "\x1b[31m" + text + "\x1b[0m"
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
	return writeJSON(out, all)
}

func writeJSON(out io.Writer, v any) error {
	enc := json.NewEncoder(out)
	enc.SetIndent("", "  ")
	enc.SetEscapeHTML(false) // commands hold > and &
	return enc.Encode(v)
}

// snapshotJSON is a manifest with two more fields: "marks" and "drills".
func snapshotJSON(s catalog.Snapshot) (json.RawMessage, error) {
	manifest, err := protojson.Marshal(s.Manifest)
	if err != nil {
		return nil, fmt.Errorf("encoding the manifest: %w", err)
	}
	var marks, drills []json.RawMessage
	for _, k := range markKinds() {
		if m, ok := s.Marks[k]; ok {
			b, err := protojson.Marshal(m)
			if err != nil {
				return nil, fmt.Errorf("encoding a mark: %w", err)
			}
			marks = append(marks, b)
		}
	}
	for _, d := range s.Drills {
		b, err := protojson.Marshal(d)
		if err != nil {
			return nil, fmt.Errorf("encoding a drill: %w", err)
		}
		drills = append(drills, b)
	}
	list := func(all []json.RawMessage) []byte {
		joined := []byte("[")
		for i, b := range all {
			if i > 0 {
				joined = append(joined, ',')
			}
			joined = append(joined, b...)
		}
		return append(joined, ']')
	}
	b := bytes.TrimSuffix(bytes.TrimSpace(manifest), []byte("}"))
	b = append(append(append(b, `,"marks":`...), list(marks)...), `,"drills":`...)
	return append(append(b, list(drills)...), '}'), nil
}

// markKinds are the kinds of marks in the order in which they are shown.
func markKinds() []lifeboatv1.Mark_Kind {
	return []lifeboatv1.Mark_Kind{
		lifeboatv1.Mark_KIND_PIN, lifeboatv1.Mark_KIND_SHRINK_CONFIRMED, lifeboatv1.Mark_KIND_VERIFIED,
	}
}

// flags are what a person should know of a snapshot at a glance.
func flags(s catalog.Snapshot) []string {
	var f []string
	if s.Damaged() {
		f = append(f, "DAMAGED")
	}
	if s.Pinned() {
		f = append(f, "PINNED")
	}
	if s.GetData().GetUnchangedSince() != "" {
		f = append(f, "UNCHANGED")
	}
	if s.Marks[lifeboatv1.Mark_KIND_SHRINK_CONFIRMED].GetHolds() {
		f = append(f, "SHRINK-CONFIRMED")
	}
	return f
}

// printable drops what could move a terminal's cursor: manifests hold texts that other servers and people wrote.
func printable(s string) string {
	return strings.Map(func(r rune) rune {
		if unicode.IsControl(r) && r != '\n' && r != '\t' {
			return -1
		}
		return r
	}, s)
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
	return printable(line)
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

func sortedKeys[V any](m map[string]V) []string { return slices.Sorted(maps.Keys(m)) }
