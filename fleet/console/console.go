// Package console is what the operator's commands of all services share: their common flags, tables, colours and completion. It
// writes to the writer that it is given, reads the configuration, and touches nothing else.
package console

import (
	"encoding/json"
	"fmt"
	"io"
	"os"
	"os/user"
	"strings"
	"time"
	"unicode"

	"github.com/jedib0t/go-pretty/v6/table"
	"github.com/mattn/go-isatty"
	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/proto"
)

// Table is a table for a terminal.
type Table struct {
	table.Writer
	out io.Writer
}

// NewTable begins a table.
func NewTable(out io.Writer, header ...string) *Table {
	t := &Table{Writer: table.NewWriter(), out: out}
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

// Row adds a line.
func (t *Table) Row(texts ...string) { t.AppendRow(cells(texts)) }

// Flush prints the table, or a hint when it is empty.
func (t *Table) Flush(empty string) error {
	text := empty
	if t.Length() > 0 {
		text = t.Render()
	}
	_, err := fmt.Fprintln(t.out, text)
	return err
}

// IsTerminal says whether a person reads what is written.
func IsTerminal(w any) bool {
	f, ok := w.(*os.File)
	return ok && isatty.IsTerminal(f.Fd())
}

// Red is for what a person must see first; only a terminal shows colour.
func Red(out io.Writer, text string) string { return paint(out, "\x1b[31m", text) }

// Green is for what is as it should be.
func Green(out io.Writer, text string) string { return paint(out, "\x1b[32m", text) }

func paint(out io.Writer, colour, text string) string {
	if !IsTerminal(out) || os.Getenv("NO_COLOR") != "" {
		return text
	}
	return colour + text + "\x1b[0m"
}

// PrintJSON prints messages as one JSON array.
func PrintJSON(out io.Writer, messages []proto.Message) error {
	all := make([]json.RawMessage, 0, len(messages))
	for _, m := range messages {
		b, err := protojson.Marshal(m)
		if err != nil {
			return fmt.Errorf("encoding: %w", err)
		}
		all = append(all, b)
	}
	return WriteJSON(out, all)
}

// WriteJSON prints a value for a script.
func WriteJSON(out io.Writer, v any) error {
	enc := json.NewEncoder(out)
	enc.SetIndent("", "  ")
	enc.SetEscapeHTML(false) // commands hold > and &
	return enc.Encode(v)
}

// Printable drops what could move a terminal's cursor or turn the direction of what stands behind it: much of what is shown was
// written by other servers and people.
func Printable(s string) string {
	return strings.Map(func(r rune) rune {
		if (unicode.IsControl(r) && r != '\n' && r != '\t') || unicode.Is(unicode.Bidi_Control, r) {
			return -1
		}
		return r
	}, s)
}

// FirstLine is the printable first line of a text.
func FirstLine(s string) string {
	line, _, _ := strings.Cut(s, "\n")
	return Printable(line)
}

// Age is how long ago a moment was, in as many digits as a person needs.
func Age(t time.Time) string { return Duration(time.Since(t)) }

// Duration is a duration in as many digits as a person needs.
func Duration(d time.Duration) string {
	switch {
	case d < time.Minute:
		return d.Round(time.Second).String()
	case d < 48*time.Hour:
		return strings.TrimSuffix(d.Round(time.Minute).String(), "0s")
	}
	return fmt.Sprintf("%dd", int(d.Hours()/24))
}

// OrDash stands for nothing in a cell.
func OrDash(s string) string {
	if s == "" {
		return "-"
	}
	return s
}

// Whoami is "user@host", to sign what a person does.
func Whoami() string {
	name := "unknown"
	if u, err := user.Current(); err == nil {
		name = u.Username
	}
	host, err := os.Hostname()
	if err != nil {
		host = "unknown-host"
	}
	return name + "@" + host
}
