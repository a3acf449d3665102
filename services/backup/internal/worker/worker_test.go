package worker_test

import (
	"bytes"
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"filippo.io/age"
	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"
	"github.com/prometheus/client_golang/prometheus"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/lifeboat-fleet/lifeboat/fleet/bus"
	"github.com/lifeboat-fleet/lifeboat/fleet/config"
	"github.com/lifeboat-fleet/lifeboat/fleet/fleettest/bintest"
	"github.com/lifeboat-fleet/lifeboat/fleet/fleettest/natstest"
	"github.com/lifeboat-fleet/lifeboat/fleet/fleettest/s3test"
	lifeboatv1 "github.com/lifeboat-fleet/lifeboat/proto/lifeboat/v1"
	"github.com/lifeboat-fleet/lifeboat/services/backup/internal/catalog"
	"github.com/lifeboat-fleet/lifeboat/services/backup/internal/source"
	"github.com/lifeboat-fleet/lifeboat/services/backup/internal/store"
	"github.com/lifeboat-fleet/lifeboat/services/backup/internal/store/s3"
	"github.com/lifeboat-fleet/lifeboat/services/backup/internal/worker"
)

const target = "consul-kv"

// export is what the source sends: two keys as `consul kv export` writes them.
const export = `[{"key":"a","flags":0,"value":"MQ=="},{"key":"b","flags":42,"value":"Mg=="}]`

// fakeSource sends a text. Its real siblings have tests of their own against real servers.
type fakeSource struct {
	open func(context.Context) (io.Reader, error)
}

func (fakeSource) Format() string { return "json" }

func (f fakeSource) Open(ctx context.Context) (source.Stream, error) {
	r, err := f.open(ctx)
	if err != nil {
		return nil, err
	}
	return &fakeStream{r}, nil
}

type fakeStream struct{ io.Reader }

func (*fakeStream) Close() error { return nil }

func (*fakeStream) Info(context.Context) (*lifeboatv1.SourceInfo, error) {
	return &lifeboatv1.SourceInfo{Version: "1.22.5", Revision: 17, Counts: map[string]int64{"keys": 2}}, nil
}

// fleet is NATS, a bucket and what a worker needs besides.
type fleet struct {
	t       *testing.T
	nats    *natstest.Server
	s3      *s3test.Server
	objects *s3.Store
	catalog *catalog.Catalog
	config  atomic.Pointer[config.Config]
	events  *bus.Bus
	nc      *nats.Conn
	// hooks of the worker under test
	source  func(context.Context) (io.Reader, error)
	sources []worker.Source // instead of source
	// sourceOf, if set, is asked instead of both.
	sourceOf func(ctx context.Context, target string) (io.Reader, error)
	wrapped  worker.Objects
	copy     *worker.Copy
	pace     time.Duration
	stop     func() // ends the worker that was started last
	consul   string // the program that drills restore into
	// of the worker that was started last
	scratch  string
	registry *prometheus.Registry
}

func newFleet(t *testing.T, opts ...s3test.Option) *fleet {
	t.Helper()
	f := &fleet{t: t, nats: natstest.New(t), s3: s3test.New(t, opts...)}
	var err error
	f.objects, err = s3.New(t.Context(), f.s3.Config)
	require.NoError(t, err)
	f.wrapped = f.objects
	f.consul, err = bintest.Find("consul")
	require.NoError(t, err)
	f.catalog = catalog.New(f.objects, "p")
	f.config.Store(&config.Config{Targets: []config.Target{{
		Name: target, Consul: &config.Consul{Address: "http://127.0.0.1:1"}, Timeout: time.Minute, MinKiBPerSecond: -1,
		Retention: config.Retention{ShrinkGuard: 40}, Prune: config.Prune{OrphanAge: time.Hour},
	}}})
	f.source = func(context.Context) (io.Reader, error) { return strings.NewReader(export), nil }
	f.events = f.connect("test")
	f.nc, err = nats.Connect(f.nats.URL())
	require.NoError(t, err)
	t.Cleanup(f.nc.Close)
	require.NoError(t, f.events.EnsureStreams(t.Context()))
	return f
}

func (f *fleet) connect(actor string) *bus.Bus {
	f.t.Helper()
	b, err := bus.Connect(bus.Options{
		Config: config.NATS{URL: f.nats.URL()}, Actor: actor, Logger: slog.New(slog.NewTextHandler(f.t.Output(), nil)),
		Registerer: prometheus.NewRegistry(),
	})
	require.NoError(f.t, err)
	f.t.Cleanup(func() { assert.NoError(f.t, b.Close()) })
	return b
}

