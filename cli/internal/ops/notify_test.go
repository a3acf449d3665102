package ops

import (
	"context"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/lifeboat-fleet/lifeboat/fleet/bus"
	"github.com/lifeboat-fleet/lifeboat/fleet/fleettest/bintest"
	"github.com/lifeboat-fleet/lifeboat/fleet/fleettest/chattest"
	lifeboatv1 "github.com/lifeboat-fleet/lifeboat/proto/lifeboat/v1"
	notifier "github.com/lifeboat-fleet/lifeboat/services/notifier/app"
)

// sink is a chat, a notifier that tells it, and the address of its webhooks.
type sink struct {
	*lab
	chat *chattest.Server
	port int
	// more are further lines under notifier.
	more string
}

// alerting gives the lab a configuration with receivers, and no notifier yet.
func (l *lab) alerting(more string) *sink {
	l.t.Helper()
	ports, err := bintest.FreePorts(1)
	require.NoError(l.t, err)
	s := &sink{lab: l, chat: chattest.NewWith(l.t, chattest.Options{NoLimits: true}), port: ports[0], more: more}
	s.settle()
	return s
}

// settle writes the configuration.
func (s *sink) settle() {
	s.t.Helper()
	s.write("slack-url", s.chat.SlackURL())
	s.write("lifeboat.yaml", fmt.Sprintf(`
nats: %s
notifier:
  listen: 127.0.0.1:%d
  receivers:
    - {name: ops-slack, slack: {webhook_url_file: slack-url}}
    - {name: db-slack, slack: {webhook_url_file: slack-url}}
  route: {receiver: ops-slack, routes: [{matchers: ['team="db"'], receiver: db-slack}]}
%s`, s.settings, s.port, s.more))
}

// notifier runs one until the test ends.
func (s *sink) notifier() {
	s.t.Helper()
	up := make(chan struct{})
	file := filepath.Join(s.dir, "lifeboat.yaml")
	s.service(func(ctx context.Context) error {
		return notifier.Run(ctx, notifier.Options{
			ConfigPath: file, HTTPAddr: "127.0.0.1:0", Logger: slog.New(slog.DiscardHandler), Started: func(notifier.Addresses) { close(up) },
		})
	})
	<-up
}

// webhook is what Alertmanager posts about one alert.
func webhook(name, labels string) string {
	return fmt.Sprintf(`{"version":"4","groupKey":"{}:%[3]s","status":"firing","receiver":"lifeboat","groupLabels":{"alertname":%[1]q},
"commonLabels":{"alertname":%[1]q},"commonAnnotations":{},"externalURL":"http://am","truncatedAlerts":0,"alerts":[{"status":"firing",
"labels":{"alertname":%[1]q,"severity":"warning"%[2]s},"annotations":{"summary":"s"},"startsAt":"2026-11-21T04:00:00Z",
"endsAt":"0001-01-01T00:00:00Z","generatorURL":"","fingerprint":"f-%[3]s"}]}`, name, labels, name)
}

// post sends a body to the notifier and gives its answer's code.
func (s *sink) post(path, body string) int {
	s.t.Helper()
	req, err := http.NewRequestWithContext(s.t.Context(), http.MethodPost, fmt.Sprintf("http://127.0.0.1:%d%s", s.port, path), strings.NewReader(body))
	require.NoError(s.t, err)
	client := &http.Client{Transport: &http.Transport{DisableKeepAlives: true}}
	resp, err := client.Do(req)
	require.NoError(s.t, err)
	_, err = io.Copy(io.Discard, resp.Body)
	require.NoError(s.t, err)
	require.NoError(s.t, resp.Body.Close())
	return resp.StatusCode
}

// told waits until the chat has a message that holds a text.
func (s *sink) told(text string) {
	s.t.Helper()
	ctx, cancel := context.WithTimeout(s.t.Context(), patience)
	defer cancel()
	require.NoError(s.t, s.chat.Wait(ctx, func(ms []chattest.Message) bool {
		return slices.ContainsFunc(ms, func(m chattest.Message) bool { return strings.Contains(m.Title+m.Text, text) })
	}), text)
}

// endOf is an event of how a delivery ended.
func endOf(verb, id, target, message string, attributes ...string) *lifeboatv1.Event {
	e := &lifeboatv1.Event{Id: id, Noun: "alert", Verb: verb, Target: target, Message: message, Attributes: map[string]string{
		"delivery_id": "d-" + id, "origin": "alertmanager", "attempts": "1", "alerts": "1", "route": "{}",
	}}
	for i := 0; i < len(attributes); i += 2 {
		e.Attributes[attributes[i]] = attributes[i+1]
	}
	return e
}

