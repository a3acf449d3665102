package rpo

import (
	"container/heap"
	"math"
	"strings"
	"time"
)

// never is the due time of a record that only an event can change.
const never = math.MaxInt64

// record is what is kept of one target: moments in Unix nanoseconds and sequences, but no message. There may be 100,000.
type record struct {
	name string
	rpo  time.Duration
	// good is when the newest good snapshot began that is known of; 0: none is.
	good int64
	// added is when the target was first seen; 0: the audit log does not say yet.
	added int64
	// seen is what added was in a stream that is no more; 0: there was none. The audit log is told of it.
	seen int64
	// exceeded and met are the sequences of the newest events that say so.
	exceeded, met uint64
	// due is when the target is judged next.
	due int64
	// ended is how each work of works() ended last, and proof what the last drill that passed has shown.
	ended [worksKept]ends
	proof proof
	// place is where the record stands in the queue; -1: it does not.
	place int32
	// sure: good is what this stream or a worker told, so that a target without one has none.
	sure bool
	// watched: the target is in the configuration.
	watched bool
	// leaving: it was, until a reload; what is said of it is taken back.
	leaving bool
}

// since is what the age counts from; 0: not known yet.
func (r *record) since() int64 {
	if r.good != 0 {
		return r.good
	}
	return r.added
}

func (r *record) alarmed() bool { return r.exceeded > r.met }

// patience is how long this replica lets stand what another one said. Clocks differ and files are reloaded one after the other:
// without it two replicas could contradict each other without end.
func (r *record) patience() time.Duration { return min(max(r.rpo/4, shortest), longest) }

// verdict is what must be said of a target.
type verdict int

const (
	silent verdict = iota
	sayAdded
	sayExceeded
	sayMet
)

// judge says what must be said of a target at a moment, and if that is nothing, when to look again.
func (r *record) judge(now int64) (v verdict, next int64) {
	switch {
	case r.leaving && r.alarmed():
		return sayMet, now
	case !r.watched:
		return silent, never
	case r.since() == 0, r.good == 0 && r.seen != 0 && r.seen < r.added:
		return sayAdded, now
	}
	// Without an rpo nothing can exceed it, also not what did before the rpo was taken away.
	deadline := int64(never)
	if r.rpo > 0 {
		deadline = r.since() + int64(r.rpo)
	}
	late := now > deadline
	switch {
	case late && !r.alarmed():
		return sayExceeded, now
	case late:
		return silent, never
	case !r.alarmed():
		return silent, min(deadline, never-1) + 1
	case r.rpo > 0 && !r.sure:
		// Another replica has had an answer that this one still waits for.
		return silent, never
	}
	return sayMet, now
}

// book are the records of all targets, and which of them is due next.
type book struct {
	records map[string]*record
	queue   queue
}

func newBook() *book { return &book{records: map[string]*record{}} }

// record finds a target's record or begins one.
func (b *book) record(name string) *record {
	r, ok := b.records[name]
	if !ok {
		r = &record{name: strings.Clone(name), place: -1}
		b.records[r.name] = r
	}
	return r
}

// plan sets when a record is judged next.
func (b *book) plan(r *record, due int64) {
	r.due = due
	switch {
	case due == never && r.place >= 0:
		heap.Remove(&b.queue, int(r.place))
	case due == never:
	case r.place >= 0:
		heap.Fix(&b.queue, int(r.place))
	default:
		heap.Push(&b.queue, r)
	}
}

// next is the record that is due first; nil when none ever is.
func (b *book) next() *record {
	if len(b.queue) == 0 {
		return nil
	}
	return b.queue[0]
}

// queue is a heap of records by when they are due.
type queue []*record

func (q queue) Len() int           { return len(q) }
func (q queue) Less(i, j int) bool { return q[i].due < q[j].due }
func (q queue) Swap(i, j int) {
	q[i], q[j] = q[j], q[i]
	q[i].place, q[j].place = int32(i), int32(j) //nolint:gosec // fewer than two thousand million targets
}

// Push implements heap.Interface.
func (q *queue) Push(x any) {
	r, _ := x.(*record)      // the queue holds records only
	r.place = int32(q.Len()) //nolint:gosec // fewer than two thousand million targets
	*q = append(*q, r)
}

// Pop implements heap.Interface.
func (q *queue) Pop() any {
	last := len(*q) - 1
	r := (*q)[last]
	(*q)[last] = nil
	*q = (*q)[:last]
	r.place = -1
	return r
}
