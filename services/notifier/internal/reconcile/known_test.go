package reconcile

import (
	"fmt"
	"log/slog"
	"runtime"
	"strings"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/timestamppb"

	"github.com/lifeboat-fleet/lifeboat/fleet/bus"
	lifeboatv1 "github.com/lifeboat-fleet/lifeboat/proto/lifeboat/v1"
)

var began = time.Date(2026, 11, 21, 4, 0, 0, 123456789, time.UTC)

func one(n uint64) *alert {
	return &alert{
		id: alertID{n, began.UnixMilli()}, audible: true, receivers: []string{"lifeboat"},
		labels: map[string]string{"alertname": fmt.Sprintf("A%d", n%2), "instance": fmt.Sprint(n)},
	}
}

func sent(status string, starts time.Time) *lifeboatv1.Notification {
	return &lifeboatv1.Notification{Origin: "alertmanager", Receiver: "lifeboat", Alerts: []*lifeboatv1.Alert{{
		Status: status, Fingerprint: "0000000000000001", StartsAt: timestamppb.New(starts),
	}}}
}

func state(told *lifeboatv1.Told) *lifeboatv1.Group {
	told.Fingerprint = "0000000000000001"
	return &lifeboatv1.Group{GroupKey: "{}:{}", Alerts: []*lifeboatv1.Told{told}}
}

func message(t *testing.T, subject string, m proto.Message) *bus.Message {
	t.Helper()
	data, err := protojson.Marshal(m)
	require.NoError(t, err)
	return &bus.Message{Subject: subject, Data: data}
}

func TestWhatIsKnown(t *testing.T) {
	t.Parallel()
	at := timestamppb.New
	for name, c := range map[string]struct {
		subject string
		message proto.Message
		known   bool
	}{
		"received":       {bus.SubjectReceived, sent("firing", began), true},
		"for a receiver": {bus.DeliverySubject("ops"), &lifeboatv1.Delivery{Notification: sent("firing", began)}, true},
		"critical":       {bus.CriticalSubject("ops"), &lifeboatv1.Delivery{Notification: sent("firing", began)}, true},
		"held":           {bus.HeldSubject("ops"), &lifeboatv1.Delivery{Notification: sent("firing", began)}, true},
		"told":           {bus.GroupSubject("ops", "x"), state(&lifeboatv1.Told{StartsAt: at(began), ToldAt: at(began)}), true},
		"told to have ended": {bus.GroupSubject("ops", "x"), state(&lifeboatv1.Told{
			StartsAt: at(began), ToldAt: at(began), Status: "resolved", ToldStatus: "resolved",
		}), false},
		"told, and its end waits": {bus.GroupSubject("ops", "x"), state(&lifeboatv1.Told{
			StartsAt: at(began), ToldAt: at(began), Status: "resolved", ToldStatus: "firing", Waits: true,
		}), true},
		"put by":                  {bus.GroupSubject("ops", "x"), state(&lifeboatv1.Told{StartsAt: at(began), Waits: true}), true},
		"came and was not told":   {bus.GroupSubject("ops", "x"), state(&lifeboatv1.Told{StartsAt: at(began)}), false},
		"an earlier time":         {bus.GroupSubject("ops", "x"), state(&lifeboatv1.Told{StartsAt: at(began.Add(-time.Hour)), ToldAt: at(began)}), false},
		"of another Prometheus":   {bus.GroupSubject("ops", "x"), state(&lifeboatv1.Told{StartsAt: at(began.Add(time.Second)), ToldAt: at(began)}), true},
		"only its end":            {bus.SubjectReceived, sent("resolved", began), false},
		"another's budget":        {bus.BudgetSubject("x"), &lifeboatv1.Budget{}, false},
		"what cannot be read":     {bus.SubjectReceived, &lifeboatv1.Budget{Trouble: "x"}, false},
		"an alert by hand":        {bus.SubjectReceived, &lifeboatv1.Notification{Alerts: []*lifeboatv1.Alert{{Status: "firing", Fingerprint: "1"}}}, false},
		"a subject of the future": {"lifeboat.alert.group.ops", state(&lifeboatv1.Told{StartsAt: at(began), ToldAt: at(began)}), false},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			k := newKnown([]*alert{one(1), one(2)}, nil, map[string]bool{})
			require.NoError(t, k.take(message(t, c.subject, c.message)))
			require.NoError(t, k.take(&bus.Message{Subject: c.subject, Data: []byte("{")}))
			want := []*alert{one(1), one(2)}
			if c.known {
				want = want[1:]
			}
			assert.Equal(t, want, k.unknown([]string{"lifeboat"}))
		})
	}
}

