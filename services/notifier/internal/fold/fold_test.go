package fold_test

import (
	"fmt"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/timestamppb"

	lifeboatv1 "github.com/lifeboat-fleet/lifeboat/proto/lifeboat/v1"
	"github.com/lifeboat-fleet/lifeboat/services/notifier/internal/fold"
)

var noon = time.Date(2026, 11, 21, 12, 0, 0, 123456789, time.UTC)

// at is a moment: minutes after noon.
func at(minutes float64) time.Time { return noon.Add(time.Duration(minutes * float64(time.Minute))) }

// came makes an arrival, received as many minutes after noon: a firing or resolved state of the episode that began at starts.
func came(fingerprint, status string, starts, received float64) fold.Arrival {
	a := &lifeboatv1.Alert{
		Fingerprint: fingerprint, Status: status, StartsAt: timestamppb.New(at(starts)), Labels: map[string]string{"alertname": fingerprint},
		Annotations: map[string]string{"received": fmt.Sprint(received)},
	}
	if status == "resolved" {
		a.EndsAt = timestamppb.New(at(received))
	}
	return fold.Arrival{Alert: a, Received: at(received)}
}

func timeless(a fold.Arrival) fold.Arrival {
	a.Alert.StartsAt = nil
	return a
}

func muted(a fold.Arrival) fold.Arrival {
	a.Muted = true
	return a
}

// receiver keeps what a receiver was told, through several folds.
type receiver struct {
	t     *testing.T
	group *lifeboatv1.Group
	p     fold.Policy
}

// fold folds at so many minutes after noon, and stores the state.
func (r *receiver) fold(minutes float64, arrivals ...fold.Arrival) fold.Result {
	r.t.Helper()
	before := proto.CloneOf(r.group)
	res := fold.Fold(r.group, arrivals, r.p, at(minutes))
	require.True(r.t, proto.Equal(before, r.group), "the state that was given is changed")
	counted(r.t, arrivals, res)
	require.Equal(r.t, !proto.Equal(before, res.Group), res.Changed && (before != nil || len(arrivals) > 0))
	r.group = res.Group
	return res
}

// counted checks that each arrival is counted exactly once.
func counted(t *testing.T, arrivals []fold.Arrival, res fold.Result) {
	t.Helper()
	n := len(res.Tell) + len(res.Held)
	for why, k := range res.Folded {
		require.Positive(t, k, why)
		n += k
	}
	require.Len(t, arrivals, n, "%+v", res)
}

// kinds are what is told, as "a fires".
func kinds(res fold.Result) []string {
	var out []string
	for _, c := range res.Tell {
		s := c.Alert.GetFingerprint() + " " + string(c.Kind)
		if c.Flaps > 0 {
			s += fmt.Sprintf(" (%d)", c.Flaps)
		}
		out = append(out, s)
	}
	return out
}

func start(t *testing.T) *receiver {
	t.Helper()
	return &receiver{t: t, p: fold.Policy{Repeat: time.Hour, Flaps: -1, Window: 10 * time.Minute}}
}

func TestFiringThenResolved(t *testing.T) {
	r := start(t)
	res := r.fold(0, came("a", "firing", 0, 0), came("b", "firing", 0, 0))
	assert.Equal(t, []string{"a fires", "b fires"}, kinds(res))
	assert.True(t, res.Begins)
	assert.Equal(t, noon.Truncate(time.Millisecond), r.group.GetToldAt().AsTime())

	res = r.fold(5, came("a", "resolved", 0, 5), came("b", "firing", 0, 5))
	assert.Equal(t, []string{"a resolves"}, kinds(res))
	assert.False(t, res.Begins, "nobody is mentioned for what ends")
	assert.Equal(t, map[string]int{fold.Repeat: 1}, res.Folded)
	require.Len(t, res.Unchanged, 1, "the message of the whole group shows what fires on")
	assert.Equal(t, "b", res.Unchanged[0].GetFingerprint())

	res = r.fold(20, came("a", "firing", 19, 20))
	assert.Equal(t, []string{"a fires"}, kinds(res), "it begins again")
	assert.True(t, res.Begins)
}

