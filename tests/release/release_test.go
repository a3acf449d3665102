// Package release tests what is handed out: binaries that anybody can build again to the same bytes, from as few folders as an image
// needs, and the images.
package release

import (
	"crypto/sha256"
	"encoding/hex"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
)

const root = "../.."

// What a release of these tests is stamped with: the folders that they build in are no clones.
const (
	version = "v1.2.3-test"
	commit  = "0123456789abcdef0123456789abcdef01234567"
	date    = "2026-11-05T06:07:08Z"
)

// Two builds of one commit are the same bytes, whatever the folder, the user's environment and the cache: who doubts a binary can build it.
func TestTwoBuildsOfOneCommitAreTheSameBytes(t *testing.T) {
	const binary = "lifeboat-scheduler" // the smallest
	one, other := t.TempDir(), filepath.Join(t.TempDir(), "a", "deeper folder")
	for _, tree := range []string{one, other} {
		sources(t, tree, "proto", "fleet", "services/scheduler")
	}
	first := dist(t, one, binary)
	// An empty cache: every package is really compiled again, the standard library's too.
	second := dist(t, other, binary, "GOCACHE="+filepath.Join(t.TempDir(), "cache"), "GOFLAGS=-tags=chaos -race", "TZ=Asia/Seoul", "LC_ALL=C", "USER=somebody")
	assert.Equal(t, sum(t, first), sum(t, second))

	content, err := os.ReadFile(first)
	require.NoError(t, err)
	for _, place := range []string{one, other} {
		assert.NotContains(t, string(content), place, "no folder of the builder's is inside")
	}
	out, err := exec.CommandContext(t.Context(), first, "--version").CombinedOutput()
	require.NoError(t, err)
	assert.Regexp(t, `^lifeboat-scheduler version v1\.2\.3-test \(commit `+commit+`, `+date+`, go1\.\S+, \w+/\w+\)\n$`, string(out))
}

// An image's sources are the contracts, the shared packages and one service: no service needs another one's folder.
func TestEachServiceBuildsFromItsOwnFolders(t *testing.T) {
	for _, name := range []string{"scheduler", "backup", "notifier"} {
		t.Run(name, func(t *testing.T) {
			tree := t.TempDir()
			sources(t, tree, "proto", "fleet", "services/"+name)
			file := dist(t, tree, "lifeboat-"+name)
			out, err := exec.CommandContext(t.Context(), file, "--version").CombinedOutput()
			require.NoError(t, err)
			assert.Contains(t, string(out), "lifeboat-"+name+" version "+version+" ")
			out, err = exec.CommandContext(t.Context(), "go", "version", "-m", file).CombinedOutput()
			require.NoError(t, err)
			assert.Contains(t, string(out), "CGO_ENABLED=0", "static")
		})
	}
}

// sources copies folders of the repository, and the script that builds, into tree.
func sources(t *testing.T, tree string, folders ...string) {
	t.Helper()
	for _, folder := range folders {
		from := filepath.Join(root, folder)
		err := filepath.WalkDir(from, func(path string, entry fs.DirEntry, err error) error {
			if err != nil || entry.IsDir() || strings.HasSuffix(path, ".test") {
				return err
			}
			rel, err := filepath.Rel(root, path)
			if err != nil {
				return err
			}
			return copyFile(path, filepath.Join(tree, rel))
		})
		require.NoError(t, err)
	}
	require.NoError(t, copyFile(filepath.Join(root, "tools", "dist"), filepath.Join(tree, "tools", "dist")))
}

func copyFile(from, to string) error {
	info, err := os.Stat(from)
	if err != nil {
		return err
	}
	content, err := os.ReadFile(from)
	if err != nil {
		return err
	}
	if err := os.MkdirAll(filepath.Dir(to), 0o755); err != nil {
		return err
	}
	return os.WriteFile(to, content, info.Mode().Perm())
}

// dist builds a binary in a tree by the script that releases are built by, and returns its file.
func dist(t *testing.T, tree, binary string, env ...string) string {
	t.Helper()
	out := t.TempDir()
	cmd := exec.CommandContext(t.Context(), filepath.Join(tree, "tools", "dist"), out, binary)
	cmd.Env = append(append(os.Environ(), "VERSION="+version, "COMMIT="+commit, "DATE="+date), env...)
	said, err := cmd.CombinedOutput()
	require.NoError(t, err, "%s", said)
	return filepath.Join(out, binary)
}

func sum(t *testing.T, file string) string {
	t.Helper()
	content, err := os.ReadFile(file)
	require.NoError(t, err)
	digest := sha256.Sum256(content)
	return hex.EncodeToString(digest[:])
}
