package app

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/lifeboat-fleet/lifeboat/fleet/bus"
	"github.com/lifeboat-fleet/lifeboat/fleet/console"
	"github.com/lifeboat-fleet/lifeboat/fleet/service"
	lifeboatv1 "github.com/lifeboat-fleet/lifeboat/proto/lifeboat/v1"
	"github.com/lifeboat-fleet/lifeboat/services/backup/internal/restore"
)

// recordTimeout is how long a restore that has ended may wait for its record. NATS may be what is being restored.
const recordTimeout = 3 * time.Second

// record puts a restore into the audit log: what, from which snapshot, where to, who, and how it ended. A restore must work
// without NATS, so a record that cannot be left is only told.
func (r *restoration) record(ctx context.Context, s restore.Summary, ended error) {
	if isUsage(ended) {
		return // nothing was begun
	}
	ctx, cancel := context.WithTimeoutCause(context.WithoutCancel(ctx), recordTimeout, fmt.Errorf("no answer within %s", recordTimeout))
	defer cancel()
	told := make(chan error, 1)
	// The first attempt to connect waits for the network and knows no context.
	go func() { told <- r.emit(ctx, r.event(s, ended)) }()
	var err error
	select {
	case err = <-told:
	case <-ctx.Done():
		err = context.Cause(ctx)
	}
	if err != nil {
		fmt.Fprintf(r.errs, "no record of this restore is in the audit log, because NATS does not take it: %v\n", err)
	}
}

func (r *restoration) event(s restore.Summary, ended error) *lifeboatv1.Event {
	e := &lifeboatv1.Event{
		Noun: "restore", Verb: "applied", Target: r.target.Name, SnapshotId: r.manifest.GetId(), RequestedBy: "cli " + console.Whoami(),
		Message: fmt.Sprintf("%s of %s restored into %s: %d created, %d changed, %d the same", r.flags.selection(), r.manifest.GetId(),
			r.where(), s.Created, s.Changed, s.Same),
		Attributes: map[string]string{
			"destination": r.where(), "selection": r.flags.selection(), "force": fmt.Sprint(r.flags.force),
			"created": fmt.Sprint(s.Created), "changed": fmt.Sprint(s.Changed), "same": fmt.Sprint(s.Same), "differs": fmt.Sprint(s.Differs),
			"skipped": fmt.Sprint(s.Skipped), "failed": fmt.Sprint(s.Failed), "bytes": fmt.Sprint(s.Bytes),
			"seconds": fmt.Sprintf("%.1f", time.Since(r.began).Seconds()),
		},
	}
	if ended != nil {
		e.Verb = "failed"
		e.Message = fmt.Sprintf("%s of %s was not wholly restored into %s: %d created, %d changed, %d the same. %s", r.flags.selection(),
			r.manifest.GetId(), r.where(), s.Created, s.Changed, s.Same, ended.Error())
	}
	return e
}

func (r *restoration) emit(ctx context.Context, e *lifeboatv1.Event) (err error) {
	b, err := bus.Connect(bus.Options{
		Config: r.bucket.config.NATS, Actor: service.Instance("lifeboat-cli"), Logger: slog.New(slog.DiscardHandler),
		Registerer: prometheus.NewRegistry(),
	})
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, b.Close()) }()
	if err := b.Connected(); err != nil {
		return err // it would be tried again for ever
	}
	return b.Emit(ctx, e)
}
