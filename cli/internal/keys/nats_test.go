package keys

import (
	"crypto/tls"
	"fmt"
	"io"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/prometheus/client_golang/prometheus"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/lifeboat-fleet/lifeboat/fleet/bus"
	"github.com/lifeboat-fleet/lifeboat/fleet/config"
	"github.com/lifeboat-fleet/lifeboat/fleet/fleettest/bintest"
	"github.com/lifeboat-fleet/lifeboat/fleet/fleettest/rolestest"
	lifeboatv1 "github.com/lifeboat-fleet/lifeboat/proto/lifeboat/v1"
)

const deployed = "../../../deploy/nats"

// cluster runs three servers by the files of deploy/nats as they are, but for keys.conf and where things are.
func cluster(t *testing.T, secrets string) (servers []*bintest.NATS, routes []string) {
	t.Helper()
	dir := t.TempDir()
	text, err := os.ReadFile(filepath.Join(deployed, "server.conf"))
	require.NoError(t, err)
	servers, err = bintest.StartNATSCluster(t.Context(), dir, 3, func(n *bintest.NATS, port int, all []string) (string, error) {
		routes = all
		folder := filepath.Join(dir, n.Name)
		for _, err := range []error{
			os.CopyFS(filepath.Join(folder, "roles"), os.DirFS(filepath.Join(deployed, "roles"))),
			os.Link(filepath.Join(secrets, "nats", "keys.conf"), filepath.Join(folder, "keys.conf")),
			copyFile(filepath.Join(deployed, "lifeboat.conf"), filepath.Join(folder, "lifeboat.conf")),
		} {
			if err != nil {
				return "", err
			}
		}
		conf := string(text)
		for i, route := range routes {
			conf = replaced(t, conf, fmt.Sprintf("nats-route://nats-%d:6222", i+1), route)
		}
		conf = replaced(t, conf, "0.0.0.0:6222", fmt.Sprintf("127.0.0.1:%d", port))
		conf = replaced(t, conf, "listen: 0.0.0.0:4222", "")
		conf = replaced(t, conf, "http: 0.0.0.0:8222", "")
		conf = replaced(t, conf, "/etc/nats", filepath.Join(secrets, "tls"))
		conf = replaced(t, conf, "store_dir: /var/lib/nats", "") // these three are told by flags
		return replaced(t, conf, "server_name: nats-1", "server_name: "+n.Name), nil
	})
	t.Cleanup(func() {
		for _, n := range servers {
			assert.NoError(t, n.Kill())
			if b, failed := os.ReadFile(n.Log()); t.Failed() {
				t.Logf("%s (%v):\n%s", n.Name, failed, b)
			}
		}
	})
	require.NoError(t, err)
	return servers, routes
}

func replaced(t *testing.T, text, old, with string) string {
	t.Helper()
	require.Contains(t, text, old)
	return strings.ReplaceAll(text, old, with)
}

func copyFile(from, to string) error {
	b, err := os.ReadFile(from)
	if err != nil {
		return err
	}
	return os.WriteFile(to, b, 0o600)
}

// as connects as a process of a role does.
func as(t *testing.T, secrets, role string, servers ...*bintest.NATS) *bus.Bus {
	t.Helper()
	urls := make([]string, len(servers))
	for i, n := range servers {
		urls[i] = strings.Replace(n.URL, "nats://", "tls://", 1)
	}
	b, err := bus.Connect(bus.Options{
		Config: config.NATS{
			URL: strings.Join(urls, ","), NkeyFile: config.SecretFile(filepath.Join(secrets, "nats", role+".nk")), InboxPrefix: "_INBOX_{role}",
			Replicas: len(servers), TLS: tlsOf(secrets),
		},
		Actor: "lifeboat-backup@test", Role: role, Logger: slog.New(slog.NewTextHandler(t.Output(), nil)), Registerer: prometheus.NewRegistry(),
	})
	require.NoError(t, err)
	t.Cleanup(func() { assert.NoError(t, b.Close()) })
	return b
}

func tlsOf(secrets string) config.TLS {
	in := func(name string) string { return filepath.Join(secrets, "tls", name) }
	return config.TLS{CAFile: in("ca.pem"), CertFile: in("client.pem"), KeyFile: config.SecretFile(in("client-key.pem"))}
}

// Every user of deploy/nats has a key, and no other.
func TestRolesAreThoseOfTheServers(t *testing.T) {
	b, err := os.ReadFile(filepath.Join(deployed, "keys.conf"))
	require.NoError(t, err)
	var users []string
	for name := range parseUsers(b) {
		users = append(users, strings.ToLower(name))
	}
	for line := range strings.Lines(string(b)) { // the placeholders are more than one word
		if name, _, ok := strings.Cut(line, ": \"put the public key of "); ok {
			users = append(users, strings.ToLower(name))
		}
	}
	assert.ElementsMatch(t, users, Roles())
	assert.ElementsMatch(t, rolestest.Roles(), Roles())
}

