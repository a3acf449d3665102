//go:build chaos

package chaos

import (
	"context"
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"
	"github.com/stretchr/testify/require"
	clientv3 "go.etcd.io/etcd/client/v3"

	"github.com/lifeboat-fleet/lifeboat/fleet/config"
	"github.com/lifeboat-fleet/lifeboat/fleet/fleettest/bintest"
	"github.com/lifeboat-fleet/lifeboat/fleet/fleettest/s3test"
	lifeboatv1 "github.com/lifeboat-fleet/lifeboat/proto/lifeboat/v1"
)

const (
	servers, schedulers, workers = 3, 3, 3

	targets = 20
	// ackWait is short, so that jobs of dead workers are done within the run.
	ackWait = 5 * time.Second

	streamJobs, streamEvents, streamDead = "LIFEBOAT_JOBS", "LIFEBOAT_EVENTS", "LIFEBOAT_DEAD"
)

// fleet is the servers and services under test.
type fleet struct {
	t       *testing.T
	dir     string
	nats    []*bintest.NATS
	s3      *s3test.Server
	proxy   *s3test.Proxy
	etcd    *bintest.Etcd
	config  string
	targets []config.Target
	nc      *nats.Conn
	js      jetstream.JetStream

	schedulers, workers []*service
	// ended is when the schedulers were asked to stop, after all faults.
	ended time.Time
}

// start starts the servers, builds the services' programs and writes their configuration. No service runs yet.
func start(t *testing.T) *fleet {
	t.Helper()
	f := &fleet{t: t, dir: os.Getenv("CHAOS_DIR")}
	if f.dir == "" {
		f.dir = t.TempDir()
	}
	require.NoError(t, os.MkdirAll(f.dir, 0o700))
	var err error
	f.nats, err = bintest.StartNATSCluster(t.Context(), f.path("nats"), servers, bintest.PlainCluster(""))
	t.Cleanup(func() {
		for _, n := range f.nats {
			_ = n.Kill() // it may be stopped or dead, as a fault left it
		}
	})
	require.NoError(t, err)
	f.etcd, err = bintest.StartEtcd(t.Context(), f.path("etcd"))
	require.NoError(t, err)
	t.Cleanup(func() { _ = f.etcd.Kill() })
	f.s3 = s3test.New(t)
	f.proxy = s3test.NewProxy(t, f.s3)
	f.configure()
	f.connect()
	build := func(folder, name string, flags ...string) string {
		binary := f.path(name)
		cmd := exec.CommandContext(t.Context(), "go", append(append([]string{"build"}, flags...), "-o", binary, ".")...)
		cmd.Dir = filepath.Join(os.Getenv("PWD"), "..", "..", "services", folder)
		out, err := cmd.CombinedOutput()
		require.NoError(t, err, "building %s: %s", name, out)
		return binary
	}
	scheduler := build("scheduler", "lifeboat-scheduler", "-tags", "chaos")
	worker := build("backup", "lifeboat-backup")
	for i := range schedulers {
		clock := f.path(fmt.Sprintf("clock-%d", i+1))
		f.schedulers = append(f.schedulers, f.service(scheduler, fmt.Sprintf("scheduler-%d", i+1), clock))
	}
	for i := range workers {
		f.workers = append(f.workers, f.service(worker, fmt.Sprintf("worker-%d", i+1), "",
			"--roles", "snapshot,prune", "--ack-wait", ackWait.String(), "--concurrency", "4"))
	}
	return f
}

func (f *fleet) path(name string) string { return filepath.Join(f.dir, name) }

// urls are the addresses of all NATS servers.
func (f *fleet) urls() string {
	urls := make([]string, len(f.nats))
	for i, n := range f.nats {
		urls[i] = n.URL
	}
	return strings.Join(urls, ",")
}

// configure writes lifeboat.yaml: targets that are snapshot every two or three seconds, with every policy for ticks that come too
// late or too soon, and pruned to a few.
func (f *fleet) configure() {
	f.t.Helper()
	var b strings.Builder
	fmt.Fprintf(&b, `nats: {url: %q, replicas: %d}
store: {bucket: %s, endpoint: %q, path_style: true, access_key_id_file: %q, secret_access_key_file: %q}
workers: {fleet_concurrency: {snapshot: 8, prune: 4}}
targets:
`, f.urls(), servers, f.s3.Config.Bucket, f.proxy.Endpoint, f.s3.Config.AccessKeyIDFile, f.s3.Config.SecretAccessKeyFile)
	catchUp := []string{"latest", "all", "none"}
	for i := range targets {
		fmt.Fprintf(&b, "  - {name: t%02d, etcd: {endpoints: [%q]}, schedule: '@every %ds', catch_up: %s, timeout: 1m, min_kib_per_second: -1,\n",
			i, f.etcd.Endpoint, 2+i%2, catchUp[i%3])
		if i%4 == 1 {
			b.WriteString("     overlap: queue,\n")
		}
		if i%5 == 2 {
			b.WriteString("     splay: 3s,\n")
		}
		fmt.Fprintf(&b, "     retention: {last: %d}, prune: {schedule: '@every %ds'}}\n", 3+i%3, 11+i%7)
	}
	f.config = f.path("lifeboat.yaml")
	require.NoError(f.t, os.WriteFile(f.config, []byte(b.String()), 0o600))
	c, err := config.Load(f.config)
	require.NoError(f.t, err)
	f.targets = c.Targets
}

