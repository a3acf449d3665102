package service_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"sync/atomic"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"golang.org/x/crypto/bcrypt"

	"github.com/lifeboat-fleet/lifeboat/fleet/fleettest/certtest"
	"github.com/lifeboat-fleet/lifeboat/fleet/service"
)

// healthcheck runs the command as main does.
func healthcheck(t *testing.T, addr string, args ...string) (int, string) {
	t.Helper()
	var out bytes.Buffer
	cmd := service.HealthcheckCommand(addr)
	cmd.SetOut(&out)
	cmd.SetErr(&out)
	cmd.SetArgs(args)
	return service.Main(cmd), out.String()
}

// start runs a service that is ready when healthy says so, and returns its address.
func start(t *testing.T, webConfig string, healthy func() error) string {
	t.Helper()
	file := ""
	if webConfig != "" {
		file = filepath.Join(t.TempDir(), "web.yml")
		require.NoError(t, os.WriteFile(file, []byte(webConfig), 0o600))
	}
	ctx, cancel := context.WithCancel(context.Background())
	addr, done := make(chan string, 1), make(chan error, 1)
	go func() {
		done <- service.Run(ctx, service.Options{
			Name: "sample", Logger: slog.New(slog.DiscardHandler), Listen: "127.0.0.1:0", WebConfigFile: file, Registry: service.NewRegistry(),
			Started: func(a string) { addr <- a },
			Checks:  []service.Check{{Name: "nats", Probe: func(context.Context) error { return healthy() }}},
			Actors:  []service.Actor{{Name: "idle", Run: func(ctx context.Context) error { <-ctx.Done(); return nil }}},
		})
	}()
	t.Cleanup(func() { cancel(); assert.NoError(t, <-done) })
	select {
	case a := <-addr:
		return a
	case err := <-done:
		done <- err
		require.NoError(t, err, "starting the service")
		return ""
	}
}

func well() error { return nil }

func TestHealthcheckIsWhatReadyzSays(t *testing.T) {
	var ready atomic.Bool
	addr := start(t, "", func() error {
		if ready.Load() {
			return nil
		}
		return errors.New("no servers available")
	})
	code, out := healthcheck(t, addr)
	assert.Equal(t, service.ExitFailed, code)
	assert.Contains(t, out, "503")
	assert.Contains(t, out, "nats: no servers available", "what is missing")
	code, out = healthcheck(t, addr, "http://"+addr+"/healthz")
	assert.Equal(t, service.ExitDone, code, "alive, and not ready: %s", out)

	ready.Store(true)
	code, out = healthcheck(t, addr)
	assert.Equal(t, service.ExitDone, code, out)
	assert.Equal(t, "ready\n", out)
	code, out = healthcheck(t, "", "http://"+addr+"/readyz")
	assert.Equal(t, service.ExitDone, code, out)
}

func TestHealthcheckOverTLS(t *testing.T) {
	ca, other := certtest.New(t, "ours"), certtest.New(t, "another")
	pair, client, stranger := ca.Server(t), ca.Client(t, "probe"), other.Client(t, "stranger")
	hash, err := bcrypt.GenerateFromPassword([]byte("only-we-know"), bcrypt.MinCost)
	require.NoError(t, err)
	password := filepath.Join(t.TempDir(), "password")
	require.NoError(t, os.WriteFile(password, []byte("only-we-know\n"), 0o600))
	wrong := filepath.Join(t.TempDir(), "password")
	require.NoError(t, os.WriteFile(wrong, []byte("guessed"), 0o600))
	addr := start(t, fmt.Sprintf("tls_server_config: {cert_file: %s, key_file: %s, client_auth_type: RequireAndVerifyClientCert, client_ca_file: %s}\n"+
		"basic_auth_users: {probe: %s}\n", pair.Cert, pair.Key, ca.File, hash), well)

	all := []string{"--ca-file", ca.File, "--cert-file", client.Cert, "--key-file", client.Key, "--username", "probe", "--password-file", password}
	code, out := healthcheck(t, addr, all...)
	assert.Equal(t, service.ExitDone, code, "files for TLS make the default URL https: %s", out)

	for name, args := range map[string][]string{
		"in clear":              {"http://" + addr + "/readyz"},
		"unknown authority":     append(all[2:], "--ca-file", other.File),
		"no client certificate": append([]string{"--ca-file", ca.File}, all[6:]...),
		"stranger":              append([]string{"--ca-file", ca.File, "--cert-file", stranger.Cert, "--key-file", stranger.Key}, all[6:]...),
		"no password":           all[:6],
		"wrong password":        append(all[:8:8], "--password-file", wrong),
	} {
		code, out := healthcheck(t, addr, args...)
		assert.Equal(t, service.ExitFailed, code, "%s: %s", name, out)
		assert.NotContains(t, out, "only-we-know", name)
	}
}

func TestHealthcheckFails(t *testing.T) {
	release := make(chan struct{})
	srv := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		switch r.URL.Path {
		case "/moved":
			http.Redirect(w, r, "/ok", http.StatusFound)
		case "/slow":
			<-release
		}
	}))
	t.Cleanup(srv.Close)
	t.Cleanup(func() { close(release) })
	var lc net.ListenConfig
	ln, err := lc.Listen(t.Context(), "tcp", "127.0.0.1:0")
	require.NoError(t, err)
	require.NoError(t, ln.Close())
	for name, c := range map[string]struct {
		args []string
		code int
		says string
	}{
		"nothing listens":    {[]string{"http://" + ln.Addr().String() + "/readyz"}, service.ExitFailed, "connection refused"},
		"a redirect":         {[]string{srv.URL + "/moved"}, service.ExitFailed, "302"},
		"no answer in time":  {[]string{srv.URL + "/slow", "--timeout", "50ms"}, service.ExitFailed, "deadline exceeded"},
		"no URL":             {nil, service.ExitUsage, "lifeboat scheduler healthcheck"},
		"no scheme":          {[]string{"127.0.0.1:9096"}, service.ExitUsage, "URL"},
		"another scheme":     {[]string{"ftp://u:secret@127.0.0.1/readyz"}, service.ExitUsage, "http://127.0.0.1:9096/readyz"},
		"a file not there":   {[]string{srv.URL, "--ca-file", "nowhere.pem"}, service.ExitUsage, "nowhere.pem"},
		"half a certificate": {[]string{srv.URL, "--cert-file", "cert.pem"}, service.ExitUsage, "key-file"},
		"half a login":       {[]string{srv.URL, "--username", "probe"}, service.ExitUsage, "--password-file"},
		"two URLs":           {[]string{srv.URL, srv.URL}, service.ExitUsage, "accepts at most 1"},
	} {
		began := time.Now()
		code, out := healthcheck(t, "", c.args...)
		assert.Equal(t, c.code, code, "%s: %s", name, out)
		assert.Contains(t, out, c.says, name)
		assert.NotContains(t, out, "secret", name)
		assert.Less(t, time.Since(began), 5*time.Second, name)
	}
}
