package app

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/lifeboat-fleet/lifeboat/fleet/fleettest/s3test"
	"github.com/lifeboat-fleet/lifeboat/fleet/service"
	"github.com/lifeboat-fleet/lifeboat/services/backup/internal/store"
)

// onData gives faults to the reads of data, one after the other, and passes everything else.
func onData(faults ...func() s3test.Fault) func(*http.Request) s3test.Fault {
	var n atomic.Int64
	return func(r *http.Request) s3test.Fault {
		if s3test.Op(r) != "GetObject" || !strings.Contains(s3test.Key(r), "/data.") {
			return s3test.Pass()
		}
		if i := int(n.Add(1)) - 1; i < len(faults) {
			return faults[i]()
		}
		return s3test.Pass()
	}
}

// dataRanges are the Range headers with which data was asked for.
func dataRanges(p *s3test.Proxy) []string {
	var ranges []string
	for _, r := range p.Requests() {
		if r.Op == "GetObject" && strings.Contains(r.Key, "/data.") {
			ranges = append(ranges, r.Header.Get("Range"))
		}
	}
	return ranges
}

func partials(t *testing.T, file string) []string {
	t.Helper()
	found, err := filepath.Glob(file + ".*.partial")
	require.NoError(t, err)
	return found
}

// only fails when anything but the named files lies in a folder: a temporary file left behind, for one.
func only(t *testing.T, dir string, names ...string) {
	t.Helper()
	entries, err := os.ReadDir(dir)
	require.NoError(t, err)
	var have []string
	for _, e := range entries {
		have = append(have, e.Name())
	}
	assert.ElementsMatch(t, names, have)
}

func TestFetchGivesWhatTheSourceSent(t *testing.T) {
	l := labFor(t)
	raw, snap := random(t, 3<<20), random(t, 1<<20)
	m := l.mustCommit(t, plan{raw: raw, encrypted: true, snap: snap})
	dir := t.TempDir()
	file, key := filepath.Join(dir, "etcd.db"), filepath.Join(l.dir, "lifeboat.key")

	out, _, code := l.lifeboat(t, "snapshot", "fetch", etcdTarget, "-o", file, "--identity-file", key)
	require.Zero(t, code)
	got, err := os.ReadFile(file)
	require.NoError(t, err)
	assert.True(t, bytes.Equal(raw, got))
	info, err := os.Stat(file)
	require.NoError(t, err)
	assert.Equal(t, os.FileMode(0o600), info.Mode().Perm())
	assert.Contains(t, out, "etcdutl snapshot restore "+file+" --data-dir DATA_DIR")
	assert.NotContains(t, out, "age -d", "that is done")
	only(t, dir, "etcd.db")

	_, _, code = l.lifeboat(t, "snapshot", "fetch", etcdTarget, m.Id, "--part", "snap", "-o", filepath.Join(dir, "raft.snap"), "--identity-file", key)
	require.Zero(t, code)
	got, err = os.ReadFile(filepath.Join(dir, "raft.snap"))
	require.NoError(t, err)
	assert.True(t, bytes.Equal(snap, got))

	// The stored form needs no identity, and is what the manifest's own commands expect.
	stored := filepath.Join(dir, "data.db.zst.age")
	out, _, code = l.lifeboat(t, "snapshot", "fetch", etcdTarget, "--stored", "-o", stored)
	require.Zero(t, code)
	got, err = os.ReadFile(stored)
	require.NoError(t, err)
	assert.Equal(t, m.Data.Stored.Sha256, digest(got).Sha256)
	assert.Contains(t, out, "age -d -i IDENTITY_FILE "+stored)
	only(t, dir, "etcd.db", "raft.snap", "data.db.zst.age")
}

func TestFetchGoesOnWhenTheConnectionBreaks(t *testing.T) {
	l := labFor(t)
	raw := random(t, 8<<20)
	l.mustCommit(t, plan{raw: raw})
	p := s3test.NewProxy(t, l.server)
	l.through(t, p)
	p.Handle(onData(s3test.Truncate, s3test.ResetBefore, s3test.Truncate))
	file := filepath.Join(t.TempDir(), "etcd.db")
	_, _, code := l.lifeboat(t, "snapshot", "fetch", etcdTarget, "-o", file)
	require.Zero(t, code)
	got, err := os.ReadFile(file)
	require.NoError(t, err)
	assert.True(t, bytes.Equal(raw, got))
	ranges := dataRanges(p)
	require.Len(t, ranges, 4)
	assert.Empty(t, ranges[0])
	assert.NotEmpty(t, ranges[1])
	assert.Equal(t, ranges[1], ranges[2], "nothing arrived in between")
	assert.NotEqual(t, ranges[2], ranges[3])
}

