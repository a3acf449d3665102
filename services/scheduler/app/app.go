// Package app wires the scheduler together. It can be embedded: Run serves until its context ends.
package app

import (
	"context"
	"log/slog"
	"os"
	"runtime/debug"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/spf13/cobra"

	"github.com/lifeboat-fleet/lifeboat/fleet/service"
	"github.com/lifeboat-fleet/lifeboat/services/scheduler/internal/backlog"
	"github.com/lifeboat-fleet/lifeboat/services/scheduler/internal/emit"
	"github.com/lifeboat-fleet/lifeboat/services/scheduler/internal/rpo"
)

// gcPercent is GOGC when the environment does not set it.
const gcPercent = 40

// Options of the service.
type Options struct {
	ConfigPath string
	// HTTPAddr serves health and metrics.
	HTTPAddr string
	// WebConfigFile is for HTTPAddr; empty is in clear.
	WebConfigFile string
	Logger        *slog.Logger
	// Started is told the address of health and metrics. It may be nil.
	Started func(addr string)
	// Registered is told the registry when all metrics are in it. It may be nil.
	Registered func(*prometheus.Registry)
	// Now is the clock of schedules and of the RPO; time.Now when nil.
	Now func() time.Time
}

// Command is `lifeboat-scheduler`.
func Command() *cobra.Command { return CommandAt(time.Now) }

// CommandAt is Command with another clock.
func CommandAt(now func() time.Time) *cobra.Command {
	var flags service.Flags
	cmd := &cobra.Command{
		Use:   "lifeboat-scheduler",
		Short: "Turn schedules into jobs",
		Long: "lifeboat-scheduler emits a job for every tick of every target's schedules, and watches how old the newest good\n" +
			"snapshot is. Run as many replicas as you like: there is no leader, and each tick is emitted once.",
		Example: "  lifeboat-scheduler --config lifeboat.yaml\n" +
			"  lifeboat-scheduler --config lifeboat.yaml --http-addr 127.0.0.1:9096",
		Args:    cobra.NoArgs,
		Version: service.VersionText(),
		RunE: func(cmd *cobra.Command, _ []string) error {
			log, err := flags.Logger(cmd.ErrOrStderr())
			if err != nil {
				return err
			}
			if os.Getenv("GOGC") == "" {
				// Loading a configuration of very many targets leaves much garbage at once. Collecting sooner than by default
				// keeps a quarter of the memory from ever being taken, and costs nothing measurable later.
				debug.SetGCPercent(gcPercent)
			}
			return Run(cmd.Context(), Options{
				ConfigPath: flags.Config, HTTPAddr: flags.HTTPAddr, WebConfigFile: flags.WebConfigFile, Logger: log, Now: now,
			})
		},
	}
	flags.Add(cmd, "127.0.0.1:9096")
	return cmd
}

// Run serves until the context ends.
func Run(ctx context.Context, o Options) error {
	base, err := service.NewBase("lifeboat-scheduler", o.ConfigPath, o.Logger)
	if err != nil {
		return err
	}
	base.WebConfigFile = o.WebConfigFile
	if o.Now == nil {
		o.Now = time.Now
	}
	ticking := make(chan struct{})
	emitter := emit.New(emit.Options{
		Bus: base.Bus, Config: base.Config, Changed: base.Live.Changed(), Logger: base.Logger,
		Registerer: base.Registry, Now: o.Now, Loaded: func() { close(ticking) },
	})
	watch := rpo.New(rpo.Options{
		Bus: base.Bus, Config: base.Config, Changed: base.Live.Changed(), Logger: base.Logger, Registerer: base.Registry, Now: o.Now,
	})
	jobs := backlog.New(backlog.Options{Bus: base.Bus, Logger: base.Logger, Registerer: base.Registry, Now: o.Now})
	if o.Registered != nil {
		o.Registered(base.Registry)
	}
	return base.Run(ctx, o.HTTPAddr, o.Started, nil,
		service.Actor{Name: "ticks", Run: emitter.Run}, service.Actor{Name: "backlog", Run: jobs.Run},
		service.Actor{Name: "rpo", Run: func(ctx context.Context) error {
			// Ticks first: of a large fleet both read much at the start, and an age can wait for some seconds.
			select {
			case <-ticking:
				return watch.Run(ctx)
			case <-ctx.Done():
				return nil
			}
		}})
}
