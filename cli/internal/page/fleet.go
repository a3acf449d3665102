package page

import (
	"encoding/json"
	"maps"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/lifeboat-fleet/lifeboat/cli/internal/ops"
	"github.com/lifeboat-fleet/lifeboat/fleet/bus"
	"github.com/lifeboat-fleet/lifeboat/fleet/config"
	lifeboatv1 "github.com/lifeboat-fleet/lifeboat/proto/lifeboat/v1"
)

// How much is kept of what may be without end.
const (
	maxMessage    = 300
	maxDeliveries = 12
)

// fleet is what is known of the fleet now. It keeps a few moments of each target and no message, so that thousands of targets take some
// megabytes.
type fleet struct {
	rules []rule

	mu sync.Mutex
	// version counts what changed.
	version uint64
	// heard is the newest event's sequence.
	heard uint64
	// caughtUp: the audit log was read up to its end.
	caughtUp bool
	// remade counts how often the audit log was made anew.
	remade  int
	targets map[string]*record
	// alerts are the marks of rules that are not about targets, by receiver or by the alert's target.
	alerts     map[string]*record
	deliveries []*ops.Delivery
	// schedules are the newest decisions, by "<target>.<schedule>".
	schedules map[string]*decision
	claims    map[string]*lifeboatv1.ClaimState
	// plans are the targets of the configuration planned.
	planned *config.Config
	plans   []plan
	jobs    []ops.Job
	crew    ops.Crew
	// crewAt is when the workers were asked.
	crewAt  time.Time
	dead    deadLetters
	waiting waiting
	// troubles are what could not be read the last time, and why, by what it is.
	troubles map[string]string
	// answered is when NATS last answered, away why it does not now, awaySince since when.
	answered, awaySince time.Time
	away                string
}

// record is what the audit log says of one target.
type record struct {
	added time.Time
	// of is the moment that the newest good snapshot's data is of, committed when it was complete.
	of, committed time.Time
	took          time.Duration
	bytes         int64
	proof         proof
	drillTook     time.Duration
	// went is when work of each kind last went well: a job that failed before is nobody's trouble any more.
	went map[config.Work]time.Time
	// bad are the rules that hold, by their place.
	bad map[int]mark
}

// proof is the newest drill that restored a snapshot into a server of its kind and found it right.
type proof struct {
	at time.Time
	// of is the moment that the restored data was of.
	of  time.Time
	rto time.Duration
}

// mark is a bad event.
type mark struct {
	at      time.Time
	message string
}

// decision is what a scheduler last decided of a schedule.
type decision struct {
	seq  uint64
	tick time.Time
	// missed is why the newest tick was not run; empty when it was.
	missed      string
	paused      bool
	pausedUntil time.Time
	by, reason  string
	line        string
}

func newFleet() *fleet {
	return &fleet{
		rules: rules(), targets: map[string]*record{}, alerts: map[string]*record{}, schedules: map[string]*decision{},
		claims: map[string]*lifeboatv1.ClaimState{}, troubles: map[string]string{}, crew: ops.UnknownCrew(),
	}
}

// event is what the page reads of an event. There may be many at a start: the rest is not decoded.
type event struct {
	Time     time.Time `json:"time"`
	Message  string    `json:"message"`
	Manifest *struct {
		StartedAt   time.Time `json:"startedAt"`
		CommittedAt time.Time `json:"committedAt"`
		Data        struct {
			Stored struct {
				Bytes json.Number `json:"bytes"`
			} `json:"stored"`
		} `json:"data"`
	} `json:"manifest"`
	Drill *struct {
		StartedAt  time.Time `json:"startedAt"`
		FinishedAt time.Time `json:"finishedAt"`
		Level      string    `json:"level"`
		RTO        string    `json:"rto"`
		DataAge    string    `json:"dataAge"`
		Failure    string    `json:"failure"`
	} `json:"drill"`
	Attributes map[string]string `json:"attributes"`
}

