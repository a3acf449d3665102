package worker_test

import (
	"context"
	"errors"
	"fmt"
	"hash/crc32"
	"io/fs"
	"log/slog"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/nats-io/nats.go/jetstream"
	"github.com/prometheus/client_golang/prometheus"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/timestamppb"

	"github.com/lifeboat-fleet/lifeboat/fleet/bus"
	"github.com/lifeboat-fleet/lifeboat/fleet/config"
	"github.com/lifeboat-fleet/lifeboat/fleet/fleettest/s3test"
	lifeboatv1 "github.com/lifeboat-fleet/lifeboat/proto/lifeboat/v1"
	"github.com/lifeboat-fleet/lifeboat/services/backup/internal/catalog"
	"github.com/lifeboat-fleet/lifeboat/services/backup/internal/store"
	"github.com/lifeboat-fleet/lifeboat/services/backup/internal/store/s3"
	"github.com/lifeboat-fleet/lifeboat/services/backup/internal/worker"
)

// dataSize is how many bytes the data of each seeded snapshot has.
const dataSize = 1000

// seeded is a snapshot that is stored without taking it: n days before now, of so many keys.
type seeded struct {
	days int
	keys int64
	// pointsTo is the id below which the data lies, when it is not this one's own.
	pointsTo string
}

func dayID(days int) string { return fmt.Sprintf("day-%03d-before-now", 999-days) }

func (f *fleet) seed(cat *catalog.Catalog, o *s3.Store, target string, s seeded) string {
	f.t.Helper()
	id, owner := dayID(s.days), s.pointsTo
	at := timestamppb.New(time.Now().Add(-time.Duration(s.days) * 24 * time.Hour))
	if owner == "" {
		owner = id
	}
	key := cat.Data(target, owner, "json", false)
	if s.pointsTo == "" {
		_, err := o.Put(f.t.Context(), key, strings.NewReader(strings.Repeat("x", dataSize)), 0, store.Condition{})
		require.NoError(f.t, err)
	}
	require.NoError(f.t, cat.Commit(f.t.Context(), &lifeboatv1.Manifest{
		Format: catalog.Format, Id: id, Target: target, StartedAt: at, CommittedAt: at,
		Source: &lifeboatv1.SourceInfo{Counts: map[string]int64{"keys": s.keys}},
		Data: &lifeboatv1.Data{
			Key: key, Format: "json", UnchangedSince: s.pointsTo, Raw: &lifeboatv1.Digest{Bytes: 5000}, Stored: &lifeboatv1.Digest{Bytes: dataSize},
		},
	}))
	return id
}

// days seeds snapshots of 100 keys, one a day, the newest yesterday's.
func (f *fleet) days(n int) {
	f.t.Helper()
	for d := n; d > 0; d-- {
		f.seed(f.catalog, f.objects, target, seeded{days: d, keys: 100})
	}
}

func (f *fleet) mark(id string, kind lifeboatv1.Mark_Kind) {
	f.t.Helper()
	require.NoError(f.t, f.catalog.SetMark(f.t.Context(), &lifeboatv1.Mark{
		Kind: kind, Target: target, SnapshotId: id, By: "a test", Holds: true,
	}))
}

func (f *fleet) proven(target, id string) {
	f.t.Helper()
	require.NoError(f.t, f.catalog.AddDrill(f.t.Context(), &lifeboatv1.DrillReport{
		Format: catalog.Format, Id: "drill-of-" + id, Target: target, SnapshotId: id, Passed: true, Level: lifeboatv1.DrillReport_LEVEL_RESTORED,
	}))
}

// pruner is a worker that prunes, a day and an hour later, without the bus between. Zero fields are the fleet's own.
type pruner struct {
	remover store.Remover
	bus     worker.Bus
	copy    *worker.Copy
	target  string
	// job tells jobs apart; the same job again is its next attempt.
	job, attempt int64
}

