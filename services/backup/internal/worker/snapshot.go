package worker

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"time"

	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/timestamppb"

	"github.com/lifeboat-fleet/lifeboat/fleet/bus"
	"github.com/lifeboat-fleet/lifeboat/fleet/config"
	"github.com/lifeboat-fleet/lifeboat/fleet/tracing"
	lifeboatv1 "github.com/lifeboat-fleet/lifeboat/proto/lifeboat/v1"
	"github.com/lifeboat-fleet/lifeboat/services/backup/internal/catalog"
	"github.com/lifeboat-fleet/lifeboat/services/backup/internal/store"
)

// snapshot takes one snapshot. The steps are those of the package comment.
func (w *Worker) snapshot(ctx context.Context, j job) error {
	// Only under the claim: from here on no earlier attempt can write its manifest any more.
	m, err := w.Catalog.Manifest(ctx, j.target.Name, j.id)
	if err == nil {
		w.Logger.InfoContext(ctx, "an earlier attempt has committed this snapshot", slog.String("target", j.target.Name),
			slog.String("job_id", j.id))
		return w.conclude(ctx, j, m, false)
	}
	if !errors.Is(err, catalog.ErrNoSnapshot) {
		return err
	}
	err = w.attempted(ctx, j, func() error {
		m, err = w.take(ctx, j)
		return err
	})
	if err != nil {
		return err
	}
	return w.conclude(ctx, j, m, true)
}

// conclude does what follows a commit: it tells of it, and copies it. fresh: this delivery has committed it.
func (w *Worker) conclude(ctx context.Context, j job, m *lifeboatv1.Manifest, fresh bool) error {
	if err := w.committed(ctx, j, m); err != nil {
		return err
	}
	if fresh {
		w.passed(j, m.GetCommittedAt().AsTime().Sub(m.GetStartedAt().AsTime()))
	}
	if w.Copy == nil {
		return nil
	}
	timed, cancel := context.WithTimeoutCause(ctx, j.target.Timeout,
		fmt.Errorf("the copy took longer than the target's timeout of %s", j.target.Timeout))
	defer cancel()
	if err := w.stage(timed, j, stageCopy, func(ctx context.Context) error { return w.copyAll(ctx, j, m) }); err != nil {
		if timed.Err() != nil {
			err = fmt.Errorf("%w: %w", context.Cause(timed), err)
		}
		return &copyError{fmt.Errorf("snapshot %s is committed, and its copy failed: %w", m.GetId(), err)}
	}
	return nil
}

// take uploads, reads back and commits.
func (w *Worker) take(ctx context.Context, j job) (*lifeboatv1.Manifest, error) {
	timed, cancel := context.WithTimeoutCause(ctx, j.target.Timeout,
		fmt.Errorf("the snapshot took longer than the target's timeout of %s", j.target.Timeout))
	defer cancel()
	m, err := w.prepare(timed, j)
	if err != nil {
		if timed.Err() != nil { // whatever failed, failed because of it
			err = fmt.Errorf("%w: %w", context.Cause(timed), err)
		}
		return nil, err
	}
	window, done, err := j.claim.Commit(ctx)
	if err != nil {
		return nil, fmt.Errorf("announcing the commit: %w", err)
	}
	defer done()
	m.CommittedAt = timestamppb.New(w.Clock())
	err = w.stage(window, j, stageCommit, func(ctx context.Context) error { return w.Catalog.Commit(ctx, m) })
	if errors.Is(err, store.ErrPrecondition) {
		return w.ours(ctx, m)
	}
	if err != nil {
		return nil, fmt.Errorf("%w: %w", errUncertain, err)
	}
	return m, nil
}

// errUncertain means that the manifest may or may not have been written.
var errUncertain = errors.New("committing: it is not known whether the manifest was written")

// uncertainFor is how long a manifest may still arrive after its writer gave up: what a claim's commit window allows.
const uncertainFor = 20 * time.Second

// arrived looks, after the last attempt, for a manifest of which it is not known whether it was written, and tells of the
// snapshot if it is there: it exists, and must not be called failed.
func (w *Worker) arrived(ctx context.Context, msg *bus.Message) (bool, error) {
	j, err := w.decode(msg)
	if err != nil {
		return false, nil // it cannot be looked for, and is told of as failed
	}
	timer := time.NewTimer(uncertainFor)
	defer timer.Stop()
	select {
	case <-timer.C:
	case <-ctx.Done():
		return false, context.Cause(ctx)
	}
	m, err := w.Catalog.Manifest(ctx, j.target.Name, j.id)
	if errors.Is(err, catalog.ErrNoSnapshot) {
		return false, nil
	}
	if err != nil {
		return false, err
	}
	return true, w.committed(ctx, j, m)
}

