// Package rpo watches how old each target's newest good snapshot is. It says so when that exceeds the target's rpo, even
// when nothing ran at all, and says so again when a good snapshot is there.
//
// It follows the audit log and keeps a few numbers of each target; a queue says whose rpo ends next, and until then there is
// nothing to do. Nothing is judged before all that the log holds has been seen. There is no leader: every replica judges, and
// an event's id follows from its cause, so that the same judgement is stored once. What the audit log calls exceeded or met
// is the state; a replica that sees it otherwise waits a while before it says so.
//
// A log that knows of no snapshot may be a new target's, or that of a NATS that lost its data. A worker is asked what the
// bucket knows; until one has answered the target counts from when it was first seen, and nothing is called met.
package rpo

import (
	"context"
	"fmt"
	"log/slog"
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"go.opentelemetry.io/otel/attribute"
	"golang.org/x/sync/errgroup"
	"google.golang.org/protobuf/types/known/timestamppb"

	"github.com/lifeboat-fleet/lifeboat/fleet/bus"
	"github.com/lifeboat-fleet/lifeboat/fleet/config"
	"github.com/lifeboat-fleet/lifeboat/fleet/tracing"
	lifeboatv1 "github.com/lifeboat-fleet/lifeboat/proto/lifeboat/v1"
)

const (
	// Bounds of a target's patience.
	shortest = time.Second
	longest  = 2 * time.Minute
	// The wall clock is looked at this often at least: a timer does not notice a clock that was set or a machine that slept.
	maxSleep = 30 * time.Second
	// How long a stream that was made anew is listened to before anything is said into it.
	settle = 5 * time.Second
	// Delay after events that could not be stored, or a stream that could not be followed.
	retryAfter = time.Second
	// How many events are stored at once, and the pause between two such batches: ticks come first.
	batch      = 256
	batchPause = 50 * time.Millisecond
)

// Bus is what the watch needs of the bus.
type Bus interface {
	Follow(ctx context.Context, f bus.Follower) error
	// PublishAll returns only when all of them are stored. After an error some may be; their ids make a second time harmless.
	PublishAll(ctx context.Context, all []bus.Outgoing) error
	// AskHistory asks a worker what the bucket knows of a target; errors.Is(err, bus.ErrNoWorker) when none is there.
	AskHistory(ctx context.Context, target string) (*lifeboatv1.History, error)
	Actor() string
}

// Options of a watch.
type Options struct {
	Bus    Bus
	Config func() *config.Config
	// Changed gets a value after the configuration changed. It may be nil: a change is then noticed within half a minute.
	Changed    <-chan struct{}
	Logger     *slog.Logger
	Registerer prometheus.Registerer
	Now        func() time.Time
}

// Watch is the RPO clock. What it knows is in the audit log and the bucket, so any number of replicas come to the same result.
type Watch struct {
	Options
	// kick ends the loop's sleep, ask the asker's.
	kick, ask chan struct{}
	descs     descs

	mu       sync.Mutex
	book     *book
	config   *config.Config
	caughtUp bool
	// wake is when the loop looks next, seen what it looked at last.
	wake, seen int64
}

// New returns a watch.
func New(o Options) *Watch {
	w := &Watch{Options: o, kick: make(chan struct{}, 1), ask: make(chan struct{}, 1), book: newBook(), descs: newDescs()}
	o.Registerer.MustRegister(w)
	return w
}

// Run watches until the context ends.
func (w *Watch) Run(ctx context.Context) error {
	var g errgroup.Group
	g.Go(func() error { return w.follow(ctx) })
	g.Go(func() error { return w.askAll(ctx) })
	g.Go(func() error {
		for ctx.Err() == nil {
			w.sleep(ctx, w.round(ctx))
		}
		return nil
	})
	return g.Wait()
}

func (w *Watch) sleep(ctx context.Context, d time.Duration) {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-ctx.Done():
	case <-w.Changed:
	case <-w.kick:
	case <-t.C:
	}
}

// now is the wall clock alone: an age is about it.
func (w *Watch) now() int64 { return w.Now().UnixNano() }

// round says everything that is due and returns how long nothing more will be.
func (w *Watch) round(ctx context.Context) time.Duration {
	for {
		due, sleep := w.due(ctx)
		if len(due) == 0 {
			return sleep
		}
		err := w.Bus.PublishAll(ctx, due)
		switch {
		case err == nil && len(due) == batch:
			return batchPause
		case err == nil:
			continue
		}
		if ctx.Err() == nil {
			w.Logger.WarnContext(ctx, "could not record how old the newest snapshots are, trying again", slog.Any("err", err))
		}
		w.again(due)
		return retryAfter
	}
}

// due are the next events to store; when there are none, how long to sleep.
func (w *Watch) due(ctx context.Context) (events []bus.Outgoing, sleep time.Duration) {
	w.mu.Lock()
	defer w.mu.Unlock()
	now := w.now()
	w.load(now)
	if now < w.seen {
		// The clock was set back: what it has said before may not hold.
		w.planAll(now)
	}
	w.seen = now
	sleep = maxSleep
	for r := w.book.next(); r != nil && w.caughtUp; r = w.book.next() {
		if r.due > now || len(events) == batch {
			sleep = min(sleep, time.Duration(max(r.due-now, 0)))
			break
		}
		v, next := r.judge(now)
		if v != silent {
			events = append(events, w.event(ctx, r, v, now))
			// The audit log's echo plans anew, and comes long before.
			next = now + int64(maxSleep)
		} else {
			r.leaving = false
		}
		w.book.plan(r, next)
	}
	w.wake = now + int64(sleep)
	return events, sleep
}

