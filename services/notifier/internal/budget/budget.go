package budget

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/timestamppb"

	"github.com/lifeboat-fleet/lifeboat/fleet/bus"
	lifeboatv1 "github.com/lifeboat-fleet/lifeboat/proto/lifeboat/v1"
)

const (
	// tries is how often a write is decided again that others were faster than.
	tries = 40
	// pause between two tries grows with each, up to this.
	longestPause = 20 * time.Millisecond
	// late is how long a request may take and still count from its beginning.
	late = time.Second
)

// Store is what this package needs of the bus. PutState returns bus.ErrConflict when the subject's sequence is not the expected one.
type Store interface {
	Last(ctx context.Context, stream, subject string, into proto.Message) (seq uint64, at time.Time, err error)
	PutState(ctx context.Context, s bus.State) (seq uint64, err error)
}

// Options of Budgets.
type Options struct {
	Store Store
	// Now is the clock; time.Now when nil.
	Now        func() time.Time
	Logger     *slog.Logger
	Registerer prometheus.Registerer
}

// Budgets of all robots and channels. It is safe for concurrent use.
type Budgets struct {
	o      Options
	mu     sync.Mutex
	robots map[string]*robot
	shown  map[string]Shown
}

// robot is what this process knows of one key. Whoever holds turn may look and write.
type robot struct {
	turn    chan struct{}
	subject string
	// known says that state is what stood in the stream at seq. Somebody else may have written since.
	known bool
	seq   uint64
	state *lifeboatv1.Budget
	// longest is the longest window of the rules that were asked for: receivers may share a robot with different limits.
	longest time.Duration
}

// New makes them, and registers the metric lifeboat_notify_budget_left.
func New(o Options) *Budgets {
	if o.Now == nil {
		o.Now = time.Now
	}
	b := &Budgets{o: o, robots: map[string]*robot{}}
	o.Registerer.MustRegister(&collector{b})
	return b
}

// Take counts one message that is about to be sent. It returns 0 when it is counted and must be sent now, and else how long to wait
// before it is worth asking again; nothing is counted then. Messages that are not critical leave the rule's reserve free. After an
// error nothing may be sent, though it may have been counted.
func (b *Budgets) Take(ctx context.Context, key string, rule Rule, critical bool) (time.Duration, error) {
	r, err := b.enter(ctx, key)
	if err != nil {
		return 0, err
	}
	defer r.leave()
	if rule.unlimited() {
		// No traffic; but a pause that this process was told of holds.
		return wait(r.state, rule, critical, b.o.Now()), nil
	}
	r.longest = max(r.longest, rule.Per)
	var until time.Duration
	var counted time.Time
	// That there is no room is worth a reading: somebody may have made some.
	cached := r.known && wait(r.state, rule, critical, b.o.Now()) == 0
	err = b.change(ctx, r, cached, func(s *lifeboatv1.Budget) {
		counted = b.o.Now()
		if until = wait(s, rule, critical, counted); until == 0 {
			count(s, r.longest, counted)
		}
	})
	if errors.Is(err, bus.ErrConflict) {
		// So many others send at once that there will be less room afterwards, and it is asked for again.
		return longestPause + rand.N(longestPause), nil //nolint:gosec // no secret
	}
	if err != nil {
		return 0, fmt.Errorf("counting a message in the budget %s: %w", key, err)
	}
	if until == 0 {
		err = b.late(ctx, r, counted, b.o.Now())
	}
	return until, err
}

// Late says when a request of a message that Take had counted began and ended. One that took longer than a second counts
// from its end: it may have arrived only then.
func (b *Budgets) Late(ctx context.Context, key string, rule Rule, begun, ended time.Time) error {
	if rule.unlimited() || ended.Sub(begun) <= late {
		return nil
	}
	r, err := b.enter(ctx, key)
	if err != nil {
		return err
	}
	defer r.leave()
	r.longest = max(r.longest, rule.Per)
	return b.late(ctx, r, begun, ended)
}

func (b *Budgets) late(ctx context.Context, r *robot, begun, ended time.Time) error {
	if ended.Sub(begun) <= late {
		return nil
	}
	err := b.change(ctx, r, r.known, func(s *lifeboatv1.Budget) { move(s, r.longest, begun, ended) })
	if err != nil {
		return fmt.Errorf("counting a message that took %s: %w", ended.Sub(begun).Round(time.Millisecond), err)
	}
	return nil
}

