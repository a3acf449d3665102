// Package worker does the work of a job:
//
//	tick -> job -> source -> pipeline -> store -> manifest -> event -> alert -> chat
//
// Every kind of work begins and ends alike (handle.go): the job is decoded; one of another zone is handed back; a slot of the
// fleet is waited for; the claim of the target is taken, which says that this delivery and no other may commit; the work is done as
// long as the claim is held; the claim is released, or the job handed back when the service stops.
//
// A snapshot's life, and what survives a crash after each step:
//
//  1. The job is delivered. A crash: it is delivered again after AckWait.
//  2. A slot is taken, if the fleet's concurrency is limited. A crash: it is free again after AckWait.
//  3. The claim of the target is taken, and the attempt counted; whoever had it before can no longer commit. A crash counts as an
//     attempt; a job that was handed back does not.
//  4. The source is opened, encoded and uploaded in one stream. A crash: no object, or one without a manifest, which is
//     no snapshot; the next attempt replaces it, if it is still what the attempt saw when it began. A source that has not
//     changed is not stored again: the newest snapshot's data stands for it.
//  5. The object is read back and compared with what the source sent.
//  6. The commit is announced on the claim, which fails if another delivery has taken it, or somebody cancelled the job.
//  7. The manifest is written, if none exists: the snapshot exists. A crash: the next attempt finds the manifest.
//  8. The event is published, under an id that makes a second one the same event.
//  9. The snapshot is copied to the second bucket, if there is one, and with it whatever that lacks. A crash or a failure: the
//     snapshot stands, and the next attempt or the next snapshot copies it.
//  10. The claim is released, unless it is not known whether the manifest was written: then the announcement stands, and the next
//     delivery waits for what may still arrive.
//  11. The job is acknowledged; its subject is free for the next one.
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
	// Slot waits until fewer than n jobs of the kind run in the whole fleet.
	Slot(ctx context.Context, w config.Work, n int) (*bus.Slot, error)
	Emit(ctx context.Context, e *lifeboatv1.Event) error
	// Actor signs what this process does.
	Actor() string
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
	Remover store.Remover
	Bus     Bus
	// Zone is where this worker is: it takes the jobs of targets of this zone, and those of targets without one.
	Zone string
	// Patience is how old a job may get whose target is not in the configuration, before it is rejected: a worker that has not read
	// the new configuration yet must not reject the first job of a new target. 30 s when zero.
	Patience   time.Duration
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
	drain     *drain
}

// New returns a worker.
func New(o Options) *Worker {
	if o.Patience == 0 {
		o.Patience = defaultPatience
	}
	return &Worker{Options: o, metrics: newMetrics(o.Registerer), drain: newDrain()}
}

// job is a decoded message.
type job struct {
	*lifeboatv1.Job
	id     string
	target config.Target
	work   config.Work
	msg    *bus.Message
	// claim is the right to commit; held while the work is done.
	claim *bus.Claim
}

// requestedBy is who asked, for the record.
func (j job) requestedBy() string {
	if by := j.GetRequestedBy(); by != "" {
		return by
	}
	return "by hand"
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
		err := fmt.Errorf("no target is named %q in this worker's configuration", name)
		if ok && config.ValidName(name) && w.Clock().Sub(m.Stored) < w.Patience {
			return job{}, bus.HandBack(handBackDelay(m.Delivery), err)
		}
		return job{}, bus.Terminal(reasonUnknownTarget, &rejectedError{err})
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
	} else if told, err := w.exists(ctx, m, failed); told {
		return err
	}
	work, target, _ := bus.ParseJobSubject(m.Subject)
	j := job{Job: &lifeboatv1.Job{}, msg: m}
	if err := bus.Decode(m.Data, j.Job); err != nil {
		j.Job = &lifeboatv1.Job{} // that it is none is what it died of
	}
	e := &lifeboatv1.Event{
		Id: fmt.Sprintf("%s.failed.%s", work, m.ID()), Noun: string(work), Verb: "failed", Target: target, JobId: m.ID(),
		RequestedBy: j.requestedBy(), Message: failed.Error(),
		Attributes: j.attributes(map[string]string{"attempts": fmt.Sprint(m.Attempt), "work": string(work)}),
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
		if work == config.WorkDrill && j.GetIdentity() == config.IdentityEscrow {
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