func (f *fleet) prune(ctx context.Context, p pruner) error {
	f.t.Helper()
	o := worker.Options{
		Config: f.config.Load, Objects: f.objects, Catalog: f.catalog, Remover: f.objects, Bus: f.events, Copy: p.copy,
		Logger: slog.New(slog.NewTextHandler(f.t.Output(), nil)), Registerer: prometheus.NewRegistry(), Clock: later,
	}
	if p.remover != nil {
		o.Remover = p.remover
	}
	if p.bus != nil {
		o.Bus = p.bus
	}
	name := target
	if p.target != "" {
		name = p.target
	}
	// No two jobs have the same place in the stream, and the jobs of two targets are two.
	seq := uint64(crc32.ChecksumIEEE([]byte(name)))<<8 + uint64(p.job)
	m := &bus.Message{
		Subject: bus.JobSubject(config.WorkPrune, name), Seq: seq, Stored: time.Unix(1795000000, 0), Attempt: max(p.attempt, 1),
	}
	return worker.New(o).Handler(config.WorkPrune)(ctx, m)
}

// later is when everything in the bucket is older than a day.
func later() time.Time { return time.Now().Add(25 * time.Hour) }

func (f *fleet) ids(cat *catalog.Catalog) []string {
	f.t.Helper()
	ids, err := cat.IDs(f.t.Context(), target)
	require.NoError(f.t, err)
	return ids
}

// keys lists what the target's folder holds, without the part that all keys share.
func (f *fleet) keys(target string) []string {
	f.t.Helper()
	var keys []string
	require.NoError(f.t, f.objects.Versions(f.t.Context(), "p/"+target+"/", func(v store.Version) error {
		keys = append(keys, strings.TrimPrefix(v.Key, "p/"+target+"/snapshots/"))
		return nil
	}))
	return keys
}

// told are all events of a kind, oldest first.
func (f *fleet) told(noun, verb, target string) []*lifeboatv1.Event {
	f.t.Helper()
	js, err := jetstream.New(f.nc)
	require.NoError(f.t, err)
	stream, err := js.Stream(f.t.Context(), bus.StreamEvents)
	require.NoError(f.t, err)
	var all []*lifeboatv1.Event
	for seq := uint64(1); ; seq++ {
		m, err := stream.GetMsg(f.t.Context(), seq, jetstream.WithGetMsgSubject(bus.EventSubject(noun, verb, target)))
		if errors.Is(err, jetstream.ErrMsgNotFound) {
			return all
		}
		require.NoError(f.t, err)
		e := &lifeboatv1.Event{}
		require.NoError(f.t, bus.Decode(m.Data, e))
		all = append(all, e)
		seq = m.Sequence
	}
}

func snapshotIDs(events []*lifeboatv1.Event) (ids []string) {
	for _, e := range events {
		ids = append(ids, e.GetSnapshotId())
	}
	return ids
}

