package worker_test

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"math/rand/v2"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/lifeboat-fleet/lifeboat/fleet/bus"
	"github.com/lifeboat-fleet/lifeboat/fleet/config"
	"github.com/lifeboat-fleet/lifeboat/fleet/fleettest/s3test"
	lifeboatv1 "github.com/lifeboat-fleet/lifeboat/proto/lifeboat/v1"
	"github.com/lifeboat-fleet/lifeboat/services/backup/internal/catalog"
	"github.com/lifeboat-fleet/lifeboat/services/backup/internal/store"
	"github.com/lifeboat-fleet/lifeboat/services/backup/internal/store/s3"
	"github.com/lifeboat-fleet/lifeboat/services/backup/internal/worker"
)

// settled checks what must hold after any fault: every committed snapshot is good, no job is left or lost, and after a prune
// a day later everything in the bucket belongs to a snapshot.
func (f *fleet) settled(snapshots int) {
	f.t.Helper()
	all := f.snapshots()
	require.Len(f.t, all, snapshots)
	referenced := map[string]bool{}
	for _, s := range all {
		_, err := worker.VerifySnapshot(f.t.Context(), f.objects, s.Manifest, nil, nil)
		require.NoError(f.t, err, "a bad snapshot is committed: %s", s.GetId())
		referenced[s.GetData().GetKey()] = true
		referenced[f.catalog.Layout.Manifest(target, s.GetId())] = true
	}
	require.Eventually(f.t, func() bool {
		seq, _, err := f.events.Last(f.t.Context(), bus.StreamJobs, bus.JobSubject(config.WorkSnapshot, target), &lifeboatv1.Job{})
		return err == nil && seq == 0
	}, time.Minute, 20*time.Millisecond, "a job is left")
	f.pruneLater(48 * time.Hour)
	require.NoError(f.t, f.objects.List(f.t.Context(), "p/"+target+"/", func(o store.Object) error {
		assert.True(f.t, referenced[o.Key] || strings.Contains(o.Key, "/marks/"), "an orphan is left: %s", o.Key)
		return nil
	}))
	require.NoError(f.t, f.objects.Uploads(f.t.Context(), "p/"+target+"/", func(u store.Upload) error {
		assert.Fail(f.t, "an upload is left", u.Key)
		return nil
	}))
}

// pruneLater runs a prune as if so much time had passed.
func (f *fleet) pruneLater(d time.Duration) {
	f.t.Helper()
	cfg := *f.config.Load()
	cfg.Targets = append([]config.Target{}, cfg.Targets...)
	cfg.Targets[0].Retention = config.Retention{Last: 100, ShrinkGuard: 100}
	w := worker.New(worker.Options{
		Config: func() *config.Config { return &cfg }, Objects: f.objects, Catalog: f.catalog, Remover: f.objects, Bus: f.events,
		Logger: slog.New(slog.NewTextHandler(f.t.Output(), nil)), Registerer: prometheus.NewRegistry(),
		Clock: func() time.Time { return time.Now().Add(d) },
	})
	m := &bus.Message{Subject: bus.JobSubject(config.WorkPrune, target), Seq: rand.Uint64N(1 << 40), Stored: time.Now(), Attempt: 1}
	require.NoError(f.t, w.Handler(config.WorkPrune)(f.t.Context(), m))
}

// faultyFleet has a worker whose snapshots take several parts to upload, through a proxy.
func faultyFleet(t *testing.T) (*fleet, *s3test.Proxy) {
	t.Helper()
	f := newFleet(t)
	proxy := f.behind(s3test.NewProxy(t, f.s3))
	f.sources = []worker.Source{newScripted("json", incompressible(t, 20<<20))}
	return f, proxy
}

func TestAStoreThatIsBusyOrResetsIsTriedAgain(t *testing.T) {
	for name, fault := range map[string]s3test.Fault{
		"busy": s3test.SlowDown(), "reset before": s3test.ResetBefore(), "reset after": s3test.ResetAfter(),
	} {
		for _, op := range []string{"HeadObject", "CreateMultipartUpload", "UploadPart", "CompleteMultipartUpload", "GetObject", "PutObject"} {
			t.Run(name+" "+op, func(t *testing.T) {
				f, proxy := faultyFleet(t)
				f.work()
				proxy.Handle(s3test.First(2, op, fault))
				f.snapshot()
				f.settled(1)
			})
		}
	}
}

