package worker

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"strings"

	"filippo.io/age"
	"google.golang.org/protobuf/types/known/timestamppb"

	"github.com/lifeboat-fleet/lifeboat/fleet/config"
	lifeboatv1 "github.com/lifeboat-fleet/lifeboat/proto/lifeboat/v1"
	"github.com/lifeboat-fleet/lifeboat/services/backup/internal/catalog"
	"github.com/lifeboat-fleet/lifeboat/services/backup/internal/pipeline"
	"github.com/lifeboat-fleet/lifeboat/services/backup/internal/store"
)

// How an object was compared, as manifests and events say it.
const (
	methodDecoded = "decoded"
	methodStored  = "stored"
	methodSampled = "sampled"
)

// verify reads stored snapshots again, in both buckets: all of the target's, or the one that the job names. What is damaged
// stays where it is, for a person to look at; a mark beside each snapshot says how its verification ended.
func (w *Worker) verify(ctx context.Context, j job) error {
	return w.attempted(ctx, j, func() error { return w.verifyStored(ctx, j) })
}

func (w *Worker) verifyStored(ctx context.Context, j job) error {
	begin := w.Clock()
	ids, err := w.identities()
	if err != nil {
		return err
	}
	v := &verification{Worker: w, job: j, ids: ids}
	err = w.stage(ctx, j, stageRead, func(ctx context.Context) error {
		failed := v.in(ctx, w.Objects, w.Catalog, "")
		if failed == nil && w.Copy != nil {
			failed = v.in(ctx, w.Copy.Objects, w.Copy.Catalog, "in the second bucket, ")
		}
		return failed
	})
	if err != nil {
		return err
	}
	e := &lifeboatv1.Event{
		Id: "verify.passed." + j.id, Noun: "verify", Verb: "passed", Target: j.target.Name, JobId: j.id, RequestedBy: j.requestedBy(),
		Message:    fmt.Sprintf("%d stored snapshots read and compared, %d of them decoded", v.checked, v.decoded),
		Attributes: j.attributes(map[string]string{"checked": fmt.Sprint(v.checked), "damaged": fmt.Sprint(len(v.damaged))}),
	}
	switch {
	case len(v.damaged) > 0:
		e.Id, e.Verb = "verify.failed."+j.id, "failed"
		e.Message = fmt.Sprintf("%d of %d stored snapshots are damaged: %s", len(v.damaged), v.checked, strings.Join(v.damaged, "; "))
	case !all(j.GetSnapshot()):
		// One good snapshot says nothing about the others, and must not end an alert about them.
		e.Id, e.Verb = "verify.checked."+j.id, "checked"
	}
	if err := w.Bus.Emit(ctx, e); err != nil {
		return err
	}
	if len(v.damaged) > 0 {
		w.metrics.ended.WithLabelValues(string(j.work), j.target.Name, "failed").Inc()
		return nil
	}
	w.passed(j, w.Clock().Sub(begin))
	return nil
}

func all(selector string) bool { return selector == "" || selector == "all" }

// verification is one job's findings.
type verification struct {
	*Worker
	job job
	ids []age.Identity

	checked, decoded int
	damaged          []string
}

// in verifies what one bucket holds.
func (v *verification) in(ctx context.Context, o Objects, c *catalog.Catalog, where string) error {
	manifests, err := v.selected(ctx, c)
	if err != nil {
		return err
	}
	bytes := v.metrics.verified.WithLabelValues(string(v.job.work), v.job.target.Name)
	read := func(n int64) { bytes.Add(float64(n)) }
	seen := map[string]result{} // snapshots of an unchanged source share their data
	for _, m := range manifests {
		key := dataKeys(m)
		r, ok := seen[key]
		if !ok {
			r.method, r.err = VerifySnapshot(ctx, o, m, v.ids, read)
			seen[key] = r
		}
		if err := v.found(ctx, c, m, r, where); err != nil {
			return err
		}
	}
	return nil
}

