//go:build e2e

package compose

import (
	"bytes"
	"context"
	"crypto/tls"
	"encoding/json"
	"io/fs"
	"net"
	"net/http/httptest"
	"net/http/httputil"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/lifeboat-fleet/lifeboat/fleet/fleettest/bintest"
	"github.com/lifeboat-fleet/lifeboat/fleet/fleettest/certtest"
	"github.com/lifeboat-fleet/lifeboat/fleet/fleettest/chattest"
)

// site is a copy of what somebody who follows README has in front of them, so that nobody's own run/ is touched.
type site struct {
	t *testing.T
	// root is this repository, dir the copy, and cwd where the reader of README is in it.
	root, dir, cwd string
	chat           *chattest.Server
	front          string // where the chats have TLS
}

func newSite(t *testing.T) *site {
	t.Helper()
	root, err := filepath.Abs("../..")
	require.NoError(t, err)
	s := &site{t: t, root: root, dir: t.TempDir()}
	s.cwd = s.dir
	for _, folder := range []string{"deploy", "docs/runbooks", "tests/compose"} {
		require.NoError(t, os.MkdirAll(filepath.Dir(filepath.Join(s.dir, folder)), 0o755))
		require.NoError(t, os.CopyFS(filepath.Join(s.dir, folder), skipping{os.DirFS(filepath.Join(root, folder)), "compose/run"}))
	}
	require.NoError(t, os.RemoveAll(s.path("deploy/compose/.env")))
	require.NoError(t, os.Symlink(filepath.Join(root, "dist"), s.path("dist")))
	return s
}

// skipping leaves out a folder, which holds secrets of whoever runs these tests.
type skipping struct {
	fs.FS
	folder string
}

func (f skipping) ReadDir(name string) ([]fs.DirEntry, error) {
	entries, err := fs.ReadDir(f.FS, name)
	kept := entries[:0]
	for _, e := range entries {
		if name+"/"+e.Name() != f.folder {
			kept = append(kept, e)
		}
	}
	return kept, err
}

func (s *site) path(name string) string { return filepath.Join(s.dir, name) }

// chapter is the commands of README's chapter, block by block.
func (s *site) chapter(title string) (blocks [][]string) {
	s.t.Helper()
	b, err := os.ReadFile(filepath.Join(s.root, "README.md"))
	require.NoError(s.t, err)
	_, text, found := strings.Cut(string(b), "\n## "+title+"\n")
	require.True(s.t, found, title)
	text, _, _ = strings.Cut(text, "\n## ")
	inBlock := false
	for line := range strings.Lines(text) {
		command, isCommand := strings.CutPrefix(line, "    ")
		if isCommand && !inBlock {
			blocks = append(blocks, nil)
		}
		if inBlock = isCommand; isCommand {
			blocks[len(blocks)-1] = append(blocks[len(blocks)-1], strings.TrimSpace(command))
		}
	}
	return blocks
}

// walk runs commands of README as they are written. Only the images are built in the repository itself, because the copy has no sources.
func (s *site) walk(commands []string) {
	s.t.Helper()
	for _, command := range commands {
		if folder, ok := strings.CutPrefix(command, "cd "); ok {
			s.cwd = filepath.Join(s.cwd, folder)
			continue
		}
		dir := s.cwd
		if strings.HasPrefix(command, "make images") {
			dir = s.root
		}
		start := time.Now()
		out, err := s.run(dir, "bash", "-euo", "pipefail", "-c", command)
		s.t.Logf("$ %s (%s)\n%s", command, time.Since(start).Round(100*time.Millisecond), out)
		require.NoError(s.t, err, command)
	}
}

func (s *site) run(dir, name string, args ...string) (string, error) {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(s.t.Context()), 10*time.Minute) // cleanups run commands too
	defer cancel()
	cmd := exec.CommandContext(ctx, name, args...)
	cmd.Dir = dir
	out, err := cmd.CombinedOutput()
	return string(out), err
}

// compose runs `docker compose` and returns what it prints.
func (s *site) compose(args ...string) string {
	s.t.Helper()
	out, err := s.run(s.path("deploy/compose"), "docker", append([]string{"compose"}, args...)...)
	require.NoError(s.t, err, "docker compose %v: %s", args, out)
	return out
}

func (s *site) docker(args ...string) string {
	s.t.Helper()
	out, err := s.run(s.dir, "docker", args...)
	require.NoError(s.t, err, "docker %v: %s", args, out)
	return out
}

// downAtEnd removes all that compose made, and shows the logs of a test that failed.
func (s *site) downAtEnd() {
	s.t.Cleanup(func() {
		if s.t.Failed() {
			s.t.Log(s.compose("ps", "--all"), s.compose("logs", "--tail", "40", "--no-color"))
		}
		s.compose("--profile", "*", "down", "--volumes", "--remove-orphans", "--timeout", "10")
		assert.Empty(s.t, s.docker("ps", "--all", "--quiet", "--filter", "label=com.docker.compose.project=lifeboat-e2e"))
		assert.Empty(s.t, s.docker("volume", "ls", "--quiet", "--filter", "label=com.docker.compose.project=lifeboat-e2e"))
		assert.Empty(s.t, s.docker("network", "ls", "--quiet", "--filter", "label=com.docker.compose.project=lifeboat-e2e"))
	})
}

