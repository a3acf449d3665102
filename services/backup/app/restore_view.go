package app

import (
	"bufio"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"strconv"
	"strings"
	"time"
	"unicode"
	"unicode/utf8"

	"github.com/lifeboat-fleet/lifeboat/fleet/console"
	"github.com/lifeboat-fleet/lifeboat/services/backup/internal/restore"
)

// restoreView prints a restore while it goes on, so that memory does not grow with what is restored. A table is printed row by
// row for the same reason: its columns are as wide as is usual, not as wide as the widest.
//
// Standard output has the result: the table, or one JSON document. Standard error has progress, and what was not restored.
type restoreView struct {
	r    *restoration
	out  *bufio.Writer
	json bool
	rows int64
	bar  *counter
	err  error // of writing; the first one
}

func newRestoreView(r *restoration) *restoreView {
	v := &restoreView{r: r, out: bufio.NewWriter(r.out), json: r.flags.output == console.OutputJSON}
	what := "comparing"
	if r.flags.apply {
		what = "restoring"
	}
	v.bar = newCounter(r.errs, what)
	return v
}

// begin says which snapshot goes where.
func (v *restoreView) begin() error {
	r := v.r
	if v.json {
		mode := "plan"
		if r.flags.apply {
			mode = "apply"
		}
		v.printf(`{"target":%s,"snapshot_id":%s,"taken_at":%s,"destination":%s,"mode":%s,"items":[`, jsonText(r.target.Name),
			jsonText(r.manifest.GetId()), jsonText(r.manifest.GetStartedAt().AsTime().UTC().Format(time.RFC3339)), jsonText(r.where()), jsonText(mode))
		return v.err
	}
	doing := "plan: nothing is written"
	if r.flags.apply {
		doing = "restoring"
	}
	v.printf("%s into %s (%s)\n", r.snapshotName(), r.where(), doing)
	v.flush()
	return v.err
}

func (v *restoreView) printf(format string, args ...any) {
	if v.err == nil {
		_, v.err = fmt.Fprintf(v.out, format, args...)
	}
}

func (v *restoreView) flush() {
	if v.err == nil {
		v.err = v.out.Flush()
	}
}

// item implements restore.Options.Item.
func (v *restoreView) item(i restore.Item) {
	left := i.Action == restore.Differs || i.Action == restore.Skip || i.Action == restore.Failed
	if left && v.r.flags.apply {
		v.bar.hide()
		fmt.Fprintln(v.r.errs, "not restored: "+row(i))
	}
	switch {
	case v.json:
		if v.r.flags.all || (i.Action != restore.Same && i.Action != restore.Extra) {
			v.jsonItem(i)
		}
	case v.listed(i.Action, left):
		v.bar.hide()
		if v.rows++; v.rows == 1 {
			v.printf("\n%-8s %-12s %-40s %s\n", "ACTION", "KIND", "NAME", "DETAIL")
		}
		v.printf("%s\n", v.paint(i.Action, row(i)))
		if console.IsTerminal(v.r.out) {
			v.flush()
		}
	}
}

// listed says whether the table has a row for something. A plan has one for all that an --apply would do or leave though the
// snapshot has it; an --apply names only what it left, which is on standard error.
func (v *restoreView) listed(a restore.Action, left bool) bool {
	switch {
	case v.r.flags.apply && left:
		return false
	case v.r.flags.all:
		return true
	case v.r.flags.apply:
		return false
	}
	return a != restore.Same && a != restore.Extra
}

func (v *restoreView) paint(a restore.Action, text string) string {
	if a == restore.Failed || a == restore.Differs || a == restore.Change {
		return console.Red(v.r.out, text)
	}
	return text
}

// row is one thing on one line.
func row(i restore.Item) string {
	detail := i.Detail
	if i.Err != nil {
		detail = strings.TrimPrefix(detail+": "+i.Err.Error(), ": ")
	}
	text := fmt.Sprintf("%-8s %-12s %-40s %s", i.Action, i.Kind, legible(i.Name), legible(detail))
	return strings.TrimRight(text, " ")
}

// legible gives a name or a text on one line. A key may be any bytes: what would break the line or move a cursor is quoted, not
// dropped, so that two keys never look the same.
func legible(s string) string {
	if !utf8.ValidString(s) || strings.ContainsFunc(s, unicode.IsControl) {
		return strconv.Quote(s)
	}
	return s
}

