// Package rpo watches how old each target's newest good snapshot is. It says so when that exceeds the target's rpo, even
// when nothing ran at all, and says so again when a good snapshot is there.
package rpo

import (
	"context"
	"fmt"
	"log/slog"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/promauto"
	"google.golang.org/protobuf/proto"

	"github.com/lifeboat-fleet/lifeboat/fleet/bus"
	"github.com/lifeboat-fleet/lifeboat/fleet/config"
	lifeboatv1 "github.com/lifeboat-fleet/lifeboat/proto/lifeboat/v1"
)

// Bounds of how often the clock is read: a fraction of the shortest rpo between them.
const (
	shortest = time.Second
	longest  = 30 * time.Second
)

// Bus is what the watch needs of the bus.
type Bus interface {
	Last(ctx context.Context, stream, subject string, into proto.Message) (seq uint64, at time.Time, err error)
	Emit(ctx context.Context, e *lifeboatv1.Event) error
}

// Options of a watch.
type Options struct {
	Bus        Bus
	Config     func() *config.Config
	Logger     *slog.Logger
	Registerer prometheus.Registerer
	Now        func() time.Time
}

// Watch is the RPO clock. What it knows is in the audit log, so any number of replicas come to the same result.
type Watch struct {
	Options
	age *prometheus.GaugeVec
}

// New returns a watch.
func New(o Options) *Watch {
	return &Watch{Options: o, age: promauto.With(o.Registerer).NewGaugeVec(prometheus.GaugeOpts{
		Name: "lifeboat_snapshot_age_seconds",
		Help: "Age of the newest good snapshot, or time since the target was first seen when there is none.",
	}, []string{"target"})}
}

// Run watches until the context ends.
func (w *Watch) Run(ctx context.Context) error {
	for {
		every := longest
		for _, t := range w.Config().Targets {
			if t.RPO > 0 {
				every = min(every, max(t.RPO/4, shortest))
			}
			if err := w.check(ctx, t); err != nil && ctx.Err() == nil {
				w.Logger.WarnContext(ctx, "could not read the age of the newest snapshot", slog.String("target", t.Name), slog.Any("err", err))
			}
		}
		timer := time.NewTimer(every)
		select {
		case <-ctx.Done():
			timer.Stop()
			return nil
		case <-timer.C:
		}
	}
}

// check compares one target's newest good snapshot with its rpo.
func (w *Watch) check(ctx context.Context, t config.Target) error {
	good, err := w.lastGood(ctx, t.Name)
	if err != nil {
		return err
	}
	age := w.Now().Sub(good)
	w.age.WithLabelValues(t.Name).Set(age.Seconds())
	exceededSeq, err := w.lastSeq(ctx, "exceeded", t.Name)
	if err != nil {
		return err
	}
	metSeq, err := w.lastSeq(ctx, "met", t.Name)
	if err != nil {
		return err
	}
	alarmed := exceededSeq > metSeq
	// Without an rpo nothing can exceed it, also not what did before the rpo was taken away.
	if alarmed == (t.RPO > 0 && age > t.RPO) {
		return nil
	}
	verb, message := "met", fmt.Sprintf("within the rpo of %s again: the newest good snapshot is of %s", t.RPO, good.UTC().Format(time.RFC3339))
	if t.RPO == 0 {
		message = "the target has no rpo any more"
	}
	if !alarmed {
		verb = "exceeded"
		message = fmt.Sprintf("no good snapshot for %s; the newest is of %s and the rpo is %s",
			age.Round(time.Second), good.UTC().Format(time.RFC3339), t.RPO)
	}
	return w.Bus.Emit(ctx, &lifeboatv1.Event{
		// Replicas that see the same thing emit the same event.
		Id:   fmt.Sprintf("rpo.%s.%s.%d.%d", verb, t.Name, good.UnixNano(), max(exceededSeq, metSeq)),
		Noun: "rpo", Verb: verb, Target: t.Name, Message: message, RequestedBy: "scheduler",
		Attributes: map[string]string{"age_seconds": fmt.Sprintf("%.0f", age.Seconds()), "rpo_seconds": fmt.Sprintf("%.0f", t.RPO.Seconds())},
	})
}

// lastGood is when the newest committed snapshot began, the moment that its data is of; when there is none, when the
// target was first seen.
func (w *Watch) lastGood(ctx context.Context, target string) (time.Time, error) {
	e := &lifeboatv1.Event{}
	seq, at, err := w.Bus.Last(ctx, bus.StreamEvents, bus.EventSubject("snapshot", "committed", target), e)
	if err != nil {
		return time.Time{}, err
	}
	if seq > 0 {
		if started := e.GetManifest().GetStartedAt(); started != nil {
			return started.AsTime(), nil
		}
		return at, nil
	}
	seq, at, err = w.Bus.Last(ctx, bus.StreamEvents, bus.EventSubject("target", "added", target), e)
	if err != nil || seq > 0 {
		return at, err
	}
	err = w.Bus.Emit(ctx, &lifeboatv1.Event{
		Id: "target.added." + target, Noun: "target", Verb: "added", Target: target, RequestedBy: "scheduler",
		Message: "the target is watched from here on",
	})
	return w.Now(), err
}

func (w *Watch) lastSeq(ctx context.Context, verb, target string) (uint64, error) {
	seq, _, err := w.Bus.Last(ctx, bus.StreamEvents, bus.EventSubject("rpo", verb, target), &lifeboatv1.Event{})
	return seq, err
}