// hear takes in one event. It says whether the page may show it.
func (f *fleet) hear(m *bus.Message) bool {
	parts := strings.Split(m.Subject, ".") // lifeboat.event.<noun>.<verb>.<target>
	if len(parts) != 5 {
		return false
	}
	noun, verb, target := parts[2], parts[3], parts[4]
	if noun == "alert" && slices.Contains(deliveryEnds(), verb) {
		f.set(func() bool { f.heard = max(f.heard, m.Seq); return false })
		return f.delivered(m)
	}
	var e event
	if json.Unmarshal(m.Data, &e) != nil {
		e = event{} // that it happened is said by its subject
	}
	if e.Time.IsZero() {
		e.Time = m.Stored
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	if m.Seq <= f.heard { // it comes again after an interruption
		return false
	}
	f.heard, f.version = m.Seq, f.version+1
	switch noun + "." + verb {
	case "snapshot.committed":
		f.record(target).snapshot(&e, m.Stored)
	case "drill.passed", "drill.escrow-passed", "drill.failed":
		f.record(target).drilled(&e)
	case "target.added":
		r := f.record(target)
		r.added = m.Stored
		if seen, err := time.Parse(time.RFC3339Nano, e.Attributes["first_seen"]); err == nil && seen.Before(m.Stored) {
			r.added = seen
		}
	}
	f.judge(noun, verb, target, &e)
	return true
}

// judge keeps which rules hold.
func (f *fleet) judge(noun, verb, target string, e *event) {
	for i := range f.rules {
		r := &f.rules[i]
		if r.noun != noun || (verb != r.bad && verb != r.good) {
			continue
		}
		about := f.targets
		if r.aboutAlerts() {
			about = f.alerts
		}
		rec := about[target]
		if verb == r.good {
			if rec != nil {
				delete(rec.bad, i)
			}
			if w := config.Work(noun); slices.Contains(config.Works(), w) {
				f.record(target).well(w, e.Time)
			}
			continue
		}
		if rec == nil {
			rec = &record{}
			about[strings.Clone(target)] = rec
		}
		if rec.bad == nil {
			rec.bad = map[int]mark{}
		}
		message := e.Message
		if e.Drill != nil && e.Drill.Failure != "" {
			message = e.Drill.Failure
		}
		rec.bad[i] = mark{at: e.Time, message: ops.Cut(ops.Clean(message), maxMessage)}
	}
}

func (f *fleet) record(target string) *record {
	r := f.targets[target]
	if r == nil {
		r = &record{}
		f.targets[strings.Clone(target)] = r
	}
	return r
}

func (r *record) well(w config.Work, at time.Time) {
	if r.went == nil {
		r.went = map[config.Work]time.Time{}
	}
	r.went[w] = at
}

func (r *record) snapshot(e *event, stored time.Time) {
	r.of, r.committed, r.took, r.bytes = stored, e.Time, 0, 0
	m := e.Manifest
	if m == nil || m.StartedAt.IsZero() || m.StartedAt.After(stored) { // a clock that is ahead makes no snapshot younger
		return
	}
	r.of = m.StartedAt
	if m.CommittedAt.After(m.StartedAt) {
		r.took = m.CommittedAt.Sub(m.StartedAt)
	}
	r.bytes, _ = m.Data.Stored.Bytes.Int64() // what is no number is not shown
}

// drilled takes in how a drill ended. Only one that restored proves something.
func (r *record) drilled(e *event) {
	d := e.Drill
	if d == nil {
		return
	}
	if d.FinishedAt.After(d.StartedAt) {
		r.drillTook = d.FinishedAt.Sub(d.StartedAt)
	}
	if d.Level != lifeboatv1.DrillReport_LEVEL_RESTORED.String() || d.Failure != "" {
		return
	}
	r.proof = proof{at: d.FinishedAt}
	if r.proof.at.IsZero() {
		r.proof.at = e.Time
	}
	// What is no duration is not shown.
	r.proof.rto, _ = time.ParseDuration(d.RTO)
	if age, err := time.ParseDuration(d.DataAge); err == nil {
		r.proof.of = d.StartedAt.Add(-age)
	}
}

// delivered takes in how a delivery ended, also one that is older than what was heard last.
func (f *fleet) delivered(m *bus.Message) bool {
	e := &lifeboatv1.Event{}
	if bus.Decode(m.Data, e) != nil {
		return false
	}
	d := ops.NewDelivery(e, m.Stored)
	f.mu.Lock()
	defer f.mu.Unlock()
	if slices.ContainsFunc(f.deliveries, func(o *ops.Delivery) bool {
		return o.DeliveryID == d.DeliveryID && o.Receiver == d.Receiver && o.Time.Equal(d.Time) && o.Outcome == d.Outcome
	}) {
		return false
	}
	f.deliveries = append(f.deliveries, d)
	slices.SortStableFunc(f.deliveries, func(a, b *ops.Delivery) int { return b.Time.Compare(a.Time) })
	f.deliveries = f.deliveries[:min(len(f.deliveries), maxDeliveries)]
	f.version++
	return true
}

// forget is called when the audit log was made anew: what was said before is of a log that is no more, but snapshots are in the bucket.
func (f *fleet) forget() {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.heard, f.version, f.remade = 0, f.version+1, f.remade+1
	f.schedules, f.claims = map[string]*decision{}, map[string]*lifeboatv1.ClaimState{}
}

func (f *fleet) timesRemade() int {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.remade
}

// decided takes in a schedule's state.
func (f *fleet) decided(m *bus.Message) error {
	s := &lifeboatv1.ScheduleState{}
	key := strings.TrimPrefix(m.Subject, "lifeboat.state.schedule.")
	if err := bus.Decode(m.Data, s); err != nil {
		return nil // one that nobody understands hides no other
	}
	d := &decision{seq: m.Seq, line: s.GetSchedule()}
	if s.GetTick() != nil {
		d.tick = s.GetTick().AsTime()
	}
	if missed := s.GetMissed(); s.GetOutcome() == lifeboatv1.ScheduleState_OUTCOME_MISSED && len(missed) > 0 {
		d.missed = ops.Clean(missed[len(missed)-1].GetReason())
	}
	if p := s.GetPause(); p != nil {
		d.paused, d.by, d.reason = true, ops.Clean(p.GetBy()), ops.Cut(ops.Clean(p.GetReason()), maxMessage)
		if p.GetUntil() != nil {
			d.pausedUntil = p.GetUntil().AsTime()
		}
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	if old := f.schedules[key]; old == nil || old.seq != d.seq {
		f.schedules[strings.Clone(key)] = d
		f.version++
	}
	return nil
}

// inForce says whether a schedule is paused at a moment.
func (d *decision) inForce(now time.Time) bool {
	return d != nil && d.paused && (d.pausedUntil.IsZero() || d.pausedUntil.After(now))
}

// set changes something under the lock, and counts that when it is a change.
func (f *fleet) set(change func() bool) bool {
	f.mu.Lock()
	defer f.mu.Unlock()
	changed := change()
	if changed {
		f.version++
	}
	return changed
}

// trouble notes what could not be read; a nil error takes it back.
func (f *fleet) trouble(what string, err error) bool {
	return f.set(func() bool {
		old, had := f.troubles[what]
		if err == nil {
			delete(f.troubles, what)
			return had
		}
		f.troubles[what] = ops.Cut(ops.Clean(err.Error()), maxMessage)
		return !had || old != f.troubles[what]
	})
}

func sortedKeys[V any](m map[string]V) []string { return slices.Sorted(maps.Keys(m)) }
