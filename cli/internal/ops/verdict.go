package ops

import (
	"cmp"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/lifeboat-fleet/lifeboat/fleet/config"
	"github.com/lifeboat-fleet/lifeboat/fleet/console"
	lifeboatv1 "github.com/lifeboat-fleet/lifeboat/proto/lifeboat/v1"
)

// overdueAfter is how late a decision may be before it is said that nobody decides: schedulers look at the clock at least every 30 s.
const overdueAfter = 90 * time.Second

// horizon is how far the next tick is looked for; a line that fires on 29 February comes within it.
const horizon = 9 * 366 * 24 * time.Hour

// blackoutLimit is behind how many ticks in a blackout no further one is looked at.
const blackoutLimit = 10_000

// schedules are the target's schedules of the work that is asked about.
func (q *question) schedules(k *known) []scheduleState {
	all := []scheduleState{}
	for _, sched := range q.target.Schedules() {
		if sched.Work == q.work {
			all = append(all, q.schedule(sched, k.states[sched.Name]))
		}
	}
	return all
}

func (q *question) schedule(sched config.Schedule, st *lifeboatv1.ScheduleState) scheduleState {
	s := scheduleState{Name: sched.Name, Line: sched.Line, TimeZone: q.loc.String()}
	if q.target.Splay > 0 {
		s.Splay = q.target.Splay.String()
	}
	s.Paused = q.paused(st)
	if st != nil {
		s.Tick, s.DecidedAt = q.local(at(st.GetTick())), q.local(at(st.GetDecidedAt()))
		s.Outcome = strings.ToLower(strings.TrimPrefix(st.GetOutcome().String(), "OUTCOME_"))
		if s.Tick != nil && s.DecidedAt != nil && st.GetOutcome() != lifeboatv1.ScheduleState_OUTCOME_ANCHOR {
			s.LateSeconds = seconds(*s.Tick, *s.DecidedAt)
		}
		for _, m := range st.GetMissed() {
			from := m.GetFrom().AsTime().In(q.loc)
			to := from
			if m.GetTo() != nil {
				to = m.GetTo().AsTime().In(q.loc)
			}
			s.Missed = append(s.Missed, missed{Reason: m.GetReason(), Count: m.GetCount(), From: from, To: to, JobID: m.GetJobId()})
		}
		for _, t := range st.GetPending() {
			s.Pending = append(s.Pending, t.AsTime().In(q.loc))
		}
		s.Differs = q.differs(sched, st)
	}
	q.ahead(sched, &s)
	return s
}

// differs says by what the scheduler decided, if not by what the configuration has.
func (q *question) differs(sched config.Schedule, st *lifeboatv1.ScheduleState) string {
	zone := func(name string) string { return cmp.Or(name, "UTC") }
	switch {
	case st.GetOutcome() == lifeboatv1.ScheduleState_OUTCOME_REMOVED:
		return "the scheduler's configuration does not have it"
	case st.GetSchedule() != sched.Line:
		return fmt.Sprintf("the scheduler has %q", st.GetSchedule())
	case zone(st.GetTimeZone()) != zone(q.target.TimeZone):
		return fmt.Sprintf("the scheduler has it in %s", zone(st.GetTimeZone()))
	case st.GetSplay().AsDuration() != q.target.Splay:
		return fmt.Sprintf("the scheduler has it with a splay of %s", st.GetSplay().AsDuration())
	}
	return ""
}

// paused is the pause that is in force now, if any.
func (q *question) paused(st *lifeboatv1.ScheduleState) *pauseState {
	if p := st.GetPause(); p != nil && (p.GetUntil() == nil || p.GetUntil().AsTime().After(q.now)) {
		return &pauseState{
			By: clean(p.GetBy()), Since: q.local(at(p.GetSince())), Until: q.local(at(p.GetUntil())), Reason: clean(p.GetReason()),
		}
	}
	if q.target.Paused {
		return &pauseState{By: "paused: true in " + q.file}
	}
	return nil
}

// ahead is what comes next, and what should have come by now.
func (q *question) ahead(sched config.Schedule, s *scheduleState) {
	looked := 0
	for tick := range q.target.Upcoming(sched, q.now, q.now.Add(horizon)) {
		looked++
		if s.Next == nil {
			s.Next, s.NextNote = q.local(&tick.At), tick.Note
			if !tick.Blackout {
				break
			}
			s.NextNote = "in a blackout: not run"
			continue
		}
		if tick.Blackout && looked < blackoutLimit {
			continue
		}
		if !tick.Blackout {
			s.NextNote += "; the next that is run: " + tick.At.In(q.loc).Format(moment)
		}
		break
	}
	if s.Tick == nil || s.Differs != "" {
		return
	}
	for tick := range q.target.Upcoming(sched, *s.Tick, q.now.Add(-overdueAfter)) {
		s.Overdue = q.local(&tick.At)
		break
	}
}

