// Package page is `lifeboat page`, the status page: one screen that says what is red, and how every target is.
//
// It follows the audit log, asks NATS what waits and runs, and needs no bucket. What it knows is a few moments per target in memory
// (fleet.go), which a view (view.go) judges at a moment, in no language; the view is written in a language (render.go) once for all who
// look (hub.go), and an open page is sent the parts that have changed (server.go). It writes nothing anywhere.
package page

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/spf13/cobra"

	"github.com/lifeboat-fleet/lifeboat/fleet/bus"
	"github.com/lifeboat-fleet/lifeboat/fleet/config"
	"github.com/lifeboat-fleet/lifeboat/fleet/service"
	"github.com/lifeboat-fleet/lifeboat/fleet/web"
)

// Options of the page.
type Options struct {
	ConfigPath string
	// HTTPAddr serves health and metrics; the page has an address of its own, page.listen.
	HTTPAddr string
	// WebConfigFile is for HTTPAddr.
	WebConfigFile string
	Logger        *slog.Logger
	// Listen stands in for page.listen when it is not empty.
	Listen string
	// Started is told the addresses, as host:port. It may be nil.
	Started func(Addresses)
	// Registered is told the registry when all metrics are in it. It may be nil.
	Registered func(*prometheus.Registry)
}

// Addresses are where the page and its health listen, as host:port.
type Addresses struct{ Page, Health string }

// healthAddr is the default of --http-addr.
const healthAddr = "127.0.0.1:9088"

// Command is `lifeboat page`.
func Command() *cobra.Command {
	var flags service.Flags
	var o Options
	cmd := &cobra.Command{
		Use:   "page",
		Short: "Serve the status page: what is red, and how every target is",
		Long: "page serves one screen for a browser: first what is red, then each target's RPO clock, last snapshot, last proven restore and next\n" +
			"tick, and below that running jobs, recent deliveries and dead letters. It stays up to date by itself, works without\n" +
			"JavaScript, and is in English or Chinese, as the browser asks.\n\n" +
			"It needs NATS and no bucket, and only reads: its NATS user is the role \"page\" of deploy/nats. Anybody who reaches page.listen may\n" +
			"look; page.web_config_file has TLS, client certificates and passwords.",
		Example: "  lifeboat page --config lifeboat.yaml\n" +
			"  lifeboat page --config lifeboat.yaml --listen 0.0.0.0:9089 --http-addr 127.0.0.1:9088\n" +
			"  lifeboat page healthcheck",
		Args:    cobra.NoArgs,
		Version: service.VersionText(),
		RunE: func(cmd *cobra.Command, _ []string) error {
			log, err := flags.Logger(cmd.ErrOrStderr())
			if err != nil {
				return err
			}
			o.ConfigPath, o.HTTPAddr, o.WebConfigFile, o.Logger = flags.Config, flags.HTTPAddr, flags.WebConfigFile, log
			return Run(cmd.Context(), o)
		},
	}
	flags.Add(cmd, healthAddr)
	cmd.Flags().StringVar(&o.Listen, "listen", "", "`address` of the page, in place of page.listen")
	return cmd
}

// name is the service's, whose role in NATS is "page".
const name = "lifeboat-page"

// page is the process: its configuration, its connection, and what it serves.
type page struct {
	Options
	live     *service.Live
	bus      *bus.Bus
	registry *prometheus.Registry
}

// Run serves until the context ends. A NATS that is away is no error: the page says so.
func Run(ctx context.Context, o Options) error {
	o.Logger = o.Logger.With(slog.String("service", name))
	p := &page{Options: o, registry: service.NewRegistry()}
	var err error
	if p.live, err = service.LoadLive(o.ConfigPath, o.Logger, p.registry); err != nil {
		return err
	}
	settings := p.live.Current().Page
	if o.Listen != "" {
		settings.Listen = o.Listen
	}
	if err = web.Check(settings.WebConfigFile); err != nil {
		return &service.UsageError{Err: fmt.Errorf("page.web_config_file: %w", err)}
	}
	p.bus, err = bus.Connect(bus.Options{
		Config: p.live.Current().NATS, Actor: service.Instance(name), Logger: o.Logger, Registerer: p.registry,
	})
	if err != nil {
		return &service.UsageError{Err: err}
	}
	err = p.serve(ctx, settings)
	return errors.Join(err, p.bus.Close())
}

// serve runs the parts. They begin at once, and not when NATS is there.
func (p *page) serve(ctx context.Context, settings config.Page) error {
	f := newFleet()
	render, err := newRenderer()
	if err != nil {
		return err
	}
	h := newHub(f, p.live.Current, p.ConfigPath, render, time.Now, newMetrics(p.registry, f, time.Now))
	s, err := newServer(h, render, p.Logger)
	if err != nil {
		return err
	}
	w := &watcher{
		bus: p.bus, fleet: f, config: p.live.Current, log: p.Logger, now: time.Now, watched: h.watched, changed: h.changed,
		poke: make(chan struct{}, 1),
	}
	var lc net.ListenConfig
	ln, err := lc.Listen(ctx, "tcp", settings.Listen)
	if err != nil {
		return fmt.Errorf("listening for the page (page.listen): %w", err)
	}
	p.Logger.InfoContext(ctx, "serving the page", slog.String("addr", ln.Addr().String()))
	web.WarnIfOpen(ctx, p.Logger, web.Listener{
		Name: "the status page", Addr: ln.Addr(), WebConfigFile: settings.WebConfigFile, Setting: "page.web_config_file",
	})
	served := false
	err = service.Run(ctx, service.Options{
		Name: name, Logger: p.Logger, Listen: p.HTTPAddr, WebConfigFile: p.WebConfigFile, Registry: p.registry,
		Started: func(health string) {
			served = true
			if p.Registered != nil {
				p.Registered(p.registry)
			}
			if p.Started != nil {
				p.Started(Addresses{Page: ln.Addr().String(), Health: health})
			}
		},
		Checks: []service.Check{{Name: "nats", Probe: p.bus.Ready}},
		Actors: []service.Actor{
			{Name: "configuration", Run: p.live.Run},
			{Name: "audit log", Run: w.follow},
			{Name: "deliveries", Run: w.recall},
			{Name: "questions", Run: w.run},
			{Name: "viewers", Run: h.run},
			{Name: "page", Run: func(ctx context.Context) error {
				return web.Serve(ctx, httpServer(ctx, s.handler()), ln, settings.WebConfigFile, p.Logger)
			}},
		},
	})
	if !served {
		err = errors.Join(err, ln.Close())
	}
	return err
}
