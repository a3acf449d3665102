// Package timetable knows which schedule is to be looked at next. It is pure: it asks no clock and does no I/O.
package timetable

import (
	"container/heap"
	"time"

	"github.com/robfig/cron/v3"
)

// Entry is one schedule, with a value of the caller's.
type Entry[V any] struct {
	Value    V
	Schedule cron.Schedule
	// Next is the earliest tick that was not decided yet; zero when the schedule has ended.
	Next time.Time
	// At is when the entry is to be looked at: at Next, or at another time because something else is to be done. Zero: never. It
	// must not change while the entry is in a table.
	At time.Time
	// place is where the entry is in its table, from 1; 0 when it is in none.
	place int
}

// Decided moves the entry behind a tick.
func (e *Entry[V]) Decided(tick time.Time) { e.Next = e.Schedule.Next(tick) }

// Table orders entries by when they are to be looked at. The zero value is an empty table. It is not safe for concurrent use.
type Table[V any] struct{ h entryHeap[V] }

// Add puts an entry in that is in no table.
func (t *Table[V]) Add(e *Entry[V]) { heap.Push(&t.h, e) }

// Remove takes an entry out; false when it is not in.
func (t *Table[V]) Remove(e *Entry[V]) bool {
	if e.place == 0 {
		return false
	}
	heap.Remove(&t.h, e.place-1)
	return true
}

// Len is the number of entries.
func (t *Table[V]) Len() int { return len(t.h) }

// Next is the earliest time at which an entry is to be looked at; ok is false when there is none.
func (t *Table[V]) Next() (at time.Time, ok bool) {
	if len(t.h) == 0 || t.h[0].At.IsZero() {
		return time.Time{}, false
	}
	return t.h[0].At, true
}

// Pop takes out the earliest entry, if its time has come.
func (t *Table[V]) Pop(now time.Time) (e *Entry[V], ok bool) {
	at, ok := t.Next()
	if !ok || at.After(now) {
		return nil, false
	}
	e, ok = heap.Pop(&t.h).(*Entry[V])
	return e, ok
}

// entryHeap implements heap.Interface. Entries without a time come last.
type entryHeap[V any] []*Entry[V]

func (h entryHeap[V]) Len() int { return len(h) }

func (h entryHeap[V]) Less(i, j int) bool {
	if h[i].At.IsZero() || h[j].At.IsZero() {
		return !h[i].At.IsZero()
	}
	return h[i].At.Before(h[j].At)
}

func (h entryHeap[V]) Swap(i, j int) {
	h[i], h[j] = h[j], h[i]
	h[i].place, h[j].place = i+1, j+1
}

func (h *entryHeap[V]) Push(x any) {
	e, _ := x.(*Entry[V]) // only Add pushes
	*h = append(*h, e)
	e.place = len(*h)
}

func (h *entryHeap[V]) Pop() any {
	old := *h
	e := old[len(old)-1]
	old[len(old)-1] = nil
	*h = old[:len(old)-1]
	e.place = 0
	return e
}