// standIns builds scratch images of the real servers under the names that the override file has.
func (s *site) standIns() {
	s.t.Helper()
	folder := s.t.TempDir()
	place := func(from, to string) {
		from, err := filepath.EvalSymlinks(from)
		require.NoError(s.t, err)
		b, err := os.ReadFile(from)
		require.NoError(s.t, err)
		to = filepath.Join(folder, to)
		require.NoError(s.t, os.MkdirAll(filepath.Dir(to), 0o755))
		require.NoError(s.t, os.WriteFile(to, b, 0o755))
	}
	for _, name := range []string{"nats-server", "versitygw", "alertmanager", "consul", "nomad", "busybox"} {
		path, err := bintest.Find(name)
		require.NoError(s.t, err)
		place(path, name)
	}
	prometheus := filepath.Join(os.Getenv(dirEnv), "prometheus/usr/bin")
	place(filepath.Join(prometheus, "prometheus"), "prometheus/bin/prometheus")
	libraries, err := s.run(s.dir, "ldd", filepath.Join(prometheus, "prometheus"))
	require.NoError(s.t, err, libraries)
	for field := range strings.FieldsSeq(libraries) {
		if filepath.IsAbs(field) {
			place(field, "prometheus"+field)
		}
	}
	for _, empty := range []string{"data", "empty/tmp"} {
		require.NoError(s.t, os.MkdirAll(filepath.Join(folder, empty), 0o777))
	}
	require.NoError(s.t, os.Chmod(filepath.Join(folder, "empty/tmp"), 0o777|os.ModeSticky))
	for _, image := range []string{"nats:2.15.2", "versitygw:1.8.0", "alertmanager:0.31.1", "prometheus:debian", "consul:1.22.5", "nomad:1.11.3"} {
		stage, _, _ := strings.Cut(image, ":")
		s.docker("build", "--quiet", "--file", filepath.Join(s.root, "tests/compose/images/Dockerfile"), "--target", stage, "--tag", "lifeboat-e2e/"+image, folder)
	}
}

// chats starts both chats at the address that containers reach this machine by, and puts their addresses where README says. They have TLS, as
// real ones: the notifier sends to nothing else.
func (s *site) chats() {
	s.t.Helper()
	bridge, err := net.InterfaceByName("docker0")
	require.NoError(s.t, err)
	addresses, err := bridge.Addrs()
	require.NoError(s.t, err)
	require.NotEmpty(s.t, addresses)
	gateway, _, err := net.ParseCIDR(addresses[0].String())
	require.NoError(s.t, err)
	s.chat = chattest.New(s.t)
	behind, err := url.Parse(s.chat.PageURL())
	require.NoError(s.t, err)
	ca := certtest.New(s.t, "chats")
	pair := ca.Server(s.t, certtest.For(gateway.String()))
	certificate, err := tls.LoadX509KeyPair(pair.Cert, pair.Key)
	require.NoError(s.t, err)
	front := httptest.NewUnstartedServer(httputil.NewSingleHostReverseProxy(behind))
	require.NoError(s.t, front.Listener.Close())
	var listen net.ListenConfig
	front.Listener, err = listen.Listen(s.t.Context(), "tcp", net.JoinHostPort(gateway.String(), "0"))
	require.NoError(s.t, err)
	front.TLS = &tls.Config{Certificates: []tls.Certificate{certificate}, MinVersion: tls.VersionTLS12}
	front.StartTLS()
	s.t.Cleanup(front.Close)
	s.front = front.Listener.Addr().String()

	run := s.path("deploy/compose/run")
	b, err := os.ReadFile(ca.File)
	require.NoError(s.t, err)
	yaml, err := os.ReadFile(filepath.Join(run, "etc/lifeboat.yaml"))
	require.NoError(s.t, err)
	tlsLine := "      tls: {ca_file: /etc/lifeboat/chat-ca.pem}\n"
	yaml = bytes.Replace(yaml, []byte("      slack: {"), []byte(tlsLine+"      slack: {"), 1)
	yaml = bytes.Replace(yaml, []byte("      dingtalk: {"), []byte(tlsLine+"      dingtalk: {"), 1)
	through := func(address string) string {
		return strings.Replace(address, "http://"+behind.Host, "https://"+s.front, 1)
	}
	for file, text := range map[string]string{
		"etc/chat-ca.pem": string(b), "etc/lifeboat.yaml": string(yaml), "chat/dingtalk-secret": s.chat.DingTalkSecret(),
		"chat/slack-webhook-url": through(s.chat.SlackURL()), "chat/dingtalk-webhook-url": through(s.chat.DingTalkURL()),
	} {
		require.NoError(s.t, os.WriteFile(filepath.Join(run, file), []byte(text), 0o644))
	}
}

// container is what the engine knows of one.
type container struct {
	Name   string
	Image  string
	Mounts []struct{ Source, Destination string }
	Config struct {
		User, Image string
		Labels      map[string]string
	}
	State struct {
		Pid    int
		Status string
		Health *struct{ Status string }
	}
	HostConfig struct {
		ReadonlyRootfs, Privileged bool
		CapDrop, SecurityOpt       []string
	}
	NetworkSettings struct {
		Ports map[string][]struct{ HostIp, HostPort string } //nolint:revive // the engine's name
	}
}

func (c container) service() string { return c.Config.Labels["com.docker.compose.service"] }

func (s *site) containers() (all []container) {
	s.t.Helper()
	ids := strings.Fields(s.compose("ps", "--all", "--quiet"))
	require.NotEmpty(s.t, ids)
	require.NoError(s.t, json.NewDecoder(bytes.NewBufferString(s.docker(append([]string{"inspect"}, ids...)...))).Decode(&all))
	return all
}
