package tests

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"google.golang.org/protobuf/encoding/protojson"

	"github.com/lifeboat-fleet/lifeboat/fleet/fleettest/bintest"
	"github.com/lifeboat-fleet/lifeboat/fleet/fleettest/chattest"
	lifeboatv1 "github.com/lifeboat-fleet/lifeboat/proto/lifeboat/v1"
)

// alertPatience is for waits that hold the 30 s after which the head of a dead process is given to another one.
const alertPatience = 150 * time.Second

// toBoth routes every alert to both chats.
const toBoth = `
  receivers:
    - {name: slack, slack: {webhook_url_file: slack}}
    - {name: dingtalk, dingtalk: {webhook_url_file: dingtalk, secret_file: dingtalk-secret}}
  route:
    receiver: slack
    routes:
      - {receiver: slack, matchers: ['alertname=~".+"'], continue: true}
      - {receiver: dingtalk, matchers: ['alertname=~".+"']}
`

// desk is what notifiers stand between: NATS as a process, and the chats with their real limits.
type desk struct {
	t        *testing.T
	dir      string
	nats     *bintest.NATS
	chat     *chattest.Server
	js       jetstream.JetStream
	config   string
	notifier string
	// hook is where the notifier takes webhooks, host:port, and scheme how.
	hook, scheme, bearer string
	client               *http.Client
	// secrets must appear nowhere, by what they are.
	secrets map[string]string
	running []*pager
}

// pager is one notifier as a process.
type pager struct {
	*bintest.Process
	log, health string
}

// newDesk starts NATS and the chats, and writes the configuration: notifier holds lines below `notifier:`.
func newDesk(t *testing.T, chats chattest.Options, notifier string) *desk {
	t.Helper()
	d := &desk{
		t: t, dir: t.TempDir(), chat: chattest.NewWith(t, chats), scheme: "http", notifier: notifier,
		client: &http.Client{Transport: &http.Transport{DisableKeepAlives: true}},
	}
	var err error
	d.nats, err = bintest.StartNATS(t.Context(), filepath.Join(d.dir, "nats"))
	require.NoError(t, err)
	t.Cleanup(func() { assert.NoError(t, d.nats.Kill()) })
	d.secrets = map[string]string{
		"Slack's webhook": d.chat.SlackToken(), "the bot's token": d.chat.SlackBotToken(), "the signing secret": d.chat.SlackSigningSecret(),
		"the robot's token": d.chat.DingTalkToken(), "the robot's secret": d.chat.DingTalkSecret(),
	}
	d.write("slack", d.chat.SlackURL())
	d.write("slack-bot", d.chat.SlackBotToken())
	d.write("slack-signing", d.chat.SlackSigningSecret())
	d.write("dingtalk", d.chat.DingTalkURL())
	d.write("dingtalk-secret", d.chat.DingTalkSecret())
	d.elsewhere()
	nc, err := nats.Connect(d.nats.URL, nats.MaxReconnects(-1), nats.ReconnectWait(50*time.Millisecond))
	require.NoError(t, err)
	t.Cleanup(nc.Close)
	d.js, err = jetstream.New(nc)
	require.NoError(t, err)
	return d
}

// configure writes the configuration; more holds further top keys.
func (d *desk) configure(more string) {
	d.t.Helper()
	d.config = d.write("lifeboat-"+d.hook[strings.LastIndex(d.hook, ":")+1:]+".yaml", fmt.Sprintf("nats: {url: %q}\n%snotifier:\n  listen: %s\n%s", d.nats.URL, more, d.hook, d.notifier))
}

// elsewhere lets the next notifier listen at another address, where webhooks are sent from now on.
func (d *desk) elsewhere() {
	d.t.Helper()
	ports, err := bintest.FreePorts(1)
	require.NoError(d.t, err)
	d.hook = fmt.Sprintf("127.0.0.1:%d", ports[0])
	d.configure("")
}

func (d *desk) write(name, content string) string {
	d.t.Helper()
	path := filepath.Join(d.dir, name)
	require.NoError(d.t, os.WriteFile(path, []byte(content), 0o600))
	return path
}

