// Package up runs a whole fleet in one process: embedded NATS, S3 and etcd, the real Consul, Nomad and Alertmanager when
// their binaries are there, a local Slack and DingTalk, sample data, and the three services on short schedules.
package up

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/lifeboat-fleet/lifeboat/cli/internal/page"
	"github.com/lifeboat-fleet/lifeboat/fleet/fleettest/bintest"
	"github.com/lifeboat-fleet/lifeboat/fleet/fleettest/chattest"
	"github.com/lifeboat-fleet/lifeboat/fleet/fleettest/etcdtest"
	"github.com/lifeboat-fleet/lifeboat/fleet/fleettest/natstest"
	"github.com/lifeboat-fleet/lifeboat/fleet/fleettest/s3test"
	backup "github.com/lifeboat-fleet/lifeboat/services/backup/app"
	notifier "github.com/lifeboat-fleet/lifeboat/services/notifier/app"
	scheduler "github.com/lifeboat-fleet/lifeboat/services/scheduler/app"
)

// The kinds of targets that a fleet can have.
const (
	Etcd   = "etcd"
	Consul = "consul"
	Nomad  = "nomad"
)

// Kinds are all of them.
func Kinds() []string { return []string{Etcd, Consul, Nomad} }

// TargetOf is the name of the sample target of a kind.
func TargetOf(kind string) string {
	return map[string]string{Etcd: "etcd-demo", Consul: "consul-kv", Nomad: "nomad-jobs"}[kind]
}

// Options of a fleet.
type Options struct {
	// Dir keeps everything: data, secrets, logs and the configuration.
	Dir string
	// Kinds to run. A kind whose binary is missing is an error, if Require is set, and left out otherwise.
	Kinds   []string
	Require bool
	// Every is the cron line of snapshots, as "@every 20s".
	Every string
	// DrillEvery and VerifyEvery are those of drills and verifications; empty means none.
	DrillEvery, VerifyEvery string
	Logger                  *slog.Logger
	// Progress is told what is being started, a line each.
	Progress io.Writer
}

// Fleet is a running fleet.
type Fleet struct {
	Options
	ConfigPath string
	NATS       *natstest.Server
	S3         *s3test.Server
	Chat       *chattest.Server
	// Etcd and the rest are nil when the kind does not run.
	Etcd         *etcdtest.Server
	Consul       *bintest.Consul
	Nomad        *bintest.Nomad
	Alertmanager *bintest.Alertmanager
	// Addresses of the services.
	WebhookAddr string
	// PageAddr is the status page's.
	PageAddr    string
	healthAddrs map[string]string

	stops    []func() error
	services *errgroup.Group
	cancel   context.CancelFunc
}

// Start starts everything and returns when the services run. Stop must be called, also after an error.
func Start(ctx context.Context, o Options) (*Fleet, error) {
	f := &Fleet{Options: o, healthAddrs: map[string]string{}}
	if err := os.MkdirAll(o.Dir, 0o700); err != nil {
		return f, fmt.Errorf("making the fleet's folder: %w", err)
	}
	for _, step := range []struct {
		what string
		run  func(context.Context) error
	}{
		{"NATS", f.startNATS},
		{"S3 (VersityGW)", f.startS3},
		{"etcd", f.startEtcd},
		{"Consul", f.startConsul},
		{"Nomad", f.startNomad},
		{"Slack and DingTalk sinks", f.startChat},
		{"Alertmanager", f.startAlertmanager},
		{"sample data", f.seed},
		{"configuration", f.writeConfig},
		{"Lifeboat", f.startServices},
	} {
		if _, err := fmt.Fprintf(o.Progress, "starting %s\n", step.what); err != nil {
			return f, fmt.Errorf("telling progress: %w", err)
		}
		if err := step.run(ctx); err != nil {
			return f, fmt.Errorf("starting %s: %w", step.what, err)
		}
	}
	return f, nil
}

// onStop remembers how to stop a part; parts stop in reverse order.
func (f *Fleet) onStop(stop func() error) { f.stops = append(f.stops, stop) }

// Stop ends the services first and then the servers. It leaves no process behind.
func (f *Fleet) Stop() error {
	var errs []error
	if f.cancel != nil {
		f.cancel()
		errs = append(errs, f.services.Wait())
	}
	for _, stop := range slices.Backward(f.stops) {
		errs = append(errs, stop())
	}
	f.stops, f.cancel = nil, nil
	return errors.Join(errs...)
}

// Wait returns when a service has failed or the context ended.
func (f *Fleet) Wait(ctx context.Context) error {
	failed := make(chan error, 1)
	go func() { failed <- f.services.Wait() }()
	select {
	case err := <-failed:
		return err
	case <-ctx.Done():
		return nil
	}
}

func (f *Fleet) path(name string) string { return filepath.Join(f.Dir, name) }

func (f *Fleet) wants(kind string) bool { return slices.Contains(f.Kinds, kind) }

// Targets are the names of the targets that run.
func (f *Fleet) Targets() []string {
	var names []string
	for _, k := range f.Kinds {
		names = append(names, TargetOf(k))
	}
	return names
}

// without handles a server that is missing: an error when it is required, else the kind is left out and said so.
func (f *Fleet) without(kind string, err error) error {
	if f.Require {
		return err
	}
	f.Kinds = slices.DeleteFunc(f.Kinds, func(k string) bool { return k == kind })
	_, err = fmt.Fprintf(f.Progress, "  without %s: %v\n", kind, err)
	return err
}

