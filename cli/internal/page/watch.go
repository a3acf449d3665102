package page

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"strings"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"

	"github.com/lifeboat-fleet/lifeboat/cli/internal/ops"
	"github.com/lifeboat-fleet/lifeboat/fleet/bus"
	"github.com/lifeboat-fleet/lifeboat/fleet/config"
	lifeboatv1 "github.com/lifeboat-fleet/lifeboat/proto/lifeboat/v1"
)

const (
	// How often NATS is asked what waits and runs, while somebody looks and while nobody does.
	lookEvery, idleEvery = time.Second, 5 * time.Second
	// Events come in crowds; what they may have changed is looked at once after each crowd.
	settle = 200 * time.Millisecond
	// How often workers, alerts that wait, and all schedules again are asked for, and how often whether there is a connection.
	crewEvery, waitingEvery, allEvery, linkEvery = 15 * time.Second, 5 * time.Second, time.Minute, 250 * time.Millisecond
	// How long one question may take, and a history.
	askTimeout, historyTimeout = 4 * time.Second, time.Minute
	// How far back deliveries are looked for at the start.
	deliveriesSince = 24 * time.Hour
	// retryAfter is the pause after an audit log that could not be followed.
	retryAfter = 5 * time.Second
	// auditLog is what the page calls the stream of events.
	auditLog = "the audit log"
)

// reader is what the page needs of the bus. All of it reads.
type reader interface {
	Connected() error
	Follow(ctx context.Context, f bus.Follower) error
	History(ctx context.Context, stream string, filters []string, since time.Time, each func(*bus.Message) error) error
	ScanFrom(ctx context.Context, stream, filter string, from uint64, each func(*bus.Message) error) error
	Subjects(ctx context.Context, stream, filter string) (map[string]uint64, error)
	Workers(ctx context.Context) ([]bus.WorkerInfo, error)
}

// watcher keeps the fleet up to date.
type watcher struct {
	bus    reader
	fleet  *fleet
	config func() *config.Config
	log    *slog.Logger
	now    func() time.Time
	// watched says whether somebody looks; changed is called when there may be something to show.
	watched func() bool
	changed func()
	// poke asks for a look out of turn.
	poke chan struct{}

	// Up to where schedules and claims were read, and when all of each was last.
	states, claims uint64
	allAt          time.Time
	crewAt         time.Time
	waitingAt      time.Time
	letters        letterReader
}

// follow hears the audit log until the context ends.
func (w *watcher) follow(ctx context.Context) error {
	for ctx.Err() == nil {
		err := w.bus.Follow(ctx, bus.Follower{
			Stream: bus.StreamEvents, Filters: filters(),
			Message: func(_ context.Context, m *bus.Message) {
				if w.fleet.hear(m) {
					w.nudge()
				}
			},
			Reset: func() { w.fleet.forget(); w.nudge() },
			Interrupted: func(err error) {
				if w.fleet.trouble(auditLog, err) {
					w.changed()
				}
			},
			CaughtUp: func() {
				w.fleet.set(func() bool { w.fleet.caughtUp = true; return true })
				w.nudge()
			},
		})
		if w.fleet.trouble(auditLog, err) {
			w.changed()
		}
		if err != nil {
			w.log.ErrorContext(ctx, "cannot follow the audit log, trying again", slog.Any("err", err))
			pause(ctx, retryAfter)
		}
	}
	return nil
}

// recall reads the deliveries of the last day, once: following gives only the newest of each kind.
func (w *watcher) recall(ctx context.Context) error {
	all := make([]string, 0, len(deliveryEnds()))
	for _, verb := range deliveryEnds() {
		all = append(all, bus.EventSubject("alert", verb, "*"))
	}
	for ctx.Err() == nil {
		asking, cancel := context.WithTimeout(ctx, historyTimeout)
		err := w.bus.History(asking, bus.StreamEvents, all, w.now().Add(-deliveriesSince), func(m *bus.Message) error {
			w.fleet.delivered(m)
			return nil
		})
		cancel()
		if err == nil {
			w.changed()
			return nil
		}
		pause(ctx, retryAfter)
	}
	return nil
}

