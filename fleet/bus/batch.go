package bus

import (
	"context"
	"encoding/json"
	"fmt"
	"strconv"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"
	"github.com/oklog/ulid/v2"
)

// Headers of the server's atomic batch publishing (NATS ADR-50), and of a roll-up to the last value.
const (
	headerBatchID      = "Nats-Batch-Id"
	headerBatchSeq     = "Nats-Batch-Sequence"
	headerBatchCommit  = "Nats-Batch-Commit"
	headerRollup       = "Nats-Rollup"
	rollupSubject      = "sub"
	headerExpectedLast = "Nats-Expected-Last-Subject-Sequence"
)

// State is a last value: it replaces the subject's earlier one, if that one still has the sequence Expect.
type State struct {
	Outgoing
	// Expect is the sequence that Last returned: 0 for a subject without a message.
	Expect uint64
}

func (s State) encode(ctx context.Context) (*nats.Msg, error) {
	m, err := encode(ctx, s.Outgoing)
	if err != nil {
		return nil, err
	}
	m.Header.Set(headerRollup, rollupSubject)
	m.Header.Set(headerExpectedLast, strconv.FormatUint(s.Expect, 10))
	return m, nil
}

// PutState writes a last value. It returns ErrConflict when somebody wrote first.
func (b *Bus) PutState(ctx context.Context, s State) (seq uint64, err error) {
	m, err := s.encode(ctx)
	if err != nil {
		return 0, err
	}
	return b.commit(ctx, m)
}

// PutStateWith writes a last value and a message in one server-side transaction: both are stored or neither is. It
// returns the sequence of the state. ErrConflict: somebody else wrote the state first. ErrBusy: the stream refuses the
// message because one of its subject is there; the state is unchanged then.
//
// A lost answer is safe to retry: if the first try was stored, the second one loses with ErrConflict.
func (b *Bus) PutStateWith(ctx context.Context, s State, with Outgoing) (seq uint64, err error) {
	first, err := s.encode(ctx)
	if err != nil {
		return 0, err
	}
	last, err := encode(ctx, with)
	if err != nil {
		return 0, err
	}
	id := ulid.Make().String()
	first.Header.Set(headerBatchID, id)
	first.Header.Set(headerBatchSeq, "1")
	last.Header.Set(headerBatchID, id)
	last.Header.Set(headerBatchSeq, "2")
	last.Header.Set(headerBatchCommit, "1")
	err = b.guarded(ctx, func(ctx context.Context) error {
		// The first message asks for no reply: the server answers the commit for the whole batch.
		if err = b.nc.PublishMsg(first); err != nil {
			return fmt.Errorf("publishing to %s: %w", first.Subject, err)
		}
		seq, err = b.commit(ctx, last)
		return err
	}, first.Subject, last.Subject)
	if err != nil {
		return 0, err
	}
	return seq - 1, nil
}

// commit sends a request to a stream's subject and reads the acknowledgement.
func (b *Bus) commit(ctx context.Context, m *nats.Msg) (uint64, error) {
	ctx, cancel := context.WithTimeout(ctx, publishTimeout)
	defer cancel()
	var reply *nats.Msg
	err := b.guarded(ctx, func(ctx context.Context) (err error) {
		reply, err = b.nc.RequestMsgWithContext(ctx, m)
		return err
	}, m.Subject)
	if err != nil {
		return 0, fmt.Errorf("publishing to %s: %w", m.Subject, err)
	}
	var ack struct {
		Error *jetstream.APIError `json:"error"`
		Seq   uint64              `json:"seq"`
	}
	if err := json.Unmarshal(reply.Data, &ack); err != nil {
		return 0, fmt.Errorf("publishing to %s: reading the acknowledgement: %w", m.Subject, err)
	}
	if ack.Error != nil {
		return 0, fmt.Errorf("publishing to %s: %w", m.Subject, classify(ack.Error))
	}
	return ack.Seq, nil
}
