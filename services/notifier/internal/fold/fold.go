// Package fold decides what of a group of alerts a receiver still has to be told: it compares what arrived with what was told
// before, so that duplicates, repeats, states that came out of order and flapping do not become messages, and every change does.
//
// It is a pure function of the group's state, the arrivals and the time. Who uses it sends what it tells, stores the state that it
// returns, and acknowledges the arrivals, in this order; Held ones are put back before the state is stored. After a crash between any
// two of these the same arrivals are folded again: into the old state with the same result, into the new one as duplicates.
//
// # Which state is newer
//
// An alert (by its fingerprint) has one newest state. Of two states the one of the later startsAt is newer, and of the same startsAt
// the resolved one: that is the order of what happened, whatever the order of arrival. Only what was received more than a minute later
// may contradict it. That is not a webhook overtaken by another one, but what Alertmanager now says: it resolves an alert by itself when
// Prometheus cannot reach it, and afterwards the alert fires on with the startsAt that it had; with two Prometheus it merges
// what they say into the earliest startsAt (types.Alert.Merge), so that an alert ends with an earlier startsAt than it was told with.
// An event (status "event") is neither newer nor older than another one: each is told.
package fold

import (
	"cmp"
	"maps"
	"slices"
	"time"

	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protoreflect"
	"google.golang.org/protobuf/types/known/timestamppb"

	lifeboatv1 "github.com/lifeboat-fleet/lifeboat/proto/lifeboat/v1"
)

// Policy is how much a receiver wants to be told.
type Policy struct {
	// Repeat is how long an alert that fires on is not told again; 0: always told again.
	Repeat time.Duration
	// Flaps is how many changes of an alert within Window are told one by one; 0 and -1: all of them.
	Flaps  int
	Window time.Duration
}

// Arrival is one state of one alert that waits in the queue.
type Arrival struct {
	Alert *lifeboatv1.Alert
	// Received is when Lifeboat was told (the notification's received_at), however often it was stored again since.
	Received time.Time
	// Muted says that a time interval held it back, and that nobody can have been told of it. After an attempt to send it whose end is not
	// known it is false: what may have been told to fire must be told to have ended.
	Muted bool
}

// Kind is what a change is for the reader.
type Kind string

// The kinds of changes.
const (
	// Fires: it begins to fire, or begins again.
	Fires Kind = "fires"
	// Repeats: it fires on, and was told before.
	Repeats Kind = "repeats"
	// Resolves: it was told to fire, and has ended.
	Resolves Kind = "resolves"
	// Passes: it has ended, and that it fired was never told.
	Passes Kind = "passes"
	// Happens: an event.
	Happens Kind = "happens"
)

// The reasons for which an arrival is not told.
const (
	Duplicate  = "duplicate"
	Repeat     = "repeat"
	Stale      = "stale"
	Superseded = "superseded"
	Muted      = "muted"
)

// Change is one thing to tell.
type Change struct {
	// Alert is the arrival's, the newest copy of its newest state. It is shared, not copied.
	Alert *lifeboatv1.Alert
	Kind  Kind
	// Flaps is how often it changed within the window, when that is too often; else 0.
	Flaps int
}

// Held is an arrival of an alert that flaps.
type Held struct {
	Alert *lifeboatv1.Alert
	// Received is the arrival's, and stays that when it is put back.
	Received time.Time
	Until    time.Time
}

// Result is what to do with the arrivals. Each of them is counted exactly once:
//
//	len(arrivals) == len(Tell) + len(Held) + the sum of Folded
type Result struct {
	// Tell is what is news, one change for each alert, in the order of the arrivals.
	Tell []Change
	// Unchanged are alerts of the arrivals that were told before and are no news, in their newest state: a message that shows the whole
	// group shows them too. They are counted in Folded, as duplicate or repeat.
	Unchanged []*lifeboatv1.Alert
	// Folded are arrivals that are not told, by reason.
	Folded map[string]int
	// Held are to be put back as arrivals at Until.
	Held []Held
	// Group is the state once Tell has been told. Never nil. What did not change of g's alerts is shared with it.
	Group *lifeboatv1.Group
	// Changed says that Group is another one than g: it has to be stored.
	Changed bool
	// Begins says that something in Tell begins to fire: people are mentioned.
	Begins bool
}