func TestPruneFromJobToEvents(t *testing.T) {
	f := newFleet(t)
	f.target(func(c *config.Target) { c.Retention = config.Retention{Last: 3, Yearly: 1, ShrinkGuard: 40} })
	f.days(8)
	f.proven(target, dayID(7))
	f.mark(dayID(6), lifeboatv1.Mark_KIND_PIN)
	f.mark(dayID(5), lifeboatv1.Mark_KIND_VERIFIED)
	want := []string{dayID(8), dayID(5), dayID(4)}

	plan, err := worker.PlanFor(t.Context(), f.catalog, f.objects, f.config.Load().Targets[0], time.Now())
	require.NoError(t, err)
	assert.Equal(t, want, plan.Delete())
	assert.Len(t, f.ids(f.catalog), 8, "a plan deletes nothing")

	b := f.connect("pruner")
	w := worker.New(worker.Options{
		Config: f.config.Load, Objects: f.objects, Catalog: f.catalog, Remover: f.objects, Bus: b, Registerer: prometheus.NewRegistry(),
		Logger: slog.New(slog.NewTextHandler(t.Output(), nil)), Clock: time.Now,
	})
	ctx, cancel := context.WithCancel(t.Context())
	var wg sync.WaitGroup
	wg.Go(func() {
		assert.NoError(t, b.Consume(ctx, bus.Consumer{
			Stream: bus.StreamJobs, Durable: "backup-prune", Filter: bus.AllJobs(config.WorkPrune), AckWait: 2 * time.Second,
			MaxAttempts: 3, Handle: w.Handler(config.WorkPrune), OnDead: w.OnDead,
		}))
	})
	defer func() { cancel(); wg.Wait() }()
	f.publish(config.WorkPrune, target, "")

	e := f.event("prune", "passed", target)
	assert.Equal(t, "by hand", e.GetRequestedBy())
	assert.Contains(t, e.GetMessage(), "deleted 3 snapshots and 0 orphans")
	assert.Equal(t, "5", e.GetAttributes()["kept"])
	started := f.told("prune", "started", target)
	require.Len(t, started, 1)
	assert.Equal(t, strings.Join(want, " "), started[0].GetAttributes()["snapshots"])
	deleted := f.told("snapshot", "deleted", target)
	assert.Equal(t, want, snapshotIDs(deleted), "every deletion is an event")
	for _, d := range deleted {
		assert.True(t, started[0].GetTime().AsTime().Before(d.GetTime().AsTime()), "the plan is told before")
		assert.Equal(t, e.GetJobId(), d.GetJobId())
	}
	for _, id := range want {
		assert.NoFileExists(t, f.s3.Path(f.catalog.Layout.Manifest(target, id)))
		assert.NoFileExists(t, f.s3.Path(f.catalog.Data(target, id, "json", false)))
	}
	assert.NotContains(t, strings.Join(f.keys(target), " "), dayID(5), "its mark is gone with it")
	assert.Equal(t, []string{dayID(7), dayID(6), dayID(3), dayID(2), dayID(1)}, f.ids(f.catalog))
}

// Data that a source's later snapshots point to stays until the last of them goes.
func TestDataStaysWhileAManifestNamesIt(t *testing.T) {
	f := newFleet(t)
	f.target(func(c *config.Target) { c.Retention = config.Retention{Last: 1} })
	first := f.seed(f.catalog, f.objects, target, seeded{days: 9, keys: 100})
	f.seed(f.catalog, f.objects, target, seeded{days: 8, keys: 100, pointsTo: first})
	f.seed(f.catalog, f.objects, target, seeded{days: 7, keys: 100, pointsTo: first})
	require.NoError(t, f.prune(t.Context(), pruner{job: 1}))
	require.Equal(t, []string{first + "/data.json.zst", dayID(7) + "/manifest.json"}, f.keys(target))

	// Nothing more the next time: data in a folder without a manifest is no orphan while a manifest names it.
	require.NoError(t, f.prune(t.Context(), pruner{job: 2}))
	require.Len(t, f.keys(target), 2)

	f.seed(f.catalog, f.objects, target, seeded{days: 1, keys: 100})
	require.NoError(t, f.prune(t.Context(), pruner{job: 3}))
	assert.Equal(t, []string{dayID(1) + "/data.json.zst", dayID(1) + "/manifest.json"}, f.keys(target))
	deleted := f.told("snapshot", "deleted", target)
	assert.Equal(t, []string{first, dayID(8), dayID(7)}, snapshotIDs(deleted))
	assert.Empty(t, f.told("orphan", "deleted", target))
	assert.Greater(t, freed(t, deleted[2]), int64(dataSize), "the bytes are told when they are freed")
	assert.Less(t, freed(t, deleted[0]), int64(dataSize))
}

func freed(t *testing.T, e *lifeboatv1.Event) (n int64) {
	t.Helper()
	_, err := fmt.Sscan(e.GetAttributes()["freed_bytes"], &n)
	require.NoError(t, err)
	return n
}

