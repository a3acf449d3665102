package ops

import (
	"fmt"
	"net/http"
	"slices"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"google.golang.org/protobuf/encoding/protojson"

	"github.com/lifeboat-fleet/lifeboat/fleet/bus"
	"github.com/lifeboat-fleet/lifeboat/fleet/fleettest/certtest"
	"github.com/lifeboat-fleet/lifeboat/fleet/fleettest/chattest"
	lifeboatv1 "github.com/lifeboat-fleet/lifeboat/proto/lifeboat/v1"
)

// deadView is the JSON of `lifeboat notify dead`.
func (l *lab) deadView(args ...string) (all []deadAlert) {
	l.t.Helper()
	l.json(&all, append([]string{"notify", "dead"}, args...)...)
	return all
}

// delivery is the payload of one to a receiver.
func delivery(t *testing.T, receiver string, names ...string) []byte {
	t.Helper()
	d := &lifeboatv1.Delivery{Id: "d", Receiver: receiver, Notification: &lifeboatv1.Notification{GroupKey: "g"}}
	for _, name := range names {
		d.Notification.Alerts = append(d.Notification.Alerts, &lifeboatv1.Alert{
			Status: "firing", Labels: map[string]string{"alertname": name}, Fingerprint: "f-" + name,
		})
	}
	b, err := protojson.Marshal(d)
	require.NoError(t, err)
	return b
}

func TestDeadAlertsAreListed(t *testing.T) {
	l := newLab(t)
	l.alerting("")
	assert.Equal(t, "no alert is dead, and no webhook was refused\n", l.ok("notify", "dead"))
	l.bury(&lifeboatv1.DeadLetter{Id: "job", Subject: "lifeboat.job.snapshot.etcd-prod"})
	l.bury(&lifeboatv1.DeadLetter{
		Id: "ops", Subject: bus.CriticalSubject("ops-slack"), Payload: delivery(t, "ops-slack", "B", "A", "A"), Reason: "Slack\x1b[2J said no\nat all", Attempts: 3,
	})
	l.bury(&lifeboatv1.DeadLetter{Id: "gone", Subject: bus.DeliverySubject("gone"), Payload: []byte("{"), Reason: "no receiver is named"})
	l.bury(&lifeboatv1.DeadLetter{Id: "raw", Subject: bus.SubjectReceived, Payload: []byte(`{"alerts": [{"labels": {"alertname": "R"}}]}`), Reason: "no route"})
	l.bury(&lifeboatv1.DeadLetter{Id: "hook", Subject: "webhook", Payload: []byte(`{"version": "5", "alerts": [{}, {}]}`), Reason: "version"})
	l.bury(&lifeboatv1.DeadLetter{Id: "script", Subject: "webhook", Payload: []byte(`{"name": "A", "nane": "B"}`), Reason: "no such key"})
	l.bury(&lifeboatv1.DeadLetter{Id: "huge", Subject: "webhook", Payload: make([]byte, 900<<10), Reason: "too large"})
	out := l.ok("notify", "dead")
	assert.Regexp(t, `(?m)^ops +\S+ +ops-slack +3: A, B +Slack\[2J said no$`, out)
	assert.Regexp(t, `(?m)^gone +\S+ +gone +\? +no receiver is named$`, out)
	assert.Regexp(t, `(?m)^raw +\S+ +received +1: R +no route$`, out)
	assert.Regexp(t, `(?m)^hook +\S+ +webhook /api/v1/alertmanager +2 +version$`, out)
	assert.Regexp(t, `(?m)^script +\S+ +webhook /api/v1/alerts +1 +no such key$`, out)
	assert.Regexp(t, `(?m)^huge +\S+ +webhook /api/v1/alertmanager +\? +\(only its beginning was kept\) too large$`, out)
	assert.NotContains(t, out, "job")
	assert.NotContains(t, out, "\x1b")

	all := l.deadView("--receiver", "ops-slack,gone")
	require.Len(t, all, 2)
	assert.Equal(t, []string{"A", "B"}, all[0].Alertnames)
	assert.Equal(t, 3, *all[0].Alerts)
	assert.Equal(t, "gone", all[1].Receiver)
	assert.Empty(t, l.deadView("--receiver", "db-slack"))
	_, errs, code := l.lifeboat("notify", "dead", "--receiver", "nobody")
	assert.Equal(t, 2, code)
	assert.Contains(t, errs, `no receiver is named "nobody"`)
}

