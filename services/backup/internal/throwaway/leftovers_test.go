package throwaway

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
)

// TestKilledDrillLeavesNothing kills a process with kill -9 that has started both servers.
func TestKilledDrillLeavesNothing(t *testing.T) {
	for way, command := range ways() {
		t.Run(way, func(t *testing.T) {
			// So long a path that the sockets are elsewhere.
			parent := filepath.Join(t.TempDir(), strings.Repeat("l", maxSocketPath))
			require.NoError(t, os.Mkdir(parent, 0o700))
			short, err := os.MkdirTemp("/tmp", "lifeboat-test-") //nolint:usetesting // t.TempDir may be too long
			require.NoError(t, err)
			defer func() { require.NoError(t, os.RemoveAll(short)) }()
			t.Setenv("TMPDIR", short)
			cmd := exec.Command(os.Args[0], "drill", parent, program(t, "consul"), program(t, "nomad"), strconv.FormatBool(command != nil))
			out, err := cmd.StdoutPipe()
			require.NoError(t, err)
			in, err := cmd.StdinPipe()
			require.NoError(t, err)
			defer in.Close()
			require.NoError(t, cmd.Start())
			said := lines(t, out)
			require.Len(t, said, 3)
			dir := said[0]
			var pids []int
			for field := range strings.FieldsSeq(said[1] + " " + said[2]) {
				pid, perr := strconv.Atoi(field)
				require.NoError(t, perr)
				if pid != 0 {
					pids = append(pids, pid)
				}
			}
			require.Len(t, pids, map[bool]int{false: 2, true: 4}[command != nil])
			for _, pid := range pids {
				_, err = identify(pid)
				require.NoError(t, err, "it runs")
			}
			other, err := NewScratch(parent)
			require.NoError(t, err)
			defer func() { require.NoError(t, other.Remove()) }()
			assert.DirExists(t, dir, "the folder is in use")
			for _, pid := range pids {
				_, err = identify(pid)
				require.NoError(t, err, "a drill that runs is left alone")
			}

			require.NoError(t, cmd.Process.Kill())
			require.Error(t, cmd.Wait())
			for _, pid := range pids {
				require.Eventually(t, func() bool { _, gone := identify(pid); return gone != nil }, time.Minute, 5*time.Millisecond,
					"the servers die with the drill")
			}
			assert.DirExists(t, dir)
			sockets, err := os.ReadDir(short)
			require.NoError(t, err)
			assert.NotEmpty(t, sockets)
			next, err := NewScratch(parent)
			require.NoError(t, err)
			defer func() { require.NoError(t, next.Remove()) }()
			assert.NoDirExists(t, dir)
			left, err := os.ReadDir(short)
			require.NoError(t, err)
			assert.Empty(t, left, "the sockets are gone too")
		})
	}
}

// TestNextDrillEndsProcesses has processes that outlived their drill, which the kernel does not let happen with those that this
// package starts.
func TestNextDrillEndsProcesses(t *testing.T) {
	parent := t.TempDir()
	left, err := NewScratch(parent)
	require.NoError(t, err)
	var cmds []*exec.Cmd
	for range 2 {
		cmd := exec.Command(os.Args[0], "allocate")
		in, perr := cmd.StdinPipe()
		require.NoError(t, perr)
		defer in.Close()
		out, perr := cmd.StdoutPipe()
		require.NoError(t, perr)
		require.NoError(t, cmd.Start())
		lines(t, out)
		cmds = append(cmds, cmd)
	}
	defer func() {
		require.NoError(t, cmds[1].Process.Kill())
		require.Error(t, cmds[1].Wait())
	}()
	require.NoError(t, left.record(cmds[0].Process.Pid))
	// The second has the number of a process on the list, and is another: it began at another time.
	id, err := identify(cmds[1].Process.Pid)
	require.NoError(t, err)
	list, err := os.OpenFile(filepath.Join(left.Dir(), processList), os.O_APPEND|os.O_WRONLY, 0)
	require.NoError(t, err)
	fmt.Fprintf(list, "%d %d %s\n", id.pid, id.started-1, id.space)
	fmt.Fprintf(list, "%d %d %s\n", id.pid, id.started, "pid:[1]@another-machine")
	fmt.Fprintf(list, "%d %d", id.pid, id.started) // the writer was killed while it wrote
	require.NoError(t, list.Close())
	require.NoError(t, left.record(1<<22+1), "one that is gone already")
	require.NoError(t, left.lock.Close()) // as its death does

	next, err := NewScratch(parent)
	require.NoError(t, err)
	defer func() { require.NoError(t, next.Remove()) }()
	assert.NoDirExists(t, left.Dir())
	require.ErrorContains(t, cmds[0].Wait(), "killed")
	_, err = identify(cmds[1].Process.Pid)
	require.NoError(t, err, "a process that is not on the list lives on")
}

// TestNextDrillRemovesWhatWasNeverLocked: a process can be killed before it has locked its folder.
func TestNextDrillRemovesWhatWasNeverLocked(t *testing.T) {
	parent := t.TempDir()
	old, fresh, held := filepath.Join(parent, newPrefix+"1"), filepath.Join(parent, newPrefix+"2"), filepath.Join(parent, newPrefix+"3")
	long := time.Now().Add(-2 * lockedWithin)
	for _, dir := range []string{old, fresh, held} {
		require.NoError(t, os.Mkdir(dir, 0o700))
	}
	require.NoError(t, os.Chtimes(old, long, long))
	require.NoError(t, os.Chtimes(held, long, long))
	lock, err := tryLock(held)
	require.NoError(t, err)
	defer lock.Close()
	next, err := NewScratch(parent)
	require.NoError(t, err)
	defer func() { require.NoError(t, next.Remove()) }()
	assert.NoDirExists(t, old)
	assert.DirExists(t, fresh, "somebody is about to lock it")
	assert.DirExists(t, held, "somebody has locked it")
}

// TestNextDrillLeavesOthersAlone: a folder of another user's may name any process, and what is in it is not looked at.
func TestNextDrillLeavesOthersAlone(t *testing.T) {
	if os.Geteuid() != 0 { // only root can give a folder away
		assert.False(t, own("/"))
		return
	}
	parent := t.TempDir()
	cmd := exec.Command(os.Args[0], "allocate")
	in, err := cmd.StdinPipe()
	require.NoError(t, err)
	defer in.Close()
	out, err := cmd.StdoutPipe()
	require.NoError(t, err)
	require.NoError(t, cmd.Start())
	lines(t, out)
	defer func() {
		require.NoError(t, cmd.Process.Kill())
		require.Error(t, cmd.Wait())
	}()
	theirs := filepath.Join(parent, scratchPrefix+"theirs")
	require.NoError(t, os.Mkdir(theirs, 0o700))
	require.NoError(t, (&Scratch{dir: theirs}).record(cmd.Process.Pid))
	require.NoError(t, os.Chown(theirs, 4711, 4711))

	next, err := NewScratch(parent)
	require.NoError(t, err)
	defer func() { require.NoError(t, next.Remove()) }()
	assert.DirExists(t, theirs)
	_, err = identify(cmd.Process.Pid)
	require.NoError(t, err, "it lives on")
}