func TestDuplicatesAndRepeats(t *testing.T) {
	r := start(t)
	res := r.fold(0, came("a", "firing", 0, 0), came("a", "firing", 0, 0.2))
	assert.Equal(t, []string{"a fires"}, kinds(res))
	assert.Equal(t, "0.2", res.Tell[0].Alert.GetAnnotations()["received"], "the newest copy is told")
	assert.Equal(t, map[string]int{fold.Duplicate: 1}, res.Folded)

	res = r.fold(0.5, came("a", "firing", 0, 0.5))
	assert.Equal(t, map[string]int{fold.Duplicate: 1}, res.Folded)
	assert.False(t, res.Changed, "nothing has to be stored")
	res = r.fold(30, came("a", "firing", 0, 20), came("a", "firing", 0, 30))
	assert.Equal(t, map[string]int{fold.Repeat: 2}, res.Folded)
	require.Len(t, res.Unchanged, 1)
	assert.Equal(t, "30", res.Unchanged[0].GetAnnotations()["received"])
	assert.Empty(t, kinds(r.fold(59, came("a", "firing", 0, 59))))

	res = r.fold(60, came("a", "firing", 0, 59.99))
	assert.Equal(t, []string{"a repeats"}, kinds(res))
	assert.False(t, res.Begins, "nobody is mentioned for a repeat")
	assert.Empty(t, kinds(r.fold(61, came("a", "firing", 0, 61))), "the hour counts from the repeat")
	res = r.fold(62, came("a", "resolved", 0, 62), came("a", "resolved", 0, 62))
	assert.Equal(t, []string{"a resolves"}, kinds(res))
	assert.Empty(t, kinds(r.fold(190, came("a", "resolved", 0, 190))), "what has ended is not repeated")
}

func TestARepeatComesWithAlertmanagersOwnInterval(t *testing.T) {
	r := start(t)
	// The first one took 20 s to be told, the second was quick.
	r.fold(20.0/60, came("a", "firing", 0, 0))
	assert.Equal(t, []string{"a repeats"}, kinds(r.fold(60, came("a", "firing", 0, 60))))
}

func TestWithoutAPolicyEverythingIsRepeated(t *testing.T) {
	r := start(t)
	r.p = fold.Policy{}
	r.fold(0, came("a", "firing", 0, 0))
	assert.Equal(t, []string{"a repeats"}, kinds(r.fold(1, came("a", "firing", 0, 1))))
	// It had been received before the other one was told, and is the same.
	assert.Empty(t, kinds(r.fold(2, came("a", "firing", 0, 0.5))))
	for i := range 50 {
		status := []string{"resolved", "firing"}[i%2]
		assert.Len(t, r.fold(float64(3+i), came("a", status, float64(3+i), float64(3+i))).Tell, 1, "nothing is held without flapping")
	}
	assert.Len(t, r.group.GetAlerts()[0].GetChanges(), 1)
}

func TestFiredAndEndedWhileTheChatWasDown(t *testing.T) {
	r := start(t)
	res := r.fold(30, came("a", "firing", 0, 0), came("b", "firing", 1, 1), came("a", "resolved", 0, 10))
	assert.Equal(t, []string{"b fires", "a passes"}, kinds(res))
	assert.Equal(t, map[string]int{fold.Superseded: 1}, res.Folded)
	assert.Empty(t, kinds(r.fold(31, came("a", "firing", 0, 0), came("b", "firing", 1, 1), came("a", "resolved", 0, 10))), "the same again after a crash")

	res = r.fold(32, came("c", "resolved", 0, 32))
	assert.Equal(t, []string{"c passes"}, kinds(res), "nothing is known of it: it was told before the state was lost, perhaps")

	res = r.fold(60, came("b", "resolved", 1, 40), came("b", "firing", 45, 45), came("b", "resolved", 45, 50))
	assert.Equal(t, []string{"b resolves"}, kinds(res))
	assert.Equal(t, map[string]int{fold.Superseded: 2}, res.Folded)
}

func TestMuted(t *testing.T) {
	r := start(t)
	res := r.fold(60, muted(came("a", "firing", 0, 0)), muted(came("b", "firing", 0, 0)), muted(came("a", "resolved", 0, 10)))
	assert.Equal(t, []string{"b fires"}, kinds(res), "what still fires is told")
	assert.Equal(t, map[string]int{fold.Muted: 2}, res.Folded, "what ended meanwhile is not")
	res = r.fold(61, muted(came("a", "firing", 0, 0)), muted(came("a", "resolved", 0, 10)))
	assert.Empty(t, res.Tell)
	assert.Equal(t, map[string]int{fold.Stale: 1, fold.Muted: 1}, res.Folded)

	res = r.fold(120, muted(came("b", "resolved", 0, 100)), muted(came("b", "firing", 105, 105)), came("b", "resolved", 105, 110))
	assert.Equal(t, []string{"b resolves"}, kinds(res), "it was told to fire before it was muted")
	res = r.fold(180, muted(came("c", "firing", 121, 121)), came("c", "firing", 121, 122), came("c", "resolved", 121, 130))
	assert.Equal(t, []string{"c passes"}, kinds(res), "it fired openly, too")
	assert.Equal(t, []string{"a fires"}, kinds(r.fold(200, came("a", "firing", 199, 199))))
}

