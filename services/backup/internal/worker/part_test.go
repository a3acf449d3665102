package worker_test

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"filippo.io/age"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/lifeboat-fleet/lifeboat/fleet/config"
	"github.com/lifeboat-fleet/lifeboat/fleet/fleettest/s3test"
	lifeboatv1 "github.com/lifeboat-fleet/lifeboat/proto/lifeboat/v1"
	"github.com/lifeboat-fleet/lifeboat/services/backup/internal/catalog"
	"github.com/lifeboat-fleet/lifeboat/services/backup/internal/source"
	"github.com/lifeboat-fleet/lifeboat/services/backup/internal/store"
	"github.com/lifeboat-fleet/lifeboat/services/backup/internal/store/s3"
	"github.com/lifeboat-fleet/lifeboat/services/backup/internal/worker"
)

// scripted is a source whose every detail a test decides.
type scripted struct {
	format string
	data   atomic.Pointer[string]
	index  atomic.Int64
	info   atomic.Pointer[lifeboatv1.SourceInfo]
	opened atomic.Int64
	// reader, if set, is what a stream reads.
	reader func(ctx context.Context, data string) io.Reader
}

func newScripted(format, data string) *scripted {
	s := &scripted{format: format}
	s.set(data, 17)
	s.info.Store(&lifeboatv1.SourceInfo{Version: "1.22.5", Counts: map[string]int64{"keys": 100}})
	return s
}

func (s *scripted) set(data string, index int64) {
	s.data.Store(&data)
	s.index.Store(index)
}

func (s *scripted) Format() string { return s.format }

func (s *scripted) Open(ctx context.Context) (source.Stream, error) {
	s.opened.Add(1)
	data := *s.data.Load()
	var r io.Reader = strings.NewReader(data)
	if s.reader != nil {
		r = s.reader(ctx, data)
	}
	return &scriptedStream{r, s}, nil
}

type scriptedStream struct {
	io.Reader
	s *scripted
}

func (*scriptedStream) Close() error { return nil }

func (s *scriptedStream) Index() int64 { return s.s.index.Load() }

func (s *scriptedStream) Info(context.Context) (*lifeboatv1.SourceInfo, error) {
	info := s.s.info.Load()
	return &lifeboatv1.SourceInfo{
		Version: info.GetVersion(), Revision: s.s.index.Load(), Counts: info.GetCounts(), Identity: info.GetIdentity(),
		Worries: info.GetWorries(),
	}, nil
}

// snapshot takes one of the given sources and returns its manifest.
func (f *fleet) snapshot() *lifeboatv1.Manifest {
	f.t.Helper()
	before := f.count("snapshot", "committed")
	f.publish(config.WorkSnapshot, target, "")
	require.Eventually(f.t, func() bool { return f.count("snapshot", "committed") > before }, time.Minute, 10*time.Millisecond)
	return f.event("snapshot", "committed", target).GetManifest()
}

// incompressible is data of which none can be left out.
func incompressible(t *testing.T, n int) string {
	t.Helper()
	seed := rand.Uint64()
	t.Logf("seed %d", seed)
	r := rand.New(rand.NewPCG(seed, 7))
	b := make([]byte, n)
	for i := range b {
		b[i] = byte(r.Uint32())
	}
	return string(b)
}

func TestAnUnchangedSourceCostsOneManifest(t *testing.T) {
	for name, moves := range map[string]bool{"its index stands": false, "its index moves": true} {
		t.Run(name, func(t *testing.T) {
			f := newFleet(t)
			proxy := f.behind(s3test.NewProxy(t, f.s3))
			src := newScripted("json", incompressible(t, 20<<20))
			f.sources = []worker.Source{src}
			f.work()
			first := f.snapshot()
			assert.Empty(t, first.GetData().GetUnchangedSince())
			proxy.Forget()
			if moves {
				src.index.Add(1)
			}
			second := f.snapshot()
			assert.Equal(t, first.GetId(), second.GetData().GetUnchangedSince())
			assert.Equal(t, first.GetData().GetKey(), second.GetData().GetKey())
			assert.Equal(t, "decoded", second.GetVerification().GetMethod(), "it was read back all the same")
			assert.Equal(t, 1, proxy.Count("PutObject"), "only the manifest is stored")
			assert.Zero(t, proxy.Count("CompleteMultipartUpload"))
			if !moves {
				assert.LessOrEqual(t, proxy.Sent(), int64(8<<10))
			}
			third := f.snapshot()
			assert.Equal(t, first.GetId(), third.GetData().GetUnchangedSince(), "the snapshot that stored the data")

			src.set(incompressible(t, 1<<20), 18)
			changed := f.snapshot()
			assert.Empty(t, changed.GetData().GetUnchangedSince())
			assert.NotEqual(t, first.GetData().GetKey(), changed.GetData().GetKey())

			// An index that came back, as after a restore, with other data.
			src.set("other data under the same index", 18)
			restored := f.snapshot()
			assert.Empty(t, restored.GetData().GetUnchangedSince(), "an index alone is not trusted")
		})
	}
}

