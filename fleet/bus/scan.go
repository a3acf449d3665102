package bus

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strconv"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"
)

// ErrNoMessage means that there is no such message in the stream, or not any more.
var ErrNoMessage = errors.New("there is no such message")

// One page of a scan. The server counts what is left for each, which takes longer than reading a thousand messages; and it sends
// a page all at once, so it has to fit well into the 64 MiB that it keeps for a slow connection.
const (
	pageMessages = 5000
	pageBytes    = 4 << 20
	// pageTimeout is how long a page may stay silent, pageTries how often one is asked for.
	pageTimeout = 5 * time.Second
	pageTries   = 4
)

// Scan calls each for every message that is in the stream now and whose subject matches the filter, in the stream's order,
// until it returns an error. A subject that is written during the scan may come twice, the newer one last. Messages are read
// by direct get (NATS ADR-31) of a page at a time.
//
// In a cluster every replica answers, also one that lags behind by what was written in the last moment. Whoever acts on what a
// scan told must therefore write with an expected sequence, as PutState does.
func (b *Bus) Scan(ctx context.Context, stream, filter string, each func(*Message) error) error {
	return b.ScanFrom(ctx, stream, filter, 1, each)
}

// ScanFrom is Scan without the messages before a sequence.
func (b *Bus) ScanFrom(ctx context.Context, stream, filter string, from uint64, each func(*Message) error) error {
	page := &page{bus: b, stream: stream, filter: filter, next: max(from, 1), messages: make([]*Message, 0, 64)}
	for more := true; more; {
		var err error
		if more, err = page.read(ctx); err != nil {
			return fmt.Errorf("scanning %s of stream %s: %w", filter, stream, err)
		}
		for _, m := range page.messages {
			if err := each(m); err != nil {
				return err
			}
		}
	}
	return nil
}

// First is the oldest message whose subject matches the filter. It returns ErrNoMessage when there is none.
func (b *Bus) First(ctx context.Context, stream, filter string) (*Message, error) {
	page := &page{bus: b, stream: stream, filter: filter, next: 1, most: 1}
	if _, err := page.read(ctx); err != nil {
		return nil, fmt.Errorf("reading the oldest %s of stream %s: %w", filter, stream, err)
	}
	if len(page.messages) == 0 {
		return nil, fmt.Errorf("%w of %s in stream %s", ErrNoMessage, filter, stream)
	}
	return page.messages[0], nil
}

// page is a part of a scan. It is read whole before any of it is told, so that one that was cut can be read again.
type page struct {
	bus            *Bus
	stream, filter string
	next           uint64
	// most messages of a page; pageMessages when 0.
	most     int
	messages []*Message
}

func (p *page) read(ctx context.Context) (more bool, err error) {
	retry := Exponential(100*time.Millisecond, 2*time.Second)
	for try := int64(1); ; try++ {
		more, err = p.try(ctx)
		if err == nil {
			return more, nil
		}
		if try == pageTries || ctx.Err() != nil || errors.Is(err, ErrDenied) || errors.Is(err, errPageRefused) {
			return false, err
		}
		if !wait(ctx, retry(try)) {
			return false, ctx.Err()
		}
	}
}

var (
	errPageRefused = errors.New("the server refuses to read it directly")
	errPageCut     = errors.New("a part of the answer was lost")
)

func (p *page) try(ctx context.Context) (more bool, err error) {
	request, err := json.Marshal(map[string]any{
		"seq": p.next, "next_by_subj": p.filter, "batch": cmp.Or(p.most, pageMessages), "max_bytes": pageBytes,
	})
	if err != nil {
		return false, err
	}
	subject := api("DIRECT.GET", p.stream)
	p.messages = p.messages[:0]
	err = p.bus.guarded(ctx, func(ctx context.Context) (err error) {
		sub, err := p.bus.nc.SubscribeSync(p.bus.nc.NewInbox())
		if err != nil {
			return err
		}
		defer sub.Unsubscribe() //nolint:errcheck // it is gone with the connection at the latest
		if err = sub.SetPendingLimits(-1, -1); err != nil {
			return err
		}
		if err = p.bus.nc.PublishRequest(subject, sub.Subject, request); err != nil {
			return err
		}
		more, err = p.answers(ctx, sub)
		return err
	}, subject)
	return more, err
}

// answers reads a page's messages up to the server's end of batch.
func (p *page) answers(ctx context.Context, sub *nats.Subscription) (more bool, err error) {
	last := uint64(0)
	for {
		waiting, cancel := context.WithTimeout(ctx, pageTimeout)
		m, err := sub.NextMsgWithContext(waiting)
		cancel()
		if err != nil {
			return false, err
		}
		switch status := m.Header.Get("Status"); status {
		case "":
		case "204":
			if n, _ := strconv.ParseUint(m.Header.Get("Nats-Last-Sequence"), 10, 64); n != last {
				return false, errPageCut
			}
			p.next = last + 1
			return m.Header.Get("Nats-Num-Pending") != "0", nil
		case "404":
			return false, nil
		default:
			return false, fmt.Errorf("%w: %s %s", errPageRefused, status, m.Header.Get("Description"))
		}
		read, before, err := direct(m)
		if err != nil {
			return false, err
		}
		if before != last {
			return false, errPageCut
		}
		last = read.Seq
		p.messages = append(p.messages, read)
	}
}

