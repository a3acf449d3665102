package bus

import (
	"context"
	"log/slog"
	"strings"

	"github.com/oklog/ulid/v2"
	"google.golang.org/protobuf/types/known/timestamppb"

	lifeboatv1 "github.com/lifeboat-fleet/lifeboat/proto/lifeboat/v1"
)

// maxDeadPayload keeps a dead letter, with base64 around it, below NATS's default payload of 1 MiB.
const maxDeadPayload = 720 << 10

// DeadLetter stores what could not be processed. It fills in id, time and actor when they are empty, and cuts a payload
// that would not fit into a message. reason is a short word for the metric; the letter's own Reason is a sentence.
func (b *Bus) DeadLetter(ctx context.Context, reason string, d *lifeboatv1.DeadLetter) error {
	if d.GetId() == "" {
		d.Id = ulid.Make().String()
	}
	if d.GetTime() == nil {
		d.Time = timestamppb.Now()
	}
	if d.GetActor() == "" {
		d.Actor = b.actor
	}
	// What is put aside may be anything; protobuf strings are UTF-8 only.
	subject := d.GetSubject()
	d.Subject, d.Reason = validUTF8(subject), validUTF8(d.GetReason())
	for k, v := range d.GetHeaders() {
		delete(d.Headers, k)
		d.Headers[validUTF8(k)] = validUTF8(v)
	}
	if len(d.GetPayload()) > maxDeadPayload {
		d.Payload = d.GetPayload()[:maxDeadPayload]
		d.Truncated = true
	}
	if _, err := b.Publish(ctx, Outgoing{Subject: deadSubject(subject), Message: d, ID: d.GetId()}); err != nil {
		return err
	}
	b.metrics.dead.WithLabelValues(reason).Inc()
	b.log.ErrorContext(ctx, "put aside as a dead letter", slog.String("subject", d.GetSubject()),
		slog.String("reason", d.GetReason()), slog.Int64("attempts", d.GetAttempts()), slog.String("dead_id", d.GetId()))
	return nil
}

func validUTF8(s string) string { return strings.ToValidUTF8(s, "\uFFFD") }
