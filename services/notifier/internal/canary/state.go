package canary

import (
	"fmt"
	"regexp"
	"slices"
	"strconv"
	"time"

	"github.com/lifeboat-fleet/lifeboat/fleet/bus"
	lifeboatv1 "github.com/lifeboat-fleet/lifeboat/proto/lifeboat/v1"
)

const (
	noun   = "canary"
	origin = "canary"
)

// filters are the subjects of the events that say what became of canaries. A canary names no target, so its deliveries are the fleet's.
func filters() []string {
	return append(outcomes(),
		bus.EventSubject(noun, "sent", "*"), bus.EventSubject(noun, "delivered", "*"), bus.EventSubject(noun, "late", "*"))
}

// outcomes are the subjects of what the queue says.
func outcomes() []string {
	return []string{bus.EventSubject("alert", "delivered", ""), bus.EventSubject("alert", "dead", "")}
}

// state is what the audit log says.
type state struct{ birds map[string]*bird }

func newState() *state { return &state{birds: map[string]*bird{}} }

// maxWaiting is how many canaries of a receiver are remembered while none is delivered.
const maxWaiting = 100

// bird is one receiver's canary. Ticks say which one is meant; the log's sequences say which word about it is the last.
type bird struct {
	// sent is the newest tick that was sent, and waiting are those that nobody has said to be delivered, oldest first.
	sent    time.Time
	waiting []flight
	// early are outcomes of canaries of which it is not said yet that they were sent: the chat may be quicker than the log.
	early []flight
	// delivered and late are the newest ticks that the log says were that, and deliveredAt is when the chat took it.
	delivered, deliveredAt, late time.Time
	deliveredSeq, lateSeq        uint64
}

// flight is one canary under way.
type flight struct {
	tick time.Time
	sent time.Time
	// seq is its notification's place in the stream of alerts.
	seq uint64
	// arrived is when the chat took it, died why it never will.
	arrived time.Time
	died    string
}

func (b *bird) isLate() bool { return b.lateSeq > b.deliveredSeq }

func (s *state) bird(receiver string) *bird {
	b := s.birds[receiver]
	if b == nil {
		b = &bird{}
		s.birds[receiver] = b
	}
	return b
}

func (s *state) knows(receiver string, tick time.Time) bool {
	b := s.birds[receiver]
	return b != nil && (!b.sent.Before(tick) || !b.delivered.Before(tick))
}

// apply takes an event, and says whether it is one about a canary. One that was applied already changes nothing.
func (s *state) apply(seq uint64, stored time.Time, e *lifeboatv1.Event) bool {
	if e.GetNoun() == "alert" {
		return s.outcome(stored, e)
	}
	tick, err := time.Parse(time.RFC3339, e.GetAttributes()["tick"])
	if err != nil || e.GetTarget() == "" {
		return false // somebody published it by hand
	}
	b := s.bird(e.GetTarget())
	switch e.GetVerb() {
	case "sent":
		number, err := strconv.ParseUint(e.GetAttributes()["sequence"], 10, 64)
		if err != nil || !tick.After(b.sent) {
			return false
		}
		b.sent = tick
		f := flight{tick: tick, sent: stored, seq: number}
		if i := slices.IndexFunc(b.early, func(f flight) bool { return f.seq == number }); i >= 0 {
			f.arrived, f.died = b.early[i].arrived, b.early[i].died
		}
		if tick.After(b.delivered) {
			b.waiting = keep(append(b.waiting, f))
		}
	case "delivered":
		if seq > b.deliveredSeq {
			b.deliveredSeq = seq
		}
		if !tick.Before(b.delivered) {
			b.delivered, b.deliveredAt = tick, stored
			if at, err := time.Parse(time.RFC3339Nano, e.GetAttributes()["delivered_at"]); err == nil {
				b.deliveredAt = at
			}
		}
		b.waiting = slices.DeleteFunc(b.waiting, func(f flight) bool { return !f.tick.After(tick) })
	case "late":
		if seq > b.lateSeq {
			b.lateSeq, b.late = seq, tick
		}
	}
	return true
}

// received is how a delivery's id begins: with the name of the notification that it was routed from, see bus.Message.ID.
var received = regexp.MustCompile(`^\d{8}T\d{6}\.\d{3}Z-(\d+)\.`)

// outcome takes what the queue says of a delivery, if that is a canary's at its own receiver.
func (s *state) outcome(stored time.Time, e *lifeboatv1.Event) bool {
	at := e.GetAttributes()
	name := received.FindStringSubmatch(at["delivery_id"])
	if at["origin"] != origin || at["receiver"] == "" || name == nil {
		return false
	}
	seq, err := strconv.ParseUint(name[1], 10, 64)
	if err != nil {
		return false
	}
	b := s.bird(at["receiver"])
	i := slices.IndexFunc(b.waiting, func(f flight) bool { return f.seq == seq })
	f := &flight{seq: seq}
	if i >= 0 {
		f = &b.waiting[i]
	}
	if e.GetVerb() == "dead" {
		f.died = e.GetMessage()
	} else {
		f.arrived = stored
	}
	if i < 0 {
		b.early = keep(append(b.early, *f))
	}
	return true
}