// life ends after so many steps that change something; from then on nothing works any more.
type life struct {
	store.Remover
	worker.Bus
	left int
	// late: the last step still takes effect, and only its answer is lost.
	late bool
}

var errDied = errors.New("the worker died")

func (l *life) step(do func() error) error {
	if l.left--; l.left > 0 {
		return do()
	}
	if l.left == 0 && l.late {
		return errors.Join(do(), errDied)
	}
	return errDied
}

func (l *life) Remove(ctx context.Context, v store.Version) error {
	return l.step(func() error { return l.Remover.Remove(ctx, v) })
}

func (l *life) Abort(ctx context.Context, u store.Upload) error {
	return l.step(func() error { return l.Remover.Abort(ctx, u) })
}

func (l *life) Emit(ctx context.Context, e *lifeboatv1.Event) error {
	return l.step(func() error { return l.Bus.Emit(ctx, e) })
}

// upload begins a multipart upload that nobody completes: of a worker that was killed.
func (f *fleet) upload(key string) {
	f.t.Helper()
	proxy := s3test.NewProxy(f.t, f.s3)
	proxy.Handle(func(r *http.Request) s3test.Fault {
		if op := s3test.Op(r); op == "CompleteMultipartUpload" || op == "AbortMultipartUpload" {
			return s3test.Answer(http.StatusForbidden, "AccessDenied")
		}
		return s3test.Pass()
	})
	dying, err := s3.New(f.t.Context(), proxy.Config)
	require.NoError(f.t, err)
	_, err = dying.Put(f.t.Context(), key, strings.NewReader(strings.Repeat("x", 9<<20)), 0, store.Condition{})
	require.Error(f.t, err)
}

// uploads are the keys of the target's unfinished uploads.
func (f *fleet) uploads(target string) (keys []string) {
	f.t.Helper()
	require.NoError(f.t, f.objects.Uploads(f.t.Context(), "p/"+target+"/", func(u store.Upload) error {
		keys = append(keys, u.Key)
		return nil
	}))
	return keys
}

func (f *fleet) put(key string) {
	f.t.Helper()
	_, err := f.objects.Put(f.t.Context(), key, strings.NewReader("orphaned"), 0, store.Condition{})
	require.NoError(f.t, err)
}

// A worker that dies at any step leaves no manifest without its data and deletes nothing that is protected, and the next
// attempt finishes: nothing is left that no snapshot needs, and every deletion is an event.
func TestGuarantee6APruneKilledAtAnyStepLosesNothing(t *testing.T) {
	f := newFleet(t)
	finished := 0
	for k := 1; finished < 2; k++ {
		require.Less(t, k, 100, "it never finishes")
		for _, late := range []bool{false, true} {
			name := fmt.Sprintf("killed-%d-%t", k, late)
			if f.killedAt(name, k, late) && finished < 2 {
				finished++
			}
		}
	}
}

