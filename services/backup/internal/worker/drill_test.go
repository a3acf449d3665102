package worker_test

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"path"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"filippo.io/age"
	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/testutil"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/lifeboat-fleet/lifeboat/fleet/bus"
	"github.com/lifeboat-fleet/lifeboat/fleet/config"
	"github.com/lifeboat-fleet/lifeboat/fleet/fleettest/s3test"
	lifeboatv1 "github.com/lifeboat-fleet/lifeboat/proto/lifeboat/v1"
	"github.com/lifeboat-fleet/lifeboat/services/backup/internal/worker"
)

// drill runs one and gives the event that tells of it.
func (f *fleet) drill(payload string, verb string) *lifeboatv1.Event {
	f.t.Helper()
	before := f.count("drill", verb)
	f.publish(config.WorkDrill, target, payload)
	require.Eventually(f.t, func() bool { return f.count("drill", verb) > before }, time.Minute, 20*time.Millisecond,
		"no drill.%s after %s", verb, payload)
	return f.event("drill", verb, target)
}

// encrypted makes the fleet encrypt, and gives the file of an identity for each recipient.
func (f *fleet) encrypted(n int) []string {
	f.t.Helper()
	var files, recipients []string
	for i := range n {
		identity, err := age.GenerateX25519Identity()
		require.NoError(f.t, err)
		file := filepath.Join(f.t.TempDir(), fmt.Sprint("identity-", i))
		require.NoError(f.t, os.WriteFile(file, []byte(identity.String()), 0o600))
		files, recipients = append(files, file), append(recipients, identity.Recipient().String())
	}
	f.config.Load().Encryption = config.Encryption{Recipients: recipients, IdentityFile: config.SecretFile(files[0])}
	return files
}

func TestADrillWithoutASnapshotFails(t *testing.T) {
	f := newFleet(t)
	f.work()
	for _, payload := range []string{"", `{"snapshot":"random"}`, `{"snapshot":"oldest"}`} {
		assert.Contains(t, f.drill(payload, "failed").GetMessage(), "has none yet")
	}
	assert.Contains(t, f.drill(`{"snapshot":"no-such-id"}`, "failed").GetMessage(), "no-such-id")
}

func TestADrillIsReportedBesideItsSnapshot(t *testing.T) {
	f := newFleet(t)
	f.target(func(t *config.Target) {
		t.Drill = config.Drill{MaxRTO: time.Minute, Checks: []config.Check{{Key: "a"}, {Count: "keys", Min: 2}}}
	})
	f.work()
	m := f.snapshot()
	e := f.drill(`{"requestedBy":"somebody"}`, "passed")
	assert.Contains(t, e.GetMessage(), "passed: a throwaway consul server")
	assert.Contains(t, e.GetMessage(), "Checks of the target that hold: 2.")
	assert.Equal(t, "somebody", e.GetRequestedBy())
	assert.Equal(t, e.GetMessage(), e.GetDrill().GetSummary())
	all := f.snapshots()
	require.Len(t, all, 1)
	require.Len(t, all[0].Drills, 1)
	report := all[0].Drills[0]
	assert.Equal(t, e.GetDrillId(), report.GetId())
	assert.Equal(t, e.GetJobId(), report.GetId(), "the job's id is the drill's")
	assert.Equal(t, report, all[0].Proven())
	assert.Equal(t, "somebody", report.GetRequestedBy())
	assert.Equal(t, time.Minute, report.GetMaxRto().AsDuration())
	assert.Empty(t, report.GetIdentity(), "it is not encrypted")
	require.NoError(t, testutil.GatherAndCompare(f.registry, strings.NewReader(fmt.Sprintf(
		"# HELP lifeboat_proven_snapshot_timestamp_seconds When the newest snapshot was taken that a drill restored and found right, as far as this process knows.\n"+
			"# TYPE lifeboat_proven_snapshot_timestamp_seconds gauge\n"+
			"lifeboat_proven_snapshot_timestamp_seconds{target=%q} %v\n", target, float64(m.GetStartedAt().AsTime().UnixMilli())/1000)),
		"lifeboat_proven_snapshot_timestamp_seconds"))
	n, err := testutil.GatherAndCount(f.registry, "lifeboat_drill_phase_seconds")
	require.NoError(t, err)
	assert.Equal(t, len(phasesOf(report)), n)
	n, err = testutil.GatherAndCount(f.registry, "lifeboat_drill_rto_seconds")
	require.NoError(t, err)
	assert.Equal(t, 1, n)
	left, err := os.ReadDir(f.scratch)
	require.NoError(t, err)
	assert.Empty(t, left)
}

