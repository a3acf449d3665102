package drill

import (
	"cmp"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"hash"
	"io"
	"os"
	"sync"

	"filippo.io/age"

	lifeboatv1 "github.com/lifeboat-fleet/lifeboat/proto/lifeboat/v1"
	"github.com/lifeboat-fleet/lifeboat/services/backup/internal/pipeline"
	"github.com/lifeboat-fleet/lifeboat/services/backup/internal/store"
	"github.com/lifeboat-fleet/lifeboat/services/backup/internal/throwaway"
)

// ErrStore means that the store failed, which says nothing about the snapshot.
var ErrStore = errors.New("the store cannot be read")

// part is one stored object on its way: fetched, decrypted, decompressed and compared with both of its digests. Each of its errors
// is a fault of the phase that it belongs to, or ErrStore, or the cause of the context's end.
type part struct {
	ctx  context.Context //nolint:containedctx // an io.Reader is given none
	run  *run
	data *lifeboatv1.Data

	object  *object
	decoder *pipeline.Decoder
	decoded func() // ends the phase
	err     error
}

// open begins to fetch a stored object. Its phases are in the report once it is closed.
func (r *run) open(ctx context.Context, data *lifeboatv1.Data) (*part, error) {
	p := &part{ctx: ctx, run: r, data: data}
	r.mu.Lock()
	if r.fetching.IsZero() {
		r.fetching = r.in.Clock()
	}
	r.mu.Unlock()
	fetched := r.begin(phaseFetch)
	body, err := r.fetch(ctx, data.GetKey())
	if err != nil {
		fetched()
		return nil, err
	}
	p.object = &object{body: body, ended: fetched}
	p.decoded = r.begin(phaseDecrypt)
	if r.in.Locked != nil && len(data.GetRecipients()) > 0 {
		err = &fault{phaseDecrypt, r.in.Locked}
	} else if p.decoder, err = pipeline.Decode(p.object, data, r.in.Identities); err != nil {
		err = p.blame(err)
	}
	if err != nil {
		_ = p.Close() // nothing more is read
		return nil, err
	}
	return p, nil
}

// fetch opens a stored object.
func (r *run) fetch(ctx context.Context, key string) (io.ReadCloser, error) {
	body, err := r.in.Fetch(ctx, key)
	switch {
	case err == nil:
		return body, nil
	case ctx.Err() != nil:
		return nil, failed(phaseFetch, context.Cause(ctx))
	}
	return nil, unread(key, err)
}

// unread sorts an error of the store.
func unread(key string, err error) error {
	if errors.Is(err, store.ErrNotFound) {
		return &fault{phaseFetch, fmt.Errorf("the stored object %s is missing: %w", key, err)}
	}
	return fmt.Errorf("%w: fetching %s: %w", ErrStore, key, err)
}

// Read implements io.Reader. Its end is io.EOF only when both digests are as the manifest says.
func (p *part) Read(b []byte) (int, error) {
	if p.err != nil {
		return 0, p.err
	}
	if p.ctx.Err() != nil {
		p.err = failed(phaseFetch, context.Cause(p.ctx))
		return 0, p.err
	}
	n, err := p.decode(b)
	switch {
	case errors.Is(err, io.EOF):
		p.decoded()
		p.err = io.EOF
	case err != nil:
		p.err = p.blame(err)
	}
	return n, p.err
}

// compareRaw compares what the reader has hashed, where that was left to it.
func (p *part) compareRaw(bytes int64, sum [sha256.Size]byte) error {
	if err := p.decoder.CompareRaw(bytes, sum); err != nil {
		p.err = p.blame(err)
		return p.err
	}
	return nil
}

// decode reads from the decoder, of whose bugs a drill must be able to tell.
func (p *part) decode(b []byte) (n int, err error) {
	panicked := throwaway.Guard(func() error {
		n, err = p.decoder.Read(b)
		return nil
	})
	return n, cmp.Or(err, panicked)
}

// Close ends both phases.
func (p *part) Close() error {
	if p.decoder != nil {
		_ = p.decoder.Close() // it never fails
	}
	p.decoded()
	return p.object.Close()
}

// blame finds out which step an error of decoding belongs to. The decoder sees damage where it stumbles over it; whether the stored
// bytes are those of the manifest tells only all of them, so they are read again.
func (p *part) blame(err error) error {
	switch read := p.object.failed(); {
	case p.ctx.Err() != nil:
		return failed(phaseFetch, context.Cause(p.ctx))
	case read != nil:
		return unread(p.data.GetKey(), read)
	case errors.Is(err, pipeline.ErrNoIdentity) && len(p.run.in.Identities) == 0:
		return &fault{phaseDecrypt, err}
	}
	return p.inspect(err)
}