// Three servers with the configuration of deploy/nats and these keys are a cluster over mTLS, in which each role is itself.
func TestNATSTakesTheKeys(t *testing.T) {
	secrets := t.TempDir()
	run(t, at(secrets, time.Now(), "nats-1", "nats-2", "nats-3"))
	servers, routes := cluster(t, secrets)
	scheduler := as(t, secrets, "scheduler", servers...)
	require.Eventually(t, func() bool { return scheduler.EnsureStreams(t.Context()) == nil }, 60*time.Second, 100*time.Millisecond)
	for _, role := range Roles() {
		b := as(t, secrets, role, servers...)
		require.Eventually(t, func() bool { return b.Ready(t.Context()) == nil }, time.Minute, 20*time.Millisecond, role)
		_, err := b.Publish(t.Context(), bus.Outgoing{Subject: bus.JobSubject(config.WorkSnapshot, "by-"+role), Message: &lifeboatv1.Job{}})
		if role == "scheduler" || role == "cli" {
			require.NoError(t, err, role)
		} else {
			require.ErrorIs(t, err, bus.ErrDenied, role)
		}
	}
	assert.NotEmpty(t, scheduler.Actor())
	refused(t, secrets, servers[0])
	// No permissions hold for a route. Whoever has a client's certificate must not come in as a server.
	assert.Contains(t, route(t, routes[0], secrets, "client"), "Authorization Violation")
	assert.NotContains(t, route(t, routes[0], secrets, "server"), "Violation")
}

// route comes to a server as another one does (nats-server, server/route.go: TLS, then CONNECT and INFO), and returns what it is answered.
func route(t *testing.T, url, secrets, certificate string) string {
	t.Helper()
	in := func(name string) string { return filepath.Join(secrets, "tls", name) }
	cfg, err := config.TLS{
		CAFile: in("ca.pem"), CertFile: in(certificate + ".pem"), KeyFile: config.SecretFile(in(certificate + "-key.pem")),
	}.Client()
	require.NoError(t, err)
	cfg.ServerName = "127.0.0.1"
	conn, err := (&net.Dialer{}).DialContext(t.Context(), "tcp", strings.TrimPrefix(url, "nats-route://"))
	require.NoError(t, err)
	t.Cleanup(func() { assert.NoError(t, conn.Close()) })
	require.NoError(t, conn.SetDeadline(time.Now().Add(3*time.Second)))
	secure := tls.Client(conn, cfg)
	_, err = io.WriteString(secure, `CONNECT {"name":"a-stranger","cluster":"lifeboat","tls_required":true}`+"\r\n"+
		`INFO {"server_id":"a-stranger","server_name":"a-stranger","cluster":"lifeboat","headers":true,"max_payload":1048576}`+"\r\n")
	require.NoError(t, err)
	answer, err := io.ReadAll(secure) // until it hangs up, or has nothing more to say
	if err != nil {
		require.ErrorIs(t, err, os.ErrDeadlineExceeded)
	}
	return string(answer)
}

// refused tries what lacks one of the things that it takes.
func refused(t *testing.T, secrets string, server *bintest.NATS) {
	t.Helper()
	stranger := t.TempDir()
	run(t, at(stranger, time.Now()))
	for name, c := range map[string]struct {
		tls  config.TLS
		seed string
		want string
	}{
		"all is right":       {tlsOf(secrets), secrets, ""},
		"a stranger's key":   {tlsOf(secrets), stranger, "Authorization Violation"},
		"no certificate":     {config.TLS{CAFile: tlsOf(secrets).CAFile}, secrets, "tls"},
		"another CA's":       {config.TLS{CAFile: tlsOf(secrets).CAFile, CertFile: tlsOf(stranger).CertFile, KeyFile: tlsOf(stranger).KeyFile}, secrets, "tls"},
		"another CA trusted": {tlsOf(stranger), secrets, "certificate signed by unknown authority"},
	} {
		t.Run(name, func(t *testing.T) {
			cfg, err := c.tls.Client()
			require.NoError(t, err)
			key, err := nats.NkeyOptionFromSeed(filepath.Join(c.seed, "nats", "cli.nk"))
			require.NoError(t, err)
			nc, err := nats.Connect(server.URL, key, nats.Secure(cfg))
			if c.want == "" {
				require.NoError(t, err)
				nc.Close()
				return
			}
			require.ErrorContains(t, err, c.want)
		})
	}
	require.Eventually(t, func() bool { // what the client sees of it depends on who hangs up first
		log, err := os.ReadFile(server.Log())
		return err == nil && strings.Contains(string(log), "client didn't provide a certificate") &&
			strings.Contains(string(log), "failed to verify certificate") && strings.Contains(string(log), "authentication error - Nkey")
	}, time.Minute, 10*time.Millisecond)
}