// killedAt is one target whose first attempt dies at a step. It says whether the attempt finished before.
func (f *fleet) killedAt(name string, k int, late bool) bool {
	t := f.t
	t.Helper()
	f.config.Store(&config.Config{Targets: []config.Target{{Name: name, Retention: config.Retention{Last: 1}, Prune: config.Prune{OrphanAge: 24 * time.Hour}}}})
	first := f.seed(f.catalog, f.objects, name, seeded{days: 9, keys: 100})
	f.seed(f.catalog, f.objects, name, seeded{days: 8, keys: 100, pointsTo: first})
	f.seed(f.catalog, f.objects, name, seeded{days: 7, keys: 100})
	f.proven(name, dayID(7))
	f.seed(f.catalog, f.objects, name, seeded{days: 6, keys: 100})
	f.seed(f.catalog, f.objects, name, seeded{days: 5, keys: 100})
	f.put(f.catalog.Data(name, "orphan", "json", false))
	want := []string{
		dayID(7) + "/data.json.zst", dayID(7) + "/drills/drill-of-" + dayID(7) + ".json", dayID(7) + "/manifest.json",
		dayID(5) + "/data.json.zst", dayID(5) + "/manifest.json",
	}
	mortal := &life{Remover: f.objects, Bus: f.events, left: k, late: late}
	err := f.prune(t.Context(), pruner{target: name, remover: mortal, bus: mortal})
	if k > 1 || late {
		require.NotEmpty(t, f.told("prune", "started", name), "%s: nothing is done before the plan is told", name)
	}
	all, listErr := f.catalog.List(t.Context(), name)
	require.NoError(t, listErr)
	present := f.keys(name)
	for _, s := range all {
		key := strings.TrimPrefix(s.GetData().GetKey(), "p/"+name+"/snapshots/")
		require.Contains(t, present, key, "%s: %s has lost its data", name, s.GetId())
	}
	require.Subset(t, present, want, name)

	require.NoError(t, f.prune(t.Context(), pruner{target: name, attempt: 2}))
	require.Equal(t, want, f.keys(name), name)
	told := snapshotIDs(f.told("snapshot", "deleted", name))
	require.Equal(t, []string{first, dayID(8), dayID(6)}, told, "%s: every deletion is an event, and one", name)
	orphans := snapshotIDs(f.told("orphan", "deleted", name))
	require.Contains(t, orphans, "orphan", name)
	require.Len(t, f.told("prune", "passed", name), 1)
	return err == nil
}

func TestOrphansGoOnlyWhenTheyAreOldAndNobodyIsAtThem(t *testing.T) {
	f := newFleet(t)
	f.target(func(c *config.Target) { c.Retention, c.Prune.OrphanAge = config.Retention{Last: 100}, 24*time.Hour })
	f.days(1)
	young, old, running := f.catalog.Data(target, "young", "json", false), f.catalog.Data(target, "old", "json", false), f.catalog.Data(target, "running", "json", false)
	oldUpload := f.catalog.Data(target, "old-upload", "json", false)
	for _, key := range []string{young, old, running} {
		f.put(key)
	}
	f.upload(oldUpload)
	f.age(old, running)
	f.ageUploads()
	f.upload(f.catalog.Data(target, "young-upload", "json", false))
	require.Len(t, f.uploads(target), 2)

	// The job of "running" is under way, or waits for its next attempt with its worker dead.
	m := &bus.Message{Subject: bus.JobSubject(config.WorkSnapshot, target), Seq: 1, Stored: time.Now(), Attempt: 1}
	claimed := f.catalog.Data(target, m.ID(), "json", false)
	f.put(claimed)
	f.age(claimed)
	claim, err := f.events.Claim(t.Context(), config.WorkSnapshot, target, m)
	require.NoError(t, err)

	now := func() time.Time { return time.Now().Add(time.Minute) }
	prune := func(job uint64) {
		w := worker.New(worker.Options{
			Config: f.config.Load, Objects: f.objects, Catalog: f.catalog, Remover: f.objects, Bus: f.events, Clock: now,
			Logger: slog.New(slog.NewTextHandler(t.Output(), nil)), Registerer: prometheus.NewRegistry(),
		})
		require.NoError(t, w.Handler(config.WorkPrune)(t.Context(), &bus.Message{
			Subject: bus.JobSubject(config.WorkPrune, target), Seq: job, Stored: time.Now(), Attempt: 1,
		}))
	}
	prune(2)
	assert.NoFileExists(t, f.s3.Path(old))
	assert.FileExists(t, f.s3.Path(young))
	assert.FileExists(t, f.s3.Path(claimed), "its snapshot is being taken")
	assert.Equal(t, []string{f.catalog.Data(target, "young-upload", "json", false)}, f.uploads(target))
	var keys []string
	for _, e := range f.told("orphan", "deleted", target) {
		keys = append(keys, e.GetAttributes()["key"])
		age, err := strconv.Atoi(e.GetAttributes()["age_seconds"])
		require.NoError(t, err)
		assert.GreaterOrEqual(t, age, 86400)
		assert.Contains(t, e.GetMessage(), "no snapshot needs it")
	}
	assert.ElementsMatch(t, []string{old, running, oldUpload}, keys, "every deletion is an event")

	require.NoError(t, claim.Release(t.Context()))
	prune(3)
	assert.NoFileExists(t, f.s3.Path(claimed))
	assert.FileExists(t, f.s3.Path(young))
}