func phasesOf(r *lifeboatv1.DrillReport) map[string]bool {
	all := map[string]bool{}
	for _, p := range r.GetPhases() {
		all[p.GetName()] = true
	}
	return all
}

// Which snapshot is drilled: what the job says; for a tick that says nothing, what the target says.
func TestADrillPicksItsSnapshot(t *testing.T) {
	f := newFleet(t)
	f.work()
	n := 0
	f.source = func(context.Context) (io.Reader, error) {
		n++
		return strings.NewReader(strings.Replace(export, "MQ==", []string{"MQ==", "Mg==", "Mw=="}[n-1], 1)), nil
	}
	ids := make([]string, 3)
	for i := range ids {
		ids[i] = f.snapshot().GetId()
	}
	tick := `"tick":"2026-11-21T04:00:00Z"`
	for payload, want := range map[string]string{
		"": ids[2], `{"snapshot":"latest"}`: ids[2], `{"snapshot":"oldest"}`: ids[0],
		fmt.Sprintf(`{"snapshot":%q}`, ids[1]): ids[1], "{" + tick + "}": ids[2],
	} {
		assert.Equal(t, want, f.drill(payload, "passed").GetSnapshotId(), payload)
	}
	f.target(func(t *config.Target) { t.Drill.Snapshot = config.SnapshotOldest })
	assert.Equal(t, ids[0], f.drill("{"+tick+"}", "passed").GetSnapshotId())
	assert.Equal(t, ids[2], f.drill("", "passed").GetSnapshotId(), "a person's drill is of the newest")
	assert.Equal(t, ids[1], f.drill(fmt.Sprintf(`{%s,"snapshot":%q}`, tick, ids[1]), "passed").GetSnapshotId())
	assert.Contains(t, ids, f.drill(`{"snapshot":"random"}`, "passed").GetSnapshotId())
}

// An escrow identity is proven by drills of its own, with events of their own.
func TestADrillWithTheEscrowIdentity(t *testing.T) {
	f := newFleet(t)
	files := f.encrypted(2)
	f.target(func(t *config.Target) { t.Drill.Escrow.IdentityFile = config.SecretFile(files[1]) })
	f.work()
	f.snapshot()
	const escrow = `{"identity":"escrow"}`
	e := f.drill(escrow, "escrow-passed")
	assert.Equal(t, "escrow", e.GetDrill().GetIdentity())
	assert.Contains(t, e.GetMessage(), "The escrow identity decrypted it.")
	assert.Equal(t, "worker", f.drill("", "passed").GetDrill().GetIdentity())

	stranger, err := age.GenerateX25519Identity()
	require.NoError(t, err)
	require.NoError(t, os.WriteFile(files[1], []byte(stranger.String()), 0o600))
	e = f.drill(escrow, "escrow-failed")
	assert.Equal(t, "decrypt", e.GetDrill().GetFailedPhase())
	assert.Contains(t, e.GetMessage(), "the escrow identity is another key")
	assert.Contains(t, e.GetMessage(), f.config.Load().Encryption.Recipients[1])
	assert.NotContains(t, e.String(), stranger.String())

	require.NoError(t, os.Remove(files[1]))
	assert.Contains(t, f.drill(escrow, "escrow-failed").GetMessage(), "drill.escrow.identity_file: reading secret file")
	f.target(func(t *config.Target) { t.Drill.Escrow.IdentityFile = "" })
	assert.Contains(t, f.drill(escrow, "escrow-failed").GetMessage(), "drill.escrow.identity_file of consul-kv is not set")
	assert.Equal(t, 1, f.count("drill", "passed"))
	assert.Zero(t, f.count("drill", "failed"), "the worker's own key is good")

	f.publish(config.WorkDrill, target, `{"identity":"mine"}`)
	assert.Contains(t, f.event("job", "rejected", target).GetMessage(), `"mine"`)
}

