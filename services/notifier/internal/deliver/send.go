package deliver

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"strconv"
	"time"

	"go.opentelemetry.io/otel/attribute"
	"go.opentelemetry.io/otel/trace"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/timestamppb"

	"github.com/lifeboat-fleet/lifeboat/fleet/bus"
	"github.com/lifeboat-fleet/lifeboat/fleet/tracing"
	lifeboatv1 "github.com/lifeboat-fleet/lifeboat/proto/lifeboat/v1"
	"github.com/lifeboat-fleet/lifeboat/services/notifier/internal/budget"
	"github.com/lifeboat-fleet/lifeboat/services/notifier/internal/fold"
	"github.com/lifeboat-fleet/lifeboat/services/notifier/internal/notice"
	"github.com/lifeboat-fleet/lifeboat/services/notifier/internal/render"
)

// told is one group of a unit: what is news in it, and the state that its receiver has.
type told struct {
	items      []*item
	deliveries []*lifeboatv1.Delivery
	arrivals   []fold.Arrival
	policy     fold.Policy
	subject    string
	seq        uint64
	state      *lifeboatv1.Group
	result     fold.Result
	pages      *pages
	// before are those of the items that were told by an attempt whose state could not be written.
	before map[uint64]bool
}

// do folds a unit into what its groups' receivers know, sends what is news, and settles its deliveries. A busyError: there is no
// room, and nothing was done. A chatError: the chat did not take it.
func (t *turn) do(ctx context.Context, u unit) error {
	ctx, span := t.begin(ctx, u)
	err := t.done(ctx, u)
	if _, busy := errors.AsType[*busyError](err); busy { // which is no failure
		span.End()
		return err
	}
	tracing.End(span, err)
	return err
}

func (t *turn) done(ctx context.Context, u unit) error {
	t.outdated = nil
	all, err := t.fold(ctx, u)
	if err != nil {
		return err
	}
	var news []*told
	for _, g := range all {
		if len(g.result.Tell) > 0 {
			news = append(news, g)
		}
	}
	u.digest = u.digest && len(news) > 1 // of one group there is nothing to sum up
	if len(news) > 0 {
		if err := t.tell(ctx, u, news); err != nil {
			return err
		}
	}
	// What was sent is sent: the records must follow even if the service stops now.
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), settleTimeout)
	defer cancel()
	for _, g := range all {
		if err := t.settle(ctx, u, g); err != nil {
			return err
		}
	}
	t.edits.add(ctx, t.outdated)
	return nil
}

// settleTimeout bounds the records of a unit.
const settleTimeout = 30 * time.Second

// fold reads the state of each group of a unit and finds what is news.
func (t *turn) fold(ctx context.Context, u unit) ([]*told, error) {
	var all []*told
	for _, items := range groups(u.items) {
		g := &told{items: items, state: &lifeboatv1.Group{}, pages: t.newPages()}
		for _, it := range items {
			d, err := it.delivery()
			if err != nil {
				return nil, err
			}
			g.deliveries = append(g.deliveries, d)
			// After an attempt whose end is not known it may have been told to fire: that it ended must be told then.
			muted := d.GetHeldFor() != "" && it.stored.After(t.doubted)
			for _, a := range d.GetNotification().GetAlerts() {
				g.arrivals = append(g.arrivals, fold.Arrival{Alert: a, Received: it.received, Muted: muted})
			}
			if i := len(g.deliveries) - 1; i == 0 || d.GetRepeatInterval().AsDuration() < g.policy.Repeat {
				g.policy.Repeat = d.GetRepeatInterval().AsDuration()
			}
		}
		flapping := t.c.cfg.Notifier.Flapping
		g.policy.Flaps, g.policy.Window = flapping.Changes, flapping.Window
		g.subject = bus.GroupSubject(t.name, items[0].group)
		if err := t.load(ctx, g); err != nil {
			return nil, err
		}
		all = append(all, g)
	}
	return all, nil
}

func (t *turn) load(ctx context.Context, g *told) (err error) {
	g.state = &lifeboatv1.Group{}
	if g.seq, _, err = t.d.o.Bus.Last(ctx, bus.StreamAlerts, g.subject, g.state); err != nil {
		return fmt.Errorf("reading what %s was told: %w", t.name, err)
	}
	kept, ok := t.unsaved[g.subject]
	if ok = ok && kept.seq == g.seq; ok {
		g.state, g.before = proto.CloneOf(kept.group), kept.items
	}
	g.result = fold.Fold(g.state, g.arrivals, g.policy, t.d.o.Now())
	g.result.Changed = g.result.Changed || ok
	return nil
}