// A store that never answers must not hold the job for ever: its deadline ends the attempt, and the next one goes on.
func TestAStoreThatHangsEndsTheAttempt(t *testing.T) {
	for _, op := range []string{"UploadPart", "CompleteMultipartUpload", "GetObject"} {
		t.Run(op, func(t *testing.T) {
			f, proxy := faultyFleet(t)
			f.target(func(t *config.Target) { t.Timeout = 5 * time.Second })
			var once atomic.Bool
			proxy.Handle(func(r *http.Request) s3test.Fault {
				if s3test.Op(r) == op && strings.Contains(s3test.Key(r), "/data.") && once.CompareAndSwap(false, true) {
					return s3test.Hang()
				}
				return s3test.Pass()
			})
			f.work()
			f.publish(config.WorkSnapshot, target, "")
			assert.Contains(t, f.event("snapshot", "interrupted", target).GetMessage(), "the target's timeout of 5s")
			proxy.Release()
			f.event("snapshot", "committed", target)
			f.settled(1)
		})
	}
}

func TestAFullStoreFailsTheSnapshotAndIsUsedAgainWhenThereIsSpace(t *testing.T) {
	f, _ := faultyFleet(t)
	f.s3.SetSpace(10 << 20)
	f.work()
	f.publish(config.WorkSnapshot, target, "")
	message := f.event("snapshot", "failed", target).GetMessage()
	assert.Contains(t, message, "507")
	assert.Empty(t, f.snapshots())
	f.s3.SetSpace(-1)
	f.snapshot()
	f.settled(1)
}

func TestABucketThatVanishedIsNamed(t *testing.T) {
	f, _ := faultyFleet(t)
	f.work()
	f.snapshot()
	bucket := filepath.Join(f.s3.Dir, s3test.Bucket)
	require.NoError(t, os.Rename(bucket, bucket+"-away"))
	f.publish(config.WorkSnapshot, target, "")
	assert.Contains(t, f.event("snapshot", "failed", target).GetMessage(), store.ErrNoBucket.Error())
	require.NoError(t, os.Rename(bucket+"-away", bucket))
	f.snapshot()
	f.settled(2)
}

func TestCredentialsThatRotateBetweenTwoSnapshots(t *testing.T) {
	f := newFleet(t)
	dir := t.TempDir()
	id, secret := filepath.Join(dir, "id"), filepath.Join(dir, "secret")
	write := func(user, key string) {
		require.NoError(t, os.WriteFile(id, []byte(user), 0o600))
		require.NoError(t, os.WriteFile(secret, []byte(key), 0o600))
	}
	require.NoError(t, f.s3.AddUser("monday", "the-key-of-monday"))
	write("monday", "the-key-of-monday")
	cfg := f.s3.Config
	cfg.AccessKeyIDFile, cfg.SecretAccessKeyFile = config.SecretFile(id), config.SecretFile(secret)
	objects, err := s3.New(t.Context(), cfg)
	require.NoError(t, err)
	f.wrapped = objects
	f.work()
	f.snapshot()
	require.NoError(t, f.s3.AddUser("tuesday", "the-key-of-tuesday"))
	write("tuesday", "the-key-of-tuesday")
	require.NoError(t, f.s3.RemoveUser("monday"))
	f.snapshot()
	f.settled(2)
}

// Two workers are given the same job at once: at most one of them commits, and when neither does because each got in the
// other's way, the next delivery does. There is one manifest, and it is good.
func TestGuarantee2TwoWorkersWithTheSameJobMakeOneManifest(t *testing.T) {
	f, _ := faultyFleet(t)
	message := &bus.Message{Subject: bus.JobSubject(config.WorkSnapshot, target), Seq: 1, Stored: time.Now(), Attempt: 1}
	deliver := func(name string, attempt int64) error {
		w := worker.New(worker.Options{
			Config: f.config.Load, Objects: f.objects, Catalog: f.catalog, Bus: f.connect(name),
			NewSource:    func(config.Target) ([]worker.Source, error) { return f.sources, nil },
			Capabilities: f.probeOnce(), Logger: slog.New(slog.DiscardHandler), Registerer: prometheus.NewRegistry(), Clock: time.Now,
		})
		m := *message
		m.Attempt = attempt
		return w.Handler(config.WorkSnapshot)(t.Context(), &m)
	}
	var wg sync.WaitGroup
	for attempt := range int64(2) {
		wg.Go(func() { t.Log(deliver(fmt.Sprint("worker-", attempt), attempt+1)) })
	}
	wg.Wait()
	require.NoError(t, deliver("worker-3", 3))
	f.settled(1)
}

