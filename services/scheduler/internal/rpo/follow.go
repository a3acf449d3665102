package rpo

import (
	"context"
	"encoding/json"
	"log/slog"
	"strings"
	"time"

	"github.com/lifeboat-fleet/lifeboat/fleet/bus"
)

// follow hears the audit log until the context ends. A user that may not read it is an error that only an operator can mend,
// and no reason to stop the process, which emits the ticks as well.
func (w *Watch) follow(ctx context.Context) error {
	for ctx.Err() == nil {
		err := w.Bus.Follow(ctx, bus.Follower{
			Stream: bus.StreamEvents, Filters: heard(),
			Message: func(_ context.Context, m *bus.Message) { w.hear(m) }, Reset: w.reset, CaughtUp: w.begin,
		})
		if err == nil {
			return nil
		}
		w.Logger.ErrorContext(ctx, "nobody watches how old the newest snapshots are: cannot follow the audit log, trying again",
			slog.Any("err", err))
		w.reset() // it may be another stream by then
		wait(ctx, maxSleep)
	}
	return nil
}

func wait(ctx context.Context, d time.Duration) {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-ctx.Done():
	case <-t.C:
	}
}

// begin is called when all that the audit log holds has been heard.
func (w *Watch) begin() {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.caughtUp {
		return
	}
	w.caughtUp = true
	w.load(w.now())
	w.planAll(w.now())
	w.wake = 0
	signal(w.kick)
	w.wakeAsker()
}

// reset forgets what a stream said that is no more. Snapshots are in the bucket, so they stay known, but there may be newer ones. Since
// when a target is watched is known only here, and told to the new stream.
func (w *Watch) reset() {
	w.mu.Lock()
	defer w.mu.Unlock()
	for _, r := range w.book.records {
		if r.added != 0 && (r.seen == 0 || r.added < r.seen) {
			r.seen = r.added
		}
		r.added, r.exceeded, r.met, r.sure = 0, 0, 0, false
	}
	w.planAll(w.now() + int64(settle))
	w.wake = 0
	signal(w.kick)
	w.wakeAsker()
}

// hear takes in one event.
func (w *Watch) hear(m *bus.Message) {
	parts := strings.Split(m.Subject, ".") // lifeboat.event.<noun>.<verb>.<target>
	if len(parts) != 5 {
		return
	}
	about, target := parts[2]+"."+parts[3], parts[4]
	var began int64
	var shown proof
	proven := false
	switch about {
	case "snapshot.committed":
		began = beganAt(m)
	case "target.added":
		began = seenAt(m)
	case "drill.passed", "drill.escrow-passed": // whose key decrypted it, the data was restored
		shown, proven = proofOf(m.Data)
	}
	end, ended := resultOf(about)
	w.mu.Lock()
	defer w.mu.Unlock()
	r := w.book.record(target)
	if ended {
		r.ended[end.work].note(end.good, m.Stored)
	}
	if proven {
		r.proof = shown
	}
	var contradict time.Duration
	switch about {
	case "snapshot.committed":
		r.good, r.sure = max(r.good, began), true
	case "target.added":
		r.added = began
	case "rpo.exceeded":
		r.exceeded, contradict = max(r.exceeded, m.Seq), r.patience()
	case "rpo.met":
		r.met, contradict = max(r.met, m.Seq), r.patience()
	default:
		return
	}
	w.schedule(r, contradict)
}

// beganAt is the moment that a snapshot's data is of, in Unix nanoseconds; when the event does not say, when it was stored. A
// worker whose clock is ahead cannot make a snapshot younger than its event.
func beganAt(m *bus.Message) int64 {
	// There may be 100,000 of them at a start: the rest of the event is not decoded.
	var e struct {
		Manifest struct {
			StartedAt time.Time `json:"startedAt"`
		} `json:"manifest"`
	}
	if err := json.Unmarshal(m.Data, &e); err != nil || e.Manifest.StartedAt.IsZero() || e.Manifest.StartedAt.After(m.Stored) {
		return m.Stored.UnixNano()
	}
	return e.Manifest.StartedAt.UnixNano()
}

// firstSeen is the attribute of target.added that says since when the target is watched, if that is longer than the stream.
const firstSeen = "first_seen"

// seenAt is since when a target is watched, in Unix nanoseconds.
func seenAt(m *bus.Message) int64 {
	var e struct {
		Attributes map[string]string `json:"attributes"`
	}
	at, err := time.Time{}, json.Unmarshal(m.Data, &e)
	if err == nil {
		at, err = time.Parse(time.RFC3339Nano, e.Attributes[firstSeen])
	}
	if err != nil || at.After(m.Stored) {
		return m.Stored.UnixNano()
	}
	return at.UnixNano()
}
