package drill_test

import (
	"bytes"
	"context"
	"errors"
	"io"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"testing/iotest"
	"time"

	"filippo.io/age"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/lifeboat-fleet/lifeboat/fleet/config"
	lifeboatv1 "github.com/lifeboat-fleet/lifeboat/proto/lifeboat/v1"
	"github.com/lifeboat-fleet/lifeboat/services/backup/internal/drill"
	"github.com/lifeboat-fleet/lifeboat/services/backup/internal/pipeline"
	"github.com/lifeboat-fleet/lifeboat/services/backup/internal/store"
	"github.com/lifeboat-fleet/lifeboat/services/backup/internal/throwaway"
)

func throwawayRun(t *testing.T, in drill.Input) (*lifeboatv1.DrillReport, error) {
	t.Helper()
	rep, err := drill.Run(t.Context(), in)
	requireEmpty(t, in.Dir)
	return rep, err
}

// TestDamagedObject damages what is stored, in every way. The drill names the object, and that it is the store's copy that is wrong.
func TestDamagedObject(t *testing.T) {
	s := smallEtcd(t)
	seed := uint64(time.Now().UnixNano())
	t.Logf("seed %d", seed)
	r := rand.New(rand.NewPCG(seed, 0))
	good := s.stored(t)
	flip := func(at int) []byte {
		bad := slices.Clone(good)
		bad[at] ^= byte(1 + r.IntN(255))
		return bad
	}
	const wrong = "is not what the manifest says"
	for name, c := range map[string]struct {
		data  []byte
		words string
	}{
		"a byte of the header": {flip(r.IntN(150)), "its sha256 is "}, "a byte in the middle": {flip(len(good) / 2), "its sha256 is "},
		"the last byte": {flip(len(good) - 1), "its sha256 is "}, "any byte": {flip(r.IntN(len(good))), "its sha256 is "},
		"truncated": {good[:len(good)/2], "it has "}, "without its last byte": {good[:len(good)-1], "it has "},
		"nothing": {nil, "it has 0 bytes instead of"}, "something behind it": {append(slices.Clone(good), 0), "it has "},
		"another file": {bytes.Repeat([]byte("x"), len(good)), "its sha256 is "},
	} {
		t.Run(name, func(t *testing.T) {
			s.store(t, c.data)
			rep := requireFailed(t, s.input(t), "fetch", wrong, c.words, s.manifest.GetData().GetKey())
			assert.Contains(t, rep.GetSummary(), "earlier versions")
			assert.Contains(t, phases(rep), "fetch")
		})
	}
	t.Run("another snapshot's", func(t *testing.T) {
		in := s.input(t)
		s.store(t, []byte("of another"))
		in.Owner = func(_ context.Context, d *lifeboatv1.Digest) string {
			if d.GetSha256() == sum([]byte("of another")) {
				return "snapshot s of another-target"
			}
			return ""
		}
		requireFailed(t, in, "fetch", wrong, "it is the data of snapshot s of another-target")
	})
	t.Run("missing", func(t *testing.T) {
		in := s.change(t, func(m *lifeboatv1.Manifest) { m.Data.Key += "x" }).input(t)
		requireFailed(t, in, "fetch", "the stored object p/etcd-test/snapshots/snap-1/data.db.zst.agex is missing")
	})
}

