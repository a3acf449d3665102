package worker

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"math"
	"strings"
	"time"

	"github.com/lifeboat-fleet/lifeboat/fleet/bus"
	"github.com/lifeboat-fleet/lifeboat/fleet/config"
	"github.com/lifeboat-fleet/lifeboat/fleet/tracing"
	lifeboatv1 "github.com/lifeboat-fleet/lifeboat/proto/lifeboat/v1"
	"github.com/lifeboat-fleet/lifeboat/services/backup/internal/catalog"
)

const (
	defaultPatience = 30 * time.Second
	// How soon a job that is not for this worker is offered again: the right one may be the next that is asked, or away for long. The
	// jobs of thousands of targets whose zone has no worker must not keep the others' workers busy with handing them back.
	firstHandBack, maxHandBack = 50 * time.Millisecond, 30 * time.Second
	// How soon a worker looks again whether a job has ended well whose last attempt died, when the bucket did not answer.
	lastLookAgain = time.Minute
	// How often a worker looks whether somebody took or cancelled its job.
	holdInterval = 2 * time.Second
	// How long it may take to let go of a job when the service stops.
	letGoTimeout = 5 * time.Second
	// How often a job that waits for a slot looks whether the limit was changed, or the job cancelled.
	waitInterval = time.Second
)

// Handler returns the bus handler of one kind of work.
func (w *Worker) Handler(work config.Work) bus.Handler {
	do := map[config.Work]func(context.Context, job) error{
		config.WorkSnapshot: w.snapshot, config.WorkVerify: w.verify, config.WorkDrill: w.drill, config.WorkPrune: w.prune,
	}[work]
	return func(ctx context.Context, m *bus.Message) error {
		j, err := w.accept(m)
		if err != nil {
			return err
		}
		w.drain.began(j, time.Now())
		err = w.handle(ctx, j, do)
		w.drain.ended(j, err)
		return err
	}
}

// accept decodes a job, unless it is for another worker.
func (w *Worker) accept(m *bus.Message) (job, error) {
	j, err := w.decode(m)
	if err != nil {
		return job{}, err
	}
	if zone := j.target.Zone; zone != "" && zone != w.Zone {
		return job{}, bus.HandBack(handBackDelay(m.Delivery), fmt.Errorf("%s is of zone %q, and this worker is not", j.target.Name, zone))
	}
	return j, nil
}

// handBackDelay grows with how often a message was delivered, so that a job that no worker can do now costs next to nothing. It grows
// slowly: the server offers a message to whoever has waited longest, so that it passes all other idle workers before it reaches the
// right one. After a minute that are some forty.
func handBackDelay(delivery int64) time.Duration {
	d := float64(firstHandBack) * math.Pow(1.15, float64(min(max(delivery, 1), 60)-1))
	return time.Duration(min(d, float64(maxHandBack)))
}

// handle does a job that this worker may do. See the package comment.
func (w *Worker) handle(ctx context.Context, j job, do func(context.Context, job) error) error {
	var free func()
	slot := func(ctx context.Context) (err error) {
		free, err = w.slot(ctx, j)
		return err
	}
	var err error
	if w.limit(j.work) > 0 {
		err = w.stage(ctx, j, stageSlot, slot)
	} else {
		err = slot(ctx)
	}
	if err != nil {
		return w.notBegun(ctx, j, err)
	}
	defer free()
	// The target may have been changed, moved or taken out while its job waited.
	if j, err = w.accept(j.msg); err != nil {
		return err
	}
	err = w.stage(ctx, j, stageClaim, func(ctx context.Context) (err error) {
		j.claim, err = w.Bus.Claim(ctx, j.work, j.target.Name, j.msg)
		return err
	})
	if errors.Is(err, bus.ErrExhausted) {
		return w.lastLook(ctx, j, err)
	}
	if err == nil && w.drain.isOn() { // it may have waited for a commit of another worker
		w.settle(ctx, j, j.claim.HandBack)
		err = bus.ErrStopping
	}
	if err != nil {
		return w.notBegun(ctx, j, err)
	}
	if j.msg.Attempt > 1 && j.work != config.WorkSnapshot { // a snapshot's worker looks for the manifest
		told, failed := w.told(ctx, j)
		if told || failed != nil {
			w.settle(ctx, j, j.claim.Release)
			return failed
		}
	}
	held, let := j.claim.Hold(ctx, holdInterval)
	defer let()
	working, span := tracing.Start(held, string(j.work))
	err = do(working, j)
	tracing.End(span, err)
	cause := context.Cause(held)
	if err != nil && (errors.Is(cause, bus.ErrCancelled) || errors.Is(cause, bus.ErrClaimLost)) {
		err = fmt.Errorf("%w: %w", cause, err) // whatever failed, failed because of it
	}
	let()
	switch {
	case errors.Is(err, errUncertain):
		// The announcement stands, so that the next delivery waits for what may still arrive.
	case errors.Is(err, bus.ErrCancelled):
		return w.cancelled(ctx, j, err)
	case w.stopped(ctx, err):
		w.settle(ctx, j, j.claim.HandBack)
	default:
		w.settle(ctx, j, j.claim.Release)
	}
	return w.handBack(ctx, j, err)
}

