// Package worker does the work of a job:
//
//	tick -> job -> source -> pipeline -> store -> manifest -> event -> alert -> chat
//
// A snapshot's life, and what survives a crash after each step:
//
//  1. The job is delivered. A crash: it is delivered again after AckWait.
//  2. The claim of the target is taken; whoever had it before can no longer commit.
//  3. The source is opened, encoded and uploaded in one stream. A crash: no object, or one without a manifest, which is
//     no snapshot; the next attempt replaces it, if it is still what the attempt saw when it began. A source that has not
//     changed is not stored again: the newest snapshot's data stands for it.
//  4. The object is read back and compared with what the source sent.
//  5. The commit is announced on the claim, which fails if another delivery has taken it.
//  6. The manifest is written, if none exists: the snapshot exists. A crash: the next attempt finds the manifest.
//  7. The event is published, under an id that makes a second one the same event.
//  8. The snapshot is copied to the second bucket, if there is one, and with it whatever that lacks. A crash or a failure: the
//     snapshot stands, and the next attempt or the next snapshot copies it.
//  9. The job is acknowledged; its subject is free for the next one.
package worker

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"time"

	"filippo.io/age"
	"github.com/prometheus/client_golang/prometheus"
	"google.golang.org/protobuf/proto"

	"github.com/lifeboat-fleet/lifeboat/fleet/bus"
	"github.com/lifeboat-fleet/lifeboat/fleet/config"
	lifeboatv1 "github.com/lifeboat-fleet/lifeboat/proto/lifeboat/v1"
	"github.com/lifeboat-fleet/lifeboat/services/backup/internal/catalog"
	"github.com/lifeboat-fleet/lifeboat/services/backup/internal/source"
	"github.com/lifeboat-fleet/lifeboat/services/backup/internal/store"
)

// Source opens one consistent stream of a target.
type Source interface {
	Open(ctx context.Context) (source.Stream, error)
	// Format is the stock tool's name for the stream's format: "db", "json" or "tar"; "snap" for a raft snapshot.
	Format() string
}

// Objects is what the worker needs of a store besides the catalog.
type Objects interface {
	Put(ctx context.Context, key string, r io.Reader, sizeHint int64, c store.Condition) (store.Object, error)
	Get(ctx context.Context, key string) (io.ReadCloser, store.Object, error)
	GetRange(ctx context.Context, key string, offset, length int64, etag string) (io.ReadCloser, store.Object, error)
	Head(ctx context.Context, key string) (store.Object, error)
}

// Bus is what the worker needs of the bus.
type Bus interface {
	Claim(ctx context.Context, w config.Work, target string, m *bus.Message) (*bus.Claim, error)
	Emit(ctx context.Context, e *lifeboatv1.Event) error
	Last(ctx context.Context, stream, subject string, into proto.Message) (seq uint64, at time.Time, err error)
}

// Options of a worker.
type Options struct {
	// Config is the configuration in force.
	Config func() *config.Config
	// NewSource makes the sources of a target: first the one of its data, then those of further parts.
	NewSource func(config.Target) ([]Source, error)
	Objects   Objects
	Catalog   *catalog.Catalog
	// Capabilities is what the store was seen to do. It fails when the store is not safe enough to be used.
	Capabilities func(context.Context) (store.Capabilities, error)
	// Copy is the second bucket; nil when there is none.
	Copy *Copy
	// Remover deletes from the store; only prune workers have the right to.
	Remover    store.Remover
	Bus        Bus
	Logger     *slog.Logger
	Registerer prometheus.Registerer
	// ScratchDir is where drills restore; a folder of its own in it per drill.
	ScratchDir string
	// Drill is what drills need of the machine.
	Drill   DrillOptions
	Version string
	Clock   func() time.Time
	// PaceWindow is over how long the pace of a read is judged; a minute when zero.
	PaceWindow time.Duration
}

// Worker handles jobs. It is safe for concurrent use.
type Worker struct {
	Options
	metrics   *metrics
	collector collector
}

// New returns a worker.
func New(o Options) *Worker { return &Worker{Options: o, metrics: newMetrics(o.Registerer)} }

