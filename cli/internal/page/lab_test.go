package page

import (
	"context"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"go.uber.org/goleak"
	"google.golang.org/protobuf/types/known/durationpb"
	"google.golang.org/protobuf/types/known/timestamppb"

	"github.com/lifeboat-fleet/lifeboat/fleet/bus"
	"github.com/lifeboat-fleet/lifeboat/fleet/config"
	"github.com/lifeboat-fleet/lifeboat/fleet/fleettest/natstest"
	lifeboatv1 "github.com/lifeboat-fleet/lifeboat/proto/lifeboat/v1"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m, goleak.IgnoreCurrent()) }

const patience = 20 * time.Second

// lab is a real NATS, somebody who writes to it what services would, and a page.
type lab struct {
	t    *testing.T
	dir  string
	nats *natstest.Server
	bus  *bus.Bus
	Addresses
}

// newLab starts NATS and makes the streams.
func newLab(t *testing.T) *lab {
	t.Helper()
	l := &lab{t: t, dir: t.TempDir()}
	server, err := natstest.Start(t.TempDir(), -1)
	require.NoError(t, err)
	t.Cleanup(server.Stop)
	l.nats = server
	l.bus = l.connect("lifeboat-scheduler@lab")
	require.NoError(t, l.bus.EnsureStreams(t.Context()))
	l.configure("")
	return l
}

func (l *lab) connect(actor string) *bus.Bus {
	l.t.Helper()
	b, err := bus.Connect(bus.Options{
		Config: config.NATS{URL: l.nats.URL()}, Actor: actor, Logger: slog.New(slog.DiscardHandler), Registerer: prometheus.NewRegistry(),
	})
	require.NoError(l.t, err)
	l.t.Cleanup(func() { assert.NoError(l.t, b.Close()) })
	return b
}

// configure writes lifeboat.yaml with targets, which are indented as a list's items are.
func (l *lab) configure(targets string) {
	l.t.Helper()
	if targets != "" {
		targets = "targets:\n" + targets
	}
	text := fmt.Sprintf("nats: {url: %q}\nstore: {bucket: none}\n"+
		"page: {listen: \"127.0.0.1:0\", title: Lifeboat Beijing}\nnotifier: {runbooks: {base_url: \"https://runbooks.example.com\", suffix: .md}}\n%s",
		l.nats.URL(), targets)
	require.NoError(l.t, os.WriteFile(l.config(), []byte(text), 0o600))
}

func (l *lab) config() string { return filepath.Join(l.dir, "lifeboat.yaml") }

// serve runs the page until the test ends or stop is called.
func (l *lab) serve() (stop func()) {
	l.t.Helper()
	ctx, cancel := context.WithCancel(context.WithoutCancel(l.t.Context()))
	up := make(chan Addresses, 1)
	failed := make(chan error, 1)
	var wg sync.WaitGroup
	wg.Go(func() {
		err := Run(ctx, Options{
			ConfigPath: l.config(), HTTPAddr: "127.0.0.1:0", Logger: slog.New(slog.DiscardHandler), Started: func(a Addresses) { up <- a },
		})
		assert.NoError(l.t, err)
		failed <- err
	})
	stop = sync.OnceFunc(func() { cancel(); wg.Wait() })
	l.t.Cleanup(stop)
	select {
	case l.Addresses = <-up:
	case err := <-failed:
		require.NoError(l.t, err)
		l.t.FailNow()
	}
	return stop
}

func (l *lab) url() string { return "http://" + l.Page + "/" }

// get reads a page.
func (l *lab) get(url string, header ...string) string {
	l.t.Helper()
	req, err := http.NewRequestWithContext(l.t.Context(), http.MethodGet, url, http.NoBody)
	require.NoError(l.t, err)
	for i := 0; i+1 < len(header); i += 2 {
		req.Header.Set(header[i], header[i+1])
	}
	resp, err := http.DefaultClient.Do(req)
	require.NoError(l.t, err)
	defer http.DefaultClient.CloseIdleConnections()
	defer func() { assert.NoError(l.t, resp.Body.Close()) }()
	body, err := io.ReadAll(resp.Body)
	require.NoError(l.t, err)
	require.Equal(l.t, http.StatusOK, resp.StatusCode, string(body))
	return string(body)
}

