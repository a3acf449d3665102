package page

import (
	"cmp"
	"context"
	"maps"
	"slices"
	"time"

	"github.com/lifeboat-fleet/lifeboat/cli/internal/ops"
	"github.com/lifeboat-fleet/lifeboat/fleet/bus"
	lifeboatv1 "github.com/lifeboat-fleet/lifeboat/proto/lifeboat/v1"
)

const (
	// maxLetters is how many dead letters are kept, the newest ones.
	maxLetters = 100
	// newLetter is how long a letter is red: after that somebody has seen it, or nobody will.
	newLetter = 24 * time.Hour
	// recount is how often, at most, all letters are read again after some were removed.
	recount = 30 * time.Second
)

// letter is a dead letter without its payload.
type letter struct {
	id, subject, reason string
	at                  time.Time
	attempts            int64
	// red: it is new, and nothing has gone well since.
	red bool
}

// deadLetters are how many there are, and the newest of them, the newest first.
type deadLetters struct {
	total  uint64
	newest []letter
}

// letterReader reads dead letters. A letter may hold a megabyte, so that those which are known are not read again, until some were
// removed.
type letterReader struct {
	counts map[string]uint64
	last   uint64
	seen   uint64
	fullAt time.Time
	newest []letter
}

func (r *letterReader) read(ctx context.Context, b reader, f *fleet) error {
	counts, err := b.Subjects(ctx, bus.StreamDead, "lifeboat.dead.>")
	if err != nil {
		return err
	}
	if r.counts != nil && maps.Equal(counts, r.counts) {
		return nil
	}
	total := uint64(0)
	for _, n := range counts {
		total += n
	}
	next := *r
	if total < r.seen || r.fullAt.IsZero() {
		next = letterReader{fullAt: time.Now()}
		if time.Since(r.fullAt) < recount {
			f.set(func() bool { f.dead.total = total; return true })
			return nil
		}
	}
	err = b.ScanFrom(ctx, bus.StreamDead, "lifeboat.dead.>", next.last+1, func(m *bus.Message) error {
		next.last, next.seen = max(next.last, m.Seq), next.seen+1
		next.add(m)
		return nil
	})
	if err != nil {
		// The next time it goes on behind what was read: there may be more of them than one question has time for.
		next.counts = nil
		*r = next
		return err
	}
	// One that was removed while as many came shows in the sum.
	next.counts = counts
	if next.seen != total {
		next.counts = map[string]uint64{}
	}
	*r = next
	f.set(func() bool {
		f.dead = deadLetters{total: total, newest: slices.Clone(next.newest)}
		return true
	})
	return nil
}

func (r *letterReader) add(m *bus.Message) {
	d := &lifeboatv1.DeadLetter{}
	l := letter{subject: m.Subject, at: m.Stored}
	if bus.Decode(m.Data, d) == nil {
		l.id, l.subject, l.attempts = ops.Clean(d.GetId()), cmp.Or(ops.Clean(d.GetSubject()), l.subject), d.GetAttempts()
		l.reason = ops.Cut(ops.Clean(d.GetReason()), maxMessage)
		if d.GetTime() != nil {
			l.at = d.GetTime().AsTime()
		}
	}
	// A service that died in between stores the same letter again.
	if l.id != "" && slices.ContainsFunc(r.newest, func(o letter) bool { return o.id == l.id }) {
		return
	}
	r.newest = append(r.newest, l)
	slices.SortStableFunc(r.newest, func(a, b letter) int { return b.at.Compare(a.at) })
	r.newest = r.newest[:min(len(r.newest), maxLetters)]
}
