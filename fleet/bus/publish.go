package bus

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"
	"github.com/oklog/ulid/v2"
	"go.opentelemetry.io/otel/propagation"
	"go.opentelemetry.io/otel/trace"
	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/timestamppb"

	"github.com/lifeboat-fleet/lifeboat/fleet/tracing"
	lifeboatv1 "github.com/lifeboat-fleet/lifeboat/proto/lifeboat/v1"
)

// publishTimeout bounds one publish when the caller's context has no deadline.
const publishTimeout = 10 * time.Second

// Outgoing is a message to publish.
type Outgoing struct {
	Subject string
	Message proto.Message
	// Data is the message in ProtoJSON where the caller has encoded it already; Message is not looked at then.
	Data []byte
	// ID makes the publish idempotent within the streams' duplicate window. Empty: always stored.
	ID string
	// Trace is what the message goes on with; that of the context when it is invalid.
	Trace trace.SpanContext
}

// ErrBusy means that a message of this subject is already waiting or running, and the stream keeps one.
var ErrBusy = errors.New("a job of this subject is already waiting or running")

// ErrConflict means that somebody else wrote the subject since its sequence was read.
var ErrConflict = errors.New("the subject was written by somebody else in the meantime")

// encode makes the NATS message of an Outgoing: ProtoJSON, so that a person can read and type it, and the trace.
func encode(ctx context.Context, o Outgoing) (*nats.Msg, error) {
	data := o.Data
	if data == nil {
		var err error
		if data, err = protojson.Marshal(o.Message); err != nil {
			return nil, fmt.Errorf("encoding message for %s: %w", o.Subject, err)
		}
	}
	m := &nats.Msg{Subject: o.Subject, Data: data, Header: nats.Header{}}
	if o.ID != "" {
		m.Header.Set(jetstream.MsgIDHeader, o.ID)
	}
	propagation.TraceContext{}.Inject(tracing.In(ctx, o.Trace), carrier(m.Header))
	return m, nil
}

// Publish stores one message and returns its sequence in the stream. A repeated ID within the duplicate window is no
// error: the first one is stored already. It returns ErrBusy when the stream refuses a second job.
func (b *Bus) Publish(ctx context.Context, o Outgoing) (seq uint64, err error) {
	m, err := encode(ctx, o)
	if err != nil {
		return 0, err
	}
	ctx, cancel := context.WithTimeout(ctx, publishTimeout)
	defer cancel()
	err = b.guarded(ctx, func(ctx context.Context) error {
		for {
			ack, refused := b.js.PublishMsg(ctx, m)
			switch {
			case refused == nil:
				seq = ack.Sequence
				return nil
			case !beingStored(refused) || !wait(ctx, sameIDPause):
				return classify(refused)
			}
		}
	}, o.Subject)
	if err != nil {
		return 0, fmt.Errorf("publishing to %s: %w", o.Subject, err)
	}
	return seq, nil
}

// PublishAll stores several messages and returns only when all of them are stored. After an error some of them may be:
// give each an ID and publish all of them again.
func (b *Bus) PublishAll(ctx context.Context, all []Outgoing) error {
	if len(all) == 1 {
		_, err := b.Publish(ctx, all[0])
		return err
	}
	ctx, cancel := context.WithTimeout(ctx, publishTimeout)
	defer cancel()
	subjects := make([]string, 0, len(all))
	for _, o := range all {
		subjects = append(subjects, o.Subject)
	}
	return b.guarded(ctx, func(ctx context.Context) error { return b.publishAll(ctx, all) }, slices.Compact(subjects)...)
}

func (b *Bus) publishAll(ctx context.Context, all []Outgoing) error {
	acks := make([]jetstream.PubAckFuture, 0, len(all))
	for _, o := range all {
		m, err := encode(ctx, o)
		if err != nil {
			return err
		}
		ack, err := b.js.PublishMsgAsync(m)
		if err != nil {
			return fmt.Errorf("publishing to %s: %w", o.Subject, err)
		}
		acks = append(acks, ack)
	}
	for i, ack := range acks {
		select {
		case <-ack.Ok():
		case err := <-ack.Err():
			if beingStored(err) {
				if _, err = b.Publish(ctx, all[i]); err != nil {
					return err
				}
				continue
			}
			return fmt.Errorf("publishing to %s: %w", all[i].Subject, classify(err))
		case <-ctx.Done():
			return fmt.Errorf("publishing to %s: %w", all[i].Subject, ctx.Err())
		}
	}
	return nil
}

