//go:build e2e

package release

import (
	"archive/tar"
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/lifeboat-fleet/lifeboat/fleet/fleettest/bintest"
	"github.com/lifeboat-fleet/lifeboat/fleet/fleettest/natstest"
)

// What every container of a production is run with: nothing is writable, and nobody may do anything.
var hardened = []string{"--read-only", "--cap-drop", "ALL", "--security-opt", "no-new-privileges"}

// engine is a Docker engine of the test's own, with its folders in a temporary one and without a network: containers have none, or the
// host's.
type engine struct {
	t   *testing.T
	env []string
}

func startEngine(t *testing.T) *engine {
	t.Helper()
	dockerd, err := exec.LookPath("dockerd")
	require.NoError(t, err, "a Docker engine is needed: apt-get install docker.io iptables, and run this as root")
	unshare, err := exec.LookPath("unshare")
	require.NoError(t, err)
	dir := t.TempDir()
	host := "unix://" + filepath.Join(dir, "sock")
	log := filepath.Join(dir, "log")
	// In a mount namespace of its own, so that no mount outlives it.
	p, err := bintest.Start(unshare, log, nil, "--mount", dockerd, "--host", host, "--data-root", filepath.Join(dir, "data"), "--exec-root", filepath.Join(dir, "exec"),
		"--pidfile", filepath.Join(dir, "pid"), "--bridge=none", "--iptables=false", "--ip-forward=false", "--ip-masq=false")
	require.NoError(t, err)
	t.Cleanup(func() { assert.NoError(t, p.Stop()) })
	e := &engine{t: t, env: append(os.Environ(), "DOCKER_HOST="+host, "DOCKER_BUILDKIT=0", "DOCKER_CONTEXT=")}
	require.Eventually(t, func() bool {
		_, err := e.try("version")
		return err == nil
	}, time.Minute, 100*time.Millisecond, "the engine never answers")
	return e
}

// try runs `docker ARGS...` and returns what it wrote to standard output.
func (e *engine) try(args ...string) (string, error) {
	cmd := exec.CommandContext(e.t.Context(), "docker", args...)
	cmd.Env = e.env
	out, err := cmd.Output()
	if failed, ok := errors.AsType[*exec.ExitError](err); ok {
		err = fmt.Errorf("docker %s: %w: %s", strings.Join(args, " "), err, failed.Stderr)
	}
	return string(out), err
}

func (e *engine) run(args ...string) string {
	e.t.Helper()
	out, err := e.try(args...)
	require.NoError(e.t, err)
	return out
}

// start starts a container and removes it, and its volumes, at the end, when the test's context is over.
func (e *engine) start(args ...string) string {
	e.t.Helper()
	id := strings.TrimSpace(e.run(append([]string{"run", "--detach"}, args...)...))
	e.t.Cleanup(func() {
		if e.t.Failed() {
			cmd := exec.Command("docker", "logs", id)
			cmd.Env = e.env
			out, err := cmd.CombinedOutput()
			e.t.Logf("%s: %v\n%s", id, err, out)
		}
		cmd := exec.Command("docker", "rm", "--force", "--volumes", id)
		cmd.Env = e.env
		out, err := cmd.CombinedOutput()
		assert.NoError(e.t, err, "%s", out)
	})
	return id
}

// files of an image that it brings itself: path, and mode and owner.
func (e *engine) files(image string) map[string]string {
	e.t.Helper()
	id := strings.TrimSpace(e.run("create", image))
	exported := e.run("export", id)
	e.run("rm", id)
	found := map[string]string{}
	for r := tar.NewReader(strings.NewReader(exported)); ; {
		h, err := r.Next()
		if errors.Is(err, io.EOF) {
			return found
		}
		require.NoError(e.t, err)
		first, _, _ := strings.Cut(h.Name, "/")
		if first == "usr" || first == "var" || first == "tmp" || (h.Typeflag == tar.TypeReg && h.Size > 0) {
			found[strings.TrimSuffix(h.Name, "/")] = fmt.Sprintf("%s %d:%d", h.FileInfo().Mode(), h.Uid, h.Gid)
		}
	}
}

