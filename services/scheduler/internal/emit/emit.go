// Package emit turns ticks into jobs.
//
// There is no leader. Every replica keeps the same timetable and tries to decide every tick; the server lets one win. The
// authority over a schedule is one message: its state, the last value of lifeboat.state.schedule.<target>.<schedule>. Whoever
// decides writes it with the sequence that it read, so the one that was faster has decided. All that a decision says stands in
// that one message, and the job that it emits is stored in the same atomic batch, by a stream that refuses a job while one of the
// same subject waits or runs. So three things are one transaction: that this tick was decided, that no other replica decided
// it, and that no job was there. What each outcome means:
//
//	stored            it is decided, once.
//	ErrConflict       somebody else wrote: another replica, or a person who paused the schedule. The state is read, the timetable
//	                  moves behind its tick, and what is still due is decided again.
//	ErrBusy           a job waits or runs: the decision is made anew for that case and written without a job.
//	anything else     nothing is known. The tick stays due and is tried again: had it been stored, the next try ends
//	                  with ErrConflict and finds it decided.
//
// A decision covers all ticks that are due (decide.go). Each of them is emitted, or put into pending because it is to run behind
// another one, or counted in missed with the reason: paused, blackout, overlap, down. The state's tick only grows, and only
// ticks behind it are ever due, so none is decided twice, also when the clock is set back.
//
// The states:
//
//	ANCHOR    ticks count from here.
//	EMITTED   a job is in the stream. pending may hold ticks that follow when it has ended; then each is emitted by a write of
//	          its own that takes it out of pending.
//	QUEUED    nothing was emitted, and pending holds what was due.
//	MISSED    nothing was emitted, and nothing waits.
//	REMOVED   the schedule was taken out of the configuration. A replica that still has it goes on from the state's tick.
//
// Replicas with different configurations. The line, zone and splay in a state say which timetable is in force. A replica whose
// configuration just named another one writes an anchor with its own: the old timetable's ticks up to then are decided in the
// same write (missed, "down"), and the new one's count from then. A replica that finds another one in force without having
// been told anything new leaves the schedule to whoever wrote it, and takes it back by an anchor when that one is overdue. What a
// reload replaced while it was worked on writes nothing after it has read what its successor wrote. So at any time one timetable is
// in force, and each of its ticks is decided.
//
// What survives a crash, after each step:
//
//  1. nothing written       nothing was decided, and any replica does it.
//  2. the state, with job   all is in the stream. Missed ticks are in the state, which does not say "recorded": whoever reads it
//     writes the event, whose id follows from the state, before it writes any other state.
//  3. the event             is written again under the same id.
//  4. "recorded"            nothing is left to do.
//
// When there is no state, the target is new or NATS lost its data. Nobody can tell at once, so the schedule counts from now and
// fires; its anchor is unconfirmed, and keeps saying so in every later state until a worker has answered what the bucket knew
// before it (confirm.go). The ticks between the newest one in the bucket and the anchor are then decided by the catch-up policy.
package emit

import (
	"context"
	"log/slog"
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"google.golang.org/protobuf/proto"

	"github.com/lifeboat-fleet/lifeboat/fleet/bus"
	"github.com/lifeboat-fleet/lifeboat/fleet/config"
	lifeboatv1 "github.com/lifeboat-fleet/lifeboat/proto/lifeboat/v1"
	"github.com/lifeboat-fleet/lifeboat/services/scheduler/internal/timetable"
)

const (
	// The wall clock is looked at this often at least: a timer does not notice a clock that was set or a machine that
	// slept.
	maxSleep = 30 * time.Second
	// How many schedules are worked on at once.
	parallel = 16
	// Delay before what could not be done is tried again.
	retryAfter = time.Second
)

// Bus is what the emitter needs of the bus.
type Bus interface {
	Last(ctx context.Context, stream, subject string, into proto.Message) (seq uint64, at time.Time, err error)
	Scan(ctx context.Context, stream, filter string, each func(*bus.Message) error) error
	PutState(ctx context.Context, s bus.State) (seq uint64, err error)
	PutStateWith(ctx context.Context, s bus.State, with bus.Outgoing) (seq uint64, err error)
	Emit(ctx context.Context, e *lifeboatv1.Event) error
	// AskHistoryBefore asks a worker what the bucket knows of a target from before a moment. errors.Is(err, bus.ErrNoWorker) when
	// none is there.
	AskHistoryBefore(ctx context.Context, target string, before time.Time) (*lifeboatv1.History, error)
}

// Options of an emitter.
type Options struct {
	Bus        Bus
	Config     func() *config.Config
	Changed    <-chan struct{}
	Logger     *slog.Logger
	Registerer prometheus.Registerer
	Now        func() time.Time
	// Loaded is called once, when the states of all schedules have been looked for, so that ticks fire. It may be nil.
	Loaded func()
}