// Guarantee 3, for what lies in the bucket: a flipped byte is found wherever it is.
func TestGuarantee3AFlippedByteInAStoredObjectIsFoundAnywhere(t *testing.T) {
	f := newFleet(t)
	f.sources = []worker.Source{newScripted("json", strings.Repeat(export, 2000)+incompressible(t, 100_000))}
	f.work()
	m := f.snapshot()
	path := f.s3.Path(m.GetData().GetKey())
	good, err := os.ReadFile(path)
	require.NoError(t, err)
	seed := rand.Uint64()
	t.Logf("seed %d", seed)
	r := rand.New(rand.NewPCG(seed, 200))
	for range 200 {
		at := r.IntN(len(good))
		bad := append([]byte{}, good...)
		bad[at] ^= byte(1 + r.IntN(255))
		require.NoError(t, os.WriteFile(path, bad, 0o600))
		_, err = worker.VerifySnapshot(t.Context(), f.objects, m, nil, nil)
		require.Error(t, err, "byte %d of %d", at, len(good))
	}
	require.NoError(t, os.WriteFile(path, good, 0o600))
	f.settled(1)
}

// A store that ignores conditions cannot keep a worker that was given up for dead from replacing what its successor stored: it must
// find out by itself, before its upload is complete.
func TestGuarantee2WithoutConditionalWritesALostClaimEndsTheUpload(t *testing.T) {
	f := newFleet(t)
	m := &bus.Message{Subject: bus.JobSubject(config.WorkSnapshot, target), Seq: 1, Stored: time.Now(), Attempt: 1}
	src := newScripted("json", export)
	src.reader = func(ctx context.Context, data string) io.Reader {
		successor := *m
		successor.Attempt = 2
		_, err := f.events.Claim(ctx, config.WorkSnapshot, target, &successor)
		require.NoError(t, err)
		return strings.NewReader(data)
	}
	w := worker.New(worker.Options{
		Config: f.config.Load, Objects: f.objects, Catalog: f.catalog, Bus: f.connect("first"),
		NewSource:    func(config.Target) ([]worker.Source, error) { return []worker.Source{src}, nil },
		Capabilities: func(context.Context) (store.Capabilities, error) { return store.Capabilities{}, nil },
		Logger:       slog.New(slog.DiscardHandler), Registerer: prometheus.NewRegistry(), Clock: time.Now,
	})
	require.ErrorIs(t, w.Handler(config.WorkSnapshot)(t.Context(), m), bus.ErrClaimLost)
	require.NoError(t, f.objects.List(t.Context(), "p/"+target+"/", func(o store.Object) error {
		assert.Fail(t, "something was stored", o.Key)
		return nil
	}))
}

// unanswered stores a manifest and loses the answer, for good.
type unanswered struct{ *s3.Store }

func (u unanswered) Put(ctx context.Context, key string, r io.Reader, n int64, c store.Condition) (store.Object, error) {
	o, err := u.Store.Put(ctx, key, r, n, c)
	if strings.HasSuffix(key, "/manifest.json") && err == nil {
		err = errors.New("connection reset by peer")
	}
	return o, err
}

// The last attempt does not know whether its manifest was written. It was, so the snapshot is told of, and not called failed.
func TestASnapshotThatArrivedAfterAllIsNotCalledFailed(t *testing.T) {
	f := newFleet(t)
	w := worker.New(worker.Options{
		Config: f.config.Load, Objects: f.objects, Catalog: catalog.New(unanswered{f.objects}, "p"), Bus: f.events,
		NewSource:    func(config.Target) ([]worker.Source, error) { return []worker.Source{newScripted("json", export)}, nil },
		Capabilities: f.probeOnce(), Logger: slog.New(slog.DiscardHandler), Registerer: prometheus.NewRegistry(), Clock: time.Now,
	})
	m := &bus.Message{Subject: bus.JobSubject(config.WorkSnapshot, target), Seq: 1, Stored: time.Now(), Attempt: 5}
	err := w.Handler(config.WorkSnapshot)(t.Context(), m)
	require.ErrorContains(t, err, "it is not known whether the manifest was written")
	assert.Equal(t, lifeboatv1.ClaimState_PHASE_COMMITTING, f.claim(target).GetPhase(), "the announcement stands, so that the next delivery waits")
	require.NoError(t, w.OnDead(t.Context(), m, err))
	assert.Equal(t, m.ID(), f.event("snapshot", "committed", target).GetSnapshotId())
	assert.Zero(t, f.count("snapshot", "failed"))
	f.settled(1)
}