// inspect reads the object once more, all of it, to find out what is wrong: what is stored, what is in it, or the way from there.
func (p *part) inspect(first error) error {
	again := &part{ctx: p.ctx, run: p.run, data: p.data, object: &object{ended: func() {}}}
	body, err := p.run.fetch(p.ctx, p.data.GetKey())
	if err != nil {
		return err
	}
	defer body.Close()
	stored := newStoredDigest(&ctxReader{ctx: p.ctx, r: body})
	again.object.body = io.NopCloser(stored)
	err = decode(again.object, p.data, p.run.in.Identities)
	if _, derr := io.Copy(io.Discard, again.object); derr != nil {
		err = derr // it could not be read to its end
	}
	switch read := again.object.failed(); {
	case p.ctx.Err() != nil:
		return failed(phaseFetch, context.Cause(p.ctx))
	case read != nil:
		return unread(p.data.GetKey(), read)
	}
	if damage := p.run.compareStored(p.ctx, p.data, stored.digest()); damage != nil {
		return damage
	}
	switch {
	case err == nil:
		return fmt.Errorf("%w: what came of %s at first was changed on the way, and is right now: %w", ErrStore, p.data.GetKey(), first)
	case errors.Is(err, pipeline.ErrNoIdentity):
		return &fault{phaseDecrypt, fmt.Errorf("the %s identity is another key: %w", p.run.in.Identity, err)}
	}
	return &fault{phaseDecrypt, fmt.Errorf("the stored object is what the manifest says, and what is in it is not: %w", err)}
}

// decode decodes an object to nowhere.
func decode(r io.Reader, data *lifeboatv1.Data, identities []age.Identity) error {
	d, err := pipeline.Decode(r, data, identities)
	if err != nil {
		return err
	}
	_, err = io.Copy(io.Discard, d)
	return errors.Join(err, d.Close())
}

// storedDigest hashes what is read, by whoever reads.
type storedDigest struct {
	mu  sync.Mutex
	r   io.Reader
	sum hash.Hash
	n   int64
}

func newStoredDigest(r io.Reader) *storedDigest { return &storedDigest{r: r, sum: sha256.New()} }

func (d *storedDigest) Read(b []byte) (int, error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	n, err := d.r.Read(b)
	d.n += int64(n)
	_, _ = d.sum.Write(b[:n]) // a hash never fails
	return n, err
}

func (d *storedDigest) digest() *lifeboatv1.Digest {
	return &lifeboatv1.Digest{Bytes: d.n, Sha256: hex.EncodeToString(d.sum.Sum(nil))}
}

// compareStored compares what is stored with the manifest. nil means that it is as it should be.
func (r *run) compareStored(ctx context.Context, data *lifeboatv1.Data, got *lifeboatv1.Digest) error {
	var what string
	switch want := data.GetStored(); {
	case got.GetBytes() != want.GetBytes():
		what = fmt.Sprintf("it has %d bytes instead of %d", got.GetBytes(), want.GetBytes())
	case got.GetSha256() != want.GetSha256():
		what = fmt.Sprintf("its sha256 is %s instead of %s", got.GetSha256(), want.GetSha256())
	default:
		return nil
	}
	if r.in.Owner != nil {
		if owner := r.in.Owner(ctx, got); owner != "" {
			what += "; it is the data of " + owner
		}
	}
	return &fault{phaseFetch, fmt.Errorf("the stored object %s is not what the manifest says: %s", data.GetKey(), what)}
}

// receive fetches and decodes an object into a file.
func (r *run) receive(ctx context.Context, data *lifeboatv1.Data, file string) (err error) {
	p, err := r.open(ctx, data)
	if err != nil {
		return err
	}
	defer func() { _ = p.Close() }() // it was read to its end, or there is a better error
	f, err := os.OpenFile(file, os.O_CREATE|os.O_EXCL|os.O_WRONLY, 0o600)
	if err != nil {
		return &fault{phaseRestore, fmt.Errorf("making a file for the snapshot: %w", err)}
	}
	_, err = io.CopyBuffer(struct{ io.Writer }{f}, p, make([]byte, copyBuffer))
	return p.write(errors.Join(err, f.Close()))
}

// write is the error of reading the part and writing it: its own, if it has one.
func (p *part) write(err error) error {
	switch {
	case p.err != nil && !errors.Is(p.err, io.EOF):
		return p.err
	case p.ctx.Err() != nil:
		return failed(phaseFetch, context.Cause(p.ctx))
	case err != nil:
		return &fault{phaseRestore, fmt.Errorf("writing the snapshot into the scratch folder: %w", err)}
	}
	return nil
}

// copyBuffer is how much is handed on at once.
const copyBuffer = 1 << 20

// object is a stored object that is being read, by goroutines of the decoder. It remembers how that went.
type object struct {
	body  io.ReadCloser
	ended func()

	mu  sync.Mutex
	err error
}

func (o *object) Read(b []byte) (int, error) {
	n, err := o.body.Read(b)
	if err != nil {
		o.ended()
		o.mu.Lock()
		defer o.mu.Unlock()
		if o.err == nil {
			o.err = err
		}
	}
	return n, err
}

// failed is why it could not be read to its end; nil when it could, or when nobody has tried yet.
func (o *object) failed() error {
	o.mu.Lock()
	defer o.mu.Unlock()
	if errors.Is(o.err, io.EOF) {
		return nil
	}
	return o.err
}

func (o *object) Close() error {
	o.ended()
	return o.body.Close()
}

// ctxReader ends a read when the context does.
type ctxReader struct {
	ctx context.Context //nolint:containedctx // an io.Reader is given none
	r   io.Reader
}

// Read implements io.Reader.
func (r *ctxReader) Read(p []byte) (int, error) {
	if err := r.ctx.Err(); err != nil {
		return 0, err
	}
	return r.r.Read(p)
}