// Emit publishes an event to the audit log. It fills in id, time, actor and trace when they are empty. An event that
// must be stored once however often it is emitted has an ID derived from its cause.
func (b *Bus) Emit(ctx context.Context, e *lifeboatv1.Event) error {
	if e.GetId() == "" {
		e.Id = ulid.Make().String()
	}
	e.Message = validUTF8(e.GetMessage())
	if e.GetTime() == nil {
		e.Time = timestamppb.Now()
	}
	if e.GetActor() == "" {
		e.Actor = b.actor
	}
	if e.GetTraceId() == "" {
		if !tracing.Of(ctx).IsValid() { // nothing led to it: what comes of it begins here
			var span trace.Span
			ctx, span = tracing.Start(ctx, "event "+e.GetNoun()+"."+e.GetVerb())
			defer span.End()
		}
		e.TraceId = tracing.ID(ctx)
	}
	subject := EventSubject(e.GetNoun(), e.GetVerb(), e.GetTarget())
	_, err := b.Publish(ctx, Outgoing{Subject: subject, Message: e, ID: e.GetId()})
	return err
}

// Last reads the newest message of a subject into a proto. It returns sequence 0 when there is none; that is the value
// that a conditional write expects for "nobody wrote yet".
func (b *Bus) Last(ctx context.Context, stream, subject string, into proto.Message) (seq uint64, at time.Time, err error) {
	ctx, cancel := context.WithTimeout(ctx, publishTimeout)
	defer cancel()
	m, err := b.last(ctx, stream, subject)
	if errors.Is(err, jetstream.ErrMsgNotFound) {
		return 0, time.Time{}, nil
	}
	if err != nil {
		return 0, time.Time{}, err
	}
	if err := Decode(m.Data, into); err != nil {
		return 0, time.Time{}, fmt.Errorf("decoding the last message of %s: %w", subject, err)
	}
	return m.Sequence, m.Time, nil
}

// last looks the stream up once and not before every read: the handle stays good until a read fails.
func (b *Bus) last(ctx context.Context, stream, subject string) (m *jetstream.RawStreamMsg, err error) {
	read := func(s jetstream.Stream) error {
		return b.guarded(ctx, func(ctx context.Context) error {
			m, err = s.GetLastMsgForSubject(ctx, subject)
			return err
		}, api("DIRECT.GET", stream, subject), api("STREAM.MSG.GET", stream))
	}
	kept, _ := b.kept.Load(stream)
	if s, ok := kept.(jetstream.Stream); ok {
		err = read(s)
		if err == nil || errors.Is(err, jetstream.ErrMsgNotFound) {
			return m, err
		}
		b.kept.Delete(stream) // lost, or made anew with other settings
	}
	s, err := b.stream(ctx, stream)
	if err != nil {
		return nil, err
	}
	b.kept.Store(stream, s)
	if err = read(s); err != nil {
		return nil, fmt.Errorf("reading the last message of %s: %w", subject, err)
	}
	return m, nil
}

// Decode reads ProtoJSON; fields of a newer Lifeboat are ignored. An empty payload is the empty message.
func Decode(data []byte, into proto.Message) error {
	if len(data) == 0 {
		return nil
	}
	return protojson.UnmarshalOptions{DiscardUnknown: true}.Unmarshal(data, into)
}

// DecodeStrict is Decode for what a person types: an unknown field is an error.
func DecodeStrict(data []byte, into proto.Message) error {
	if len(data) == 0 {
		return nil
	}
	return protojson.Unmarshal(data, into)
}

// Error codes of the JetStream API that mean something to us (nats-server, server/errors.json).
const (
	codeMaxMsgsPerSubject = 10077
	codeWrongLastSequence = 10071
	codeWrongSeqConstant  = 10164
	codeSequenceNotFound  = 10043
	codeMsgDeleteFailed   = 10057
	codeSameIDInProcess   = 10158
)

// sameIDPause is about as long as it takes to store a message.
const sameIDPause = 50 * time.Millisecond

// beingStored says whether the server is just storing another message with the same id: replicas that see the same thing say it at
// the same time. Whether that one will be stored is not known yet.
func beingStored(err error) bool {
	var refused *jetstream.APIError
	return errors.As(err, &refused) && refused.ErrorCode == codeSameIDInProcess
}

// Leaderless says that NATS answers and nobody took the message: the stream is not there, or the server that led it has gone and its
// successor is chosen, which takes some seconds.
func Leaderless(err error) bool { return errors.Is(err, jetstream.ErrNoStreamResponse) }

// classify turns the server's refusals into our sentinels and keeps the server's words.
func classify(err error) error {
	var api *jetstream.APIError
	if !errors.As(err, &api) {
		return err
	}
	switch api.ErrorCode {
	case codeMaxMsgsPerSubject:
		return fmt.Errorf("%w (%s)", ErrBusy, api.Description)
	case codeWrongLastSequence, codeWrongSeqConstant:
		return fmt.Errorf("%w (%s)", ErrConflict, api.Description)
	}
	return err
}
