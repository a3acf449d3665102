// Package compose brings deploy/compose up with a real Docker engine and walks README's chapter about it (build tag e2e). What needs no engine is
// looked at in every run of the tests.
package compose

import (
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"go.yaml.in/yaml/v3"

	"github.com/lifeboat-fleet/lifeboat/fleet/config"
	"github.com/lifeboat-fleet/lifeboat/fleet/fleettest/bintest"
	"github.com/lifeboat-fleet/lifeboat/fleet/fleettest/rolestest"
)

const deployed = "../../deploy/compose"

// service is what this test looks at of one.
type service struct {
	Image       string           `yaml:"image"`
	Ports       []string         `yaml:"ports"`
	ReadOnly    bool             `yaml:"read_only"`
	CapDrop     []string         `yaml:"cap_drop"`
	SecurityOpt []string         `yaml:"security_opt"`
	Privileged  bool             `yaml:"privileged"`
	NetworkMode string           `yaml:"network_mode"`
	User        string           `yaml:"user"`
	Profiles    []string         `yaml:"profiles"`
	Volumes     []string         `yaml:"volumes"`
	Environment map[string]any   `yaml:"environment"`
	Healthcheck map[string]any   `yaml:"healthcheck"`
	Secrets     []map[string]any `yaml:"secrets"`
}

func services(t *testing.T) map[string]service {
	t.Helper()
	var file struct {
		Services map[string]service           `yaml:"services"`
		Volumes  map[string]any               `yaml:"volumes"`
		Secrets  map[string]map[string]string `yaml:"secrets"`
	}
	b, err := os.ReadFile(filepath.Join(deployed, "compose.yaml"))
	require.NoError(t, err)
	require.NoError(t, yaml.Unmarshal(b, &file))
	require.Len(t, file.Secrets, strings.Count(string(b), ": {file: run/"), "every secret is a file below run/, which git ignores")
	for name, s := range file.Services {
		for _, secret := range s.Secrets {
			assert.Contains(t, file.Secrets, secret["source"], name)
		}
		for _, v := range s.Volumes {
			if volume, _, _ := strings.Cut(v, ":"); !strings.ContainsAny(volume, "./$") {
				assert.Contains(t, file.Volumes, volume, name)
			}
		}
	}
	return file.Services
}

func TestEveryServiceIsConfined(t *testing.T) {
	image := regexp.MustCompile(`^(nats|[a-z0-9-]+/[a-z0-9-]+):(v?\d+\.\d+\.\d+|\$\{LIFEBOAT_VERSION:\?[^}]+\})$`)
	for name, s := range services(t) {
		assert.Regexp(t, image, s.Image, "%s: an exact version from the default registry", name)
		for _, p := range s.Ports {
			assert.Regexp(t, `^127\.0\.0\.1:\d+:\d+$`, p, name)
		}
		assert.True(t, s.ReadOnly, name)
		assert.Equal(t, []string{"ALL"}, s.CapDrop, name)
		assert.Equal(t, []string{"no-new-privileges:true"}, s.SecurityOpt, name)
		assert.False(t, s.Privileged, name)
		assert.Empty(t, s.NetworkMode, name)
		if strings.HasPrefix(s.Image, "lifeboat-fleet/") {
			assert.Equal(t, "65532:65532", s.User, name)
		}
		// These end by themselves: a person's command, and what prepares the bucket.
		if !slices.Contains([]string{"lifeboat", "s3-users", "s3-rights"}, name) {
			assert.NotEmpty(t, s.Healthcheck["test"], "%s has no health check", name)
		}
		for _, v := range s.Volumes {
			assert.NotContains(t, v, "docker.sock", name)
		}
		for key := range s.Environment {
			assert.NotRegexp(t, `(?i)(secret|password|token|key)$`, key, "%s: secrets are files", name)
		}
	}
}