// work runs a worker for all kinds of work until the test ends.
func (f *fleet) work() {
	f.t.Helper()
	f.stop = f.hire(hand{name: "worker"})
}

// hand is a worker to hire. Zero fields: one job at a time of every kind, handed back at once when it is fired.
type hand struct {
	name, zone  string
	concurrency int
	works       []config.Work
	patience    time.Duration
	// worker is told the one that was made.
	worker **worker.Worker
}

// hire runs a worker until fire or the end of the test.
func (f *fleet) hire(h hand) (fire func()) {
	f.t.Helper()
	b := f.connect(h.name)
	f.scratch, f.registry = f.t.TempDir(), prometheus.NewRegistry()
	w := worker.New(worker.Options{
		Config: f.config.Load,
		NewSource: func(t config.Target) ([]worker.Source, error) {
			if f.sourceOf != nil {
				return []worker.Source{fakeSource{func(ctx context.Context) (io.Reader, error) { return f.sourceOf(ctx, t.Name) }}}, nil
			}
			if f.sources != nil {
				return f.sources, nil
			}
			return []worker.Source{fakeSource{f.source}}, nil
		},
		Copy: f.copy, PaceWindow: f.pace, Remover: f.objects, Zone: h.zone, Patience: cmp.Or(h.patience, 500*time.Millisecond),
		Objects: f.wrapped, Catalog: f.catalog, Bus: b, Logger: slog.New(slog.NewTextHandler(f.t.Output(), nil)),
		Capabilities: f.probeOnce(),
		Registerer:   f.registry, ScratchDir: f.scratch, Version: "test", Clock: time.Now,
		Drill: worker.DrillOptions{ConsulBinary: f.consul},
	})
	if h.worker != nil {
		*h.worker = w
	}
	if h.works == nil {
		h.works = config.Works()
	}
	ctx, cancel := context.WithCancel(f.t.Context())
	var wg sync.WaitGroup
	for _, role := range h.works {
		wg.Go(func() {
			assert.NoError(f.t, b.Consume(ctx, bus.Consumer{
				Stream: bus.StreamJobs, Durable: "backup-" + string(role), Filter: bus.AllJobs(role), AckWait: 2 * time.Second,
				MaxAttempts: 3, Backoff: func(int64) time.Duration { return 50 * time.Millisecond }, CountsByClaim: true,
				Concurrency: h.concurrency, Handle: w.Handler(role), OnDead: w.OnDead,
			}))
		})
	}
	fire = func() { cancel(); wg.Wait() }
	f.t.Cleanup(fire)
	return fire
}

// probeOnce probes the store as the service does.
func (f *fleet) probeOnce() func(context.Context) (store.Capabilities, error) {
	caps, err := f.objects.Probe(f.t.Context(), "p")
	return func(context.Context) (store.Capabilities, error) { return caps, err }
}

func (f *fleet) publish(work config.Work, target, payload string) {
	f.t.Helper()
	js, err := jetstream.New(f.nc)
	require.NoError(f.t, err)
	require.Eventually(f.t, func() bool {
		_, err = js.Publish(f.t.Context(), bus.JobSubject(work, target), []byte(payload))
		return err == nil
	}, time.Minute, 20*time.Millisecond, "a job may still be there: %v", err)
}

// event waits for the newest event of a subject.
func (f *fleet) event(noun, verb, target string) *lifeboatv1.Event {
	f.t.Helper()
	e := &lifeboatv1.Event{}
	require.Eventually(f.t, func() bool {
		seq, _, err := f.events.Last(f.t.Context(), bus.StreamEvents, bus.EventSubject(noun, verb, target), e)
		return err == nil && seq > 0
	}, time.Minute, 20*time.Millisecond, "no event %s.%s.%s", noun, verb, target)
	return e
}

// count is how many events of a kind there are for the target.
func (f *fleet) count(noun, verb string) int {
	f.t.Helper()
	js, err := jetstream.New(f.nc)
	require.NoError(f.t, err)
	stream, err := js.Stream(f.t.Context(), bus.StreamEvents)
	require.NoError(f.t, err)
	subject := bus.EventSubject(noun, verb, target)
	info, err := stream.Info(f.t.Context(), jetstream.WithSubjectFilter(subject))
	require.NoError(f.t, err)
	return int(info.State.Subjects[subject])
}

// target changes the target's configuration before the worker starts.
func (f *fleet) target(change func(*config.Target)) {
	change(&f.config.Load().Targets[0])
}

