package bus

import (
	"context"
	"errors"
	"fmt"

	"github.com/nats-io/nats.go/jetstream"
)

// DeleteConsumer removes a durable consumer, and with it how far it has come. One that is not there is no error.
func (b *Bus) DeleteConsumer(ctx context.Context, stream, durable string) error {
	ctx, cancel := context.WithTimeout(ctx, publishTimeout)
	defer cancel()
	err := b.guarded(ctx, func(ctx context.Context) error {
		return b.js.DeleteConsumer(ctx, stream, durable)
	}, api("CONSUMER.DELETE", stream, durable))
	if err != nil && !errors.Is(err, jetstream.ErrConsumerNotFound) {
		return fmt.Errorf("deleting consumer %s on %s: %w", durable, stream, err)
	}
	return nil
}
