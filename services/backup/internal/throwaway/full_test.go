package throwaway

import (
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
)

// smallDisk is a scratch folder on a file system of its own of so many bytes. The mount namespace must be the test's own.
func smallDisk(t *testing.T, size int) *Scratch {
	t.Helper()
	require.NoError(t, syscall.Mount("", "/", "", syscall.MS_REC|syscall.MS_PRIVATE, ""), "nothing of it is to be seen outside")
	dir := t.TempDir()
	require.NoError(t, syscall.Mount("tmpfs", dir, "tmpfs", 0, "size="+strconv.Itoa(size)))
	t.Cleanup(func() { assert.NoError(t, syscall.Unmount(dir, syscall.MNT_DETACH)) })
	s, err := NewScratch(dir)
	require.NoError(t, err)
	t.Cleanup(func() { require.NoError(t, s.Remove()) })
	return s
}

func TestDiskFullAtTheStart(t *testing.T) {
	if !alone(t, syscall.CLONE_NEWNS) {
		return
	}
	for name, size := range map[string]int{"consul": 96 << 10, "nomad": 36 << 10} {
		s, f := smallDisk(t, size), starters()[name]
		begin := time.Now()
		_, err := f(t.Context(), s, Options{Binary: program(t, name)})
		require.ErrorContains(t, err, "starting "+name)
		require.ErrorContains(t, err, "no space left on device")
		assert.Less(t, time.Since(begin), 30*time.Second)
		t.Log(err)
	}
}

// TestDiskFullDuringTheDrill fills the disk under a server that runs.
func TestDiskFullDuringTheDrill(t *testing.T) {
	if !alone(t, syscall.CLONE_NEWNS) {
		return
	}
	for _, name := range []string{"consul", "nomad"} {
		t.Run(name, func(t *testing.T) {
			s := smallDisk(t, 160<<20)
			ctx, w := s.Watch(t.Context(), Budget{})
			defer w.Stop()
			srv, err := starters()[name](ctx, s, Options{Binary: program(t, name)})
			require.NoError(t, err)
			defer func() { require.NoError(t, srv.Stop()) }()
			fill, err := os.Create(filepath.Join(s.Dir(), "fill"))
			require.NoError(t, err)
			defer fill.Close()
			for chunk := make([]byte, 1<<20); err == nil; {
				_, err = fill.Write(chunk)
			}
			require.ErrorIs(t, err, syscall.ENOSPC)
			require.ErrorIs(t, ends(t, ctx), ErrDiskFull)

			// What does not look at the watch sees it in the server's answer, or in what the server says.
			path, body := "/v1/kv/k", any(strings.Repeat("x", 256<<10))
			if name == "nomad" {
				path, body = "/v1/var/v", map[string]any{"Items": map[string]string{"k": strings.Repeat("x", 32<<10)}}
			}
			i := 0
			require.Eventually(t, func() bool {
				i++
				err = srv.call(t.Context(), "PUT", path+strconv.Itoa(i), body, nil)
				return err != nil
			}, time.Minute, time.Millisecond)
			assert.Contains(t, err.Error()+srv.Said(), "no space left on device")
		})
	}
}