// found records how one snapshot's verification ended.
func (v *verification) found(ctx context.Context, c *catalog.Catalog, m *lifeboatv1.Manifest, r result, where string) error {
	if r.err != nil {
		if !isDamage(r.err) {
			return fmt.Errorf("verifying %s: %w", m.GetId(), r.err)
		}
		// Retention may have deleted it since the snapshots were listed.
		if _, err := c.Manifest(ctx, m.GetTarget(), m.GetId()); errors.Is(err, catalog.ErrNoSnapshot) {
			return nil
		}
	}
	mark := &lifeboatv1.Mark{
		Kind: lifeboatv1.Mark_KIND_VERIFIED, Target: m.GetTarget(), SnapshotId: m.GetId(), By: v.job.requestedBy(),
		At: timestamppb.New(v.Clock()), Reason: r.method, Holds: r.err == nil,
	}
	v.checked++
	if r.err != nil {
		mark.Reason = r.err.Error()
		v.damaged = append(v.damaged, fmt.Sprintf("%s%s: %v", where, m.GetId(), r.err))
		v.Logger.ErrorContext(ctx, "a stored snapshot is damaged", slog.String("target", m.GetTarget()),
			slog.String("snapshot_id", m.GetId()), slog.Any("err", r.err))
	}
	if r.method == methodDecoded {
		v.decoded++
	}
	return c.SetMark(ctx, mark)
}

// rotten records that other work came upon a stored snapshot that is damaged: a mark beside it, and the event that a
// verification would have made, so that people hear of it although none was due.
func (w *Worker) rotten(ctx context.Context, m *lifeboatv1.Manifest, j job, damage error) error {
	err := w.Catalog.SetMark(ctx, &lifeboatv1.Mark{
		Kind: lifeboatv1.Mark_KIND_VERIFIED, Target: m.GetTarget(), SnapshotId: m.GetId(), By: j.id,
		At: timestamppb.New(w.Clock()), Reason: damage.Error(),
	})
	if err != nil {
		return err
	}
	return w.Bus.Emit(ctx, &lifeboatv1.Event{
		Id: "verify.failed.rot." + m.GetId(), Noun: "verify", Verb: "failed", Target: m.GetTarget(), JobId: j.id,
		SnapshotId: m.GetId(), RequestedBy: j.requestedBy(), Attributes: j.attributes(nil),
		Message: fmt.Sprintf("the stored snapshot %s is damaged: %v", m.GetId(), damage),
	})
}

type result struct {
	method string
	err    error
}

// selected are the manifests of a bucket that the verification is about.
func (v *verification) selected(ctx context.Context, c *catalog.Catalog) ([]*lifeboatv1.Manifest, error) {
	if sel := v.job.GetSnapshot(); !all(sel) {
		m, err := c.Find(ctx, v.job.target.Name, sel)
		if errors.Is(err, catalog.ErrNoSnapshot) && c != v.Catalog {
			return nil, nil // not copied yet
		}
		if err != nil {
			return nil, terminalIf(err, catalog.ErrNoSnapshot, "no_snapshot")
		}
		return []*lifeboatv1.Manifest{m}, nil
	}
	snapshots, err := c.List(ctx, v.job.target.Name)
	if err != nil {
		return nil, err
	}
	manifests := make([]*lifeboatv1.Manifest, len(snapshots))
	for i, s := range snapshots {
		manifests[i] = s.Manifest
	}
	return manifests, nil
}

// isDamage tells what is wrong with the stored data from what is wrong with reaching it.
func isDamage(err error) bool {
	return errors.Is(err, pipeline.ErrDamaged) || errors.Is(err, store.ErrNotFound)
}

// parts are all stored objects of a snapshot.
func parts(m *lifeboatv1.Manifest) []*lifeboatv1.Data {
	return append([]*lifeboatv1.Data{m.GetData()}, m.GetParts()...)
}

// dataKeys says which data a manifest describes, and how.
func dataKeys(m *lifeboatv1.Manifest) string {
	var b strings.Builder
	for _, d := range parts(m) {
		fmt.Fprintln(&b, d.GetKey(), d.GetStored().GetSha256(), d.GetRaw().GetSha256())
	}
	return b.String()
}