// Fold decides. g may be nil, and is not changed; arrivals are in the order of the queue, and several of them may be of one alert.
func Fold(g *lifeboatv1.Group, arrivals []Arrival, p Policy, now time.Time) Result {
	f := newFolding(g, arrivals, p, now)
	for _, i := range f.received() {
		f.take(i)
	}
	for _, c := range f.touched {
		f.decide(c)
	}
	return f.finish()
}

// folding is the work of one Fold.
type folding struct {
	arrivals []Arrival
	// seen are the arrivals as they are compared.
	seen   []state
	p      Policy
	now    time.Time
	states []*lifeboatv1.Told
	index  map[key]*candidate
	// touched are the alerts of the arrivals, in their order.
	touched  []*candidate
	verdicts []verdict
	out      Result
}

// verdict is what becomes of an arrival that is not only counted: it is told, held if it has an until, or unchanged if it has neither.
type verdict struct {
	arrival int
	change  Change
	until   time.Time
}

// candidate is one alert.
type candidate struct {
	// told is the state's at this place, and shared with the group that was given until own says otherwise.
	told  *lifeboatv1.Told
	place int
	own   bool
	// newest is the index of the arrival with the newest copy of the newest state; -1 while no arrival has it.
	newest int
	// news says that the newest state is an arrival's; overtaken is how many arrivals were news until a newer one came.
	news      bool
	overtaken int
	// why is the reason for which the newest arrival is folded, when it is no news.
	why string
	// openly and muted say how it fired.
	openly, muted bool
	touched       bool
}

func newFolding(g *lifeboatv1.Group, arrivals []Arrival, p Policy, now time.Time) *folding {
	f := &folding{
		arrivals: arrivals, p: p, now: now.Truncate(grain), index: make(map[key]*candidate, len(g.GetAlerts())+len(arrivals)),
		seen: make([]state, len(arrivals)), states: make([]*lifeboatv1.Told, 0, len(g.GetAlerts())+len(arrivals)),
		out: Result{Folded: map[string]int{}, Group: frame(g)},
	}
	for i, a := range arrivals {
		f.seen[i] = stateOf(a, now)
	}
	for _, t := range g.GetAlerts() {
		f.add(keyOf(t.GetFingerprint(), t.GetStatus(), clock(t.GetStartsAt())), t)
	}
	return f
}

// frame copies what a group has besides its alerts, of which there may be thousands.
func frame(g *lifeboatv1.Group) *lifeboatv1.Group {
	out := &lifeboatv1.Group{}
	g.ProtoReflect().Range(func(field protoreflect.FieldDescriptor, v protoreflect.Value) bool {
		if field.Name() != "alerts" {
			out.ProtoReflect().Set(field, v)
		}
		return true
	})
	return proto.CloneOf(out)
}

func (f *folding) add(k key, t *lifeboatv1.Told) *candidate {
	c := &candidate{told: t, place: len(f.states), newest: -1}
	f.index[k] = c
	f.states = append(f.states, t)
	return c
}

// change is the state of an alert, to be changed.
func (f *folding) change(c *candidate) *lifeboatv1.Told {
	if !c.own {
		c.told, c.own = proto.CloneOf(c.told), true
		f.states[c.place] = c.told
		f.out.Changed = true
	}
	return c.told
}

// received are the indexes of the arrivals in the order in which they were received: the queue has two lanes.
func (f *folding) received() []int {
	order := make([]int, len(f.arrivals))
	for i := range order {
		order[i] = i
	}
	slices.SortStableFunc(order, func(a, b int) int { return f.seen[a].received.Compare(f.seen[b].received) })
	return order
}

// take compares one arrival with what is known of its alert.
func (f *folding) take(i int) {
	s := f.seen[i]
	k := keyOf(s.fingerprint, s.status, s.starts)
	c := f.index[k]
	known := c != nil
	if !known {
		c = f.add(k, &lifeboatv1.Told{Fingerprint: s.fingerprint})
		c.own, f.out.Changed = true, true
	}
	if !c.touched {
		c.touched = true
		f.touched = append(f.touched, c)
	}
	switch {
	case known && s.same(c.told):
		if c.newest >= 0 {
			f.out.Folded[s.again(c.told)]++
		}
		c.why = s.again(c.told)
		if s.confirms(c.told) {
			t := f.change(c)
			t.Changes[len(t.GetChanges())-1] = stamp(s.received)
		}
	case !known || s.newer(c.told):
		if c.newest >= 0 && c.news {
			c.overtaken++
		} else if c.newest >= 0 {
			f.out.Folded[c.why]++
		}
		s.follow(f.change(c), f.p)
		c.news = true
	default:
		f.out.Folded[Stale]++
		return
	}
	c.newest = i
	if s.status == firing {
		c.openly = c.openly || !f.arrivals[i].Muted
		c.muted = c.muted || f.arrivals[i].Muted
	}
}

