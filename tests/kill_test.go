package tests

import (
	"fmt"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/nats-io/nats.go/jetstream"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	clientv3 "go.etcd.io/etcd/client/v3"

	"github.com/lifeboat-fleet/lifeboat/fleet/fleettest/bintest"
	"github.com/lifeboat-fleet/lifeboat/fleet/fleettest/s3test"
	lifeboatv1 "github.com/lifeboat-fleet/lifeboat/proto/lifeboat/v1"
)

// proxied puts a proxy that makes faults before S3, and points the configuration to it.
func (f *fleet) proxied() *s3test.Proxy {
	f.t.Helper()
	p := s3test.NewProxy(f.t, f.s3)
	f.edit(f.s3.Endpoint, p.Endpoint)
	return p
}

// edit replaces a text of the configuration.
func (f *fleet) edit(old, with string) {
	f.t.Helper()
	b, err := os.ReadFile(f.config)
	require.NoError(f.t, err)
	require.Contains(f.t, string(b), old)
	f.write("lifeboat.yaml", strings.Replace(string(b), old, with, 1))
}

// step is a moment in the life of a snapshot: a request to S3, before it arrives or after it was answered.
type step struct {
	name, op, key string
	fault         s3test.Fault
}

// Guarantees 2 and 3, and no orphans: a worker is killed with -9 at each step of the life of a snapshot. Each time its job is
// done by another one, once, what is committed is whole, and in the end prune leaves nothing that belongs to no snapshot.
func TestGuarantee2And3AWorkerKilledAtEachStepOfASnapshot(t *testing.T) {
	f := start(t)
	f.fill(t, 9000) // some 13 MiB: two parts
	p := f.proxied()
	f.edit("    timeout: 5m\n", "    timeout: 10m\n    retention: {last: 100}\n    prune: {orphan_age: 20m}\n")
	steps := []step{
		{"looking for an earlier manifest", "GetObject", "manifest.json", s3test.Hang()},
		{"looking at the data's key", "HeadObject", "data.db", s3test.Hang()},
		{"beginning the upload", "CreateMultipartUpload", "data.db", s3test.HangAfter()},
		{"uploading a part", "UploadPart", "data.db", s3test.Hang()},
		{"having uploaded a part", "UploadPart", "data.db", s3test.HangAfter()},
		{"completing the upload", "CompleteMultipartUpload", "data.db", s3test.Hang()},
		{"having completed the upload", "CompleteMultipartUpload", "data.db", s3test.HangAfter()},
		{"reading back", "GetObject", "data.db", s3test.Hang()},
		{"writing the manifest", "PutObject", "manifest.json", s3test.Hang()},
		{"having written the manifest", "PutObject", "manifest.json", s3test.HangAfter()},
	}
	for i, s := range steps {
		killed := f.run("backup", "--roles", "snapshot", "--ack-wait", "2s")
		var once sync.Once
		reached := make(chan struct{})
		p.Handle(func(r *http.Request) s3test.Fault {
			hit := false
			if s3test.Op(r) == s.op && strings.Contains(s3test.Key(r), s.key) {
				once.Do(func() { hit = true })
			}
			if !hit {
				return s3test.Pass()
			}
			close(reached)
			return s.fault
		})
		// A change, or the data would be the one that is stored already.
		_, err := f.client.Put(t.Context(), "/step", s.name)
		require.NoError(t, err)
		f.publish("lifeboat.job.snapshot.etcd-prod")
		select {
		case <-reached:
		case <-time.After(60 * time.Second):
			require.Fail(t, "the worker never came to "+s.name)
		}
		// It hangs before it is forwarded, or when the store has answered.
		require.Eventually(t, func() bool { return p.Hanging() > 0 }, time.Minute, 10*time.Millisecond)
		require.NoError(t, killed.Kill(), s.name)
		p.Handle(nil)
		p.Release()
		f.took(i+1, s.name)
	}
	f.afterAll(len(steps))
}

// took waits until there are so many snapshots, taken by a fresh worker, and stops that.
func (f *fleet) took(n int, after string) {
	f.t.Helper()
	w := f.run("backup", "--roles", "snapshot", "--ack-wait", "2s")
	require.Eventually(f.t, func() bool { return f.told("lifeboat.event.snapshot.committed.etcd-prod") == n && f.inFlight() == 0 },
		60*time.Second, 50*time.Millisecond, "no snapshot after the kill while %s", after)
	require.Len(f.t, f.manifests(), n, "after the kill while %s", after)
	require.NoError(f.t, w.Stop())
}

// told is how many events a subject has.
func (f *fleet) told(subject string) int {
	s, err := f.js.Stream(f.t.Context(), "LIFEBOAT_EVENTS")
	if err != nil {
		return 0
	}
	info, err := s.Info(f.t.Context(), jetstream.WithSubjectFilter(subject))
	if err != nil {
		return 0
	}
	return int(info.State.Subjects[subject])
}