// nudge asks for a look soon.
func (w *watcher) nudge() {
	select {
	case w.poke <- struct{}{}:
	default:
	}
}

// run asks NATS what it does not tell by itself, until the context ends.
func (w *watcher) run(ctx context.Context) error {
	link := time.NewTicker(linkEvery)
	defer link.Stop()
	next := time.NewTimer(0)
	defer next.Stop()
	at := w.now()
	soon := func() {
		// Not later than it is due already: events that come without end must not put it off without end.
		if s := w.now().Add(settle); s.Before(at) {
			at = s
			next.Reset(settle)
		}
	}
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-link.C:
			if w.link() {
				w.changed()
				soon()
			}
			continue
		case <-w.poke:
			w.changed()
			soon() // what an event has changed elsewhere
			continue
		case <-next.C:
		}
		w.look(ctx)
		every := idleEvery
		if w.watched() {
			every = lookEvery
		}
		at = w.now().Add(every)
		next.Reset(every)
	}
}

// link notes whether there is a connection, and says whether that changed.
func (w *watcher) link() bool {
	err := w.bus.Connected()
	return w.fleet.set(func() bool {
		was := w.fleet.away
		if err == nil {
			w.fleet.away = ""
			return was != ""
		}
		if was == "" {
			w.fleet.awaySince = w.now()
		}
		w.fleet.away = ops.Cut(ops.Clean(err.Error()), maxMessage)
		return was == ""
	})
}

// look asks for everything that it is time for.
func (w *watcher) look(ctx context.Context) {
	if w.bus.Connected() != nil {
		w.changed()
		return
	}
	now := w.now()
	if due(&w.allAt, allEvery, now) {
		w.states, w.claims = 0, 0 // what was missed, and what a NATS that was made anew numbers from the beginning
	}
	err := w.ask(ctx, "what waits and runs", func(ctx context.Context) error { return errors.Join(w.readStates(ctx), w.readJobs(ctx)) })
	if err == nil {
		w.fleet.set(func() bool { w.fleet.answered = w.now(); return false })
	}
	if due(&w.waitingAt, waitingEvery, now) {
		// Here and below: ask puts every error on the page, and the next question is asked all the same.
		_ = w.ask(ctx, "alerts that wait", w.readWaiting)
		_ = w.ask(ctx, "dead letters", func(ctx context.Context) error { return w.letters.read(ctx, w.bus, w.fleet) })
	}
	if due(&w.crewAt, crewEvery, now) {
		_ = w.ask(ctx, "workers", w.readCrew)
	}
	w.changed()
}

// due says whether it is time, and notes that it was.
func due(last *time.Time, every time.Duration, now time.Time) bool {
	if now.Sub(*last) < every && !last.After(now) {
		return false
	}
	*last = now
	return true
}

// ask bounds a question and notes whether it was answered.
func (w *watcher) ask(ctx context.Context, what string, question func(context.Context) error) error {
	asking, cancel := context.WithTimeout(ctx, askTimeout)
	defer cancel()
	err := question(asking)
	if ctx.Err() != nil {
		return err
	}
	if errors.Is(err, jetstream.ErrStreamNotFound) || errors.Is(err, nats.ErrNoResponders) {
		err = fmt.Errorf("%w; start lifeboat-scheduler, which makes the streams", err)
	}
	if w.fleet.trouble(what, err) && err != nil {
		w.log.WarnContext(ctx, "could not read from NATS", slog.String("what", what), slog.Any("err", err))
	}
	return err
}