// VerifySnapshot reads every stored object of a snapshot to its end and compares it with the manifest. The method is
// "decoded" when all of them could be decoded, and "stored" when an identity was missing and the stored bytes were
// compared. progress, which may be nil, is told how many stored bytes were read since it was last called. An error that
// wraps pipeline.ErrDamaged or store.ErrNotFound is about the data; any other is about reaching it.
func VerifySnapshot(
	ctx context.Context, o Objects, m *lifeboatv1.Manifest, ids []age.Identity, progress func(n int64),
) (method string, err error) {
	method = methodDecoded
	for _, d := range parts(m) {
		how, err := verifyData(ctx, o, d, ids, progress)
		if err != nil {
			return "", fmt.Errorf("%s: %w", d.GetKey(), err)
		}
		if how != methodDecoded {
			method = how
		}
	}
	return method, nil
}

// verifyData compares one object; decoded when it can be.
func verifyData(
	ctx context.Context, o Objects, d *lifeboatv1.Data, ids []age.Identity, progress func(n int64),
) (method string, err error) {
	if progress != nil {
		o = &counted{o, progress}
	}
	if len(d.GetRecipients()) == 0 || len(ids) > 0 {
		err = readWhole(ctx, o, d, ids)
		// An identity for other recipients decrypts nothing here, and is no reason not to compare the stored bytes.
		if !errors.Is(err, pipeline.ErrNoIdentity) {
			return methodDecoded, err
		}
	}
	r, _, err := o.Get(ctx, d.GetKey())
	if err != nil {
		return "", err
	}
	defer r.Close()
	return methodStored, pipeline.Check(r, d.GetStored())
}

// readWhole decodes an object to its end, where its digests are compared.
func readWhole(ctx context.Context, o Objects, d *lifeboatv1.Data, ids []age.Identity) error {
	r, err := OpenData(ctx, o, d, ids)
	if err != nil {
		return err
	}
	_, err = io.Copy(io.Discard, r)
	return errors.Join(err, r.Close())
}

// counted tells how much is read.
type counted struct {
	Objects
	progress func(n int64)
}

func (c *counted) Get(ctx context.Context, key string) (io.ReadCloser, store.Object, error) {
	r, o, err := c.Objects.Get(ctx, key)
	if err != nil {
		return nil, o, err
	}
	return &countedReader{r, c.progress}, o, nil
}

type countedReader struct {
	io.ReadCloser
	progress func(n int64)
}

func (c *countedReader) Read(p []byte) (int, error) {
	n, err := c.ReadCloser.Read(p)
	c.progress(int64(n))
	return n, err
}

// Identities reads the age identity of a configuration; none when none is configured.
func Identities(enc config.Encryption) ([]age.Identity, error) {
	if enc.IdentityFile == "" {
		return nil, nil
	}
	return readIdentities("encryption.identity_file", enc.IdentityFile)
}

// readIdentities reads the file that a key of the configuration names.
func readIdentities(key string, file config.SecretFile) ([]age.Identity, error) {
	secret, err := file.Read()
	if err != nil {
		return nil, fmt.Errorf("%s: %w", key, err)
	}
	ids, err := age.ParseIdentities(strings.NewReader(secret))
	if err != nil {
		// The parser quotes the line, which is the secret.
		return nil, fmt.Errorf("%s: %s does not hold an age identity", key, file)
	}
	return ids, nil
}

// OpenDecoded opens a snapshot's data as the source sent it. The reader returns io.EOF only when all of it is as the
// manifest says.
func OpenDecoded(ctx context.Context, o Objects, m *lifeboatv1.Manifest, ids []age.Identity) (io.ReadCloser, error) {
	return OpenData(ctx, o, m.GetData(), ids)
}

// OpenData is OpenDecoded for any part of a snapshot.
func OpenData(ctx context.Context, o Objects, data *lifeboatv1.Data, ids []age.Identity) (io.ReadCloser, error) {
	r, _, err := o.Get(ctx, data.GetKey())
	if err != nil {
		return nil, err
	}
	d, err := pipeline.Decode(r, data, ids)
	if err != nil {
		return nil, errors.Join(err, r.Close())
	}
	return &decoded{d, r}, nil
}

type decoded struct {
	*pipeline.Decoder
	object io.Closer
}

func (d *decoded) Close() error { return errors.Join(d.Decoder.Close(), d.object.Close()) }