func (f *Fleet) startNATS(context.Context) error {
	s, err := natstest.Start(f.path("nats"), -1)
	if err != nil {
		return err
	}
	f.NATS = s
	f.onStop(func() error { s.Stop(); return nil })
	return nil
}

func (f *Fleet) startS3(context.Context) error {
	//nolint:contextcheck // it runs until Stop, past the context that starts it
	s, err := s3test.Start(f.path("s3"), "")
	if err != nil {
		return err
	}
	f.S3 = s
	f.onStop(s.Stop)
	return nil
}

func (f *Fleet) startEtcd(ctx context.Context) error {
	if !f.wants(Etcd) {
		return nil
	}
	s, err := etcdtest.Start(ctx, f.path("etcd"))
	if err != nil {
		return err
	}
	f.Etcd = s
	f.onStop(func() error { s.Stop(); return nil })
	return nil
}

// Break stops one target for good, as an outage would, and says which: Consul's if it runs, else etcd's.
func (f *Fleet) Break() (target string, err error) {
	if f.Consul != nil {
		return TargetOf(Consul), f.Consul.Kill()
	}
	f.Etcd.Stop()
	return TargetOf(Etcd), nil
}

func (f *Fleet) startConsul(ctx context.Context) error {
	if !f.wants(Consul) {
		return nil
	}
	if _, err := bintest.Find("consul"); err != nil {
		return f.without(Consul, err)
	}
	c, err := bintest.StartConsul(ctx, f.path("consul"))
	if err != nil {
		return err
	}
	f.Consul = c
	f.onStop(c.Stop)
	return nil
}

func (f *Fleet) startNomad(ctx context.Context) error {
	if !f.wants(Nomad) {
		return nil
	}
	if _, err := bintest.Find("nomad"); err != nil {
		return f.without(Nomad, err)
	}
	n, err := bintest.StartNomad(ctx, f.path("nomad"))
	if err != nil {
		return err
	}
	f.Nomad = n
	f.onStop(n.Stop)
	return nil
}

func (f *Fleet) startChat(context.Context) error {
	//nolint:contextcheck // it runs until Stop, past the context that starts it
	c, err := chattest.Start(chattest.Options{})
	if err != nil {
		return err
	}
	f.Chat = c
	f.onStop(c.Stop)
	return nil
}

func (f *Fleet) startAlertmanager(ctx context.Context) error {
	ports, err := bintest.FreePorts(1)
	if err != nil {
		return err
	}
	f.WebhookAddr = fmt.Sprintf("127.0.0.1:%d", ports[0])
	if _, err = bintest.Find("alertmanager"); err != nil {
		if f.Require {
			return err
		}
		_, err = fmt.Fprintf(f.Progress, "  without Alertmanager, the fleet's own alerts go straight to chat: %v\n", err)
		return err
	}
	a, err := bintest.StartAlertmanager(ctx, f.path("alertmanager"), "http://"+f.WebhookAddr+"/api/v1/alertmanager")
	if err != nil {
		return err
	}
	f.Alertmanager = a
	f.onStop(a.Stop)
	return nil
}

// grace is how long a job may go on after Ctrl-C: a person waits for it.
const grace = 3 * time.Second

// backupOptions are those of the worker. Its drills restore into the same Consul and Nomad that run here as targets.
func (f *Fleet) backupOptions() (o backup.Options, err error) {
	o = backup.Options{ConfigPath: f.ConfigPath, HTTPAddr: "127.0.0.1:0", Logger: f.Logger, ScratchDir: f.path("scratch"), Grace: grace}
	if o.Confine, err = backup.Confine("backup"); err != nil { // the service's name among this program's commands
		return o, err
	}
	if f.Consul != nil {
		if o.ConsulBinary, err = bintest.Find("consul"); err != nil {
			return o, err
		}
	}
	if f.Nomad != nil {
		o.NomadBinary, err = bintest.Find("nomad")
	}
	return o, err
}

// startServices runs the three services and the status page, each as it would run alone.
func (f *Fleet) startServices(ctx context.Context) error {
	worker, err := f.backupOptions()
	if err != nil {
		return err
	}
	ctx, f.cancel = context.WithCancel(context.WithoutCancel(ctx))
	f.services, ctx = errgroup.WithContext(ctx)
	type started struct{ name, addr string }
	up := make(chan started, 4)
	tell := func(name string) func(string) { return func(addr string) { up <- started{name, addr} } }
	f.services.Go(func() error {
		return scheduler.Run(ctx, scheduler.Options{
			ConfigPath: f.ConfigPath, HTTPAddr: "127.0.0.1:0", Logger: f.Logger, Started: tell("scheduler"),
		})
	})
	worker.Started = tell("backup")
	f.services.Go(func() error { return backup.Run(ctx, worker) })
	f.services.Go(func() error {
		return notifier.Run(ctx, notifier.Options{
			ConfigPath: f.ConfigPath, HTTPAddr: "127.0.0.1:0", Logger: f.Logger,
			Started: func(a notifier.Addresses) { up <- started{"notifier", a.Health} },
		})
	})
	f.services.Go(func() error {
		return page.Run(ctx, page.Options{
			ConfigPath: f.ConfigPath, HTTPAddr: "127.0.0.1:0", Listen: "127.0.0.1:0", Logger: f.Logger,
			Started: func(a page.Addresses) { f.PageAddr = a.Page; up <- started{"page", a.Health} },
		})
	})
	for range 4 {
		select {
		case s := <-up:
			f.healthAddrs[s.name] = s.addr
		case <-ctx.Done():
			return f.services.Wait()
		}
	}
	return nil
}
