package worker

import (
	"context"
	"errors"
	"fmt"
	"io"
	"slices"
	"time"

	"google.golang.org/protobuf/proto"

	lifeboatv1 "github.com/lifeboat-fleet/lifeboat/proto/lifeboat/v1"
	"github.com/lifeboat-fleet/lifeboat/services/backup/internal/pipeline"
	"github.com/lifeboat-fleet/lifeboat/services/backup/internal/source"
	"github.com/lifeboat-fleet/lifeboat/services/backup/internal/store"
)

// part is one stream of a snapshot, from its source into the store: the data itself, or a raft snapshot beside it.
type part struct {
	worker      *Worker
	job         job
	src         Source
	last        *lifeboatv1.Manifest // the newest snapshot so far, if any
	conditional bool
	further     bool
	// confirm says whether this delivery still holds the claim, for a store that cannot keep two workers apart itself.
	confirm func(context.Context) error

	data   *lifeboatv1.Data
	info   *lifeboatv1.SourceInfo
	chunks *pipeline.Chunks
	etag   string
	// asked is what the source answers about what it sent; close lets go of it.
	asked chan answer
	close func()
}

type answer struct {
	info *lifeboatv1.SourceInfo
	err  error
}

// What some streams can say besides.
type (
	// indexed knows the raft index of what it will send from the start.
	indexed interface{ Index() int64 }
	// sized knows about how many bytes it will send, at most.
	sized interface{ SizeHint() int64 }
)

// errUnchanged ends an upload whose data turns out to be what is stored already.
var errUnchanged = errors.New("the source has not changed")

// take reads the source and stores it, or finds that it has not changed since the newest snapshot, whose data then stands
// for this one's too.
//
// When the source's own index says that nothing changed, the source is read only to compare its digest: an index alone is
// not to be trusted, for it may come back after a restore. Otherwise it is uploaded, and the digest decides at the end
// whether the upload is completed.
func (p *part) take(ctx context.Context) error {
	prev := p.previous()
	stream, err := p.open(ctx)
	if err != nil {
		return err
	}
	if i, ok := stream.(indexed); ok && prev != nil && i.Index() == p.lastInfo().GetRevision() {
		same, failed := pipeline.Same(stream, prev.GetRaw())
		if failed != nil {
			return fmt.Errorf("reading the source: %w", failed)
		}
		if same {
			p.ask(ctx, stream)
			p.point(prev)
			return nil
		}
		p.end()
		if stream, err = p.open(ctx); err != nil {
			return err
		}
	}
	err = p.worker.stage(ctx, p.job, stageUpload, func(ctx context.Context) error {
		begin := time.Now()
		uploaded := p.upload(ctx, stream, prev)
		if uploaded == nil {
			p.stored(ctx, time.Since(begin))
		}
		return uploaded
	})
	switch {
	case errors.Is(err, errUnchanged):
		p.point(prev)
	case err != nil:
		return err
	}
	p.ask(ctx, stream)
	return nil
}

// ask asks the source in the background about what it sent, as soon as that is stored: etcd's hash can be had only until the
// next compaction, and on a large database it takes a while, in which the upload is read back.
func (p *part) ask(ctx context.Context, stream source.Stream) {
	p.asked = make(chan answer, 1)
	go func() {
		info, err := stream.Info(ctx)
		p.asked <- answer{info, err}
	}()
}

// told waits for the answer, and lets the source go.
func (p *part) told() error {
	a := <-p.asked
	p.asked <- a // for end
	p.end()
	if a.err != nil {
		return fmt.Errorf("asking the source about what it sent: %w", a.err)
	}
	p.info = a.info
	return nil
}

// end lets the source go, if it was opened, and waits for what was asked of it.
func (p *part) end() {
	if p.close != nil {
		p.close()
		p.close = nil
	}
	if p.asked != nil {
		<-p.asked
		p.asked = nil
	}
}

// previous is the newest snapshot's data of the same form, if it can stand for data that has not changed; nil otherwise.
func (p *part) previous() *lifeboatv1.Data {
	w := p.worker
	locked := w.Config().Store.ObjectLock.Mode != ""
	if c := w.Config().Store.Copy; c != nil && c.ObjectLock.Mode != "" {
		locked = true
	}
	if p.last == nil || locked { // each snapshot is to be locked for all its days
		return nil
	}
	d := p.lastData()
	same := d.GetFormat() == p.src.Format() && d.GetCompression() == pipeline.Compression &&
		slices.Equal(d.GetRecipients(), w.Config().Encryption.Recipients)
	if !same {
		return nil
	}
	return d
}

