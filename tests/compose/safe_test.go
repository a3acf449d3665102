//go:build e2e

package compose

import (
	"bytes"
	"errors"
	"io"
	"io/fs"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
)

// loopbackOnly looks at what the engine publishes and, where the network is this test's own, at every socket that listens in it.
func (s *site) loopbackOnly(t *testing.T) {
	published := 0
	for _, c := range s.containers() {
		for port, bindings := range c.NetworkSettings.Ports {
			for _, b := range bindings {
				published++
				assert.Equal(t, "127.0.0.1", b.HostIp, "%s publishes %s", c.Name, port)
			}
		}
	}
	assert.GreaterOrEqual(t, published, 9)
	if !strings.HasPrefix(os.Getenv("DOCKER_HOST"), "unix://"+os.Getenv(dirEnv)) {
		return // an engine of this machine, which has other sockets too
	}
	for _, table := range []string{"tcp", "tcp6", "udp", "udp6"} {
		for _, addr := range listening(t, table) {
			if !addr.Addr().Unmap().IsLoopback() && addr.String() != s.front {
				assert.Fail(t, "something listens outside of loopback", "%s %s", table, addr)
			}
		}
	}
}

// listening reads a table of the kernel's sockets: https://docs.kernel.org/networking/proc_net_tcp.html
func listening(t *testing.T, table string) (all []netip.AddrPort) {
	t.Helper()
	b, err := os.ReadFile(filepath.Join("/proc/self/net", table))
	require.NoError(t, err)
	for line := range strings.Lines(string(b)) {
		f := strings.Fields(line)
		// TCP_LISTEN, and a UDP socket that is connected to nobody.
		if len(f) < 4 || !strings.Contains(f[1], ":") || (f[3] != "0A" && !strings.HasPrefix(table, "udp")) {
			continue
		}
		host, port, _ := strings.Cut(f[1], ":")
		p, err := strconv.ParseUint(port, 16, 16)
		require.NoError(t, err)
		raw := make([]byte, len(host)/2)
		for i := range raw { // words of four bytes, each the wrong way round
			v, err := strconv.ParseUint(host[2*i:2*i+2], 16, 8)
			require.NoError(t, err)
			raw[i/4*4+3-i%4] = byte(v)
		}
		addr, ok := netip.AddrFromSlice(raw)
		require.True(t, ok, line)
		all = append(all, netip.AddrPortFrom(addr, uint16(p)))
	}
	return all
}

// confined asks the engine and, because only that is what holds, the kernel about each process.
func (s *site) confined(t *testing.T) {
	// The stock images of these run as root, and their volumes belong to it. They have no capability either.
	rootIn := map[string]bool{"nats-1": true, "s3": true, "s3-users": true, "nomad": true}
	for _, c := range s.containers() {
		assert.True(t, c.HostConfig.ReadonlyRootfs, "%s can write into its image", c.Name)
		assert.False(t, c.HostConfig.Privileged, c.Name)
		assert.Contains(t, c.HostConfig.CapDrop, "ALL", c.Name)
		assert.Contains(t, c.HostConfig.SecurityOpt, "no-new-privileges:true", c.Name)
		for _, m := range c.Mounts {
			assert.NotContains(t, m.Source, "docker.sock", c.Name)
		}
		if strings.HasPrefix(c.Config.Image, "lifeboat-fleet/") {
			assert.Equal(t, "65532:65532", c.Config.User, c.Name)
		}
		if c.State.Status != "running" {
			continue
		}
		status := s.status(t, c.State.Pid)
		assert.Equal(t, "0000000000000000", status["CapEff"], "%s has capabilities", c.Name)
		assert.Equal(t, "0000000000000000", status["CapBnd"], "%s could have capabilities", c.Name)
		assert.Equal(t, "1", status["NoNewPrivs"], c.Name)
		uid, _, _ := strings.Cut(status["Uid"], "\t")
		assert.Equal(t, rootIn[c.service()], uid == "0", "%s runs as user %s", c.Name, uid)
	}
}

func (s *site) status(t *testing.T, pid int) map[string]string {
	t.Helper()
	b, err := os.ReadFile(filepath.Join("/proc", strconv.Itoa(pid), "status"))
	require.NoError(t, err)
	fields := map[string]string{}
	for line := range strings.Lines(string(b)) {
		name, value, _ := strings.Cut(line, ":")
		fields[name] = strings.TrimSpace(value)
	}
	return fields
}

