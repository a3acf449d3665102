package service_test

import (
	"os"
	"os/exec"
	"path/filepath"
	"syscall"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
)

// Images hold nothing but a binary: its time zones and its public certificate authorities are inside. What a system, or SSL_CERT_FILE,
// names comes first.
func TestTimeZonesAndAuthoritiesAreInsideTheBinary(t *testing.T) {
	root := t.TempDir()
	binary := filepath.Join(root, "standalone")
	build := exec.CommandContext(t.Context(), "go", "build", "-trimpath", "-o", binary, "./testdata/standalone")
	build.Env = append(os.Environ(), "CGO_ENABLED=0")
	out, err := build.CombinedOutput()
	require.NoError(t, err, "%s", out)

	alone := exec.CommandContext(t.Context(), "/standalone")
	alone.Dir, alone.Env = "/", []string{}
	alone.SysProcAttr = &syscall.SysProcAttr{Chroot: root}
	if id := os.Getuid(); id != 0 { // only root may change its root, and everybody is root in a user namespace of their own
		alone.SysProcAttr.Cloneflags = syscall.CLONE_NEWUSER
		alone.SysProcAttr.UidMappings = []syscall.SysProcIDMap{{ContainerID: 0, HostID: id, Size: 1}}
	}
	out, err = alone.CombinedOutput()
	require.NoError(t, err, "%s", out)
	assert.Regexp(t, `^version=dev\S* files=1 noon=03:00:00 trusted=1\d\d\n$`, string(out),
		"noon in Seoul is 03:00 in UTC, and Mozilla's list has more than a hundred authorities")

	inSystem := exec.CommandContext(t.Context(), binary)
	inSystem.Env = []string{"SSL_CERT_FILE=testdata/none.pem", "SSL_CERT_DIR=testdata"}
	out, err = inSystem.CombinedOutput()
	require.NoError(t, err, "%s", out)
	assert.Regexp(t, ` trusted=1\d\d\n$`, string(out), "authorities that are named and not there are none")
}
