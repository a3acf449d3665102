package budget

import (
	"slices"
	"time"

	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/timestamppb"

	"github.com/lifeboat-fleet/lifeboat/fleet/config"
	lifeboatv1 "github.com/lifeboat-fleet/lifeboat/proto/lifeboat/v1"
)

// Rule is how many messages may be sent within a time.
type Rule struct {
	// Messages in any Per; 0 or less: no limit.
	Messages int
	Per      time.Duration
	// Reserve of them are kept for critical messages; 0 or less: none.
	Reserve int
}

// RuleOf makes the rule of a receiver's limit.
func RuleOf(l config.Limit) Rule {
	return Rule{Messages: l.Messages, Per: l.Per, Reserve: max(l.Reserve, 0)}
}

func (r Rule) unlimited() bool { return r.Messages <= 0 || r.Per <= 0 }

// room is how many messages of a kind there may be in a window.
func (r Rule) room(critical bool) int {
	if critical {
		return r.Messages
	}
	return max(r.Messages-max(r.Reserve, 0), 1)
}

// skew is how far ahead of ours another process's clock is believed to be.
const skew = 5 * time.Second

// window is what was sent within a time before now, the oldest first, in milliseconds since the Unix epoch.
func window(b *lifeboatv1.Budget, per time.Duration, now time.Time) []int64 {
	var out []int64
	for _, ms := range b.GetSentMs() {
		if ms > now.Add(skew).UnixMilli() {
			ms = now.UnixMilli() // a clock was wrong; it must not block the robot for as long as it was
		}
		if ms >= now.Add(-per).UnixMilli() { // it was sent up to a millisecond after that
			out = append(out, ms)
		}
	}
	slices.Sort(out)
	return out
}

// wait is how long until a message may be sent; 0: now.
func wait(b *lifeboatv1.Budget, r Rule, critical bool, now time.Time) time.Duration {
	if d := paused(b, now); d > 0 {
		return d
	}
	if r.unlimited() {
		return 0
	}
	sent := window(b, r.Per, now)
	surplus := len(sent) - r.room(critical)
	if surplus < 0 {
		return 0
	}
	// One more may be sent when so many of the oldest have left the window.
	return max(time.UnixMilli(sent[surplus]+1).Add(r.Per).Sub(now), time.Millisecond)
}

// paused is for how much longer nothing may be sent.
func paused(b *lifeboatv1.Budget, now time.Time) time.Duration {
	if b.GetPausedUntil() == nil {
		return 0
	}
	return max(b.GetPausedUntil().AsTime().Sub(now), 0)
}

// left is how many messages may be sent now.
func left(b *lifeboatv1.Budget, r Rule, now time.Time) int {
	switch {
	case paused(b, now) > 0:
		return 0
	case r.unlimited():
		return -1
	}
	return max(r.Messages-len(window(b, r.Per, now)), 0)
}

// count notes one more message, and forgets what has left the longest window.
func count(b *lifeboatv1.Budget, longest time.Duration, now time.Time) {
	b.SentMs = append(window(b, longest, now), now.UnixMilli())
	slices.Sort(b.GetSentMs())
	if b.GetPausedUntil() != nil && paused(b, now) == 0 {
		b.PausedUntil = nil
	}
}

// move lets the message that was counted just before begun count when it ended.
func move(b *lifeboatv1.Budget, longest time.Duration, begun, ended time.Time) {
	sent := b.GetSentMs()
	i := len(sent) - 1
	for i >= 0 && sent[i] > begun.UnixMilli() {
		i--
	}
	// One that was counted long before is another one, and stays.
	if i >= 0 && begun.Sub(time.UnixMilli(sent[i])) <= 2*late {
		b.SentMs = slices.Delete(sent, i, i+1)
	}
	count(b, longest, ended)
}

// trouble notes why deliveries come late; since when is the first time.
func trouble(b *lifeboatv1.Budget, why string, now time.Time) {
	b.Trouble = why
	if b.GetTroubleSince() == nil {
		b.TroubleSince = timestamppb.New(now)
	}
}

// State of a budget.
type State struct {
	// Left is how many messages may be sent now; 0 while paused, -1 without a limit.
	Left int
	// PausedUntil is zero when it is not paused.
	PausedUntil time.Time
	// Trouble is why deliveries come late, in words for people, and Since when; empty and zero while all is well.
	Trouble string
	Since   time.Time
}

func stateOf(b *lifeboatv1.Budget, r Rule, now time.Time) State {
	s := State{Left: left(b, r, now), Trouble: b.GetTrouble()}
	if paused(b, now) > 0 {
		s.PausedUntil = b.GetPausedUntil().AsTime()
	}
	if b.GetTroubleSince() != nil {
		s.Since = b.GetTroubleSince().AsTime()
	}
	return s
}

// changed says whether a budget is another one than before.
func changed(before, after *lifeboatv1.Budget) bool { return !proto.Equal(before, after) }
