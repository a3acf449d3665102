package ops

import (
	"cmp"
	"fmt"
	"path"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/lifeboat-fleet/lifeboat/fleet/bus"
	"github.com/lifeboat-fleet/lifeboat/fleet/config"
	lifeboatv1 "github.com/lifeboat-fleet/lifeboat/proto/lifeboat/v1"
)

// stories are the jobs of the work that is asked about, oldest first: what the audit log, the dead letters and the open jobs tell.
func (k *known) stories(q *question) []*jobStory {
	byID := map[string]*jobStory{}
	get := func(id string) *jobStory {
		if byID[id] == nil {
			byID[id] = newStory(id, q)
		}
		return byID[id]
	}
	for _, e := range k.events {
		if e.GetJobId() != "" && k.work(e) == q.work {
			get(e.GetJobId()).add(e, q)
		}
	}
	for _, l := range k.letters {
		if id := jobOf(l); id != "" && strings.HasPrefix(l.GetSubject(), "lifeboat.job."+string(q.work)+".") {
			get(id).buried(l, q)
		}
	}
	for _, j := range k.open {
		if j.Work == q.work {
			get(j.ID).opened(j, q)
		}
	}
	all := make([]*jobStory, 0, len(byID))
	for _, s := range byID {
		if s.Outcome == "" {
			s.Outcome, s.Message = "unknown", "it neither waits nor runs, and how it ended was not recorded"
			if !k.openOK {
				s.Message = "how it ended was not recorded, and whether it still waits or runs could not be read"
			}
		}
		s.schedule(q, k)
		all = append(all, s)
	}
	slices.SortFunc(all, func(a, b *jobStory) int {
		return cmp.Or(cmp.Compare(stored(a).UnixNano(), stored(b).UnixNano()), cmp.Compare(a.Sequence, b.Sequence))
	})
	return all
}

func stored(s *jobStory) time.Time {
	if s.StoredAt == nil {
		return time.Time{}
	}
	return *s.StoredAt
}

// work is the kind of work of the job that an event names, also for events that do not tell it themselves.
func (k *known) work(e *lifeboatv1.Event) config.Work {
	if k.works == nil {
		k.works = map[string]config.Work{}
		for _, l := range k.letters {
			if w, _, ok := bus.ParseJobSubject(l.GetSubject()); ok && jobOf(l) != "" {
				k.works[jobOf(l)] = w
			}
		}
		for _, e := range k.events {
			if w := doing(e); w != "" {
				k.works[e.GetJobId()] = w
			}
			// A letter that was replayed is gone, and with it what told the work of a job that was never begun.
			a := &letter{DeadLetter: &lifeboatv1.DeadLetter{Id: e.GetAttributes()["dead_id"], Subject: e.GetAttributes()["subject"]}}
			if w, _, ok := bus.ParseJobSubject(a.GetSubject()); ok && e.GetNoun() == "dead" {
				k.works[jobOf(a)] = w
			}
		}
	}
	return k.works[e.GetJobId()]
}

// newStory takes from a job's id when it was stored, and as what.
func newStory(id string, q *question) *jobStory {
	s := &jobStory{ID: id, Work: q.work, Attempts: []attempt{}}
	if when, seq, ok := strings.Cut(id, "-"); ok {
		if t, err := time.Parse("20060102T150405.000Z", when); err == nil {
			s.StoredAt = q.local(&t)
		}
		s.Sequence, _ = strconv.ParseUint(seq, 10, 64)
	}
	return s
}

// local is a moment in the target's time zone.
func (q *question) local(t *time.Time) *time.Time {
	if t == nil {
		return nil
	}
	l := t.In(q.loc)
	return &l
}

// add is one event of the job, in the order of the log.
func (s *jobStory) add(e *lifeboatv1.Event, q *question) {
	s.TraceID = cmp.Or(e.GetTraceId(), s.TraceID)
	if e.GetNoun() != "dead" && e.GetVerb() != "cancelled" { // who replayed or cancelled it did not ask for it
		s.RequestedBy = cmp.Or(s.RequestedBy, clean(e.GetRequestedBy()))
	}
	if t, err := time.Parse(time.RFC3339, e.GetAttributes()["tick"]); err == nil {
		s.Tick = q.local(&t)
	}
	when := q.local(at(e.GetTime()))
	switch {
	case e.GetVerb() == "started" && doing(e) != "":
		s.Attempts = append(s.Attempts, attempt{Number: e.GetAttributes()["attempt"], Worker: clean(e.GetActor()), Began: when, How: stateRunning})
	case e.GetVerb() == "interrupted", e.GetNoun() == "job" && (e.GetVerb() == "handed-back" || e.GetVerb() == "stopped"):
		s.attemptEnded(e, when, clean(cmp.Or(e.GetAttributes()["why"], e.GetMessage())))
	case e.GetNoun() == "job" && e.GetVerb() == "cancelled" && s.Ended && !s.Failed:
		// It came too late: what was committed stays.
		s.Notes = append(s.Notes, "job cancelled, behind its end: "+clean(e.GetMessage()))
	case e.GetNoun() == "job" && e.GetVerb() == "cancelled":
		s.Outcome, s.Message, s.Ended = stateCancelled, clean(e.GetMessage()), true
	case ends(e):
		s.ended(e, when, q)
	case e.GetNoun() == "copy" || e.GetVerb() == "worrying" || strings.HasPrefix(e.GetId(), rot) ||
		(e.GetNoun() == "dead" && e.GetVerb() == "replayed"):
		s.Notes = append(s.Notes, fmt.Sprintf("%s %s: %s", e.GetNoun(), e.GetVerb(), clean(e.GetMessage())))
	}
}