// secret makes a file with a secret that must appear nowhere.
func (d *desk) secret(name, value string) {
	d.write(name, value+"\n")
	d.secrets[name] = value
}

// run starts a notifier and waits until it works.
func (d *desk) run() *pager {
	d.t.Helper()
	p := &pager{log: filepath.Join(d.dir, fmt.Sprintf("notifier-%d.log", len(d.running)))}
	ports, err := bintest.FreePorts(1)
	require.NoError(d.t, err)
	p.health = fmt.Sprintf("http://127.0.0.1:%d", ports[0])
	p.Process, err = bintest.Start(binary, p.log, nil, "notifier", "--config", d.config, "--log-level", "debug",
		"--http-addr", strings.TrimPrefix(p.health, "http://"))
	require.NoError(d.t, err)
	d.running = append(d.running, p)
	d.t.Cleanup(func() {
		assert.NoError(d.t, p.Stop())
		if d.t.Failed() {
			b, err := os.ReadFile(p.log)
			d.t.Logf("%s: %v\n%s", p.log, err, b[max(0, len(b)-20_000):])
		}
	})
	ctx, cancel := context.WithTimeout(d.t.Context(), 60*time.Second)
	defer cancel()
	require.NoError(d.t, p.WaitHTTP(ctx, p.health+"/readyz", nil), "the notifier never got ready")
	return p
}

// alert is one of a webhook, in Alertmanager's words.
type alert struct {
	Status      string            `json:"status"`
	Labels      map[string]string `json:"labels"`
	Annotations map[string]string `json:"annotations"`
	StartsAt    time.Time         `json:"startsAt"`
	EndsAt      time.Time         `json:"endsAt"`
	Fingerprint string            `json:"fingerprint"`
}

func fires(name, severity string) alert {
	return alert{
		Status: "firing", Labels: map[string]string{"alertname": name, "severity": severity}, Annotations: map[string]string{"summary": "about " + name},
		StartsAt: time.Now().UTC(), Fingerprint: "f-" + name,
	}
}

// hookOf is the body of a webhook that brings a group of alerts.
func hookOf(t *testing.T, group string, alerts ...alert) []byte {
	t.Helper()
	b, err := json.Marshal(map[string]any{
		"version": "4", "groupKey": "{}:{group=\"" + group + "\"}", "status": alerts[0].Status, "receiver": "lifeboat",
		"groupLabels": map[string]string{"alertname": group}, "alerts": alerts, "externalURL": "http://alertmanager",
	})
	require.NoError(t, err)
	return b
}

// ask posts a body once. Status 0: there was no answer.
func (d *desk) ask(body io.Reader, encoding string) (status int) {
	ctx, cancel := context.WithTimeout(context.Background(), 60*time.Second)
	defer cancel()
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, d.scheme+"://"+d.hook+"/api/v1/alertmanager", body)
	if err != nil {
		return 0
	}
	if encoding != "" {
		req.Header.Set("Content-Encoding", encoding)
	}
	if d.bearer != "" {
		req.Header.Set("Authorization", "Bearer "+d.bearer)
	}
	resp, err := d.client.Do(req)
	if err != nil {
		return 0
	}
	defer resp.Body.Close()
	_, _ = io.Copy(io.Discard, resp.Body)
	return resp.StatusCode
}

// send posts as Alertmanager does: again after a 5xx and after no answer.
func (d *desk) send(body []byte) error {
	tick := time.NewTicker(100 * time.Millisecond)
	defer tick.Stop()
	deadline := time.After(alertPatience)
	for {
		switch status := d.ask(bytes.NewReader(body), ""); {
		case status == http.StatusOK:
			return nil
		case status != 0 && status < 500:
			return fmt.Errorf("the webhook was answered with %d", status)
		}
		select {
		case <-tick.C:
		case <-deadline:
			return errors.New("the webhook was never taken")
		}
	}
}

func (d *desk) sends(body []byte) {
	d.t.Helper()
	require.NoError(d.t, d.send(body))
}

// reached waits until a chat was asked so often.
func (d *desk) reached(k chattest.Kind, requests int) {
	d.t.Helper()
	ctx, cancel := context.WithTimeout(d.t.Context(), alertPatience)
	defer cancel()
	require.NoError(d.t, d.chat.WaitRequests(ctx, k, requests))
}