// notBegun ends a delivery whose work has not begun.
func (w *Worker) notBegun(ctx context.Context, j job, err error) error {
	if errors.Is(err, bus.ErrCancelled) {
		return w.cancelled(ctx, j, err)
	}
	return w.handBack(ctx, j, err)
}

// settle ends the claim. Without it the next job takes the claim over all the same.
func (w *Worker) settle(ctx context.Context, j job, end func(context.Context) error) {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), letGoTimeout)
	defer cancel()
	if err := end(ctx); err != nil {
		w.Logger.WarnContext(ctx, "could not give up the claim; the next job takes it over", slog.String("target", j.target.Name),
			slog.String("job_id", j.id), slog.Any("err", err))
	}
}

// stopped says whether a job ends early because the service stops. One that somebody else has is not this worker's to hand back.
func (w *Worker) stopped(ctx context.Context, err error) bool {
	return err != nil && !bus.IsTerminal(err) && !errors.Is(err, bus.ErrClaimLost) && (errors.Is(context.Cause(ctx), bus.ErrStopping) || errors.Is(err, bus.ErrStopping))
}

// handBack marks an error with which a job ends early because the service stops, and tells of it. Other errors stay as they are.
func (w *Worker) handBack(ctx context.Context, j job, err error) error {
	if !w.stopped(ctx, err) {
		return err
	}
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), letGoTimeout)
	defer cancel()
	w.Logger.InfoContext(ctx, "handed back a job, because the service stops", slog.String("work", string(j.work)),
		slog.String("target", j.target.Name), slog.String("job_id", j.id), slog.Bool("began", j.claim != nil), slog.Any("why", err))
	w.tell(ctx, j, "handed-back", fmt.Sprintf("the worker stops, and gave the %s back; another worker does it", j.work),
		map[string]string{"why": err.Error()})
	return bus.HandBack(0, err)
}

// cancelled ends a job that somebody cancelled: when this is told, nothing of it runs any more.
func (w *Worker) cancelled(ctx context.Context, j job, err error) error {
	w.metrics.ended.WithLabelValues(string(j.work), j.target.Name, "cancelled").Inc()
	w.Logger.InfoContext(ctx, "a job was cancelled", slog.String("work", string(j.work)), slog.String("target", j.target.Name),
		slog.String("job_id", j.id), slog.Any("err", err))
	w.tell(context.WithoutCancel(ctx), j, "stopped", fmt.Sprintf("the %s was cancelled, and nothing of it runs any more", j.work), nil)
	return err
}

// tell publishes an event about the job itself.
func (w *Worker) tell(ctx context.Context, j job, verb, message string, more map[string]string) {
	attributes := j.attributes(more)
	attributes["work"], attributes["worker"] = string(j.work), w.Bus.Actor()
	w.emit(ctx, &lifeboatv1.Event{
		Id: fmt.Sprintf("job.%s.%s.%s", verb, j.id, j.delivery()), Noun: "job", Verb: verb, Target: j.target.Name, JobId: j.id,
		RequestedBy: j.requestedBy(), Message: message, Attributes: attributes,
	})
}

// attempted records that work begins and, if it ends without a result, why.
func (w *Worker) attempted(ctx context.Context, j job, work func() error) error {
	w.attempt(ctx, j, "started", "")
	err := work()
	w.interrupted(ctx, j, err)
	return err
}

// interrupted tells why an attempt ended without a result, if it did. What is handed back or was cancelled is told of as that.
func (w *Worker) interrupted(ctx context.Context, j job, err error) {
	if err == nil || w.stopped(ctx, err) || errors.Is(err, bus.ErrCancelled) || errors.Is(context.Cause(ctx), bus.ErrCancelled) {
		return
	}
	w.attempt(context.WithoutCancel(ctx), j, "interrupted", err.Error())
}

func (w *Worker) attempt(ctx context.Context, j job, verb, message string) {
	w.emit(ctx, &lifeboatv1.Event{
		Id: fmt.Sprintf("%s.%s.%s.%s", j.work, verb, j.id, j.delivery()), Noun: string(j.work), Verb: verb, Target: j.target.Name,
		JobId: j.id, RequestedBy: j.requestedBy(), Message: message, Attributes: j.attributes(nil),
	})
}

