package page

import (
	"fmt"
	"strings"
	"time"

	"github.com/lifeboat-fleet/lifeboat/cli/internal/ops"
)

// row is a target's line, and what unfolds below it.
type row struct {
	Name, Kind, Level, LevelWord string
	// Why is the worst that there is to say of it.
	Why string
	// Bar is empty without an RPO; the next two say the same in words.
	Bar, BarLevel, Clock string
	Snapshot, Proof      cell
	Next                 cell
	Notes                []line
	Commands             []string
	// Proven is of when the data was that a drill has proven.
	Proven    string
	Schedules []scheduleRow
}

// cell is a moment and a remark.
type cell struct {
	Stamp *stamp
	None  string
	Note  string
	// Bad says that there being none is not well.
	Bad bool
}

type scheduleRow struct {
	Name, Line, State string
	Next              *stamp
}

// Rows are the targets of this page of the list.
func (s *screen) Rows() []row {
	rows := make([]row, 0, len(s.shown))
	for _, t := range s.shown {
		rows = append(rows, s.row(t))
	}
	return rows
}

func (s *screen) row(t *targetView) row {
	r := row{Name: t.name, Kind: t.kind, Level: t.level.String(), LevelWord: s.W.level(t.level), BarLevel: t.rpo.level.String()}
	if t.zone != "" {
		r.Kind += " · " + t.zone
	}
	r.Bar, r.Clock = s.clock(t.rpo)
	r.Snapshot = cell{Stamp: s.stamp(t.snapshot.of), None: s.W.Unseen}
	if t.snapshot.took > 0 {
		r.Snapshot.Note = fmt.Sprintf(s.W.Took, s.W.duration(t.snapshot.took))
	}
	if t.snapshot.bytes > 0 {
		r.Snapshot.Note = size(t.snapshot.bytes) + ", " + r.Snapshot.Note
	}
	r.Proof = cell{Stamp: s.stamp(t.proof.at), None: s.W.Never, Bad: true}
	if t.proof.rto > 0 {
		r.Proof.Note = fmt.Sprintf(s.W.RTO, s.W.duration(t.proof.rto))
	}
	r.Next = cell{Stamp: s.stamp(t.next.at), None: s.W.None}
	if t.next.work != "" {
		r.Next.Note = s.W.work(string(t.next.work))
	}
	if t.next.paused {
		r.Next.Note, r.Next.Bad = s.W.PausedIt, true
	}
	for i := range t.notes {
		n := &t.notes[i]
		r.Notes = append(r.Notes, s.line(n))
		if c := s.command(n); len(r.Commands) == 0 || r.Commands[len(r.Commands)-1] != c {
			r.Commands = append(r.Commands, c)
		}
	}
	if len(r.Notes) > 0 {
		r.Why = r.Notes[0].Text
	} else {
		r.Commands = []string{s.command(&problem{target: t.name})}
	}
	if !t.proof.of.IsZero() {
		r.Proven = fmt.Sprintf(s.W.DataOf, s.moment(t.proof.of))
	}
	for _, sv := range t.schedules {
		sr := scheduleRow{Name: s.W.work(sv.name), Line: sv.line, Next: s.stamp(sv.next)}
		if sv.paused {
			sr.State = s.W.PausedIt
			if sv.by != "" {
				sr.State += " (" + sv.by + ")"
			}
		}
		r.Schedules = append(r.Schedules, sr)
	}
	return r
}

// clock is the RPO clock as a bar and in words.
func (s *screen) clock(c rpoView) (width, text string) {
	switch {
	case !c.known:
		return "", s.W.NoData
	case c.limit == 0:
		return "", fmt.Sprintf(s.W.AgeOnly, s.W.age(c.age))
	case c.used() > 1:
		text = fmt.Sprintf(s.W.ExceededBy, s.W.age(c.age-c.limit), s.W.age(c.age), s.W.duration(c.limit))
	default:
		text = fmt.Sprintf(s.W.UsedOf, int(100*c.used()), s.W.age(c.age), s.W.duration(c.limit))
	}
	if c.counted {
		text += "; " + s.W.FirstSeen
	}
	return bar(c.used()), text
}

// HasTargets says whether there is anything to list.
func (s *screen) HasTargets() bool { return len(s.v.targets) > 0 }

// NoMatch says that nothing was found.
func (s *screen) NoMatch() string {
	if s.found > 0 || s.q.find == "" {
		return ""
	}
	return fmt.Sprintf(s.W.NoMatch, s.q.find)
}

// Paged says whether the list has several pages, or is searched.
func (s *screen) Paged() bool { return len(s.v.targets) > maxTargets }

// Range says which of them stand here.
func (s *screen) Range() string {
	if s.found == 0 {
		return ""
	}
	return fmt.Sprintf(s.W.Worst, s.from+1, s.from+len(s.shown), s.found)
}