// A worker whose own identity is missing cannot restore, and says so.
func TestADrillWithoutItsIdentityFails(t *testing.T) {
	f := newFleet(t)
	files := f.encrypted(1)
	f.work()
	f.snapshot()
	require.NoError(t, os.Remove(files[0]))
	e := f.drill("", "failed")
	assert.Equal(t, "decrypt", e.GetDrill().GetFailedPhase())
	assert.Contains(t, e.GetMessage(), "encryption.identity_file: reading secret file")
}

// damage is done to what lies in the bucket.
type damage struct {
	name, phase string
	words       []string
	do          func(t *testing.T, f *fleet, m, other *lifeboatv1.Manifest)
}

func read(t *testing.T, path string) []byte {
	t.Helper()
	b, err := os.ReadFile(path)
	require.NoError(t, err)
	return b
}

func write(t *testing.T, path string, b []byte) {
	t.Helper()
	require.NoError(t, os.WriteFile(path, b, 0o600))
}

func damages() []damage {
	manifest := func(f *fleet, m *lifeboatv1.Manifest) string {
		return f.s3.Path(f.catalog.Layout.Manifest(target, m.GetId()))
	}
	data := func(f *fleet, m *lifeboatv1.Manifest) string { return f.s3.Path(m.GetData().GetKey()) }
	edit := func(t *testing.T, f *fleet, m *lifeboatv1.Manifest, old, text string) {
		t.Helper()
		b := string(read(t, manifest(f, m)))
		require.Contains(t, b, old)
		write(t, manifest(f, m), []byte(strings.ReplaceAll(b, old, text)))
	}
	return []damage{
		{"a flipped byte", "fetch", []string{"is not what the manifest says: its sha256 is"}, func(t *testing.T, f *fleet, m, _ *lifeboatv1.Manifest) {
			t.Helper()
			b := read(t, data(f, m))
			b[len(b)/2] ^= 1
			write(t, data(f, m), b)
		}},
		{"truncated", "fetch", []string{"is not what the manifest says: it has "}, func(t *testing.T, f *fleet, m, _ *lifeboatv1.Manifest) {
			t.Helper()
			b := read(t, data(f, m))
			write(t, data(f, m), b[:len(b)/2])
		}},
		{"missing", "fetch", []string{"the stored object", "is missing"}, func(t *testing.T, f *fleet, m, _ *lifeboatv1.Manifest) {
			t.Helper()
			require.NoError(t, os.Remove(data(f, m)))
		}},
		{"another snapshot's data", "fetch", []string{"is not what the manifest says", "it is the data of snapshot "}, func(t *testing.T, f *fleet, m, other *lifeboatv1.Manifest) {
			t.Helper()
			write(t, data(f, m), read(t, data(f, other)))
		}},
		{"a manifest of garbage", "manifest", []string{"manifest.json is damaged"}, func(t *testing.T, f *fleet, m, _ *lifeboatv1.Manifest) {
			t.Helper()
			write(t, manifest(f, m), []byte("garbage"))
		}},
		{"a cut manifest", "manifest", []string{"manifest.json is damaged"}, func(t *testing.T, f *fleet, m, _ *lifeboatv1.Manifest) {
			t.Helper()
			b := read(t, manifest(f, m))
			write(t, manifest(f, m), b[:len(b)/2])
		}},
		{"an empty manifest", "manifest", []string{"manifest.json is damaged"}, func(t *testing.T, f *fleet, m, _ *lifeboatv1.Manifest) {
			t.Helper()
			write(t, manifest(f, m), nil)
		}},
		{"another target's manifest", "manifest", []string{"is damaged: it says that it is"}, func(t *testing.T, f *fleet, m, _ *lifeboatv1.Manifest) {
			t.Helper()
			edit(t, f, m, `"`+target+`"`, `"other"`)
		}},
		{"another snapshot's manifest", "manifest", []string{"is damaged: it says that it is"}, func(t *testing.T, f *fleet, m, other *lifeboatv1.Manifest) {
			t.Helper()
			write(t, manifest(f, m), read(t, manifest(f, other)))
		}},
		{"a manifest of the future", "manifest", []string{"has format 9"}, func(t *testing.T, f *fleet, m, _ *lifeboatv1.Manifest) {
			t.Helper()
			write(t, manifest(f, m), []byte(`{"format":9,"id":"`+m.GetId()+`","target":"`+target+`"}`))
		}},
		{"another kind", "manifest", []string{"of kind etcd, and consul-kv is configured as consul"}, func(t *testing.T, f *fleet, m, _ *lifeboatv1.Manifest) {
			t.Helper()
			edit(t, f, m, "KIND_CONSUL", "KIND_ETCD")
		}},
		{"a manifest that points elsewhere", "manifest", []string{"it is another target's or another snapshot's"}, func(t *testing.T, f *fleet, m, _ *lifeboatv1.Manifest) {
			t.Helper()
			edit(t, f, m, path.Dir(m.GetData().GetKey()), "p/other/snapshots/"+m.GetId())
		}},
		{"other digests", "decrypt", []string{"the stored object is what the manifest says, and what is in it is not"}, func(t *testing.T, f *fleet, m, _ *lifeboatv1.Manifest) {
			t.Helper()
			edit(t, f, m, m.GetData().GetRaw().GetSha256(), strings.Repeat("0", 64))
		}},
	}
}