// age makes objects a month old, on the S3 server's disk.
func (f *fleet) age(keys ...string) {
	f.t.Helper()
	month := time.Now().Add(-30 * 24 * time.Hour)
	for _, key := range keys {
		require.NoError(f.t, os.Chtimes(f.s3.Path(key), month, month))
	}
}

// ageUploads makes all unfinished uploads a month old: the server takes the time of an upload's folder for its beginning.
func (f *fleet) ageUploads() {
	f.t.Helper()
	month := time.Now().Add(-30 * 24 * time.Hour)
	aged := 0
	require.NoError(f.t, filepath.WalkDir(filepath.Join(f.s3.Dir, s3test.Bucket), func(path string, d fs.DirEntry, err error) error {
		if err == nil && d.IsDir() && strings.Contains(path, "multipart/") {
			aged++
			err = os.Chtimes(path, month, month)
		}
		return err
	}))
	require.Positive(f.t, aged)
}

// A plain delete would only hide objects in a versioned bucket; and a retried upload leaves an earlier version.
func TestAVersionedBucketIsReallyFreed(t *testing.T) {
	f := newFleet(t, s3test.WithVersioning())
	f.target(func(c *config.Target) { c.Retention = config.Retention{Last: 1} })
	f.days(1)
	keep, err := f.s3.Used()
	require.NoError(t, err)
	for d := 4; d > 1; d-- {
		f.seed(f.catalog, f.objects, target, seeded{days: d, keys: 100})
	}
	_, err = f.objects.Put(t.Context(), f.catalog.Data(target, dayID(1), "json", false), strings.NewReader(strings.Repeat("x", dataSize)), 0, store.Condition{})
	require.NoError(t, err)
	f.put(f.catalog.Data(target, "orphan", "json", false))
	f.put(f.catalog.Data(target, "orphan", "json", false))
	f.mark(dayID(3), lifeboatv1.Mark_KIND_VERIFIED)
	f.mark(dayID(3), lifeboatv1.Mark_KIND_VERIFIED)
	require.NoError(t, f.prune(t.Context(), pruner{}))
	assert.Equal(t, []string{dayID(1) + "/data.json.zst", dayID(1) + "/manifest.json"}, f.keys(target), "no version and no marker is left")
	used, err := f.s3.Used()
	require.NoError(t, err)
	assert.Equal(t, keep, used, "bytes on the disk")
	var bytes []string
	for _, e := range f.told("orphan", "deleted", target) {
		bytes = append(bytes, e.GetAttributes()["why"]+" "+e.GetAttributes()["bytes"])
	}
	assert.ElementsMatch(t, []string{"an earlier version, which was replaced 1000", "stored without a manifest 16"}, bytes)
}

func TestAPruneWithoutTheRightToDeleteSaysWhatIsMissing(t *testing.T) {
	f := newFleet(t)
	f.target(func(c *config.Target) { c.Retention = config.Retention{Last: 1} })
	f.days(3)
	proxy := f.behind(s3test.NewProxy(t, f.s3))
	proxy.Handle(s3test.Always("DeleteObject", s3test.Answer(http.StatusForbidden, "AccessDenied")))
	err := f.prune(t.Context(), pruner{})
	reason, terminal := bus.TerminalReason(err)
	assert.True(t, terminal)
	assert.Equal(t, "denied", reason)
	require.ErrorIs(t, err, store.ErrDenied)
	assert.Contains(t, err.Error(), "s3:DeleteObjectVersion")
	assert.Equal(t, 1, proxy.Count("DeleteObject"), "it does not go on")
	assert.Len(t, f.ids(f.catalog), 3)
	assert.Empty(t, f.told("snapshot", "deleted", target))
}

