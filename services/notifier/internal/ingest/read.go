package ingest

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"strings"
	"time"

	"github.com/klauspost/compress/gzip"
)

const (
	// maxBody is 10,000 alerts of usual size and half as many again. It bounds what is sent, and what that decompresses to.
	maxBody = 16 << 20
	// smallBody is read before memory is asked for, so that nobody who sends a large one slowly holds up the small ones.
	smallBody = 256 << 10
	// maxMemory is how many bytes of bodies are held at once; further ones wait for their turn.
	maxMemory = 2 * maxBody
	// turnTimeout bounds that wait.
	turnTimeout = 5 * time.Second
	// maxDrain is how much of a body that is too large is read and thrown away: a client that still sends may not see the answer.
	maxDrain = 256 << 20
)

// taken is the body of a request, decompressed. Memory is held for it until release is called.
type taken struct {
	data    []byte
	release func()
}

// read takes a request's body. With a refusal the data is what was read of it, for the dead letter.
func (h *Handlers) read(r *http.Request) (taken, *refusal) {
	wire := &wireReader{r: r.Body}
	src, no := decompress(wire, r.Header.Get("Content-Encoding"))
	var buf bytes.Buffer
	t := taken{release: func() {}}
	if no == nil {
		no = h.fill(r, &buf, src, &t)
	}
	t.data = buf.Bytes()
	if wire.keep && no != nil && no.code != http.StatusRequestEntityTooLarge {
		_, _ = io.CopyN(io.Discard, wire, smallBody) // the wire remembers its errors
		t.data = wire.head.Bytes()                   // as it came: what it was to be is not known
	}
	if wire.err != nil {
		// The connection broke; Alertmanager comes again.
		no = &refusal{code: http.StatusServiceUnavailable, err: fmt.Errorf("reading the body: %w", wire.err)}
	}
	if no != nil && no.code == http.StatusRequestEntityTooLarge {
		_, _ = io.CopyN(io.Discard, wire, maxDrain) // it is refused in any case
	}
	return t, no
}

// fill reads the body into buf and takes the memory for it.
func (h *Handlers) fill(r *http.Request, buf *bytes.Buffer, src io.Reader, t *taken) *refusal {
	if size := r.ContentLength; size > 0 && size <= smallBody {
		buf.Grow(int(size) + bytes.MinRead)
	}
	_, err := buf.ReadFrom(io.LimitReader(src, smallBody+1))
	if err == nil && r.ContentLength > maxBody {
		return tooLarge()
	}
	need := int64(buf.Len())
	if need > smallBody {
		if need = maxBody; r.ContentLength > 0 && !compressed(r) {
			need = r.ContentLength
		}
	}
	if no := h.hold(r.Context(), need); no != nil {
		return no
	}
	t.release = func() { h.memory.Release(need) }
	if err == nil && need > smallBody {
		if need < maxBody { // known; else it doubles as it comes
			buf.Grow(int(need) - buf.Len() + bytes.MinRead)
		}
		_, err = buf.ReadFrom(io.LimitReader(src, maxBody+1-int64(buf.Len())))
	}
	switch {
	case err != nil:
		return malformed(fmt.Errorf("decompressing the body: %w", err))
	case buf.Len() > maxBody:
		return tooLarge()
	}
	return nil
}

func (h *Handlers) hold(ctx context.Context, bytes int64) *refusal {
	if h.memory.TryAcquire(bytes) {
		return nil
	}
	ctx, cancel := context.WithTimeout(ctx, turnTimeout)
	defer cancel()
	if err := h.memory.Acquire(ctx, bytes); err != nil {
		return &refusal{code: http.StatusServiceUnavailable, err: fmt.Errorf("waiting until other webhooks are stored: %w", err)}
	}
	return nil
}

// decompress undoes a Content-Encoding.
func decompress(wire *wireReader, encoding string) (io.Reader, *refusal) {
	switch encoding = strings.ToLower(strings.TrimSpace(encoding)); encoding {
	case "", "identity":
		return wire, nil
	case "gzip", "x-gzip":
		wire.keep = true
		gz, err := gzip.NewReader(wire)
		if err != nil {
			return nil, malformed(fmt.Errorf("decompressing the body: %w", err))
		}
		return gz, nil
	}
	wire.keep = true
	return nil, &refusal{
		code: http.StatusUnsupportedMediaType, reason: "webhook_encoding",
		err: fmt.Errorf("the Content-Encoding is %q; gzip is taken, or none", cut(encoding)),
	}
}

func compressed(r *http.Request) bool { return r.Header.Get("Content-Encoding") != "" }

func malformed(err error) *refusal {
	return &refusal{code: http.StatusBadRequest, reason: "webhook_malformed", err: err}
}

func tooLarge() *refusal {
	return &refusal{
		code: http.StatusRequestEntityTooLarge, reason: "webhook_too_large",
		err: fmt.Errorf("the body is larger than %d bytes; set max_alerts in the webhook_config, or send less at once", maxBody),
	}
}

// wireReader remembers an error of the connection, to tell it from one of what was sent, and with keep how it began.
type wireReader struct {
	r    io.Reader
	keep bool
	head bytes.Buffer
	err  error
}

// Read of the connection.
func (w *wireReader) Read(p []byte) (int, error) {
	n, err := w.r.Read(p)
	if w.keep && w.head.Len() < smallBody {
		w.head.Write(p[:min(n, smallBody-w.head.Len())])
	}
	if err != nil && !errors.Is(err, io.EOF) {
		w.err = err
	}
	return n, err
}