// attemptEnded closes the attempt of the worker that tells; an attempt whose beginning is not known is known by its end.
func (s *jobStory) attemptEnded(e *lifeboatv1.Event, when *time.Time, why string) {
	worker := clean(e.GetActor())
	for i := range slices.Backward(s.Attempts) {
		if a := &s.Attempts[i]; a.Ended == nil && a.Worker == worker {
			a.Ended, a.How, a.Why = when, e.GetVerb(), why
			return
		}
	}
	s.Attempts = append(s.Attempts, attempt{
		Number: e.GetAttributes()["attempt"], Worker: worker, Ended: when, How: e.GetVerb(), Why: why,
	})
}

// ended is the event that tells how the job ended.
func (s *jobStory) ended(e *lifeboatv1.Event, when *time.Time, q *question) {
	s.Outcome, s.Message, s.Ended, s.Failed = e.GetVerb(), clean(e.GetMessage()), true, fails(e)
	if !fails(e) || e.GetDrill() != nil || !s.lastEnded() {
		s.attemptEnded(e, when, "")
	}
	s.SnapshotID = cmp.Or(e.GetSnapshotId(), s.SnapshotID)
	if m := e.GetManifest(); m != nil {
		s.committed(m, q)
	}
	if r := e.GetDrill(); r != nil {
		s.Drill = drillOf(r, q)
		s.Phases = nil
		for _, p := range r.GetPhases() {
			s.Phases = append(s.Phases, phase{p.GetName(), p.GetTook().AsDuration().Seconds()})
		}
		s.TookSeconds = seconds(r.GetStartedAt().AsTime(), r.GetFinishedAt().AsTime())
		s.Tick = cmp.Or(s.Tick, q.local(at(r.GetTick())))
		return
	}
	if s.TookSeconds == 0 && len(s.Attempts) > 0 {
		if a := s.Attempts[len(s.Attempts)-1]; a.Began != nil && a.Ended != nil {
			s.TookSeconds = seconds(*a.Began, *a.Ended)
		}
	}
}

// lastEnded says whether the last attempt has told of its end: a job that ends as a dead letter is told of once more.
func (s *jobStory) lastEnded() bool {
	return len(s.Attempts) > 0 && s.Attempts[len(s.Attempts)-1].Ended != nil
}

// committed is what a manifest tells: the times of the phases, and the objects.
func (s *jobStory) committed(m *lifeboatv1.Manifest, q *question) {
	s.Tick = cmp.Or(s.Tick, q.local(at(m.GetTick())))
	began, uploaded := m.GetStartedAt().AsTime(), m.GetUploadedAt().AsTime()
	verified, committed := m.GetVerification().GetAt().AsTime(), m.GetCommittedAt().AsTime()
	s.TookSeconds = seconds(began, committed)
	s.Phases = nil
	if s.StoredAt != nil {
		s.Phases = append(s.Phases, phase{"wait for a worker", seconds(*s.StoredAt, began)})
	}
	if m.GetUploadedAt() != nil {
		s.Phases = append(s.Phases, phase{"read and upload", seconds(began, uploaded)})
		if m.GetVerification().GetAt() != nil {
			s.Phases = append(s.Phases, phase{"read back", seconds(uploaded, verified)}, phase{"commit", seconds(verified, committed)})
		}
	}
	s.Objects = nil
	for _, d := range append([]*lifeboatv1.Data{m.GetData()}, m.GetParts()...) {
		s.Objects = append(s.Objects, object{
			Bucket: m.GetStore().GetBucket(), Key: d.GetKey(), StoredBytes: d.GetStored().GetBytes(), StoredSHA256: d.GetStored().GetSha256(),
			RawBytes: d.GetRaw().GetBytes(), RawSHA256: d.GetRaw().GetSha256(), Encrypted: len(d.GetRecipients()) > 0,
			UnchangedSince: d.GetUnchangedSince(),
		})
	}
}

// seconds between two moments that may be of two clocks.
func seconds(from, to time.Time) float64 {
	return max(to.Sub(from), 0).Round(time.Millisecond).Seconds()
}