// One object that cannot be removed holds up nothing else; the job is tried again.
func TestAPruneGoesOnAfterAnError(t *testing.T) {
	f := newFleet(t)
	f.target(func(c *config.Target) { c.Retention = config.Retention{Last: 1} })
	f.days(4)
	bad := f.catalog.Layout.Manifest(target, dayID(3))
	proxy := f.behind(s3test.NewProxy(t, f.s3))
	proxy.Handle(func(r *http.Request) s3test.Fault {
		if s3test.Op(r) == "DeleteObject" && s3test.Key(r) == bad {
			return s3test.Answer(http.StatusBadRequest, "InvalidArgument")
		}
		return s3test.Pass()
	})
	err := f.prune(t.Context(), pruner{})
	require.ErrorContains(t, err, "deleting snapshot "+dayID(3))
	_, terminal := bus.TerminalReason(err)
	assert.False(t, terminal)
	assert.Equal(t, []string{dayID(3), dayID(1)}, f.ids(f.catalog))
	assert.Equal(t, []string{dayID(4), dayID(2)}, snapshotIDs(f.told("snapshot", "deleted", target)))
	proxy.Handle(nil)
	require.NoError(t, f.prune(t.Context(), pruner{attempt: 2}))
	assert.Equal(t, []string{dayID(1)}, f.ids(f.catalog))
}

// A worker that is told to stop stops between two removals, and the next attempt goes on.
func TestAPruneThatIsInterruptedGoesOnLater(t *testing.T) {
	f := newFleet(t)
	f.target(func(c *config.Target) { c.Retention = config.Retention{Last: 1} })
	f.days(6)
	ctx, cancel := context.WithCancel(t.Context())
	err := f.prune(ctx, pruner{remover: &during{f.objects, 4, func(store.Version) { cancel() }}})
	require.ErrorIs(t, err, context.Canceled)
	assert.Len(t, f.ids(f.catalog), 4)
	require.NoError(t, f.prune(t.Context(), pruner{attempt: 2}))
	assert.Equal(t, []string{dayID(1) + "/data.json.zst", dayID(1) + "/manifest.json"}, f.keys(target))
	assert.Len(t, f.told("snapshot", "deleted", target), 5)
}

// A worker that was given up for dead stops at its next step.
func TestAPruneThatLostItsJobStops(t *testing.T) {
	f := newFleet(t)
	f.target(func(c *config.Target) { c.Retention = config.Retention{Last: 1} })
	f.days(5)
	err := f.prune(t.Context(), pruner{remover: &during{f.objects, 1, func(store.Version) {
		_, err := f.events.Claim(t.Context(), config.WorkPrune, target, &bus.Message{
			Subject: bus.JobSubject(config.WorkPrune, target), Seq: 1 << 40, Stored: time.Now(), Attempt: 2,
		})
		assert.NoError(t, err)
	}}})
	require.ErrorIs(t, err, bus.ErrClaimLost)
	assert.Len(t, f.ids(f.catalog), 4, "the one that it was at")
}

func TestWithoutAPolicyNothingIsDeletedAndOrphansAreTold(t *testing.T) {
	f := newFleet(t)
	f.days(3)
	f.put(f.catalog.Data(target, "orphan", "json", false))
	before := f.keys(target)
	require.NoError(t, f.prune(t.Context(), pruner{}))
	assert.Equal(t, "no retention policy: nothing is deleted; found 1 orphan of 8 bytes", f.event("prune", "passed", target).GetMessage())
	assert.Equal(t, before, f.keys(target))
}