// seen waits for messages.
func (d *desk) seen(what string, done func([]chattest.Message) bool) {
	d.t.Helper()
	ctx, cancel := context.WithTimeout(d.t.Context(), alertPatience)
	defer cancel()
	if err := d.chat.Wait(ctx, done); err != nil {
		for _, m := range d.chat.Messages() {
			d.t.Logf("%s: %s", m.Kind, m.Title)
		}
		require.NoError(d.t, err, what)
	}
}

// naming are the messages of a chat that hold a word.
func (d *desk) naming(k chattest.Kind, word string) (out []chattest.Message) {
	for _, m := range d.chat.Messages() {
		if m.Kind == k && strings.Contains(m.Title+"\n"+m.Text, word) {
			out = append(out, m)
		}
	}
	return out
}

// tally is what became of alerts, by receiver, as the audit log has it.
type tally map[string]map[string]int

func (a tally) ended(receiver string) int {
	return a[receiver]["delivered"] + a[receiver]["folded"] + a[receiver]["dead"]
}

// tally counts the ends of deliveries.
func (d *desk) tally() tally {
	out := tally{}
	for _, data := range d.stored("LIFEBOAT_EVENTS") {
		e := &lifeboatv1.Event{}
		require.NoError(d.t, protojson.Unmarshal(data, e))
		if e.GetNoun() != "alert" || !slices.Contains([]string{"delivered", "folded", "dead", "handed-on"}, e.GetVerb()) {
			continue
		}
		number := func(name string) int {
			n, err := strconv.Atoi(e.GetAttributes()[name])
			require.True(d.t, err == nil || e.GetAttributes()[name] == "", "attribute %s: %v", name, e.GetAttributes())
			return n
		}
		receiver := e.GetAttributes()["receiver"]
		if out[receiver] == nil {
			out[receiver] = map[string]int{}
		}
		// What is held is counted when it is told.
		out[receiver][e.GetVerb()] += number("alerts") - number("held")
	}
	return out
}

// stored are the messages of a stream.
func (d *desk) stored(stream string) [][]byte {
	d.t.Helper()
	s, err := d.js.Stream(d.t.Context(), stream)
	require.NoError(d.t, err)
	state := s.CachedInfo().State
	var out [][]byte
	for seq := max(state.FirstSeq, 1); seq <= state.LastSeq; seq++ {
		m, err := s.GetMsg(d.t.Context(), seq)
		if errors.Is(err, jetstream.ErrMsgNotFound) {
			continue
		}
		require.NoError(d.t, err)
		out = append(out, m.Data)
	}
	return out
}

// letters are the dead letters.
func (d *desk) letters() (out []*lifeboatv1.DeadLetter) {
	d.t.Helper()
	for _, data := range d.stored("LIFEBOAT_DEAD") {
		l := &lifeboatv1.DeadLetter{}
		require.NoError(d.t, protojson.Unmarshal(data, l))
		out = append(out, l)
	}
	return out
}

// waiting is how many messages wait: what was received, and what is to be delivered or is held.
func (d *desk) waiting() (n uint64) {
	s, err := d.js.Stream(d.t.Context(), "LIFEBOAT_ALERTS")
	if err != nil {
		return 1
	}
	for _, filter := range []string{"lifeboat.alert.received", "lifeboat.alert.delivery.>", "lifeboat.alert.held.>"} {
		info, err := s.Info(d.t.Context(), jetstream.WithSubjectFilter(filter))
		if err != nil {
			return n + 1
		}
		for _, count := range info.State.Subjects {
			n += count
		}
	}
	return n
}