func TestEvents(t *testing.T) {
	r := start(t)
	res := r.fold(0, came("e", "event", 0, 0), came("e", "event", -1, 0), came("e", "firing", 0, 0))
	assert.Equal(t, []string{"e happens", "e happens", "e fires"}, kinds(res), "each event is told, and none is an alert's state")
	assert.True(t, res.Begins)
	res = r.fold(600, came("e", "event", 0, 600), came("e", "event", -2, 600), timeless(came("e", "event", 0, 600)), timeless(came("e", "event", 0, 600)))
	assert.Equal(t, []string{"e happens", "e happens"}, kinds(res))
	assert.Equal(t, map[string]int{fold.Duplicate: 2}, res.Folded)
	assert.False(t, res.Begins)
	assert.Empty(t, res.Unchanged)
}

func TestOutOfOrder(t *testing.T) {
	t.Run("firing after its own resolved", func(t *testing.T) {
		r := start(t)
		r.fold(5, came("a", "resolved", 0, 5))
		res := r.fold(5, came("a", "firing", 0, 5.3))
		assert.Equal(t, map[string]int{fold.Stale: 1}, res.Folded)
		assert.False(t, res.Changed)
		assert.Empty(t, r.fold(120, came("a", "firing", 0, 4)).Tell, "a replay of what was received before")
	})
	t.Run("an earlier episode", func(t *testing.T) {
		r := start(t)
		r.fold(5, came("a", "firing", 4, 5))
		res := r.fold(6, came("a", "firing", 0, 5), came("a", "resolved", 0, 3))
		assert.Equal(t, map[string]int{fold.Stale: 2}, res.Folded)
		assert.Equal(t, at(4), r.group.GetAlerts()[0].GetStartsAt().AsTime())
		// However late that it ended is said: it ended before the other one began.
		late := came("a", "resolved", 0, 3)
		late.Received = at(30)
		assert.Equal(t, map[string]int{fold.Stale: 1}, r.fold(30, late).Folded)
	})
	t.Run("the end of an earlier one comes first", func(t *testing.T) {
		r := start(t)
		r.fold(20, came("a", "resolved", 0, 20))
		assert.Equal(t, []string{"a fires"}, kinds(r.fold(20, came("a", "firing", 4, 5))), "whatever was received when: it began later")
		assert.Equal(t, []string{"a resolves"}, kinds(r.fold(21, came("a", "resolved", 4, 12))))
	})
}

// Alertmanager resolves by itself what Prometheus does not send any more. When that comes back the alert has the same startsAt.
func TestAnAlertFiresOnAfterPrometheusWasCutOff(t *testing.T) {
	r := start(t)
	r.fold(0, came("a", "firing", 0, 0))
	assert.Equal(t, []string{"a resolves"}, kinds(r.fold(10, came("a", "resolved", 0, 10))))
	res := r.fold(15, came("a", "firing", 0, 15))
	assert.Equal(t, []string{"a fires"}, kinds(res))
	assert.True(t, res.Begins)
	assert.Empty(t, r.fold(15, came("a", "firing", 0, 0), came("a", "resolved", 0, 10), came("a", "firing", 0, 15)).Tell, "all of it once more")
	assert.Equal(t, []string{"a resolves"}, kinds(r.fold(20, came("a", "resolved", 0, 20))))
	assert.Equal(t, []string{"a fires"}, kinds(r.fold(60, came("a", "resolved", 0, 22), came("a", "firing", 0, 28))), "both in one fold")
}

// It fired in between, unseen: that is known from its second end.
func TestAnAlertThatFiredBetweenTwoEndsIsOutOfOrder(t *testing.T) {
	r := start(t)
	r.fold(10, came("a", "resolved", 0, 10))
	assert.Equal(t, map[string]int{fold.Repeat: 1}, r.fold(20, came("a", "resolved", 0, 20)).Folded)
	assert.Equal(t, map[string]int{fold.Stale: 1}, r.fold(20.2, came("a", "firing", 0, 20.1)).Folded)
}

