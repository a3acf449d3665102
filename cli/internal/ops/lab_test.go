package ops

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/spf13/cobra"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"go.uber.org/goleak"

	"github.com/lifeboat-fleet/lifeboat/fleet/bus"
	"github.com/lifeboat-fleet/lifeboat/fleet/config"
	"github.com/lifeboat-fleet/lifeboat/fleet/fleettest/etcdtest"
	"github.com/lifeboat-fleet/lifeboat/fleet/fleettest/natstest"
	"github.com/lifeboat-fleet/lifeboat/fleet/fleettest/s3test"
	"github.com/lifeboat-fleet/lifeboat/fleet/service"
	lifeboatv1 "github.com/lifeboat-fleet/lifeboat/proto/lifeboat/v1"
	backup "github.com/lifeboat-fleet/lifeboat/services/backup/app"
	scheduler "github.com/lifeboat-fleet/lifeboat/services/scheduler/app"
)

func TestMain(m *testing.M) {
	// The embedded S3 server keeps a clock for as long as the process runs, and its pools for some seconds.
	goleak.VerifyTestMain(m, goleak.IgnoreCurrent(), goleak.IgnoreAnyFunction("github.com/valyala/fasthttp.updateServerDate.func1"),
		goleak.IgnoreAnyFunction("github.com/valyala/fasthttp.(*workerPool).Start.func2"))
}

const (
	etcdTarget = "etcd-prod"
	// hungTarget is a Consul whose network takes everything and answers nothing: its snapshot runs until it is cancelled.
	hungTarget = "consul-hung"
	patience   = 60 * time.Second
)

// lab is a fleet on real servers: NATS always, and etcd, S3 and workers for those who start them.
type lab struct {
	t    *testing.T
	dir  string
	nats *natstest.Server
	// settings are the "nats" of lifeboat.yaml.
	settings string
	bus      *bus.Bus
	s3       *s3test.Server
	etcd     string
	hung     string
}

// newLab starts NATS and makes the streams.
func newLab(t *testing.T) *lab {
	t.Helper()
	server := natstest.New(t)
	l := labOn(t, config.NATS{URL: server.URL()}, fmt.Sprintf("{url: %q}", server.URL()))
	l.nats = server
	return l
}

// labOn is a lab on a server that the test has started; cfg is how the test itself connects.
func labOn(t *testing.T, cfg config.NATS, settings string) *lab {
	t.Helper()
	l := &lab{t: t, dir: t.TempDir(), settings: settings, etcd: "http://127.0.0.1:1"}
	b, err := bus.Connect(bus.Options{
		Config: cfg, Actor: "lifeboat-scheduler@lab", Logger: slog.New(slog.DiscardHandler), Registerer: prometheus.NewRegistry(),
	})
	require.NoError(t, err)
	t.Cleanup(func() { assert.NoError(t, b.Close()) })
	require.NoError(t, b.EnsureStreams(t.Context()))
	l.bus = b
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	require.NoError(t, err)
	t.Cleanup(func() { assert.NoError(t, ln.Close()) })
	l.hung = "http://" + ln.Addr().String()
	l.configure("")
	return l
}

// withServers adds S3 and etcd.
func (l *lab) withServers() *lab {
	l.t.Helper()
	l.t.Chdir(".") // the embedded S3 server goes to its data's folder, and the test comes back when it ends
	l.s3 = s3test.New(l.t)
	l.etcd = etcdtest.New(l.t, l.t.TempDir()).Endpoint
	l.configure("")
	return l
}

// configure writes lifeboat.yaml; more are further lines of etcd-prod.
func (l *lab) configure(more string) {
	l.t.Helper()
	store := "{bucket: none}"
	if l.s3 != nil {
		c := l.s3.Config
		store = fmt.Sprintf("{bucket: %s, prefix: p, endpoint: %q, region: %s, path_style: true, access_key_id_file: %s, secret_access_key_file: %s}",
			c.Bucket, c.Endpoint, c.Region, c.AccessKeyIDFile, c.SecretAccessKeyFile)
	}
	l.write("lifeboat.yaml", fmt.Sprintf("nats: %s\nstore: %s\ntargets:\n  - name: %s\n    etcd: {endpoints: [%q]}\n%s  - name: %s\n    consul: {address: %q}\n",
		l.settings, store, etcdTarget, l.etcd, more, hungTarget, l.hung))
}

func (l *lab) write(name, content string) {
	l.t.Helper()
	require.NoError(l.t, os.WriteFile(filepath.Join(l.dir, name), []byte(content), 0o600))
}

// worker runs a backup service until the test ends.
func (l *lab) worker(o backup.Options) {
	l.t.Helper()
	o.ConfigPath = filepath.Join(l.dir, "lifeboat.yaml")
	o.HTTPAddr, o.ScratchDir, o.Logger = "127.0.0.1:0", l.t.TempDir(), slog.New(slog.DiscardHandler)
	l.service(func(ctx context.Context) error { return backup.Run(ctx, o) })
}