func TestRottenDataOfAnUnchangedSourceIsStoredAnew(t *testing.T) {
	f := newFleet(t)
	f.sources = []worker.Source{newScripted("json", export)}
	f.work()
	first := f.snapshot()
	path := f.s3.Path(first.GetData().GetKey())
	b, err := os.ReadFile(path)
	require.NoError(t, err)
	b[len(b)/2] ^= 1
	require.NoError(t, os.WriteFile(path, b, 0o600))
	second := f.snapshot()
	assert.Empty(t, second.GetData().GetUnchangedSince())
	assert.NotEqual(t, first.GetData().GetKey(), second.GetData().GetKey())
	assert.Contains(t, f.event("source", "worrying", target).GetMessage(), "data of snapshot "+first.GetId()+" is damaged")
	assert.True(t, f.snapshots()[0].Damaged(), "it is marked at once")
	assert.Contains(t, f.event("verify", "failed", target).GetMessage(), first.GetId())
	f.publish(config.WorkVerify, target, `{"snapshot": "latest"}`)
	assert.Equal(t, "1", f.event("verify", "checked", target).GetAttributes()["checked"], "which says nothing about the others")
	f.publish(config.WorkVerify, target, "")
	f.event("verify", "failed", target)
	all := f.snapshots()
	require.Len(t, all, 2)
	assert.True(t, all[0].Damaged(), "a mark says so in the bucket itself")
	assert.False(t, all[1].Damaged())
}

func TestAChangeOfRecipientsStoresTheDataAnew(t *testing.T) {
	f := newFleet(t)
	f.sources = []worker.Source{newScripted("json", export)}
	f.work()
	f.snapshot()
	id, err := age.GenerateX25519Identity()
	require.NoError(t, err)
	next := *f.config.Load()
	next.Encryption.Recipients = []string{id.Recipient().String()}
	f.config.Store(&next)
	second := f.snapshot()
	assert.Empty(t, second.GetData().GetUnchangedSince())
	assert.Equal(t, next.Encryption.Recipients, second.GetData().GetRecipients())
}

func TestAFurtherPartIsReadStoredAndVerified(t *testing.T) {
	f := newFleet(t)
	f.sources = []worker.Source{newScripted("json", export), newScripted("snap", strings.Repeat("raft", 1000))}
	f.work()
	m := f.snapshot()
	require.Len(t, m.GetParts(), 1)
	part := m.GetParts()[0]
	assert.Equal(t, "p/consul-kv/snapshots/"+m.GetId()+"/data.snap.zst", part.GetKey())
	assert.Equal(t, int64(17), part.GetSource().GetRevision())
	assert.Equal(t, m.GetData().GetStored().GetBytes()+part.GetStored().GetBytes(), m.GetVerification().GetBytes())
	assert.Contains(t, strings.Join(m.GetRestoreCommands(), "\n"), "consul snapshot restore")

	path := f.s3.Path(part.GetKey())
	b, err := os.ReadFile(path)
	require.NoError(t, err)
	b[len(b)/2] ^= 1
	require.NoError(t, os.WriteFile(path, b, 0o600))
	f.publish(config.WorkVerify, target, "")
	assert.Contains(t, f.event("verify", "failed", target).GetMessage(), "data.snap.zst")
}

func TestALargeObjectIsReadBackInSamplesWhenConfigured(t *testing.T) {
	f := newFleet(t)
	proxy := f.behind(s3test.NewProxy(t, f.s3))
	src := newScripted("json", incompressible(t, 200<<20))
	f.sources = []worker.Source{src}
	f.target(func(t *config.Target) { t.ReadBack.SampleAboveMiB = 100 })
	f.work()
	m := f.snapshot()
	v := m.GetVerification()
	assert.Equal(t, "sampled", v.GetMethod())
	assert.Greater(t, v.GetChunks(), v.GetChunksRead())
	assert.Positive(t, v.GetChunksRead())
	assert.Less(t, v.GetBytes(), m.GetData().GetStored().GetBytes())
	assert.Equal(t, v.GetChunksRead(), int64(proxy.Count("GetObject")-f.manifestReads(proxy)))

	src.set("small", 18)
	assert.Equal(t, "decoded", f.snapshot().GetVerification().GetMethod(), "what is not large is read whole")
}