// deliveriesView is the JSON of `lifeboat notify deliveries`.
type deliveriesView struct {
	Deliveries []ended
	Summary    summary
	Waiting    *waiting
	Unknown    []string
}

func (v deliveriesView) ids() []string {
	all := []string{}
	for _, d := range v.Deliveries {
		all = append(all, strings.TrimPrefix(d.DeliveryID, "d-"))
	}
	return all
}

// history stores one delivery of each kind, oldest first.
func (l *lab) history() {
	l.t.Helper()
	for _, e := range []*lifeboatv1.Event{
		endOf("delivered", "one", etcdTarget, "ops-slack was told of 1 alerts", "receiver", "ops-slack", "alertname", "EtcdNoLeader", "lag_seconds", "0.412", "kind", "message"),
		endOf("delivered", "two", "", "", "receiver", "ops-slack", "alerts", "4", "held", "1", "lag_seconds", "1260.0", "kind", "digest", "digest", "end-x", "attempts", "9"),
		endOf("delivered", "three", "", "", "receiver", "ops-slack", "alertname", "A", "alerts", "2", "lag_seconds", "1200.0", "kind", "digest", "digest", "end-x"),
		endOf("folded", "four", "", "nothing in it was news for ops-slack: 2 duplicate", "receiver", "ops-slack", "alertname", "A", "alerts", "2", "lag_seconds", "0.2"),
		endOf("handed-on", "five", "", "ops-slack did not take it (Slack throttled); gone-dingtalk takes over",
			"receiver", "ops-slack", "to", "gone-dingtalk", "alertname", "B", "lag_seconds", "300"),
		endOf("dead", "six", "", "Slack answered 403\x1b[2J action_prohibited", "receiver", "gone-dingtalk", "alertname", "C", "lag_seconds", "1", "dead_id", "dead-c", "origin", "canary"),
	} {
		require.NoError(l.t, l.bus.Emit(l.t.Context(), e))
	}
}

func TestDeliveriesAreListedWithHowTheyEnded(t *testing.T) {
	l := newLab(t)
	l.alerting("")
	out := l.ok("notify", "deliveries")
	assert.Contains(t, out, "no delivery ended like this since then")
	assert.Contains(t, out, "nothing waits")
	l.history()
	out = l.ok("notify", "deliveries")
	const when = `(?m)^\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ +`
	assert.Regexp(t, when+`ops-slack +EtcdNoLeader etcd-prod +delivered +412ms +1$`, out)
	assert.Regexp(t, when+`ops-slack +4 alerts +in a digest, 1 flap and are told later +21m +9$`, out)
	assert.Regexp(t, when+`ops-slack +A, 2 alerts +folded: 2 duplicate +200ms +1$`, out)
	assert.Regexp(t, when+`ops-slack +B +handed on to gone-dingtalk: Slack throttled +5m +1$`, out)
	assert.Regexp(t, when+`gone-dingtalk +C \(canary\) +dead: Slack answered 403\[2J action_prohibited +1s +1$`, out)
	assert.Contains(t, out, "\n1 alert delivered, 5 in 1 digest, 2 folded, 1 handed on, 1 dead, 1 put by because they flap; lag p50 20m, p99 21m\n")
	assert.Contains(t, out, "lifeboat notify dead\n")
	assert.NotContains(t, out, "\x1b")
}

func TestDeliveriesAreChosen(t *testing.T) {
	l := newLab(t)
	l.alerting("")
	l.history()
	// A crash after the server forgot the event's id: the same one is there twice.
	again, err := l.bus.PublishRaw(t.Context(), bus.EventSubject("alert", "delivered", etcdTarget), []byte(`{"id": "one", "noun": "alert", "verb": "delivered",
		"attributes": {"receiver": "ops-slack", "delivery_id": "d-one", "alerts": "1"}}`), nil, "")
	require.NoError(t, err)
	require.NotZero(t, again)
	// What nobody can read hides nothing else.
	_, err = l.bus.PublishRaw(t.Context(), bus.EventSubject("alert", "dead", ""), []byte("{"), nil, "")
	require.NoError(t, err)
	for args, want := range map[string][]string{
		"":                         {"one", "two", "three", "four", "five", "six"},
		"--receiver gone-dingtalk": {"six"},
		"--receiver gone-dingtalk --receiver db-slack": {"six"},
		"--outcome digest":                     {"two", "three"},
		"--outcome delivered,dead":             {"one", "six"},
		"--outcome handed-on --outcome folded": {"four", "five"},
		"--alertname A":                        {"three", "four"},
		"--slow 5m":                            {"two", "three"},
		"--slow 299s --limit 1":                {"five"},
		"--limit 2":                            {"five", "six"},
		"--limit 0":                            {"one", "two", "three", "four", "five", "six"},
		"--receiver db-slack":                  {},
	} {
		var v deliveriesView
		l.json(&v, append([]string{"notify", "deliveries"}, strings.Fields(args)...)...)
		assert.Equal(t, want, v.ids(), args)
	}
	var v deliveriesView
	l.json(&v, "notify", "deliveries", "--limit", "1")
	assert.Equal(t, 6, v.Summary.Deliveries, "the summary is of all that matches")
	assert.Contains(t, l.ok("notify", "deliveries", "--limit", "1"), "the newest 1 of 6 deliveries; all of them with --limit 0")
	d := v.Deliveries[0]
	assert.Equal(t, "dead-c", d.DeadID)
	assert.Equal(t, "canary", d.Origin)
	assert.Empty(t, v.Unknown)
	assert.InDelta(t, 1200, *v.Summary.LagP50, 0.1)

	for args, want := range map[string]string{
		"--since yesterday": "--since", "--outcome lost": `"lost" is not one of delivered, digest, folded, handed-on, dead`, "--limit -1": "less than nothing",
		"--receiver nobody": `no receiver is named "nobody"`, "--output xml": "table or json", "something": "unknown command",
	} {
		_, errs, code := l.lifeboat(append([]string{"notify", "deliveries"}, strings.Fields(args)...)...)
		assert.Equal(t, 2, code, args)
		assert.Contains(t, errs, want)
	}
}

