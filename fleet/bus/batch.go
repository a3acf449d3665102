package bus

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
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
	if seq, err = b.transact(ctx, []*nats.Msg{first, last}); err != nil {
		return 0, err
	}
	return seq - 1, nil
}

// PublishTogether stores all messages, which are of one stream, or none of them. Each needs an ID: a repeated one within the duplicate
// window is no error. It returns ErrNotTogether, and has stored nothing, when the server takes no such transaction: the stream is of an
// older version, there are too many transactions or messages in it, or one of the messages is stored already. PublishAll stores them then.
func (b *Bus) PublishTogether(ctx context.Context, all []Outgoing) error {
	if len(all) == 1 {
		_, err := b.Publish(ctx, all[0])
		return err
	}
	messages := make([]*nats.Msg, 0, len(all))
	for _, o := range all {
		m, err := encode(ctx, o)
		if err != nil {
			return err
		}
		messages = append(messages, m)
	}
	_, err := b.transact(ctx, messages)
	var refused *jetstream.APIError
	if errors.As(err, &refused) && slices.Contains(codesNotTogether(), refused.ErrorCode) {
		return fmt.Errorf("%w: %w", ErrNotTogether, err)
	}
	return err
}

// ErrNotTogether means that the server does not store these messages in one transaction.
var ErrNotTogether = errors.New("these messages cannot be stored together")

// codesNotTogether are those of what another way may still store: a batch that is disabled, with a header that the server does not take
// in one (2.12.0: the id), too large, with a message that is stored already or just being stored, or one too many.
func codesNotTogether() []jetstream.ErrorCode {
	return []jetstream.ErrorCode{10174, 10177, 10199, 10201, 10210, codeSameIDInProcess}
}

// transact stores messages of one stream in one transaction of the server, and returns the sequence of the last.
func (b *Bus) transact(ctx context.Context, all []*nats.Msg) (seq uint64, err error) {
	id := ulid.Make().String()
	subjects := make([]string, 0, len(all))
	for i, m := range all {
		m.Header.Set(headerBatchID, id)
		m.Header.Set(headerBatchSeq, strconv.Itoa(i+1))
		subjects = append(subjects, m.Subject)
	}
	last := all[len(all)-1]
	last.Header.Set(headerBatchCommit, "1")
	err = b.guarded(ctx, func(ctx context.Context) error {
		// Those before the last ask for no reply: the server answers the commit for the whole batch.
		for _, m := range all[:len(all)-1] {
			if err = b.nc.PublishMsg(m); err != nil {
				return fmt.Errorf("publishing to %s: %w", m.Subject, err)
			}
		}
		seq, err = b.commit(ctx, last)
		return err
	}, slices.Compact(subjects)...)
	return seq, err
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