// rpo is how the age of the newest good snapshot stands to what is allowed.
func (q *question) rpo(k *known) *rpoState {
	if q.target.RPO == 0 || q.work != config.WorkSnapshot {
		return nil
	}
	r := &rpoState{RPO: q.target.RPO.String()}
	if !k.rpoOK {
		r.State = "unknown"
	}
	if e := k.rpo; e != nil {
		r.State, r.Since, r.Message = clean(e.GetVerb()), q.local(at(e.GetTime())), clean(e.GetMessage())
	}
	if e := k.committed; e != nil {
		r.Newest = q.local(at(e.GetManifest().GetStartedAt()))
	}
	return r
}

// findings answer the question: first the job, then what stands in the way of the next one.
func (q *question) findings(p *page, k *known, stories []*jobStory) []finding {
	var rest []finding
	for i := range p.Schedules {
		rest = append(rest, q.onSchedule(&p.Schedules[i], k)...)
	}
	if len(p.Schedules) == 0 {
		rest = append(rest, finding{
			levelNote, fmt.Sprintf("no schedule asks for %s of %s", plural(q.work), q.target.Name), "ask for one: " + q.byHand(),
		})
	}
	if !slices.ContainsFunc(k.open, func(j openJob) bool { return j.Work == q.work }) {
		if lacking := k.crew.lacking(q.work, q.target.Zone); lacking != "" {
			rest = append(rest, finding{levelProblem, lacking + ", so the next job will wait", remedy(q.work, q.target.Zone)})
		}
	}
	if p.RPO != nil && p.RPO.State == "exceeded" {
		rest = append(rest, finding{levelProblem, "the rpo is exceeded: " + p.RPO.Message, ""})
	} else if r := p.RPO; r != nil && r.Newest != nil && q.now.Sub(*r.Newest) > q.target.RPO+overdueAfter {
		rest = append(rest, finding{
			levelProblem, fmt.Sprintf("the newest data is of %s, the rpo is %s, and no scheduler has said that it is exceeded", r.Newest.Format(moment), r.RPO),
			"see whether lifeboat-scheduler runs, and its log",
		})
	}
	if f, ok := q.olderLetter(p, stories); ok {
		rest = append(rest, f)
	}
	slices.SortStableFunc(rest, func(a, b finding) int { return cmp.Compare(rank(a.Level), rank(b.Level)) })
	return append([]finding{q.headline(p)}, rest...)
}

func rank(level string) int { return slices.Index([]string{levelProblem, levelNote, levelGood}, level) }

// byHand is the command that asks for a job.
func (q *question) byHand() string {
	if q.work == config.WorkSnapshot || q.work == config.WorkDrill {
		return fmt.Sprintf("lifeboat %s run %s -c %s", q.work, q.target.Name, q.file)
	}
	return fmt.Sprintf("nats pub lifeboat.job.%s.%s ''", q.work, q.target.Name)
}

// headline is what became of the job.
func (q *question) headline(p *page) finding {
	s := p.Job
	if s == nil && len(p.Unknown) > 0 {
		return finding{levelProblem, fmt.Sprintf("whether there is a %s of %s is not known: not everything could be read", q.work, q.target.Name), ""}
	}
	if s == nil {
		return finding{levelNote, fmt.Sprintf("no %s of %s is known since %s", q.work, q.target.Name, q.since.In(q.loc).Format(moment)), ""}
	}
	name := fmt.Sprintf("%s %s", s.Work, s.ID)
	switch {
	case !s.Ended && s.Outcome == stateNoWorker:
		return finding{levelProblem, name + " is " + s.Message, remedy(s.Work, q.target.Zone)}
	case !s.Ended && s.Outcome == stateRetrying:
		return finding{levelProblem, fmt.Sprintf("%s is %s%s", name, s.Message, lastWhy(s)), ""}
	case !s.Ended && s.Outcome == "unknown":
		return finding{levelProblem, name + ": " + s.Message, "see whether the bucket has it: lifeboat status -c " + q.file}
	case !s.Ended && s.Outcome == stateWaiting:
		return finding{levelNote, name + " is " + s.Message + "; it was stored " + q.ago(s.StoredAt), ""}
	case !s.Ended:
		return finding{levelNote, name + " is " + s.Message, ""}
	case s.Dead != nil:
		text := fmt.Sprintf("%s failed after %s and is a dead letter: %s", name, counted(s.Dead.Attempts, "attempt"), s.Dead.Reason)
		if s.Dead.Attempts == 0 {
			text = fmt.Sprintf("%s was rejected before it began, and is a dead letter: %s", name, s.Dead.Reason)
		}
		if s.SnapshotID != "" && !s.Failed {
			text = fmt.Sprintf("%s ended as a dead letter behind its commit: %s", name, s.Dead.Reason)
		}
		return finding{levelProblem, text, "when the cause is mended: " + s.Dead.Replay}
	case s.Failed:
		return finding{levelProblem, fmt.Sprintf("%s %s: %s", name, s.Outcome, s.Message), ""}
	case s.Outcome == stateCancelled:
		return finding{levelNote, fmt.Sprintf("%s was cancelled: %s", name, s.Message), "ask for another one: " + q.byHand()}
	}
	return finding{levelGood, fmt.Sprintf("%s %s %s, in %s", name, s.Outcome, q.ago(lastMoment(s)), short(s.TookSeconds)), ""}
}

