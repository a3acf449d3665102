package app

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/lifeboat-fleet/lifeboat/fleet/config"
	"github.com/lifeboat-fleet/lifeboat/fleet/service"
	"github.com/lifeboat-fleet/lifeboat/fleet/web"
	"github.com/lifeboat-fleet/lifeboat/services/notifier/internal/budget"
	"github.com/lifeboat-fleet/lifeboat/services/notifier/internal/canary"
	"github.com/lifeboat-fleet/lifeboat/services/notifier/internal/deliver"
	"github.com/lifeboat-fleet/lifeboat/services/notifier/internal/deliver/dingtalk"
	"github.com/lifeboat-fleet/lifeboat/services/notifier/internal/deliver/slack"
	"github.com/lifeboat-fleet/lifeboat/services/notifier/internal/deliver/webhook"
	"github.com/lifeboat-fleet/lifeboat/services/notifier/internal/events"
	"github.com/lifeboat-fleet/lifeboat/services/notifier/internal/fleetalert"
	"github.com/lifeboat-fleet/lifeboat/services/notifier/internal/ingest"
	"github.com/lifeboat-fleet/lifeboat/services/notifier/internal/reconcile"
	"github.com/lifeboat-fleet/lifeboat/services/notifier/internal/runbook"
	"github.com/lifeboat-fleet/lifeboat/services/notifier/internal/silence"
)

// parts are what a notifier is made of.
type parts struct {
	hook     *ingest.Handlers
	rush     *rush
	silencer *silence.Silencer
	pages    *runbook.Pages
	clients  *webhook.Clients
	actors   []service.Actor
}

// Run serves until the context ends.
func Run(ctx context.Context, o Options) error {
	if o.Now == nil {
		o.Now = time.Now
	}
	base, err := service.NewBase("lifeboat-notifier", o.ConfigPath, o.Logger)
	if err != nil {
		return err
	}
	base.WebConfigFile = o.WebConfigFile
	// Before anything is served: a webhook's trace begins with the request.
	ctx, endTraces, err := base.Trace(ctx)
	if err != nil {
		return errors.Join(err, base.Bus.Close())
	}
	defer endTraces()
	cfg := o.placed(base.Config().Notifier)
	hooks, pages, err := listen(ctx, cfg)
	if err != nil {
		return errors.Join(err, base.Bus.Close())
	}
	p := assemble(base, o)
	defer p.close(context.WithoutCancel(ctx), base.Logger)
	if o.Registered != nil {
		o.Registered(base.Registry)
	}
	report(ctx, base)
	g, ctx := errgroup.WithContext(ctx)
	// The webhooks answer from the start, also while NATS is away: 503 tells Alertmanager to come again.
	g.Go(func() error {
		return web.Serve(ctx, server(ctx, p.rush.watch(webhooks(p.hook, cfg.BearerTokensFile))), hooks, cfg.WebConfigFile, base.Logger)
	})
	warnIfOpen(ctx, base.Logger, cfg, hooks, pages)
	addresses := Addresses{Webhooks: hooks.Addr().String()}
	if pages != nil {
		addresses.Interactions = pages.Addr().String()
		g.Go(func() error {
			return web.Serve(ctx, server(ctx, p.silencer.Handler()), pages, cfg.Interactions.WebConfigFile, base.Logger)
		})
	}
	g.Go(func() error {
		started := func(health string) {
			addresses.Health = health
			base.Logger.InfoContext(ctx, "taking webhooks", slog.String("webhook_addr", addresses.Webhooks),
				slog.String("interactions_addr", addresses.Interactions))
			if o.Started != nil {
				o.Started(addresses)
			}
		}
		return base.Run(ctx, o.HTTPAddr, started, nil, p.actors...)
	})
	return g.Wait()
}

// listen opens the addresses of the webhooks and, when they are configured, of the pages that people open.
func listen(ctx context.Context, cfg config.Notifier) (hooks, pages net.Listener, err error) {
	err = errors.Join(checkWebhooks(cfg.WebConfigFile, cfg.BearerTokensFile != ""), web.Check(cfg.Interactions.WebConfigFile),
		silence.Check(cfg.Interactions))
	if err != nil {
		return nil, nil, &service.UsageError{Err: err}
	}
	var lc net.ListenConfig
	if hooks, err = lc.Listen(ctx, "tcp", cfg.Listen); err != nil {
		return nil, nil, fmt.Errorf("listening for webhooks: %w", err)
	}
	if cfg.Interactions.Listen == "" {
		return hooks, nil, nil
	}
	if pages, err = lc.Listen(ctx, "tcp", cfg.Interactions.Listen); err != nil {
		return nil, nil, errors.Join(fmt.Errorf("listening for interactions: %w", err), hooks.Close())
	}
	return hooks, pages, nil
}

// warnIfOpen says which of the two addresses is served without protection to other machines.
func warnIfOpen(ctx context.Context, log *slog.Logger, cfg config.Notifier, hooks, pages net.Listener) {
	web.WarnIfOpen(ctx, log, web.Listener{
		Name: "webhooks", Addr: hooks.Addr(), WebConfigFile: cfg.WebConfigFile, Setting: "notifier.web_config_file, notifier.bearer_tokens_file",
		Trusted: true, Proven: cfg.BearerTokensFile != "",
	})
	if pages != nil { // a link's signature, or Slack's, proves who comes
		web.WarnIfOpen(ctx, log, web.Listener{
			Name: "pages", Addr: pages.Addr(), WebConfigFile: cfg.Interactions.WebConfigFile,
			Setting: "notifier.interactions.web_config_file", Trusted: true, Proven: true,
		})
	}
}