// connect makes the test's own connection, which notices quickly that a server does not answer any more.
func (f *fleet) connect() {
	f.t.Helper()
	var err error
	f.nc, err = nats.Connect(f.urls(), nats.MaxReconnects(-1), nats.ReconnectWait(100*time.Millisecond), nats.Timeout(time.Second),
		nats.PingInterval(time.Second), nats.MaxPingsOutstanding(2))
	require.NoError(f.t, err)
	f.t.Cleanup(f.nc.Close)
	f.js, err = jetstream.New(f.nc, jetstream.WithDefaultTimeout(3*time.Second))
	require.NoError(f.t, err)
}

// fill gives etcd something to hold, and changes it until the test ends: a source that has not changed is not stored again.
func (f *fleet) fill(ctx context.Context) error {
	c, err := clientv3.New(clientv3.Config{Endpoints: []string{f.etcd.Endpoint}})
	if err != nil {
		return err
	}
	defer c.Close()
	ticker := time.NewTicker(700 * time.Millisecond)
	defer ticker.Stop()
	for i := 0; ; i++ {
		if _, err := c.Put(ctx, fmt.Sprintf("/registry/pods/app-%d", i%50), strings.Repeat("x", 100+i%900)); err != nil && ctx.Err() == nil {
			return err
		}
		if i < 50 {
			continue
		}
		select {
		case <-ctx.Done():
			return nil
		case <-ticker.C:
		}
	}
}

// stream looks a stream up, from whichever server answers.
func (f *fleet) stream(ctx context.Context, name string) (jetstream.Stream, error) {
	ctx, cancel := context.WithTimeout(ctx, 3*time.Second)
	defer cancel()
	return f.js.Stream(ctx, name)
}

// healthy says what is not yet as it should be of the cluster: every server well, and every stream with a leader and two current
// followers.
func (f *fleet) healthy(ctx context.Context) error {
	for _, n := range f.nats {
		probe, cancel := context.WithTimeout(ctx, 2*time.Second)
		err := n.WaitHTTP(probe, n.Monitor+"/healthz", nil)
		cancel()
		if err != nil {
			return fmt.Errorf("%s: %w", n.Name, err)
		}
	}
	for _, name := range []string{streamJobs, streamEvents, streamDead} {
		s, err := f.stream(ctx, name)
		if err != nil {
			return fmt.Errorf("%s: %w", name, err)
		}
		c := s.CachedInfo().Cluster
		if c == nil || c.Leader == "" || len(c.Replicas) != servers-1 {
			return fmt.Errorf("%s has no leader or too few followers: %+v", name, c)
		}
		for _, r := range c.Replicas {
			// Lag is what a follower has not applied yet; while messages are written it is never zero for long.
			if !r.Current || r.Offline || r.Lag > 100 {
				return fmt.Errorf("%s: %s is behind: %+v", name, r.Name, *r)
			}
		}
	}
	return nil
}

// leader is the server that leads the stream of jobs.
func (f *fleet) leader(ctx context.Context) (int, error) {
	s, err := f.stream(ctx, streamJobs)
	if err != nil {
		return 0, err
	}
	i := slices.IndexFunc(f.nats, func(n *bintest.NATS) bool { return n.Name == s.CachedInfo().Cluster.Leader })
	if i < 0 {
		return 0, fmt.Errorf("%s has no leader", streamJobs)
	}
	return i, nil
}

// last reads the newest message of a subject; nil when there is none.
func (f *fleet) last(ctx context.Context, stream jetstream.Stream, subject string) (*lifeboatv1.ScheduleState, error) {
	m, err := stream.GetLastMsgForSubject(ctx, subject)
	if err != nil {
		return nil, err
	}
	s := &lifeboatv1.ScheduleState{}
	return s, decode(m.Data, s)
}

// service is one of our programs, as a process that faults end and start again.
type service struct {
	name, binary, clock string
	args                []string
	log                 string

	mu   sync.Mutex
	proc *bintest.Process
}

func (f *fleet) service(binary, name, clock string, args ...string) *service {
	s := &service{
		name: name, binary: binary, clock: clock, log: f.path(name + ".log"),
		args: append([]string{"--config", f.config, "--http-addr", "127.0.0.1:0"}, args...),
	}
	f.t.Cleanup(func() { _ = s.kill() })
	return s
}

func (s *service) start() (err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.proc, err = bintest.Start(s.binary, s.log, []string{"LIFEBOAT_CHAOS_CLOCK_FILE=" + s.clock}, s.args...)
	return err
}

func (s *service) signal(sig syscall.Signal) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.proc.Signal(sig)
}

func (s *service) kill() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.proc == nil {
		return nil
	}
	return s.proc.Kill()
}

// terminate asks it to end, and gives it time for what it has in hand.
func (s *service) terminate(ctx context.Context) error {
	if err := s.signal(syscall.SIGTERM); err != nil {
		return err
	}
	select {
	case <-s.proc.Done():
		return nil
	case <-ctx.Done():
		return fmt.Errorf("%s did not end: %w", s.name, ctx.Err())
	}
}

// step sets the service's clock wrong by an offset.
func (s *service) step(offset time.Duration) error {
	partial := s.clock + ".new"
	if err := os.WriteFile(partial, fmt.Appendf(nil, "%d", offset.Milliseconds()), 0o600); err != nil {
		return err
	}
	return os.Rename(partial, s.clock)
}

// seconds is a random time between two numbers of seconds.
func seconds(r *rand.Rand, least, most float64) time.Duration {
	return time.Duration((least + r.Float64()*(most-least)) * float64(time.Second))
}

// rest waits, and is false when the context ended first.
func rest(ctx context.Context, d time.Duration) bool {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-ctx.Done():
		return false
	case <-timer.C:
		return true
	}
}