// scheduler runs a scheduler until the test ends or stop is called.
func (l *lab) scheduler() (stop func()) {
	l.t.Helper()
	return l.service(func(ctx context.Context) error {
		return scheduler.Run(ctx, scheduler.Options{
			ConfigPath: filepath.Join(l.dir, "lifeboat.yaml"), HTTPAddr: "127.0.0.1:0", Logger: slog.New(slog.DiscardHandler),
		})
	})
}

func (l *lab) service(run func(context.Context) error) (stop func()) {
	l.t.Helper()
	ctx, cancel := context.WithCancel(context.WithoutCancel(l.t.Context()))
	var wg sync.WaitGroup
	wg.Go(func() { assert.NoError(l.t, run(ctx)) })
	stop = sync.OnceFunc(func() { cancel(); wg.Wait() })
	l.t.Cleanup(stop)
	return stop
}

// root is what package main mounts, as far as the tests need it.
func root() *cobra.Command {
	cmd := &cobra.Command{Use: "lifeboat"}
	cmd.AddCommand(backup.StatusCommand(FleetStatus), backup.SnapshotCommand(), WhyCommand(), JobsCommand(), DeadCommand(),
		service.Group(&cobra.Command{Use: "notify"}, NotifyCommands()...))
	return cmd
}

// lifeboat runs a command and gives what it wrote and its exit code.
func (l *lab) lifeboat(args ...string) (stdout, stderr string, code int) {
	l.t.Helper()
	var out, errs bytes.Buffer
	cmd := root()
	cmd.SetOut(&out)
	cmd.SetErr(&errs)
	cmd.SetIn(strings.NewReader(""))
	if args[0] != "__complete" {
		args = append(args, "--config", filepath.Join(l.dir, "lifeboat.yaml"))
	}
	cmd.SetArgs(args)
	code = service.Main(cmd)
	l.t.Logf("lifeboat %s: exit %d\n%s%s", strings.Join(args, " "), code, out.String(), errs.String())
	return out.String(), errs.String(), code
}

// ok runs a command that must end well.
func (l *lab) ok(args ...string) string {
	l.t.Helper()
	out, _, code := l.lifeboat(args...)
	require.Zero(l.t, code)
	return out
}

// json runs a command that must end well and reads what it printed.
func (l *lab) json(into any, args ...string) {
	l.t.Helper()
	require.NoError(l.t, json.Unmarshal([]byte(l.ok(append(args, "--output", "json")...)), into))
}

// why is the page about a target.
func (l *lab) why(args ...string) page {
	l.t.Helper()
	var p page
	l.json(&p, append([]string{"why"}, args...)...)
	return p
}

// publish stores a job and gives its id.
func (l *lab) publish(work config.Work, target string, job *lifeboatv1.Job) string {
	l.t.Helper()
	subject := bus.JobSubject(work, target)
	seq, err := l.bus.Publish(l.t.Context(), bus.Outgoing{Subject: subject, Message: job})
	require.NoError(l.t, err)
	have, at, err := l.bus.Last(l.t.Context(), bus.StreamJobs, subject, &lifeboatv1.Job{})
	require.NoError(l.t, err)
	require.Equal(l.t, seq, have)
	return (&bus.Message{Subject: subject, Seq: seq, Stored: at}).ID()
}

// event waits for an event and gives it.
func (l *lab) event(noun, verb, target string) *lifeboatv1.Event {
	l.t.Helper()
	e := &lifeboatv1.Event{}
	require.EventuallyWithT(l.t, func(c *assert.CollectT) {
		seq, _, err := l.bus.Last(l.t.Context(), bus.StreamEvents, bus.EventSubject(noun, verb, target), e)
		assert.NoError(c, err)
		assert.NotZero(c, seq, "%s.%s.%s", noun, verb, target)
	}, patience, 50*time.Millisecond)
	return e
}

// state writes a schedule's state, as a scheduler does.
func (l *lab) state(target, schedule string, s *lifeboatv1.ScheduleState) {
	l.t.Helper()
	subject := bus.ScheduleSubject(target, schedule)
	seq, _, err := l.bus.Last(l.t.Context(), bus.StreamJobs, subject, &lifeboatv1.ScheduleState{})
	require.NoError(l.t, err)
	_, err = l.bus.PutState(l.t.Context(), bus.State{Outgoing: bus.Outgoing{Subject: subject, Message: s}, Expect: seq})
	require.NoError(l.t, err)
}

// texts are the findings' sentences.
func texts(p page) string {
	var all []string
	for _, f := range p.Findings {
		all = append(all, f.Level+": "+f.Text+" | "+f.Do)
	}
	return strings.Join(all, "\n")
}

// as connects to a server of deploy/nats in a role.
func as(t *testing.T, url, seed, role string) *bus.Bus {
	t.Helper()
	b, err := bus.Connect(bus.Options{
		Config: config.NATS{URL: url, NkeyFile: config.SecretFile(seed), InboxPrefix: "_INBOX_{role}"}, Actor: "lifeboat-backup@lab", Role: role,
		Logger: slog.New(slog.DiscardHandler), Registerer: prometheus.NewRegistry(),
	})
	require.NoError(t, err)
	t.Cleanup(func() { assert.NoError(t, b.Close()) })
	return b
}