// tell sends the news of a unit: one message, or a digest.
func (t *turn) tell(ctx context.Context, u unit, news []*told) error {
	now := t.d.o.Now()
	trouble := ""
	if u.digest || t.late(u.items[0]) {
		state, err := t.d.o.Budgets.State(ctx, t.key, t.rule)
		if err != nil {
			return err
		}
		trouble = state.Trouble
	}
	inputs := make([]render.Input, 0, len(news))
	for _, g := range news {
		inputs = append(inputs, t.input(ctx, g, trouble, now))
	}
	if u.digest {
		return t.tellDigest(ctx, u, news, inputs, trouble)
	}
	n, err := t.c.renderer.Message(inputs[0])
	if err != nil {
		return &chatError{bus.Terminal("render", err)}
	}
	n.Critical = n.Critical || u.critical || u.reserve
	t.overtake(news[0])
	return t.send(ctx, u, news[0], t.sender.Split(n), place(news[0]))
}

func (t *turn) tellDigest(ctx context.Context, u unit, news []*told, inputs []render.Input, trouble string) error {
	for _, g := range news {
		t.overtake(g)
		if fresh(g) {
			g.state.Message = nil // the one that it had is of something that is over, and nobody would see it change
		}
	}
	n := t.c.renderer.Digest(inputs, trouble)
	n.Critical = n.Critical || u.critical || u.reserve
	if err := t.send(ctx, u, news[0], t.sender.Split(n), notice.Ref{}); err != nil {
		return err
	}
	for i, g := range news {
		if refOf(g.state).ID == "" || events(g) {
			continue
		}
		if n, err := t.c.renderer.Message(inputs[i]); err == nil { // which a digest has shown it to be
			// That it is told at this time is recorded before anybody changes the message.
			n.Quiet, n.Critical, n.Mentions = true, false, nil
			t.outdated = append(t.outdated, &outdated{
				subject: g.subject, notice: n, ref: refOf(g.state), toldAt: g.result.Group.GetToldAt().AsTime(), since: t.d.o.Now(),
			})
		}
	}
	return nil
}

// overtake leaves a group's message to the news that are told now.
func (t *turn) overtake(g *told) {
	if !events(g) {
		t.edits.overtake(g.subject, fresh(g))
	}
}

// input is what the renderer needs of a group.
func (t *turn) input(ctx context.Context, g *told, trouble string, now time.Time) render.Input {
	d := withAlerts(g.deliveries[len(g.deliveries)-1], nil)
	d.Notification.ReceivedAt = timestamppb.New(g.items[0].received)
	for _, one := range g.deliveries {
		for _, who := range one.GetMentions() {
			if !slices.Contains(d.GetMentions(), who) {
				d.Mentions = append(d.Mentions, who)
			}
		}
	}
	notes, known := map[string]string{}, map[string]bool{}
	words := notice.In(t.receiver.Language)
	for _, c := range g.result.Tell {
		d.Notification.Alerts = append(d.Notification.Alerts, c.Alert)
		if c.Flaps > 0 {
			notes[c.Alert.GetFingerprint()] = fmt.Sprintf(words.Flapped, c.Flaps, g.policy.Window)
		}
	}
	for _, a := range g.result.Unchanged {
		d.Notification.Alerts, known[a.GetFingerprint()] = append(d.Notification.Alerts, a), true
	}
	in := render.Input{
		Receiver: t.receiver, Delivery: d, Notes: notes, Told: known, Mention: g.result.Begins, Trouble: trouble, Now: now,
		Page: g.pages.forRender(ctx), Buttons: t.buttons(),
	}
	if place(g).ID != "" || t.bot() && !events(g) {
		in.StillFires = g.stillFires(now)
	}
	if t.d.o.Links != nil {
		in.Links = func(matchers map[string]string, comment string) []notice.Link {
			return t.d.o.Links(t.c.cfg.Notifier.Interactions, words, matchers, comment)
		}
	}
	return in
}

// bot says whether the receiver has one message for each group.
func (t *turn) bot() bool { return t.receiver.Slack != nil && t.receiver.Slack.BotTokenFile != "" }

// buttons says whether somebody listens to the chat's own buttons.
func (t *turn) buttons() bool {
	i := t.c.cfg.Notifier.Interactions
	return t.receiver.Slack != nil && (i.SlackSigningSecretFile != "" || i.SlackAppTokenFile != "")
}

// send sends the parts of a notice, those that were sent before a crash excepted, and notes in the group how far it got.
func (t *turn) send(ctx context.Context, u unit, g *told, parts []notice.Notice, before notice.Ref) error {
	id := progress(u, parts)
	done := 0
	if g.state.GetDeliveryId() == id {
		if done = min(int(g.state.GetMessagesSent()), len(parts)-1); !u.digest && !events(g) {
			before = refOf(g.state)
			before.Resumed = true
		}
	}
	if !u.digest && events(g) && t.postedOf == id {
		before = t.posted
		before.Resumed = true
	}
	for i := done; i < len(parts); i++ {
		if ctx.Err() != nil {
			return context.Cause(ctx)
		}
		place := notice.Ref{}
		if i == 0 {
			place = before
		}
		ref, err := t.sendPart(ctx, parts[i], place)
		switch {
		case i > 0 || ref.ID == "" || u.digest:
		case events(g):
			t.posted, t.postedOf = ref, id
		default:
			g.state.Message = messageOf(ref)
		}
		sent := i
		if err == nil {
			sent++
			t.sent = true
			t.d.metrics.delivered.WithLabelValues(t.name, kind(u)).Inc()
		}
		if sent < len(parts) && (sent > done || ref.ID != "") {
			if noted := t.note(ctx, g, id, sent); noted != nil {
				return errors.Join(noted, err)
			}
			t.begun = u.items
		}
		if err != nil {
			return err
		}
	}
	return nil
}