// The second run asks for the rest only: from exactly the byte after the last one that the first run kept.
func TestFetchResumesWhereAnInterruptedOneWas(t *testing.T) {
	for name, encrypted := range map[string]bool{"clear": false, "encrypted": true} {
		t.Run(name, func(t *testing.T) {
			l := labFor(t)
			raw := random(t, 8<<20)
			m := l.mustCommit(t, plan{raw: raw, encrypted: encrypted})
			p := s3test.NewProxy(t, l.server)
			l.through(t, p)
			dir := t.TempDir()
			file := filepath.Join(dir, "etcd.db")
			args := []string{
				"snapshot", "fetch", etcdTarget, "-o", file, "--identity-file", filepath.Join(l.dir, "lifeboat.key"),
				"--config", filepath.Join(l.dir, "lifeboat.yaml"),
			}
			ctx, interrupt := context.WithCancel(t.Context())
			p.Handle(onData(s3test.Truncate, func() s3test.Fault { interrupt(); return s3test.ResetBefore() }))
			cmd := root()
			cmd.SetArgs(args)
			cmd.SetOut(io.Discard)
			cmd.SetErr(io.Discard)
			cmd.SilenceUsage = true
			err := cmd.ExecuteContext(ctx)
			require.ErrorContains(t, err, "interrupted")
			require.ErrorContains(t, err, "run the same command to resume")
			assert.Equal(t, service.ExitFailed, service.ExitCode(err))
			assert.NoFileExists(t, file)
			kept := partials(t, file)
			require.Len(t, kept, 1)
			have, err := os.ReadFile(kept[0])
			require.NoError(t, err)
			require.NotEmpty(t, have)
			require.Less(t, len(have), int(m.Data.Stored.Bytes))
			if encrypted {
				assert.True(t, bytes.HasPrefix(have, []byte("age-encryption.org/")), "what is kept is not in clear")
			}

			p.Forget()
			p.Handle(nil)
			_, _, code := l.lifeboat(t, args[:len(args)-2]...)
			require.Zero(t, code)
			assert.Equal(t, []string{fmt.Sprintf("bytes=%d-", len(have))}, dataRanges(p), "one request, for the rest")
			got, err := os.ReadFile(file)
			require.NoError(t, err)
			assert.True(t, bytes.Equal(raw, got))
			only(t, dir, "etcd.db")
		})
	}
}

func TestFetchStartsAnewWhenThePartialFileIsWrong(t *testing.T) {
	l := labFor(t)
	raw := random(t, 1<<20)
	m := l.mustCommit(t, plan{raw: raw})
	p := s3test.NewProxy(t, l.server)
	l.through(t, p)
	dir := t.TempDir()
	file := filepath.Join(dir, "etcd.db")
	partial := (&download{file: file, data: m.Data}).partial()
	for name, left := range map[string][]byte{
		"zeros after a power failure": make([]byte, 1000),
		"whole but wrong":             make([]byte, m.Data.Stored.Bytes),
		"too long":                    make([]byte, m.Data.Stored.Bytes+1),
	} {
		t.Run(name, func(t *testing.T) {
			require.NoError(t, os.WriteFile(partial, left, 0o600))
			_, _, code := l.lifeboat(t, "snapshot", "fetch", etcdTarget, "-o", file, "--force")
			require.Zero(t, code)
			got, err := os.ReadFile(file)
			require.NoError(t, err)
			assert.True(t, bytes.Equal(raw, got))
			only(t, dir, "etcd.db")
		})
	}
}