func drillOf(r *lifeboatv1.DrillReport, q *question) *drill {
	return &drill{
		ID: r.GetId(), SnapshotID: r.GetSnapshotId(), Passed: r.GetPassed(), At: q.local(at(r.GetFinishedAt())),
		Summary: clean(r.GetSummary()), Failure: clean(r.GetFailure()), RTOSeconds: r.GetRto().AsDuration().Seconds(),
	}
}

// buried is the dead letter of the job.
func (s *jobStory) buried(l *letter, q *question) {
	s.Dead = &deadRef{
		ID: l.GetId(), At: q.local(at(l.GetTime())), Reason: clean(l.GetReason()), Attempts: l.GetAttempts(),
		Replay: fmt.Sprintf("lifeboat dead replay %s -c %s", l.GetId(), q.file),
	}
	if !s.Ended {
		s.Outcome, s.Message, s.Ended, s.Failed = "failed", s.Dead.Reason, true, true
	}
}

// opened is the job's own message: it has not ended, whatever was told of it, unless that it did what it was asked for. What is
// committed stays so; its worker has not acknowledged it yet, or died before it could.
func (s *jobStory) opened(j openJob, q *question) {
	if s.Ended && !s.Failed && s.Outcome != stateCancelled {
		s.Notes = append(s.Notes, "the job's message is still there: "+j.Detail)
		return
	}
	s.Outcome, s.Message, s.Ended, s.Failed = j.State, j.Detail, false, false
	s.RequestedBy = cmp.Or(s.RequestedBy, j.RequestedBy)
	s.Tick = cmp.Or(s.Tick, q.local(j.Tick))
	if (j.State == stateRunning || j.State == stateCommitting) && (len(s.Attempts) == 0 || s.lastEnded()) {
		s.Attempts = append(s.Attempts, attempt{Number: fmt.Sprint(j.Attempt), Worker: j.Worker, Began: q.local(j.Since), How: j.State})
	}
}

// schedule finds which of the target's schedules asked for the job, and how late.
func (s *jobStory) schedule(q *question, k *known) {
	if s.Tick == nil {
		return
	}
	if s.StoredAt != nil { // one batch: it was decided when it was stored
		s.LateSeconds = seconds(*s.Tick, *s.StoredAt)
	}
	for _, sched := range q.target.Schedules() {
		if sched.Work != s.Work {
			continue
		}
		escrow := strings.HasPrefix(s.Outcome, "escrow-")
		if s.Schedule == "" || escrow == (sched.Identity == config.IdentityEscrow) {
			s.Schedule = sched.Name
		}
		if st := k.states[sched.Name]; st.GetTick() != nil && st.GetTick().AsTime().Equal(*s.Tick) {
			s.Schedule, s.DecidedAt = sched.Name, q.local(at(st.GetDecidedAt()))
			return
		}
	}
}

// complete adds what other jobs tell of the snapshot.
func (q *question) complete(p *page, k *known) {
	s := p.Job
	if s.Work != config.WorkSnapshot || s.SnapshotID == "" {
		return
	}
	for _, e := range k.events {
		if r := e.GetDrill(); r != nil && r.GetSnapshotId() == s.SnapshotID {
			s.Drill = drillOf(r, q)
		}
		if e.GetSnapshotId() == s.SnapshotID && e.GetNoun() == "snapshot" && slices.Contains([]string{"deleted", "pinned", "unpinned"}, e.GetVerb()) {
			s.Notes = append(s.Notes, fmt.Sprintf("snapshot %s: %s", e.GetVerb(), clean(e.GetMessage())))
		}
	}
}

// recent are the newest ticks that were not run and the newest jobs, newest last.
func (q *question) recent(k *known, stories []*jobStory) []outcome {
	var all []outcome
	for _, e := range k.events {
		if e.GetNoun() != "tick" || e.GetVerb() != "missed" || e.GetAttributes()["work"] != string(q.work) {
			continue
		}
		o := outcome{
			At: e.GetTime().AsTime().In(q.loc), Schedule: e.GetAttributes()["schedule"], Outcome: "missed", JobID: e.GetAttributes()["overlap_job"],
			Message: clean(e.GetMessage()),
		}
		if t, err := time.Parse(time.RFC3339, e.GetAttributes()["tick"]); err == nil {
			o.Tick = q.local(&t)
		}
		all = append(all, o)
	}
	for _, s := range stories {
		o := outcome{At: stored(s), Tick: s.Tick, Schedule: s.Schedule, Outcome: s.Outcome, JobID: s.ID, TookSeconds: s.TookSeconds}
		if len(s.Objects) > 0 {
			o.Object = s.Objects[0].Key
		} else {
			o.Message = s.Message
		}
		all = append(all, o)
	}
	slices.SortStableFunc(all, func(a, b outcome) int { return a.At.Compare(b.At) })
	return all[max(0, len(all)-recentLines):]
}

// shortKey is an object's place below its target.
func shortKey(key string) string {
	return path.Join(path.Base(path.Dir(key)), path.Base(key))
}