// decide says what becomes of the newest arrival of an alert, if it has the newest state.
func (f *folding) decide(c *candidate) {
	if c.newest < 0 {
		return
	}
	t := c.told
	believed := t.GetToldStatus()
	switch {
	case c.news && !t.GetWaits() && t.GetStatus() == resolved && believed != firing && c.muted && !c.openly:
		f.out.Folded[Muted] += 1 + c.overtaken
		return
	case !c.news && !t.GetWaits() && t.GetStatus() == resolved && believed == "":
		f.out.Folded[Muted]++ // the same as above, once more
		return
	case c.news || t.GetWaits() || believed == "":
		f.out.Folded[Superseded] += c.overtaken
		n := flaps(t, f.p)
		if until := clock(t.GetToldAt()).Add(f.p.Window); n > 0 && f.now.Before(until) {
			if !t.GetWaits() {
				f.change(c).Waits = true
			}
			f.verdicts = append(f.verdicts, verdict{arrival: c.newest, until: until})
			return
		}
		f.tell(c, news(t, n > 0), n)
	case f.due(c):
		f.tell(c, Repeats, 0)
	default:
		f.out.Folded[c.why]++
		if t.GetStatus() != event {
			f.verdicts = append(f.verdicts, verdict{arrival: c.newest})
		}
	}
}

// news is what the newest state is for who believes what was told before.
func news(t *lifeboatv1.Told, flaps bool) Kind {
	fired := t.GetToldStatus() == firing
	switch {
	case t.GetStatus() == event:
		return Happens
	case t.GetStatus() == resolved && fired:
		return Resolves
	case t.GetStatus() == resolved:
		return Passes
	case fired && flaps:
		// It ended and began again meanwhile, but who is told now knows it as firing.
		return Repeats
	}
	return Fires
}

// slack is how much earlier than Policy.Repeat a repeat may come: with the same interval at Alertmanager every second one would be dropped
// otherwise, because the first took longer to be told.
func (p Policy) slack() time.Duration { return min(p.Repeat/10, 30*time.Second) }

// due says whether an alert that fires on has to be told again. What was received before it was told last was told then.
func (f *folding) due(c *candidate) bool {
	at := clock(c.told.GetToldAt())
	return c.told.GetStatus() == firing && f.seen[c.newest].received.After(at) && !f.now.Before(at.Add(f.p.Repeat-f.p.slack()))
}

func (f *folding) tell(c *candidate, k Kind, n int) {
	f.verdicts = append(f.verdicts, verdict{arrival: c.newest, change: Change{Alert: f.arrivals[c.newest].Alert, Kind: k, Flaps: n}})
	f.out.Begins = f.out.Begins || k == Fires
	t := f.change(c)
	t.ToldAt, t.ToldStatus, t.Waits = timestamppb.New(f.now), t.GetStatus(), false
	f.out.Group.ToldAt = timestamppb.New(f.now)
}

// finish puts everything into the order of the arrivals.
func (f *folding) finish() Result {
	slices.SortFunc(f.verdicts, func(a, b verdict) int { return cmp.Compare(a.arrival, b.arrival) })
	for _, v := range f.verdicts {
		switch a := f.arrivals[v.arrival]; {
		case v.change.Kind != "":
			f.out.Tell = append(f.out.Tell, v.change)
		case !v.until.IsZero():
			f.out.Held = append(f.out.Held, Held{Alert: a.Alert, Received: a.Received, Until: v.until})
		default:
			f.out.Unchanged = append(f.out.Unchanged, a.Alert)
		}
	}
	maps.DeleteFunc(f.out.Folded, func(_ string, n int) bool { return n == 0 })
	kept := prune(f.states, f.now)
	f.out.Changed = f.out.Changed || len(kept) != len(f.states)
	f.out.Group.Alerts = kept
	return f.out
}
