package tests

import (
	"bytes"
	"compress/gzip"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/types/known/timestamppb"

	"github.com/lifeboat-fleet/lifeboat/fleet/fleettest/bintest"
	"github.com/lifeboat-fleet/lifeboat/fleet/fleettest/certtest"
	"github.com/lifeboat-fleet/lifeboat/fleet/fleettest/chattest"
	lifeboatv1 "github.com/lifeboat-fleet/lifeboat/proto/lifeboat/v1"
)

// tellAlertmanager posts alerts as Prometheus does.
func (d *desk) tellAlertmanager(am *bintest.Alertmanager, alerts ...map[string]any) {
	d.t.Helper()
	b, err := json.Marshal(alerts)
	require.NoError(d.t, err)
	req, err := http.NewRequestWithContext(d.t.Context(), http.MethodPost, am.URL+"/api/v2/alerts", bytes.NewReader(b))
	require.NoError(d.t, err)
	req.Header.Set("Content-Type", "application/json")
	resp, err := d.client.Do(req)
	require.NoError(d.t, err)
	defer resp.Body.Close()
	require.Equal(d.t, http.StatusOK, resp.StatusCode)
}

// askAlertmanager reads a list of its API.
func (d *desk) askAlertmanager(am *bintest.Alertmanager, path string, into any) {
	d.t.Helper()
	req, err := http.NewRequestWithContext(d.t.Context(), http.MethodGet, am.URL+path, nil)
	require.NoError(d.t, err)
	resp, err := d.client.Do(req)
	require.NoError(d.t, err)
	defer resp.Body.Close()
	require.NoError(d.t, json.NewDecoder(resp.Body).Decode(into))
}

// alertmanager starts a real one that posts to an address. http holds lines below its http_config.
func (d *desk) alertmanager(address, httpConfig string) *bintest.Alertmanager {
	d.t.Helper()
	am, err := bintest.StartAlertmanagerWith(d.t.Context(), d.dir+"/alertmanager", fmt.Sprintf(`
route:
  receiver: lifeboat
  group_by: [alertname]
  group_wait: 500ms
  group_interval: 1s
receivers:
  - name: lifeboat
    webhook_configs:
      - url: %s
        send_resolved: true
        http_config:
          follow_redirects: false
%s`, address, httpConfig))
	require.NoError(d.t, err)
	d.t.Cleanup(func() { assert.NoError(d.t, am.Kill()) })
	return am
}

func diskFull(instance string, ended bool) map[string]any {
	a := map[string]any{
		"labels":      map[string]string{"alertname": "DiskFull", "severity": "critical", "instance": instance},
		"annotations": map[string]string{"summary": "no room on " + instance},
	}
	if ended {
		a["endsAt"] = time.Now().UTC()
	}
	return a
}

// A group of a real Alertmanager in the channel of a bot: it fires, another alert joins, it ends, and it is one message all the
// time. Then it fires again, somebody presses a button, and Alertmanager is silent in that person's name.
func TestNotifierBetweenAlertmanagerAndSlacksBot(t *testing.T) {
	t.Parallel()
	d := newDesk(t, chattest.Options{}, "")
	ports, err := bintest.FreePorts(1)
	require.NoError(t, err)
	pages := fmt.Sprintf("127.0.0.1:%d", ports[0])
	d.secret("link-secret", strings.Repeat("link-secret-", 4))
	d.chat.SetInteractionsURL("http://" + pages + "/slack/interactions")
	am := d.alertmanager("http://"+d.hook+"/api/v1/alertmanager", "")
	d.notifier = fmt.Sprintf(`
  receivers:
    - {name: bot, slack: {bot_token_file: slack-bot, channel: %s, api_url: %q}}
  route: {receiver: bot}
  interactions:
    listen: %s
    external_url: http://%s
    link_secret_file: link-secret
    slack_signing_secret_file: slack-signing
`, d.chat.SlackChannel(), d.chat.SlackAPIURL(), pages, pages)
	d.configure(fmt.Sprintf("alertmanager: {urls: [%q]}\n", am.URL))
	d.run()

	d.tellAlertmanager(am, diskFull("db-1", false))
	d.seen("the group", func(all []chattest.Message) bool { return len(all) > 0 })
	first := d.chat.Messages()[0]
	assert.Contains(t, first.Text, "no room on db-1")
	assert.Empty(t, first.ThreadTS)
	d.tellAlertmanager(am, diskFull("db-1", false), diskFull("db-2", false))
	d.seen("the second alert", func(all []chattest.Message) bool {
		return strings.Contains(all[0].Text, "db-2") && all[0].Edited > 0
	})
	red := d.chat.Messages()[0]
	assert.Contains(t, red.Text, "db-1", "the message shows the whole group")
	assert.Equal(t, first.TS, red.TS)
	d.tellAlertmanager(am, diskFull("db-1", true), diskFull("db-2", true))
	d.seen("the end", func(all []chattest.Message) bool { return strings.Contains(all[0].Title, "RESOLVED") })
	green := d.chat.Messages()[0]
	assert.NotEqual(t, red.Colour, green.Colour)
	d.seen("the thread", func(all []chattest.Message) bool {
		return slices.ContainsFunc(all, func(m chattest.Message) bool { return m.ThreadTS == first.TS && strings.Contains(m.Text, "db-2") })
	})
	main := slices.DeleteFunc(d.chat.Messages(), func(m chattest.Message) bool { return m.ThreadTS != "" })
	assert.Len(t, main, 1, "one message for the group")

	d.silence(am)
	d.unseen()
}

