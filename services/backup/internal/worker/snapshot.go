package worker

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"path"
	"time"

	"go.opentelemetry.io/otel/trace"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/timestamppb"

	"github.com/lifeboat-fleet/lifeboat/fleet/bus"
	lifeboatv1 "github.com/lifeboat-fleet/lifeboat/proto/lifeboat/v1"
	"github.com/lifeboat-fleet/lifeboat/services/backup/internal/catalog"
	"github.com/lifeboat-fleet/lifeboat/services/backup/internal/pipeline"
	"github.com/lifeboat-fleet/lifeboat/services/backup/internal/store"
)

// snapshot takes one snapshot. The steps are those of the package comment.
func (w *Worker) snapshot(ctx context.Context, j job) error {
	log := w.Logger.With(slog.String("target", j.target.Name), slog.String("job_id", j.id))
	claim, err := w.Bus.Claim(ctx, j.work, j.target.Name, j.msg)
	if err != nil {
		return err
	}
	uncertain := false
	defer func() {
		if uncertain {
			return // the announcement stands, so that the next delivery waits for what may still arrive
		}
		if lost := claim.Release(context.WithoutCancel(ctx)); lost != nil {
			log.WarnContext(ctx, "could not release the claim; the next job takes it over", slog.Any("err", lost))
		}
	}()
	// Only under the claim: from here on no earlier attempt can write its manifest any more.
	m, err := w.Catalog.Manifest(ctx, j.target.Name, j.id)
	if err == nil {
		log.InfoContext(ctx, "an earlier attempt has committed this snapshot")
		return w.committed(ctx, j, m)
	}
	if !errors.Is(err, catalog.ErrNoSnapshot) {
		return err
	}
	w.attempt(ctx, j, "started", "")
	m, err = w.take(ctx, j, claim)
	if err != nil {
		uncertain = errors.Is(err, errUncertain)
		w.attempt(context.WithoutCancel(ctx), j, "interrupted", err.Error())
		return err
	}
	return w.committed(ctx, j, m)
}

// attempt records that an attempt began or ended without a snapshot.
func (w *Worker) attempt(ctx context.Context, j job, verb, message string) {
	w.emit(ctx, &lifeboatv1.Event{
		Id: fmt.Sprintf("snapshot.%s.%s.%d", verb, j.id, j.msg.Attempt), Noun: "snapshot", Verb: verb,
		Target: j.target.Name, JobId: j.id, RequestedBy: j.requestedBy(), Message: message,
		Attributes: map[string]string{"attempt": fmt.Sprint(j.msg.Attempt)},
	})
}

// take uploads, reads back and commits.
func (w *Worker) take(ctx context.Context, j job, claim *bus.Claim) (*lifeboatv1.Manifest, error) {
	timed, cancel := context.WithTimeout(ctx, j.target.Timeout)
	defer cancel()
	m, err := w.prepare(timed, j)
	if err != nil {
		return nil, err
	}
	window, done, err := claim.Commit(ctx)
	if err != nil {
		return nil, fmt.Errorf("announcing the commit: %w", err)
	}
	defer done()
	m.CommittedAt = timestamppb.New(w.Clock())
	err = w.Catalog.Commit(window, m)
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
		StartedAt: timestamppb.New(w.Clock()), LifeboatVersion: w.Version, TraceId: traceID(ctx),
		Store: &lifeboatv1.StoreCapabilities{
			ConditionalWrites: caps.ConditionalWrites, Endpoint: caps.Endpoint, Bucket: caps.Bucket,
		},
	}
	if err := w.upload(ctx, j, m, caps.ConditionalWrites); err != nil {
		return nil, err
	}
	if err := w.readBack(ctx, m); err != nil {
		return nil, err
	}
	m.RestoreCommands = restoreCommands(m)
	return m, nil
}

// upload streams the source through the pipeline into the store and fills in what was read and written.
func (w *Worker) upload(ctx context.Context, j job, m *lifeboatv1.Manifest, conditional bool) error {
	enc := w.Config().Encryption
	recipients, err := pipeline.ParseRecipients(enc.Recipients)
	if err != nil {
		return err
	}
	src, err := w.NewSource(j.target)
	if err != nil {
		return fmt.Errorf("preparing the source: %w", err)
	}
	key := w.Catalog.Data(j.target.Name, j.id, src.Format(), len(recipients) > 0)
	cond := store.Condition{}
	if conditional {
		if cond, err = store.As(w.Objects.Head(ctx, key)); err != nil {
			return err
		}
	}
	size := w.lastSize(ctx, j.target.Name)
	reading, stop := context.WithCancel(ctx)
	stream, err := src.Open(reading)
	if err != nil {
		stop()
		return fmt.Errorf("opening the source: %w", err)
	}
	defer stream.Close() // read to its end, or given up
	encoded := pipeline.Encode(stream, recipients)
	defer encoded.Close()
	// Runs first: a source that is waited for must let go before the encoder can end.
	defer stop()
	if _, err = w.Objects.Put(ctx, key, encoded, size, cond); err != nil {
		return err
	}
	if m.Source, err = stream.Info(ctx); err != nil {
		return fmt.Errorf("asking the source about what it sent: %w", err)
	}
	m.Data = &lifeboatv1.Data{
		Key: key, Format: src.Format(), Raw: encoded.Raw(), Stored: encoded.Stored(),
		Compression: pipeline.Compression, Recipients: enc.Recipients,
	}
	return nil
}