// readStates reads the schedules' states and the claims that have changed: each change has a new place in the stream.
func (w *watcher) readStates(ctx context.Context) error {
	from := w.states
	err := w.bus.ScanFrom(ctx, bus.StreamJobs, "lifeboat.state.schedule.*.*", from+1, func(m *bus.Message) error {
		w.states = max(w.states, m.Seq)
		return w.fleet.decided(m)
	})
	if err != nil {
		w.states = from
		return err
	}
	from = w.claims
	changed := map[string]*lifeboatv1.ClaimState{}
	err = w.bus.ScanFrom(ctx, bus.StreamJobs, "lifeboat.state.claim.*.*", from+1, func(m *bus.Message) error {
		w.claims = max(w.claims, m.Seq)
		c := &lifeboatv1.ClaimState{}
		if bus.Decode(m.Data, c) == nil { // one that nobody understands says nothing
			changed[m.Subject] = c
		}
		return nil
	})
	if err != nil {
		w.claims = from
		return err
	}
	w.fleet.set(func() bool {
		if from == 0 {
			w.fleet.claims = changed
		} else {
			maps.Copy(w.fleet.claims, changed)
		}
		return len(changed) > 0 && from > 0
	})
	return nil
}

// readJobs reads what waits and runs.
func (w *watcher) readJobs(ctx context.Context) error {
	var messages []*bus.Message
	err := w.bus.ScanFrom(ctx, bus.StreamJobs, "lifeboat.job.*.*", 1, func(m *bus.Message) error {
		messages = append(messages, m)
		return nil
	})
	if err != nil {
		return err
	}
	cfg := w.config()
	w.fleet.set(func() bool {
		jobs := make([]ops.Job, 0, len(messages))
		for _, m := range messages {
			work, target, _ := bus.ParseJobSubject(m.Subject)
			t, _ := cfg.Target(target)
			jobs = append(jobs, ops.NewJob(m, w.fleet.claims[bus.ClaimSubject(target, work)], t.Zone, w.fleet.crew))
		}
		changed := len(jobs) != len(w.fleet.jobs)
		for i := range jobs {
			changed = changed || jobs[i].ID != w.fleet.jobs[i].ID || jobs[i].State != w.fleet.jobs[i].State
		}
		w.fleet.jobs = jobs
		return changed
	})
	return nil
}

func (w *watcher) readCrew(ctx context.Context) error {
	asked := w.now()
	workers, err := w.bus.Workers(ctx)
	w.fleet.set(func() bool {
		changed := len(workers) != len(w.fleet.crew.Workers()) || w.fleet.crew.Known() != (err == nil)
		w.fleet.crew, w.fleet.crewAt = ops.NewCrew(workers, err), asked
		return changed
	})
	return err
}

// waiting counts alerts that have not been told yet.
type waiting struct {
	// unrouted are webhooks that no notifier has taken, since when they were first seen.
	unrouted      uint64
	unroutedSince time.Time
	receivers     map[string]uint64
	// since is from when on what waits for a receiver did not become less.
	since map[string]time.Time
}

func (w *watcher) readWaiting(ctx context.Context) error {
	unrouted, err := w.bus.Subjects(ctx, bus.StreamAlerts, bus.SubjectReceived)
	if err != nil {
		return err
	}
	deliveries, err := w.bus.Subjects(ctx, bus.StreamAlerts, bus.DeliverySubject(">"))
	if err != nil {
		return err
	}
	now := waiting{unrouted: unrouted[bus.SubjectReceived], receivers: map[string]uint64{}}
	for subject, n := range deliveries {
		name := strings.TrimSuffix(strings.TrimPrefix(subject, bus.DeliverySubject("")), ".critical")
		now.receivers[name] += n
	}
	w.fleet.set(func() bool {
		old := w.fleet.waiting
		if now.unrouted > 0 {
			now.unroutedSince = old.unroutedSince
			if now.unroutedSince.IsZero() {
				now.unroutedSince = w.now()
			}
		}
		now.since = make(map[string]time.Time, len(now.receivers))
		for name, n := range now.receivers {
			if now.since[name] = old.since[name]; now.since[name].IsZero() || n < old.receivers[name] {
				now.since[name] = w.now()
			}
		}
		w.fleet.waiting = now
		return old.unrouted != now.unrouted || !maps.Equal(old.receivers, now.receivers)
	})
	return nil
}

func pause(ctx context.Context, d time.Duration) {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-ctx.Done():
	case <-t.C:
	}
}