// keep forgets the oldest ones of too many.
func keep(all []flight) []flight { return all[max(len(all)-maxWaiting, 0):] }

// words are the events that the log lacks: what was delivered, and what is late. watched says whether a receiver has a canary still.
func (s *state) words(now time.Time, watched func(receiver string) bool) []*lifeboatv1.Event {
	var out []*lifeboatv1.Event
	for name, b := range s.birds {
		if i := b.arrived(); i >= 0 {
			out = append(out, deliveredEvent(name, b.waiting[i]))
			continue
		}
		if b.isLate() && !b.late.After(b.delivered) {
			// Another replica called it late in the moment in which it was delivered. The last word must be the true one.
			e := deliveredEvent(name, flight{tick: b.delivered, sent: b.deliveredAt, arrived: b.deliveredAt})
			e.Id += fmt.Sprintf("-after-%d", b.lateSeq)
			e.Message = "the canary of receiver " + name + " was delivered, and not late"
			out = append(out, e)
			continue
		}
		if f := b.overdue(now); f != nil && watched(name) {
			out = append(out, lateEvent(name, *f))
		}
	}
	return out
}

// arrived is the place of the newest one that the chat took, which the log does not say yet; -1 when there is none.
func (b *bird) arrived() int {
	for i, f := range slices.Backward(b.waiting) {
		if !f.arrived.IsZero() {
			return i
		}
	}
	return -1
}

// overdue is the oldest one that must be called late, if any.
func (b *bird) overdue(now time.Time) *flight {
	if b.isLate() {
		return nil
	}
	for i := range b.waiting {
		if f := &b.waiting[i]; f.died != "" || !now.Before(f.sent.Add(lateAfter)) {
			return f
		}
	}
	return nil
}

// doubt is since when the outcome of a canary that is to be called late may stand in the log; the zero time when there is none.
func (s *state) doubt(now time.Time, watched func(receiver string) bool) time.Time {
	var since time.Time
	for name, b := range s.birds {
		f := b.overdue(now)
		if f == nil || f.died != "" || b.arrived() >= 0 || !watched(name) {
			continue
		}
		if before := f.sent.Add(-grace); since.IsZero() || before.Before(since) {
			since = before
		}
	}
	return since
}

// nextLate is when the next canary will be late; the zero time when none is under way.
func (s *state) nextLate() time.Time {
	var next time.Time
	for _, b := range s.birds {
		if b.isLate() || len(b.waiting) == 0 {
			continue
		}
		if at := b.waiting[0].sent.Add(lateAfter); next.IsZero() || at.Before(next) {
			next = at
		}
	}
	return next
}

func sentEvent(receiver string, tick time.Time, seq uint64) *lifeboatv1.Event {
	return &lifeboatv1.Event{
		Id: "sent-" + id(receiver, tick), Noun: noun, Verb: "sent", Target: receiver,
		Message:    "a canary was sent to receiver " + receiver,
		Attributes: map[string]string{"tick": tick.UTC().Format(time.RFC3339), "sequence": strconv.FormatUint(seq, 10)},
	}
}

func deliveredEvent(receiver string, f flight) *lifeboatv1.Event {
	took := max(f.arrived.Sub(f.sent), 0)
	return &lifeboatv1.Event{
		Id: "delivered-" + id(receiver, f.tick), Noun: noun, Verb: "delivered", Target: receiver,
		Message: fmt.Sprintf("the canary of receiver %s was delivered after %s", receiver, took.Round(time.Millisecond)),
		Attributes: map[string]string{
			"tick": f.tick.UTC().Format(time.RFC3339), "delivered_at": f.arrived.UTC().Format(time.RFC3339Nano),
			"lag_seconds": strconv.FormatFloat(took.Seconds(), 'f', 3, 64),
		},
	}
}

func lateEvent(receiver string, f flight) *lifeboatv1.Event {
	why := "was not delivered within " + fmt.Sprintf("%.0f minutes", lateAfter.Minutes())
	if f.died != "" {
		why = "cannot be delivered: " + f.died
	}
	return &lifeboatv1.Event{
		Id: "late-" + id(receiver, f.tick), Noun: noun, Verb: "late", Target: receiver,
		Message:    fmt.Sprintf("the canary of receiver %s of %s %s", receiver, f.tick.UTC().Format(time.RFC3339), why),
		Attributes: map[string]string{"tick": f.tick.UTC().Format(time.RFC3339)},
	}
}