// behind has the worker reach S3 through a proxy.
func (f *fleet) behind(p *s3test.Proxy) *s3test.Proxy {
	f.t.Helper()
	var err error
	f.objects, err = s3.New(f.t.Context(), p.Config)
	require.NoError(f.t, err)
	f.wrapped, f.catalog = f.objects, catalog.New(f.objects, "p")
	return p
}

func (f *fleet) snapshots() []catalog.Snapshot {
	f.t.Helper()
	all, err := f.catalog.List(f.t.Context(), target)
	require.NoError(f.t, err)
	return all
}

func (f *fleet) deadLetter(subject string) *lifeboatv1.DeadLetter {
	f.t.Helper()
	d := &lifeboatv1.DeadLetter{}
	require.Eventually(f.t, func() bool {
		seq, _, err := f.events.Last(f.t.Context(), bus.StreamDead, subject, d)
		return err == nil && seq > 0
	}, time.Minute, 20*time.Millisecond, "no dead letter on %s", subject)
	return d
}

func TestASnapshotFromJobToEvent(t *testing.T) {
	f := newFleet(t)
	identity, err := age.GenerateX25519Identity()
	require.NoError(t, err)
	path := filepath.Join(t.TempDir(), "identity")
	require.NoError(t, os.WriteFile(path, []byte(identity.String()), 0o600))
	f.config.Load().Encryption = config.Encryption{
		Recipients: []string{identity.Recipient().String()}, IdentityFile: config.SecretFile(path),
	}
	f.work()
	f.publish(config.WorkSnapshot, target, "")
	e := f.event("snapshot", "committed", target)
	assert.Equal(t, "by hand", e.GetRequestedBy())

	all := f.snapshots()
	require.Len(t, all, 1)
	m := all[0].Manifest
	assert.Equal(t, e.GetSnapshotId(), m.GetId())
	assert.Equal(t, lifeboatv1.Kind_KIND_CONSUL, m.GetKind())
	assert.Equal(t, "p/consul-kv/snapshots/"+m.GetId()+"/data.json.zst.age", m.GetData().GetKey())
	assert.Equal(t, int64(len(export)), m.GetData().GetRaw().GetBytes())
	assert.Equal(t, "decoded", m.GetVerification().GetMethod())
	assert.True(t, m.GetStore().GetConditionalWrites())
	assert.Equal(t, int64(17), m.GetSource().GetRevision())
	commands := strings.Join(m.GetRestoreCommands(), "\n")
	assert.Contains(t, commands, "age -d")
	assert.Contains(t, commands, "consul kv import")
	assert.NotContains(t, commands, identity.String())

	r, err := worker.OpenDecoded(t.Context(), f.objects, m, []age.Identity{identity})
	require.NoError(t, err)
	got, err := io.ReadAll(r)
	require.NoError(t, err)
	require.NoError(t, r.Close())
	assert.True(t, bytes.Equal([]byte(export), got), "byte for byte what the source sent")
}

func TestAnUnknownTargetIsADeadLetterAndAnEvent(t *testing.T) {
	f := newFleet(t)
	f.work()
	f.publish(config.WorkSnapshot, "nope", "")
	assert.Contains(t, f.event("job", "rejected", "nope").GetMessage(), `no target is named "nope"`)
	d := f.deadLetter("lifeboat.dead.job.snapshot.nope")
	assert.Contains(t, d.GetReason(), `no target is named "nope"`)

	f.publish(config.WorkSnapshot, target, `{"snapshto": "latest"}`)
	assert.Contains(t, f.event("job", "rejected", target).GetMessage(), "snapshto")
	assert.JSONEq(t, `{"snapshto": "latest"}`, string(f.deadLetter("lifeboat.dead.job.snapshot."+target).GetPayload()))

	f.publish(config.WorkSnapshot, target, "")
	f.event("snapshot", "committed", target) // the worker lives
}

func TestASourceThatFailsIsAnEventAfterTheLastAttempt(t *testing.T) {
	f := newFleet(t)
	f.source = func(context.Context) (io.Reader, error) {
		return nil, errors.New("connection refused by http://127.0.0.1:1")
	}
	f.work()
	f.publish(config.WorkSnapshot, target, "")
	e := f.event("snapshot", "failed", target)
	assert.Contains(t, e.GetMessage(), "connection refused")
	assert.Equal(t, "3", e.GetAttributes()["attempts"])
	assert.Empty(t, f.snapshots())
	assert.Equal(t, int64(3), f.deadLetter("lifeboat.dead.job.snapshot."+target).GetAttempts())
}