// server gives requests the tracer of ctx. Its end does not end them: they may finish.
func server(ctx context.Context, h http.Handler) *http.Server {
	of := context.WithoutCancel(ctx)
	return &http.Server{Handler: h, BaseContext: func(net.Listener) context.Context { return of }, ReadHeaderTimeout: 5 * time.Second, ReadTimeout: 30 * time.Second, IdleTimeout: 2 * time.Minute}
}

// webhooks asks for a bearer token where one is configured.
func webhooks(hook *ingest.Handlers, tokens config.SecretFile) http.Handler {
	mux := http.NewServeMux()
	mux.Handle(ingest.Path, hook.Webhook())
	mux.Handle(ingest.GenericPath, hook.Generic())
	if tokens == "" {
		return hook.Count(mux)
	}
	return hook.Count(web.Bearer(tokens.Read, mux))
}

// assemble makes the parts.
func assemble(base *service.Base, o Options) *parts {
	p := &parts{
		rush:    &rush{},
		hook:    ingest.New(ingest.Options{Store: base.Bus, Logger: base.Logger, Registerer: base.Registry, Now: o.Now}),
		pages:   runbook.New(runbook.Options{Logger: base.Logger, Registerer: base.Registry, Now: o.Now}),
		clients: &webhook.Clients{},
		silencer: silence.New(silence.Options{
			Config: base.Config, Emit: base.Bus.Emit, Logger: base.Logger, Registerer: base.Registry, Now: o.Now,
			AlertmanagerURL: func() string { return first(base.Config().Alertmanager.URLs) },
		}),
	}
	budgets := budget.New(budget.Options{Store: base.Bus, Now: o.Now, Logger: base.Logger, Registerer: base.Registry})
	deliverer := deliver.New(deliver.Options{
		Bus: base.Bus, Config: base.Config, Changed: base.Live.Changed(), Sender: senders(p.clients, o.Now), Budgets: budgets, Pages: p.pages,
		Links: p.silencer.Links, GiveWay: p.rush.giveWay, Logger: base.Logger, Registerer: base.Registry, Now: o.Now,
	})
	own := fleetalert.New(fleetalert.Options{
		Bus: base.Bus, Config: base.Config, Logger: base.Logger, Registerer: base.Registry, Now: o.Now,
	})
	routed := events.New(events.Options{
		Bus: base.Bus, Config: base.Config, Changed: base.Live.Changed(), Logger: base.Logger, Registerer: base.Registry, Now: o.Now,
	})
	canaries := canary.New(canary.Options{
		Bus: base.Bus, Config: base.Config, Changed: base.Live.Changed(), Logger: base.Logger, Registerer: base.Registry, Now: o.Now,
	})
	reconciler := reconcile.New(reconcile.Options{
		Bus: base.Bus, Config: base.Config, Group: deliver.GroupName, Logger: base.Logger, Registerer: base.Registry, Now: o.Now,
	})
	p.actors = []service.Actor{
		{Name: "deliveries", Run: deliverer.Run},
		{Name: "fleet alerts", Run: own.Run},
		{Name: "routed events", Run: routed.Run},
		{Name: "canaries", Run: canaries.Run},
		{Name: "reconciliation", Run: reconciler.Run},
	}
	if base.Config().Notifier.Interactions.SlackAppTokenFile != "" {
		p.actors = append(p.actors, service.Actor{Name: "Slack's Socket Mode", Run: p.silencer.RunSocketMode})
	}
	return p
}

// first of some texts, if there is one.
func first(all []string) string {
	if len(all) == 0 {
		return ""
	}
	return all[0]
}

// close waits for what is on its way, and lets connections go.
func (p *parts) close(ctx context.Context, log *slog.Logger) {
	ctx, cancel := context.WithTimeout(ctx, 5*time.Second)
	defer cancel()
	if err := p.silencer.Close(ctx); err != nil {
		log.WarnContext(ctx, "a silence was still on its way", slog.Any("err", err))
	}
	p.pages.Close()
	p.clients.Close()
}

// report says at the start what somebody should look at, which check-config says too.
func report(ctx context.Context, base *service.Base) {
	for _, f := range Check(base.Config()) {
		base.Logger.WarnContext(ctx, "the configuration should be looked at", slog.String("key", f.Key), slog.String("finding", f.Message))
	}
}

// senders makes each receiver's sender. Secrets are read at each attempt.
func senders(clients *webhook.Clients, now func() time.Time) func(config.Receiver) (deliver.Sender, error) {
	return func(r config.Receiver) (deliver.Sender, error) {
		client := clients.For(r.TLS)
		switch {
		case r.Slack != nil:
			o := slack.Options{Receiver: r.Name, Channel: r.Slack.Channel, APIURL: r.Slack.APIURL, Poster: client, HTTP: client.HTTP(), Now: now}
			if r.Slack.BotTokenFile != "" {
				o.BotToken = r.Slack.BotTokenFile.Read
			} else {
				o.WebhookURL = r.Slack.WebhookURLFile.Read
			}
			return slack.New(o), nil
		case r.DingTalk != nil:
			o := dingtalk.Options{Address: r.DingTalk.WebhookURLFile.Read, Poster: client, Style: cmp.Or(r.DingTalk.Style, "markdown"), Now: now}
			if r.DingTalk.SecretFile != "" {
				o.Secret = r.DingTalk.SecretFile.Read
			}
			return dingtalk.New(o), nil
		}
		return nil, errors.New("the receiver names no chat")
	}
}