// existsTimeout is how long the bucket may take to say whether a snapshot exists whose job has failed. When it does not, the job has
// failed: a bucket that is away is the likeliest reason for that.
const existsTimeout = 3 * time.Second

// exists tells of the snapshot of a job that failed after the commit, because NATS did not take its event: it must not be called
// failed. A copy that failed is told of as that.
func (w *Worker) exists(ctx context.Context, msg *bus.Message, failed error) (told bool, err error) {
	_, copied := errors.AsType[*copyError](failed)
	_, rejected := errors.AsType[*rejectedError](failed)
	j, err := w.decode(msg)
	if copied || rejected || err != nil || j.work != config.WorkSnapshot {
		return false, nil // it cannot be looked for, and is told of as failed
	}
	looking, cancel := context.WithTimeout(ctx, existsTimeout)
	defer cancel()
	m, err := w.Catalog.Manifest(looking, j.target.Name, j.id)
	if err != nil {
		return false, nil // as above
	}
	return true, w.committed(ctx, j, m)
}

// ours returns the manifest that exists, if it is the one that was just written: its answer was lost and the SDK tried
// again. Another one describes other data under the same key, and must not be called a success.
func (w *Worker) ours(ctx context.Context, m *lifeboatv1.Manifest) (*lifeboatv1.Manifest, error) {
	have, err := w.Catalog.Manifest(ctx, m.GetTarget(), m.GetId())
	if err != nil {
		return nil, err
	}
	if !proto.Equal(have.GetData(), m.GetData()) {
		return nil, fmt.Errorf("snapshot %s was committed by another attempt, with other data than this one stored", m.GetId())
	}
	return have, nil
}

// prepare does everything up to the commit point: upload, read back, and the manifest in memory.
func (w *Worker) prepare(ctx context.Context, j job) (*lifeboatv1.Manifest, error) {
	caps, err := w.Capabilities(ctx)
	if err != nil {
		return nil, err
	}
	m := &lifeboatv1.Manifest{
		Format: catalog.Format, Id: j.id, Target: j.target.Name, Kind: kinds()[j.target.Kind()], JobId: j.id, Tick: j.GetTick(),
		StartedAt: timestamppb.New(w.Clock()), LifeboatVersion: w.Version, TraceId: tracing.ID(ctx),
		Store: capabilities(caps),
	}
	sources, err := w.NewSource(j.target)
	if err != nil {
		return nil, fmt.Errorf("preparing the source: %w", err)
	}
	last, doubt := w.newest(ctx, j.target.Name)
	read := make([]*part, len(sources))
	for i, src := range sources {
		read[i] = &part{
			worker: w, job: j, src: src, last: last, conditional: caps.ConditionalWrites, further: i > 0, confirm: j.claim.Confirm,
		}
		defer read[i].end()
		if err = read[i].take(ctx); err != nil {
			return nil, err
		}
	}
	m.UploadedAt = timestamppb.New(w.Clock())
	var rot []string
	err = w.stage(ctx, j, stageReadBack, func(ctx context.Context) (err error) {
		m.Verification, rot, err = w.readBack(ctx, read)
		return err
	})
	if err != nil {
		return nil, err
	}
	w.metrics.verified.WithLabelValues(string(j.work), j.target.Name).Add(float64(m.GetVerification().GetBytes()))
	for _, p := range read {
		if err := p.told(); err != nil {
			return nil, err
		}
	}
	m.Data, m.Source = read[0].data, read[0].info
	for _, p := range read[1:] {
		p.data.Source = p.info
		m.Parts = append(m.Parts, p.data)
	}
	m.Source.Worries = append(m.Source.Worries, worries(m, last, j.target.Retention.ShrinkGuard)...)
	m.Source.Worries = append(m.Source.Worries, rot...)
	if doubt != nil {
		m.Source.Worries = append(m.Source.Worries, "the snapshot before this one cannot be read: "+doubt.Error())
	}
	m.RestoreCommands = restoreCommands(m)
	return m, nil
}