// shows waits until the page has some texts, and gives it.
func (l *lab) shows(url string, texts ...string) string {
	l.t.Helper()
	page := ""
	require.Eventually(l.t, func() bool {
		page = l.get(url)
		for _, text := range texts {
			if !strings.Contains(page, text) {
				return false
			}
		}
		return true
	}, patience, 20*time.Millisecond, "%q", texts)
	return page
}

func (l *lab) emit(e *lifeboatv1.Event) {
	l.t.Helper()
	require.NoError(l.t, l.bus.Emit(l.t.Context(), e))
}

// committed tells of a snapshot whose data is so old.
func (l *lab) committed(target string, age time.Duration) {
	l.t.Helper()
	of := time.Now().Add(-age)
	l.emit(&lifeboatv1.Event{
		Noun: "snapshot", Verb: "committed", Target: target, Time: timestamppb.New(of.Add(42 * time.Second)),
		Detail: &lifeboatv1.Event_Manifest{Manifest: &lifeboatv1.Manifest{
			Id: "20261121T040000.123Z-42", StartedAt: timestamppb.New(of), CommittedAt: timestamppb.New(of.Add(42 * time.Second)),
			Data: &lifeboatv1.Data{Stored: &lifeboatv1.Digest{Bytes: 734003200}},
		}},
	})
}

// proven tells of a drill that passed so long ago.
func (l *lab) proven(target string, age time.Duration) {
	l.t.Helper()
	at := time.Now().Add(-age)
	l.emit(&lifeboatv1.Event{
		Noun: "drill", Verb: "passed", Target: target, Time: timestamppb.New(at),
		Detail: &lifeboatv1.Event_Drill{Drill: &lifeboatv1.DrillReport{
			StartedAt: timestamppb.New(at.Add(-2 * time.Minute)), FinishedAt: timestamppb.New(at), Passed: true,
			Level: lifeboatv1.DrillReport_LEVEL_RESTORED, Rto: durationpb.New(83 * time.Second), DataAge: durationpb.New(time.Hour),
		}},
	})
}

func (l *lab) fail(noun, target, message string, age time.Duration) {
	l.t.Helper()
	l.emit(&lifeboatv1.Event{Noun: noun, Verb: "failed", Target: target, Message: message, Time: timestamppb.New(time.Now().Add(-age))})
}

// run stores a job, and a claim that says that it runs since some time.
func (l *lab) run(work config.Work, target string, since time.Duration) {
	l.t.Helper()
	subject := bus.JobSubject(work, target)
	seq, err := l.bus.Publish(l.t.Context(), bus.Outgoing{Subject: subject, Message: &lifeboatv1.Job{RequestedBy: "scheduler"}})
	require.NoError(l.t, err)
	_, at, err := l.bus.Last(l.t.Context(), bus.StreamJobs, subject, &lifeboatv1.Job{})
	require.NoError(l.t, err)
	if since == 0 {
		return
	}
	_, err = l.bus.PutState(l.t.Context(), bus.State{Outgoing: bus.Outgoing{
		Subject: bus.ClaimSubject(target, work), Message: &lifeboatv1.ClaimState{
			JobId: (&bus.Message{Subject: subject, Seq: seq, Stored: at}).ID(), Attempt: 1, Worker: "lifeboat-backup@node-3:71",
			Phase: lifeboatv1.ClaimState_PHASE_RUNNING, StartedAt: timestamppb.New(time.Now().Add(-since)),
		},
	}})
	require.NoError(l.t, err)
}

// worker announces a worker that takes everything.
func (l *lab) worker(zone string) {
	l.t.Helper()
	ctx, cancel := context.WithCancel(context.WithoutCancel(l.t.Context()))
	b := l.connect("lifeboat-backup@node-3:71")
	var wg sync.WaitGroup
	wg.Go(func() {
		assert.NoError(l.t, b.Announce(ctx, bus.Service{
			Name: "lifeboat-backup", Version: "1.0.0", Metadata: map[string]string{"actor": b.Actor(), "zone": zone, "roles": "snapshot,verify,drill,prune"},
		}))
	})
	l.t.Cleanup(func() { cancel(); wg.Wait() })
}

// deliver tells how a delivery ended.
func (l *lab) deliver(verb, receiver, alertname, target string, lag, age time.Duration) {
	l.t.Helper()
	l.emit(&lifeboatv1.Event{
		Noun: "alert", Verb: verb, Target: target, Time: timestamppb.New(time.Now().Add(-age)), Attributes: map[string]string{
			"receiver": receiver, "alertname": alertname, "alerts": "1", "attempts": "1", "origin": "alertmanager",
			"lag_seconds": fmt.Sprintf("%.1f", lag.Seconds()), "delivery_id": alertname + receiver,
		},
	})
}

