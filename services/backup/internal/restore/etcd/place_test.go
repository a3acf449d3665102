package etcd

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/lifeboat-fleet/lifeboat/fleet/fleettest/bintest"
	"github.com/lifeboat-fleet/lifeboat/services/backup/internal/throwaway"
)

// fileLimit is a third line of childVar: the largest file that may be written, in bytes.
func child(spec string) error {
	lines := strings.Split(spec, "\n")
	if len(lines) == 3 {
		var limit uint64
		if _, err := fmt.Sscan(lines[2], &limit); err != nil {
			return err
		}
		signal.Ignore(syscall.SIGXFSZ)
		if err := syscall.Setrlimit(syscall.RLIMIT_FSIZE, &syscall.Rlimit{Cur: limit, Max: limit}); err != nil {
			return err
		}
	}
	d := single(lines[0], lines[1])
	d.Force = true
	return ToDataDir(context.Background(), d)
}

func runChild(tb testing.TB, spec ...string) *exec.Cmd {
	tb.Helper()
	self, err := os.Executable()
	require.NoError(tb, err)
	cmd := exec.CommandContext(tb.Context(), self)
	cmd.Env = append(os.Environ(), childVar+"="+strings.Join(spec, "\n"))
	return cmd
}

// TestExisting refuses what is there, or moves it aside, and never deletes.
func TestExisting(t *testing.T) {
	snapshot := fileOf(t, someData(t))
	t.Run("not empty", func(t *testing.T) {
		parent := t.TempDir()
		dir := filepath.Join(parent, "data")
		require.NoError(t, os.MkdirAll(filepath.Join(dir, "member"), 0o700))
		require.ErrorContains(t, ToDataDir(t.Context(), single(snapshot, dir)), "is not empty")
		requireOnly(t, parent, "data")
		requireOnly(t, dir, "member")
	})
	t.Run("empty", func(t *testing.T) {
		parent := t.TempDir()
		dir := filepath.Join(parent, "data")
		require.NoError(t, os.Mkdir(dir, 0o700))
		require.NoError(t, ToDataDir(t.Context(), single(snapshot, dir)))
		requireOnly(t, parent, "data")
		requireOnly(t, dir, "member")
	})
	t.Run("of another user", func(t *testing.T) {
		if os.Geteuid() != 0 {
			return // nobody else may give files away
		}
		d := single(snapshot, filepath.Join(t.TempDir(), "data"))
		require.NoError(t, os.Mkdir(d.Dir, 0o700))
		require.NoError(t, os.Chown(d.Dir, 12345, 23456))
		require.NoError(t, ToDataDir(t.Context(), d))
		for _, path := range []string{d.Dir, filepath.Join(d.Dir, "member", "wal"), databaseOf(d.Dir)} {
			info, err := os.Stat(path)
			require.NoError(t, err)
			owner, err := stat(info)
			require.NoError(t, err)
			require.EqualValues(t, 12345, owner.Uid)
			require.EqualValues(t, 23456, owner.Gid)
		}
	})
	t.Run("a file", func(t *testing.T) {
		path := filepath.Join(t.TempDir(), "data")
		require.NoError(t, os.WriteFile(path, nil, 0o600))
		d := single(snapshot, path)
		d.Force = true
		require.ErrorContains(t, ToDataDir(t.Context(), d), "no folder")
	})
	t.Run("forced, twice within a second", func(t *testing.T) {
		parent := t.TempDir()
		d := single(snapshot, filepath.Join(parent, "data"))
		require.NoError(t, os.Mkdir(d.Dir, 0o700))
		require.NoError(t, os.WriteFile(filepath.Join(d.Dir, "precious"), []byte("1"), 0o600))
		var aside []string
		d.Force, d.MovedAside = true, func(path string) { aside = append(aside, path) }
		for range 3 {
			require.NoError(t, ToDataDir(t.Context(), d))
		}
		require.Len(t, aside, 3)
		require.FileExists(t, filepath.Join(aside[0], "precious"))
		for _, path := range aside[1:] {
			require.FileExists(t, databaseOf(path))
		}
		for _, path := range aside {
			require.Regexp(t, `data\.before-\d{8}T\d{6}Z(-\d)?$`, path)
		}
		require.FileExists(t, databaseOf(d.Dir))
	})
	t.Run("linked", func(t *testing.T) {
		parent := t.TempDir()
		real, link := filepath.Join(parent, "real"), filepath.Join(t.TempDir(), "link")
		require.NoError(t, os.Mkdir(real, 0o700))
		require.NoError(t, os.Symlink(real, link))
		require.NoError(t, ToDataDir(t.Context(), single(snapshot, link)))
		info, err := os.Lstat(link)
		require.NoError(t, err)
		require.NotZero(t, info.Mode()&fs.ModeSymlink)
		require.FileExists(t, databaseOf(real))
	})
	t.Run("damaged snapshot, forced", func(t *testing.T) {
		parent := t.TempDir()
		data, err := os.ReadFile(snapshot)
		require.NoError(t, err)
		d := single(fileOf(t, flip(data, len(data)/2)), filepath.Join(parent, "data"))
		require.NoError(t, os.MkdirAll(filepath.Join(d.Dir, "member"), 0o700))
		d.Force = true
		require.ErrorContains(t, ToDataDir(t.Context(), d), "sha256")
		requireOnly(t, parent, "data")
		requireOnly(t, d.Dir, "member")
	})
}

