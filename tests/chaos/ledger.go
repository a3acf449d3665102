// Package chaos breaks a fleet while it works and then counts what became of every tick: that each was emitted once or recorded as
// missed, that every job ended, that no two ran at once for a target, and that every manifest tells the truth. `make chaos` runs
// it.
//
// This file is the counting. It reads the audit log, the dead letters and the schedules' last states, in the form of the
// contracts, and knows nothing of how the services come to them.
package chaos

import (
	"fmt"
	"maps"
	"slices"
	"strconv"
	"strings"
	"time"

	lifeboatv1 "github.com/lifeboat-fleet/lifeboat/proto/lifeboat/v1"
)

// scheduleID names a schedule of a target. Here every kind of work has one schedule, so the work names it too.
type scheduleID struct{ target, work string }

func (s scheduleID) String() string { return s.target + "/" + s.work }

// timetable is when a schedule fires.
type timetable interface{ Next(time.Time) time.Time }

// schedule is one schedule with the moment from which it counts and what was decided last.
type schedule struct {
	id     scheduleID
	table  timetable
	anchor time.Time
	state  *lifeboatv1.ScheduleState
}

// job is what the audit log tells of one job.
type job struct {
	id   string
	of   scheduleID
	tick time.Time
	// outcomes are the ids of the events that ended it.
	outcomes []string
	verb     string
	// gaveUp says that it failed as a dead letter. Work that ends with a bad result, as a prune that finds nothing good, is no
	// dead letter.
	gaveUp bool
	// data is what the event that told of the snapshot says is stored.
	data *lifeboatv1.Data
}

// waiting is a job that is still in its stream.
type waiting struct {
	of   scheduleID
	tick time.Time
}

// Reasons of missed ticks, as the contract has them.
func reasons() []string { return []string{"down", "paused", "blackout", "overlap", "removed"} }

// A decision may come so much after its tick on a machine that is busy.
const slack = 15 * time.Second

// ledger is the account of a whole run.
type ledger struct {
	schedules []*schedule
	jobs      map[string]*job
	waiting   []waiting
	missed    map[scheduleID][]missedRange
	// open are the jobs that have begun and not ended, at the place in the log that is being read.
	open map[scheduleID]*job
	seen map[string]int
	// deleted are "<target> <snapshot>" that were told to be deleted.
	deleted map[string]bool
	// dead are the jobs that have a dead letter.
	dead map[string]bool
	// Counts by what is counted.
	counts map[string]int
	// faults are the violations, by what is violated.
	faults map[string][]string
}

// missedRange are ticks that an event calls missed.
type missedRange struct {
	reason   string
	count    int
	from, to time.Time
	event    string
}

func newLedger(schedules []*schedule) *ledger {
	return &ledger{
		schedules: schedules, jobs: map[string]*job{}, missed: map[scheduleID][]missedRange{}, open: map[scheduleID]*job{},
		seen: map[string]int{}, deleted: map[string]bool{}, dead: map[string]bool{}, counts: map[string]int{}, faults: map[string][]string{},
	}
}

func (l *ledger) fault(kind, format string, args ...any) {
	l.faults[kind] = append(l.faults[kind], fmt.Sprintf(format, args...))
}

// event takes the next event of the audit log, in the log's order.
func (l *ledger) event(e *lifeboatv1.Event) {
	l.seen[e.GetId()]++
	if l.seen[e.GetId()] > 1 {
		l.fault("an event is in the log twice", "%s", e.GetId())
		return
	}
	l.counts["events"]++
	l.counts["event "+e.GetNoun()+"."+e.GetVerb()]++
	switch {
	case e.GetNoun() == "tick" && e.GetVerb() == "missed":
		l.missedTicks(e)
	case e.GetJobId() == "":
	case ends(e):
		l.ended(e)
	case e.GetNoun() == "snapshot" && e.GetVerb() == "deleted":
		l.deleted[e.GetTarget()+" "+e.GetSnapshotId()] = true
	case works(e.GetNoun()) && e.GetVerb() == "started":
		l.began(l.job(e))
	case works(e.GetNoun()):
		l.job(e)
	}
}

func works(noun string) bool {
	return slices.Contains([]string{"snapshot", "verify", "drill", "prune"}, noun) && noun != ""
}

// ends says whether an event ends its job.
func ends(e *lifeboatv1.Event) bool {
	if e.GetNoun() == "job" {
		return e.GetVerb() == "rejected" || e.GetVerb() == "cancelled"
	}
	return works(e.GetNoun()) && slices.Contains(
		[]string{"committed", "passed", "escrow-passed", "checked", "held", "failed", "escrow-failed"}, e.GetVerb())
}

// job finds or makes the account of an event's job.
func (l *ledger) job(e *lifeboatv1.Event) *job {
	j := l.jobs[e.GetJobId()]
	if j == nil {
		j = &job{id: e.GetJobId()}
		l.jobs[j.id] = j
	}
	work := e.GetNoun()
	if work == "job" {
		work = e.GetAttributes()["work"]
	}
	if work != "" {
		j.of = scheduleID{e.GetTarget(), work}
	}
	if tick, err := time.Parse(time.RFC3339, e.GetAttributes()["tick"]); err == nil {
		j.tick = tick.UTC()
	} else if t := e.GetManifest().GetTick(); t != nil {
		j.tick = t.AsTime()
	}
	return j
}