// again makes targets due whose events could not be stored.
func (w *Watch) again(events []bus.Outgoing) {
	w.mu.Lock()
	defer w.mu.Unlock()
	due := w.now() + int64(retryAfter)
	for _, o := range events {
		if e, ok := o.Message.(*lifeboatv1.Event); ok {
			w.book.plan(w.book.record(e.GetTarget()), due)
		}
	}
}

// load makes the records follow the configuration.
func (w *Watch) load(now int64) {
	cfg := w.Config()
	if cfg == w.config {
		return
	}
	// A target that was never in the configuration of this process is somebody else's.
	for _, r := range w.book.records {
		r.leaving = r.leaving || r.watched
		r.watched = false
	}
	for _, t := range cfg.Targets {
		r := w.book.record(t.Name)
		r.rpo, r.watched, r.leaving = t.RPO, true, false
	}
	w.config = cfg
	w.planAll(now)
	w.wakeAsker()
}

// planAll judges every target at a moment.
func (w *Watch) planAll(due int64) {
	for _, r := range w.book.records {
		switch {
		case r.watched:
			w.book.plan(r, due)
		case r.leaving:
			// What was said of it just now is still on its way back.
			w.book.plan(r, due+int64(shortest))
		default:
			w.book.plan(r, never)
		}
	}
}

// schedule plans a record after something was learned of it, and wakes the loop when that is due before it would look.
func (w *Watch) schedule(r *record, contradict time.Duration) {
	if !w.caughtUp {
		return // all are planned then
	}
	now := w.now()
	v, next := r.judge(now)
	if v != silent {
		next = now + int64(contradict)
	}
	if r.leaving && v == silent {
		next = now + int64(shortest)
	}
	w.book.plan(r, next)
	if next < w.wake {
		w.wake = next
		signal(w.kick)
	}
}

func (w *Watch) wakeAsker() { signal(w.ask) }

func signal(c chan struct{}) {
	select {
	case c <- struct{}{}:
	default:
	}
}

// event says a verdict. Replicas that see the same thing make an event with the same id.
func (w *Watch) event(ctx context.Context, r *record, v verdict, now int64) bus.Outgoing {
	e := &lifeboatv1.Event{Target: r.name, Actor: w.Bus.Actor(), RequestedBy: "scheduler", Time: timestamppb.New(time.Unix(0, now))}
	if v == sayAdded {
		e.Noun, e.Verb, e.Id = "target", "added", "target.added."+r.name
		e.Message = "the target is watched from here on"
		if r.seen != 0 {
			seen := time.Unix(0, r.seen).UTC().Format(time.RFC3339Nano)
			e.Id += "." + seen
			e.Message = "the target is watched since " + seen + ", which the audit log before this one said"
			e.Attributes = map[string]string{firstSeen: seen}
		}
	} else {
		since := time.Unix(0, r.since()).UTC()
		age := time.Duration(now - r.since())
		e.Noun, e.Verb, e.Message = "rpo", "exceeded", exceededText(r, age, since)
		if v == sayMet {
			e.Verb, e.Message = "met", metText(r, since)
		}
		e.Id = fmt.Sprintf("rpo.%s.%s.%d.%d", e.GetVerb(), r.name, r.since(), max(r.exceeded, r.met))
		e.Attributes = map[string]string{"age_seconds": fmt.Sprintf("%.0f", age.Seconds()), "rpo_seconds": fmt.Sprintf("%.0f", r.rpo.Seconds())}
	}
	// Here the trace of an alert begins that comes of it.
	ctx, span := tracing.Start(ctx, e.GetNoun()+" "+e.GetVerb())
	defer span.End()
	if span.IsRecording() {
		span.SetAttributes(attribute.String("lifeboat.target", r.name))
	}
	e.TraceId = tracing.ID(ctx)
	return bus.Outgoing{
		Subject: bus.EventSubject(e.GetNoun(), e.GetVerb(), r.name), Message: e, ID: e.GetId(), Trace: tracing.Of(ctx),
	}
}

func exceededText(r *record, age time.Duration, since time.Time) string {
	age = age.Round(time.Second)
	if r.good != 0 {
		return fmt.Sprintf("no good snapshot for %s; the newest is of %s and the rpo is %s", age, since.Format(time.RFC3339), r.rpo)
	}
	return fmt.Sprintf("no good snapshot for %s, since the target was first seen at %s; the rpo is %s", age, since.Format(time.RFC3339), r.rpo)
}

func metText(r *record, since time.Time) string {
	switch {
	case r.leaving:
		return "the target was taken out of the configuration"
	case r.rpo == 0:
		return "the target has no rpo any more"
	case r.good == 0:
		return fmt.Sprintf("within the rpo of %s again: the target was first seen at %s", r.rpo, since.Format(time.RFC3339))
	}
	return fmt.Sprintf("within the rpo of %s again: the newest good snapshot is of %s", r.rpo, since.Format(time.RFC3339))
}