// restoredItem is one thing in JSON.
type restoredItem struct {
	Action restore.Action `json:"action"`
	Kind   string         `json:"kind"`
	Name   string         `json:"name"`
	// Hex is the name when that is not UTF-8.
	Hex    string `json:"name_hex,omitempty"`
	Detail string `json:"detail,omitempty"`
	Error  string `json:"error,omitempty"`
}

func (v *restoreView) jsonItem(i restore.Item) {
	j := restoredItem{Action: i.Action, Kind: i.Kind, Name: i.Name, Detail: i.Detail}
	if !utf8.ValidString(i.Name) {
		j.Name, j.Hex = strconv.Quote(i.Name), fmt.Sprintf("%x", i.Name)
	}
	if i.Err != nil {
		j.Error = i.Err.Error()
	}
	comma := ","
	if v.rows++; v.rows == 1 {
		comma = ""
	}
	v.printf("%s\n%s", comma, jsonText(j))
}

// jsonText encodes what always can be.
func jsonText(value any) string {
	var b strings.Builder
	enc := json.NewEncoder(&b)
	enc.SetEscapeHTML(false)
	if err := enc.Encode(value); err != nil {
		return `"` + err.Error() + `"`
	}
	return strings.TrimSpace(b.String())
}

// progress implements restore.Options.Progress.
func (v *restoreView) progress(done, total int64) { v.bar.set(done, total) }

// end prints the summary. It returns err, joined with what went wrong with printing.
func (v *restoreView) end(s restore.Summary, err error) error {
	v.bar.hide()
	if v.json {
		failure := ""
		if err != nil {
			failure = `,"error":` + jsonText(err.Error())
		}
		v.printf("\n],\"summary\":%s,\"complete\":%t%s}\n", jsonText(s), err == nil, failure)
		v.flush()
		return errors.Join(err, v.err)
	}
	if v.rows > 0 {
		v.printf("\n")
	}
	if err == nil || s != (restore.Summary{}) {
		v.printf("%s\n", v.summary(s, v.r.flags.apply && !errors.Is(err, restore.ErrNotEmpty)))
	}
	if err == nil {
		v.next(s)
	}
	v.flush()
	return errors.Join(err, v.err)
}

// summary is one line: what was done, or, as long as nothing was, what would be.
func (v *restoreView) summary(s restore.Summary, done bool) string {
	words := []string{"to create", "to change", "the same", "differ", "only there", "to leave out", "would fail"}
	if done {
		words = []string{"created", "changed", "were the same", "differ and were left", "only there and left", "left out", "failed"}
	}
	parts := []string{fmt.Sprintf("%d %s", s.Created, words[0])}
	for i, n := range []int64{s.Changed, s.Same, s.Differs, s.Extra, s.Skipped, s.Failed} {
		if n > 0 {
			parts = append(parts, fmt.Sprintf("%d %s", n, words[i+1]))
		}
	}
	text := strings.Join(parts, ", ")
	if done {
		text += fmt.Sprintf("; %s in %s", size(s.Bytes), time.Since(v.r.began).Round(time.Millisecond))
	}
	return text
}

// next is what a person types after it.
func (v *restoreView) next(s restore.Summary) {
	f := v.r.flags
	switch {
	case f.apply && f.member.dir != "":
		if v.err == nil {
			v.err = v.r.nextMember(v.out)
		}
	case f.apply:
	case s.Differs > 0 && !f.force:
		v.printf("do it with --apply; what differs may be newer at the destination and is left, unless --force\n")
	case s.Created+s.Changed == 0:
		v.printf("nothing is to be done\n")
	case f.force || f.part == formatRaft:
		v.printf("do it with --apply --force\n")
	default:
		v.printf("do it with --apply\n")
	}
}

// counter shows how many things were gone through, with the rate and the time left: on a terminal only.
type counter struct {
	out   io.Writer
	what  string
	bar   *progress
	total int64
}

func newCounter(out io.Writer, what string) *counter { return &counter{out: out, what: what} }

func (c *counter) set(done, total int64) {
	if !console.IsTerminal(c.out) {
		return
	}
	if c.bar == nil || total != c.total {
		c.hide()
		c.bar, c.total = newThings(c.out, c.what, total), total
	}
	c.bar.set(done)
}

// hide takes the bar away, until the next progress.
func (c *counter) hide() {
	if c.bar != nil {
		c.bar.end()
	}
}