// Two Prometheus see an alert begin at different times, and Alertmanager merges them into the earlier one.
func TestTwoPrometheus(t *testing.T) {
	r := start(t)
	r.fold(5, came("a", "firing", 5, 5))
	res := r.fold(10, came("a", "firing", 4, 10))
	assert.Equal(t, map[string]int{fold.Repeat: 1}, res.Folded)
	assert.Equal(t, []string{"a repeats"}, kinds(r.fold(70, came("a", "firing", 4, 70))))
	assert.Equal(t, []string{"a resolves"}, kinds(r.fold(80, came("a", "resolved", 4, 80))), "nobody is left believing that it fires")
	assert.Empty(t, r.fold(80, came("a", "firing", 5, 79.9)).Tell)
	assert.Equal(t, []string{"a fires"}, kinds(r.fold(90, came("a", "firing", 4, 90))), "one of them goes on")
	assert.Empty(t, r.fold(91, came("a", "resolved", 5, 80)).Tell)
	assert.Equal(t, []string{"a resolves"}, kinds(r.fold(95, came("a", "resolved", 4, 95))))
}

func TestWithoutStartsAt(t *testing.T) {
	r := start(t)
	assert.Equal(t, []string{"a fires"}, kinds(r.fold(0, timeless(came("a", "firing", 0, 0)))))
	assert.Empty(t, kinds(r.fold(1, timeless(came("a", "firing", 0, 1)))))
	assert.Equal(t, []string{"a resolves"}, kinds(r.fold(2, timeless(came("a", "resolved", 0, 2)))))
	assert.Equal(t, []string{"a fires"}, kinds(r.fold(2.1, timeless(came("a", "firing", 0, 2.1)))), "firing after a resolved is another time")
	assert.Empty(t, r.fold(2.1, timeless(came("a", "resolved", 0, 2)), timeless(came("a", "firing", 0, 2.1))).Tell)
	assert.Equal(t, []string{"a fires"}, kinds(r.fold(4, timeless(came("a", "resolved", 0, 3)), timeless(came("a", "firing", 0, 3)))), "in the order of the queue")
	assert.Equal(t, []string{"a resolves"}, kinds(r.fold(5, came("a", "resolved", 1, 5))), "one with a startsAt ends it")
	r.fold(6, came("a", "firing", 6, 6))
	assert.Equal(t, []string{"a resolves"}, kinds(r.fold(7, timeless(came("a", "resolved", 0, 7)))))
}

func TestFlapping(t *testing.T) {
	r := start(t)
	r.p.Flaps = 4
	for i, want := range []string{"a fires", "a resolves", "a fires", "a resolves"} {
		m := float64(i)
		status := []string{"firing", "resolved"}[i%2]
		assert.Equal(t, []string{want}, kinds(r.fold(m, came("a", status, m-float64(i%2), m))))
	}
	res := r.fold(4, came("a", "firing", 4, 4), came("b", "firing", 4, 4))
	assert.Equal(t, []string{"b fires"}, kinds(res), "only the one that flaps is held")
	require.Len(t, res.Held, 1)
	assert.Equal(t, at(13).Truncate(time.Millisecond), res.Held[0].Until, "the window counts from what was told last")
	first := fold.Arrival{Alert: res.Held[0].Alert, Received: at(4)}
	assert.True(t, r.group.GetAlerts()[0].GetWaits())

	res = r.fold(5, came("a", "firing", 4, 4.5), came("a", "resolved", 4, 5))
	require.Len(t, res.Held, 1)
	assert.Equal(t, "resolved", res.Held[0].Alert.GetStatus())
	second := fold.Arrival{Alert: res.Held[0].Alert, Received: at(5)}
	assert.Equal(t, map[string]int{fold.Duplicate: 1}, withoutSuperseded(res.Folded))
	assert.Len(t, r.fold(6, second).Held, 1, "too early")

	// Nothing further comes: the newest state is told, also if people know it as that.
	assert.Equal(t, map[string]int{fold.Stale: 1}, r.fold(13, first).Folded)
	res = r.fold(13, second, second)
	assert.Equal(t, []string{"a passes (6)"}, kinds(res))
	assert.Equal(t, map[string]int{fold.Duplicate: 1}, res.Folded)
	assert.False(t, r.group.GetAlerts()[0].GetWaits())

	for i := range 6 {
		m := 13.5 + float64(i)/4
		res = r.fold(m, came("a", []string{"firing", "resolved"}[i%2], m-float64(i%2)/4, m))
	}
	require.Len(t, res.Held, 1, "one message for each window while it flaps")
	assert.Equal(t, at(24).Truncate(time.Millisecond), res.Held[0].Until)
	res = r.fold(24, fold.Arrival{Alert: res.Held[0].Alert, Received: at(14.75)})
	assert.Equal(t, []string{"a resolves (7)"}, kinds(res))
	assert.Equal(t, []string{"a fires"}, kinds(r.fold(30, came("a", "firing", 30, 30))), "it does not flap any more")
}