// progress names what is sent: these deliveries, parted like this. Of another unit, or one that is parted in another way because the
// configuration is another one, as many messages would leave something out.
func progress(u unit, parts []notice.Notice) string {
	var what []string
	for _, it := range u.items {
		what = append(what, it.id, strconv.FormatUint(it.seq, 10))
	}
	for _, p := range parts {
		what = append(what, "part", p.Body, strconv.Itoa(p.More))
		for _, i := range p.Items {
			what = append(what, i.Name, strconv.FormatBool(i.Firing), i.Starts.String(), strconv.Itoa(i.Count))
			for _, l := range i.Labels {
				what = append(what, l.Name, l.Value)
			}
		}
	}
	return u.items[0].id + " " + hash(what...)
}

func kind(u unit) string {
	if u.digest {
		return "digest"
	}
	return "message"
}

// note writes how many messages of a unit have been sent, so that a successor goes on from there.
func (t *turn) note(ctx context.Context, g *told, id string, sent int) error {
	g.state.DeliveryId, g.state.MessagesSent = id, int32(sent) //nolint:gosec // few
	seq, err := t.d.o.Bus.PutState(context.WithoutCancel(ctx), bus.State{Outgoing: bus.Outgoing{Subject: g.subject, Message: g.state}, Expect: g.seq})
	if err != nil {
		return fmt.Errorf("noting what %s was sent: %w", t.name, err)
	}
	g.seq = seq
	return nil
}

// updatesKey follows the key of the budget for changes of messages.
const updatesKey = "-update"

// updates are how often messages may be changed: Slack takes 50 a minute (docs.slack.dev, rate limits, tier 3).
func updates(rule budget.Rule) budget.Rule {
	if rule.Messages <= 0 {
		return rule
	}
	return budget.Rule{Messages: 45, Per: time.Minute, Reserve: 10}
}

// quietReserve is how many of them are not for changes that tell nobody anything.
const quietReserve = 15

// sendPart sends one message.
func (t *turn) sendPart(ctx context.Context, n notice.Notice, before notice.Ref) (notice.Ref, error) {
	first := notice.Post
	if before.ID != "" {
		first = notice.Update
	}
	if wait, err := t.take(ctx, first, n.Critical); err != nil || wait > 0 {
		if err == nil {
			err = &busyError{wait}
		}
		return notice.Ref{}, err
	}
	counted := true
	var own error
	take := func(ctx context.Context, call notice.Call) error {
		if counted && call == first {
			counted = false
			return nil
		}
		own = t.await(ctx, call, n.Critical)
		return own
	}
	begun := t.d.o.Now()
	// A stop waits for the answer: a message whose answer was not waited for would be sent twice.
	attempt, cancel := context.WithTimeout(context.WithoutCancel(ctx), sendTimeout)
	defer cancel()
	attempt, span := tracing.Start(attempt, "send", trace.WithSpanKind(trace.SpanKindClient))
	if span.IsRecording() {
		span.SetAttributes(attribute.String("lifeboat.receiver", t.name), attribute.String("lifeboat.chat", t.receiver.Kind()))
	}
	ref, err := t.sender.Send(attempt, n, before, take)
	tracing.End(span, err)
	// What the chat answered counts more than this: a budget that is a second off does no harm, and a chat that hangs must be known to.
	if late := t.d.o.Budgets.Late(context.WithoutCancel(ctx), t.key, t.rule, begun, t.d.o.Now()); late != nil {
		t.d.o.Logger.WarnContext(ctx, "could not count when a message was sent", slog.String("receiver", t.name), slog.Any("err", late))
	}
	switch {
	case err == nil:
		return ref, nil
	case own != nil && errors.Is(err, own):
		return ref, own
	}
	return ref, &chatError{fmt.Errorf("delivering to %s: %w", t.name, err)}
}

func (t *turn) take(ctx context.Context, call notice.Call, critical bool) (wait time.Duration, err error) {
	key, rule := t.key, t.rule
	if call == notice.Update {
		key, rule = key+updatesKey, updates(rule)
		if t.quiet && rule.Messages > 0 {
			rule.Reserve = quietReserve
		}
	}
	if wait, err = t.d.o.Budgets.Take(ctx, key, rule, critical); err != nil {
		return 0, fmt.Errorf("asking for room at %s: %w", t.name, err)
	}
	return wait, nil
}

// await waits for room for a further request of the same message; not for long, because the rest is sent later.
func (t *turn) await(ctx context.Context, call notice.Call, critical bool) error {
	for {
		wait, err := t.take(ctx, call, critical)
		if err != nil || wait == 0 {
			return err
		}
		if wait > lookAgain {
			return &busyError{wait}
		}
		if err := t.sleep(ctx, wait); err != nil {
			return &busyError{wait}
		}
	}
}