// Every part of a snapshot is damaged in the bucket. The drill fails, names the phase and the cause, and is reported beside the snapshot.
func TestADrillNamesWhatIsDamaged(t *testing.T) {
	for _, d := range damages() {
		t.Run(d.name, func(t *testing.T) {
			f := newFleet(t)
			f.encrypted(1)
			f.work()
			other := f.snapshot()
			f.source = func(context.Context) (io.Reader, error) {
				return strings.NewReader(strings.Replace(export, "42", "43", 1)), nil
			}
			m := f.snapshot()
			d.do(t, f, m, other)
			e := f.drill("", "failed")
			require.Equal(t, d.phase, e.GetDrill().GetFailedPhase(), e.GetMessage())
			for _, w := range d.words {
				assert.Contains(t, e.GetMessage(), w)
			}
			assert.Contains(t, e.GetMessage(), "What to do: ")
			assert.Equal(t, m.GetId(), e.GetSnapshotId())
			assert.Equal(t, target, e.GetDrill().GetTarget())
			stored := read(t, f.s3.Path(f.catalog.Drill(target, m.GetId(), e.GetDrillId())))
			assert.Contains(t, string(stored), `"failedPhase"`)
			if d.name == "a flipped byte" || d.name == "a manifest of garbage" {
				// The other one is as good as ever.
				assert.Equal(t, other.GetId(), f.drill(`{"snapshot":"oldest"}`, "passed").GetSnapshotId())
			}
		})
	}
}

