package bus_test

import (
	"bytes"
	"context"
	"fmt"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/nats-io/jwt/v2"
	"github.com/nats-io/nkeys"
	"github.com/prometheus/client_golang/prometheus"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/lifeboat-fleet/lifeboat/fleet/bus"
	"github.com/lifeboat-fleet/lifeboat/fleet/config"
	"github.com/lifeboat-fleet/lifeboat/fleet/fleettest/bintest"
	"github.com/lifeboat-fleet/lifeboat/fleet/fleettest/certtest"
	"github.com/lifeboat-fleet/lifeboat/fleet/fleettest/rolestest"
	lifeboatv1 "github.com/lifeboat-fleet/lifeboat/proto/lifeboat/v1"
)

// logBuffer keeps what is logged, to look for what must not be.
type logBuffer struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (l *logBuffer) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.Write(p)
}

func (l *logBuffer) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.String()
}

func server(t *testing.T, conf string) *bintest.NATS {
	t.Helper()
	s, err := bintest.StartNATSWith(t.Context(), t.TempDir(), bintest.NATSOptions{Conf: conf})
	require.NoError(t, err)
	t.Cleanup(func() { assert.NoError(t, s.Kill()) })
	return s
}

// dial connects with settings of its own. The log is returned.
func dial(t *testing.T, cfg config.NATS) (*bus.Bus, *logBuffer) {
	t.Helper()
	log := &logBuffer{}
	b, err := bus.Connect(bus.Options{
		Config: cfg, Actor: "test", Logger: slog.New(slog.NewTextHandler(log, nil)), Registerer: prometheus.NewRegistry(),
	})
	require.NoError(t, err)
	t.Cleanup(func() {
		assert.NoError(t, b.Close())
		if t.Failed() {
			t.Log(log.String())
		}
	})
	return b, log
}

// works waits until the bus stores an event.
func works(t *testing.T, b *bus.Bus) {
	t.Helper()
	var err error
	require.Eventually(t, func() bool {
		if err = b.EnsureStreams(t.Context()); err != nil {
			return false
		}
		err = b.Emit(t.Context(), &lifeboatv1.Event{Noun: "config", Verb: "reloaded"})
		return err == nil
	}, time.Minute, 50*time.Millisecond, "%v", &err)
}

// refused waits until the reason for not being connected is a certain one.
func refused(t *testing.T, b *bus.Bus, reason string) {
	t.Helper()
	require.Eventually(t, func() bool {
		err := b.Connected()
		return err != nil && strings.Contains(err.Error(), reason)
	}, time.Minute, 5*time.Millisecond, "never says %q", reason)
}

func file(t *testing.T, content string) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "secret")
	rewrite(t, path, content)
	return path
}

func rewrite(t *testing.T, path, content string) {
	t.Helper()
	require.NoError(t, os.WriteFile(path, []byte(content), 0o600))
}

func copyFile(t *testing.T, from, to string) {
	t.Helper()
	b, err := os.ReadFile(from)
	require.NoError(t, err)
	rewrite(t, to, string(b))
}

func tlsConf(ca *certtest.CA, p certtest.Pair, verify bool) string {
	return fmt.Sprintf("tls { ca_file: %q, cert_file: %q, key_file: %q, verify: %t }", ca.File, p.Cert, p.Key, verify)
}

func TestTLSVerifiesTheServer(t *testing.T) {
	ca, other := certtest.New(t, "ours"), certtest.New(t, "theirs")
	s := server(t, tlsConf(ca, ca.Server(t), false))
	b, _ := dial(t, config.NATS{URL: s.URL, TLS: config.TLS{CAFile: ca.File}})
	works(t, b)
	wrong, _ := dial(t, config.NATS{URL: s.URL, TLS: config.TLS{CAFile: other.File}})
	refused(t, wrong, "unknown authority")
	ctx, cancel := context.WithTimeout(t.Context(), 3*time.Second)
	defer cancel()
	require.ErrorContains(t, wrong.EnsureStreams(ctx), "is not connected", "a time-out says why")
}

func present(ca *certtest.CA, p certtest.Pair) config.TLS {
	return config.TLS{CAFile: ca.File, CertFile: p.Cert, KeyFile: config.SecretFile(p.Key)}
}

