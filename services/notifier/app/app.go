// Package app wires the notifier together. It can be embedded: Run serves until its context ends.
package app

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"time"

	"github.com/spf13/cobra"
	"golang.org/x/sync/errgroup"

	"github.com/lifeboat-fleet/lifeboat/fleet/config"
	"github.com/lifeboat-fleet/lifeboat/fleet/service"
	"github.com/lifeboat-fleet/lifeboat/services/notifier/internal/deliver"
	"github.com/lifeboat-fleet/lifeboat/services/notifier/internal/deliver/dingtalk"
	"github.com/lifeboat-fleet/lifeboat/services/notifier/internal/deliver/slack"
	"github.com/lifeboat-fleet/lifeboat/services/notifier/internal/deliver/webhook"
	"github.com/lifeboat-fleet/lifeboat/services/notifier/internal/fleetalert"
	"github.com/lifeboat-fleet/lifeboat/services/notifier/internal/ingest"
)

// Options of the service.
type Options struct {
	ConfigPath string
	// HTTPAddr serves health and metrics. The webhook has an address of its own, notifier.listen.
	HTTPAddr string
	Logger   *slog.Logger
	// Started is told the addresses of health and metrics and of the webhook. It may be nil.
	Started func(healthAddr, webhookAddr string)
}

// Command is `lifeboat-notifier`.
func Command() *cobra.Command {
	var flags service.Flags
	cmd := &cobra.Command{
		Use:   "lifeboat-notifier",
		Short: "Take alerts from Alertmanager and deliver them to chat with their runbook",
		Long: "lifeboat-notifier takes Alertmanager's webhook, stores each alert before it answers, routes it, and delivers it\n" +
			"to Slack and DingTalk with the runbook in the message. It also raises the fleet's own alerts: a snapshot, drill\n" +
			"or verification that failed, an RPO that is exceeded, a job that was rejected.\n\n" +
			"Receivers, routes and runbooks are read again when the file changes.",
		Example: "  lifeboat-notifier --config lifeboat.yaml\n" +
			"  lifeboat-notifier --config lifeboat.yaml --http-addr 127.0.0.1:9097 --log-level debug\n\n" +
			"  # in alertmanager.yml:\n" +
			"  #   receivers:\n" +
			"  #     - name: lifeboat\n" +
			"  #       webhook_configs: [{url: \"http://127.0.0.1:9095" + ingest.Path + "\", send_resolved: true}]",
		Args:    cobra.NoArgs,
		Version: service.Version(),
		RunE: func(cmd *cobra.Command, _ []string) error {
			log, err := flags.Logger(cmd.ErrOrStderr())
			if err != nil {
				return err
			}
			return Run(cmd.Context(), Options{ConfigPath: flags.Config, HTTPAddr: flags.HTTPAddr, Logger: log})
		},
	}
	flags.Add(cmd, "127.0.0.1:9097")
	return cmd
}

// Run serves until the context ends.
func Run(ctx context.Context, o Options) error {
	base, err := service.NewBase("lifeboat-notifier", o.ConfigPath, o.Logger)
	if err != nil {
		return err
	}
	var lc net.ListenConfig
	ln, err := lc.Listen(ctx, "tcp", base.Config().Notifier.Listen)
	if err != nil {
		return errors.Join(fmt.Errorf("listening for webhooks: %w", err), base.Bus.Close())
	}
	client := webhook.New()
	defer client.Close()
	deliverer := deliver.New(deliver.Options{
		Bus: base.Bus, Config: base.Config, Changed: base.Live.Changed(), Sender: senders(client),
		Logger: base.Logger, Registerer: base.Registry, Now: time.Now,
	})
	own := fleetalert.New(fleetalert.Options{
		Bus: base.Bus, Config: base.Config, Logger: base.Logger, Registerer: base.Registry, Now: time.Now,
	})
	hook := ingest.New(ingest.Options{Store: base.Bus, Logger: base.Logger, Registerer: base.Registry, Now: time.Now})

	g, ctx := errgroup.WithContext(ctx)
	// The webhook answers from the start, also while NATS is away: 503 tells Alertmanager to come again.
	g.Go(func() error {
		srv := &http.Server{
			Handler: webhookMux(hook), ReadHeaderTimeout: 5 * time.Second, ReadTimeout: 30 * time.Second,
			IdleTimeout: 2 * time.Minute,
		}
		return service.Serve(ctx, srv, ln)
	})
	g.Go(func() error {
		started := func(health string) {
			base.Logger.InfoContext(ctx, "taking webhooks", slog.String("webhook_addr", ln.Addr().String()))
			if o.Started != nil {
				o.Started(health, ln.Addr().String())
			}
		}
		return base.Run(ctx, o.HTTPAddr, started, nil,
			service.Actor{Name: "deliveries", Run: deliverer.Run}, service.Actor{Name: "fleet alerts", Run: own.Run})
	})
	return g.Wait()
}

func webhookMux(hook http.Handler) http.Handler {
	mux := http.NewServeMux()
	mux.Handle(ingest.Path, hook)
	return mux
}

// senders makes each receiver's sender. Secrets are read at each attempt.
func senders(client *webhook.Client) func(config.Receiver) (deliver.Sender, error) {
	return func(r config.Receiver) (deliver.Sender, error) {
		switch {
		case r.Slack != nil:
			return slack.New(r.Slack.WebhookURLFile.Read, client), nil
		case r.DingTalk != nil:
			o := dingtalk.Options{Address: r.DingTalk.WebhookURLFile.Read, Poster: client, Now: time.Now}
			if r.DingTalk.SecretFile != "" {
				o.Secret = r.DingTalk.SecretFile.Read
			}
			return dingtalk.New(o), nil
		}
		return nil, errors.New("the receiver names no chat")
	}
}
