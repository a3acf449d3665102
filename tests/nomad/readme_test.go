//go:build e2e

package nomad

import (
	"errors"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
)

// commands is the first block of commands in a chapter of the README, as it stands.
func commands(t *testing.T, readme, chapter string) string {
	t.Helper()
	_, rest, found := strings.Cut(readme, "\n"+chapter+"\n")
	require.True(t, found, chapter)
	var block []string
	for line := range strings.Lines(rest) {
		text, indented := strings.CutPrefix(line, "    ")
		switch {
		case indented:
			block = append(block, text)
		case len(block) > 0:
			return strings.Join(block, "")
		}
	}
	require.Fail(t, "no commands", chapter)
	return ""
}

// The README's commands, from nothing to the first drill, as they are written, in a folder that has only what git has.
func TestTheReadmesCommands(t *testing.T) {
	s := start(t, options{})
	fresh := s.path("fresh")
	copyTree(t, s.root, fresh)
	readme, err := os.ReadFile(filepath.Join(fresh, "README.md"))
	require.NoError(t, err)
	script := commands(t, string(readme), "## On Nomad")
	cmd := exec.CommandContext(t.Context(), "bash", "-euxo", "pipefail", "-c", script)
	cmd.Dir = fresh
	cmd.Env = append(os.Environ(), "PWD="+fresh, "PATH="+filepath.Join(s.root, ".bin")+":"+os.Getenv("PATH"), "NOMAD_ADDR="+s.nomad.Address,
		"CONSUL_HTTP_ADDR="+s.consul.Address, "S3_ENDPOINT="+s.s3.Endpoint, "S3_BUCKET="+s.s3.Config.Bucket,
		"S3_KEY_ID="+readFile(t, string(s.s3.Config.AccessKeyIDFile)), "S3_SECRET="+readFile(t, string(s.s3.Config.SecretAccessKeyFile)))
	began := time.Now()
	out, err := cmd.CombinedOutput()
	for _, secret := range []string{"AGE-SECRET-KEY", "PRIVATE KEY", readFile(t, fresh+"/keys/nats/drill.nk")} {
		assert.NotContains(t, string(out), secret)
	}
	require.NoError(t, err, "%s\n%s", out, s.trouble("lifeboat-backup"))
	t.Logf("%s, after %s", out[max(0, len(out)-2000):], time.Since(began).Round(time.Second))
	assert.Contains(t, string(out), "passed")
	reports, err := filepath.Glob(s.s3.Path("consul-kv/snapshots/*/drills/*.json"))
	require.NoError(t, err)
	assert.Len(t, reports, 1)
	assert.Equal(t, 10, countCommands(script), "the chapter promises ten")
}

func readFile(t *testing.T, file string) string {
	t.Helper()
	b, err := os.ReadFile(file)
	require.NoError(t, err)
	return strings.TrimSpace(string(b))
}

// countCommands counts the lines that begin a command: not those of a text in it.
func countCommands(script string) (n int) {
	inText := false
	for line := range strings.Lines(script) {
		if !inText {
			n++
			inText = strings.Contains(line, "<<EOF")
			continue
		}
		inText = strings.TrimSpace(line) != "EOF"
	}
	return n
}

// copyTree copies what git has, or would have, and the servers that are built already.
func copyTree(t *testing.T, from, to string) {
	t.Helper()
	list := exec.CommandContext(t.Context(), "git", "ls-files", "--cached", "--others", "--exclude-standard", "-z")
	list.Dir = from
	out, err := list.Output()
	require.NoError(t, err)
	for name := range strings.SplitSeq(strings.Trim(string(out), "\x00"), "\x00") {
		copyFile(t, filepath.Join(from, name), filepath.Join(to, name))
	}
	require.NoError(t, os.Symlink(filepath.Join(from, ".git"), filepath.Join(to, ".git")))
	// With its stamp, so that it is not built again.
	for _, pattern := range []string{"nats-server", ".nats-server.*"} {
		found, err := filepath.Glob(filepath.Join(from, ".bin", pattern))
		require.NoError(t, err)
		for _, file := range found {
			copyFile(t, file, filepath.Join(to, ".bin", filepath.Base(file)))
		}
	}
}

// copyFile copies a file, if it is there: one that was removed may still be in git's index.
func copyFile(t *testing.T, from, to string) {
	t.Helper()
	b, err := os.ReadFile(from)
	if errors.Is(err, fs.ErrNotExist) {
		return
	}
	require.NoError(t, err)
	info, err := os.Stat(from)
	require.NoError(t, err)
	require.NoError(t, os.MkdirAll(filepath.Dir(to), 0o750))
	require.NoError(t, os.WriteFile(to, b, info.Mode().Perm()))
}