// TestRunningServer is not pulled away from under the data that it works on.
func TestRunningServer(t *testing.T) {
	snapshot := fileOf(t, someData(t))
	d := single(snapshot, filepath.Join(t.TempDir(), "data"))
	d.Name, d.PeerURLs, d.InitialCluster = throwaway.EtcdName, []string{throwaway.EtcdPeerURL}, throwaway.EtcdName+"="+throwaway.EtcdPeerURL
	require.NoError(t, ToDataDir(t.Context(), d))
	srv, err := throwaway.StartEtcd(t.Context(), d.Dir, 1<<20)
	require.NoError(t, err)
	d.Force = true
	require.ErrorContains(t, ToDataDir(t.Context(), d), "an etcd is running")
	require.NoError(t, srv.Stop())
	require.NoError(t, ToDataDir(t.Context(), d))
}

// TestMounted is about a data directory that is a file system of its own, and about a disk that is full.
func TestMounted(t *testing.T) {
	snapshot := fileOf(t, someData(t))
	if os.Geteuid() != 0 {
		// Nobody else may mount. What a write meets is the same as a full disk.
		parent := t.TempDir()
		dir := filepath.Join(parent, "data")
		out, err := runChild(t, snapshot, dir, "200000").CombinedOutput()
		require.Error(t, err)
		require.Contains(t, string(out), "file too large")
		requireOnly(t, parent)
		require.NoError(t, ToDataDir(t.Context(), single(snapshot, dir)))
		return
	}
	mount := func(size string) string {
		dir := filepath.Join(t.TempDir(), "disk")
		require.NoError(t, os.Mkdir(dir, 0o700))
		require.NoError(t, syscall.Mount("none", dir, "tmpfs", 0, "size="+size))
		// Detached, because etcd's library keeps a file open when its log could not be made.
		t.Cleanup(func() { require.NoError(t, syscall.Unmount(dir, syscall.MNT_DETACH)) })
		return dir
	}
	disk := mount("100m")
	d := single(snapshot, disk)
	require.ErrorContains(t, ToDataDir(t.Context(), d), "where a file system is mounted")
	requireOnly(t, disk)

	// Too little for the log alone is seen before anything is written.
	d.Dir = filepath.Join(disk, "data")
	require.ErrorContains(t, ToDataDir(t.Context(), d), "are free")
	requireOnly(t, disk)

	// There was enough when it began, and somebody else was quicker.
	full := mount("150m")
	d.Dir = filepath.Join(full, "data")
	ballast := filepath.Join(full, "ballast")
	file, err := os.Create(ballast)
	require.NoError(t, err)
	defer file.Close()
	p, err := claim(d.Dir, false)
	require.NoError(t, err)
	require.NoError(t, syscall.Fallocate(int(file.Fd()), 0, 0, 149<<20))
	_, err = d.newMember(t.Context(), p)
	require.ErrorContains(t, err, "no space left")
	require.NoError(t, p.abandon())
	requireOnly(t, full, "ballast")
	require.NoError(t, file.Truncate(0))
	require.NoError(t, ToDataDir(t.Context(), d))
	require.FileExists(t, databaseOf(d.Dir))
}