// TestDamagedManifest has a manifest that is whole, and about something else.
func TestDamagedManifest(t *testing.T) {
	s := smallEtcd(t)
	for name, c := range map[string]struct {
		change func(*lifeboatv1.Manifest)
		words  string
	}{
		"another target's":   {func(m *lifeboatv1.Manifest) { m.Target = "other" }, "says that it is that of snap-1 of other"},
		"another snapshot's": {func(m *lifeboatv1.Manifest) { m.Id = "snap-2" }, "says that it is that of snap-2 of etcd-test"},
		"another kind":       {func(m *lifeboatv1.Manifest) { m.Kind = lifeboatv1.Kind_KIND_NOMAD }, "of kind nomad, and etcd-test is configured as etcd"},
		"no kind":            {func(m *lifeboatv1.Manifest) { m.Kind = 0 }, "of kind unspecified"},
		"another format":     {func(m *lifeboatv1.Manifest) { m.Data.Format = "tar" }, `names data of format "tar"`},
		"no data":            {func(m *lifeboatv1.Manifest) { m.Data = nil }, `names data of format ""`},
		"another target's data": {
			func(m *lifeboatv1.Manifest) { m.Data.Key = "p/other/snapshots/snap-1/data.db.zst.age" },
			"it is another target's or another snapshot's",
		},
		"another snapshot's data": {
			func(m *lifeboatv1.Manifest) { m.Data.Key = "p/etcd-test/snapshots/snap-0/data.db.zst.age" }, "another snapshot's",
		},
		"no digest": {func(m *lifeboatv1.Manifest) { m.Data.Stored = nil }, "does not say how long"},
	} {
		t.Run(name, func(t *testing.T) {
			in := s.change(t, c.change).input(t)
			in.SnapshotID = "snap-1"
			rep := requireFailed(t, in, "manifest", c.words)
			assert.Equal(t, "etcd-test", rep.GetTarget())
			assert.Equal(t, "snap-1", rep.GetSnapshotId())
		})
	}
	t.Run("unreadable", func(t *testing.T) {
		in := s.input(t)
		in.Manifest, in.Unreadable = nil, errors.New("manifest.json is damaged: unexpected token")
		rep := requireFailed(t, in, "manifest", "unexpected token")
		assert.Equal(t, lifeboatv1.Kind_KIND_ETCD, rep.GetKind())
		assert.Contains(t, rep.GetSummary(), "nothing was restored")
	})
	t.Run("of an unchanged source", func(t *testing.T) {
		other := s.change(t, func(m *lifeboatv1.Manifest) { m.Id, m.Data.UnchangedSince = "snap-2", "snap-1" })
		requirePassed(t, other.input(t))
	})
	t.Run("a wrong raw digest", func(t *testing.T) {
		requireFailed(t, s.change(t, func(m *lifeboatv1.Manifest) { m.Data.Raw.Sha256 = sum(nil) }).input(t),
			"decrypt", "the stored object is what the manifest says, and what is in it is not", "raw data has sha256")
	})
	t.Run("another compression", func(t *testing.T) {
		requireFailed(t, s.change(t, func(m *lifeboatv1.Manifest) { m.Data.Compression = "lz4" }).input(t), "decrypt", `compression "lz4"`)
	})
}

func TestWrongKey(t *testing.T) {
	s := smallEtcd(t)
	other, err := age.GenerateX25519Identity()
	require.NoError(t, err)
	recipient := s.identity.Recipient().String()
	in := s.input(t)
	in.Identities = []age.Identity{other}
	rep := requireFailed(t, in, "decrypt", "the worker identity is another key", recipient)
	assert.Contains(t, rep.GetSummary(), "encryption.identity_file")

	in.Identity = drill.IdentityEscrow
	rep = requireFailed(t, in, "decrypt", "the escrow identity is another key", recipient)
	assert.Equal(t, "escrow", rep.GetIdentity())
	assert.Contains(t, rep.GetSummary(), "drill.escrow.identity_file")

	in.Identity, in.Identities = drill.IdentityWorker, nil
	requireFailed(t, in, "decrypt", "encryption.identity_file is not set", recipient)

	in.Locked = errors.New("drill.escrow.identity_file: reading secret file: open /nowhere: no such file or directory")
	requireFailed(t, in, "decrypt", "/nowhere: no such file")

	clear := s.change(t, func(m *lifeboatv1.Manifest) { m.Data.Recipients = nil })
	encoded := pipeline.Encode(bytes.NewReader(s.raw["db"]), nil)
	plain, err := io.ReadAll(encoded)
	require.NoError(t, err)
	require.NoError(t, encoded.Close())
	clear.store(t, plain)
	clear.manifest.Data.Stored = encoded.Stored()
	in = clear.input(t)
	in.Identity, in.Identities = drill.IdentityEscrow, nil
	rep = requireFailed(t, in, "decrypt", "the snapshot is not encrypted, so that no key can be proven by it")
	assert.Equal(t, "escrow", rep.GetIdentity(), "which key it was about")
	assert.Contains(t, rep.GetSummary(), "encryption.recipients")
	in.Identity = drill.IdentityWorker
	assert.Empty(t, requirePassed(t, in).GetIdentity())

	for _, text := range []string{s.identity.String(), other.String()} {
		assert.NotContains(t, rep.String(), text)
	}
	in = s.input(t)
	in.Identity = drill.IdentityEscrow
	assert.Contains(t, requirePassed(t, in).GetSummary(), "The escrow identity decrypted it.")
}

