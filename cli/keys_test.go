package main

import (
	"bytes"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/lifeboat-fleet/lifeboat/fleet/service"
)

// What `lifeboat keys` makes is good in every place of the configuration that it is for.
func TestTheKeysFitTheConfiguration(t *testing.T) {
	dir := t.TempDir()
	var out bytes.Buffer
	cmd := root()
	cmd.SetArgs([]string{"keys", "--out", filepath.Join(dir, "secrets"), "--host", "nats-1"})
	cmd.SetOut(&out)
	cmd.SetErr(&out)
	require.Zero(t, service.Main(cmd), out.String())
	recipients, err := os.ReadFile(filepath.Join(dir, "secrets", "age", "recipients"))
	require.NoError(t, err)
	path := filepath.Join(dir, "lifeboat.yaml")
	require.NoError(t, os.WriteFile(path, fmt.Appendf(nil, `nats:
  url: tls://nats-1:4222
  nkey_file: secrets/nats/notifier.nk
  tls: {ca_file: secrets/tls/ca.pem, cert_file: secrets/tls/client.pem, key_file: secrets/tls/client-key.pem}
alertmanager: {urls: ["http://127.0.0.1:9093"]}
encryption: {recipients: [%s], identity_file: secrets/age/identity}
notifier:
  bearer_tokens_file: secrets/webhook-tokens
  interactions: {link_secret_file: secrets/link-secret, listen: "127.0.0.1:0", external_url: "https://lifeboat.example.org"}
  receivers: [{name: ops, slack: {webhook_url_file: a}}]
  route: {receiver: ops}
`, strings.Join(strings.Fields(string(recipients)), ", ")), 0o600))
	text, code := run(t, path)
	assert.Zero(t, code, text)
	assert.Contains(t, text, "is good")
}

// Every command stands in a group of the help.
func TestCommandsAreInGroups(t *testing.T) {
	for _, c := range root().Commands() {
		assert.NotEmpty(t, c.GroupID, c.Name())
	}
}
