package throwaway

import (
	"bytes"
	"context"
	"errors"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/lifeboat-fleet/lifeboat/fleet/config"
	"github.com/lifeboat-fleet/lifeboat/services/backup/internal/source"
)

type starter func(context.Context, *Scratch, Options) (*Server, error)

// starters are both kinds of servers.
func starters() map[string]starter {
	return map[string]starter{"consul": StartConsul, "nomad": StartNomad}
}

// ways are both ways to run one.
func ways() map[string][]string {
	return map[string][]string{IsolatedByNamespace: confine(), IsolatedByConfiguration: nil}
}

// started runs a server for the length of the test.
func started(t *testing.T, f starter, s *Scratch, o Options) *Server {
	t.Helper()
	srv, err := f(t.Context(), s, o)
	require.NoError(t, err)
	t.Cleanup(func() { assert.NoError(t, srv.Stop()) })
	return srv
}

// serverPID is the server itself, also where it is confined.
func (s *Server) serverPID() int {
	if s.inner.pid != 0 {
		return s.inner.pid
	}
	return s.PID()
}

func TestServersTakeWritesAsSoonAsTheyHaveStarted(t *testing.T) {
	// What could lead a server to production must not be in its environment.
	for _, name := range []string{
		"CONSUL_HTTP_ADDR", "NOMAD_ADDR", "NOMAD_TOKEN", "VAULT_ADDR", "AWS_ACCESS_KEY_ID", "https_proxy", "HTTP_PROXY", "NOTIFY_SOCKET",
	} {
		t.Setenv(name, "http://192.0.2.1:1")
	}
	for way, command := range ways() {
		for name, f := range starters() {
			t.Run(name+" by "+way, func(t *testing.T) {
				s := scratch(t)
				srv := started(t, f, s, Options{Binary: program(t, name), Confine: command})
				assert.Equal(t, way, srv.Isolation)
				assert.Regexp(t, `^\d+\.\d+\.\d+`, srv.Version)
				assert.Empty(t, srv.Said())
				writeAtOnce(t, name, srv)
				assertScrubbed(t, srv, s)
				assertPrivate(t, s)

				pids := []int{srv.PID(), srv.serverPID()}
				require.NoError(t, srv.Stop())
				require.NoError(t, srv.Stop(), "a second time")
				<-srv.Done()
				require.NoError(t, srv.Err(), "it was stopped, and did not end by itself")
				for _, pid := range pids {
					_, err := identify(pid)
					require.ErrorIs(t, err, os.ErrNotExist)
				}
			})
		}
	}
}

// writeAtOnce writes through the API that a restore uses, with no second attempt.
func writeAtOnce(t *testing.T, name string, srv *Server) {
	t.Helper()
	client, base, err := source.NewHTTPClient(srv.Address, srv.TLS, time.Minute)
	require.NoError(t, err)
	defer client.CloseIdleConnections()
	token := ""
	if srv.TokenFile != "" {
		token, err = config.SecretFile(srv.TokenFile).Read()
		require.NoError(t, err)
		require.Equal(t, srv.Token, token)
	}
	put := func(path, body string) {
		req, err := http.NewRequestWithContext(t.Context(), http.MethodPut, base+path, bytes.NewBufferString(body))
		require.NoError(t, err)
		req.Header.Set("X-Nomad-Token", token)
		resp, err := client.Do(req)
		require.NoError(t, err)
		defer resp.Body.Close()
		if resp.StatusCode != http.StatusOK {
			require.NoError(t, source.NewStatusError(resp), path)
		}
	}
	if name == "consul" {
		put("/v1/txn", `[{"KV":{"Verb":"cas","Index":0,"Key":"a","Value":"Yg=="}}]`)
		put("/v1/kv/large", strings.Repeat("x", 4<<20)) // a source may have a higher limit than the usual 512 KiB
		return
	}
	put("/v1/var/a/b", `{"Items":{"k":"v"}}`)
	put("/v1/acl/policy/p", `{"Name":"p","Rules":"namespace \"default\" { policy = \"read\" }"}`)
	put("/v1/jobs", `{"Job":{"ID":"j","Name":"j","Datacenters":["dc1"],"Priority":200,"TaskGroups":[{"Name":"g","Count":60000,"Tasks":[
		{"Name":"t","Driver":"docker","Config":{"image":"x"},"Vault":{"Policies":["p"],"Cluster":"default"}}]}]}}`)
}

// assertScrubbed looks at the environment that the server has.
func assertScrubbed(t *testing.T, srv *Server, s *Scratch) {
	t.Helper()
	b, err := os.ReadFile(procFile(srv.serverPID(), "environ"))
	require.NoError(t, err)
	for v := range strings.SplitSeq(strings.TrimRight(string(b), "\x00"), "\x00") {
		name, value, _ := strings.Cut(v, "=")
		switch name {
		case "HOME", "TMPDIR":
			assert.True(t, strings.HasPrefix(value, s.Dir()), v)
		case "PATH":
		default:
			assert.Fail(t, "the server's environment has more than it may", name)
		}
	}
}