// afterAll checks that every snapshot is good, that no job was lost, and that prune leaves only what belongs to a snapshot.
func (f *fleet) afterAll(snapshots int) {
	f.t.Helper()
	f.age(24 * time.Hour)
	f.run("backup", "--roles", "verify,prune")
	f.publish("lifeboat.job.verify.etcd-prod")
	e := f.event("lifeboat.event.verify.passed.etcd-prod")
	assert.Equal(f.t, fmt.Sprint(snapshots), e.GetAttributes()["checked"])
	f.publish("lifeboat.job.prune.etcd-prod")
	f.event("lifeboat.event.prune.passed.etcd-prod")
	wanted := map[string]bool{}
	for _, m := range f.manifests() {
		wanted[m.GetData().GetKey()] = true
	}
	f.eachStored(func(key string) {
		known := wanted[key] || strings.HasSuffix(key, "/manifest.json") || strings.Contains(key, "/marks/")
		assert.True(f.t, known, "an orphan: %s", key)
	})
	out, exit := f.command("prune", "etcd-prod", "--dry-run", "-c", f.config, "--output", "json")
	assert.Zero(f.t, exit, out)
	d := &lifeboatv1.DeadLetter{}
	assert.False(f.t, f.last("LIFEBOAT_DEAD", "lifeboat.dead.job.snapshot.etcd-prod", d), "a job was lost: %s", d.GetReason())
}

// NATS is killed with -9 while a worker uploads. The worker's claim outlives it, or the job is given out again: either way
// there is one snapshot, and it is told.
func TestNATSKilledInTheMiddleOfASnapshot(t *testing.T) {
	f := start(t)
	f.fill(t, 9000)
	p := f.proxied()
	f.edit("    timeout: 5m\n", "    timeout: 10m\n    retention: {last: 100}\n    prune: {orphan_age: 20m}\n")
	f.run("backup", "--roles", "snapshot", "--ack-wait", "2s")
	for i, op := range []string{"UploadPart", "PutObject"} {
		var once sync.Once
		reached := make(chan struct{})
		p.Handle(func(r *http.Request) s3test.Fault {
			hit := false
			if s3test.Op(r) == op {
				once.Do(func() { hit = true })
			}
			if !hit {
				return s3test.Pass()
			}
			close(reached)
			return s3test.Hang()
		})
		_, err := f.client.Put(t.Context(), "/step", op)
		require.NoError(t, err)
		f.publish("lifeboat.job.snapshot.etcd-prod")
		<-reached
		require.NoError(t, f.nats.Kill())
		p.Handle(nil)
		p.Release()
		require.NoError(t, f.nats.Restart(t.Context()))
		require.Eventually(t, func() bool { return f.told("lifeboat.event.snapshot.committed.etcd-prod") == i+1 && f.inFlight() == 0 },
			90*time.Second, 50*time.Millisecond, "after NATS was killed during %s", op)
		require.Len(t, f.manifests(), i+1)
	}
	f.afterAll(2)
}

// etcd is killed with -9 half-way through a snapshot: nothing is committed, the event says why, and when etcd is back the job is
// done.
func TestEtcdKilledHalfWay(t *testing.T) {
	f := start(t)
	e := f.ownEtcd()
	f.fill(t, 40_000) // more than the worker can have in its hands
	p := f.slowS3(500)
	f.run("backup", "--roles", "snapshot", "--ack-wait", "2s")
	f.publish("lifeboat.job.snapshot.etcd-prod")
	f.uploading()
	require.NoError(t, e.Kill())
	// The worker reads ahead of what it uploads by a few MiB only, so the stream is cut.
	assert.Contains(t, f.event("lifeboat.event.snapshot.interrupted.etcd-prod").GetMessage(), "reading the snapshot")
	assert.Empty(t, f.manifests())
	require.NoError(t, e.Restart(t.Context()))
	require.NoError(t, p.Toxics.RemoveToxic(t.Context(), "slow"))
	f.event("lifeboat.event.snapshot.committed.etcd-prod")
	require.Len(t, f.manifests(), 1)
}

// ownEtcd starts an etcd as a process, which can be killed, and points the configuration to it.
func (f *fleet) ownEtcd() *bintest.Etcd {
	f.t.Helper()
	e, err := bintest.StartEtcd(f.t.Context(), f.path("own-etcd"))
	require.NoError(f.t, err)
	f.t.Cleanup(func() { assert.NoError(f.t, e.Kill()) })
	f.edit(f.etcd.Endpoint, e.Endpoint)
	before := f.client
	f.client, err = clientv3.New(clientv3.Config{Endpoints: []string{e.Endpoint}})
	require.NoError(f.t, err)
	f.t.Cleanup(func() {
		assert.NoError(f.t, f.client.Close())
		f.client = before // which whoever made it closes
	})
	return e
}

// age makes everything in the bucket older, as the store tells it.
func (f *fleet) age(d time.Duration) {
	f.t.Helper()
	then := time.Now().Add(-d)
	require.NoError(f.t, filepath.WalkDir(f.s3.Dir, func(path string, _ os.DirEntry, err error) error {
		if err != nil {
			return err
		}
		return os.Chtimes(path, then, then)
	}))
}

// eachStored gives the key of every object of the target, from the server's disk.
func (f *fleet) eachStored(fn func(key string)) {
	f.t.Helper()
	root := f.s3.Path("")
	require.NoError(f.t, filepath.WalkDir(filepath.Join(root, "etcd-prod"), func(path string, d os.DirEntry, err error) error {
		if err == nil && !d.IsDir() {
			fn(strings.TrimPrefix(strings.TrimPrefix(path, root), "/"))
		}
		return err
	}))
}
