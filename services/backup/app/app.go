// Package app wires the backup service together and offers the commands that need only the bucket. It can be embedded:
// Run serves until its context ends.
package app

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"os/signal"
	"path/filepath"
	"runtime/debug"
	"slices"
	"strings"
	"time"

	"github.com/prometheus/client_golang/prometheus"
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
	// WebConfigFile is for HTTPAddr; empty is in clear.
	WebConfigFile string
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
	// IdentityFile is the age identity of drills, in place of the configuration's encryption.identity_file, so that one configuration
	// serves every role and only drill workers hold the identity.
	IdentityFile string
	// RequireIsolation fails a drill whose server could not be given a network namespace.
	RequireIsolation bool
	// Zone is where this process is: it takes the jobs of targets of this zone, and those of targets without one.
	Zone string
	// Grace is how long jobs may go on after the context ended, before they are handed back; 0: they are handed back at once.
	Grace time.Duration
	// AckWait is how long after a worker's death its job goes to another one; 30 s when zero.
	AckWait time.Duration
	// PIDFile is held by this process while it lives, for `drain`; empty: none. SIGUSR1 makes it drain with and without one.
	PIDFile string
	Logger  *slog.Logger
	// Started is told the address of health and metrics. It may be nil.
	Started func(addr string)
	// Registered is told the registry when all metrics are in it. It may be nil.
	Registered func(*prometheus.Registry)
}

const gcPercent = 30

// A worker heartbeats three times in this, so a busy machine or a short break of the network loses it no job.
const defaultAckWait = 30 * time.Second

// Less than the kill_timeout that a Nomad job may have by default: a client allows at most its max_kill_timeout, which is 30 s
// (https://developer.hashicorp.com/nomad/docs/configuration/client#max_kill_timeout). The rest is for handing back.
const defaultGrace = 25 * time.Second

// Attempts of a job before it becomes a dead letter: about half a minute of waiting in all, besides the attempts. A job that was
// handed back by a worker that stopped has not used one up.
const maxAttempts = 5

const defaultConcurrency = 2