// A stolen container has the credentials of its own role.
func TestEachRoleHasItsOwnCredentials(t *testing.T) {
	all := services(t)
	holders := map[string][]string{}
	for name, s := range all {
		for _, secret := range s.Secrets {
			source, ok := secret["source"].(string)
			require.True(t, ok, name)
			holders[source] = append(holders[source], name)
		}
	}
	for source, names := range holders {
		slices.Sort(names)
		switch {
		case strings.HasPrefix(source, "s3-owner-"):
			assert.Equal(t, []string{"s3", "s3-rights", "s3-users"}, names, source)
		case source == "server-key":
			for _, name := range names {
				assert.Contains(t, []string{"nats-1", "nats-2", "nats-3", "s3"}, name, source)
			}
		}
	}
	assert.Equal(t, []string{"drill"}, holders["age-identity"], "only drills decrypt")
	assert.Equal(t, []string{"snapshot"}, holders["etcd-client-key"], "only snapshots read a source")
	assert.Equal(t, []string{"etcd"}, holders["etcd-server-key"])
	assert.NotContains(t, holders["ca"], "etcd", "whom the fleet's clients are nobody to")
	for _, role := range rolestest.Roles() {
		holder := role
		if role == "cli" {
			holder = "lifeboat"
		}
		assert.Equal(t, []string{holder}, holders["nats-"+role], role)
	}
	for _, role := range config.Works() {
		assert.Equal(t, []string{string(role)}, holders["s3-"+string(role)+"-id"])
		assert.ElementsMatch(t, []string{"s3-users", string(role)}, holders["s3-"+string(role)+"-secret"])
	}
}

func TestTheConfigurationIsGood(t *testing.T) {
	b, err := os.ReadFile(filepath.Join(deployed, "etc/lifeboat.yaml"))
	require.NoError(t, err)
	// As prepare does it.
	text := strings.Replace(string(b), "recipients: []", "recipients: [age1jlarqymv8cwt9m6ay5at2sr35y4zw0u9xz26ky9pn33ghe4ze9eqhmhlv4]", 1)
	require.NotEqual(t, string(b), text)
	path := filepath.Join(t.TempDir(), "lifeboat.yaml")
	require.NoError(t, os.WriteFile(path, []byte(text), 0o600))
	cfg, err := config.Load(path)
	require.NoError(t, err)
	assert.Len(t, cfg.Targets, 3)
	for _, line := range []string{"  url: tls://nats-1:4222 ", "  replicas: 1 ", "  monitor_urls: [\"http://nats-1:8222\"]"} {
		assert.Contains(t, text, line, "prepare --cluster changes this line")
	}
	names := slices.Sorted(maps.Keys(services(t)))
	for _, host := range regexp.MustCompile(`(?:tls|https?)://([a-z0-9-]+):\d+`).FindAllStringSubmatch(text, -1) {
		assert.Contains(t, names, host[1], "a service of compose.yaml")
	}
}

func TestAlertmanagerTakesItsConfiguration(t *testing.T) {
	amtool, err := bintest.Find("amtool")
	require.NoError(t, err)
	out, err := exec.CommandContext(t.Context(), amtool, "check-config", filepath.Join(deployed, "alertmanager.yml")).CombinedOutput()
	assert.NoError(t, err, "%s", out)
}

// Files of servers that cannot run in tests here are at least what their readers take: one YAML document without a key that is there twice.
func TestTheFilesOfTheOthersParse(t *testing.T) {
	paths, err := filepath.Glob(filepath.Join(deployed, "*", "*.yml"))
	require.NoError(t, err)
	top, err := filepath.Glob(filepath.Join(deployed, "*.yml"))
	require.NoError(t, err)
	paths = append(paths, top...)
	require.GreaterOrEqual(t, len(paths), 6)
	for _, path := range append(paths, "override.yaml") {
		b, err := os.ReadFile(path)
		require.NoError(t, err)
		var document map[string]any
		require.NoError(t, yaml.Unmarshal(b, &document), path)
		assert.NotEmpty(t, document, path)
	}
}