func (p *part) lastData() *lifeboatv1.Data {
	if !p.further {
		return p.last.GetData()
	}
	for _, d := range p.last.GetParts() {
		if d.GetFormat() == p.src.Format() {
			return d
		}
	}
	return nil
}

func (p *part) lastInfo() *lifeboatv1.SourceInfo {
	if !p.further {
		return p.last.GetSource()
	}
	return p.lastData().GetSource()
}

// open starts the stream, until end. Its end first cancels it: a source that is waited for must let go before whoever reads
// it can end.
func (p *part) open(ctx context.Context) (stream source.Stream, err error) {
	reading, stop := context.WithCancelCause(ctx)
	err = p.worker.stage(reading, p.job, stageOpen, func(ctx context.Context) (err error) {
		stream, err = p.src.Open(ctx)
		return err
	})
	if err != nil {
		stop(nil)
		return nil, fmt.Errorf("opening the source: %w", err)
	}
	paced := watchPace(stream, p.job.target.MinKiBPerSecond, p.worker.PaceWindow, stop)
	p.close = func() {
		stop(nil)
		_ = stream.Close() // read to its end, or given up
		paced.stop()
	}
	if d, ok := stream.(pipeline.Digested); ok {
		return digestedPace{paced, d}, nil
	}
	return paced, nil
}

// upload streams the source through the pipeline into the store.
func (p *part) upload(ctx context.Context, stream source.Stream, prev *lifeboatv1.Data) error {
	w := p.worker
	recipients := w.Config().Encryption.Recipients
	keys, err := pipeline.ParseRecipients(recipients)
	if err != nil {
		return err
	}
	key := w.Catalog.Data(p.job.target.Name, p.job.id, p.src.Format(), len(keys) > 0)
	cond := store.Condition{}
	if p.conditional {
		if cond, err = store.As(w.Objects.Head(ctx, key)); err != nil {
			return err
		}
	}
	encoded := pipeline.Encode(stream, keys, func(raw *lifeboatv1.Digest) error {
		if prev != nil && proto.Equal(raw, prev.GetRaw()) {
			return errUnchanged
		}
		if p.conditional {
			return nil
		}
		// Nothing but the claim keeps a worker that was given up for dead from replacing what its successor has committed.
		return p.confirm(ctx)
	})
	object, err := w.Objects.Put(ctx, key, encoded, p.sizeHint(stream), cond)
	if errors.Is(err, errUnchanged) {
		_ = encoded.Close() // nothing reads the source any more
		return err
	}
	if err != nil {
		_ = stream.Close() // or the encoder would wait for it
		_ = encoded.Close()
		return err
	}
	_ = encoded.Close() // it has ended
	p.chunks, p.etag = encoded.Chunks(), object.ETag
	p.data = &lifeboatv1.Data{
		Key: key, Format: p.src.Format(), Raw: encoded.Raw(), Stored: encoded.Stored(),
		Compression: pipeline.Compression, Recipients: recipients,
	}
	return nil
}

// sizeHint is about how many bytes will be stored, at most, for the size of upload parts: S3 takes no more than 10,000.
func (p *part) sizeHint(stream source.Stream) int64 {
	if s, ok := stream.(sized); ok && s.SizeHint() > 0 {
		return s.SizeHint()
	}
	if p.last == nil {
		return 0
	}
	return 2 * p.lastData().GetStored().GetBytes()
}

// point lets the earlier data stand for this snapshot's.
func (p *part) point(prev *lifeboatv1.Data) {
	p.data = proto.CloneOf(prev)
	p.data.Source = nil
	if p.data.GetUnchangedSince() == "" {
		p.data.UnchangedSince = p.last.GetId()
	}
	p.chunks = nil
}

// readBack compares the stored object and adds to what was verified.
func (p *part) readBack(ctx context.Context, v *lifeboatv1.Verification) error {
	w := p.worker
	stored := p.data.GetStored().GetBytes()
	above := p.job.target.ReadBack.SampleAboveMiB << 20
	if above == 0 || stored <= above || p.chunks == nil {
		ids, err := w.identities()
		if err != nil {
			return err
		}
		method, err := verifyData(ctx, w.Objects, p.data, ids, nil)
		if err != nil {
			return err
		}
		v.Bytes += stored
		if method == methodStored && v.GetMethod() == methodDecoded {
			v.Method = method
		}
		return nil
	}
	sample, err := p.chunks.Check(ctx, func(ctx context.Context, offset, length int64) (io.ReadCloser, error) {
		r, _, err := w.Objects.GetRange(ctx, p.data.GetKey(), offset, length, p.etag)
		return r, err
	})
	if err != nil {
		return err
	}
	v.Method = methodSampled
	v.Bytes += sample.Bytes
	v.Chunks += sample.Chunks
	v.ChunksRead += sample.Read
	return nil
}