// began notes that a job of a target begins; another one that has begun and not ended runs at the same time.
func (l *ledger) began(j *job) {
	if len(j.outcomes) > 0 {
		// A process that was stopped before it wrote its beginning, and goes on behind the end: its claim is gone.
		l.counts["beginnings told of late"]++
		return
	}
	if other := l.open[j.of]; other != nil && other != j {
		l.fault("two runs of a target at once", "%s: job %s begins while job %s has not ended", j.of, j.id, other.id)
	}
	l.open[j.of] = j
}

func (l *ledger) ended(e *lifeboatv1.Event) {
	j := l.job(e)
	l.began(j)
	if l.open[j.of] == j {
		delete(l.open, j.of)
	}
	j.data = e.GetManifest().GetData()
	j.gaveUp = e.GetAttributes()["attempts"] != ""
	j.outcomes, j.verb = append(j.outcomes, e.GetNoun()+"."+e.GetVerb()), e.GetVerb()
	if len(j.outcomes) > 1 {
		l.fault("a job ended twice", "%s: job %s: %s", j.of, j.id, strings.Join(j.outcomes, ", "))
	}
}

// missedTicks reads a tick.missed event: <reason>_count, <reason>_from and <reason>_to for each reason.
func (l *ledger) missedTicks(e *lifeboatv1.Event) {
	a := e.GetAttributes()
	id := scheduleID{e.GetTarget(), a["work"]}
	found := false
	for _, r := range reasons() {
		if a[r+"_count"] == "" {
			continue
		}
		count, err := strconv.Atoi(a[r+"_count"])
		from, errFrom := time.Parse(time.RFC3339, a[r+"_from"])
		to, errTo := time.Parse(time.RFC3339, a[r+"_to"])
		if err != nil || errFrom != nil || errTo != nil {
			l.fault("an event cannot be read", "%s: %v", e.GetId(), a)
			continue
		}
		found = true
		l.miss(id, missedRange{r, count, from.UTC(), to.UTC(), e.GetId()})
	}
	if !found {
		l.fault("an event cannot be read", "%s: %v", e.GetId(), a)
	}
}

func (l *ledger) miss(id scheduleID, r missedRange) {
	l.missed[id] = append(l.missed[id], r)
	l.counts["ticks missed: "+r.reason] += r.count
}

// deadLetter takes a dead letter of a job.
func (l *ledger) deadLetter(d *lifeboatv1.DeadLetter) {
	l.counts["dead letters"]++
	l.dead[strings.TrimPrefix(d.GetId(), "dead-"+d.GetSubject()+"-")] = true
	if d.GetReason() == "" {
		l.fault("a dead letter without a reason", "%s", d.GetId())
	}
}

// close balances the account when everything has been read. end is the real time when the schedulers were stopped.
func (l *ledger) close(end time.Time) {
	l.counts["dead letters"] += 0 // none is a count too
	l.closeJobs()
	emitted := l.emitted()
	for _, s := range l.schedules {
		l.closeSchedule(s, emitted[s.id], end)
	}
}

func (l *ledger) closeJobs() {
	for _, id := range slices.Sorted(maps.Keys(l.jobs)) {
		j := l.jobs[id]
		l.counts["jobs"]++
		if len(j.outcomes) == 0 {
			l.fault("a job did not end", "%s: job %s of tick %s", j.of, j.id, stamp(j.tick))
		} else {
			l.counts["jobs "+j.verb]++
		}
		if j.gaveUp && !l.dead[j.id] {
			l.fault("a job failed without a dead letter", "%s: job %s of tick %s", j.of, j.id, stamp(j.tick))
		}
		if j.tick.IsZero() {
			l.fault("a job without a tick", "%s: job %s: %v", j.of, j.id, j.outcomes)
		}
	}
	for _, w := range l.waiting {
		l.fault("a job did not end", "%s: a job of tick %s is still in the stream", w.of, stamp(w.tick))
	}
}

// emitted are the jobs by schedule and tick.
func (l *ledger) emitted() map[scheduleID]map[time.Time][]string {
	all := map[scheduleID]map[time.Time][]string{}
	note := func(id scheduleID, tick time.Time, what string) {
		if all[id] == nil {
			all[id] = map[time.Time][]string{}
		}
		all[id][tick] = append(all[id][tick], what)
	}
	for _, j := range l.jobs {
		note(j.of, j.tick, "job "+j.id)
	}
	for _, w := range l.waiting {
		note(w.of, w.tick, "a job that waits")
	}
	for _, s := range l.schedules {
		for _, tick := range s.state.GetPending() {
			note(s.id, tick.AsTime(), "queued")
			l.counts["ticks queued at the end"]++
		}
	}
	return all
}