// TestTheStoreIsNoVerdict has a store that fails, which says nothing about the snapshot.
func TestTheStoreIsNoVerdict(t *testing.T) {
	s := smallEtcd(t)
	broken := errors.New("connection refused")
	good := s.stored(t)
	for name, fetch := range map[string]func(context.Context, string) (io.ReadCloser, error){
		"at once": func(context.Context, string) (io.ReadCloser, error) { return nil, broken },
		"half-way": func(context.Context, string) (io.ReadCloser, error) {
			return io.NopCloser(io.MultiReader(bytes.NewReader(good[:len(good)/2]), iotest.ErrReader(broken))), nil
		},
		"in the header": func(context.Context, string) (io.ReadCloser, error) {
			return io.NopCloser(iotest.ErrReader(broken)), nil
		},
	} {
		t.Run(name, func(t *testing.T) {
			in := s.input(t)
			in.Fetch = fetch
			rep, err := throwawayRun(t, in)
			assert.Nil(t, rep)
			require.ErrorIs(t, err, drill.ErrStore)
			require.ErrorIs(t, err, broken)
		})
	}
	t.Run("when it is asked again", func(t *testing.T) {
		in := s.input(t)
		calls := 0
		in.Fetch = func(context.Context, string) (io.ReadCloser, error) {
			if calls++; calls > 1 {
				return nil, broken
			}
			return io.NopCloser(strings.NewReader("damaged")), nil
		}
		_, err := throwawayRun(t, in)
		require.ErrorIs(t, err, drill.ErrStore)
	})
	t.Run("changed on the way", func(t *testing.T) {
		in := s.input(t)
		calls := 0
		in.Fetch = func(context.Context, string) (io.ReadCloser, error) {
			sent := slices.Clone(good)
			if calls++; calls == 1 {
				sent[len(sent)/2] ^= 1
			}
			return io.NopCloser(bytes.NewReader(sent)), nil
		}
		_, err := throwawayRun(t, in)
		require.ErrorIs(t, err, drill.ErrStore)
		require.ErrorContains(t, err, "changed on the way")
	})
	t.Run("gone half-way is a verdict", func(t *testing.T) {
		in := s.input(t)
		in.Fetch = func(context.Context, string) (io.ReadCloser, error) {
			return io.NopCloser(io.MultiReader(bytes.NewReader(good[:100]), iotest.ErrReader(store.ErrNotFound))), nil
		}
		requireFailed(t, in, "fetch", "is missing")
	})
	t.Run("a bug", func(t *testing.T) {
		in := s.input(t)
		in.Fetch = func(context.Context, string) (io.ReadCloser, error) { panic("a bug") }
		requireFailed(t, in, "fetch", "a bug")
	})
}

