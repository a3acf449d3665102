// Package app wires the backup service together and offers the commands that need only the bucket. It can be embedded:
// Run serves until its context ends.
package app

import (
	"context"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"runtime/debug"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/lifeboat-fleet/lifeboat/fleet/bus"
	"github.com/lifeboat-fleet/lifeboat/fleet/config"
	"github.com/lifeboat-fleet/lifeboat/fleet/service"
	"github.com/lifeboat-fleet/lifeboat/services/backup/internal/worker"
)

// Options of the service.
type Options struct {
	ConfigPath string
	// HTTPAddr serves health and metrics.
	HTTPAddr string
	// Roles are the kinds of work to take: snapshot, verify, drill, prune. Empty means all.
	Roles []string
	// Concurrency is how many jobs of each role this process runs at once; 2 when zero.
	Concurrency int
	// ScratchDir is where drills restore; a folder under the system's temporary one when empty.
	ScratchDir string
	// ConsulBinary and NomadBinary are the servers that drills restore into; "consul" and "nomad" on PATH when empty.
	ConsulBinary, NomadBinary string
	// Confine is the command of this program that starts such a server in a network namespace of its own, as Confine gives it;
	// empty: none gets one.
	Confine []string
	// RequireIsolation fails a drill whose server could not be given a network namespace.
	RequireIsolation bool
	// AckWait is how long after a worker's death its job goes to another one; 30 s when zero.
	AckWait time.Duration
	Logger  *slog.Logger
	// Started is told the address of health and metrics. It may be nil.
	Started func(addr string)
}

const gcPercent = 30

// A worker heartbeats three times in this, so a busy machine or a short break of the network loses it no job.
const defaultAckWait = 30 * time.Second

// Attempts of a job before it becomes a dead letter: about half a minute of waiting in all, besides the attempts.
const maxAttempts = 5

// Command is `lifeboat-backup`.
func Command() *cobra.Command {
	var flags service.Flags
	var o Options
	cmd := &cobra.Command{
		Use:   "lifeboat-backup",
		Short: "Take snapshots, verify them, drill their restore, and apply retention",
		Long: "lifeboat-backup works off jobs from NATS: it reads etcd, Consul KV and Nomad, streams them into S3, reads them\n" +
			"back, and rehearses their restore. Run as many as you like; each job goes to one of them.",
		Example: "  lifeboat-backup --config lifeboat.yaml\n" +
			"  lifeboat-backup --config lifeboat.yaml --roles snapshot\n" +
			"  lifeboat-backup --config lifeboat.yaml --roles verify,drill --scratch-dir /var/tmp/drills\n" +
			"  lifeboat-backup --config lifeboat.yaml --roles drill --consul-binary /opt/consul --nomad-binary /opt/nomad\n" +
			"  lifeboat-backup --config lifeboat.yaml --roles prune    # the only one whose S3 keys may delete",
		Args:    cobra.NoArgs,
		Version: service.Version(),
		RunE: func(cmd *cobra.Command, _ []string) error {
			log, err := flags.Logger(cmd.ErrOrStderr())
			if err != nil {
				return err
			}
			o.ConfigPath, o.HTTPAddr, o.Logger = flags.Config, flags.HTTPAddr, log
			if os.Getenv("GOGC") == "" {
				// What a worker holds is mostly the parts of an upload, which live long. Collecting sooner than by default costs
				// nothing measurable, and a fifth of the memory less.
				debug.SetGCPercent(gcPercent)
			}
			if o.Confine, err = Confine(strings.Fields(cmd.CommandPath())[1:]...); err != nil {
				return err
			}
			return Run(cmd.Context(), o)
		},
	}
	cmd.AddCommand(confineCommand())
	cmd.CompletionOptions.DisableDefaultCmd = true
	cmd.SetHelpCommand(&cobra.Command{Use: "no-help", Hidden: true}) // --help is enough for one command
	flags.Add(cmd, "127.0.0.1:9098")
	cmd.Flags().StringSliceVar(&o.Roles, "roles", nil, "kinds of work to take: snapshot, verify, drill, prune (default all)")
	cmd.Flags().IntVar(&o.Concurrency, "concurrency", 2, "jobs of each role at once")
	cmd.Flags().DurationVar(&o.AckWait, "ack-wait", defaultAckWait, "how long after a worker's death its job goes to another one")
	cmd.Flags().StringVar(&o.ScratchDir, "scratch-dir", "", "`folder` that drills restore into (default: in the temporary folder)")
	cmd.Flags().StringVar(&o.ConsulBinary, "consul-binary", "", "consul `file` that drills restore into (default: consul on PATH)")
	cmd.Flags().StringVar(&o.NomadBinary, "nomad-binary", "", "nomad `file` that drills restore into (default: nomad on PATH)")
	cmd.Flags().BoolVar(&o.RequireIsolation, "require-isolation", false,
		"fail a drill whose server cannot be given a network namespace of its own")
	return cmd
}