// A delivery that a chat refused goes out when it is replayed, and the audit log tells both.
func TestADeadDeliveryIsSentAgain(t *testing.T) {
	s := newLab(t).alerting("")
	s.notifier()
	s.chat.FailAll(chattest.Slack, chattest.Fault{Status: http.StatusForbidden, Body: "action_prohibited"})
	require.Equal(t, http.StatusOK, s.post(endpointAlertmanager, webhook("First", "")))
	require.Equal(t, http.StatusOK, s.post(endpointAlertmanager, webhook("Second", `,"team":"db"`)))
	first, second := s.deadOf("First"), s.deadOf("Second")
	s.deadOf("LifeboatAlertDead") // the fleet's own alert about them
	s.chat.Heal(chattest.Slack)
	var v deliveriesView
	s.json(&v, "notify", "deliveries", "--outcome", "dead", "--alertname", "First")
	require.Len(t, v.Deliveries, 1)
	assert.Equal(t, first, v.Deliveries[0].DeadID)

	out := s.ok("notify", "replay", "--all", "--dry-run")
	assert.Regexp(t, `(?m)lifeboat\.alert\.delivery\.ops-slack +1: First +\d+$`, out)
	assert.Regexp(t, `(?m)lifeboat\.alert\.delivery\.db-slack +1: Second +\d+$`, out)
	var plan []struct{ ID, To string }
	s.json(&plan, "notify", "replay", "--all", "--receiver", "db-slack", "--dry-run")
	require.Len(t, plan, 1)
	assert.Equal(t, second, plan[0].ID)
	assert.Equal(t, "lifeboat.alert.delivery.db-slack", plan[0].To)
	_, errs, code := s.lifeboat("notify", "replay", "--all")
	assert.Equal(t, 2, code)
	assert.Contains(t, errs, "add --yes")
	assert.Empty(t, s.chat.Messages(), "nothing was sent")

	assert.Contains(t, s.ok("notify", "replay", "--all", "--receiver", "db-slack", "--yes"), "sent again to lifeboat.alert.delivery.db-slack")
	s.told("Second")
	assert.Empty(t, s.deadView("--receiver", "db-slack"))
	assert.Contains(t, s.ok("notify", "replay", first, "--keep", "--yes"), "sent again")
	s.told("First")
	assert.Equal(t, first, s.deadOf("First"), "it is kept")
	assert.Equal(t, first, s.event("dead", "replayed", "").GetAttributes()["dead_id"])
	for _, name := range []string{"First", "Second"} {
		require.EventuallyWithT(t, func(c *assert.CollectT) {
			var v deliveriesView
			s.json(&v, "notify", "deliveries", "--alertname", name)
			assert.Equal(c, 1, v.Summary.Delivered)
			assert.Equal(c, 1, v.Summary.Dead)
		}, patience, patience/300)
	}
}

// deadOf waits for the dead letter of an alert and gives its id.
func (l *lab) deadOf(name string) (id string) {
	l.t.Helper()
	require.Eventually(l.t, func() bool {
		for _, a := range l.deadView() {
			if slices.Equal(a.Alertnames, []string{name}) {
				id = a.ID
			}
		}
		return id != ""
	}, patience, patience/600, name)
	return id
}

