package s3

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"sync"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
)

// limits are how long one request may go without progress. The SDK has none: a store that takes a request and says nothing
// would hold a job for ever.
type limits struct {
	// idle is the longest wait for a connection, for the socket to take a piece of a body, or for a piece of an answer.
	idle time.Duration
	// answer is the longest wait for an answer after the body is sent. It includes what the kernel still holds of it.
	answer time.Duration
	// complete is the same for CompleteMultipartUpload, where some stores copy all parts before they answer. AWS says that
	// it can take several minutes.
	complete time.Duration
}

func defaultLimits() limits {
	return limits{idle: time.Minute, answer: 2 * time.Minute, complete: 15 * time.Minute}
}

// stalledError is a request that was ended because it made no progress. It may be tried again.
type stalledError struct {
	waiting string
	limit   time.Duration
}

func (e *stalledError) Error() string {
	return fmt.Sprintf("the store stalled: no progress for %s while %s", e.limit, e.waiting)
}

// Timeout tells the SDK that it may try again.
func (e *stalledError) Timeout() bool { return true }

// watch ends requests that make no progress.
type watch struct {
	next   aws.HTTPClient
	limits limits
}

// Do implements aws.HTTPClient.
func (w *watch) Do(r *http.Request) (*http.Response, error) {
	ctx, cancel := context.WithCancelCause(r.Context())
	d := newDeadline(cancel)
	answer := w.limits.answer
	if r.Method == http.MethodPost && r.URL.Query().Has("uploadId") {
		answer = w.limits.complete
	}
	out := r.WithContext(ctx)
	var body *sending
	if r.Body != nil && r.Body != http.NoBody {
		body = &sending{ReadCloser: r.Body, d: d, idle: w.limits.idle, answer: answer}
		out.Body = body
		d.set("sending", w.limits.idle)
	} else {
		d.set("waiting for an answer", answer)
	}
	resp, err := w.next.Do(out)
	if body != nil {
		body.end() // the transport may read on when the answer came before all was sent
	}
	d.stop()
	if err != nil {
		err = because(ctx, r.Context(), err)
		cancel(nil)
		return resp, err
	}
	resp.Body = &receiving{ReadCloser: resp.Body, d: d, idle: w.limits.idle, ctx: ctx, parent: r.Context(), cancel: cancel}
	return resp, nil
}

// because puts the stall in place of the cancellation that it made.
func because(ctx, parent context.Context, err error) error {
	if stalled, ok := errors.AsType[*stalledError](context.Cause(ctx)); ok && parent.Err() == nil {
		return stalled
	}
	return err
}

// deadline cancels a request when it is not moved in time.
type deadline struct {
	cancel context.CancelCauseFunc
	timer  *time.Timer

	mu      sync.Mutex
	waiting stalledError
}

func newDeadline(cancel context.CancelCauseFunc) *deadline {
	d := &deadline{cancel: cancel}
	d.timer = time.AfterFunc(time.Hour, func() {
		d.mu.Lock()
		defer d.mu.Unlock()
		stalled := d.waiting
		d.cancel(&stalled)
	})
	d.timer.Stop()
	return d
}

func (d *deadline) set(waiting string, limit time.Duration) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.waiting = stalledError{waiting, limit}
	d.timer.Reset(limit)
}

func (d *deadline) stop() { d.timer.Stop() }

// sending is a request's body: each piece that the transport takes is progress.
type sending struct {
	io.ReadCloser
	d            *deadline
	idle, answer time.Duration

	mu    sync.Mutex
	ended bool
}

func (s *sending) Read(p []byte) (int, error) {
	n, err := s.ReadCloser.Read(p)
	s.mu.Lock()
	defer s.mu.Unlock()
	switch {
	case s.ended:
	case err != nil:
		s.d.set("waiting for an answer", s.answer)
	default:
		s.d.set("sending", s.idle)
	}
	return n, err //nolint:wrapcheck // a reader passes io.EOF as it is
}

func (s *sending) end() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.ended = true
}

// receiving is an answer's body. Only a read is timed: a reader that takes its time is not the store's fault.
type receiving struct {
	io.ReadCloser
	d           *deadline
	idle        time.Duration
	ctx, parent context.Context //nolint:containedctx // of the one request that this body ends
	cancel      context.CancelCauseFunc
}

func (b *receiving) Read(p []byte) (int, error) {
	b.d.set("receiving", b.idle)
	n, err := b.ReadCloser.Read(p)
	b.d.stop()
	if err != nil && err != io.EOF { //nolint:errorlint // a reader's io.EOF is never wrapped
		err = because(b.ctx, b.parent, err)
	}
	return n, err //nolint:wrapcheck // a reader passes io.EOF as it is
}

func (b *receiving) Close() error {
	b.d.stop()
	err := b.ReadCloser.Close()
	b.cancel(nil)
	return err //nolint:wrapcheck // nothing to add
}