// Run serves until the context ends.
func Run(ctx context.Context, o Options) error {
	roles, err := parseRoles(o.Roles)
	if err != nil {
		return &service.UsageError{Err: err}
	}
	base, err := service.NewBase("lifeboat-backup", o.ConfigPath, o.Logger, o.Roles...)
	if err != nil {
		return err
	}
	retries := newRetries(base.Registry)
	first, err := openPlace(ctx, base.Config().Store.ObjectStore, retries)
	if err != nil {
		return &service.UsageError{Err: fmt.Errorf("store: %w", err)}
	}
	places := []*place{first}
	var second *worker.Copy
	if c := base.Config().Store.Copy; c != nil {
		p, err := openPlace(ctx, *c, retries)
		if err != nil {
			return &service.UsageError{Err: fmt.Errorf("store.copy: %w", err)}
		}
		places = append(places, p)
		second = &worker.Copy{Objects: p.objects, Catalog: p.catalog, Remover: p.remover(roles), Capabilities: p.capabilities}
	}
	if o.ScratchDir == "" {
		o.ScratchDir = filepath.Join(os.TempDir(), "lifeboat-scratch")
	}
	if err := os.MkdirAll(o.ScratchDir, 0o700); err != nil {
		return &service.UsageError{Err: fmt.Errorf("making the scratch folder: %w", err)}
	}
	w := worker.New(worker.Options{
		Config: base.Config, NewSource: newSources, Objects: first.objects, Catalog: first.catalog, Remover: first.remover(roles),
		Capabilities: first.capabilities, Copy: second, Bus: base.Bus, Logger: base.Logger, Registerer: base.Registry,
		ScratchDir: o.ScratchDir, Version: service.Version(), Clock: time.Now,
		Drill: worker.DrillOptions{
			ConsulBinary: o.ConsulBinary, NomadBinary: o.NomadBinary, Confine: o.Confine, RequireIsolation: o.RequireIsolation,
		},
	})
	reach := newReachability(base)
	var checks []service.Check
	var actors []service.Actor
	for i, p := range places {
		answers, prepare := p.objects.Ping, p.objects.Ping
		if slices.Contains(roles, config.WorkSnapshot) {
			answers, prepare = p.usable, p.prepare // the other roles may not write, which the probe has to
		}
		name := []string{"store", "store copy"}[i]
		checks = append(checks, service.Check{Name: name, Probe: answers})
		actors = append(actors, service.Actor{Name: name, Run: func(ctx context.Context) error {
			base.Until(ctx, name, prepare)
			return nil
		}})
	}
	consume := func(c bus.Consumer) {
		actors = append(actors, service.Actor{Name: "consume " + c.Durable, Run: func(ctx context.Context) error {
			return base.Bus.Consume(ctx, c)
		}})
	}
	for _, role := range roles {
		consume(consumer(role, o, w.Handler(role), w))
	}
	if slices.Contains(roles, config.WorkSnapshot) { // the other roles never talk to a source
		checks = append(checks, service.Check{Name: "sources", Probe: reach.check})
		actors = append(actors, service.Actor{Name: "sources", Run: reach.run})
	}
	return base.Run(ctx, o.HTTPAddr, o.Started, checks, actors...)
}

// consumer is how one role takes its jobs.
func consumer(role config.Work, o Options, handle bus.Handler, w *worker.Worker) bus.Consumer {
	ackWait := o.AckWait
	if ackWait == 0 {
		ackWait = defaultAckWait
	}
	concurrency := o.Concurrency
	if concurrency == 0 {
		concurrency = 2
	}
	return bus.Consumer{
		Stream: bus.StreamJobs, Durable: "backup-" + string(role), Filter: bus.AllJobs(role), AckWait: ackWait,
		Concurrency: concurrency, MaxAttempts: maxAttempts, Backoff: bus.Exponential(2*time.Second, time.Minute),
		Handle: handle, OnDead: w.OnDead,
	}
}

func parseRoles(names []string) ([]config.Work, error) {
	if len(names) == 0 {
		return config.Works(), nil
	}
	var roles []config.Work
	for _, n := range names {
		role := config.Work(strings.TrimSpace(n))
		if !slices.Contains(config.Works(), role) {
			return nil, fmt.Errorf("--roles: %q is not one of %v", n, config.Works())
		}
		if !slices.Contains(roles, role) {
			roles = append(roles, role)
		}
	}
	return roles, nil
}