// sample is a fleet of which some is red, some is to be watched, and most is well.
func sample(l *lab) {
	l.t.Helper()
	l.configure(`  - {name: etcd-prod, etcd: {endpoints: ["http://10.0.0.1:2379"]}, schedule: "0 */6 * * *", time_zone: Asia/Shanghai, rpo: 12h, drill: {schedule: "0 4 * * 0"}}
  - {name: consul-kv, consul: {address: "http://10.0.0.2:8500"}, schedule: "@hourly", rpo: 3h, drill: {schedule: "0 5 * * 0"}}
  - {name: nomad-jobs, nomad: {address: "http://10.0.0.3:4646"}, schedule: "@hourly", rpo: 4h, drill: {schedule: "0 6 * * 0"}}
  - {name: etcd-seoul, etcd: {endpoints: ["http://10.1.0.1:2379"]}, schedule: "30 * * * *", rpo: 2h, zone: seoul}
  - {name: etcd-us-west, etcd: {endpoints: ["http://10.2.0.1:2379"]}, schedule: "15 * * * *", rpo: 6h}
`)
	l.worker("seoul")
	l.committed("etcd-prod", 14*time.Hour+20*time.Minute)
	l.fail("snapshot", "etcd-prod", "reading from http://10.0.0.1:2379: no member has a leader; 3 of 3 endpoints answered", 2*time.Hour)
	l.proven("etcd-prod", 5*24*time.Hour)
	l.committed("consul-kv", 40*time.Minute)
	l.proven("consul-kv", 20*time.Hour)
	l.fail("drill", "consul-kv", "compare: the restored copy has 1204 keys, the snapshot says 1205", 3*time.Hour)
	l.committed("nomad-jobs", 20*time.Minute)
	l.proven("nomad-jobs", 6*time.Hour)
	l.committed("etcd-seoul", 105*time.Minute)
	l.proven("etcd-seoul", 30*time.Hour)
	l.committed("etcd-us-west", 50*time.Minute)
	l.run(config.WorkSnapshot, "nomad-jobs", 12*time.Second)
	l.run(config.WorkDrill, "etcd-us-west", 70*time.Second)
	l.deliver("delivered", "ops-slack", "LifeboatRPOExceeded", "etcd-prod", 800*time.Millisecond, 2*time.Hour)
	l.deliver("delivered", "ops-dingtalk", "LifeboatRPOExceeded", "etcd-prod", 3*time.Minute, 110*time.Minute)
	l.deliver("dead", "web-slack", "CheckoutLatencyHigh", "", 26*time.Hour, 30*time.Minute)
	require.NoError(l.t, l.bus.DeadLetter(l.t.Context(), "channel_not_found", &lifeboatv1.DeadLetter{
		Id: "01KAJ2ZJ5Q1J5V7K4E7X", Subject: "lifeboat.alert.delivery.web-slack", Attempts: 7, Reason: "Slack says channel_not_found: the channel is gone",
		Time: timestamppb.New(time.Now().Add(-30 * time.Minute)),
	}))
}

func discard() *slog.Logger { return slog.New(slog.DiscardHandler) }

func newRegistry() *prometheus.Registry { return prometheus.NewRegistry() }

// serveOn serves until the context ends, and gives the address.
func serveOn(ctx context.Context, t *testing.T, handler http.Handler) string {
	t.Helper()
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	require.NoError(t, err)
	srv := &http.Server{
		Handler: handler, ReadHeaderTimeout: time.Second, BaseContext: func(net.Listener) context.Context { return ctx },
	}
	var wg sync.WaitGroup
	wg.Go(func() { assert.ErrorIs(t, srv.Serve(ln), http.ErrServerClosed) })
	t.Cleanup(func() { assert.NoError(t, srv.Close()); wg.Wait() })
	return ln.Addr().String()
}

// processor is how much time of it this process has used.
func processor(t *testing.T) time.Duration {
	t.Helper()
	var u syscall.Rusage
	require.NoError(t, syscall.Getrusage(syscall.RUSAGE_SELF, &u))
	return time.Duration(u.Utime.Nano() + u.Stime.Nano())
}