// job is a decoded message.
type job struct {
	*lifeboatv1.Job
	id     string
	target config.Target
	work   config.Work
	msg    *bus.Message
}

// requestedBy is who asked, for the record.
func (j job) requestedBy() string {
	if by := j.GetRequestedBy(); by != "" {
		return by
	}
	return "by hand"
}

// Handler returns the bus handler of one kind of work.
func (w *Worker) Handler(work config.Work) bus.Handler {
	do := map[config.Work]func(context.Context, job) error{
		config.WorkSnapshot: w.snapshot, config.WorkVerify: w.verify, config.WorkDrill: w.drill, config.WorkPrune: w.prune,
	}[work]
	return func(ctx context.Context, m *bus.Message) error {
		j, err := w.decode(m)
		if err != nil {
			return err
		}
		return do(ctx, j)
	}
}

// Reasons of jobs that no retry can mend; OnDead tells them from work that failed.
const (
	reasonUnknownTarget = "unknown_target"
	reasonBadPayload    = "bad_payload"
)

// rejectedError marks a job that was never begun.
type rejectedError struct{ error }

func (e *rejectedError) Unwrap() error { return e.error }

func (w *Worker) decode(m *bus.Message) (job, error) {
	work, name, ok := bus.ParseJobSubject(m.Subject)
	target, known := w.Config().Target(name)
	if !ok || !known {
		return job{}, bus.Terminal(reasonUnknownTarget, &rejectedError{fmt.Errorf("no target is named %q in this worker's configuration", name)})
	}
	j := job{Job: &lifeboatv1.Job{}, id: m.ID(), target: target, work: work, msg: m}
	if err := bus.DecodeStrict(m.Data, j.Job); err != nil {
		return job{}, bus.Terminal(reasonBadPayload, &rejectedError{fmt.Errorf("the payload is not a job: %w", err)})
	}
	return j, nil
}

// OnDead records a job that ended as a dead letter: rejected, or failed after the last attempt.
func (w *Worker) OnDead(ctx context.Context, m *bus.Message, failed error) error {
	if errors.Is(failed, errUncertain) {
		if told, err := w.arrived(ctx, m); told || err != nil {
			return err
		}
	}
	work, target, _ := bus.ParseJobSubject(m.Subject)
	e := &lifeboatv1.Event{
		Id: fmt.Sprintf("%s.failed.%s", work, m.ID()), Noun: string(work), Verb: "failed", Target: target, JobId: m.ID(),
		Message: failed.Error(), Attributes: map[string]string{"attempts": fmt.Sprint(m.Attempt)},
	}
	if _, ok := errors.AsType[*rejectedError](failed); ok {
		e.Id, e.Noun, e.Verb = "job.rejected."+m.ID(), "job", "rejected"
		if !config.ValidName(target) {
			e.Target = ""
		}
	} else if _, ok := errors.AsType[*copyError](failed); ok {
		e.Id, e.Noun = "copy.failed."+m.ID(), "copy"
		w.metrics.ended.WithLabelValues("copy", target, "failed").Inc()
	} else {
		if work == config.WorkDrill && asksForEscrow(m) {
			e.Verb = drillVerb(false, true)
			e.Id = fmt.Sprintf("%s.%s.%s", work, e.GetVerb(), m.ID())
		}
		w.metrics.ended.WithLabelValues(string(work), target, "failed").Inc()
	}
	return w.Bus.Emit(ctx, e)
}

// emit publishes an event that tells of something already done: when it cannot be published, the work stands, and the
// log is the only record left.
func (w *Worker) emit(ctx context.Context, e *lifeboatv1.Event) {
	if err := w.Bus.Emit(ctx, e); err != nil {
		w.Logger.ErrorContext(ctx, "could not record an event", slog.String("event", e.GetNoun()+"."+e.GetVerb()),
			slog.String("target", e.GetTarget()), slog.String("message", e.GetMessage()), slog.Any("err", err))
	}
}

// identities reads the age identity, if one is configured.
func (w *Worker) identities() ([]age.Identity, error) { return Identities(w.Config().Encryption) }