// A refused webhook is posted again: one that is still wrong stays, once; one that is good by now is delivered, with the tokens of
// the configuration, which nobody is shown.
func TestARefusedWebhookIsPostedAgain(t *testing.T) {
	const token = "first-token-of-the-file"
	s := newLab(t).alerting("  bearer_tokens_file: tokens\n")
	s.write("tokens", token+"\nsecond\n")
	s.bury(&lifeboatv1.DeadLetter{Id: "good", Subject: "webhook", Payload: []byte(webhook("Late", "")), Reason: "the notifier was too old"})
	s.bury(&lifeboatv1.DeadLetter{Id: "script", Subject: "webhook", Payload: []byte(`{"name": "Scripted"}`), Reason: "no such key"})
	s.bury(&lifeboatv1.DeadLetter{Id: "bad", Subject: "webhook", Payload: []byte(`{"version": "5", "alerts": [{}]}`), Reason: "version"})
	s.bury(&lifeboatv1.DeadLetter{Id: "same", Subject: "webhook", Payload: []byte(`{"version": "5", "alerts": [{}]}`), Reason: "version"})
	s.bury(&lifeboatv1.DeadLetter{Id: "huge", Subject: "webhook", Payload: make([]byte, 900<<10), Reason: "too large"})
	_, errs, code := s.lifeboat("notify", "replay", "good", "--yes")
	assert.Equal(t, 1, code)
	assert.Contains(t, errs, "connection refused; the letter stays. Is a notifier there?")
	s.notifier()

	out := s.ok("notify", "replay", "good", "--dry-run")
	assert.Contains(t, out, fmt.Sprintf("http://127.0.0.1:%d/api/v1/alertmanager", s.port))
	out, errs, code = s.lifeboat("notify", "replay", "--all", "--yes")
	assert.Equal(t, 1, code)
	assert.Contains(t, out, fmt.Sprintf("good: sent again to http://127.0.0.1:%d/api/v1/alertmanager\n", s.port))
	assert.Contains(t, out, fmt.Sprintf("script: sent again to http://127.0.0.1:%d/api/v1/alerts\n", s.port))
	assert.Regexp(t, `bad: .*answered 400 .*; the letter stays`, errs)
	assert.Contains(t, errs, "huge: only the beginning of this webhook was kept")
	assert.NotContains(t, out+errs, token)
	s.told("Late")
	s.told("Scripted")
	ids := []string{}
	for _, a := range s.deadView() {
		ids = append(ids, a.ID)
	}
	assert.ElementsMatch(t, []string{"bad", "same", "huge"}, ids, "the notifier's copies of what it refused again are gone, and nothing else is")
	e := s.event("dead", "replayed", "")
	assert.Contains(t, e.GetAttributes()["url"], "/api/v1/alert")

	s.write("tokens", "another\n")
	s.bury(&lifeboatv1.DeadLetter{Id: "later", Subject: "webhook", Payload: []byte(webhook("Later", "")), Reason: "x"})
	_, errs, code = s.lifeboat("notify", "replay", "later", "--yes", "--url", fmt.Sprintf("http://127.0.0.1:%d", s.port))
	assert.Zero(t, code, "the notifier reads the file anew: %s", errs)
}

func TestAWebhookIsPostedOverTLS(t *testing.T) {
	pair := certtest.New(t, "ca").Server(t)
	s := newLab(t).alerting("  web_config_file: web.yml\n")
	s.write("web.yml", fmt.Sprintf("tls_server_config: {cert_file: %q, key_file: %q}\n", pair.Cert, pair.Key))
	s.bury(&lifeboatv1.DeadLetter{Id: "good", Subject: "webhook", Payload: []byte(webhook("Secure", "")), Reason: "x"})
	s.notifier()
	assert.Contains(t, s.ok("notify", "replay", "good", "--yes"), fmt.Sprintf("https://127.0.0.1:%d/", s.port))
	s.told("Secure")
}

