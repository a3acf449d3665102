package bus

import (
	"context"
	"fmt"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"
)

// PublishRaw stores a payload and headers as they are, for who sends again what was stored before: the trace in the headers stays
// that of the first time. An id makes it idempotent within the streams' duplicate window; empty: always stored. It returns
// ErrBusy when the stream refuses a second job.
func (b *Bus) PublishRaw(ctx context.Context, subject string, payload []byte, headers map[string]string, id string) (seq uint64, err error) {
	m := &nats.Msg{Subject: subject, Data: payload, Header: nats.Header{}}
	for k, v := range headers {
		m.Header.Set(k, v)
	}
	if id != "" {
		m.Header.Set(jetstream.MsgIDHeader, id)
	}
	ctx, cancel := context.WithTimeout(ctx, publishTimeout)
	defer cancel()
	err = b.guarded(ctx, func(ctx context.Context) error {
		ack, refused := b.js.PublishMsg(ctx, m)
		if refused != nil {
			return classify(refused)
		}
		seq = ack.Sequence
		return nil
	}, subject)
	if err != nil {
		return 0, fmt.Errorf("publishing to %s: %w", subject, err)
	}
	return seq, nil
}