// PreviousURL and NextURL lead to the other pages; empty where there are none.
func (s *screen) PreviousURL() string { return s.pageURL(-1) }

// NextURL is the one after this.
func (s *screen) NextURL() string { return s.pageURL(1) }

func (s *screen) pageURL(step int) string {
	q := s.q
	q.page += step
	if q.page < 1 || q.page > s.pages {
		return ""
	}
	return q.query()
}

// jobRow is a job that waits or runs.
type jobRow struct {
	Work, Target, State, Detail, For, Usually, Level string
}

// Jobs are those that there is room for.
func (s *screen) Jobs() []jobRow {
	var rows []jobRow
	for i := range s.v.jobs {
		if len(rows) == maxJobs {
			break
		}
		j := &s.v.jobs[i]
		r := jobRow{Work: s.W.work(ops.Clean(string(j.Work))), Target: ops.Clean(j.Target), State: s.state(j), Level: "good", Detail: j.Worker}
		since := j.StoredAt
		if j.Since != nil && j.Runs() {
			since = *j.Since
		}
		r.For = s.W.age(s.v.now.Sub(since))
		if j.Runs() && j.usual > 0 {
			r.Usually = fmt.Sprintf(s.W.Usually, s.W.duration(j.usual.Round(time.Second)))
		}
		if j.Attempt > 1 {
			r.Detail, r.Level = fmt.Sprintf(s.W.Attempt, j.Attempt)+", "+r.Detail, "amber"
		}
		if j.Stuck() || j.gone {
			r.Level = "red"
		}
		rows = append(rows, r)
	}
	return rows
}

// state is how far a job is, in words.
func (s *screen) state(j *jobView) string {
	switch {
	case j.Stuck():
		return s.W.NoTaker
	case j.gone:
		return s.W.NoAnswer
	case j.State == "running":
		return s.W.Running
	case j.State == "committing":
		return s.W.Committing
	case j.State == "retrying":
		return s.W.Retrying
	case j.State == "cancelled":
		return s.W.Cancelled
	}
	return s.W.Waiting
}

// MoreJobs counts those that there is no room for.
func (s *screen) MoreJobs() string { return more(s.W.MoreJobs, len(s.v.jobs)-maxJobs) }

// deliveryRow is how a delivery ended.
type deliveryRow struct {
	Stamp                               *stamp
	Receiver, What, Outcome, Lag, Level string
}

// slow is from which lag on a delivery came late.
const slow = time.Minute

// Deliveries are the newest ones.
func (s *screen) Deliveries() []deliveryRow {
	var rows []deliveryRow
	for _, d := range s.v.deliveries[:min(len(s.v.deliveries), maxListed)] {
		lag := time.Duration(d.LagSeconds * float64(time.Second))
		r := deliveryRow{Stamp: s.stamp(d.Time), Receiver: ops.Clean(d.Receiver), What: d.What(), Lag: s.W.duration(lag), Level: "good"}
		switch d.Outcome {
		case "delivered":
			r.Outcome = s.W.Delivered
		case "digest":
			r.Outcome = s.W.Digest
		case "folded":
			r.Outcome = s.W.Folded
		case "handed-on":
			r.Outcome = fmt.Sprintf(s.W.HandedOn, ops.Clean(d.To))
		default:
			r.Outcome = s.W.Dead
		}
		switch {
		case d.Dead():
			r.Level = "red"
		case lag > slow:
			r.Level = "amber"
		}
		rows = append(rows, r)
	}
	return rows
}

// Waits are the queues of alerts that are not told yet.
func (s *screen) Waits() []string {
	var all []string
	if s.v.unrouted > 0 {
		all = append(all, fmt.Sprintf(s.W.UnroutedNow, s.v.unrouted))
	}
	for i, q := range s.v.waiting {
		if i == maxListed {
			break
		}
		all = append(all, fmt.Sprintf(s.W.Waits, q.Waiting, q.Receiver))
	}
	return all
}

// letterRow is a dead letter.
type letterRow struct {
	Stamp                   *stamp
	From, Reason, ID, Level string
}

// Letters are the newest dead letters.
func (s *screen) Letters() []letterRow {
	var rows []letterRow
	for i := range s.v.letters[:min(len(s.v.letters), maxListed)] {
		l := &s.v.letters[i]
		r := letterRow{Stamp: s.stamp(l.at), From: strings.TrimPrefix(l.subject, "lifeboat."), Reason: ops.Cut(l.reason, 120), ID: l.id, Level: "unknown"}
		if l.red {
			r.Level = "red"
		}
		rows = append(rows, r)
	}
	return rows
}

// MoreLetters counts those that are not listed.
func (s *screen) MoreLetters() string { return more(s.W.MoreLetters, int(s.v.dead)-len(s.Letters())) } //nolint:gosec // a count of messages

// DeadTotal is how many dead letters there are.
func (s *screen) DeadTotal() uint64 { return s.v.dead }
