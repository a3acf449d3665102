package throwaway

import (
	"context"
	"crypto/rand"
	"os"
	"os/exec"
	"path/filepath"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
)

// ends waits until ctx has ended, and gives the cause.
func ends(t *testing.T, ctx context.Context) error { //nolint:revive // t comes first in tests
	t.Helper()
	select {
	case <-ctx.Done():
	case <-time.After(time.Minute):
		require.Fail(t, "the context does not end")
	}
	return context.Cause(ctx)
}

// noise is so many bytes that no file system makes smaller.
func noise(n int) []byte {
	b := make([]byte, n)
	rand.Read(b)
	return b
}

func TestDiskBudget(t *testing.T) {
	s := scratch(t)
	ctx, w := s.Watch(t.Context(), Budget{DiskBytes: 8 << 20, MemoryBytes: 1 << 40})
	defer w.Stop()
	sub := filepath.Join(s.Dir(), "sub")
	require.NoError(t, os.Mkdir(sub, 0o700))
	// A file with a hole takes no room there.
	hole, err := os.Create(filepath.Join(sub, "hole"))
	require.NoError(t, err)
	require.NoError(t, hole.Truncate(1<<30))
	require.NoError(t, hole.Close())
	require.NoError(t, os.WriteFile(filepath.Join(sub, "a"), noise(4<<20), 0o600))
	require.Eventually(t, func() bool { disk, _ := w.Peak(); return disk >= 4<<20 }, time.Minute, 10*time.Millisecond)
	require.NoError(t, ctx.Err(), "the budget holds so far")
	require.NoError(t, os.WriteFile(filepath.Join(sub, "b"), noise(5<<20), 0o600))
	over, ok := ends(t, ctx).(*BudgetError) //nolint:errorlint // it is the cause itself
	require.True(t, ok, "%v", context.Cause(ctx))
	assert.Equal(t, "disk", over.What)
	assert.Regexp(t, `^the drill used [\d.]+ MiB of disk, its budget is 8\.0 MiB$`, over.Error())
	assert.GreaterOrEqual(t, over.Used, int64(9<<20))
	require.NoError(t, os.RemoveAll(sub))
	w.Stop()
	disk, _ := w.Peak()
	assert.GreaterOrEqual(t, disk, int64(9<<20), "the peak outlives the files")
	assert.Less(t, disk, int64(64<<20), "the hole is not counted")
}

func TestMemoryBudgetOfAServer(t *testing.T) {
	cmd := exec.Command("sh", "-c", os.Args[0]+" allocate; true") // the memory is a grandchild's
	in, err := cmd.StdinPipe()
	require.NoError(t, err)
	out, err := cmd.StdoutPipe()
	require.NoError(t, err)
	require.NoError(t, cmd.Start())
	defer func() {
		require.NoError(t, in.Close())
		require.NoError(t, cmd.Wait())
	}()
	lines(t, out)

	s := scratch(t)
	ctx, w := s.Watch(t.Context(), Budget{MemoryBytes: 48 << 20})
	defer w.Stop()
	w.Follow(1 << 22) // one that is gone
	w.Follow(cmd.Process.Pid)
	require.ErrorContains(t, ends(t, ctx), "MiB of memory, its budget is 48 MiB")
	w.Stop()
	w.Stop()
	_, memory := w.Peak()
	assert.GreaterOrEqual(t, memory, int64(64<<20))
	assert.Less(t, memory, int64(320<<20), "the race detector takes as much again, and more")
}

func TestMemoryBudgetOfThisProcess(t *testing.T) {
	s := scratch(t)
	ctx, w := s.Watch(t.Context(), Budget{MemoryBytes: 96 << 20})
	defer w.Stop()
	b := make([]byte, 160<<20)
	for i := 0; i < len(b); i += 4 << 10 {
		b[i] = 1
	}
	require.ErrorContains(t, ends(t, ctx), "its budget is 96 MiB")
	assert.Equal(t, byte(1), b[len(b)-4<<10])
}

func TestWatchWithinBudget(t *testing.T) {
	s := scratch(t)
	outer, cancel := context.WithCancel(t.Context())
	ctx, w := s.Watch(outer, Budget{})
	require.NoError(t, os.WriteFile(filepath.Join(s.Dir(), "a"), noise(1<<20), 0o600))
	w.Stop()
	disk, _ := w.Peak()
	assert.GreaterOrEqual(t, disk, int64(1<<20), "a drill that is over before the second look is measured too")
	require.ErrorIs(t, ends(t, ctx), context.Canceled)
	cancel()

	ctx, w = s.Watch(outer, Budget{})
	defer w.Stop()
	require.ErrorIs(t, ends(t, ctx), context.Canceled, "it ends with the one that it was made from")
}
