package bus

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"net/http"
	"slices"
	"strings"
	"time"

	"github.com/nats-io/nats.go"
	"go.opentelemetry.io/otel/attribute"
	"go.opentelemetry.io/otel/propagation"
	"go.opentelemetry.io/otel/trace"

	"github.com/lifeboat-fleet/lifeboat/fleet/tracing"
)

// Message is one delivery of a stored message.
type Message struct {
	Subject string
	Data    []byte
	Header  nats.Header
	// Seq is the message's place in its stream; Stored is when the server took it. Both stay the same on redelivery.
	Seq    uint64
	Stored time.Time
	// Delivery is how often the server has handed this message out, from 1.
	Delivery int64
	// Attempt is what counts against MaxAttempts, from 1. It is Delivery, except for a consumer with CountsByClaim: there it is 0
	// until Claim sets it.
	Attempt int64
	// Behind is how many messages of the consumer wait that have not been delivered yet.
	Behind uint64
	// maxAttempts is the consumer's, for Claim; 0: no limit.
	maxAttempts int64
}

// ID names what this message asks for: it sorts by time, is legible, and is the same on every delivery. It is the id of
// the job, and of the snapshot or drill that the job makes: "20261121T040000.123Z-42". What stands behind the dash is the
// sequence that the server's acknowledgement names, so that whoever published the job knows its id by that. The time keeps
// apart what two streams, or one that was lost and made anew, number alike.
func (m *Message) ID() string {
	return fmt.Sprintf("%s-%d", m.Stored.UTC().Format("20060102T150405.000Z"), m.Seq)
}

// DeadID is the id of the dead letter about this message. It names the subject as well: dead letters of all streams lie in one.
func (m *Message) DeadID() string { return "dead-" + m.Subject + "-" + m.ID() }

// Trace is what the message was published with; invalid when that was nothing.
func (m *Message) Trace() trace.SpanContext {
	return tracing.From(carrier(m.Header).Get(tracing.Header))
}

// TraceHeader is the header of a message that goes on with a trace; nil for one that is invalid.
func TraceHeader(sc trace.SpanContext) map[string]string {
	if !sc.IsValid() {
		return nil
	}
	return map[string]string{http.CanonicalHeaderKey(tracing.Header): tracing.Text(sc)}
}

// carrier reads a message's headers. NATS tells the case of their names apart; people and other programs write them as they are defined,
// and the library of OpenTelemetry writes them as HTTP does.
type carrier nats.Header

func (c carrier) Get(key string) string {
	return cmp.Or(nats.Header(c).Get(http.CanonicalHeaderKey(key)), nats.Header(c).Get(key))
}
func (c carrier) Set(key, value string) { nats.Header(c).Set(http.CanonicalHeaderKey(key), value) }
func (c carrier) Keys() []string        { return slices.Collect(maps.Keys(c)) }

// begin begins the span of handling it, and notes for the logs what it is about. A context without a trace gets a new one.
func (m *Message) begin(ctx context.Context, consumer string) (context.Context, trace.Span) {
	if work, target, ok := ParseJobSubject(m.Subject); ok {
		ctx = tracing.Note(ctx, slog.String("work", string(work)), slog.String("target", target), slog.String("job_id", m.ID()))
	}
	if receiver, ok := strings.CutPrefix(m.Subject, DeliverySubject("")); ok {
		ctx = tracing.Note(ctx, slog.String("receiver", strings.TrimSuffix(receiver, ".critical")))
	}
	ctx, span := tracing.Start(propagation.TraceContext{}.Extract(ctx, carrier(m.Header)), "process "+consumer, trace.WithSpanKind(trace.SpanKindConsumer))
	if span.IsRecording() { // https://opentelemetry.io/docs/specs/semconv/messaging/messaging-spans/
		span.SetAttributes(
			attribute.String("messaging.system", "nats"), attribute.String("messaging.operation.type", "process"),
			attribute.String("messaging.destination.name", m.Subject), attribute.String("messaging.message.id", m.ID()),
			attribute.Int64("messaging.delivery", m.Delivery),
		)
		for _, note := range tracing.Notes(ctx) {
			span.SetAttributes(attribute.String("lifeboat."+note.Key, note.Value.String()))
		}
	}
	return ctx, span
}

// ErrLostMessage is the cause of a handler's cancelled context when the server stopped confirming heartbeats: another
// worker may have the message by now.
var ErrLostMessage = errors.New("the server did not confirm a heartbeat in time; the message may be with another worker")

// ErrStopping is the cause of a handler's cancelled context when the service stops and the time of grace is over.
var ErrStopping = errors.New("the service is stopping, and the time that it gives work to end is over")

// terminalError says that no further attempt can help.
type terminalError struct {
	reason string
	err    error
}

func (e *terminalError) Error() string { return e.err.Error() }
func (e *terminalError) Unwrap() error { return e.err }

// Terminal marks an error that no retry can mend: the message becomes a dead letter. reason is a short word for the
// metric, as "unknown_target".
func Terminal(reason string, err error) error { return &terminalError{reason, err} }

// IsTerminal says whether an error was marked by Terminal.
func IsTerminal(err error) bool {
	_, ok := errors.AsType[*terminalError](err)
	return ok
}

// retryError asks for a redelivery after a delay of the handler's choosing.
type retryError struct {
	after time.Duration
	err   error
}

func (e *retryError) Error() string { return e.err.Error() }
func (e *retryError) Unwrap() error { return e.err }

// RetryAfter marks an error that deserves another attempt, not before a delay.
func RetryAfter(after time.Duration, err error) error { return &retryError{after, err} }

// handBackError gives a message to somebody else.
type handBackError struct {
	after time.Duration
	err   error
}

func (e *handBackError) Error() string { return e.err.Error() }
func (e *handBackError) Unwrap() error { return e.err }

// HandBack marks an error that says why this process does not do the work, though another one may: the message is delivered
// again, after a delay if it is not 0, and never becomes a dead letter by it.
func HandBack(after time.Duration, err error) error { return &handBackError{after, err} }

// IsHandBack says whether an error was marked by HandBack.
func IsHandBack(err error) bool {
	_, ok := errors.AsType[*handBackError](err)
	return ok
}

// Handler does the work of one message. A nil error acknowledges it, and so does ErrCancelled; Terminal makes it a dead letter;
// HandBack gives it to another process; anything else is tried again. It must return soon after its context ends, and should
// then return the context's cause.
type Handler func(context.Context, *Message) error