// closeSchedule holds every tick between the schedule's anchor and its last decision against what is told of it.
func (l *ledger) closeSchedule(s *schedule, emitted map[time.Time][]string, end time.Time) {
	last := s.state.GetTick().AsTime()
	if next := s.table.Next(last); next.Before(end.Add(-slack)) {
		l.fault("a schedule stood still", "%s: the last tick that was decided is %s, and %s was due before %s",
			s.id, stamp(last), stamp(next), stamp(end))
	}
	if !s.state.GetRecorded() {
		l.unrecorded(s)
	}
	var ticks []time.Time
	for at := s.table.Next(s.anchor); !at.After(last); at = s.table.Next(at) {
		ticks = append(ticks, at.UTC())
	}
	missed := l.assign(s, ticks, emitted)
	for _, at := range ticks {
		l.counts["ticks"]++
		jobs, why := emitted[at], missed[at]
		switch {
		case len(jobs) == 1 && len(why) == 0:
			l.counts["ticks emitted"]++
		case len(jobs) == 0 && len(why) == 1:
			l.counts["ticks missed"]++
		case len(jobs)+len(why) == 0:
			l.fault("a tick neither emitted nor missed", "%s at %s", s.id, stamp(at))
		case len(jobs) > 1:
			l.fault("a tick emitted twice", "%s at %s: %s", s.id, stamp(at), strings.Join(jobs, ", "))
		case len(why) > 1:
			l.fault("a tick missed twice", "%s at %s: %s", s.id, stamp(at), strings.Join(why, ", "))
		default:
			l.fault("a tick both emitted and missed", "%s at %s: %s; %s", s.id, stamp(at), jobs[0], why[0])
		}
	}
	for at, jobs := range emitted {
		if _, ok := slices.BinarySearchFunc(ticks, at, time.Time.Compare); !ok {
			l.fault("a tick that the schedule does not have", "%s at %s: %s", s.id, stamp(at), strings.Join(jobs, ", "))
		}
	}
}

// unrecorded takes the missed ticks of a last decision whose event was not written before the schedulers were stopped: the next
// start would write it.
func (l *ledger) unrecorded(s *schedule) {
	for _, m := range s.state.GetMissed() {
		known := slices.ContainsFunc(l.missed[s.id], func(r missedRange) bool {
			return r.reason == m.GetReason() && r.from.Equal(m.GetFrom().AsTime()) && r.count == int(m.GetCount())
		})
		if !known {
			l.counts["missed ticks that wait to be recorded"] += int(m.GetCount())
			l.miss(s.id, missedRange{m.GetReason(), int(m.GetCount()), m.GetFrom().AsTime(), m.GetTo().AsTime(), "the last state"})
		}
	}
}

// assign says which ticks the ranges of missed ticks mean. One that counts as many ticks as the timetable has between its ends
// means all of them. One that counts fewer has others between its ends, emitted or missed for another reason: it means those that
// nothing else is told of, which must be as many as it counts.
func (l *ledger) assign(s *schedule, ticks []time.Time, emitted map[time.Time][]string) map[time.Time][]string {
	missed := map[time.Time][]string{}
	var gaps []missedRange
	for _, r := range l.missed[s.id] {
		within := between(ticks, r)
		if len(within) != r.count {
			gaps = append(gaps, r)
			continue
		}
		for _, at := range within {
			missed[at] = append(missed[at], r.reason+" in "+r.event)
		}
	}
	for _, r := range gaps {
		within := slices.DeleteFunc(between(ticks, r), func(at time.Time) bool { return len(emitted[at])+len(missed[at]) > 0 })
		if len(within) != r.count {
			l.fault("an event counts other ticks than there are", "%s: %s says %d %s from %s to %s, and there are %d besides those told of otherwise",
				s.id, r.event, r.count, r.reason, stamp(r.from), stamp(r.to), len(within))
		}
		for _, at := range within {
			missed[at] = append(missed[at], r.reason+" in "+r.event)
		}
	}
	return missed
}

func between(ticks []time.Time, r missedRange) []time.Time {
	from, _ := slices.BinarySearchFunc(ticks, r.from, time.Time.Compare)
	to, exact := slices.BinarySearchFunc(ticks, r.to, time.Time.Compare)
	if exact {
		to++
	}
	return slices.Clone(ticks[from:max(from, to)])
}

func stamp(t time.Time) string { return t.UTC().Format(time.RFC3339) }

// namedFaults is how many of a kind are named.
const namedFaults = 5

// report is the counts and the violations, for a person.
func (l *ledger) report() string {
	var b strings.Builder
	for _, what := range slices.Sorted(maps.Keys(l.counts)) {
		fmt.Fprintf(&b, "  %-44s %6d\n", what, l.counts[what])
	}
	for _, kind := range slices.Sorted(maps.Keys(l.faults)) {
		all := l.faults[kind]
		slices.Sort(all)
		fmt.Fprintf(&b, "VIOLATED: %s, %d times\n", kind, len(all))
		for _, text := range all[:min(len(all), namedFaults)] {
			fmt.Fprintf(&b, "    %s\n", text)
		}
	}
	return b.String()
}
