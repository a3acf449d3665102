// Package source defines how a target is read. Its subpackages read etcd, Consul KV and Nomad; the suite in sourcetest
// holds every one of them to the contract below.
package source

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/url"

	lifeboatv1 "github.com/lifeboat-fleet/lifeboat/proto/lifeboat/v1"
)

// Stream is one consistent read of a target, in the format of the target's own tools.
//
//   - Read returns io.EOF only when everything came and was checked: a connection that ends early, a wrong checksum or
//     a document that is cut are errors, never the end. Errors are sticky. One goroutine at a time may read.
//   - The context given to Open bounds the whole stream: once it is done, Read returns its error, promptly and also
//     while it waits for the source. A source that sends nothing for a while is an error too; time that the reader
//     spends between two reads does not count.
//   - Memory does not grow with the size of the source (etcd: eleven bytes for a page, a third of a percent).
//   - Info tells what was read. It is valid only after io.EOF and before Close, and is best called at once: etcd's own
//     counts can be had only until the next compaction. Before io.EOF it returns ErrUnfinished. What the source would
//     not tell is listed in SourceInfo.missing and is no error. It is asked once and remembered.
//   - Close ends the read at the source and waits for what the stream runs in the background. It is idempotent, and
//     safe at any time, also while another goroutine reads.
//
// An error names the endpoint and never a secret. Those that came from outside are an *Error.
type Stream interface {
	io.Reader
	io.Closer
	Info(ctx context.Context) (*lifeboatv1.SourceInfo, error)
}

// ErrUnfinished is returned by Stream.Info before the stream was read to its end.
var ErrUnfinished = errors.New("the stream was not read to its end")

// ErrClosed is returned by a Stream's methods after Close.
var ErrClosed = errors.New("the stream is closed")

// Reason is a short name for why a read failed, fit for a metric's label.
type Reason string

// The reasons there are.
const (
	// Unreachable: no answer, or the connection broke.
	Unreachable Reason = "unreachable"
	// Denied: the credentials are wrong or do not suffice.
	Denied Reason = "denied"
	// Damaged: what came is not whole or not what it should be.
	Damaged Reason = "damaged"
	// Stale: the member that was read is behind its cluster, or no member is fit to be read.
	Stale Reason = "stale"
	// Stalled: the source stopped sending.
	Stalled Reason = "stalled"
	// Misconfigured: what the configuration says cannot be used.
	Misconfigured Reason = "misconfigured"
	// Canceled: the context of the read ended.
	Canceled Reason = "canceled"
)

// Error is a failure to read a target.
type Error struct {
	Reason   Reason
	Endpoint string
	// Doing is what was being done, as in "listing jobs".
	Doing string
	Err   error
}

// Error says what was being done, where, and the cause.
func (e *Error) Error() string { return fmt.Sprintf("%s at %s: %v", e.Doing, e.Endpoint, e.Err) }

// Unwrap gives the cause.
func (e *Error) Unwrap() error { return e.Err }

// Retryable says whether trying again later can help without a person.
func (e *Error) Retryable() bool { return e.Reason != Denied && e.Reason != Misconfigured }

// Classify wraps err, with ReasonOf of a context that ended before any other reason: what fails after a cancellation
// fails because of it. A nil err stays nil.
func Classify(ctx context.Context, reason Reason, endpoint, doing string, err error) error {
	if err == nil {
		return nil
	}
	if ctx.Err() != nil {
		err = context.Cause(ctx)
		reason = Canceled
	}
	if errors.Is(err, ErrStalled) {
		reason = Stalled
	}
	return &Error{Reason: reason, Endpoint: endpoint, Doing: doing, Err: err}
}

// Endpoint is an address as it may be shown: without a password.
func Endpoint(address string) string {
	u, err := url.Parse(address)
	if err != nil {
		// The parser's own message would show what could not be parsed.
		return "an address that is no URL"
	}
	return u.Redacted()
}
