// Package pipeline turns a source's bytes into what is stored, and back: hash, zstd, age, hash. Both directions stream;
// memory does not grow with the data.
package pipeline

import (
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"hash"
	"io"
	"strings"
	"sync"

	"filippo.io/age"
	"github.com/klauspost/compress/zstd"

	lifeboatv1 "github.com/lifeboat-fleet/lifeboat/proto/lifeboat/v1"
)

// Compression is the name of the only compression, as manifests have it.
const Compression = "zstd"

// window bounds the memory of both directions. The stock zstd tool decodes up to 8 MiB without asking (RFC 8878, 3.1.1.1.2).
const window = 4 << 20

// ErrDamaged means that stored bytes are not what their manifest says.
var ErrDamaged = errors.New("the data is damaged")

// ErrNoIdentity means that the data is encrypted and none of the identities can decrypt it.
var ErrNoIdentity = errors.New("no identity can decrypt this snapshot")

// digester counts and hashes what passes.
type digester struct {
	sum hash.Hash
	n   int64
}

func newDigester() *digester { return &digester{sum: sha256.New()} }

func (d *digester) Write(p []byte) (int, error) {
	d.n += int64(len(p))
	return d.sum.Write(p)
}

func (d *digester) digest() *lifeboatv1.Digest {
	return &lifeboatv1.Digest{Bytes: d.n, Sha256: hex.EncodeToString(d.sum.Sum(nil))}
}

// ParseRecipients reads age public keys.
func ParseRecipients(keys []string) ([]age.Recipient, error) {
	if len(keys) == 0 {
		return nil, nil
	}
	r, err := age.ParseRecipients(strings.NewReader(strings.Join(keys, "\n")))
	if err != nil {
		return nil, fmt.Errorf("encryption.recipients: %w", err)
	}
	return r, nil
}

// Encoder reads a source and gives the bytes to store. It is an io.ReadCloser; Raw and Stored are valid after io.EOF.
type Encoder struct {
	out    *io.PipeReader
	done   chan struct{}
	raw    *digester
	stored *digester
	close  sync.Once
}

// Encode starts reading src. With recipients, each of them alone can decrypt the result.
func Encode(src io.Reader, recipients []age.Recipient) *Encoder {
	pr, pw := io.Pipe()
	e := &Encoder{out: pr, done: make(chan struct{}), raw: newDigester(), stored: newDigester()}
	go func() {
		defer close(e.done)
		pw.CloseWithError(encode(io.TeeReader(src, e.raw), pw, recipients))
	}()
	return e
}

// encode writes one whole zstd frame. An error of the source ends it before the frame is whole, so that a cut stream
// never looks complete.
func encode(src io.Reader, dst io.Writer, recipients []age.Recipient) error {
	var sealed io.WriteCloser
	if len(recipients) > 0 {
		var err error
		if sealed, err = age.Encrypt(dst, recipients...); err != nil {
			return fmt.Errorf("encrypting: %w", err)
		}
		dst = sealed
	}
	z, err := zstd.NewWriter(dst, zstd.WithEncoderLevel(zstd.SpeedDefault), zstd.WithWindowSize(window),
		zstd.WithEncoderConcurrency(2), zstd.WithEncoderCRC(true))
	if err != nil {
		return fmt.Errorf("compressing: %w", err)
	}
	if _, err := io.Copy(z, src); err != nil {
		z.Reset(nil) // ends the encoder's goroutines without writing the end of the frame
		return fmt.Errorf("reading the source: %w", err)
	}
	if err := z.Close(); err != nil {
		return fmt.Errorf("compressing: %w", err)
	}
	if sealed != nil {
		if err := sealed.Close(); err != nil {
			return fmt.Errorf("encrypting: %w", err)
		}
	}
	return nil
}

// Read gives bytes to store.
func (e *Encoder) Read(p []byte) (int, error) {
	n, err := e.out.Read(p)
	_, _ = e.stored.Write(p[:n]) // a hash never fails
	return n, err
}

// Close stops the encoder and waits until it no longer reads the source, which must be unblocked by its own context.
func (e *Encoder) Close() error {
	e.close.Do(func() {
		_ = e.out.Close() // a pipe's Close returns nil
		<-e.done
	})
	return nil
}

// Raw is what was read from the source.
func (e *Encoder) Raw() *lifeboatv1.Digest { return e.raw.digest() }

// Stored is what was given to the store.
func (e *Encoder) Stored() *lifeboatv1.Digest { return e.stored.digest() }