// Images hold one static binary, run by nobody in particular, on a root that nobody can write to.
func TestImages(t *testing.T) {
	e := startEngine(t)
	build := exec.CommandContext(t.Context(), "make", "-C", root, "images", "VERSION="+version, "COMMIT="+commit, "DATE="+date, "DIST="+t.TempDir())
	build.Env = e.env
	out, err := build.CombinedOutput()
	require.NoError(t, err, "%s", out)
	t.Logf("%s", out)

	for _, name := range []string{"lifeboat", "lifeboat-scheduler", "lifeboat-backup", "lifeboat-notifier", "etcd"} {
		t.Run(name, func(t *testing.T) {
			stamp := version
			if name == "etcd" {
				stamp = strings.TrimPrefix(etcdVersion(t), "v")
			}
			mine := &engine{t, e.env}
			image := "lifeboat-fleet/" + name + ":" + stamp
			assert.Equal(t, map[string]string{
				"tmp": "dtrwxrwxrwx 0:0",
				"usr": "drwxr-xr-x 0:0", "usr/local": "drwxr-xr-x 0:0", "usr/local/bin": "drwxr-xr-x 0:0", "usr/local/bin/" + name: "-rwxr-xr-x 0:0",
				"var": "drwxr-xr-x 0:0", "var/lib": "drwxr-xr-x 0:0", "var/lib/" + name: "drwxr-xr-x 65532:65532",
			}, mine.files(image))

			var inspected []struct {
				Config struct {
					User       string
					Entrypoint []string
					Env        []string
					Labels     map[string]string
				}
			}
			require.NoError(t, json.Unmarshal([]byte(mine.run("image", "inspect", image)), &inspected))
			c := inspected[0].Config
			assert.Equal(t, "65532:65532", c.User)
			assert.Equal(t, []string{"/usr/local/bin/" + name}, c.Entrypoint)
			assert.Equal(t, []string{"PATH=/usr/local/bin"}, c.Env)
			assert.Equal(t, map[string]string{
				"org.opencontainers.image.title": name, "org.opencontainers.image.version": stamp,
				"org.opencontainers.image.revision": commit, "org.opencontainers.image.created": date,
			}, c.Labels)

			says := mine.run(append(append([]string{"run", "--rm", "--network", "none"}, hardened...), image, "--version")...)
			assert.Contains(t, says, strings.TrimPrefix(stamp, "v"))
		})
	}
	t.Run("the scheduler becomes ready", e.schedulerBecomesReady)
	t.Run("etcd keeps its data in a volume", e.etcdKeepsItsData)
}

// The address of the service is on the host's loopback, where the test's NATS is too.
func (e *engine) schedulerBecomesReady(t *testing.T) {
	e = &engine{t, e.env}
	ports, err := bintest.FreePorts(1)
	require.NoError(t, err)
	addr := fmt.Sprintf("127.0.0.1:%d", ports[0])
	server := natstest.New(t)
	dir := t.TempDir()
	// Time zones come from the binary: the image has no zone database.
	config := fmt.Sprintf("nats: {url: %q}\nstore: {bucket: backups, endpoint: \"http://127.0.0.1:1\"}\n"+
		"targets:\n  - name: etcd-prod\n    etcd: {endpoints: [\"http://127.0.0.1:1\"]}\n    schedule: \"0 3 * * *\"\n    time_zone: Asia/Seoul\n", server.URL())
	require.NoError(t, os.WriteFile(filepath.Join(dir, "lifeboat.yaml"), []byte(config), 0o644))
	image := "lifeboat-fleet/lifeboat-scheduler:" + version
	id := e.start(append(append([]string{"--network", "host", "--volume", dir + ":/etc/lifeboat:ro"}, hardened...),
		image, "--config", "/etc/lifeboat/lifeboat.yaml", "--http-addr", addr)...)
	healthy := func() (string, error) {
		return e.try("exec", id, "lifeboat-scheduler", "healthcheck", "http://"+addr+"/readyz")
	}
	require.Eventually(t, func() bool {
		out, err := healthy()
		return err == nil && out == "ready\n"
	}, time.Minute, 100*time.Millisecond, "with NATS it is ready")
	server.Stop()
	require.Eventually(t, func() bool {
		_, err := healthy()
		return err != nil && strings.Contains(err.Error(), "503")
	}, time.Minute, 100*time.Millisecond, "without NATS it is not ready")
	e.run("stop", id)
	assert.Equal(t, "0\n", e.run("inspect", "--format", "{{.State.ExitCode}}", id), "SIGTERM ends it, also as the first process")
}

func (e *engine) etcdKeepsItsData(t *testing.T) {
	e = &engine{t, e.env}
	ports, err := bintest.FreePorts(2)
	require.NoError(t, err)
	client, peer := fmt.Sprintf("http://127.0.0.1:%d", ports[0]), fmt.Sprintf("http://127.0.0.1:%d", ports[1])
	id := e.start(append(append([]string{"--network", "host", "--volume", "etcd-data:/var/lib/etcd"}, hardened...),
		"lifeboat-fleet/etcd:"+strings.TrimPrefix(etcdVersion(t), "v"), "--data-dir", "/var/lib/etcd/data",
		"--listen-client-urls", client, "--advertise-client-urls", client, "--listen-peer-urls", peer,
		"--initial-advertise-peer-urls", peer, "--initial-cluster", "default="+peer)...)
	// etcd's image has no health check of its own; the one of Lifeboat asks any URL.
	require.Eventually(t, func() bool {
		_, err := e.try(append(append([]string{"run", "--rm", "--network", "host"}, hardened...),
			"lifeboat-fleet/lifeboat:"+version, "healthcheck", client+"/health")...)
		return err == nil
	}, time.Minute, 100*time.Millisecond, "etcd never answers")
	e.run("stop", id)
	var kept bytes.Buffer
	cmd := exec.CommandContext(t.Context(), "docker", "cp", id+":/var/lib/etcd/data/member/snap/db", "-")
	cmd.Env, cmd.Stdout = e.env, &kept
	require.NoError(t, cmd.Run())
	assert.NotZero(t, kept.Len())
}

func etcdVersion(t *testing.T) string {
	t.Helper()
	cmd := exec.CommandContext(t.Context(), "go", "list", "-m", "-f", "{{.Version}}", "go.etcd.io/etcd/server/v3")
	cmd.Dir, cmd.Env = filepath.Join(root, "tools", "etcd"), append(os.Environ(), "GOWORK=off")
	out, err := cmd.Output()
	require.NoError(t, err)
	return strings.TrimSpace(string(out))
}