// TestFullDiskWhileCopying has the disk end within the database.
func TestFullDiskWhileCopying(t *testing.T) {
	m := startMember(t)
	// The log of a member is 64 MiB whatever it holds. Only a database that is larger meets a limit above that.
	for i := range 80 {
		m.put(t, fmt.Sprintf("k%d", i), values(1<<20))
	}
	snapshot := fileOf(t, m.snapshot(t))
	parent := t.TempDir()
	dir := filepath.Join(parent, "data")
	out, err := runChild(t, snapshot, dir, fmt.Sprint(66<<20)).CombinedOutput()
	require.Error(t, err)
	require.Contains(t, string(out), "file too large")
	requireOnly(t, parent)
	require.NoError(t, ToDataDir(t.Context(), single(snapshot, dir)))
}

// TestKilled kills a restore at moments of its course, and runs it again: the result is that of one that was never interrupted.
func TestKilled(t *testing.T) {
	m := startMember(t)
	m.fill(t, newRand(t), "/k/", 3000, 12_000)
	snapshot := fileOf(t, m.snapshot(t))
	whole := single(snapshot, filepath.Join(t.TempDir(), "data"))
	require.NoError(t, ToDataDir(t.Context(), whole))
	want, others := contents(t, databaseOf(whole.Dir)), files(t, whole.Dir)

	for name, reached := range map[string]func(temp, dir string) bool{
		"begun":    func(temp, _ string) bool { return exists(temp) },
		"log":      func(temp, _ string) bool { return exists(filepath.Join(temp, "data", "member", "wal")) },
		"database": func(temp, _ string) bool { return exists(databaseOf(filepath.Join(temp, "data"))) },
		"named":    func(_, dir string) bool { return exists(databaseOf(dir)) },
	} {
		t.Run(name, func(t *testing.T) {
			parent := t.TempDir()
			dir := filepath.Join(parent, "data")
			require.NoError(t, os.Mkdir(dir, 0o700))
			require.NoError(t, os.WriteFile(filepath.Join(dir, "precious"), nil, 0o600))
			self, err := os.Executable()
			require.NoError(t, err)
			p, err := bintest.Start(self, filepath.Join(t.TempDir(), "log"), []string{childVar + "=" + snapshot + "\n" + dir})
			require.NoError(t, err)
			ended := func() bool {
				select {
				case <-p.Done():
					return true
				default:
					return false
				}
			}
			for !reached(dir+tempSuffix, dir) && !ended() {
			}
			require.NoError(t, p.Kill())
			if name != "named" {
				require.FileExists(t, filepath.Join(dir, "precious"))
				require.NoFileExists(t, databaseOf(dir))
			}
			d := single(snapshot, dir)
			d.Force = true
			require.NoError(t, ToDataDir(t.Context(), d))
			require.Equal(t, want, contents(t, databaseOf(dir)))
			require.Equal(t, others, files(t, dir))
			require.NoDirExists(t, dir+tempSuffix)
			kept, err := filepath.Glob(filepath.Join(parent, "data.before-*", "precious"))
			require.NoError(t, err)
			require.Len(t, kept, 1)
		})
	}
}

func exists(path string) bool {
	_, err := os.Lstat(path)
	return err == nil
}

// TestAtOnce runs several restores into one place: one does it, and the others say why not.
func TestAtOnce(t *testing.T) {
	snapshot := fileOf(t, someData(t))
	parent := t.TempDir()
	dir := filepath.Join(parent, "data")
	errs := make([]error, 6)
	var wg sync.WaitGroup
	for i := range errs {
		wg.Go(func() { errs[i] = ToDataDir(t.Context(), single(snapshot, dir)) })
	}
	wg.Wait()
	done := 0
	for _, err := range errs {
		if err == nil {
			done++
		} else {
			require.True(t, errors.Is(err, errTaken) || strings.Contains(err.Error(), "is not empty"), err)
		}
	}
	require.Equal(t, 1, done)
	requireOnly(t, parent, "data")
}

// TestCanceled leaves nothing behind.
func TestCanceled(t *testing.T) {
	snapshot := fileOf(t, someData(t))
	parent := t.TempDir()
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	start := time.Now()
	require.ErrorIs(t, ToDataDir(ctx, single(snapshot, filepath.Join(parent, "data"))), context.Canceled)
	require.Less(t, time.Since(start), 30*time.Second)
	requireOnly(t, parent)
}
