package app

import (
	"context"
	"net/url"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/lifeboat-fleet/lifeboat/fleet/config"
	"github.com/lifeboat-fleet/lifeboat/fleet/fleettest/certtest"
	"github.com/lifeboat-fleet/lifeboat/fleet/fleettest/chattest"
	"github.com/lifeboat-fleet/lifeboat/services/notifier/internal/deliver/webhook"
	"github.com/lifeboat-fleet/lifeboat/services/notifier/internal/notice"
)

// A message to each kind of chat, at an address of one's own that asks for a certificate.
func TestReceiversOverTLS(t *testing.T) {
	t.Parallel()
	chat := chattest.NewWith(t, chattest.Options{NoLimits: true})
	message := notice.Notice{
		Status: notice.Firing, Title: "DiskFull", Words: notice.English(),
		Items: []notice.Item{{Firing: true, Name: "DiskFull", Summary: "the disk is full", Starts: time.Unix(1, 0)}},
	}
	at := func(t *testing.T, addr, address string) string {
		t.Helper()
		u, err := url.Parse(address)
		require.NoError(t, err)
		u.Scheme, u.Host = "https", addr
		return u.String()
	}
	secret := func(t *testing.T, value string) config.SecretFile {
		t.Helper()
		name := filepath.Join(t.TempDir(), "secret")
		require.NoError(t, os.WriteFile(name, []byte(value), 0o600))
		return config.SecretFile(name)
	}
	for name, receiver := range map[string]func(t *testing.T, addr string) config.Receiver{
		"Slack's webhook": func(t *testing.T, addr string) config.Receiver {
			t.Helper()
			return config.Receiver{Slack: &config.Slack{WebhookURLFile: secret(t, at(t, addr, chat.SlackURL()))}}
		},
		"Slack's bot": func(t *testing.T, addr string) config.Receiver {
			t.Helper()
			return config.Receiver{Slack: &config.Slack{
				BotTokenFile: secret(t, chat.SlackBotToken()), Channel: chat.SlackChannel(), APIURL: at(t, addr, chat.SlackAPIURL()),
			}}
		},
		"DingTalk's webhook": func(t *testing.T, addr string) config.Receiver {
			t.Helper()
			return config.Receiver{DingTalk: &config.DingTalk{
				WebhookURLFile: secret(t, at(t, addr, chat.DingTalkURL())), SecretFile: secret(t, chat.DingTalkSecret()),
			}}
		},
	} {
		t.Run(name, func(t *testing.T) {
			certtest.TryClient(t, chat.Addr(), func(t *testing.T, addr string, files config.TLS) func(context.Context) error {
				t.Helper()
				clients := &webhook.Clients{}
				t.Cleanup(clients.Close)
				r := receiver(t, addr)
				r.Name, r.TLS = "ops", files
				sender, err := senders(clients, time.Now)(r)
				require.NoError(t, err)
				return func(ctx context.Context) error {
					_, err := sender.Send(ctx, message, notice.Ref{}, func(context.Context, notice.Call) error { return nil })
					return err
				}
			})
		})
	}
}