// accounted waits until nothing waits any more, and holds what was sent against the audit log and the chats: of the alerts that were
// sent to a receiver, each is delivered, folded or dead, and each name is in a message or in a dead letter.
func (d *desk) accounted(chats map[string]chattest.Kind, names []string, most int) {
	d.t.Helper()
	require.Eventually(d.t, func() bool { return d.waiting() == 0 }, alertPatience, 100*time.Millisecond, "deliveries wait for ever")
	all, letters := d.tally(), d.letters()
	for receiver, k := range chats {
		d.t.Logf("%s: %d alerts sent, %v", receiver, len(names), all[receiver])
		assert.GreaterOrEqual(d.t, all.ended(receiver), len(names), "alerts of %s are lost: %v", receiver, all[receiver])
		assert.LessOrEqual(d.t, all.ended(receiver), most, "alerts of %s are counted twice: %v", receiver, all[receiver])
		for _, name := range names {
			dead := slices.ContainsFunc(letters, func(l *lifeboatv1.DeadLetter) bool { return bytes.Contains(l.GetPayload(), []byte(name)) })
			assert.True(d.t, dead || len(d.naming(k, name)) > 0, "%s never reached %s", name, receiver)
		}
	}
}

// twice counts how often something was told again, and checks that each time a process was killed between the two, or just before
// the first was counted.
func (d *desk) twice(k chattest.Kind, names []string, kills []time.Time) (again int) {
	d.t.Helper()
	for _, name := range names {
		told := d.naming(k, name)
		for i := 1; i < len(told); i++ {
			again++
			between := slices.ContainsFunc(kills, func(at time.Time) bool { return !at.Before(told[i-1].Time) && at.Before(told[i].Time) })
			assert.True(d.t, between, "%s was told twice by %s without a reason: %s and %s, kills %v", name, k, told[i-1].Time, told[i].Time, kills)
		}
	}
	return again
}

// unseen looks for every secret in all that the notifiers wrote: logs, metrics, and everything in NATS. Every test ends with it.
func (d *desk) unseen() {
	d.t.Helper()
	places := map[string][]byte{}
	for _, p := range d.running {
		b, err := os.ReadFile(p.log)
		require.NoError(d.t, err)
		places[p.log] = b
		select {
		case <-p.Done():
		default:
			if m := d.metrics(p); assert.Contains(d.t, m, "lifeboat_") {
				places[p.health+"/metrics"] = []byte(m)
			}
		}
	}
	for _, stream := range []string{"LIFEBOAT_EVENTS", "LIFEBOAT_DEAD", "LIFEBOAT_ALERTS"} {
		places[stream] = bytes.Join(d.stored(stream), []byte("\n"))
	}
	require.NotEmpty(d.t, places["LIFEBOAT_EVENTS"], "there are no events, so nothing was looked at")
	for i, l := range d.letters() { // whose payloads are in base64
		places[fmt.Sprintf("dead letter %d", i)] = append([]byte(l.GetReason()), l.GetPayload()...)
	}
	assert.Empty(d.t, leaks(places, d.secrets))
}

// leaks says which secret is in which place, and also where nothing was looked for or looked at.
func leaks(places map[string][]byte, secrets map[string]string) (found []string) {
	for where, text := range places {
		if len(text) == 0 && strings.HasSuffix(where, ".log") {
			found = append(found, where+" is empty")
		}
		for what, secret := range secrets {
			if secret == "" || bytes.Contains(text, []byte(secret)) {
				found = append(found, what+" is in "+where)
			}
		}
	}
	return found
}

// The search that every test of the notifier ends with finds what it is for.
func TestLeaksAreFound(t *testing.T) {
	t.Parallel()
	secrets := map[string]string{"the token": "s3cret"}
	assert.Empty(t, leaks(map[string][]byte{"a.log": []byte("fine")}, secrets))
	assert.Equal(t, []string{"the token is in a.log"}, leaks(map[string][]byte{"a.log": []byte("url=http://x/s3cret\n"), "dead": nil}, secrets))
	assert.Equal(t, []string{"a.log is empty"}, leaks(map[string][]byte{"a.log": nil}, secrets))
	assert.NotEmpty(t, leaks(map[string][]byte{"a.log": []byte("fine")}, map[string]string{"a file that was never read": ""}))
}

func (d *desk) metrics(p *pager) string {
	d.t.Helper()
	req, err := http.NewRequestWithContext(d.t.Context(), http.MethodGet, p.health+"/metrics", nil)
	require.NoError(d.t, err)
	resp, err := d.client.Do(req)
	require.NoError(d.t, err)
	defer resp.Body.Close()
	b, err := io.ReadAll(resp.Body)
	require.NoError(d.t, err)
	return string(b)
}
