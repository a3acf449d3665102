package tests

import (
	"bytes"
	"fmt"
	"net/http"
	"strings"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/lifeboat-fleet/lifeboat/fleet/fleettest/bintest"
	"github.com/lifeboat-fleet/lifeboat/fleet/fleettest/certtest"
	"github.com/lifeboat-fleet/lifeboat/fleet/fleettest/chattest"
)

// A real Alertmanager with a web configuration and the notifier show each other certificates in both directions, and the chat is behind
// an address that asks for one too: an alert arrives, and a button silences it.
func TestNotifierBetweenAlertmanagerAndChatWithCertificates(t *testing.T) {
	t.Parallel()
	d := newDesk(t, chattest.Options{}, "")
	ca, stranger := certtest.New(t, "lifeboat"), certtest.New(t, "stranger")
	ours, theirs := ca.Client(t, "lifeboat"), ca.Client(t, "alertmanager")
	d.client = &http.Client{Transport: &http.Transport{DisableKeepAlives: true, TLSClientConfig: ca.Trust(t, theirs)}}
	am, err := bintest.StartAlertmanagerTLS(t.Context(), d.dir+"/alertmanager", fmt.Sprintf(`
route: {receiver: lifeboat, group_by: [alertname], group_wait: 500ms, group_interval: 1s}
receivers:
  - name: lifeboat
    webhook_configs:
      - url: https://%s/api/v1/alertmanager
        send_resolved: true
        http_config:
          tls_config: {ca_file: %q, cert_file: %q, key_file: %q}
`, d.hook, ca.File, theirs.Cert, theirs.Key), ca.WebConfig(t), d.client)
	require.NoError(t, err)
	t.Cleanup(func() { assert.NoError(t, am.Kill()) })

	chat := certtest.NewFront(t, d.chat.Addr(), ca.Mutual(t, ca.Server(t)))
	api := strings.Replace(d.chat.SlackAPIURL(), "http://"+d.chat.Addr(), "https://"+chat.Addr, 1)
	ports, err := bintest.FreePorts(1)
	require.NoError(t, err)
	pages := fmt.Sprintf("127.0.0.1:%d", ports[0])
	d.chat.SetInteractionsURL("http://" + pages + "/slack/interactions")
	files := fmt.Sprintf("{ca_file: %q, cert_file: %q, key_file: %q}", ca.File, ours.Cert, ours.Key)
	d.notifier = fmt.Sprintf(`
  web_config_file: %q
  receivers:
    - {name: bot, slack: {bot_token_file: slack-bot, channel: %s, api_url: %q}, tls: %s}
  route: {receiver: bot}
  interactions: {listen: %s, external_url: "http://%s", slack_signing_secret_file: slack-signing, slack_api_url: %q, slack_tls: %s}
`, ca.WebConfig(t), d.chat.SlackChannel(), api, files, pages, pages, api, files)
	d.configure(fmt.Sprintf("alertmanager: {urls: [%q], tls: %s}\n", am.URL, files))
	d.run()

	d.tellAlertmanager(am, diskFull("db-1", false))
	d.seen("the alert", func(all []chattest.Message) bool { return len(all) > 0 })
	assert.Contains(t, d.chat.Messages()[0].Text, "no room on db-1")
	assert.Positive(t, chat.Passed())
	d.silence(am)

	// Whoever has no certificate, or a stranger's, brings no alert.
	d.scheme = "https"
	for name, transport := range map[string]*http.Transport{
		"none":       {TLSClientConfig: ca.Trust(t)},
		"a foreign":  {TLSClientConfig: ca.Trust(t, stranger.Client(t, "alertmanager"))},
		"an expired": {TLSClientConfig: ca.Trust(t, ca.Client(t, "alertmanager", certtest.Expired()))},
	} {
		transport.DisableKeepAlives = true
		req, err := http.NewRequestWithContext(t.Context(), http.MethodPost, "https://"+d.hook+"/api/v1/alertmanager",
			bytes.NewReader(hookOf(t, "Stranger", fires("Stranger", "critical"))))
		require.NoError(t, err)
		resp, err := (&http.Client{Transport: transport}).Do(req)
		if err == nil {
			_ = resp.Body.Close() // the test has failed
		}
		require.Error(t, err, name)
	}
	assert.Empty(t, d.naming(chattest.Slack, "Stranger"))
	d.unseen()
}