// TestCanceled ends the context in each phase, and before. There is no report, and nothing is left.
func TestCanceled(t *testing.T) {
	shutdown := errors.New("the worker stops")
	run := func(t *testing.T, s *shelf, phase string) {
		t.Helper()
		ctx, cancel := context.WithCancelCause(t.Context())
		defer cancel(nil)
		in := s.input(t)
		if phase == "" {
			cancel(shutdown)
		}
		in.Began = func(p string) {
			if p == phase {
				cancel(shutdown)
			}
		}
		rep, err := drill.Run(ctx, in)
		assert.Nil(t, rep)
		require.ErrorIs(t, err, shutdown)
		requireEmpty(t, in.Dir)
	}
	s := smallEtcd(t)
	for _, phase := range []string{"", "manifest", "prepare", "fetch", "decrypt", "restore", "start", "compare"} {
		t.Run("etcd "+phase, func(t *testing.T) { run(t, s, phase) })
	}
	s = smallConsul(t)
	for _, phase := range []string{"fetch", "start", "restore", "compare"} {
		t.Run("consul "+phase, func(t *testing.T) { run(t, s, phase) })
	}
}

func TestBudget(t *testing.T) {
	s := smallEtcd(t)
	t.Run("time", func(t *testing.T) {
		in := s.input(t)
		in.Target.Drill.Timeout = 100 * time.Millisecond
		in.Fetch = func(ctx context.Context, _ string) (io.ReadCloser, error) {
			<-ctx.Done()
			return nil, ctx.Err()
		}
		rep := requireFailed(t, in, "fetch", "drill.timeout", "100ms")
		assert.Contains(t, rep.GetSummary(), "give it more room")
	})
	t.Run("disk", func(t *testing.T) {
		in := s.input(t)
		in.Target.Drill.MaxDiskMiB = 1
		rep, err := throwawayRun(t, in)
		require.NoError(t, err)
		require.False(t, rep.GetPassed())
		assert.Regexp(t, `^(restore|start|compare|stop): .*of disk, its budget is 1.0 MiB`, rep.GetFailure())
		assert.EqualValues(t, 1<<20, rep.GetUsage().GetDiskBudget())
		assert.Greater(t, rep.GetUsage().GetDiskBytes(), rep.GetUsage().GetDiskBudget())
	})
	t.Run("memory", func(t *testing.T) {
		in := smallConsul(t).input(t)
		in.Target.Drill.MaxMemoryMiB = 1
		rep, err := throwawayRun(t, in)
		require.NoError(t, err)
		require.False(t, rep.GetPassed())
		assert.Contains(t, rep.GetFailure(), "of memory, its budget is 1.0 MiB")
		assert.Greater(t, rep.GetUsage().GetMemoryBytes(), rep.GetUsage().GetMemoryBudget())
	})
	t.Run("rto", func(t *testing.T) {
		in := s.input(t)
		in.Target.Drill.MaxRTO = time.Nanosecond
		rep := requireFailed(t, in, "compare", "rto is ", "at most 1ns")
		assert.Equal(t, lifeboatv1.DrillReport_LEVEL_RESTORED, rep.GetLevel())
	})
}

// TestNoBinary: a server that is not installed is a failed drill that says so.
func TestNoBinary(t *testing.T) {
	for name, s := range map[string]*shelf{"consul": smallConsul(t), "nomad": smallNomad(t)} {
		t.Run(name, func(t *testing.T) {
			in := s.input(t)
			in.Servers.ConsulBinary, in.Servers.NomadBinary = filepath.Join(t.TempDir(), "consul"), filepath.Join(t.TempDir(), "nomad")
			rep := requireFailed(t, in, "start", throwaway.ErrNoBinary.Error(), "/"+name)
			assert.NotEqual(t, lifeboatv1.DrillReport_LEVEL_RESTORED, rep.GetLevel())
			assert.Contains(t, rep.GetSummary(), "install the server")
		})
	}
}

