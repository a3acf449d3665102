package ops

import (
	"context"
	"fmt"
	"slices"
	"strings"

	"github.com/lifeboat-fleet/lifeboat/fleet/bus"
	"github.com/lifeboat-fleet/lifeboat/fleet/config"
	lifeboatv1 "github.com/lifeboat-fleet/lifeboat/proto/lifeboat/v1"
)

// known is what NATS told about a target. What could not be read is empty here and named in unknown.
type known struct {
	states  map[string]*lifeboatv1.ScheduleState // by the schedule's name
	stateOK bool
	open    []openJob
	openOK  bool
	events  []*lifeboatv1.Event
	letters []*letter
	crew    crew
	unknown []string
	works   map[string]config.Work // by the job's id
	// rpo is what was last said of the rpo, committed the newest snapshot: both may be older than what is asked about.
	rpo, committed *lifeboatv1.Event
	rpoOK          bool
}

// know asks for everything, one after the other.
func (q *question) know(ctx context.Context) *known {
	k := &known{states: map[string]*lifeboatv1.ScheduleState{}}
	lost := func(what string, err error) bool {
		if err != nil {
			k.unknown = append(k.unknown, fmt.Sprintf("%s: %v", what, err))
		}
		return err == nil
	}
	k.stateOK = lost("the schedules' states", q.bus.Scan(ctx, bus.StreamJobs, bus.ScheduleSubject(q.target.Name, "*"), func(m *bus.Message) error {
		s := &lifeboatv1.ScheduleState{}
		if err := bus.Decode(m.Data, s); err != nil {
			return fmt.Errorf("decoding %s: %w", m.Subject, err)
		}
		k.states[m.Subject[strings.LastIndexByte(m.Subject, '.')+1:]] = s
		return nil
	}))
	var err error
	k.open, err = q.jobs(ctx, []string{q.target.Name})
	k.openOK = lost("the jobs that wait or run", err)
	lost("the audit log", q.bus.History(ctx, bus.StreamEvents, []string{bus.EventSubject("*", "*", q.target.Name)}, q.since, func(m *bus.Message) error {
		e := &lifeboatv1.Event{}
		if bus.Decode(m.Data, e) == nil { // what nobody can read hides nothing else
			k.events = append(k.events, e)
		}
		return nil
	}))
	k.rpoOK = lost("how old the newest snapshot is", q.age(ctx, k))
	k.letters, err = q.letters(ctx, bus.JobSubject("*", q.target.Name), q.since, noPayloads)
	lost("the dead letters", err)
	k.crew = q.crew(ctx)
	lost("the workers", k.crew.unknown)
	return k
}

// age reads what the audit log last said of the target's rpo and snapshots, however long ago.
func (q *question) age(ctx context.Context, k *known) error {
	newest := uint64(0)
	for _, verb := range []string{"exceeded", "met"} {
		e := &lifeboatv1.Event{}
		seq, _, err := q.bus.Last(ctx, bus.StreamEvents, bus.EventSubject("rpo", verb, q.target.Name), e)
		if err != nil {
			return err
		}
		if seq > newest {
			newest, k.rpo = seq, e
		}
	}
	e := &lifeboatv1.Event{}
	seq, _, err := q.bus.Last(ctx, bus.StreamEvents, bus.EventSubject("snapshot", "committed", q.target.Name), e)
	if seq > 0 {
		k.committed = e
	}
	return err
}

// workOf is the kind of work of a job, from whatever tells of it.
func (k *known) workOf(id string, otherwise config.Work) config.Work {
	for _, j := range k.open {
		if j.ID == id {
			return j.Work
		}
	}
	for _, e := range k.events {
		if w := doing(e); e.GetJobId() == id && w != "" {
			return w
		}
	}
	for _, l := range k.letters {
		if w, _, ok := bus.ParseJobSubject(l.GetSubject()); ok && jobOf(l) == id {
			return w
		}
	}
	return otherwise
}

// jobOf is the id of the job that a letter is about; empty for a letter about something else.
func jobOf(l *letter) string {
	id, ok := strings.CutPrefix(l.GetId(), "dead-"+l.GetSubject()+"-")
	if !ok {
		return ""
	}
	return id
}

// rot begins the id of an event about a stored snapshot that other work came upon: the job that it names is no verification.
const rot = "verify.failed.rot."

// doing is the kind of work of the job that an event names, when the event tells how far that job is; else empty. A job tells of other
// things as well, as a prune does of each snapshot that it deletes.
func doing(e *lifeboatv1.Event) config.Work {
	if e.GetNoun() == "job" {
		return config.Work(e.GetAttributes()["work"])
	}
	switch e.GetVerb() {
	case "started", "interrupted", "committed", "passed", "escrow-passed", "checked", "held", "failed", "escrow-failed":
		if w := config.Work(e.GetNoun()); slices.Contains(config.Works(), w) && !strings.HasPrefix(e.GetId(), rot) {
			return w
		}
	}
	return ""
}

// ends says whether an event ends a job, as against one attempt or one step of it.
func ends(e *lifeboatv1.Event) bool {
	if slices.Contains(goodEnds(), e.GetVerb()) {
		return doing(e) != ""
	}
	return fails(e)
}

// goodEnds are the verbs of events that end a job which did what it was asked for.
func goodEnds() []string { return []string{"committed", "passed", "escrow-passed", "checked", "held"} }

// fails says whether an event ends a job without what was asked for.
func fails(e *lifeboatv1.Event) bool {
	switch e.GetVerb() {
	case "failed", "escrow-failed":
		return doing(e) != ""
	case "rejected":
		return e.GetNoun() == "job"
	}
	return false
}
