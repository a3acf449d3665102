//go:build e2e

package tests

import (
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/lifeboat-fleet/lifeboat/fleet/fleettest/bintest"
)

// The demo on real etcd, Consul and Nomad: everything happens, and it says so.
func TestDemo(t *testing.T) {
	cmd := exec.CommandContext(t.Context(), binary, "demo")
	out, err := cmd.CombinedOutput()
	t.Logf("%s", out)
	require.NoError(t, err)
	assert.Regexp(t, `demo: [1-9]\d* snapshots, [1-9]\d* verified, 1 drilled, 4 alerts delivered\n$`, string(out))
}

// Ctrl-C leaves no process behind, and kill -9 does not either.
func TestUpLeavesNoProcessBehind(t *testing.T) {
	for name, sig := range map[string]syscall.Signal{"Ctrl-C": syscall.SIGINT, "kill -9": syscall.SIGKILL} {
		t.Run(name, func(t *testing.T) {
			dir := t.TempDir()
			log := filepath.Join(dir, "up.log")
			p, err := bintest.Start(binary, log, nil, "up", "--data", filepath.Join(dir, "data"))
			require.NoError(t, err)
			require.Eventually(t, func() bool {
				b, err := os.ReadFile(log)
				return err == nil && strings.Contains(string(b), "Ctrl-C ends it")
			}, 2*time.Minute, 50*time.Millisecond)
			require.NotEmpty(t, running(t, dir), "consul and nomad run")
			require.NoError(t, p.Signal(sig))
			<-p.Done()
			require.Eventually(t, func() bool { return len(running(t, dir)) == 0 }, time.Minute, 50*time.Millisecond)
		})
	}
}

// running lists the processes whose command line names a folder.
func running(t *testing.T, dir string) []string {
	t.Helper()
	paths, err := filepath.Glob("/proc/[0-9]*/cmdline")
	require.NoError(t, err)
	var found []string
	for _, path := range paths {
		b, err := os.ReadFile(path)
		if err == nil && strings.Contains(string(b), dir) && !strings.Contains(string(b), ".test\x00") {
			found = append(found, strings.ReplaceAll(string(b), "\x00", " "))
		}
	}
	return found
}
