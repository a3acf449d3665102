package up

import (
	"bytes"
	"context"
	_ "embed"
	"fmt"
	"os"
	"text/template"

	"filippo.io/age"
)

// The configuration as a person would write it, with comments.
//
//go:embed lifeboat.yaml.tmpl
var configTemplate string

// fileValues are what the template is filled with.
type fileValues struct {
	NATS, Endpoint, Bucket, Region     string
	AccessKeyIDFile, SecretKeyFile     string
	Recipient                          string
	Etcd, Consul, Nomad                string
	EtcdName, ConsulName, NomadName    string
	Every, DrillEvery, VerifyEvery     string
	Alertmanager, Webhook, RunbookBase string
}

// runbookBase is where the pages of docs/runbooks stand.
const runbookBase = "https://github.com/lifeboat-fleet/lifeboat/blob/main/docs/runbooks"

// writeConfig writes lifeboat.yaml and the secrets that it names.
func (f *Fleet) writeConfig(context.Context) error {
	identity, err := age.GenerateX25519Identity()
	if err != nil {
		return fmt.Errorf("making an age identity: %w", err)
	}
	for name, secret := range map[string]string{
		"age-identity": identity.String(), "slack-webhook-url": f.Chat.SlackURL(),
		"dingtalk-webhook-url": f.Chat.DingTalkURL(), "dingtalk-secret": f.Chat.DingTalkSecret(),
	} {
		if name == "age-identity" {
			if old, readErr := os.ReadFile(f.path(name)); readErr == nil {
				// A second run on the same data must still be able to read the first one's snapshots.
				if identity, err = age.ParseX25519Identity(string(bytes.TrimSpace(old))); err != nil {
					return fmt.Errorf("reading %s: %w", f.path(name), err)
				}
				continue
			}
		}
		if err = os.WriteFile(f.path(name), []byte(secret+"\n"), 0o600); err != nil {
			return fmt.Errorf("writing a secret: %w", err)
		}
	}
	v := fileValues{
		NATS: f.NATS.URL(), Endpoint: f.S3.Endpoint, Bucket: f.S3.Config.Bucket, Region: f.S3.Config.Region,
		AccessKeyIDFile: "s3/access-key-id", SecretKeyFile: "s3/secret-access-key", Recipient: identity.Recipient().String(),
		EtcdName: TargetOf(Etcd), ConsulName: TargetOf(Consul), NomadName: TargetOf(Nomad),
		Every: f.Every, DrillEvery: f.DrillEvery, VerifyEvery: f.VerifyEvery, Webhook: f.WebhookAddr, RunbookBase: runbookBase,
	}
	if f.Etcd != nil {
		v.Etcd = f.Etcd.Endpoint
	}
	if f.Consul != nil {
		v.Consul = f.Consul.Address
	}
	if f.Nomad != nil {
		v.Nomad = f.Nomad.Address
	}
	if f.Alertmanager != nil {
		v.Alertmanager = f.Alertmanager.URL
	}
	t, err := template.New("lifeboat.yaml").Parse(configTemplate)
	if err != nil {
		return fmt.Errorf("reading the configuration's template: %w", err)
	}
	var b bytes.Buffer
	if err := t.Execute(&b, v); err != nil {
		return fmt.Errorf("filling in the configuration: %w", err)
	}
	f.ConfigPath = f.path("lifeboat.yaml")
	if err := os.WriteFile(f.ConfigPath, b.Bytes(), 0o600); err != nil {
		return fmt.Errorf("writing the configuration: %w", err)
	}
	return nil
}