// A listing that is cut keeps the newest, however many there are.
func TestOnlyTheNewestDeliveriesAreKept(t *testing.T) {
	r := &deliveries{f: &deliveriesFlags{limit: 3}, receivers: map[string]bool{}}
	for i := range 100 {
		r.add(&ended{Outcome: outcomeDelivered, Alerts: 1, LagSeconds: float64(100 - i)})
		assert.LessOrEqual(t, len(r.List), 6)
	}
	assert.InDelta(t, 1, r.List[len(r.List)-1].LagSeconds, 0)
	r.Summary.end(r.lags, 0)
	assert.Equal(t, 100, r.Summary.Delivered)
	assert.InDelta(t, 50, *r.Summary.LagP50, 0)
	assert.InDelta(t, 99, *r.Summary.LagP99, 0)
}

func TestDeliveriesTellWhatWaitsNow(t *testing.T) {
	l := newLab(t)
	l.alerting("")
	for i, subject := range []string{
		bus.DeliverySubject("ops-slack"), bus.DeliverySubject("ops-slack"), bus.CriticalSubject("ops-slack"), bus.HeldSubject("ops-slack"),
		bus.CriticalSubject("db-slack"), bus.HeldSubject("gone"), bus.SubjectReceived,
		bus.GroupSubject("ops-slack", "0011"), bus.BudgetSubject("slack-1"),
	} {
		_, err := l.bus.PublishRaw(t.Context(), subject, []byte("{}"), nil, fmt.Sprint(i))
		require.NoError(t, err)
	}
	out := l.ok("notify", "deliveries")
	assert.Contains(t, out, "waiting for a route: 1; is a notifier running?\n")
	assert.Contains(t, out, "waiting for ops-slack: 3, 1 of them critical; 1 held until a time interval ends, or because their alerts flap\n")
	assert.Contains(t, out, "waiting for db-slack: 1, 1 of them critical\n")
	assert.Contains(t, out, "waiting for gone: 0; 1 held")
	var v deliveriesView
	l.json(&v, "notify", "deliveries", "--receiver", "db-slack,gone")
	assert.Equal(t, &waiting{Receivers: map[string]*queued{"db-slack": {Waiting: 1, Critical: 1}, "gone": {Held: 1}}}, v.Waiting)
}

func TestReceiversAreCompleted(t *testing.T) {
	l := newLab(t)
	l.alerting("")
	l.bury(&lifeboatv1.DeadLetter{Id: "a", Subject: "lifeboat.alert.delivery.ops-slack"})
	l.bury(&lifeboatv1.DeadLetter{Id: "b", Subject: "webhook"})
	l.bury(&lifeboatv1.DeadLetter{Id: "job", Subject: "lifeboat.job.snapshot.x"})
	file := filepath.Join(l.dir, "lifeboat.yaml")
	for _, cmd := range []string{"deliveries", "dead", "replay"} {
		assert.Contains(t, l.ok("__complete", "notify", cmd, "--config", file, "--receiver", ""), "ops-slack\ndb-slack\n:4")
	}
	assert.Contains(t, l.ok("__complete", "notify", "deliveries", "--config", file, "--outcome", "h"), "handed-on\n")
	assert.Contains(t, l.ok("__complete", "notify", "replay", "--config", file, ""), "b\na\n:36")
	assert.Contains(t, l.ok("__complete", "notify", "replay", "--config", file, "b", ""), "a\n:36")
}