// Both sides get certificates of another CA, one after the other, and the client needs no restart.
func TestMutualTLSAndItsRotation(t *testing.T) {
	before, after := certtest.New(t, "before"), certtest.New(t, "after")
	s := server(t, tlsConf(before, before.Server(t), true))
	own := before.Client(t, "lifeboat")
	for name, files := range map[string]config.TLS{
		"none":            {CAFile: before.File},
		"a foreign CA's":  present(before, after.Client(t, "lifeboat")),
		"an expired one":  present(before, before.Client(t, "lifeboat", certtest.Expired())),
		"another's trust": present(after, own),
	} {
		t.Run(name, func(t *testing.T) {
			b, _ := dial(t, config.NATS{URL: s.URL, TLS: files})
			refused(t, b, "tls")
			ctx, cancel := context.WithTimeout(t.Context(), 500*time.Millisecond)
			defer cancel()
			require.Error(t, b.EnsureStreams(ctx))
		})
	}

	dir := t.TempDir()
	files := config.TLS{
		CAFile: filepath.Join(dir, "ca"), CertFile: filepath.Join(dir, "cert"), KeyFile: config.SecretFile(filepath.Join(dir, "key")),
	}
	put := func(ca *certtest.CA) {
		p := ca.Client(t, "lifeboat")
		copyFile(t, ca.File, files.CAFile)
		copyFile(t, p.Cert, files.CertFile)
		copyFile(t, p.Key, string(files.KeyFile))
	}
	put(before)
	b, _ := dial(t, config.NATS{URL: s.URL, TLS: files})
	works(t, b)

	require.NoError(t, s.Kill())
	put(after)
	require.NoError(t, s.Configure(tlsConf(after, after.Server(t), true)))
	require.NoError(t, s.Restart(t.Context()))
	works(t, b)
}

func keys(t *testing.T, pair nkeys.KeyPair) (text, public string) {
	t.Helper()
	s, err := pair.Seed()
	require.NoError(t, err)
	public, err = pair.PublicKey()
	require.NoError(t, err)
	return string(s), public
}

func nkeyConf(public string) string {
	return fmt.Sprintf("authorization { users: [ {nkey: %s} ] }", public)
}

func TestNKeysAndTheirRotation(t *testing.T) {
	first, firstPublic := rolestest.Seed(t)
	second, secondPublic := rolestest.Seed(t)
	s := server(t, nkeyConf(firstPublic))
	path := file(t, first+"\n")
	b, log := dial(t, config.NATS{URL: s.URL, NkeyFile: config.SecretFile(path)})
	works(t, b)

	// The server takes only the second key from here on, and the file comes after it.
	require.NoError(t, s.Configure(nkeyConf(secondPublic)))
	require.NoError(t, s.Reload())
	refused(t, b, "authorization violation")
	rewrite(t, path, second)
	works(t, b)
	for _, secret := range []string{first, second} {
		assert.NotContains(t, log.String(), secret)
	}
}

func TestCredentialsAndTheirRotation(t *testing.T) {
	operator, err := nkeys.CreateOperator()
	require.NoError(t, err)
	account, err := nkeys.CreateAccount()
	require.NoError(t, err)
	system, err := nkeys.CreateAccount()
	require.NoError(t, err)
	_, operatorKey := keys(t, operator)
	_, accountKey := keys(t, account)
	_, systemKey := keys(t, system)
	oc := jwt.NewOperatorClaims(operatorKey)
	oc.SystemAccount = systemKey
	signedOperator, err := oc.Encode(operator)
	require.NoError(t, err)
	signedSystem, err := jwt.NewAccountClaims(systemKey).Encode(operator)
	require.NoError(t, err)
	claims := jwt.NewAccountClaims(accountKey)
	claims.Limits.JetStreamLimits = jwt.JetStreamLimits{MemoryStorage: -1, DiskStorage: -1, Streams: -1, Consumer: -1}
	conf := func() string {
		signed, err := claims.Encode(operator)
		require.NoError(t, err)
		return fmt.Sprintf("operator: %s\nresolver: MEMORY\nresolver_preload: { %s: %s, %s: %s }",
			signedOperator, accountKey, signed, systemKey, signedSystem)
	}
	user := func() (creds, secret, public string) {
		secret, public = rolestest.Seed(t)
		signed, err := jwt.NewUserClaims(public).Encode(account)
		require.NoError(t, err)
		b, err := jwt.FormatUserConfig(signed, []byte(secret))
		require.NoError(t, err)
		return string(b), secret, public
	}
	first, firstSecret, firstPublic := user()
	second, secondSecret, _ := user()
	s := server(t, conf())
	path := file(t, first)
	b, log := dial(t, config.NATS{URL: s.URL, CredsFile: config.SecretFile(path)})
	works(t, b)

	require.NoError(t, s.Kill())
	claims.Revoke(firstPublic)
	require.NoError(t, s.Configure(conf()))
	require.NoError(t, s.Restart(t.Context()))
	refused(t, b, "nats: auth")
	rewrite(t, path, second)
	works(t, b)
	for _, secret := range []string{firstSecret, secondSecret} {
		assert.NotContains(t, log.String(), secret)
	}
}

func TestAPasswordAndItsRotation(t *testing.T) {
	conf := func(password string) string {
		return fmt.Sprintf("authorization { users: [ {user: lifeboat, password: %q} ] }", password)
	}
	s := server(t, conf("geheim-1"))
	path := file(t, "geheim-1\n")
	b, log := dial(t, config.NATS{URL: s.URL, Username: "lifeboat", PasswordFile: config.SecretFile(path)})
	works(t, b)
	require.NoError(t, s.Configure(conf("geheim-2")))
	require.NoError(t, s.Reload())
	refused(t, b, "authorization violation")
	rewrite(t, path, "geheim-2\n")
	works(t, b)
	assert.NotContains(t, log.String(), "geheim")
}

