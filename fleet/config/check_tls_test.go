package config_test

import (
	"fmt"
	"strings"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/lifeboat-fleet/lifeboat/fleet/config"
)

// secured has every place where a client's TLS is configured, each on a line of its own.
const secured = `nats:
  tls: {ca_file: ca.pem, cert_file: c.pem, key_file: k.pem} # nats
store:
  bucket: backups
  endpoint: https://s3.example.com
  ca_file: ca.pem
  cert_file: c.pem
  key_file: k.pem
  copy:
    bucket: backups-copy
    endpoint: https://s3.example.org
    ca_file: ca.pem
    cert_file: c.pem
    key_file: k.pem
targets:
  - name: etcd
    etcd:
      endpoints: ["https://127.0.0.1:2379"]
      tls: {ca_file: ca.pem, cert_file: c.pem, key_file: k.pem} # etcd
  - name: consul
    consul:
      address: https://127.0.0.1:8501
      tls: {ca_file: ca.pem, cert_file: c.pem, key_file: k.pem} # consul
  - name: nomad
    nomad:
      address: https://127.0.0.1:4646
      tls: {ca_file: ca.pem, cert_file: c.pem, key_file: k.pem} # nomad
alertmanager:
  urls: ["https://127.0.0.1:9093"]
  username: lifeboat
  password_file: password
  tls: {ca_file: ca.pem, cert_file: c.pem, key_file: k.pem} # alertmanager
notifier:
  receivers:
    - name: ops
      slack: {bot_token_file: token, channel: C0123456789, api_url: "https://chat.example.com/api/"}
      tls: {ca_file: ca.pem, cert_file: c.pem, key_file: k.pem} # receiver
  route: {receiver: ops}
  runbooks:
    base_url: https://runbooks.example.com
    tls: {ca_file: ca.pem, cert_file: c.pem, key_file: k.pem} # runbooks
  interactions:
    slack_api_url: https://chat.example.com/api/
    slack_tls: {ca_file: ca.pem, cert_file: c.pem, key_file: k.pem} # interactions
`

func TestEveryClientsTLS(t *testing.T) {
	c, err := config.Parse("/etc/lifeboat/lifeboat.yaml", []byte(secured))
	require.NoError(t, err)
	want := config.TLS{CAFile: "/etc/lifeboat/ca.pem", CertFile: "/etc/lifeboat/c.pem", KeyFile: "/etc/lifeboat/k.pem"}
	for name, got := range map[string]config.TLS{
		"nats": c.NATS.TLS, "store": c.Store.TLS(), "copy": c.Store.Copy.TLS(), "etcd": c.Targets[0].Etcd.TLS,
		"consul": c.Targets[1].Consul.TLS, "nomad": c.Targets[2].Nomad.TLS, "alertmanager": c.Alertmanager.TLS,
		"receiver": c.Notifier.Receivers[0].TLS, "runbooks": c.Notifier.Runbooks.TLS, "interactions": c.Notifier.Interactions.SlackTLS,
	} {
		assert.Equal(t, want, got, name)
	}
	assert.Equal(t, config.SecretFile("/etc/lifeboat/password"), c.Alertmanager.PasswordFile)
}

// Half of a pair is an error at its line, and by its key, wherever it stands.
func TestHalfOfAPairIsRefused(t *testing.T) {
	lines := strings.SplitAfter(secured, "\n")
	for place, key := range map[string]string{
		"# nats": "nats.tls", "# etcd": "targets[0].etcd.tls", "# consul": "targets[1].consul.tls", "# nomad": "targets[2].nomad.tls",
		"# alertmanager": "alertmanager.tls", "# receiver": "notifier.receivers[0].tls", "# runbooks": "notifier.runbooks.tls",
		"# interactions": "notifier.interactions.slack_tls", "6": "store", "12": "store.copy",
	} {
		for missing, left := range map[string]string{"cert_file: c.pem": "key_file", "key_file: k.pem": "cert_file"} {
			t.Run(key+" without "+missing, func(t *testing.T) {
				changed, at := without(t, lines, place, missing)
				_, err := config.Parse("lifeboat.yaml", []byte(changed))
				require.ErrorContains(t, err, fmt.Sprintf("lifeboat.yaml:%d:", at))
				require.ErrorContains(t, err, key+"."+left+": needs "+missing[:strings.Index(missing, ":")]+" beside it")
			})
		}
	}
}

// without takes one entry off a line that ends in place, or off the lines after the line of that number, and says where the other half is.
func without(t *testing.T, lines []string, place, missing string) (text string, at int) {
	t.Helper()
	out := append([]string{}, lines...)
	for i, l := range lines {
		if strings.HasSuffix(l, place+"\n") && strings.HasPrefix(place, "#") {
			out[i] = strings.Replace(l, ", "+missing, "", 1)
			require.NotEqual(t, l, out[i])
			return strings.Join(out, ""), i + 1
		}
	}
	first := map[string]int{"6": 6, "12": 12}[place]
	require.NotZero(t, first, place)
	cut := first // cert_file; key_file is after it
	if strings.HasPrefix(missing, "key") {
		cut++
	}
	require.Contains(t, out[cut], missing)
	out = append(out[:cut], out[cut+1:]...)
	return strings.Join(out, ""), first + 1
}

// Settings with which nothing would be encrypted are a mistake, and so is half a login.
func TestTLSThatWouldNotBeUsedIsRefused(t *testing.T) {
	for name, c := range map[string]struct{ old, new, key string }{
		"Alertmanager": {"https://127.0.0.1:9093", "http://127.0.0.1:9093", "alertmanager.urls[0]"},
		"store":        {"https://s3.example.com", "http://s3.example.com", "store.endpoint"},
		"copy":         {"https://s3.example.org", "http://s3.example.org", "store.copy.endpoint"},
		"a bot":        {`api_url: "https://chat`, `api_url: "http://chat`, "notifier.receivers[0].slack.api_url"},
		"runbooks":     {"https://runbooks", "http://runbooks", "notifier.runbooks.base_url"},
		"Socket Mode":  {"slack_api_url: https", "slack_api_url: http", "notifier.interactions.slack_api_url"},
		"no pages":     {"    base_url: https://runbooks.example.com\n", "", "notifier.runbooks.tls"},
		"no password":  {"  password_file: password\n", "", "alertmanager"},
		"no user":      {"  username: lifeboat\n", "", "alertmanager"},
		"a secret":     {"password_file: password", "password: geheim", "password"},
	} {
		t.Run(name, func(t *testing.T) {
			require.Contains(t, secured, c.old)
			_, err := config.Parse("lifeboat.yaml", []byte(strings.Replace(secured, c.old, c.new, 1)))
			require.ErrorContains(t, err, c.key)
			require.ErrorContains(t, err, "lifeboat.yaml:")
		})
	}
}