func TestFetchNeverWritesWhatIsDamaged(t *testing.T) {
	l := labFor(t)
	m := l.mustCommit(t, plan{raw: random(t, 1<<20), encrypted: true})
	require.NoError(t, l.flip(m.Data.Key))
	key := filepath.Join(l.dir, "lifeboat.key")
	for name, args := range map[string][]string{"decoded": nil, "stored": {"--stored"}} {
		t.Run(name, func(t *testing.T) {
			dir := t.TempDir()
			_, errs, code := l.lifeboat(t, append([]string{
				"snapshot", "fetch", etcdTarget, "--identity-file", key, "-o", filepath.Join(dir, "f"),
			}, args...)...)
			assert.Equal(t, service.ExitFailed, code)
			assert.Contains(t, errs, "damaged")
			assert.Contains(t, errs, "--store copy")
			only(t, dir)
		})
	}
	t.Run("standard output", func(t *testing.T) {
		_, errs, code := l.lifeboat(t, "snapshot", "fetch", etcdTarget, "--identity-file", key, "-o", "-")
		assert.Equal(t, service.ExitFailed, code)
		assert.Contains(t, errs, "do not use it")
	})
	t.Run("cut short", func(t *testing.T) {
		require.NoError(t, os.Truncate(l.server.Path(m.Data.Key), 1000))
		dir := t.TempDir()
		_, errs, code := l.lifeboat(t, "snapshot", "fetch", etcdTarget, "--identity-file", key, "-o", filepath.Join(dir, "f"))
		assert.Equal(t, service.ExitFailed, code)
		assert.Contains(t, errs, "the manifest says")
		only(t, dir)
	})
	t.Run("gone", func(t *testing.T) {
		require.NoError(t, os.Remove(l.server.Path(m.Data.Key)))
		dir := t.TempDir()
		_, errs, code := l.lifeboat(t, "snapshot", "fetch", etcdTarget, "--identity-file", key, "-o", filepath.Join(dir, "f"))
		assert.Equal(t, service.ExitFailed, code)
		assert.Contains(t, errs, "no such object")
		only(t, dir)
	})
}

// A bit that changes on the way is found like one that changed at rest, and the next run gets it right.
func TestFetchFindsWhatChangedOnTheWay(t *testing.T) {
	l := labFor(t)
	raw := random(t, 1<<20)
	l.mustCommit(t, plan{raw: raw})
	p := s3test.NewProxy(t, l.server)
	l.through(t, p)
	p.Handle(onData(s3test.FlipAnswer))
	dir := t.TempDir()
	file := filepath.Join(dir, "etcd.db")
	_, errs, code := l.lifeboat(t, "snapshot", "fetch", etcdTarget, "-o", file)
	assert.Equal(t, service.ExitFailed, code)
	assert.Contains(t, errs, "damaged")
	only(t, dir)
	_, _, code = l.lifeboat(t, "snapshot", "fetch", etcdTarget, "-o", file)
	assert.Zero(t, code)
}

func TestFetchNeverOverwrites(t *testing.T) {
	l := labFor(t)
	raw := random(t, 1000)
	l.mustCommit(t, plan{raw: raw})
	dir := t.TempDir()
	file := filepath.Join(dir, "etcd.db")
	require.NoError(t, os.WriteFile(file, []byte("precious"), 0o600))
	_, errs, code := l.lifeboat(t, "snapshot", "fetch", etcdTarget, "-o", file)
	assert.Equal(t, service.ExitUsage, code)
	assert.Contains(t, errs, "--force")
	got, err := os.ReadFile(file)
	require.NoError(t, err)
	assert.Equal(t, "precious", string(got))

	_, _, code = l.lifeboat(t, "snapshot", "fetch", etcdTarget, "-o", file, "--force")
	assert.Zero(t, code)
	got, err = os.ReadFile(file)
	require.NoError(t, err)
	assert.Equal(t, raw, got)

	_, errs, code = l.lifeboat(t, "snapshot", "fetch", etcdTarget, "-o", dir)
	assert.Equal(t, service.ExitUsage, code)
	assert.Contains(t, errs, "is a folder")
}