// assertPrivate finds what another user of the machine could read.
func assertPrivate(t *testing.T, s *Scratch) {
	t.Helper()
	info, err := os.Stat(s.Dir())
	require.NoError(t, err)
	assert.Equal(t, os.FileMode(0o700), info.Mode().Perm())
	for _, pattern := range []string{"*.json", "*.pem", "token", "log"} {
		files, err := filepath.Glob(filepath.Join(s.Dir(), "*", pattern))
		require.NoError(t, err)
		for _, f := range files {
			info, err := os.Stat(f)
			require.NoError(t, err)
			assert.Equal(t, os.FileMode(0o600), info.Mode().Perm(), f)
		}
	}
}

func TestOthersOfTheMachineAreNotServed(t *testing.T) {
	s := scratch(t)
	nomad := started(t, StartNomad, s, Options{Binary: program(t, "nomad")})
	// The port is open to whoever is on the machine.
	client, base, err := source.NewHTTPClient(nomad.Address, config.TLS{CAFile: nomad.TLS.CAFile}, time.Minute)
	require.NoError(t, err)
	defer client.CloseIdleConnections()
	resp, err := client.Get(base + "/v1/status/leader")
	if err == nil {
		resp.Body.Close()
	}
	require.ErrorContains(t, err, "certificate required")
}

func TestServerThatDies(t *testing.T) {
	for way, command := range ways() {
		t.Run(way, func(t *testing.T) {
			srv := started(t, StartConsul, scratch(t), Options{Binary: program(t, "consul"), Confine: command})
			require.NoError(t, srv.Err(), "it runs")
			require.NoError(t, syscall.Kill(srv.serverPID(), syscall.SIGKILL))
			<-srv.Done()
			require.ErrorContains(t, srv.Err(), "it ended by itself")
			require.ErrorContains(t, srv.Err(), "killed")
			require.NoError(t, srv.Stop())
			require.Error(t, srv.Err(), "stopping a dead server does not make its death good")
		})
	}
}

func TestMissingBinaryIsNamedWithWhatToDo(t *testing.T) {
	t.Setenv("PATH", t.TempDir())
	for name, f := range starters() {
		_, err := f(t.Context(), scratch(t), Options{})
		require.ErrorIs(t, err, ErrNoBinary)
		require.ErrorContains(t, err, "real "+name+" server")
		require.ErrorContains(t, err, "install "+name)
		require.ErrorContains(t, err, "--"+name+"-binary")
		_, err = f(t.Context(), scratch(t), Options{Binary: "/nowhere/at/all"})
		require.ErrorIs(t, err, ErrNoBinary)
		require.ErrorContains(t, err, "/nowhere/at/all")
	}
}

// TestPortTaken has a port given away between the moment it was found free and the server's start, which happens where many
// drills run.
func TestPortTaken(t *testing.T) {
	for name, f := range starters() {
		t.Run(name, func(t *testing.T) {
			taken, err := net.Listen("tcp", "127.0.0.1:0")
			require.NoError(t, err)
			defer taken.Close()
			asked := 0
			o := Options{Binary: program(t, name), ports: func(n int) ([]int, error) {
				asked++
				ports, perr := freePorts(n)
				if asked == 1 {
					ports[1] = taken.Addr().(*net.TCPAddr).Port //nolint:errcheck,forcetypeassert // a TCP listener's
				}
				return ports, perr
			}}
			started(t, f, scratch(t), o)
			assert.Equal(t, 2, asked, "the server was started on other ports, once")

			always := o
			always.ports = func(n int) ([]int, error) {
				ports, perr := freePorts(n)
				ports[1] = taken.Addr().(*net.TCPAddr).Port //nolint:errcheck,forcetypeassert // a TCP listener's
				return ports, perr
			}
			_, err = f(t.Context(), scratch(t), always)
			require.ErrorContains(t, err, "after 5 attempts")
			require.ErrorContains(t, err, "address already in use")
		})
	}
}

// TestOlderServer has a server that does not know a setting, as one of an older version.
func TestOlderServer(t *testing.T) {
	for _, k := range []kind{consul(), nomad()} {
		t.Run(k.name, func(t *testing.T) {
			configure := k.configure
			k.configure = func(p place) (conf, newer map[string]any) {
				conf, _ = configure(p)
				return conf, map[string]any{"from_the_future": true, "server": map[string]any{"from_the_future": 1}}
			}
			srv := started(t, func(ctx context.Context, s *Scratch, o Options) (*Server, error) {
				return start(ctx, s, o, k)
			}, scratch(t), Options{Binary: program(t, k.name)})
			assert.NotEmpty(t, srv.Version)
		})
	}
}

