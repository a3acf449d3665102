// Package timetable knows which schedule is due next. It is pure: it asks no clock and does no I/O.
package timetable

import (
	"container/heap"
	"time"

	"github.com/robfig/cron/v3"
)

// maxPassed bounds how many passed ticks one look walks over: a schedule of every second, a week behind.
const maxPassed = 1_000_000

// Entry is one schedule, under a key of the caller's.
type Entry[K any] struct {
	Key      K
	Schedule cron.Schedule
	// Next is the earliest tick that was not decided yet; zero when the schedule has ended.
	Next time.Time
}

// Due is what an entry owes at a moment.
type Due struct {
	// Tick is the newest tick at or before the moment.
	Tick time.Time
	// Passed counts the ticks before it that were not decided either; From is the oldest of them.
	Passed int64
	From   time.Time
}

// Due looks for ticks at or before now. ok is false when there is none.
func (e *Entry[K]) Due(now time.Time) (due Due, ok bool) {
	if e.Next.IsZero() || e.Next.After(now) {
		return Due{}, false
	}
	due = Due{Tick: e.Next, From: e.Next}
	for range maxPassed {
		next := e.Schedule.Next(due.Tick)
		if next.IsZero() || next.After(now) {
			break
		}
		due.Tick = next
		due.Passed++
	}
	return due, true
}

// Decided moves the entry behind a tick.
func (e *Entry[K]) Decided(tick time.Time) { e.Next = e.Schedule.Next(tick) }

// Table orders entries by their next tick. The zero value is an empty table. It is not safe for concurrent use.
type Table[K any] struct{ h entryHeap[K] }

// Add puts an entry in, or back in after its Next changed.
func (t *Table[K]) Add(e *Entry[K]) { heap.Push(&t.h, e) }

// Len is the number of entries.
func (t *Table[K]) Len() int { return len(t.h) }

// Next is the earliest tick of all entries; ok is false when none has one.
func (t *Table[K]) Next() (at time.Time, ok bool) {
	if len(t.h) == 0 || t.h[0].Next.IsZero() {
		return time.Time{}, false
	}
	return t.h[0].Next, true
}

// PopDue takes out the entries that are due at a moment, earliest first.
func (t *Table[K]) PopDue(now time.Time) []*Entry[K] {
	var due []*Entry[K]
	for len(t.h) > 0 && !t.h[0].Next.IsZero() && !t.h[0].Next.After(now) {
		e, _ := heap.Pop(&t.h).(*Entry[K]) // the heap holds entries only
		due = append(due, e)
	}
	return due
}

// entryHeap implements heap.Interface. Entries that have ended come last.
type entryHeap[K any] []*Entry[K]

func (h entryHeap[K]) Len() int { return len(h) }

func (h entryHeap[K]) Less(i, j int) bool {
	if h[i].Next.IsZero() || h[j].Next.IsZero() {
		return !h[i].Next.IsZero()
	}
	return h[i].Next.Before(h[j].Next)
}

func (h entryHeap[K]) Swap(i, j int) {
	h[i], h[j] = h[j], h[i]
}

func (h *entryHeap[K]) Push(x any) {
	e, _ := x.(*Entry[K]) // only Add pushes
	*h = append(*h, e)
}

func (h *entryHeap[K]) Pop() any {
	old := *h
	e := old[len(old)-1]
	old[len(old)-1] = nil
	*h = old[:len(old)-1]
	return e
}
