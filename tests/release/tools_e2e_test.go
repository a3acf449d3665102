//go:build e2e

package release

import (
	"encoding/json"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
)

// A bill of materials names what is linked into the binary: every module that Go itself tells of, with its version, and no other.
func TestSBOM(t *testing.T) {
	dir := t.TempDir()
	runMake(t, "sbom", "DIST="+dir)
	for _, name := range []string{"lifeboat", "lifeboat-scheduler", "lifeboat-backup", "lifeboat-notifier"} {
		var bom struct {
			Format     string `json:"bomFormat"`
			Components []struct{ Type, Name, Version, PURL string }
			Metadata   struct {
				Component struct{ Name, Version string }
			}
		}
		content, err := os.ReadFile(filepath.Join(dir, name+".cdx.json"))
		require.NoError(t, err)
		require.NoError(t, json.Unmarshal(content, &bom))
		assert.Equal(t, "CycloneDX", bom.Format)
		assert.Equal(t, name, bom.Metadata.Component.Name)
		assert.Equal(t, version, bom.Metadata.Component.Version)
		told, goVersion := map[string]string{}, ""
		for _, c := range bom.Components {
			switch {
			case c.Name == "stdlib":
				goVersion = c.Version
			case c.Type == "library" && !strings.HasPrefix(c.Name, "github.com/lifeboat-fleet/"):
				told[c.Name] = c.Version
			}
		}
		linked, compiler := modules(t, filepath.Join(dir, name))
		assert.Equal(t, linked, told, name)
		assert.Equal(t, compiler, goVersion, name)
		assert.Contains(t, string(content), "Apache-2.0", "licences are there as well")
	}
}

// modules that Go says are linked into a binary, but for ours, and Go's version.
func modules(t *testing.T, binary string) (linked map[string]string, compiler string) {
	t.Helper()
	out, err := exec.CommandContext(t.Context(), "go", "version", "-m", binary).Output()
	require.NoError(t, err)
	linked = map[string]string{}
	for i, line := range strings.Split(string(out), "\n") {
		fields := strings.Fields(line)
		if i == 0 {
			compiler = fields[1]
		} else if len(fields) > 2 && fields[0] == "dep" && !strings.HasPrefix(fields[1], "github.com/lifeboat-fleet/") {
			linked[fields[1]] = fields[2]
		}
	}
	return linked, compiler
}

// GoReleaser takes its configuration, and the binaries that it makes are those of tools/dist.
func TestGoReleaserMakesTheSameBytes(t *testing.T) {
	runMake(t, "release-check")
	built, err := filepath.Glob(filepath.Join(root, "dist", "release", "*", "lifeboat*"))
	require.NoError(t, err)
	require.Len(t, built, 4)
	for _, file := range built {
		// What it stamps: outside a clone with a remote it knows neither tag nor commit.
		out, err := exec.CommandContext(t.Context(), file, "--version").Output()
		require.NoError(t, err)
		stamps := strings.FieldsFunc(string(out), func(r rune) bool { return strings.ContainsRune(" (),", r) })
		require.GreaterOrEqual(t, len(stamps), 6, "%s", out)
		ours := dist(t, root, filepath.Base(file), "VERSION="+stamps[2], "COMMIT="+stamps[4], "DATE="+stamps[5])
		assert.Equal(t, sum(t, ours), sum(t, file), "%s: %s", file, out)
	}
}

// runMake runs a target of the Makefile as a person does.
func runMake(t *testing.T, args ...string) {
	t.Helper()
	cmd := exec.CommandContext(t.Context(), "make", append([]string{"-C", root, "VERSION=" + version, "COMMIT=" + commit, "DATE=" + date}, args...)...)
	out, err := cmd.CombinedOutput()
	require.NoError(t, err, "%s", out)
}