// silence presses the button of a group that fires.
func (d *desk) silence(am *bintest.Alertmanager) {
	t := d.t
	t.Helper()
	full := func() map[string]any {
		a := diskFull("db-3", false)
		a["labels"] = map[string]string{"alertname": "DiskSlow", "severity": "critical", "instance": "db-3"}
		return a
	}
	d.tellAlertmanager(am, full())
	var loud chattest.Message
	d.seen("the group that fires", func(all []chattest.Message) bool {
		i := slices.IndexFunc(all, func(m chattest.Message) bool { return m.ThreadTS == "" && strings.Contains(m.Title, "DiskSlow") })
		if i >= 0 {
			loud = all[i]
		}
		return i >= 0
	})
	require.NoError(t, d.chat.Press(t.Context(), "jana", loud.TS, "lifeboat_silence_1"))
	var silences []struct {
		CreatedBy string    `json:"createdBy"`
		Comment   string    `json:"comment"`
		StartsAt  time.Time `json:"startsAt"`
		EndsAt    time.Time `json:"endsAt"`
	}
	require.Eventually(t, func() bool {
		d.askAlertmanager(am, "/api/v2/silences", &silences)
		return len(silences) > 0
	}, time.Minute, 50*time.Millisecond, "no silence was made")
	require.Len(t, silences, 1)
	assert.Contains(t, silences[0].CreatedBy, "jana")
	assert.Contains(t, silences[0].CreatedBy, chattest.SlackUserID("jana"))
	assert.NotEmpty(t, silences[0].Comment)
	assert.WithinDuration(t, time.Now().Add(time.Hour), silences[0].EndsAt, time.Minute)
	var alerts []struct {
		Status struct {
			State string `json:"state"`
		} `json:"status"`
	}
	require.Eventually(t, func() bool {
		d.tellAlertmanager(am, full())
		d.askAlertmanager(am, "/api/v2/alerts?filter=alertname%3DDiskSlow", &alerts)
		return len(alerts) == 1 && alerts[0].Status.State == "suppressed"
	}, time.Minute, 200*time.Millisecond, "the alert is not suppressed: %v", alerts)
}

// Alertmanager brings its token over TLS, and nobody else gets in.
func TestNotifierTakesAlertmanagersTokenOverTLS(t *testing.T) {
	t.Parallel()
	d := newDesk(t, chattest.Options{}, toBoth+"  web_config_file: web.yml\n  bearer_tokens_file: tokens\n")
	ca := certtest.New(t, "lifeboat")
	pair := ca.Server(t)
	d.write("web.yml", fmt.Sprintf("tls_server_config: {cert_file: %q, key_file: %q}\n", pair.Cert, pair.Key))
	d.secret("tokens", "alertmanager-token-0123456789abcdef")
	pem, err := os.ReadFile(ca.File)
	require.NoError(t, err)
	pool := x509.NewCertPool()
	require.True(t, pool.AppendCertsFromPEM(pem))
	d.run()
	d.scheme = "https"
	d.client = &http.Client{Transport: &http.Transport{DisableKeepAlives: true, TLSClientConfig: &tls.Config{RootCAs: pool, MinVersion: tls.VersionTLS12}}}
	body := hookOf(t, "Stranger", fires("Stranger", "critical"))
	assert.Equal(t, http.StatusUnauthorized, d.ask(bytes.NewReader(body), ""), "without a token")
	d.bearer = "alertmanager-token-0123456789abcdee"
	assert.Equal(t, http.StatusUnauthorized, d.ask(bytes.NewReader(body), ""), "with another token")
	d.scheme = "http"
	assert.NotEqual(t, http.StatusOK, d.ask(bytes.NewReader(body), ""), "without TLS")
	d.client = &http.Client{Transport: &http.Transport{DisableKeepAlives: true}}

	am := d.alertmanager("https://"+d.hook+"/api/v1/alertmanager", fmt.Sprintf(`
          tls_config: {ca_file: %q}
          authorization: {type: Bearer, credentials_file: %q}
`, ca.File, d.dir+"/tokens"))
	d.tellAlertmanager(am, diskFull("db-1", false))
	d.seen("the alert", func([]chattest.Message) bool {
		return len(d.naming(chattest.Slack, "DiskFull")) == 1 && len(d.naming(chattest.DingTalk, "DiskFull")) == 1
	})
	assert.Empty(t, d.naming(chattest.Slack, "Stranger"))
	d.unseen()
}