func TestASourceThatDiesHalfWayLeavesNoObject(t *testing.T) {
	f := newFleet(t)
	f.source = func(context.Context) (io.Reader, error) {
		return io.MultiReader(strings.NewReader(strings.Repeat("x", 30<<20)), failing{errors.New("unexpected EOF from the source")}), nil
	}
	f.work()
	f.publish(config.WorkSnapshot, target, "")
	f.event("snapshot", "failed", target)
	assert.Empty(t, f.snapshots())
	var left []string
	require.NoError(t, f.objects.List(t.Context(), "p/"+target+"/", func(o store.Object) error {
		left = append(left, o.Key)
		return nil
	}))
	assert.Empty(t, left)
}

type failing struct{ err error }

func (f failing) Read([]byte) (int, error) { return 0, f.err }

// corrupting flips a byte of each stored data object, on the S3 server's disk, before it can be read back.
type corrupting struct {
	*s3.Store
	server *s3test.Server
	times  int
	first  bool // the first byte, which samples always cover
}

func (c *corrupting) Put(ctx context.Context, key string, r io.Reader, n int64, cond store.Condition) (store.Object, error) {
	o, err := c.Store.Put(ctx, key, r, n, cond)
	if err != nil || c.times == 0 {
		return o, err
	}
	c.times--
	b, err := os.ReadFile(c.server.Path(key))
	if err != nil {
		return o, err
	}
	at := len(b) / 2
	if c.first {
		at = 0
	}
	b[at] ^= 0x40
	return o, os.WriteFile(c.server.Path(key), b, 0o600)
}

// Guarantee 3: what was stored is read back; a byte that changed on the way keeps the snapshot from being committed.
func TestGuarantee3ADamagedUploadIsNeverCommitted(t *testing.T) {
	f := newFleet(t)
	c := &corrupting{Store: f.objects, server: f.s3, times: 100}
	f.wrapped = c
	f.work()
	f.publish(config.WorkSnapshot, target, "")
	assert.Contains(t, f.event("snapshot", "failed", target).GetMessage(), "damaged")
	assert.Empty(t, f.snapshots())
}

func TestAnAttemptAfterADamagedUploadReplacesIt(t *testing.T) {
	f := newFleet(t)
	c := &corrupting{Store: f.objects, server: f.s3, times: 1}
	f.wrapped = c
	f.work()
	f.publish(config.WorkSnapshot, target, "")
	f.event("snapshot", "committed", target)
	assert.Contains(t, f.event("snapshot", "interrupted", target).GetMessage(), "damaged")
	require.Len(t, f.snapshots(), 1)
}

// A worker that died between its manifest and its event: the next delivery finds the manifest and tells of it.
func TestACommitWithoutItsEventIsToldByTheNextAttempt(t *testing.T) {
	f := newFleet(t)
	reads := 0
	w := worker.New(worker.Options{
		Config: f.config.Load, Objects: f.objects, Catalog: f.catalog, Bus: f.events,
		NewSource: func(config.Target) ([]worker.Source, error) {
			reads++
			return []worker.Source{fakeSource{f.source}}, nil
		},
		Capabilities: func(ctx context.Context) (store.Capabilities, error) { return f.objects.Probe(ctx, "p") },
		Logger:       slog.New(slog.DiscardHandler), Registerer: prometheus.NewRegistry(), Clock: time.Now,
	})
	m := &bus.Message{Subject: bus.JobSubject(config.WorkSnapshot, target), Seq: 1, Stored: time.Now(), Attempt: 1}
	require.NoError(t, w.Handler(config.WorkSnapshot)(t.Context(), m))
	m.Attempt = 2
	require.NoError(t, w.Handler(config.WorkSnapshot)(t.Context(), m))
	assert.Equal(t, 1, reads, "the source is not read again")
	require.Len(t, f.snapshots(), 1)
	assert.Equal(t, m.ID(), f.event("snapshot", "committed", target).GetSnapshotId())
}

