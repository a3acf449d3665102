package worker

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"strings"

	"filippo.io/age"

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
)

// verify reads stored snapshots again: all of the target's, or the one that the job names. What is damaged stays where
// it is, for a person to look at.
func (w *Worker) verify(ctx context.Context, j job) error {
	begin := w.Clock()
	var manifests []*lifeboatv1.Manifest
	if sel := j.GetSnapshot(); sel != "" && sel != "all" {
		m, err := w.Catalog.Find(ctx, j.target.Name, sel)
		if err != nil {
			return terminalIf(err, catalog.ErrNoSnapshot, "no_snapshot")
		}
		manifests = append(manifests, m)
	} else {
		all, err := w.Catalog.List(ctx, j.target.Name)
		if err != nil {
			return err
		}
		for _, s := range all {
			manifests = append(manifests, s.Manifest)
		}
	}
	var damaged []string
	decoded := 0
	for _, m := range manifests {
		method, err := w.verifyObject(ctx, m)
		switch {
		case errors.Is(err, pipeline.ErrDamaged) || errors.Is(err, store.ErrNotFound):
			damaged = append(damaged, fmt.Sprintf("%s: %v", m.GetId(), err))
			w.Logger.ErrorContext(ctx, "a stored snapshot is damaged", slog.String("target", j.target.Name),
				slog.String("snapshot_id", m.GetId()), slog.Any("err", err))
		case err != nil:
			return fmt.Errorf("verifying %s: %w", m.GetId(), err)
		}
		if method == methodDecoded {
			decoded++
		}
	}
	e := &lifeboatv1.Event{
		Id: "verify.passed." + j.id, Noun: "verify", Verb: "passed", Target: j.target.Name, JobId: j.id, RequestedBy: j.requestedBy(),
		Message:    fmt.Sprintf("%d stored snapshots read and compared, %d of them decoded", len(manifests), decoded),
		Attributes: map[string]string{"checked": fmt.Sprint(len(manifests)), "damaged": fmt.Sprint(len(damaged))},
	}
	if len(damaged) > 0 {
		e.Id, e.Verb = "verify.failed."+j.id, "failed"
		e.Message = fmt.Sprintf("%d of %d stored snapshots are damaged: %s", len(damaged), len(manifests), strings.Join(damaged, "; "))
	}
	if err := w.Bus.Emit(ctx, e); err != nil {
		return err
	}
	if len(damaged) > 0 {
		w.metrics.ended.WithLabelValues(string(j.work), j.target.Name, "failed").Inc()
		return nil
	}
	w.passed(j, w.Clock().Sub(begin))
	return nil
}

// verifyObject reads a snapshot's object to its end and compares it with its manifest; decoded when it can be.
func (w *Worker) verifyObject(ctx context.Context, m *lifeboatv1.Manifest) (method string, err error) {
	ids, err := w.identities()
	if err != nil {
		return "", err
	}
	if len(m.GetData().GetRecipients()) == 0 || len(ids) > 0 {
		err = readWhole(ctx, w.Objects, m, ids)
		// An identity for other recipients decrypts nothing here, and is no reason not to compare the stored bytes.
		if !errors.Is(err, pipeline.ErrNoIdentity) {
			return methodDecoded, err
		}
	}
	r, _, err := w.Objects.Get(ctx, m.GetData().GetKey())
	if err != nil {
		return "", err
	}
	defer r.Close()
	return methodStored, pipeline.Check(r, m.GetData().GetStored())
}

// readWhole decodes an object to its end, where its digests are compared.
func readWhole(ctx context.Context, o Objects, m *lifeboatv1.Manifest, ids []age.Identity) error {
	r, err := OpenDecoded(ctx, o, m, ids)
	if err != nil {
		return err
	}
	_, err = io.Copy(io.Discard, r)
	return errors.Join(err, r.Close())
}

// Identities reads the age identity of a configuration; none when none is configured.
func Identities(enc config.Encryption) ([]age.Identity, error) {
	if enc.IdentityFile == "" {
		return nil, nil
	}
	secret, err := enc.IdentityFile.Read()
	if err != nil {
		return nil, fmt.Errorf("encryption.identity_file: %w", err)
	}
	ids, err := age.ParseIdentities(strings.NewReader(secret))
	if err != nil {
		// The parser quotes the line, which is the secret.
		return nil, fmt.Errorf("encryption.identity_file: %s does not hold an age identity", enc.IdentityFile)
	}
	return ids, nil
}

// OpenDecoded opens a snapshot's data as the source sent it. The reader returns io.EOF only when all of it is as the
// manifest says.
func OpenDecoded(ctx context.Context, o Objects, m *lifeboatv1.Manifest, ids []age.Identity) (io.ReadCloser, error) {
	r, _, err := o.Get(ctx, m.GetData().GetKey())
	if err != nil {
		return nil, err
	}
	d, err := pipeline.Decode(r, m.GetData(), ids)
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