// needles are the secrets of run/, each named by its file.
func (s *site) needles(t *testing.T) map[string][]byte {
	t.Helper()
	found := map[string][]byte{}
	run := s.path("deploy/compose/run")
	require.NoError(t, filepath.WalkDir(run, func(path string, d fs.DirEntry, err error) error {
		name, _ := filepath.Rel(run, path)
		public := strings.HasPrefix(name, "etc/") || strings.HasSuffix(name, "-id") || name == "age/recipients" || name == "nats/keys.conf" ||
			(strings.HasSuffix(name, ".pem") && !strings.HasSuffix(name, "-key.pem"))
		if err != nil || d.IsDir() || public {
			return err
		}
		b, err := os.ReadFile(path)
		for line := range bytes.Lines(b) {
			line = bytes.TrimSpace(line)
			if len(line) >= 12 && line[0] != '#' && line[0] != '-' {
				found[name] = line // of a key, its last line: no two keys share that
			}
		}
		return err
	}))
	for _, name := range []string{"nats/snapshot.nk", "tls/server-key.pem", "age/identity", "s3/owner-secret", "s3/prune-secret", "webhook-tokens", "chat/slack-webhook-url"} {
		require.Contains(t, found, name)
	}
	return found
}

// secretsStay searches for every secret in what people copy into tickets: the resolved configuration, what the engine tells, the logs; and in
// the images, which may be pushed somewhere.
func (s *site) secretsStay(t *testing.T) {
	needles := s.needles(t)
	ids := strings.Fields(s.compose("ps", "--all", "--quiet"))
	for where, text := range map[string]string{
		"docker compose config": s.compose("--profile", "*", "config"),
		"docker inspect":        s.docker(append([]string{"inspect"}, ids...)...),
		"docker compose logs":   s.compose("logs", "--no-color"),
	} {
		require.NotEmpty(t, text)
		for name, needle := range needles {
			assert.False(t, strings.Contains(text, string(needle)), "%s shows the secret of run/%s", where, name) //nolint:testifylint // NotContains prints both
		}
	}
	images := strings.Fields(s.docker("image", "ls", "--format", "{{.Repository}}:{{.Tag}}", "--filter", "reference=lifeboat-fleet/*"))
	require.GreaterOrEqual(t, len(images), 6)
	cmd := exec.CommandContext(t.Context(), "docker", append([]string{"save"}, images...)...)
	out, err := cmd.StdoutPipe()
	require.NoError(t, err)
	require.NoError(t, cmd.Start())
	// What is known to be in there is found as well: the search works.
	needles["control"] = []byte("lifeboat-backup works off jobs from NATS")
	found := s.search(t, out, needles)
	require.NoError(t, cmd.Wait())
	assert.Equal(t, map[string]bool{"control": true}, found, "files of run/ whose secrets are in an image")
	info, err := os.Stat(s.path("deploy/compose/run"))
	require.NoError(t, err)
	assert.Equal(t, fs.FileMode(0o700), info.Mode().Perm(), "nobody else on this machine gets past run/")
}

// search reads all of a stream and tells which needles are in it.
func (s *site) search(t *testing.T, r io.Reader, needles map[string][]byte) map[string]bool {
	t.Helper()
	const overlap = 4 << 10
	found := map[string]bool{}
	buf := make([]byte, 0, overlap+8<<20)
	for {
		n, err := io.ReadFull(r, buf[len(buf):cap(buf)])
		buf = buf[:len(buf)+n]
		for name, needle := range needles {
			if !found[name] && bytes.Contains(buf, needle) {
				found[name] = true
			}
		}
		if errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) {
			return found
		}
		require.NoError(t, err)
		buf = buf[:copy(buf[:overlap], buf[len(buf)-overlap:])]
	}
}

// leastPrivilege uses the credentials that each container has for what only another one may do: the rights are those of the deployed server.
func (s *site) leastPrivilege(t *testing.T) {
	for _, role := range []string{"snapshot", "verify", "drill", "operator"} {
		out, err := s.aws(role, "s3", "rm", "--recursive", "s3://lifeboat/compose/etcd/")
		require.Error(t, err, "%s may delete", role)
		assert.Contains(t, out, "AccessDenied", role)
	}
	for _, role := range []string{"verify", "drill", "prune", "operator"} {
		out, err := s.aws(role, "s3", "cp", s.path("README-forged"), "s3://lifeboat/compose/etcd/snapshots/forged/data.zst")
		require.Error(t, err, "%s may write data", role)
		assert.Contains(t, out, "AccessDenied", role)
	}
	out, err := s.aws("verify", "s3", "ls", "s3://lifeboat/compose/etcd/")
	require.NoError(t, err, out)
}

// aws runs the stock client with a role's credentials.
func (s *site) aws(role string, args ...string) (string, error) {
	s.t.Helper()
	run := s.path("deploy/compose/run")
	require.NoError(s.t, os.WriteFile(s.path("README-forged"), []byte("forged"), 0o600))
	script := `export AWS_ACCESS_KEY_ID=$(cat "$RUN/s3/$ROLE-id") AWS_SECRET_ACCESS_KEY=$(cat "$RUN/s3/$ROLE-secret") AWS_CA_BUNDLE="$RUN/tls/ca.pem" AWS_REGION=us-east-1
exec aws --endpoint-url https://127.0.0.1:7070 "$@"`
	return s.run(s.dir, "env", append([]string{"RUN=" + run, "ROLE=" + role, "bash", "-euc", script, "aws"}, args...)...)
}