// manifestReads counts the reads of documents.
func (f *fleet) manifestReads(p *s3test.Proxy) (n int) {
	for _, r := range p.Requests() {
		if r.Op == "GetObject" && strings.HasSuffix(r.Key, ".json") {
			n++
		}
	}
	return n
}

func TestASampleFindsDamageWhereItReads(t *testing.T) {
	f := newFleet(t)
	c := &corrupting{Store: f.objects, server: f.s3, times: 100, first: true}
	f.wrapped = c
	f.sources = []worker.Source{newScripted("json", incompressible(t, 8<<20))}
	f.target(func(t *config.Target) { t.ReadBack.SampleAboveMiB = 1 })
	f.work()
	f.publish(config.WorkSnapshot, target, "")
	assert.Contains(t, f.event("snapshot", "failed", target).GetMessage(), "damaged")
	assert.Empty(t, f.snapshots())
}

// A source that goes on, but slower than the configuration asks for, is given up: it holds a transaction open.
func TestASnapshotThatCrawlsIsGivenUp(t *testing.T) {
	f := newFleet(t)
	src := newScripted("json", "")
	src.reader = func(ctx context.Context, _ string) io.Reader { return &dripping{ctx: ctx} }
	f.sources = []worker.Source{src}
	f.pace = 200 * time.Millisecond
	f.target(func(t *config.Target) { t.MinKiBPerSecond = 64 })
	f.work()
	f.publish(config.WorkSnapshot, target, "")
	message := f.event("snapshot", "failed", target).GetMessage()
	assert.Contains(t, message, "crawls")
	assert.Contains(t, message, "min_kib_per_second is 64")
	assert.Empty(t, f.snapshots())
}

// dripping gives one byte every ten milliseconds, for ever.
type dripping struct {
	ctx context.Context //nolint:containedctx // an io.Reader is given none
}

func (d *dripping) Read(p []byte) (int, error) {
	select {
	case <-d.ctx.Done():
		return 0, context.Cause(d.ctx)
	case <-time.After(10 * time.Millisecond):
		return copy(p, "."), nil
	}
}

func TestWhatWorriesAboutASourceIsToldUntilItIsWell(t *testing.T) {
	f := newFleet(t)
	src := newScripted("json", "1")
	f.sources = []worker.Source{src}
	f.work()
	f.snapshot()
	f.event("source", "well", target)

	src.set("2", 18)
	src.info.Store(&lifeboatv1.SourceInfo{Counts: map[string]int64{"keys": 59}, Identity: map[string]string{"token_policies": "less"}})
	m := f.snapshot()
	e := f.event("source", "worrying", target)
	assert.Equal(t, m.GetId(), e.GetSnapshotId())
	assert.Contains(t, e.GetMessage(), "59 keys")
	assert.Contains(t, e.GetMessage(), `policies changed from "" to "less"`)
	assert.Len(t, m.GetSource().GetWorries(), 2)

	src.set("3", 19)
	m = f.snapshot()
	assert.Empty(t, m.GetSource().GetWorries())
	require.Eventually(t, func() bool { return f.event("source", "well", target).GetSnapshotId() == m.GetId() }, time.Minute, 10*time.Millisecond)
}

