package page

import (
	"cmp"
	"context"
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
// removed. What is new it looks for each time: a count alone does not tell a letter that came from one that went meanwhile.
type letterReader struct {
	// last is the newest one's sequence, and seen how many were read since fullAt, when all of them began to be read.
	last, seen uint64
	fullAt     time.Time
	// remade is that of the fleet when they were read: another NATS counts its sequences from the beginning.
	remade int
	newest []letter
}

func (r *letterReader) read(ctx context.Context, b reader, f *fleet) error {
	counts, err := b.Subjects(ctx, bus.StreamDead, "lifeboat.dead.>")
	if err != nil {
		return err
	}
	total := uint64(0)
	for _, n := range counts {
		total += n
	}
	went := total < r.seen && time.Since(r.fullAt) >= recount // until then those that went are still shown
	if remade := f.timesRemade(); went || remade != r.remade || r.fullAt.IsZero() {
		*r = letterReader{fullAt: time.Now(), remade: remade}
	}
	// After an error it goes on behind what was read: there may be more of them than one question has time for.
	err = b.ScanFrom(ctx, bus.StreamDead, "lifeboat.dead.>", r.last+1, func(m *bus.Message) error {
		r.last, r.seen = max(r.last, m.Seq), r.seen+1
		r.add(m)
		return nil
	})
	if err != nil {
		return err
	}
	f.set(func() bool {
		now := deadLetters{total: total, newest: slices.Clone(r.newest)}
		changed := now.total != f.dead.total || !slices.Equal(now.newest, f.dead.newest)
		f.dead = now
		return changed
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

// letterProblem is about dead letters that nobody may have seen.
func (f *fleet) letterProblem(v *view) {
	fresh, newest := 0, letter{}
	for _, l := range f.dead.newest {
		l.red = v.now.Sub(l.at) < newLetter && !f.mended(&l)
		v.letters = append(v.letters, l)
		if l.red {
			if fresh++; newest.at.IsZero() {
				newest = l
			}
		}
	}
	if fresh > 0 {
		v.problems = append(v.problems, problem{
			level: red, title: func(w *words) string { return w.NewLetters }, arg: []any{fresh}, detail: newest.subject + ": " + newest.reason,
			since: newest.at, command: "lifeboat dead list --since 24h" + v.flag,
		})
	}
}

// mended says whether a letter is of a job whose work has gone well since.
func (f *fleet) mended(l *letter) bool {
	work, target, ok := bus.ParseJobSubject(l.subject)
	if !ok || f.targets[target] == nil {
		return false
	}
	return f.targets[target].went[work].After(l.at)
}