// Guarantee 2: a delivery that waited for another one's commit finds that commit, and neither reads the source nor touches
// the data that the manifest describes.
func TestGuarantee2ACommitThatWasWaitedForIsNotOverwritten(t *testing.T) {
	f := newFleet(t)
	m := &bus.Message{Subject: bus.JobSubject(config.WorkSnapshot, target), Seq: 1, Stored: time.Now(), Attempt: 1}
	first, err := f.events.Claim(t.Context(), config.WorkSnapshot, target, m)
	require.NoError(t, err)
	window, done, err := first.Commit(t.Context())
	require.NoError(t, err)
	defer done()

	second := worker.New(worker.Options{
		Config: f.config.Load, Objects: f.objects, Catalog: f.catalog, Bus: f.events,
		NewSource:    func(config.Target) ([]worker.Source, error) { return nil, errors.New("must not be read") },
		Capabilities: func(ctx context.Context) (store.Capabilities, error) { return f.objects.Probe(ctx, "p") },
		Logger:       slog.New(slog.DiscardHandler), Registerer: prometheus.NewRegistry(), Clock: time.Now,
	})
	again := *m
	again.Attempt = 2
	result := make(chan error, 1)
	go func() { result <- second.Handler(config.WorkSnapshot)(t.Context(), &again) }()
	// Meanwhile the first one's manifest arrives, at the end of its window.
	<-window.Done()
	require.NoError(t, f.catalog.Commit(t.Context(), &lifeboatv1.Manifest{
		Format: catalog.Format, Id: m.ID(), Target: target, Data: &lifeboatv1.Data{Key: "the first one's"},
	}))
	require.NoError(t, <-result)
	assert.Equal(t, "the first one's", f.event("snapshot", "committed", target).GetManifest().GetData().GetKey())
}

// breaking cuts the connection in the middle of the first reads of data.
type breaking struct {
	*s3.Store
	times atomic.Int32
}

func (b *breaking) Get(ctx context.Context, key string) (io.ReadCloser, store.Object, error) {
	r, o, err := b.Store.Get(ctx, key)
	if err != nil || b.times.Add(-1) < 0 {
		return r, o, err
	}
	beginning, err := io.ReadAll(io.LimitReader(r, 20))
	cut := io.MultiReader(bytes.NewReader(beginning), failing{errors.New("connection reset by peer")})
	return io.NopCloser(cut), o, errors.Join(err, r.Close())
}

// A connection that breaks says nothing about the snapshot: it is tried again, and is neither rot nor a failed drill.
func TestABrokenConnectionIsNoDamage(t *testing.T) {
	f := newFleet(t)
	b := &breaking{Store: f.objects}
	f.wrapped = b
	f.work()
	f.publish(config.WorkSnapshot, target, "")
	f.event("snapshot", "committed", target)
	for _, work := range []config.Work{config.WorkVerify, config.WorkDrill} {
		b.times.Store(2)
		f.publish(work, target, "")
		f.event(string(work), "passed", target)
		seq, _, err := f.events.Last(t.Context(), bus.StreamEvents, bus.EventSubject(string(work), "failed", target), &lifeboatv1.Event{})
		require.NoError(t, err)
		assert.Zero(t, seq, "%s was called failed", work)
	}
}

func TestVerifyFindsRotAndNamesIt(t *testing.T) {
	f := newFleet(t)
	f.work()
	f.publish(config.WorkSnapshot, target, "")
	m := f.event("snapshot", "committed", target).GetManifest()
	f.publish(config.WorkVerify, target, "")
	assert.Equal(t, "1", f.event("verify", "passed", target).GetAttributes()["checked"])

	path := f.s3.Path(m.GetData().GetKey())
	b, err := os.ReadFile(path)
	require.NoError(t, err)
	b[0] ^= 1
	require.NoError(t, os.WriteFile(path, b, 0o600))
	f.publish(config.WorkVerify, target, "")
	e := f.event("verify", "failed", target)
	assert.Contains(t, e.GetMessage(), m.GetId())
	assert.Contains(t, e.GetMessage(), "damaged")

	require.NoError(t, os.Remove(path))
	f.publish(config.WorkVerify, target, `{"snapshot":"latest"}`)
	require.Eventually(t, func() bool {
		return strings.Contains(f.event("verify", "failed", target).GetMessage(), "no such object")
	}, time.Minute, 50*time.Millisecond)
}

// Guarantee 8: no secret appears in a log, an event, a manifest or an error.
func TestGuarantee8NoSecretLeavesTheWorker(t *testing.T) {
	f := newFleet(t)
	identity, err := age.GenerateX25519Identity()
	require.NoError(t, err)
	path := filepath.Join(t.TempDir(), "identity")
	// An identity file with a broken line: parsers like to quote those.
	require.NoError(t, os.WriteFile(path, []byte(identity.String()[:40]), 0o600))
	f.config.Load().Encryption = config.Encryption{Recipients: []string{identity.Recipient().String()}, IdentityFile: config.SecretFile(path)}
	f.work()
	f.publish(config.WorkSnapshot, target, "")
	e := f.event("snapshot", "failed", target)
	assert.Contains(t, e.GetMessage(), "does not hold an age identity")
	assert.NotContains(t, fmt.Sprint(e), identity.String()[:40])
	assert.NotContains(t, strings.ToUpper(f.deadLetter("lifeboat.dead.job.snapshot."+target).GetReason()), identity.String()[:40])
}