// Check reads a stored object to its end and compares it with its digest, without decoding. It returns ErrDamaged with
// what differs.
func Check(r io.Reader, want *lifeboatv1.Digest) error {
	d := newDigester()
	if _, err := io.Copy(d, r); err != nil {
		return fmt.Errorf("reading back: %w", err)
	}
	return compare("stored", d.digest(), want)
}

func compare(what string, got, want *lifeboatv1.Digest) error {
	switch {
	case got.GetBytes() != want.GetBytes():
		return fmt.Errorf("%w: %s data has %d bytes, the manifest says %d", ErrDamaged, what, got.GetBytes(), want.GetBytes())
	case got.GetSha256() != want.GetSha256():
		return fmt.Errorf("%w: %s data has sha256 %s, the manifest says %s", ErrDamaged, what, got.GetSha256(), want.GetSha256())
	}
	return nil
}

// Decoder gives the source's bytes back. It returns io.EOF only when both the stored and the raw digest are as the
// manifest says; a reader that stops earlier has proven nothing.
type Decoder struct {
	in     *tee
	z      *zstd.Decoder
	data   *lifeboatv1.Data
	raw    *digester
	stored *digester
	err    error
}

// Decode prepares to read a stored object. Identities are needed if the manifest names recipients.
func Decode(r io.Reader, data *lifeboatv1.Data, identities []age.Identity) (*Decoder, error) {
	if data.GetCompression() != Compression {
		return nil, fmt.Errorf("compression %q is not known to this version", data.GetCompression())
	}
	d := &Decoder{data: data, raw: newDigester(), stored: newDigester()}
	d.in = &tee{r: r, to: d.stored}
	var plain io.Reader = d.in
	if len(data.GetRecipients()) > 0 {
		if len(identities) == 0 {
			return nil, fmt.Errorf("%w: encryption.identity_file is not set; it is encrypted to %s",
				ErrNoIdentity, strings.Join(data.GetRecipients(), ", "))
		}
		var err error
		if plain, err = age.Decrypt(d.in, identities...); err != nil {
			if _, ok := errors.AsType[*age.NoIdentityMatchError](err); ok {
				return nil, fmt.Errorf("%w: it is encrypted to %s", ErrNoIdentity, strings.Join(data.GetRecipients(), ", "))
			}
			return nil, d.in.damagedOr("decrypting", err)
		}
	}
	z, err := zstd.NewReader(plain, zstd.WithDecoderMaxWindow(2*window), zstd.WithDecoderConcurrency(2))
	if err != nil {
		return nil, fmt.Errorf("decompressing: %w", err)
	}
	d.z = z
	return d, nil
}

// Read implements io.Reader.
func (d *Decoder) Read(p []byte) (int, error) {
	if d.err != nil {
		return 0, d.err
	}
	n, err := d.z.Read(p)
	_, _ = d.raw.Write(p[:n]) // a hash never fails
	switch {
	case errors.Is(err, io.EOF):
		d.err = d.finish()
	case err != nil:
		d.err = d.in.damagedOr("decoding", err)
	}
	return n, d.err
}

// tee hashes what is read and remembers whether reading itself failed: a connection that broke is not damage, and is worth
// another attempt.
type tee struct {
	r   io.Reader
	to  *digester
	err error
}

func (t *tee) Read(p []byte) (int, error) {
	n, err := t.r.Read(p)
	_, _ = t.to.Write(p[:n]) // a hash never fails
	if err != nil && !errors.Is(err, io.EOF) {
		t.err = err
	}
	return n, err
}

// damagedOr is the error of a step that failed: the reader's own, if that failed first, and damage otherwise.
func (t *tee) damagedOr(doing string, err error) error {
	if t.err != nil {
		return fmt.Errorf("reading the stored object: %w", t.err)
	}
	return fmt.Errorf("%w: %s: %w", ErrDamaged, doing, err)
}

// finish reads what stands behind the compressed frame, if anything, and compares both digests.
func (d *Decoder) finish() error {
	if _, err := io.Copy(io.Discard, d.in); err != nil {
		return fmt.Errorf("reading the stored object: %w", err)
	}
	if err := compare("stored", d.stored.digest(), d.data.GetStored()); err != nil {
		return err
	}
	if err := compare("raw", d.raw.digest(), d.data.GetRaw()); err != nil {
		return err
	}
	return io.EOF
}

// Close frees the decoder. It does not close the stored object.
func (d *Decoder) Close() error {
	d.z.Close()
	return nil
}