// What is no webhook is refused, by the code that tells Alertmanager what to do, and kept for a person to look at. What did not arrive
// is asked for again.
func TestNotifierRefusesWhatIsNoWebhook(t *testing.T) {
	t.Parallel()
	d := newDesk(t, chattest.Options{}, toBoth)
	p := d.run()
	whole := hookOf(t, "Whole", fires("Whole", "warning"))
	third := bytes.Replace(whole, []byte(`"version":"4"`), []byte(`"version":"3"`), 1)
	types := bytes.Replace(whole, []byte(`"labels":{`), []byte(`"labels":[{`), 1)
	for i, c := range []struct {
		name, encoding string
		body           io.Reader
		code           int
	}{
		{"cut in half", "", bytes.NewReader(whole[:len(whole)/2]), http.StatusBadRequest},
		{"version 3", "", bytes.NewReader(third), http.StatusBadRequest},
		{"wrong types", "", bytes.NewReader(types), http.StatusBadRequest},
		{"100 MB", "", io.LimitReader(blanks{}, 100_000_000), http.StatusRequestEntityTooLarge},
		{"a zip bomb", "gzip", bomb(t), http.StatusRequestEntityTooLarge},
	} {
		assert.Equal(t, c.code, d.ask(c.body, c.encoding), c.name)
		letters := d.letters()
		require.Len(t, letters, i+1, c.name)
		assert.Equal(t, "webhook", letters[i].GetSubject(), c.name)
		assert.NotEmpty(t, letters[i].GetReason(), c.name)
		assert.Equal(t, c.code == http.StatusRequestEntityTooLarge, letters[i].GetTruncated(), c.name)
	}
	assert.Contains(t, d.letters()[1].GetReason(), "version")

	// A connection that breaks off in the middle: nothing is kept, for Alertmanager comes again.
	conn, err := (&net.Dialer{}).DialContext(t.Context(), "tcp", d.hook)
	require.NoError(t, err)
	_, err = fmt.Fprintf(conn, "POST /api/v1/alertmanager HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n%s", len(whole), whole[:len(whole)/2])
	require.NoError(t, err)
	half, ok := conn.(*net.TCPConn)
	require.True(t, ok)
	require.NoError(t, half.CloseWrite())
	answer, err := io.ReadAll(conn)
	require.NoError(t, err)
	require.NoError(t, conn.Close())
	assert.Contains(t, string(answer), "503")
	assert.Len(t, d.letters(), 5)
	d.sends(whole)
	d.accounted(bothChats(), []string{"Whole"}, 1)
	assert.Contains(t, d.metrics(p), `code="413"`)
	d.unseen()
}

// blanks is a body of spaces.
type blanks struct{}

// Read never ends.
func (blanks) Read(p []byte) (int, error) {
	for i := range p {
		p[i] = ' '
	}
	return len(p), nil
}

// bomb is 200 MB in 200 KB.
func bomb(t *testing.T) io.Reader {
	t.Helper()
	var b bytes.Buffer
	w, err := gzip.NewWriterLevel(&b, gzip.BestSpeed)
	require.NoError(t, err)
	_, err = io.CopyN(w, blanks{}, 200_000_000)
	require.NoError(t, err)
	require.NoError(t, w.Close())
	return &b
}

// What happens in the fleet reaches a chat like an alert, if somebody wants to hear of it.
func TestNotifierRoutesTheFleetsOwnEvents(t *testing.T) {
	t.Parallel()
	d := newDesk(t, chattest.Options{}, toBoth+"  events: [drill.passed]\n")
	d.run()
	emit := func(noun, verb, target string) {
		b, err := protojson.Marshal(&lifeboatv1.Event{
			Id: noun + verb + target, Time: timestamppb.Now(), Noun: noun, Verb: verb, Target: target, Actor: "drill-1",
			Message: "restored in 4 s", Attributes: map[string]string{"rto_seconds": "4"},
		})
		require.NoError(t, err)
		_, err = d.js.Publish(t.Context(), fmt.Sprintf("lifeboat.event.%s.%s.%s", noun, verb, target), b)
		require.NoError(t, err)
	}
	// Those are told that happen from now on, so the first to be told is waited for.
	emit("drill", "started", "etcd-prod")
	emit("drill", "passed", "etcd-prod")
	d.seen("the drill", func([]chattest.Message) bool {
		return len(d.naming(chattest.Slack, "etcd-prod")) > 0 && len(d.naming(chattest.DingTalk, "etcd-prod")) > 0
	})
	m := d.naming(chattest.Slack, "etcd-prod")[0]
	assert.Contains(t, m.Text, "Restore drill of etcd-prod passed")
	assert.Contains(t, m.Text, "restored in 4 s")
	require.Eventually(t, func() bool { return d.waiting() == 0 }, time.Minute, 50*time.Millisecond)
	assert.Len(t, d.naming(chattest.Slack, "etcd-prod"), 1, "that it started is not told, nor anything twice")
	all := d.tally()
	assert.Equal(t, 1, all.ended("slack"), "%v", all)
	d.unseen()
}