// Emitter emits the ticks of all targets.
type Emitter struct {
	Options
	metrics *metrics
	// wake is told when something is to be done earlier than the clock was set for.
	wake chan struct{}
	// ask is told when there are anchors to confirm.
	ask chan struct{}

	mu    sync.Mutex
	known map[key]*entry
	// table has the entries whose time will come, later those with work that can wait until nothing is due.
	table timetable.Table[*entry]
	later []*entry
	// until is when the clock wakes up.
	until time.Time
	// unconfirmed are the entries to ask workers about, by target.
	unconfirmed map[string]question
	// shown is what the metrics tell of the entries that somebody works on.
	shown map[*entry]shown
}

// New returns an emitter.
func New(o Options) *Emitter {
	e := &Emitter{
		Options: o, metrics: newMetrics(o.Registerer), wake: make(chan struct{}, 1), ask: make(chan struct{}, 1),
		known: map[key]*entry{}, unconfirmed: map[string]question{}, shown: map[*entry]shown{},
	}
	o.Registerer.MustRegister(newCollector(e))
	return e
}

func (e *Emitter) loaded() {
	if e.Loaded != nil {
		e.Loaded()
	}
}

// now is the wall clock alone: schedules are about it.
func (e *Emitter) now() time.Time { return e.Now().Round(0) }

// Run emits ticks until the context ends.
func (e *Emitter) Run(ctx context.Context) error {
	var wg sync.WaitGroup
	defer wg.Wait()
	work := make(chan *entry)
	defer close(work)
	for range parallel {
		wg.Go(func() {
			for en := range work {
				e.work(ctx, en)
			}
		})
	}
	wg.Go(func() { e.confirm(ctx) })
	load, loadAt := true, time.Time{}
	loaded := sync.OnceFunc(e.loaded)
	for ctx.Err() == nil {
		select {
		case <-e.Changed:
			load, loadAt = true, time.Time{}
		default:
		}
		if load && !time.Now().Before(loadAt) {
			load, loadAt = !e.load(ctx), time.Now().Add(retryAfter)
			loaded()
		}
		en, sleep := e.take()
		if en != nil {
			select {
			case work <- en:
			case <-ctx.Done():
			}
			continue
		}
		if load {
			sleep = min(sleep, retryAfter)
		}
		t := time.NewTimer(sleep)
		select {
		case <-ctx.Done():
		case <-e.Changed:
			load, loadAt = true, time.Time{}
		case <-e.wake:
		case <-t.C:
		}
		t.Stop()
	}
	return nil
}

// take finds an entry to work on, or says how long there will be none.
func (e *Emitter) take() (*entry, time.Duration) {
	now := e.now()
	e.mu.Lock()
	defer e.mu.Unlock()
	for {
		due, ok := e.table.Pop(now)
		if !ok {
			break
		}
		if en := due.Value; e.wanted(en) {
			return e.takes(en), 0
		}
	}
	for len(e.later) > 0 {
		en := e.later[0]
		e.later[0], e.later = nil, e.later[1:]
		en.queued = false
		// Whoever works on it does this too.
		if e.wanted(en) && !en.taken {
			e.table.Remove(&en.Entry)
			return e.takes(en), 0
		}
	}
	sleep := maxSleep
	if next, ok := e.table.Next(); ok {
		sleep = min(max(next.Sub(now), 0), maxSleep)
	}
	e.until = now.Add(sleep)
	return nil, sleep
}

func (e *Emitter) takes(en *entry) *entry {
	e.shown[en] = en.show()
	en.taken = true
	if en.told != nil {
		en.known, en.told = en.told, nil
	}
	return en
}

// superseded says that a reload put another entry in the place of this one, or ended its removal.
func (e *Emitter) superseded(en *entry) bool {
	e.mu.Lock()
	defer e.mu.Unlock()
	return !e.wanted(en)
}

// wanted says whether an entry is still what the configuration says: a reload puts others in the place of those that it changed.
func (e *Emitter) wanted(en *entry) bool {
	now, ok := e.known[en.key]
	return now == en || (en.removing && !ok)
}

// put gives an entry back. failed: it is tried again soon.
func (e *Emitter) put(en *entry, failed bool) {
	now := e.now()
	en.schedule(now)
	if failed {
		en.At = now.Add(retryAfter)
	}
	e.mu.Lock()
	defer e.mu.Unlock()
	en.taken = false
	delete(e.shown, en)
	if !e.wanted(en) || en.gone {
		return
	}
	e.table.Add(&en.Entry)
	if en.told != nil || (!failed && en.waitsFor()) {
		e.queue(en)
	}
	e.confirmLater(en)
	if !en.At.IsZero() && en.At.Before(e.until) {
		e.wakeUp()
	}
}

// queue puts work that can wait into the queue. The caller holds the lock.
func (e *Emitter) queue(en *entry) {
	if !en.queued {
		en.queued = true
		e.later = append(e.later, en)
	}
	e.wakeUp()
}

func (e *Emitter) wakeUp() {
	select {
	case e.wake <- struct{}{}:
	default:
	}
}