func TestCredentialsThatCanNeverWorkAreAnErrorAtOnce(t *testing.T) {
	key, _ := rolestest.Seed(t)
	account, err := nkeys.CreateAccount()
	require.NoError(t, err)
	wrong, _ := keys(t, account)
	for name, c := range map[string]struct {
		cfg  config.NATS
		want string
	}{
		"no such seed":          {config.NATS{NkeyFile: "/nonexistent"}, "nats.nkey_file"},
		"a seed of an account":  {config.NATS{NkeyFile: config.SecretFile(file(t, wrong))}, "SU..."},
		"half a seed":           {config.NATS{NkeyFile: config.SecretFile(file(t, key[:30]))}, "nats.nkey_file"},
		"no such credentials":   {config.NATS{CredsFile: "/nonexistent"}, "nats.creds_file"},
		"credentials of a seed": {config.NATS{CredsFile: config.SecretFile(file(t, key))}, "JWT"},
		"no such password":      {config.NATS{Username: "x", PasswordFile: "/nonexistent"}, "nats.password_file"},
		"no such CA":            {config.NATS{TLS: config.TLS{CAFile: "/nonexistent"}}, "nats.tls"},
	} {
		t.Run(name, func(t *testing.T) {
			c.cfg.URL = "nats://127.0.0.1:1"
			_, err := bus.Connect(bus.Options{Config: c.cfg, Actor: "test", Logger: slog.New(slog.DiscardHandler), Registerer: prometheus.NewRegistry()})
			require.ErrorContains(t, err, c.want)
			assert.NotContains(t, err.Error(), key[:30])
			assert.NotContains(t, err.Error(), wrong)
		})
	}
}

// A server that is away for long, and comes back with credentials that are refused for a while, finds everything going on.
func TestReconnectsForEver(t *testing.T) {
	key, public := rolestest.Seed(t)
	_, stranger := rolestest.Seed(t)
	s := server(t, nkeyConf(public))
	b, log := dial(t, config.NATS{URL: s.URL, NkeyFile: config.SecretFile(file(t, key))})
	works(t, b)
	handled := make(chan string, 100)
	start(t, b, jobs(func(_ context.Context, m *bus.Message) error {
		handled <- m.Subject
		return nil
	}))
	heard := make(chan string, 100)
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() {
		done <- b.Follow(ctx, bus.Follower{
			Stream: bus.StreamEvents, Filters: []string{"lifeboat.event.snapshot.*.*"}, CaughtUp: func() {},
			Message: func(_ context.Context, m *bus.Message) { heard <- m.Subject },
		})
	}()
	t.Cleanup(func() { cancel(); assert.NoError(t, <-done) })
	both := func(target string) {
		t.Helper()
		var err error
		require.Eventually(t, func() bool {
			_, err = b.Publish(t.Context(), job(target))
			return err == nil
		}, time.Minute, 50*time.Millisecond, "%v", &err)
		require.NoError(t, b.Emit(t.Context(), &lifeboatv1.Event{Noun: "snapshot", Verb: "started", Target: target}))
		assert.Equal(t, "lifeboat.job.snapshot."+target, receive(t, handled))
		require.Eventually(t, func() bool {
			var left uint64
			left, _, err = b.Last(t.Context(), bus.StreamJobs, bus.JobSubject(config.WorkSnapshot, target), &lifeboatv1.Job{})
			return err == nil && left == 0
		}, time.Minute, 5*time.Millisecond, "not acknowledged: %v", &err)
		assert.Equal(t, "lifeboat.event.snapshot.started."+target, receive(t, heard))
	}
	both("before")

	// Somebody else is there for a while and hangs up, then the server with other users, and then the server as it was.
	require.NoError(t, s.Kill())
	hangUp(t, strings.TrimPrefix(s.URL, "nats://"), 5)
	require.NoError(t, s.Configure(nkeyConf(stranger)))
	require.NoError(t, s.Restart(t.Context()))
	require.Eventually(t, func() bool {
		b, err := os.ReadFile(s.Log())
		return err == nil && bytes.Count(b, []byte("authentication error")) >= 4
	}, time.Minute, 50*time.Millisecond, "refused again and again, where the library by itself gives up after the second time")
	require.NoError(t, s.Configure(nkeyConf(public)))
	require.NoError(t, s.Reload())
	both("after")
	assert.Less(t, strings.Count(log.String(), "\n"), 60, "what repeats itself is not logged each time")
}

// hangUp takes a number of connections at an address, and ends each at once.
func hangUp(t *testing.T, address string, times int) {
	t.Helper()
	ln, err := net.Listen("tcp", address)
	require.NoError(t, err)
	defer ln.Close()
	for range times {
		conn, err := ln.Accept()
		require.NoError(t, err)
		require.NoError(t, conn.Close())
	}
}