// TestIsolationThatIsRequired has no command to confine a server with.
func TestIsolationThatIsRequired(t *testing.T) {
	in := smallConsul(t).input(t)
	in.Servers.RequireIsolation = true
	requireFailed(t, in, "start", "namespace")
}

func TestChecks(t *testing.T) {
	c := startEtcd(t)
	put(t, c, 12)
	for k, v := range map[string]string{"config/db": "orders\n", "config/mode": "green", "config/empty": ""} {
		_, err := c.Put(t.Context(), k, v)
		require.NoError(t, err)
	}
	s := takeEtcd(t, c, "")
	file := filepath.Join(t.TempDir(), "wanted")
	require.NoError(t, os.WriteFile(file, []byte("orders\n"), 0o600))
	text := func(s string) *string { return &s }
	holding := []config.Check{
		{Key: "config/db"},
		{Key: "config/mode", Value: text("green")},
		{Key: "config/empty", Value: text("")},
		{Key: "config/db", ValueFile: config.SecretFile(file)},
		{Key: "config/mode", Matches: "^(green|blue)$"},
		{Prefix: "config/"},
		{Prefix: "key-", Min: 12},
		{Count: "keys", Min: 15},
		{Count: "revisions", Min: 15},
	}
	in := s.input(t)
	in.Target.Drill.Checks = holding
	rep := requirePassed(t, in)
	assert.Contains(t, rep.GetSummary(), "Checks of the target that hold: 9.")
	assert.Contains(t, phases(rep), "check")
	assert.NotContains(t, rep.String(), "green", "values are never shown")

	for _, c := range []struct {
		check config.Check
		words string
	}{
		{config.Check{Key: "config/none"}, `key "config/none" is missing and should be there`},
		{config.Check{Key: "config/mode", Value: text("blue")}, `key "config/mode" is there with another value and should be there with the value`},
		{config.Check{Key: "config/none", Value: text("blue")}, `key "config/none" is missing`},
		{config.Check{Key: "config/mode", ValueFile: config.SecretFile(file)}, "there with another value and should be there with the value in the check's file"},
		{config.Check{Key: "config/mode", Matches: "^red$"}, "there with another value and should be there with a value that matches the check"},
		{config.Check{Prefix: "config/", Min: 4}, `the number of keys under "config/" is 3 and should be at least 4`},
		{config.Check{Prefix: "none/"}, `the number of keys under "none/" is 0 and should be at least 1`},
		{config.Check{Count: "keys", Min: 16}, "the number of keys is 15 and should be at least 16"},
		{config.Check{Count: "jobs", Min: 1}, "the number of jobs is not known (what is counted is: auth_enabled, "},
		{config.Check{Job: "web"}, "a check is about something else"},
	} {
		in = s.input(t)
		in.Target.Drill.Checks = append(slices.Clone(holding), c.check)
		rep = requireFailed(t, in, "check", "what drill.checks asks for is not so: ", c.words)
		assert.Contains(t, rep.GetSummary(), "Checks of the target that hold: 9.")
		for _, secret := range []string{"green", "blue", "orders"} {
			assert.NotContains(t, rep.String(), secret)
		}
	}
	in.Target.Drill.Checks = []config.Check{{Key: "config/db", ValueFile: "/nowhere/wanted"}}
	requireFailed(t, in, "check", "check 1 of the target", "/nowhere/wanted")
}

// TestManyDifferences: however much differs, the report stays short.
func TestManyDifferences(t *testing.T) {
	s := smallEtcd(t)
	in := s.input(t)
	for _, key := range texts(40, "missing-%d-"+strings.Repeat("x", 1000)) {
		in.Target.Drill.Checks = append(in.Target.Drill.Checks, config.Check{Key: key})
	}
	rep := requireFailed(t, in, "check", "and 30 more")
	assert.Less(t, len(rep.GetFailure()), 6000)
	assert.Less(t, len(rep.GetSummary()), 10_000)
	assert.Len(t, rep.GetComparisons(), len(found(rep)), "each is named")
}