// Without any manifest, data may be all that is left of a target. Parts of uploads can be read by nobody.
func TestWithoutASnapshotOnlyUploadsAreRemoved(t *testing.T) {
	f := newFleet(t)
	f.target(func(c *config.Target) { c.Retention = config.Retention{Last: 1} })
	f.put(f.catalog.Data(target, "lost-its-manifest", "json", false))
	f.upload(f.catalog.Data(target, "killed", "json", false))
	require.NoError(t, f.prune(t.Context(), pruner{}))
	assert.Equal(t, []string{"lost-its-manifest/data.json.zst"}, f.keys(target))
	assert.Empty(t, f.uploads(target))
}

// The second bucket keeps what the first one keeps, and what its own snapshots need.
func TestTheSecondBucketFollowsTheFirst(t *testing.T) {
	f := newFleet(t, s3test.WithBuckets("second"))
	f.target(func(c *config.Target) { c.Retention = config.Retention{Last: 2} })
	cfg := f.s3.Config
	cfg.Bucket = "second"
	second, err := s3.New(t.Context(), cfg)
	require.NoError(t, err)
	there := catalog.New(second, "elsewhere")
	for d := 6; d > 0; d-- {
		s := seeded{days: d, keys: 100}
		if d == 1 {
			s.pointsTo = dayID(3)
		}
		f.seed(f.catalog, f.objects, target, s)
		if d > 1 { // the newest is not copied yet, and points to data that is
			f.seed(there, second, target, s)
		}
	}
	f.mark(dayID(5), lifeboatv1.Mark_KIND_PIN)
	require.NoError(t, f.prune(t.Context(), pruner{copy: &worker.Copy{Objects: second, Catalog: there, Remover: second}}))
	assert.Equal(t, []string{dayID(5), dayID(2), dayID(1)}, f.ids(f.catalog))
	// By its own rules the second one keeps its last two: those of the days 3 and 2.
	assert.Equal(t, []string{dayID(5), dayID(3), dayID(2)}, f.ids(there))
	assert.Equal(t, []string{dayID(6), dayID(4), dayID(3)}, snapshotIDs(f.told("snapshot", "deleted", target)))
	assert.Equal(t, []string{dayID(6), dayID(4)}, snapshotIDs(f.told("copy", "deleted", target)))
	assert.Contains(t, f.event("prune", "passed", target).GetMessage(), "in the second bucket: deleted 2 snapshots")

	// The next snapshot in both: now the rules let go of day 3 there, and its data stays for what is still to be copied.
	f.seed(f.catalog, f.objects, target, seeded{days: 0, keys: 100})
	f.seed(there, second, target, seeded{days: 0, keys: 100})
	require.NoError(t, f.prune(t.Context(), pruner{job: 2, copy: &worker.Copy{Objects: second, Catalog: there, Remover: second}}))
	assert.Equal(t, []string{dayID(5), dayID(2), dayID(0)}, f.ids(there))
	_, err = second.Head(t.Context(), there.Data(target, dayID(3), "json", false))
	require.NoError(t, err)
}

func TestASnapshotThatIsBeingTakenMayPointToTheNewest(t *testing.T) {
	f := newFleet(t)
	f.target(func(c *config.Target) { c.Retention = config.Retention{Last: 1} })
	f.days(3)
	// The newest by id was read by a clock that was a week slow: by its time it is the oldest.
	m := proto.CloneOf(f.snapshots()[2].Manifest)
	m.StartedAt = timestamppb.New(time.Now().Add(-10 * 24 * time.Hour))
	require.NoError(t, f.objects.Remove(t.Context(), store.Version{Object: store.Object{Key: f.catalog.Layout.Manifest(target, m.GetId())}}))
	require.NoError(t, f.catalog.Commit(t.Context(), m))
	require.NoError(t, f.prune(t.Context(), pruner{}))
	assert.Equal(t, []string{dayID(2), dayID(1)}, f.ids(f.catalog))
	assert.True(t, slices.Contains(f.keys(target), dayID(1)+"/data.json.zst"))
}
