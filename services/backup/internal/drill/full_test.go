package drill_test

import (
	"os"
	"os/exec"
	"path/filepath"
	"syscall"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/lifeboat-fleet/lifeboat/services/backup/internal/drill"
)

// aloneEnv names the test that a process was started for by alone.
const aloneEnv = "LIFEBOAT_TEST_ALONE"

// alone runs the calling test in a process of its own that may mount, as root of its own namespaces, and fails with it. It is true in
// that process, which is where the test then goes on.
func alone(t *testing.T) bool {
	t.Helper()
	if os.Getenv(aloneEnv) == t.Name() {
		return true
	}
	cmd := exec.Command(os.Args[0], "-test.run=^"+t.Name()+"$", "-test.v", "-test.timeout=200s")
	cmd.SysProcAttr = &syscall.SysProcAttr{Cloneflags: syscall.CLONE_NEWNS}
	if os.Geteuid() != 0 {
		cmd.SysProcAttr.Cloneflags |= syscall.CLONE_NEWUSER
		cmd.SysProcAttr.UidMappings = []syscall.SysProcIDMap{{HostID: os.Geteuid(), Size: 1}}
		cmd.SysProcAttr.GidMappings = []syscall.SysProcIDMap{{HostID: os.Getegid(), Size: 1}}
	}
	cmd.Env = append(os.Environ(), aloneEnv+"="+t.Name())
	out, err := cmd.CombinedOutput()
	require.NoError(t, err, "%s\nthis test needs root, or user namespaces", out)
	return false
}

// TestDiskFull fills the disk while a drill runs. It fails and says so, leaves nothing, and the next one passes where there is room.
func TestDiskFull(t *testing.T) {
	if !alone(t) {
		return
	}
	require.NoError(t, syscall.Mount("", "/", "", syscall.MS_REC|syscall.MS_PRIVATE, ""), "nothing of it is to be seen outside")
	for name, s := range map[string]*shelf{"etcd": smallEtcd(t), "consul": smallConsul(t)} {
		for _, phase := range []string{"fetch", "restore"} {
			t.Run(name+" "+phase, func(t *testing.T) {
				in := s.input(t)
				require.NoError(t, syscall.Mount("tmpfs", in.Dir, "tmpfs", 0, "size=400m"))
				t.Cleanup(func() { assert.NoError(t, syscall.Unmount(in.Dir, syscall.MNT_DETACH)) })
				filler := filepath.Join(in.Dir, "filler")
				in.Began = func(p string) {
					if p == phase {
						fill(t, filler)
					}
				}
				rep, err := drill.Run(t.Context(), in)
				require.NoError(t, err)
				require.False(t, rep.GetPassed())
				assert.Regexp(t, "no space left on device|the disk of the drill's scratch folder is full|and 0 are free", rep.GetFailure())
				assert.Regexp(t, "What to do: .*(free some disk|its scratch folder)", rep.GetSummary())
				t.Log(rep.GetSummary())
				require.NoError(t, os.Remove(filler))
				requireEmpty(t, in.Dir)
				in.Began = nil
				requirePassed(t, in)
			})
		}
	}
}

// fill leaves no byte.
func fill(t *testing.T, path string) {
	t.Helper()
	f, err := os.OpenFile(path, os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
	require.NoError(t, err)
	for chunk := make([]byte, 1<<20); err == nil; {
		_, err = f.Write(chunk)
	}
	require.ErrorIs(t, err, syscall.ENOSPC)
	require.NoError(t, f.Close())
}