// Pause lets nobody send anything before a time, and says why in words for people. A longer pause than that stays.
func (b *Budgets) Pause(ctx context.Context, key string, until time.Time, why string) error {
	return b.note(ctx, key, "pausing", func(s *lifeboatv1.Budget) {
		if s.GetPausedUntil() == nil || s.GetPausedUntil().AsTime().Before(until) {
			s.PausedUntil = timestamppb.New(until)
		}
		trouble(s, why, b.o.Now())
	})
}

// Trouble notes why deliveries come late, in words for people. Since when stays that of the first time until Well.
func (b *Budgets) Trouble(ctx context.Context, key, why string) error {
	return b.note(ctx, key, "noting the trouble of", func(s *lifeboatv1.Budget) { trouble(s, why, b.o.Now()) })
}

// note changes a budget, on what stands in the stream now: what this process knows may be old, and say that there is nothing to do.
func (b *Budgets) note(ctx context.Context, key, what string, change func(*lifeboatv1.Budget)) error {
	r, err := b.enter(ctx, key)
	if err != nil {
		return err
	}
	defer r.leave()
	if err := b.change(ctx, r, false, change); err != nil {
		return fmt.Errorf("%s the budget %s: %w", what, key, err)
	}
	return nil
}

// Well notes that a message was sent, so that there is no trouble. It costs nothing while there was none.
func (b *Budgets) Well(ctx context.Context, key string) error {
	r, err := b.enter(ctx, key)
	if err != nil {
		return err
	}
	defer r.leave()
	if r.known && r.state.GetTrouble() == "" && r.state.GetTroubleSince() == nil {
		return nil
	}
	err = b.change(ctx, r, r.known, func(s *lifeboatv1.Budget) {
		s.Trouble, s.TroubleSince = "", nil
		if s.GetPausedUntil() != nil && paused(s, b.o.Now()) == 0 {
			s.PausedUntil = nil
		}
	})
	if err != nil {
		return fmt.Errorf("noting that all is well in the budget %s: %w", key, err)
	}
	return nil
}

// State reads a budget.
func (b *Budgets) State(ctx context.Context, key string, rule Rule) (State, error) {
	r, err := b.enter(ctx, key)
	if err != nil {
		return State{}, err
	}
	defer r.leave()
	if err := b.read(ctx, r); err != nil {
		return State{}, fmt.Errorf("reading the budget %s: %w", key, err)
	}
	return stateOf(r.state, rule, b.o.Now()), nil
}

// enter waits for this process's turn at a key: its own goroutines need not race each other at the server.
func (b *Budgets) enter(ctx context.Context, key string) (*robot, error) {
	b.mu.Lock()
	r := b.robots[key]
	if r == nil {
		r = &robot{turn: make(chan struct{}, 1), subject: bus.BudgetSubject(key), state: &lifeboatv1.Budget{}}
		b.robots[key] = r
	}
	b.mu.Unlock()
	select {
	case r.turn <- struct{}{}:
		return r, nil
	case <-ctx.Done():
		return nil, fmt.Errorf("waiting for the turn at the budget %s: %w", key, context.Cause(ctx))
	}
}

func (r *robot) leave() { <-r.turn }

func (b *Budgets) read(ctx context.Context, r *robot) error {
	s := &lifeboatv1.Budget{}
	seq, _, err := b.o.Store.Last(ctx, bus.StreamAlerts, r.subject, s)
	if err != nil {
		return err
	}
	if r.known && seq != 0 && seq < r.seq {
		return nil // a replica that lags behind answered
	}
	r.known, r.seq, r.state = true, seq, s
	return nil
}

// change writes a budget that do has changed, unless it did not change it. cached says that what this process knows may do for the
// first try. It returns bus.ErrConflict when others were faster each time.
func (b *Budgets) change(ctx context.Context, r *robot, cached bool, do func(*lifeboatv1.Budget)) error {
	for try := 1; ; try++ {
		if !cached {
			if err := b.read(ctx, r); err != nil {
				return err
			}
		}
		next := proto.CloneOf(r.state)
		if do(next); !changed(r.state, next) {
			return nil
		}
		seq, err := b.o.Store.PutState(ctx, bus.State{Outgoing: bus.Outgoing{Subject: r.subject, Message: next}, Expect: r.seq})
		if err == nil {
			r.known, r.seq, r.state = true, seq, next
			return nil
		}
		if !errors.Is(err, bus.ErrConflict) {
			r.known = false // it may have been stored, though the answer was lost
			return err
		}
		cached = false
		if try == tries || !rest(ctx, rand.N(min(time.Duration(try)*time.Millisecond, longestPause))) { //nolint:gosec // no secret
			r.known = false
			return err
		}
	}
}

// rest waits, and says whether the context has not ended.
func rest(ctx context.Context, d time.Duration) bool {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
		return true
	case <-ctx.Done():
		return false
	}
}