// A file that somebody puts there while the download runs is not replaced either.
func TestFetchNeverOverwritesWhatCameMeanwhile(t *testing.T) {
	l := labFor(t)
	l.mustCommit(t, plan{raw: random(t, 1000)})
	p := s3test.NewProxy(t, l.server)
	l.through(t, p)
	file := filepath.Join(t.TempDir(), "etcd.db")
	p.Handle(onData(func() s3test.Fault {
		if err := os.WriteFile(file, []byte("precious"), 0o600); err != nil {
			t.Error(err)
		}
		return s3test.Pass()
	}))
	_, errs, code := l.lifeboat(t, "snapshot", "fetch", etcdTarget, "-o", file)
	assert.Equal(t, service.ExitUsage, code)
	assert.Contains(t, errs, "exists already")
	got, err := os.ReadFile(file)
	require.NoError(t, err)
	assert.Equal(t, "precious", string(got))
}

func TestFetchSaysWhatIsMissingToDecrypt(t *testing.T) {
	l := labFor(t)
	m := l.mustCommit(t, plan{raw: random(t, 1000), encrypted: true})
	p := s3test.NewProxy(t, l.server)
	l.through(t, p)
	dir := t.TempDir()
	file := filepath.Join(dir, "etcd.db")
	_, errs, code := l.lifeboat(t, "snapshot", "fetch", etcdTarget, "-o", file)
	assert.Equal(t, service.ExitUsage, code)
	assert.Contains(t, errs, "--identity-file")
	assert.Contains(t, errs, "--stored")
	assert.Contains(t, errs, m.Data.Recipients[0])
	assert.Empty(t, dataRanges(p), "it is said before anything is downloaded")

	// An identity for something else: what was downloaded is kept for the right one.
	other, err := newLab(l.server, "other", t.TempDir())
	require.NoError(t, err)
	_, errs, code = l.lifeboat(t, "snapshot", "fetch", etcdTarget, "-o", file, "--identity-file", filepath.Join(other.dir, "lifeboat.key"))
	assert.Equal(t, service.ExitFailed, code)
	assert.Contains(t, errs, "another --identity-file")
	assert.Len(t, partials(t, file), 1)
	p.Forget()
	_, _, code = l.lifeboat(t, "snapshot", "fetch", etcdTarget, "-o", file, "--identity-file", filepath.Join(l.dir, "lifeboat.key"))
	assert.Zero(t, code)
	assert.Empty(t, dataRanges(p), "nothing is downloaded again")
	only(t, dir, "etcd.db")

	broken := filepath.Join(dir, "broken")
	require.NoError(t, os.WriteFile(broken, []byte(l.identity.String()[:40]), 0o600))
	_, errs, code = l.lifeboat(t, "snapshot", "fetch", etcdTarget, "-o", file, "--force", "--identity-file", broken)
	assert.Equal(t, service.ExitUsage, code)
	assert.Contains(t, errs, "--identity-file: ")
	assert.NotContains(t, errs, l.identity.String()[:40], "the parser's own error quotes the secret")
}

func TestFetchToStandardOutput(t *testing.T) {
	l := labFor(t)
	raw := random(t, 4<<20)
	l.mustCommit(t, plan{raw: raw})
	p := s3test.NewProxy(t, l.server)
	l.through(t, p)
	p.Handle(onData(s3test.Truncate))
	out, _, code := l.lifeboat(t, "snapshot", "fetch", etcdTarget, "-o", "-")
	assert.Zero(t, code)
	assert.True(t, bytes.Equal(raw, []byte(out)), "also across a connection that broke")
	assert.Len(t, dataRanges(p), 2)
}

// An object that is replaced under a reader is never mixed with the new one.
func TestAReadNeverMixesTwoObjects(t *testing.T) {
	l := labFor(t)
	m := l.mustCommit(t, plan{raw: random(t, 4<<20)})
	p := s3test.NewProxy(t, l.server)
	l.through(t, p)
	p.Handle(onData(s3test.Truncate, func() s3test.Fault {
		b := random(t, int(m.Data.Stored.Bytes))
		_, err := l.objects.Put(t.Context(), m.Data.Key, bytes.NewReader(b), int64(len(b)), store.Condition{})
		if err != nil {
			t.Error(err)
		}
		return s3test.Pass()
	}))
	file := filepath.Join(t.TempDir(), "etcd.db")
	_, errs, code := l.lifeboat(t, "snapshot", "fetch", etcdTarget, "-o", file)
	assert.Equal(t, service.ExitFailed, code)
	assert.Contains(t, errs, "changed by somebody else")
	assert.NoFileExists(t, file)
	assert.Len(t, dataRanges(p), 2, "another attempt would not help")
}