// A store that does not answer is no verdict: the job is tried again, and the drill passes once it does.
func TestAStoreThatFailsIsNoFailedDrill(t *testing.T) {
	f := newFleet(t)
	proxy := f.behind(s3test.NewProxy(t, f.s3))
	f.work()
	f.snapshot()
	var failing atomic.Int32
	failing.Store(2)
	proxy.Handle(func(r *http.Request) s3test.Fault {
		if s3test.Op(r) == "GetObject" && strings.Contains(s3test.Key(r), "/data.") && failing.Add(-1) >= 0 {
			return s3test.Answer(http.StatusForbidden, "AccessDenied")
		}
		return s3test.Pass()
	})
	f.publish(config.WorkDrill, target, "")
	f.event("drill", "passed", target)
	assert.Zero(t, f.count("drill", "failed"))
}

// A job that can never be carried out with the escrow identity is told of as a drill of that.
func TestADeadEscrowDrillHasItsOwnEvent(t *testing.T) {
	f := newFleet(t)
	w := worker.New(worker.Options{Config: f.config.Load, Bus: f.events, Registerer: prometheus.NewRegistry(), Clock: time.Now})
	m := &bus.Message{Subject: bus.JobSubject(config.WorkDrill, target), Seq: 1, Stored: time.Now(), Attempt: 3, Data: []byte(`{"identity":"escrow"}`)}
	require.NoError(t, w.OnDead(t.Context(), m, errors.New("the store is gone")))
	assert.Contains(t, f.event("drill", "escrow-failed", target).GetMessage(), "the store is gone")
	m.Data = nil
	require.NoError(t, w.OnDead(t.Context(), m, errors.New("the store is gone")))
	f.event("drill", "failed", target)
}

// A snapshot that retention deletes while it is drilled is no snapshot that fails to restore: another one is drilled.
func TestASnapshotDeletedWhileItIsDrilledIsNoFailedDrill(t *testing.T) {
	f := newFleet(t)
	proxy := f.behind(s3test.NewProxy(t, f.s3))
	f.work()
	first := f.snapshot()
	f.source = func(context.Context) (io.Reader, error) {
		return strings.NewReader(strings.Replace(export, "42", "43", 1)), nil
	}
	second := f.snapshot()
	require.NotEqual(t, first.GetData().GetKey(), second.GetData().GetKey())
	var deleted atomic.Bool
	proxy.Handle(func(r *http.Request) s3test.Fault {
		if s3test.Op(r) == "GetObject" && strings.Contains(s3test.Key(r), first.GetId()+"/data.") && !deleted.Swap(true) {
			assert.NoError(t, os.Remove(f.s3.Path(f.catalog.Layout.Manifest(target, first.GetId()))))
			assert.NoError(t, os.Remove(f.s3.Path(first.GetData().GetKey())))
		}
		return s3test.Pass()
	})
	assert.Equal(t, second.GetId(), f.drill(`{"snapshot":"oldest"}`, "passed").GetSnapshotId())
	assert.True(t, deleted.Load())
	assert.Zero(t, f.count("drill", "failed"))
}

// An event has room for so much. A drill of a target with more checks than that is told of all the same, and its report has all.
func TestADrillOfManyChecksIsToldOf(t *testing.T) {
	const many = 3000
	f := newFleet(t)
	checks := make([]config.Check, many)
	for i := range checks {
		checks[i] = config.Check{Count: strings.Repeat("x", 250) + fmt.Sprint(i), Min: 1}
	}
	f.target(func(t *config.Target) { t.Drill = config.Drill{Checks: checks} })
	f.work()
	f.snapshot()
	e := f.drill("", "failed")
	told := e.GetDrill().GetComparisons()
	assert.Less(t, len(told), many)
	last := told[len(told)-1]
	assert.Equal(t, "further comparisons", last.GetWhat())
	report := f.snapshots()[0].Drills[0]
	assert.Greater(t, len(report.GetComparisons()), many)
	assert.Equal(t, fmt.Sprint(len(report.GetComparisons())-len(told)+1), last.GetGot())
}