func TestServerThatCannotStartSaysWhy(t *testing.T) {
	k := consul()
	configure := k.configure
	k.configure = func(p place) (conf, newer map[string]any) {
		conf, newer = configure(p)
		conf["encrypt"] = "c2VjcmV0LXNlY3JldC1zZWNyZXQtc2VjcmV0LXNlY3JldC1zZWNyZXQ="
		conf["datacenter"] = "5a2c3a60-9d3c-4c59-8c33-0c1d5f6f3b7e not a name"
		return conf, newer
	}
	_, err := start(t.Context(), scratch(t), Options{Binary: program(t, "consul")}, k)
	require.ErrorContains(t, err, "starting consul: it ended by itself: exit status 1")
	require.ErrorContains(t, err, "it said: ")
	assert.NotContains(t, err.Error(), "c2VjcmV0", "the key")
	assert.NotContains(t, err.Error(), "5a2c3a60-9d3c", "what looks like a token")
}

func TestStartEndsWithItsContext(t *testing.T) {
	why := errors.New("the drill is over")
	for _, command := range ways() {
		ctx, cancel := context.WithCancelCause(t.Context())
		defer cancel(nil)
		k := nomad()
		k.ready = func(ctx context.Context, s *Server, _ place) error {
			return s.until(ctx, "what never comes", func() error { cancel(why); return errors.New("not yet") })
		}
		s := scratch(t)
		_, err := start(ctx, s, Options{Binary: program(t, "nomad"), Confine: command}, k)
		require.ErrorIs(t, err, why)
		ids, err := os.ReadFile(filepath.Join(s.Dir(), processList))
		require.NoError(t, err)
		for line := range strings.SplitSeq(strings.TrimSpace(string(ids)), "\n") {
			assert.NoFileExists(t, procFileOf(line), "what was started is gone")
		}
	}
}

// procFileOf is the folder of a process by its line in the list.
func procFileOf(line string) string {
	pid, _, _ := strings.Cut(line, " ")
	return filepath.Join("/proc", pid, "stat")
}

func TestRequiredIsolation(t *testing.T) {
	_, err := StartConsul(t.Context(), scratch(t), Options{Binary: program(t, "consul"), RequireIsolation: true})
	require.ErrorContains(t, err, "must not run without a network namespace")
	srv := started(t, StartConsul, scratch(t), Options{Binary: program(t, "consul"), Confine: confine(), RequireIsolation: true})
	assert.Equal(t, IsolatedByNamespace, srv.Isolation)
}

func TestSocketOfALongPath(t *testing.T) {
	long := filepath.Join(t.TempDir(), strings.Repeat("l", 120))
	require.NoError(t, os.Mkdir(long, 0o700))
	s, err := NewScratch(long)
	require.NoError(t, err)
	defer func() { require.NoError(t, s.Remove()) }()
	srv := started(t, StartConsul, s, Options{Binary: program(t, "consul")})
	socket := strings.TrimPrefix(srv.Address, "unix://")
	assert.LessOrEqual(t, len(socket), maxSocketPath)
	require.NoError(t, srv.Stop())
	assert.NoDirExists(t, filepath.Dir(socket), "the short folder goes with the server")

	t.Setenv("TMPDIR", long)
	_, err = StartConsul(t.Context(), s, Options{Binary: program(t, "consul")})
	require.ErrorContains(t, err, "give the scratch folder, or TMPDIR, a shorter path")
}

func TestLogTailIsBoundedAndMasked(t *testing.T) {
	log := filepath.Join(t.TempDir(), "log")
	token, key := "5a2c3a60-9d3c-4c59-8c33-0c1d5f6f3b7e", strings.Repeat("Ab0+", 16)+"=="
	text := strings.Repeat("noise\n", 10_000) +
		"[ERROR] http: PUT /v1/x?token=" + token + " failed\n" +
		"[ERROR] key " + key + " " + strings.Repeat("long ", 1000) + "\n\xff\xfe error\n"
	require.NoError(t, os.WriteFile(log, []byte(text), 0o600))
	said := quoteTail(log, 0, false)
	assert.Regexp(t, `token=\*\*\* failed; `, said)
	assert.NotContains(t, said, token)
	assert.NotContains(t, said, "Ab0+")
	assert.Less(t, len(said), maxTail*(maxLine+10))
	require.NoError(t, os.WriteFile(log, []byte("all is well\n"), 0o600))
	assert.Empty(t, quoteTail(log, 0, false))
	assert.Equal(t, " (it said: all is well)", quoteTail(log, 0, true))
	assert.Empty(t, quoteTail(log+"-none", 0, true))
	require.NoError(t, os.WriteFile(log, []byte("an error\nanother error\n"), 0o600))
	assert.Equal(t, " (it said: another error)", quoteTail(log, 9, false))
}