// olderLetter is a dead letter of a job before the newest, when nothing has gone well since.
func (q *question) olderLetter(p *page, stories []*jobStory) (finding, bool) {
	for _, s := range slices.Backward(stories) {
		if s.Ended && !s.Failed && s.Outcome != stateCancelled {
			return finding{}, false
		}
		if s.Dead != nil && s != p.Job && q.job == "" {
			return finding{
				levelProblem, fmt.Sprintf("the %s before it, %s, is a dead letter: %s", s.Work, s.ID, s.Dead.Reason),
				"when the cause is mended: " + s.Dead.Replay,
			}, true
		}
	}
	return finding{}, false
}

func lastWhy(s *jobStory) string {
	for _, a := range slices.Backward(s.Attempts) {
		if a.Why != "" {
			return ": " + a.Why
		}
	}
	return ""
}

func lastMoment(s *jobStory) *time.Time {
	for _, a := range slices.Backward(s.Attempts) {
		if a.Ended != nil {
			return a.Ended
		}
	}
	return s.StoredAt
}

func (q *question) ago(t *time.Time) string {
	if t == nil {
		return "at an unknown time"
	}
	return console.Duration(max(q.now.Sub(*t), 0)) + " ago"
}

// onSchedule is what stands in the way of a schedule's ticks.
func (q *question) onSchedule(s *scheduleState, k *known) []finding {
	var all []finding
	add := func(level, text, do string) { all = append(all, finding{level, text, do}) }
	if p := s.Paused; p != nil {
		text := fmt.Sprintf("schedule %s is paused by %s", s.Name, p.By)
		if p.Since != nil {
			text += " since " + p.Since.Format(moment)
		}
		if p.Until != nil {
			text += ", until " + p.Until.Format(moment)
		}
		if p.Reason != "" {
			text += ": " + p.Reason
		}
		do := fmt.Sprintf("lifeboat schedule resume %s -c %s", q.target.Name, q.file)
		if q.target.Paused {
			do = "take paused: true out of " + q.file
		}
		add(levelProblem, text, do)
	}
	if s.Differs != "" {
		add(levelProblem, fmt.Sprintf("schedule %s is %q in %s, but %s", s.Name, s.Line, q.file, s.Differs),
			"see whether the scheduler reads the same file and took it: its log and its lifeboat_config metrics tell")
	}
	switch {
	case s.Tick == nil && k.stateOK:
		add(levelProblem, fmt.Sprintf("no scheduler has seen schedule %s", s.Name), "see whether lifeboat-scheduler runs with this configuration")
	case s.Overdue != nil:
		add(levelProblem, fmt.Sprintf("the tick of %s at %s is not decided: no scheduler runs, or it cannot write to NATS", s.Name, s.Overdue.Format(moment)),
			"see whether lifeboat-scheduler runs, and its log")
	}
	for _, m := range s.Missed {
		add(levelProblem, fmt.Sprintf("schedule %s: %s", s.Name, m.sentence()), q.onMissed(m))
	}
	if len(s.Pending) > 0 {
		add(levelNote, fmt.Sprintf("schedule %s: the tick of %s is queued and is run when the job before it has ended (%s in all)", s.Name,
			s.Pending[0].Format(moment), counted(int64(len(s.Pending)), "tick")), "")
	}
	return all
}

// sentence says which ticks were not run, and why.
func (m missed) sentence() string {
	which := fmt.Sprintf("the tick of %s was not run: ", m.From.Format(moment))
	if m.Count > 1 {
		which = fmt.Sprintf("%d ticks, %s to %s, were not run: ", m.Count, m.From.Format(moment), m.To.Format(moment))
	}
	switch m.Reason {
	case "down":
		return which + "no scheduler decided in time (down)"
	case "paused":
		return which + "the schedule was paused"
	case "blackout":
		return which + "it was in a blackout"
	case "overlap":
		if m.JobID != "" {
			return which + "job " + m.JobID + " waited or ran (overlap)"
		}
		return which + "a job waited or ran (overlap)"
	case "removed":
		return which + "the schedule was taken out of the configuration while it was queued"
	}
	return which + clean(m.Reason)
}

// onMissed is where to look on.
func (q *question) onMissed(m missed) string {
	if m.JobID != "" {
		return fmt.Sprintf("lifeboat why %s --work %s --job %s -c %s", q.target.Name, q.work, m.JobID, q.file)
	}
	return ""
}

func counted(n int64, noun string) string {
	if n == 1 {
		return "1 " + noun
	}
	return fmt.Sprintf("%d %ss", n, noun)
}

// short is a number of seconds for a person.
func short(s float64) string {
	d := time.Duration(s * float64(time.Second))
	if d < time.Minute {
		return d.Round(time.Millisecond).String()
	}
	return console.Duration(d)
}