func TestWhatFlapsIsToldHoweverLate(t *testing.T) {
	r := start(t)
	r.p.Flaps = 2
	r.fold(0, came("a", "firing", 0, 0))
	r.fold(1, came("a", "resolved", 0, 1))
	require.Len(t, r.fold(2, came("a", "firing", 2, 2)).Held, 1)
	res := r.fold(60, came("a", "firing", 2, 2))
	assert.Equal(t, []string{"a fires (3)"}, kinds(res), "the chat was down meanwhile")
	assert.True(t, res.Begins)
	require.Len(t, r.fold(61, came("a", "resolved", 2, 61)).Tell, 1)

	r.fold(62, came("a", "firing", 62, 62))
	require.Len(t, r.fold(63, came("a", "resolved", 62, 63)).Held, 1)
	require.Len(t, r.fold(64, came("a", "firing", 64, 64)).Held, 1)
	res = r.fold(72, came("a", "firing", 64, 64))
	assert.Equal(t, []string{"a repeats (4)"}, kinds(res), "people know it as firing")
	assert.False(t, res.Begins)
}

func withoutSuperseded(m map[string]int) map[string]int {
	delete(m, fold.Superseded)
	return m
}

func TestWhatFlapsIsToldThoughItIsMuted(t *testing.T) {
	r := start(t)
	r.p.Flaps = 2
	r.fold(0, came("a", "firing", 0, 0))
	r.fold(1, came("a", "resolved", 0, 1))
	require.Len(t, r.fold(2, came("a", "firing", 2, 2)).Held, 1)
	res := r.fold(5, came("a", "resolved", 2, 3), muted(came("a", "firing", 4, 4)), muted(came("a", "resolved", 4, 5)))
	require.Len(t, res.Held, 1)
	assert.Equal(t, []string{"a passes (6)"}, kinds(r.fold(11, fold.Arrival{Alert: res.Held[0].Alert, Received: res.Held[0].Received})))
}

func TestAManyTimesFlappedAlertIsToldOnceAfterTheChatWasDown(t *testing.T) {
	r := start(t)
	r.p.Flaps = 4
	var all []fold.Arrival
	for i := range 12 {
		m := float64(i) / 2
		all = append(all, came("a", []string{"firing", "resolved"}[i%2], float64(i/2), m))
	}
	res := r.fold(30, all...)
	assert.Equal(t, []string{"a passes (12)"}, kinds(res))
	assert.Equal(t, map[string]int{fold.Superseded: 11}, res.Folded)
}

func TestOddArrivals(t *testing.T) {
	r := start(t)
	far := came("a", "firing", 0, 1e6)
	res := r.fold(1, far, fold.Arrival{}, fold.Arrival{Alert: &lifeboatv1.Alert{Labels: map[string]string{"x": "y"}, Status: "strange"}})
	assert.Len(t, res.Tell, 3, "whatever it is, it is told")
	assert.Equal(t, []string{"a resolves"}, kinds(r.fold(2, came("a", "resolved", 0, 2))), "a clock that was wrong does no lasting harm")
	assert.Len(t, r.fold(3, fold.Arrival{Alert: &lifeboatv1.Alert{Labels: map[string]string{"x": "y"}, Status: "resolved"}, Received: at(3)}).Tell, 1)
	r.fold(4, came("a", "firing", 4, 4))
	now := came("a", "resolved", 4, 5)
	now.Received = time.Time{}
	assert.Equal(t, []string{"a resolves"}, kinds(r.fold(5, now)), "received now")
	empty := fold.Fold(nil, nil, fold.Policy{}, noon)
	assert.NotNil(t, empty.Group)
	assert.NotNil(t, empty.Folded)
}

func TestTheRestOfTheStateStays(t *testing.T) {
	r := start(t)
	r.group = &lifeboatv1.Group{
		GroupKey: "k", HandedTo: map[string]string{"a": "other"}, Message: &lifeboatv1.ChatMessage{Channel: "C1", Id: "1.2"}, DeliveryId: "d", MessagesSent: 3,
		Alerts: []*lifeboatv1.Told{{Fingerprint: "half", Status: "firing"}},
	}
	res := r.fold(0, came("a", "firing", 0, 0), came("half", "firing", 0, 0))
	assert.Equal(t, []string{"a fires", "half fires"}, kinds(res))
	assert.Equal(t, "C1", res.Group.GetMessage().GetChannel())
	assert.Equal(t, []any{"k", "other", "d", int32(3)}, []any{res.Group.GetGroupKey(), res.Group.GetHandedTo()["a"], res.Group.GetDeliveryId(), res.Group.GetMessagesSent()})
}
