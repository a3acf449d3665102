package deliver

import (
	"slices"
	"time"

	"google.golang.org/protobuf/types/known/timestamppb"

	lifeboatv1 "github.com/lifeboat-fleet/lifeboat/proto/lifeboat/v1"
	"github.com/lifeboat-fleet/lifeboat/services/notifier/internal/fold"
	"github.com/lifeboat-fleet/lifeboat/services/notifier/internal/notice"
)

// fresh says whether a group gets a message of its own rather than a change of the one that it has: when it begins to fire after all
// had ended. In the other cases who sends the change also says in the channel what fires, for an edit is noticed by nobody.
func fresh(g *told) bool {
	return g.result.Begins && !slices.ContainsFunc(g.state.GetAlerts(), func(a *lifeboatv1.Told) bool { return a.GetToldStatus() == firing })
}

// events says whether a group's news are nothing but events. These are no state that a message could show: each gets one of its own, and
// the group keeps the one that it has.
func events(g *told) bool {
	return !slices.ContainsFunc(g.result.Tell, func(c fold.Change) bool { return c.Kind != fold.Happens })
}

// place is the message that a group's news change; the zero Ref: they are posted.
func place(g *told) notice.Ref {
	if fresh(g) || events(g) {
		return notice.Ref{}
	}
	return refOf(g.state)
}

func refOf(g *lifeboatv1.Group) notice.Ref {
	m := g.GetMessage()
	if m.GetId() == "" {
		return notice.Ref{}
	}
	return notice.Ref{Channel: m.GetChannel(), ID: m.GetId(), Posted: m.GetPostedAt().AsTime(), Thread: int(m.GetThreadMessages())}
}

func messageOf(r notice.Ref) *lifeboatv1.ChatMessage {
	if r.ID == "" {
		return nil
	}
	return &lifeboatv1.ChatMessage{
		Channel: r.Channel, Id: r.ID, PostedAt: timestamppb.New(r.Posted), ThreadMessages: int32(r.Thread), //nolint:gosec // few
	}
}

// believed is how long an alert is taken to fire on of which nothing is heard. Its end may never come: Alertmanager does not tell that of
// what was silenced meanwhile, nor with send_resolved off.
const believed = 24 * time.Hour

// stillFires is how many alerts of a group fire that the message of its news does not show: they came in another part of the webhook, or
// what is told now was put by until now. What Alertmanager said has ended as a whole fires no more.
func (g *told) stillFires(now time.Time) int {
	shown, nameless := map[string]bool{}, 0
	show := func(a *lifeboatv1.Alert) {
		if shown[a.GetFingerprint()] = true; a.GetFingerprint() == "" && a.GetStatus() == firing {
			nameless++
		}
	}
	for _, c := range g.result.Tell {
		show(c.Alert)
	}
	for _, a := range g.result.Unchanged {
		show(a)
	}
	var ended time.Time
	for _, d := range g.deliveries {
		n := d.GetNotification()
		at := n.GetReceivedAt().AsTime()
		if n.GetOrigin() == "alertmanager" && n.GetStatus() == "resolved" && n.GetTruncatedAlerts() == 0 && at.After(ended) {
			ended = at
		}
	}
	oldest, count := now.Add(-max(believed, 2*g.policy.Repeat)), 0
	for _, a := range g.result.Group.GetAlerts() {
		began := a.GetToldAt()
		if all := a.GetChanges(); len(all) > 0 {
			began = all[len(all)-1]
		}
		recent := began.AsTime().After(oldest) || a.GetToldAt().AsTime().After(oldest)
		if a.GetStatus() == firing && !shown[a.GetFingerprint()] && recent && began.AsTime().After(ended) {
			count++
		}
	}
	return max(count-nameless, 0)
}