func TestOnlyAlertmanagersReceiversThatPostHereConcernUs(t *testing.T) {
	t.Parallel()
	all := []*alert{one(1), one(2), one(3)}
	all[1].receivers = []string{"pager", "team.x"}
	all[2].audible = false
	hash := func(key, receiver string) string { return key + receiver }
	k := newKnown(all, hash, map[string]bool{})
	assert.Empty(t, k.unknown(nil), "nobody has posted")
	assert.Len(t, k.unknown([]string{"pager"}), 1)
	assert.Len(t, k.unknown([]string{"pager", "lifeboat"}), 2)
	assert.Empty(t, k.unknown([]string{"other"}))

	require.NoError(t, k.take(message(t, "lifeboat.alert.group.ops.keyteam.x", &lifeboatv1.Group{GroupKey: "key"})))
	assert.Equal(t, map[string]bool{"team.x": true}, k.posted)
	assert.Equal(t, []*alert{all[1]}, k.unknown(nil))
	n := sent("firing", began)
	n.Alerts = nil
	require.NoError(t, k.take(message(t, bus.SubjectReceived, n)))
	assert.Len(t, k.unknown(nil), 2)
	n.Origin, n.Receiver = "lifeboat", "pager2"
	require.NoError(t, k.take(message(t, bus.SubjectReceived, n)))
	assert.NotContains(t, k.posted, "pager2", "the fleet's own alerts come from no receiver of Alertmanager")
}

func TestTheAlertsOfAGroupThatIsTooLargeForItsStateAreKnown(t *testing.T) {
	t.Parallel()
	for key, left := range map[string]int{
		`{}:{alertname="A1"}`: 5, `{}/{severity="critical"}:{alertname="A0"}`: 5, `{}:{alertname="A1", instance="3"}`: 9, `{}:{alertname="A7"}`: 10,
		`{}:{}`: 0, "by hand": 10, "{}:{": 10, `{}/{a=~":{x"}:{alertname="A1", odd=""}`: 5, `{}:{alertname="A1", odd=":{"}`: 10,
	} {
		var all []*alert
		for i := range 10 {
			all = append(all, one(uint64(i)))
		}
		k := newKnown(all, nil, map[string]bool{})
		g := &lifeboatv1.Group{GroupKey: key}
		require.NoError(t, k.take(message(t, bus.GroupSubject("ops", "x"), g)))
		assert.Len(t, k.left, 10, "a small group says nothing: %s", key)
		for range 4000 {
			g.Alerts = append(g.Alerts, &lifeboatv1.Told{Fingerprint: "ffffffffffffffff", ToldAt: timestamppb.New(began)})
		}
		require.NoError(t, k.take(message(t, bus.GroupSubject("ops", "x"), g)))
		assert.Len(t, k.left, left, key)
	}
}

func TestAnAlertIsMissedWhenItWasUnknownForLongEnough(t *testing.T) {
	t.Parallel()
	r := New(Options{Logger: slog.New(slog.DiscardHandler), Registerer: prometheus.NewRegistry()})
	now, after := began.Add(time.Hour), 10*time.Minute
	a, b := one(1), one(2)
	b.id.starts = now.UnixMilli()
	step := func(minutes int, unknown ...*alert) int {
		return len(r.lasting(unknown, now.Add(time.Duration(minutes)*time.Minute), after))
	}
	assert.Zero(t, step(0, a), "its silence may have ended a moment ago")
	assert.Zero(t, step(5, a, b))
	assert.Equal(t, 1, step(10, a, b))
	assert.Equal(t, 2, step(15, a, b))
	assert.Zero(t, step(20), "told meanwhile")
	assert.Zero(t, step(25, a))
	assert.Zero(t, step(30, a))
	assert.Equal(t, 1, step(35, a))
	assert.Len(t, r.missing, 1, "nothing is kept of others")
}

func TestLabelsSurviveInTheGroupsKey(t *testing.T) {
	t.Parallel()
	for _, value := range []string{"x", `a"b\c`, "新\n\u2028", strings.Repeat("x", 5000)} {
		a := one(1)
		a.labels["odd"] = value
		k := newKnown(nil, nil, map[string]bool{})
		g := state(&lifeboatv1.Told{StartsAt: timestamppb.New(began), ToldAt: timestamppb.New(began), Status: "firing"})
		g.GroupKey = a.notification(began).GetGroupKey()
		require.NoError(t, k.take(message(t, bus.GroupSubject("ops", "x"), g)))
		over := k.over(nil)
		require.Len(t, over, 1)
		assert.Equal(t, a.labels, over[0].labels)
		assert.Empty(t, k.over([]*alert{a}), "it fires")
		n := over[0].notification(began, began)
		require.NoError(t, k.take(message(t, bus.DeliverySubject("ops"), &lifeboatv1.Delivery{Receiver: "ops", Notification: n})))
		assert.Empty(t, k.over(nil), "that it ended waits already")
	}
}

func TestMemoryIsForTheAlertsThatFireAndNotForWhatWasTold(t *testing.T) {
	t.Parallel()
	var all []*alert
	for i := range 1000 {
		all = append(all, one(uint64(i)))
	}
	k := newKnown(all, nil, map[string]bool{})
	g := &lifeboatv1.Group{}
	for i := range 3000 {
		g.Alerts = append(g.Alerts, &lifeboatv1.Told{Fingerprint: fmt.Sprintf("%016x", 1<<32+i), StartsAt: timestamppb.New(began), ToldAt: timestamppb.New(began)})
	}
	m := message(t, bus.GroupSubject("ops", "x"), g)
	heap := func() uint64 {
		runtime.GC()
		var s runtime.MemStats
		runtime.ReadMemStats(&s)
		return s.HeapAlloc
	}
	before := heap()
	for range 100 { // 300,000 alerts
		require.NoError(t, k.take(m))
	}
	grown := int64(heap()) - int64(before)
	assert.Less(t, grown, int64(2<<20))
	assert.Len(t, k.left, 1000)
}
