package deliver

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	"go.opentelemetry.io/otel/trace"

	"github.com/lifeboat-fleet/lifeboat/fleet/bus"
	lifeboatv1 "github.com/lifeboat-fleet/lifeboat/proto/lifeboat/v1"
	"github.com/lifeboat-fleet/lifeboat/services/notifier/internal/render"
)

// item is a delivery that waits.
type item struct {
	seq     uint64
	id      string
	group   string
	subject string
	data    []byte
	// received is when the alert was, stored when this delivery was.
	received, stored time.Time
	// trace is the delivery's, target the backup target that all its alerts name.
	trace    trace.SpanContext
	target   string
	critical bool
	alerts   int
	attempt  int64
	head     bool
	// alone is for one that a digest could not carry.
	alone bool
	// failed is how often the chat did not take it, aside until when others go first because of that, and suspect that others were
	// taken meanwhile.
	failed  int
	aside   time.Time
	suspect bool
	// stays says that the fallback has had it already.
	stays bool
	// decoded is the head's: it is usually sent at once.
	decoded *lifeboatv1.Delivery
}

// newItem reads what is needed to decide about a delivery. Its alerts are decoded again when it is sent: many may wait.
func newItem(m *bus.Message) (*item, *lifeboatv1.Delivery, error) {
	d := &lifeboatv1.Delivery{}
	if err := bus.Decode(m.Data, d); err != nil {
		return nil, nil, bus.Terminal("malformed", fmt.Errorf("decoding delivery: %w", err))
	}
	if len(d.GetNotification().GetAlerts()) == 0 {
		return nil, nil, bus.Terminal("malformed", errors.New("the delivery holds no alerts"))
	}
	it := &item{
		seq: m.Seq, id: d.GetId(), group: groupOf(d), subject: m.Subject, data: m.Data, stored: m.Stored, received: m.Stored,
		critical: render.Critical(d.GetNotification().GetAlerts()), alerts: len(d.GetNotification().GetAlerts()), attempt: max(m.Attempt, 1),
		trace: m.Trace(), target: target(d.GetNotification().GetAlerts()),
	}
	if it.id == "" { // a person published it
		it.id = m.ID()
	}
	if t := d.GetNotification().GetReceivedAt(); t != nil {
		it.received = t.AsTime()
	}
	return it, d, nil
}

func (i *item) delivery() (*lifeboatv1.Delivery, error) {
	d := i.decoded
	if d != nil {
		i.decoded = nil
		d.Id = i.id
		return d, nil
	}
	d = &lifeboatv1.Delivery{}
	if err := bus.Decode(i.data, d); err != nil {
		return nil, fmt.Errorf("decoding delivery: %w", err)
	}
	d.Id = i.id
	return d, nil
}

// What is kept of a backlog in memory: the rest stays in the stream until there is room.
const (
	backlogItems = 512
	backlogBytes = 8 << 20
)

// backlog is what waits for one receiver, as far as it has been read. Only the holder of the head uses it.
type backlog struct {
	receiver string
	lanes    [2]lane // critical, others
}

// lane is one of a receiver's two subjects.
type lane struct {
	subject string
	next    uint64
	items   []*item
	bytes   int
	// filled says that it was full, and is read again when half of that is done: a page that is read may hold thousands.
	filled bool
}

func newBacklog(receiver string) *backlog {
	return &backlog{receiver: receiver, lanes: [2]lane{{subject: bus.CriticalSubject(receiver), next: 1}, {subject: bus.DeliverySubject(receiver), next: 1}}}
}

// continues says whether what was read before still holds: the head is the oldest of it, and was not somebody else's meanwhile.
func (b *backlog) continues(m *bus.Message) bool {
	if b == nil || m.Delivery > 1 {
		return false
	}
	oldest := uint64(0)
	for _, l := range b.lanes {
		if len(l.items) > 0 && (oldest == 0 || l.items[0].seq < oldest) {
			oldest = l.items[0].seq
		}
	}
	return oldest == m.Seq
}

var errFull = errors.New("enough has been read")

// read takes in what has come since. What cannot be decoded is left for when it is the head.
func (b *backlog) read(ctx context.Context, stream Bus) error {
	for i := range b.lanes {
		l := &b.lanes[i]
		if l.filled = l.full() || (l.filled && !l.half()); l.filled {
			continue
		}
		err := stream.ScanFrom(ctx, bus.StreamAlerts, l.subject, l.next, func(m *bus.Message) error {
			if l.full() {
				l.filled = true
				return errFull
			}
			l.next = m.Seq + 1
			if it, _, err := newItem(m); err == nil {
				l.items = append(l.items, it)
				l.bytes += len(it.data)
			}
			return nil
		})
		if err != nil && !errors.Is(err, errFull) {
			return fmt.Errorf("reading what waits for %s: %w", b.receiver, err)
		}
	}
	return nil
}

func (l *lane) full() bool { return len(l.items) >= backlogItems || l.bytes >= backlogBytes }

func (l *lane) half() bool { return len(l.items) <= backlogItems/2 && l.bytes <= backlogBytes/2 }

// all are the items in the order of arrival of each lane, critical ones first.
func (b *backlog) all() []*item { return slices.Concat(b.lanes[0].items, b.lanes[1].items) }

func (b *backlog) critical() []*item { return b.lanes[0].items }

func (b *backlog) empty() bool { return len(b.lanes[0].items)+len(b.lanes[1].items) == 0 }

// drop forgets items that are done.
func (b *backlog) drop(done []*item) {
	for i := range b.lanes {
		l := &b.lanes[i]
		l.items = slices.DeleteFunc(l.items, func(it *item) bool {
			gone := slices.ContainsFunc(done, func(d *item) bool { return d.seq == it.seq })
			if gone {
				l.bytes -= len(it.data)
			}
			return gone
		})
	}
}