// lastSize is the size of the newest snapshot: a hint for the size of upload parts, so a failure to find it is none.
func (w *Worker) lastSize(ctx context.Context, target string) int64 {
	last, err := w.Catalog.Find(ctx, target, "latest")
	if err != nil {
		return 0
	}
	return last.GetData().GetStored().GetBytes()
}

// readBack compares the stored object with what the source sent. Without an identity an encrypted object is compared as
// stored: its bytes are those whose raw digest was taken on the way in.
func (w *Worker) readBack(ctx context.Context, m *lifeboatv1.Manifest) error {
	method, err := w.verifyObject(ctx, m)
	if err != nil {
		return fmt.Errorf("reading back: %w", err)
	}
	m.Verification = &lifeboatv1.Verification{
		At: timestamppb.New(w.Clock()), Method: method, Bytes: m.GetData().GetStored().GetBytes(),
	}
	return nil
}

// committed tells of a snapshot that exists.
func (w *Worker) committed(ctx context.Context, j job, m *lifeboatv1.Manifest) error {
	took := m.GetCommittedAt().AsTime().Sub(m.GetStartedAt().AsTime())
	err := w.Bus.Emit(ctx, &lifeboatv1.Event{
		Id: "snapshot.committed." + m.GetId(), Noun: "snapshot", Verb: "committed", Target: m.GetTarget(), JobId: j.id,
		SnapshotId: m.GetId(), RequestedBy: j.requestedBy(), Time: m.GetCommittedAt(),
		Message: fmt.Sprintf("snapshot %s: %d bytes, %d stored, revision %d, in %s", m.GetId(), m.GetData().GetRaw().GetBytes(),
			m.GetData().GetStored().GetBytes(), m.GetSource().GetRevision(), took.Round(time.Millisecond)),
		Detail: &lifeboatv1.Event_Manifest{Manifest: m},
	})
	if err != nil {
		return err
	}
	w.passed(j, took)
	w.metrics.bytes.WithLabelValues(m.GetTarget(), "raw").Set(float64(m.GetData().GetRaw().GetBytes()))
	w.metrics.bytes.WithLabelValues(m.GetTarget(), "stored").Set(float64(m.GetData().GetStored().GetBytes()))
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

func traceID(ctx context.Context) string {
	if sc := trace.SpanContextFromContext(ctx); sc.HasTraceID() {
		return sc.TraceID().String()
	}
	return ""
}

// kinds are the configuration's words for the manifest's.
func kinds() map[string]lifeboatv1.Kind {
	return map[string]lifeboatv1.Kind{
		"etcd": lifeboatv1.Kind_KIND_ETCD, "consul": lifeboatv1.Kind_KIND_CONSUL, "nomad": lifeboatv1.Kind_KIND_NOMAD,
	}
}

// restoreCommands are what a person types to restore this snapshot when no Lifeboat is left.
func restoreCommands(m *lifeboatv1.Manifest) []string {
	object := path.Base(m.GetData().GetKey())
	plain := m.GetTarget() + "." + m.GetData().GetFormat()
	s3 := "aws s3 cp"
	if e := m.GetStore().GetEndpoint(); len(e) > 4 && e[:4] == "http" {
		s3 = "aws --endpoint-url " + e + " s3 cp"
	}
	commands := []string{fmt.Sprintf("%s s3://%s/%s %s", s3, m.GetStore().GetBucket(), m.GetData().GetKey(), object)}
	commands = append(commands, fmt.Sprintf("echo '%s  %s' | sha256sum -c", m.GetData().GetStored().GetSha256(), object))
	if len(m.GetData().GetRecipients()) > 0 {
		commands = append(commands, fmt.Sprintf("age -d -i IDENTITY_FILE %s | zstd -d -o %s", object, plain))
	} else {
		commands = append(commands, fmt.Sprintf("zstd -d %s -o %s", object, plain))
	}
	switch m.GetKind() {
	case lifeboatv1.Kind_KIND_ETCD:
		commands = append(commands, fmt.Sprintf("etcdutl snapshot restore %s --data-dir DATA_DIR", plain))
	case lifeboatv1.Kind_KIND_CONSUL:
		commands = append(commands, fmt.Sprintf("consul kv import @%s", plain))
	case lifeboatv1.Kind_KIND_NOMAD:
		commands = append(commands, fmt.Sprintf("tar -xf %s", plain),
			"for n in namespaces/*.json; do nomad namespace apply -json $n; done",
			"for j in jobs/*/*/job.json; do nomad job run -json -detach $j; done")
	case lifeboatv1.Kind_KIND_UNSPECIFIED:
	}
	return commands
}