func TestAWebhookIsPostedWithACertificate(t *testing.T) {
	ca, stranger := certtest.New(t, "ca"), certtest.New(t, "stranger")
	s := newLab(t).alerting(fmt.Sprintf("  web_config_file: %q\n", ca.WebConfig(t)))
	s.bury(&lifeboatv1.DeadLetter{Id: "good", Subject: "webhook", Payload: []byte(webhook("Proven", "")), Reason: "x"})
	s.notifier()
	with := func(caFile string, p certtest.Pair) []string {
		return []string{"notify", "replay", "good", "--yes", "--ca-file", caFile, "--cert-file", p.Cert, "--key-file", p.Key}
	}
	mine := ca.Client(t, "operator")
	for name, args := range map[string][]string{
		"none": {"notify", "replay", "good", "--yes"}, "a foreign CA's": with(ca.File, stranger.Client(t, "operator")),
		"expired": with(ca.File, ca.Client(t, "operator", certtest.Expired())), "a server of another": with(stranger.File, mine),
	} {
		_, errs, code := s.lifeboat(args...)
		assert.Equal(t, 1, code, name)
		assert.Contains(t, errs, "the letter stays", name)
	}
	_, errs, code := s.lifeboat("notify", "replay", "good", "--yes", "--cert-file", mine.Cert)
	assert.Equal(t, 2, code)
	assert.Contains(t, errs, "--cert-file and --key-file go together")
	s.ok(with(ca.File, mine)...)
	s.told("Proven")
}

func TestReplayRefusesWrongUsage(t *testing.T) {
	s := newLab(t).alerting("")
	s.bury(&lifeboatv1.DeadLetter{Id: "a", Subject: bus.DeliverySubject("ops-slack"), Payload: delivery(t, "ops-slack", "A")})
	s.bury(&lifeboatv1.DeadLetter{Id: "job", Subject: "lifeboat.job.snapshot.etcd-prod"})
	for want, args := range map[string][]string{
		"name the ids":                  {},
		"either ids or --all":           {"a", "--all"},
		"add --all":                     {"a", "--receiver", "ops-slack"},
		"add --all, and name":           {"a", "--since", "1h"},
		"--since":                       {"--all", "--since", "yesterday"},
		"it is not an address":          {"a", "--url", "notifier:9095"},
		"no place for a password":       {"a", "--url", "http://u:p@localhost"},
		`no receiver is named "nobody"`: {"--all", "--receiver", "nobody"},
	} {
		_, errs, code := s.lifeboat(append([]string{"notify", "replay", "--yes"}, args...)...)
		assert.Equal(t, 2, code, want)
		assert.Contains(t, errs, want)
	}
	for want, args := range map[string][]string{
		`no dead letter of alerts is named "job"`: {"a", "job"}, `is named "x"`: {"a", "x"},
	} {
		_, errs, code := s.lifeboat(append([]string{"notify", "replay", "--yes"}, args...)...)
		assert.Equal(t, 1, code, want)
		assert.Contains(t, errs, want)
	}
	assert.Len(t, s.deadView(), 1, "a mistyped id sends nothing")
	out, errs, code := s.lifeboat("notify", "replay", "--all", "--receiver", "db-slack", "--yes")
	assert.Zero(t, code)
	assert.Empty(t, out)
	assert.Contains(t, errs, "nothing was sent")
	assert.Equal(t, "[]\n", s.ok("notify", "replay", "--all", "--receiver", "db-slack", "--yes", "--output", "json"))
	var done []replayed
	s.json(&done, "notify", "replay", "a", "a", "--yes")
	require.Len(t, done, 1)
	assert.Equal(t, bus.DeliverySubject("ops-slack"), done[0].Subject)
}

// Where a body was posted is what the notifier wrote down, not what it looks like; one that is refused again stays as the one letter it was.
func TestARefusedWebhookGoesBackToItsEndpoint(t *testing.T) {
	s := newLab(t).alerting("")
	s.notifier()
	require.Equal(t, http.StatusBadRequest, s.post(endpointGeneric, "nonsense"))
	all := s.deadView()
	require.Len(t, all, 1)
	assert.Equal(t, endpointGeneric, all[0].Endpoint)
	for range 2 {
		_, errs, code := s.lifeboat("notify", "replay", all[0].ID, "--yes")
		assert.Equal(t, 1, code)
		assert.Contains(t, errs, endpointGeneric+" answered 400")
	}
	assert.Equal(t, []string{all[0].ID}, deadIDs(s.lab))
	assert.Contains(t, s.ok("dead", "show", all[0].ID), "lifeboat notify replay "+all[0].ID)
}