func TestASnapshotIsCopiedToTheSecondBucket(t *testing.T) {
	f := newFleet(t, s3test.WithBuckets("copies"))
	cfg := f.s3.Config
	cfg.Bucket = "copies"
	second, err := s3.New(t.Context(), cfg)
	require.NoError(t, err)
	there := catalog.New(second, "elsewhere")
	f.copy = &worker.Copy{
		Objects: second, Catalog: there,
		Capabilities: func(ctx context.Context) (store.Capabilities, error) { return second.Probe(ctx, "elsewhere") },
	}
	src := newScripted("json", export)
	f.sources = []worker.Source{src, newScripted("snap", "raft")}
	f.work()
	first := f.snapshot()
	f.event("copy", "passed", target)
	m, err := there.Manifest(t.Context(), target, first.GetId())
	require.NoError(t, err)
	assert.Equal(t, "elsewhere/consul-kv/snapshots/"+m.GetId()+"/data.json.zst", m.GetData().GetKey())
	assert.Equal(t, "copies", m.GetStore().GetBucket())
	assert.Contains(t, strings.Join(m.GetRestoreCommands(), "\n"), "s3://copies/elsewhere/consul-kv/")
	r, err := worker.OpenDecoded(t.Context(), second, m, nil)
	require.NoError(t, err)
	got, err := io.ReadAll(r)
	require.NoError(t, err)
	assert.True(t, bytes.Equal([]byte(export), got))
	require.NoError(t, r.Close())

	// Unchanged: the copy's manifest points at the copy's data, and damage there is mended on the way.
	path := strings.Replace(f.s3.Path(m.GetData().GetKey()), "/"+s3test.Bucket+"/", "/copies/", 1)
	b, err := os.ReadFile(path)
	require.NoError(t, err)
	b[len(b)/2] ^= 1
	require.NoError(t, os.WriteFile(path, b, 0o600))
	unchanged := f.snapshot()
	require.Eventually(t, func() bool { return f.event("copy", "passed", target).GetSnapshotId() == unchanged.GetId() }, time.Minute, 10*time.Millisecond)
	m, err = there.Manifest(t.Context(), target, unchanged.GetId())
	require.NoError(t, err)
	assert.Equal(t, first.GetId(), m.GetData().GetUnchangedSince())
	_, err = worker.VerifySnapshot(t.Context(), second, m, nil, nil)
	require.NoError(t, err)

	// What the second bucket missed while it was away comes with the next snapshot, and verify reads both buckets.
	require.NoError(t, second.Versions(t.Context(), "elsewhere/consul-kv/snapshots/"+first.GetId()+"/manifest.json", func(v store.Version) error {
		return second.Remove(t.Context(), v)
	}))
	src.set("changed", 99)
	third := f.snapshot()
	require.Eventually(t, func() bool { return f.event("copy", "passed", target).GetSnapshotId() == third.GetId() }, time.Minute, 10*time.Millisecond)
	ids, err := there.IDs(t.Context(), target)
	require.NoError(t, err)
	assert.Equal(t, []string{first.GetId(), unchanged.GetId(), third.GetId()}, ids)
	f.publish(config.WorkVerify, target, "")
	assert.Equal(t, "6", f.event("verify", "passed", target).GetAttributes()["checked"])
	require.NoError(t, os.WriteFile(path, []byte("rotten"), 0o600))
	f.publish(config.WorkVerify, target, "")
	assert.Contains(t, f.event("verify", "failed", target).GetMessage(), "in the second bucket, "+first.GetId())
}

// An earlier snapshot that has rotted cannot be copied any more. It must not keep the newest one from being copied.
func TestARottenSnapshotHoldsUpNoOtherCopy(t *testing.T) {
	f := newFleet(t, s3test.WithBuckets("copies"))
	src := newScripted("json", export)
	f.sources = []worker.Source{src}
	f.work()
	rotten := f.snapshot()
	src.set("second", 18)
	sound := f.snapshot()
	f.stop()
	require.NoError(t, os.WriteFile(f.s3.Path(rotten.GetData().GetKey()), []byte("rotten"), 0o600))

	cfg := f.s3.Config
	cfg.Bucket = "copies"
	second, err := s3.New(t.Context(), cfg)
	require.NoError(t, err)
	there := catalog.New(second, "p")
	f.copy = &worker.Copy{
		Objects: second, Catalog: there,
		Capabilities: func(ctx context.Context) (store.Capabilities, error) { return second.Probe(ctx, "p") },
	}
	f.work()
	src.set("third", 19)
	newest := f.snapshot()
	// The stop may have met the sound one's job between its event and its acknowledgement; then it comes once more, and tells of a copy too.
	var ids []string
	require.Eventually(t, func() bool {
		ids, err = there.IDs(t.Context(), target)
		return err == nil && slices.Equal(ids, []string{sound.GetId(), newest.GetId()}) && f.count("copy", "passed") > 0
	}, time.Minute, 10*time.Millisecond, "%v", &ids)
	all := f.snapshots()
	assert.True(t, all[0].Damaged())
	assert.False(t, all[1].Damaged())
	assert.Contains(t, f.event("verify", "failed", target).GetMessage(), rotten.GetId(), "somebody is told")
}

func TestACopyThatFailsIsToldAndTheSnapshotStands(t *testing.T) {
	f := newFleet(t)
	cfg := f.s3.Config
	cfg.Bucket = "no-such-bucket"
	second, err := s3.New(t.Context(), cfg)
	require.NoError(t, err)
	f.copy = &worker.Copy{
		Objects: second, Catalog: catalog.New(second, "p"),
		Capabilities: func(context.Context) (store.Capabilities, error) { return store.Capabilities{}, nil },
	}
	f.work()
	f.publish(config.WorkSnapshot, target, "")
	e := f.event("copy", "failed", target)
	assert.Contains(t, e.GetMessage(), "is committed, and its copy failed")
	require.Len(t, f.snapshots(), 1)
	seq, _, err := f.events.Last(t.Context(), "LIFEBOAT_EVENTS", fmt.Sprintf("lifeboat.event.snapshot.failed.%s", target), &lifeboatv1.Event{})
	require.NoError(t, err)
	assert.Zero(t, seq, "the snapshot did not fail")
}