func capabilities(c store.Capabilities) *lifeboatv1.StoreCapabilities {
	return &lifeboatv1.StoreCapabilities{
		ConditionalWrites: c.ConditionalWrites, Endpoint: c.Endpoint, Bucket: c.Bucket, Versioning: c.Versioning,
		ObjectLock: c.ObjectLock, Checksums: c.Checksums, MultipartAbort: c.MultipartAbort,
	}
}

// newest is the newest snapshot so far; nil when there is none. That it cannot be read is no reason to take no new one.
func (w *Worker) newest(ctx context.Context, target string) (*lifeboatv1.Manifest, error) {
	m, err := w.Catalog.Find(ctx, target, "latest")
	if errors.Is(err, catalog.ErrNoSnapshot) {
		return nil, nil //nolint:nilnil // there is none, and that is an answer
	}
	return m, err
}

// readBack compares what is stored with what the sources sent. Without an identity an encrypted object is compared as
// stored: its bytes are those whose raw digest was taken on the way in.
//
// The data of an unchanged source may have rotted since it was stored. Then it is stored anew, the snapshot that shares it is
// marked as damaged, and what is returned as rot tells people.
func (w *Worker) readBack(ctx context.Context, read []*part) (v *lifeboatv1.Verification, rot []string, err error) {
	v = &lifeboatv1.Verification{Method: methodDecoded}
	for _, p := range read {
		err = p.readBack(ctx, v)
		if err != nil && p.data.GetUnchangedSince() != "" && isDamage(err) {
			rot = append(rot, fmt.Sprintf("the stored data of snapshot %s is damaged, and of every other that shares it; it was stored "+
				"anew: %v", p.last.GetId(), err))
			if err = w.rotten(ctx, p.last, p.job, err); err != nil {
				return nil, nil, err
			}
			p.last = nil
			p.end()
			if err = p.take(ctx); err == nil {
				err = p.readBack(ctx, v)
			}
		}
		if err != nil {
			return nil, nil, fmt.Errorf("reading back: %w", err)
		}
	}
	v.At = timestamppb.New(w.Clock())
	return v, rot, nil
}

// committed tells of a snapshot that exists.
func (w *Worker) committed(ctx context.Context, j job, m *lifeboatv1.Manifest) error {
	took := m.GetCommittedAt().AsTime().Sub(m.GetStartedAt().AsTime())
	err := w.Bus.Emit(ctx, &lifeboatv1.Event{
		Id: "snapshot.committed." + m.GetId(), Noun: "snapshot", Verb: "committed", Target: m.GetTarget(), JobId: j.id,
		SnapshotId: m.GetId(), RequestedBy: j.requestedBy(), Time: m.GetCommittedAt(),
		Message: fmt.Sprintf("snapshot %s: %d bytes, %d stored, revision %d, in %s", m.GetId(), m.GetData().GetRaw().GetBytes(),
			m.GetData().GetStored().GetBytes(), m.GetSource().GetRevision(), took.Round(time.Millisecond)),
		Attributes: j.attributes(nil), Detail: &lifeboatv1.Event_Manifest{Manifest: m},
	})
	if err != nil {
		return err
	}
	if err := w.tellWorries(ctx, j, m); err != nil {
		return err
	}
	w.metrics.bytes.WithLabelValues(m.GetTarget(), formRaw).Set(float64(m.GetData().GetRaw().GetBytes()))
	w.metrics.bytes.WithLabelValues(m.GetTarget(), formStored).Set(float64(m.GetData().GetStored().GetBytes()))
	w.Logger.InfoContext(ctx, "committed a snapshot", slog.String("target", m.GetTarget()),
		slog.String("snapshot_id", m.GetId()), slog.Int64("raw_bytes", m.GetData().GetRaw().GetBytes()),
		slog.Int64("stored_bytes", m.GetData().GetStored().GetBytes()), slog.Duration("took", took))
	return nil
}

func (w *Worker) passed(j job, took time.Duration) {
	work := string(j.work)
	w.metrics.ended.WithLabelValues(work, j.target.Name, "passed").Inc()
	w.metrics.seconds.WithLabelValues(work, j.target.Name).Observe(took.Seconds())
	w.metrics.lastSuccess.WithLabelValues(work, j.target.Name).Set(float64(w.Clock().Unix()))
}

// kinds are the configuration's words for the manifest's.
func kinds() map[string]lifeboatv1.Kind {
	return map[string]lifeboatv1.Kind{
		"etcd": lifeboatv1.Kind_KIND_ETCD, "consul": lifeboatv1.Kind_KIND_CONSUL, "nomad": lifeboatv1.Kind_KIND_NOMAD,
	}
}