// direct makes a Message of an answer to a direct get; before is the sequence of the one before it in its page.
func direct(m *nats.Msg) (read *Message, before uint64, err error) {
	read = &Message{Subject: m.Header.Get(jetstream.SubjectHeader), Data: m.Data, Header: m.Header}
	if read.Seq, err = strconv.ParseUint(m.Header.Get(jetstream.SequenceHeader), 10, 64); err != nil {
		return nil, 0, fmt.Errorf("reading a sequence: %w", err)
	}
	if before, err = strconv.ParseUint(m.Header.Get("Nats-Last-Sequence"), 10, 64); err != nil {
		return nil, 0, fmt.Errorf("reading a sequence: %w", err)
	}
	if read.Stored, err = time.Parse(time.RFC3339Nano, m.Header.Get(jetstream.TimeStampHeaer)); err != nil {
		return nil, 0, fmt.Errorf("reading a time: %w", err)
	}
	return read, before, nil
}

// historyPause is how long a history waits for its next message before it looks whether there is one.
const historyPause = 5 * time.Second

// History calls each for every message that matches one of the filters and was stored at since or later, in the stream's order,
// up to the newest, until it returns an error. The filters must not overlap. It is for streams that keep messages by age.
func (b *Bus) History(ctx context.Context, stream string, filters []string, since time.Time, each func(*Message) error) error {
	cfg := jetstream.OrderedConsumerConfig{FilterSubjects: filters, MaxResetAttempts: 3} // or it would try for ever, deaf to the context's end
	if !since.IsZero() {
		cfg.DeliverPolicy, cfg.OptStartTime = jetstream.DeliverByStartTimePolicy, &since
	}
	var told error
	err := b.guarded(ctx, func(ctx context.Context) error {
		setup, cancel := context.WithTimeout(ctx, publishTimeout)
		defer cancel()
		cons, err := b.js.OrderedConsumer(setup, stream, cfg)
		if err != nil {
			return fmt.Errorf("creating an ordered consumer: %w", err)
		}
		if cons.CachedInfo().NumPending == 0 {
			return nil
		}
		it, err := cons.Messages()
		if err != nil {
			return fmt.Errorf("subscribing: %w", err)
		}
		defer it.Stop()
		told, err = readHistory(ctx, cons, it, each)
		return err
	}, api("CONSUMER.CREATE", stream, ">"), api("CONSUMER.MSG.NEXT", stream, ">"))
	if err != nil {
		return fmt.Errorf("reading the history of stream %s: %w", stream, err)
	}
	return told
}

// readHistory keeps what each returned apart from what went wrong with reading.
func readHistory(ctx context.Context, cons jetstream.Consumer, it jetstream.MessagesContext, each func(*Message) error) (told, err error) {
	for {
		waiting, cancel := context.WithTimeout(ctx, historyPause)
		jm, err := it.Next(jetstream.NextContext(waiting))
		cancel()
		if errors.Is(err, context.DeadlineExceeded) && ctx.Err() == nil {
			// What was still to come may have been removed for its age.
			info, asked := cons.Info(ctx)
			if asked != nil {
				return nil, fmt.Errorf("asking how much is left: %w", asked)
			}
			if info.NumPending == 0 {
				return nil, nil
			}
			continue
		}
		if err != nil {
			return nil, fmt.Errorf("waiting for a message: %w", err)
		}
		meta, err := jm.Metadata()
		if err != nil {
			return nil, fmt.Errorf("reading a message's metadata: %w", err)
		}
		m := &Message{
			Subject: jm.Subject(), Data: jm.Data(), Header: jm.Headers(), Seq: meta.Sequence.Stream, Stored: meta.Timestamp,
		}
		if told := each(m); told != nil {
			return told, nil
		}
		if meta.NumPending == 0 {
			return nil, nil
		}
	}
}

// Delete removes one message from a stream, whoever works on it. It returns ErrNoMessage when it is not there.
func (b *Bus) Delete(ctx context.Context, stream string, seq uint64) error {
	err := b.remove(ctx, stream, seq)
	if err != nil {
		return fmt.Errorf("deleting message %d of stream %s: %w", seq, stream, err)
	}
	return nil
}

// remove asks by itself, because the library gives the server's error as text only.
func (b *Bus) remove(ctx context.Context, stream string, seq uint64) error {
	ctx, cancel := context.WithTimeout(ctx, publishTimeout)
	defer cancel()
	request, err := json.Marshal(map[string]any{"seq": seq, "no_erase": true})
	if err != nil {
		return err
	}
	subject := api("STREAM.MSG.DELETE", stream)
	var reply *nats.Msg
	err = b.guarded(ctx, func(ctx context.Context) (err error) {
		reply, err = b.nc.RequestWithContext(ctx, subject, request)
		return err
	}, subject)
	if err != nil {
		return err
	}
	var answer struct {
		Error *jetstream.APIError `json:"error"`
	}
	if err := json.Unmarshal(reply.Data, &answer); err != nil {
		return fmt.Errorf("reading the answer: %w", err)
	}
	switch e := answer.Error; {
	case e == nil:
		return nil
	case e.ErrorCode == codeSequenceNotFound, e.ErrorCode == codeMsgDeleteFailed && slices.Contains(notThere(), e.Description):
		return fmt.Errorf("%w (%s)", ErrNoMessage, e.Description)
	default:
		return e
	}
}

// notThere are the server's words for a message that is not there, or no more (nats-server, server/store.go).
func notThere() []string { return []string{"no message found", "deleted message", "stream store EOF"} }