// delivery tells the deliveries of a job apart. One that was handed back has the same attempt as the next.
func (j job) delivery() string { return fmt.Sprintf("%d-%d", j.msg.Attempt, j.msg.Delivery) }

// attributes are what every event of a job says besides.
func (j job) attributes(more map[string]string) map[string]string {
	all := map[string]string{"attempt": fmt.Sprint(j.msg.Attempt)}
	if tick := j.GetTick(); tick != nil {
		all["tick"] = tick.AsTime().Format(time.RFC3339)
	}
	maps.Copy(all, more)
	return all
}

// slot waits until the fleet runs fewer jobs of this kind than it may. A job that waits when the service begins to stop is handed
// back at once: it has not begun.
func (w *Worker) slot(ctx context.Context, j job) (free func(), err error) {
	for {
		if w.drain.isOn() {
			return nil, bus.ErrStopping
		}
		limit := w.limit(j.work)
		if limit == 0 {
			return func() {}, nil
		}
		waiting, stop := context.WithCancelCause(ctx)
		go w.watch(waiting, stop, j, limit)
		s, err := w.Bus.Slot(waiting, j.work, limit)
		cause := context.Cause(waiting)
		stop(nil)
		switch {
		case err == nil:
			return func() { w.settle(ctx, j, s.Free) }, nil
		case errors.Is(cause, errLimitChanged):
		case cause != nil:
			return nil, fmt.Errorf("waiting for one of the fleet's %d slots for %s: %w", limit, j.work, cause)
		default:
			return nil, fmt.Errorf("taking one of the fleet's %d slots for %s: %w", limit, j.work, err)
		}
	}
}

func (w *Worker) limit(work config.Work) int { return w.Config().Workers.FleetConcurrency.Of(work) }

var errLimitChanged = errors.New("the fleet's concurrency was changed")

// watch ends the waiting for a slot when the limit changes, the job is cancelled, or the service begins to stop.
func (w *Worker) watch(ctx context.Context, stop context.CancelCauseFunc, j job, limit int) {
	ticker := time.NewTicker(waitInterval)
	defer ticker.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-w.drain.on:
			stop(bus.ErrStopping)
			return
		case <-ticker.C:
		}
		if w.limit(j.work) != limit {
			stop(errLimitChanged)
			return
		}
		if err := w.outlived(ctx, j); err != nil {
			stop(err)
			return
		}
	}
}

// outlived says why a job that waits must not begin any more. A claim that cannot be read says nothing: taking it decides.
func (w *Worker) outlived(ctx context.Context, j job) error {
	last := &lifeboatv1.ClaimState{}
	if _, _, err := w.Bus.Last(ctx, bus.StreamJobs, bus.ClaimSubject(j.target.Name, j.work), last); err != nil {
		return nil //nolint:nilerr // not known is not cancelled
	}
	return j.msg.Outlived(last)
}

// lastLook ends a job whose claim was refused, because all its attempts have begun before and the last one did not come to an end. Its
// worker may have died after it had committed a snapshot, which exists then, and must not be called failed.
func (w *Worker) lastLook(ctx context.Context, j job, gaveUp error) error {
	var m *lifeboatv1.Manifest
	var err error
	if j.work == config.WorkSnapshot {
		m, err = w.Catalog.Manifest(ctx, j.target.Name, j.id)
		if errors.Is(err, catalog.ErrNoSnapshot) {
			return gaveUp
		}
	} else if told, failed := w.told(ctx, j); !told && failed == nil {
		return gaveUp
	} else {
		err = failed
	}
	if err != nil {
		w.Logger.WarnContext(ctx, "could not see whether a job has ended well whose last attempt died; looking again",
			slog.String("target", j.target.Name), slog.String("job_id", j.id), slog.Duration("after", lastLookAgain), slog.Any("err", err))
		return bus.HandBack(lastLookAgain, err)
	}
	if j.work != config.WorkSnapshot {
		return nil
	}
	return w.conclude(ctx, j, m, false)
}

// told says whether the audit log has the result of a job that leaves it there alone: what is told there has ended, and ends once.
func (w *Worker) told(ctx context.Context, j job) (bool, error) {
	for _, verb := range []string{"passed", "checked", "held", "failed", "escrow-passed", "escrow-failed"} {
		e := &lifeboatv1.Event{}
		_, _, err := w.Bus.Last(ctx, bus.StreamEvents, bus.EventSubject(string(j.work), verb, j.target.Name), e)
		if errors.Is(err, bus.ErrDenied) {
			return false, nil // a user with the rights of an earlier version
		}
		if err != nil {
			return false, fmt.Errorf("looking whether the job has ended: %w", err)
		}
		if e.GetJobId() == j.id && strings.HasSuffix(e.GetId(), j.id) { // that one snapshot is damaged is told before the end
			return true, nil
		}
	}
	return false, nil
}
