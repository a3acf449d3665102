package ops

import (
	"cmp"
	"fmt"
	"io"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/dustin/go-humanize"

	"github.com/lifeboat-fleet/lifeboat/fleet/console"
)

// rows writes named lines in columns.
type rows struct{ *tabwriter.Writer }

func (r rows) row(name, format string, args ...any) {
	fmt.Fprintf(r.Writer, "%s\t%s\n", clean(name), clean(fmt.Sprintf(format, args...)))
}

// print is the page for a terminal.
func (p *page) print(out io.Writer, now time.Time) error {
	for _, f := range p.Findings {
		text := clean(f.Text)
		switch f.Level {
		case levelProblem:
			text = console.Red(out, text)
		case levelGood:
			text = console.Green(out, text)
		}
		fmt.Fprintln(out, text)
		if f.Do != "" {
			fmt.Fprintln(out, "  "+clean(f.Do))
		}
	}
	for _, u := range p.Unknown {
		fmt.Fprintln(out, "could not be read: "+console.FirstLine(u))
	}
	fmt.Fprintln(out)
	w := rows{tabwriter.NewWriter(out, 0, 0, 2, ' ', 0)}
	place := p.Kind
	if p.Zone != "" {
		place += ", zone " + p.Zone
	}
	w.row("TARGET", "%s (%s)", p.Target, place)
	for i := range p.Schedules {
		p.Schedules[i].print(w, now)
	}
	if p.RPO != nil {
		p.RPO.print(w)
	}
	if p.Job != nil {
		p.Job.print(w)
	}
	if err := w.Flush(); err != nil {
		return err
	}
	return p.printRecent(out)
}

func (s *scheduleState) print(w rows, now time.Time) {
	splay := ""
	if s.Splay != "" {
		splay = ", splay " + s.Splay
	}
	w.row("SCHEDULE", "%s: %q in %s%s", s.Name, s.Line, s.TimeZone, splay)
	if s.Tick != nil {
		decided := ""
		if s.DecidedAt != nil {
			decided = fmt.Sprintf(", decided %s (%s late)", s.DecidedAt.Format(clock), short(s.LateSeconds))
		}
		if s.Outcome == "anchor" {
			w.row("", "counts from %s; no tick since", s.Tick.Format(moment))
		} else {
			w.row("", "newest tick %s: %s%s", s.Tick.Format(moment), s.Outcome, decided)
		}
	}
	if s.Next != nil {
		note := ""
		if s.Paused != nil && (s.Paused.Until == nil || s.Paused.Until.After(*s.Next)) {
			note = ", paused: not run"
		}
		if s.NextNote != "" {
			note += ", " + s.NextNote
		}
		w.row("", "next tick %s, in %s%s", s.Next.Format(moment), console.Duration(s.Next.Sub(now)), note)
	}
}

func (r *rpoState) print(w rows) {
	newest := "no snapshot in the audit log"
	if r.Newest != nil {
		newest = "the newest data is of " + r.Newest.Format(moment)
	}
	w.row("RPO", "%s, %s; %s", r.RPO, cmp.Or(r.State, "never exceeded"), newest)
}

func (s *jobStory) print(w rows) {
	if s.Tick != nil {
		w.row("TICK", "%s, of schedule %s, %s late", s.Tick.Format(moment), console.OrDash(s.Schedule), short(s.LateSeconds))
	}
	stored := ""
	if s.StoredAt != nil {
		stored = ", stored " + s.StoredAt.Format(moment)
	}
	w.row("JOB", "%s, sequence %d%s, asked for by %s", s.ID, s.Sequence, stored, cmp.Or(s.RequestedBy, "somebody unknown"))
	for _, a := range s.Attempts {
		w.row("ATTEMPT "+a.Number, "%s%s %s%s", a.Worker, a.times(), a.How, behind(": ", a.Why))
	}
	var phases []string
	for _, p := range s.Phases {
		phases = append(phases, p.Name+" "+short(p.Seconds))
	}
	if len(phases) > 0 {
		w.row("PHASES", "%s", strings.Join(phases, ", "))
	}
	w.row("OUTCOME", "%s%s", s.Outcome, behind(": ", s.Message))
	for _, o := range s.Objects {
		o.print(w)
	}
	if s.SnapshotID != "" {
		w.row("SNAPSHOT", "%s", s.SnapshotID)
	}
	if d := s.Drill; d != nil {
		w.row("DRILL", "%s", d.line())
	} else if len(s.Objects) > 0 {
		w.row("DRILL", "none yet of this snapshot")
	}
	for _, n := range s.Notes {
		w.row("NOTE", "%s", n)
	}
	if s.Dead != nil {
		w.row("DEAD LETTER", "%s", s.Dead.ID)
	}
	if s.TraceID != "" {
		w.row("TRACE", "%s (in Grafana: Explore, Tempo, this trace id)", s.TraceID)
	}
}

func behind(separator, text string) string {
	if text == "" {
		return ""
	}
	return separator + text
}

func (a attempt) times() string {
	switch {
	case a.Began != nil && a.Ended != nil:
		return fmt.Sprintf(" %s to %s:", a.Began.Format(clock), a.Ended.Format(clock))
	case a.Began != nil:
		return fmt.Sprintf(" since %s:", a.Began.Format(clock))
	case a.Ended != nil:
		return fmt.Sprintf(" until %s:", a.Ended.Format(clock))
	}
	return ":"
}

func (o object) print(w rows) {
	form := "not encrypted"
	if o.Encrypted {
		form = "encrypted"
	}
	w.row("OBJECT", "s3://%s/%s", o.Bucket, o.Key)
	w.row("", "%s stored (sha256 %s), %s", size(o.StoredBytes), o.StoredSHA256, form)
	w.row("", "%s raw (sha256 %s)", size(o.RawBytes), o.RawSHA256)
	if o.UnchangedSince != "" {
		w.row("", "the source had not changed since snapshot %s, which stored it", o.UnchangedSince)
	}
}

func size(n int64) string { return humanize.IBytes(uint64(max(n, 0))) }

func (d *drill) line() string {
	result := "failed: " + d.Failure
	if d.Passed {
		result = "passed: " + d.Summary
	}
	when := ""
	if d.At != nil {
		when = d.At.Format(moment) + ", "
	}
	rto := ""
	if d.RTOSeconds > 0 {
		rto = ", restored in " + short(d.RTOSeconds)
	}
	return fmt.Sprintf("%s of snapshot %s, %s%s%s", d.ID, console.OrDash(d.SnapshotID), when, result, rto)
}

// The most of a message that a line has room for.
const maxMessage = 90

func (p *page) printRecent(out io.Writer) error {
	fmt.Fprintln(out)
	t := console.NewTable(out, "TICK", "OUTCOME", "TOOK", "JOB", "OBJECT")
	for _, o := range p.Recent {
		when := o.At.Format(moment) + " by hand"
		if o.Tick != nil {
			when = o.Tick.Format(moment)
		}
		took := "-"
		if o.TookSeconds > 0 {
			took = short(o.TookSeconds)
		}
		what := cut(o.Message, maxMessage)
		if o.Object != "" {
			what = shortKey(o.Object)
		}
		t.Row(when, clean(o.Outcome), took, console.OrDash(clean(o.JobID)), console.OrDash(clean(what)))
	}
	return t.Flush("no tick and no job of this kind is known")
}