// Command is `lifeboat-backup`.
func Command() *cobra.Command {
	var flags service.Flags
	var o Options
	cmd := &cobra.Command{
		Use:   "lifeboat-backup",
		Short: "Take snapshots, verify them, drill their restore, and apply retention",
		Long: "lifeboat-backup works off jobs from NATS: it reads etcd, Consul KV and Nomad, streams them into S3, reads them\n" +
			"back, and rehearses their restore. Run as many as you like; each job goes to one of them.\n\n" +
			"SIGTERM ends it: it takes no more jobs, lets those that it has go on for --grace, and hands the rest back, which another\n" +
			"worker takes at once. Give a Nomad job a kill_timeout of some seconds more than --grace; the client's max_kill_timeout\n" +
			"(30s by default) caps it. A second SIGTERM ends it at once; its jobs then go to another worker after --ack-wait.\n\n" +
			"SIGUSR1 drains it: it takes no more jobs, lets those that it has end however long they take, hands nothing back, and stays up\n" +
			"until it is stopped. `drain` sends that to the worker of a --pid-file, and waits until nothing runs.",
		Example: "  lifeboat-backup --config lifeboat.yaml\n" +
			"  lifeboat-backup --config lifeboat.yaml --roles snapshot\n" +
			"  lifeboat-backup --config lifeboat.yaml --zone beijing    # and no worker elsewhere takes the jobs of that zone's targets\n" +
			"  lifeboat-backup --config lifeboat.yaml --roles verify,drill --scratch-dir /var/tmp/drills\n" +
			"  lifeboat-backup --config lifeboat.yaml --roles drill --consul-binary /opt/consul --nomad-binary /opt/nomad\n" +
			"  lifeboat-backup --config lifeboat.yaml --roles prune    # the only one whose S3 keys may delete",
		Args:    cobra.NoArgs,
		Version: service.VersionText(),
		RunE: func(cmd *cobra.Command, _ []string) error {
			log, err := flags.Logger(cmd.ErrOrStderr())
			if err != nil {
				return err
			}
			o.ConfigPath, o.HTTPAddr, o.WebConfigFile, o.Logger = flags.Config, flags.HTTPAddr, flags.WebConfigFile, log
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
	cmd.AddCommand(confineCommand(), drainCommand())
	flags.Add(cmd, "127.0.0.1:9098")
	cmd.Flags().StringSliceVar(&o.Roles, "roles", nil, "kinds of work to take: snapshot, verify, drill, prune (default all)")
	cmd.Flags().IntVar(&o.Concurrency, "concurrency", defaultConcurrency, "jobs of each role at once")
	cmd.Flags().StringVar(&o.Zone, "zone", "", "where this worker is: it takes the jobs of targets with this `zone`, and of those without one")
	cmd.Flags().DurationVar(&o.Grace, "grace", defaultGrace,
		"how long jobs may go on after SIGTERM before they are handed back; keep it below Nomad's kill_timeout")
	cmd.Flags().DurationVar(&o.AckWait, "ack-wait", defaultAckWait, "how long after a worker's death its job goes to another one")
	cmd.Flags().StringVar(&o.PIDFile, "pid-file", "", "`file` that says which process this is, and is locked by it, for drain")
	cmd.Flags().StringVar(&o.ScratchDir, "scratch-dir", "", "`folder` that drills restore into (default: in the temporary folder)")
	cmd.Flags().StringVar(&o.ConsulBinary, "consul-binary", "", "consul `file` that drills restore into (default: consul on PATH)")
	cmd.Flags().StringVar(&o.NomadBinary, "nomad-binary", "", "nomad `file` that drills restore into (default: nomad on PATH)")
	cmd.Flags().StringVar(&o.IdentityFile, "identity-file", "", "age identity `file` in place of the configuration's encryption.identity_file")
	cmd.Flags().BoolVar(&o.RequireIsolation, "require-isolation", false,
		"fail a drill whose server cannot be given a network namespace of its own")
	return cmd
}

// configuration is the one in force at each call.
func (o Options) configuration(base *service.Base) func() *config.Config {
	if o.IdentityFile == "" {
		return base.Config
	}
	return func() *config.Config {
		cfg := *base.Config()
		cfg.Encryption.IdentityFile = config.SecretFile(o.IdentityFile)
		return &cfg
	}
}

// Run serves until the context ends.
func Run(ctx context.Context, o Options) (err error) {
	drainer := newDrainer() // first of all: until then the signal would end the process
	defer signal.Stop(drainer.came)
	roles, err := parseRoles(o.Roles)
	if err != nil {
		return &service.UsageError{Err: err}
	}
	if o.Zone != "" && !config.ValidName(o.Zone) {
		return &service.UsageError{Err: fmt.Errorf("--zone: %q cannot be a zone's name", o.Zone)}
	}
	file, err := holdPIDFile(o.PIDFile)
	if err != nil {
		return &service.UsageError{Err: fmt.Errorf("--pid-file: %w", err)}
	}
	defer func() { err = errors.Join(err, file.release()) }()
	base, err := service.NewBase("lifeboat-backup", o.ConfigPath, o.Logger, o.Roles...)
	if err != nil {
		return err
	}
	base.WebConfigFile = o.WebConfigFile
	retries := newRetries(base.Registry)
	first, err := openPlace(ctx, base.Config().Store.ObjectStore, retries)
	if err != nil {
		return &service.UsageError{Err: fmt.Errorf("store: %w", err)}
	}
	places := []*place{first}
	var second *worker.Copy
	if c := base.Config().Store.Copy; c != nil {
		p, failed := openPlace(ctx, *c, retries)
		if failed != nil {
			return &service.UsageError{Err: fmt.Errorf("store.copy: %w", failed)}
		}
		places = append(places, p)
		second = &worker.Copy{Objects: p.objects, Catalog: p.catalog, Remover: p.remover(roles), Capabilities: p.capabilities}
	}
	if o.Concurrency == 0 {
		o.Concurrency = defaultConcurrency
	}
	if o.ScratchDir == "" {
		o.ScratchDir = filepath.Join(os.TempDir(), "lifeboat-scratch")
	}
	if err = os.MkdirAll(o.ScratchDir, 0o700); err != nil {
		return &service.UsageError{Err: fmt.Errorf("making the scratch folder: %w", err)}
	}
	w := worker.New(worker.Options{
		Config: o.configuration(base), NewSource: newSources, Objects: first.objects, Catalog: first.catalog, Remover: first.remover(roles),
		Capabilities: first.capabilities, Copy: second, Bus: base.Bus, Zone: o.Zone, Logger: base.Logger, Registerer: base.Registry,
		ScratchDir: o.ScratchDir, Version: service.Version(), Clock: time.Now,
		Drill: worker.DrillOptions{
			ConsulBinary: o.ConsulBinary, NomadBinary: o.NomadBinary, Confine: o.Confine, RequireIsolation: o.RequireIsolation,
		},
	})
	drained := drainer.start(ctx, base, w, file)
	defer drained()
	reach := newReachability(base, o.Zone)
	var checks []service.Check
	actors := []service.Actor{stopping(base, w, o.Grace), presence(base, first.catalog, roles, o, drainer.begun)}
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
			defer drainer.pulling()()
			return base.Bus.Consume(ctx, c)
		}})
	}
	for _, role := range roles {
		c := consumer(role, o, w.Handler(role), w)
		c.Drain = drainer.begun
		consume(c)
	}
	if slices.Contains(roles, config.WorkSnapshot) { // the other roles never talk to a source
		checks = append(checks, service.Check{Name: "sources", Probe: reach.check})
		actors = append(actors, service.Actor{Name: "sources", Run: reach.run})
	}
	if o.Registered != nil {
		o.Registered(base.Registry)
	}
	err = base.Run(ctx, o.HTTPAddr, o.Started, checks, actors...)
	ended := w.Drained()
	base.Logger.InfoContext(ctx, "took no more jobs, and let go of those at hand", slog.Int("finished", ended.Finished),
		slog.Int("failed", ended.Failed), slog.Int("handed_back", ended.HandedBack))
	return err
}

// stopping tells the worker that the service begins to stop.
func stopping(base *service.Base, w *worker.Worker, grace time.Duration) service.Actor {
	return service.Actor{Name: "stop", Run: func(ctx context.Context) error {
		<-ctx.Done()
		base.Logger.InfoContext(ctx, "stopping: no more jobs are taken, and those at hand may go on for a while", slog.Int("jobs", w.Drain()),
			slog.Duration("grace", grace))
		return nil
	}}
}

// consumer is how one role takes its jobs.
func consumer(role config.Work, o Options, handle bus.Handler, w *worker.Worker) bus.Consumer {
	ackWait := o.AckWait
	if ackWait == 0 {
		ackWait = defaultAckWait
	}
	return bus.Consumer{
		Stream: bus.StreamJobs, Durable: "backup-" + string(role), Filter: bus.AllJobs(role), AckWait: ackWait,
		Concurrency: o.Concurrency, Grace: o.Grace, CountsByClaim: true, MaxAttempts: maxAttempts, Backoff: bus.Exponential(2*time.Second, time.Minute),
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
