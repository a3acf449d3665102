// Package app wires the notifier together. It can be embedded: Run serves until its context ends.
package app

import (
	"log/slog"
	"os"
	"runtime/debug"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/spf13/cobra"

	"github.com/lifeboat-fleet/lifeboat/fleet/config"
	"github.com/lifeboat-fleet/lifeboat/fleet/service"
	"github.com/lifeboat-fleet/lifeboat/services/notifier/internal/ingest"
)

// What the garbage collector is told when the environment does not say it (GOGC, GOMEMLIMIT): a webhook leaves much garbage and little
// else, so that it pays to collect seldom, as long as there is little in all.
const (
	gcPercent   = 400
	memoryLimit = 80 << 20
)

// Options of the service.
type Options struct {
	ConfigPath string
	// HTTPAddr serves health and metrics. The webhook has an address of its own, notifier.listen.
	HTTPAddr string
	// WebConfigFile is for HTTPAddr; empty is in clear.
	WebConfigFile string
	Logger        *slog.Logger
	// Listen and InteractionsListen stand in for notifier.listen and notifier.interactions.listen when they are not empty: who places the
	// process may choose its ports. Without notifier.interactions.listen there are no pages, whatever InteractionsListen is.
	Listen, InteractionsListen string
	// Started is told where the service listens. It may be nil.
	Started func(Addresses)
	// Registered is told the registry when all metrics are in it. It may be nil.
	Registered func(*prometheus.Registry)
	// Now is the clock; time.Now when nil.
	Now func() time.Time
}

// Addresses are where the service listens, as host:port. Interactions is empty without notifier.interactions.listen.
type Addresses struct{ Health, Webhooks, Interactions string }

// placed is the configuration with the addresses of the options.
func (o Options) placed(cfg config.Notifier) config.Notifier {
	if o.Listen != "" {
		cfg.Listen = o.Listen
	}
	if o.InteractionsListen != "" && cfg.Interactions.Listen != "" {
		cfg.Interactions.Listen = o.InteractionsListen
	}
	return cfg
}

// Command is `lifeboat-notifier`.
func Command() *cobra.Command {
	var flags service.Flags
	var o Options
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
		Version: service.VersionText(),
		RunE: func(cmd *cobra.Command, _ []string) error {
			log, err := flags.Logger(cmd.ErrOrStderr())
			if err != nil {
				return err
			}
			if os.Getenv("GOGC") == "" && os.Getenv("GOMEMLIMIT") == "" {
				debug.SetGCPercent(gcPercent)
				debug.SetMemoryLimit(memoryLimit)
			}
			o.ConfigPath, o.HTTPAddr, o.WebConfigFile, o.Logger = flags.Config, flags.HTTPAddr, flags.WebConfigFile, log
			return Run(cmd.Context(), o)
		},
	}
	flags.Add(cmd, "127.0.0.1:9097")
	cmd.Flags().StringVar(&o.Listen, "listen", "", "`address` of the webhooks, in place of notifier.listen")
	cmd.Flags().StringVar(&o.InteractionsListen, "interactions-listen", "",
		"`address` of the pages and of Slack's requests, in place of notifier.interactions.listen")
	return cmd
}
