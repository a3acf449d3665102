package web_test

import (
	"bytes"
	"context"
	"crypto/tls"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"go.uber.org/goleak"
	"golang.org/x/crypto/bcrypt"

	"github.com/lifeboat-fleet/lifeboat/fleet/fleettest/certtest"
	"github.com/lifeboat-fleet/lifeboat/fleet/web"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// buffer is a log.
type buffer struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (b *buffer) Write(p []byte) (int, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.b.Write(p)
}

func (b *buffer) String() string {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.b.String()
}

type server struct {
	addr string
	logs *buffer
	stop func() error
}

func serve(t *testing.T, file string, h http.Handler) *server {
	t.Helper()
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	require.NoError(t, err)
	ctx, cancel := context.WithCancel(context.Background())
	s := &server{addr: ln.Addr().String(), logs: &buffer{}}
	done := make(chan error, 1)
	go func() {
		done <- web.Serve(ctx, &http.Server{Handler: h, ReadHeaderTimeout: time.Second}, ln, file, slog.New(slog.NewTextHandler(s.logs, nil)))
	}()
	s.stop = sync.OnceValue(func() error {
		cancel()
		return <-done
	})
	t.Cleanup(func() { assert.NoError(t, s.stop()) })
	return s
}

// get asks with a client of its own, so that each request has a connection of its own.
func (s *server) get(ctx context.Context, scheme string, with *tls.Config, change func(*http.Request)) (int, error) {
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, scheme+"://"+s.addr+"/", http.NoBody)
	if err != nil {
		return 0, err
	}
	if change != nil {
		change(req)
	}
	client := &http.Client{Transport: &http.Transport{TLSClientConfig: with, DisableKeepAlives: true}}
	resp, err := client.Do(req)
	if err != nil {
		return 0, err
	}
	defer resp.Body.Close()
	_, err = io.Copy(io.Discard, resp.Body)
	return resp.StatusCode, err
}

func write(t *testing.T, path, format string, args ...any) {
	t.Helper()
	tmp := path + ".new"
	require.NoError(t, os.WriteFile(tmp, fmt.Appendf(nil, format, args...), 0o600))
	require.NoError(t, os.Rename(tmp, path))
}

func hash(t *testing.T, password string) string {
	t.Helper()
	h, err := bcrypt.GenerateFromPassword([]byte(password), bcrypt.MinCost)
	require.NoError(t, err)
	return string(h)
}

var ok = http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(http.StatusOK) })

func TestWithoutAFileItIsPlain(t *testing.T) {
	t.Parallel()
	s := serve(t, "", ok)
	code, err := s.get(t.Context(), "http", nil, nil)
	require.NoError(t, err)
	assert.Equal(t, http.StatusOK, code)
}

func TestTLSAndARenewedCertificate(t *testing.T) {
	t.Parallel()
	ca, other := certtest.New(t, "ca"), certtest.New(t, "other")
	pair := ca.Server(t)
	file := filepath.Join(t.TempDir(), "web.yml")
	write(t, file, "tls_server_config: {cert_file: %q, key_file: %q}\n", pair.Cert, pair.Key)
	s := serve(t, file, ok)
	code, err := s.get(t.Context(), "https", ca.Trust(t), nil)
	require.NoError(t, err)
	assert.Equal(t, http.StatusOK, code)
	_, err = s.get(t.Context(), "https", other.Trust(t), nil)
	require.ErrorContains(t, err, "certificate")
	code, err = s.get(t.Context(), "http", nil, nil)
	require.NoError(t, err)
	assert.Equal(t, http.StatusBadRequest, code, "in clear there is nothing")
	// The next connection has the new certificate.
	pair = other.Server(t)
	write(t, file, "tls_server_config: {cert_file: %q, key_file: %q}\n", pair.Cert, pair.Key)
	code, err = s.get(t.Context(), "https", other.Trust(t), nil)
	require.NoError(t, err)
	assert.Equal(t, http.StatusOK, code)
}

func TestClientCertificates(t *testing.T) {
	t.Parallel()
	ca := certtest.New(t, "ca")
	s := serve(t, ca.WebConfig(t), ok)
	certtest.TryListener(t, ca, s.addr, "/")
	require.Eventually(t, func() bool { return strings.Contains(s.logs.String(), "TLS handshake error") },
		time.Minute, 10*time.Millisecond, "the log says why they were refused")
}

// TLS 1.0 and 1.1 are refused at the start, and of a file that comes to allow them later no request is served.
func TestNothingBelowTLS12(t *testing.T) {
	t.Parallel()
	ca := certtest.New(t, "ca")
	pair := ca.Server(t)
	file := filepath.Join(t.TempDir(), "web.yml")
	const text = "tls_server_config: {cert_file: %q, key_file: %q, min_version: %s}\n"
	for _, version := range []string{"TLS10", "TLS11"} {
		write(t, file, text, pair.Cert, pair.Key, version)
		require.ErrorContains(t, web.Check(file), "TLS12")
	}
	write(t, file, text, pair.Cert, pair.Key, "TLS13")
	s := serve(t, file, ok)
	code, err := s.get(t.Context(), "https", ca.Trust(t), nil)
	require.NoError(t, err)
	assert.Equal(t, http.StatusOK, code)
	write(t, file, text, pair.Cert, pair.Key, "TLS10")
	old := ca.Trust(t)
	old.MinVersion, old.MaxVersion = tls.VersionTLS10, tls.VersionTLS11
	code, err = s.get(t.Context(), "https", old, nil)
	require.NoError(t, err)
	assert.Equal(t, http.StatusUpgradeRequired, code)
}

// What other machines reach without protection is said, once for each listener and with what to change.
func TestAnOpenAddressIsAWarning(t *testing.T) {
	t.Parallel()
	ca := certtest.New(t, "ca")
	pair := ca.Server(t)
	dir := t.TempDir()
	encrypted, mutual, login := filepath.Join(dir, "tls.yml"), ca.WebConfig(t), filepath.Join(dir, "login.yml")
	write(t, encrypted, "tls_server_config: {cert_file: %q, key_file: %q}\n", pair.Cert, pair.Key)
	write(t, login, "basic_auth_users: {prometheus: %q}\n", hash(t, "x"))
	out, in := &net.TCPAddr{IP: net.IPv4zero, Port: 9096}, &net.TCPAddr{IP: net.IPv4(127, 0, 0, 1), Port: 9096}
	for _, c := range []struct {
		l    web.Listener
		want string
	}{
		{web.Listener{Addr: in}, ""},
		{web.Listener{Addr: &net.TCPAddr{IP: net.IPv6loopback}, Trusted: true}, ""},
		{web.Listener{Addr: out}, "in clear, and to anybody who reaches it"},
		{web.Listener{Addr: &net.TCPAddr{IP: net.ParseIP("10.0.0.1")}}, "in clear, and to anybody who reaches it"},
		{web.Listener{Addr: out, WebConfigFile: login}, "in clear"},
		{web.Listener{Addr: out, WebConfigFile: encrypted}, ""},
		{web.Listener{Addr: out, WebConfigFile: encrypted, Trusted: true}, "to anybody who reaches it"},
		{web.Listener{Addr: out, WebConfigFile: encrypted, Trusted: true, Proven: true}, ""},
		{web.Listener{Addr: out, WebConfigFile: mutual, Trusted: true}, ""},
		{web.Listener{Addr: out, Trusted: true, Proven: true}, "in clear"},
	} {
		logs := &buffer{}
		c.l.Name, c.l.Setting = "webhooks", "notifier.web_config_file"
		web.WarnIfOpen(t.Context(), slog.New(slog.NewJSONHandler(logs, nil)), c.l)
		if c.want == "" {
			assert.Empty(t, logs.String(), "%+v", c.l)
			continue
		}
		var line map[string]any
		require.NoError(t, json.Unmarshal([]byte(logs.String()), &line), "one line: %q", logs.String())
		assert.Equal(t, []any{"WARN", "webhooks", c.l.Addr.String(), c.want, "notifier.web_config_file"},
			[]any{line["level"], line["listener"], line["address"], line["served"], line["setting"]})
	}
}

func TestBasicAuthentication(t *testing.T) {
	t.Parallel()
	file := filepath.Join(t.TempDir(), "web.yml")
	write(t, file, "basic_auth_users: {alertmanager: %q}\n", hash(t, "s3cret-word"))
	s := serve(t, file, ok)
	as := func(user, password string) int {
		code, err := s.get(t.Context(), "http", nil, func(r *http.Request) { r.SetBasicAuth(user, password) })
		require.NoError(t, err)
		return code
	}
	assert.Equal(t, http.StatusOK, as("alertmanager", "s3cret-word"))
	assert.Equal(t, http.StatusUnauthorized, as("alertmanager", "wrong-word"))
	assert.Equal(t, http.StatusUnauthorized, as("nobody", "s3cret-word"))
	code, err := s.get(t.Context(), "http", nil, nil)
	require.NoError(t, err)
	assert.Equal(t, http.StatusUnauthorized, code)
	// Another password is in force with the next request; a broken file makes Alertmanager come again.
	write(t, file, "basic_auth_users: {alertmanager: %q}\n", hash(t, "n3w-word"))
	assert.Equal(t, http.StatusUnauthorized, as("alertmanager", "s3cret-word"))
	assert.Equal(t, http.StatusOK, as("alertmanager", "n3w-word"))
	write(t, file, "basic_auth_users: [")
	assert.Equal(t, http.StatusInternalServerError, as("alertmanager", "n3w-word"))
	assert.NotContains(t, s.logs.String(), "-word")
}

func TestABrokenFileIsAnErrorThatNamesIt(t *testing.T) {
	t.Parallel()
	ca := certtest.New(t, "ca")
	pair := ca.Server(t)
	for name, content := range map[string]string{
		"yaml.yml": "basic_auth_users: [", "key.yml": "tls: {}\n", "cert.yml": "tls_server_config: {cert_file: gone.pem, key_file: gone.pem}\n",
		"user.yml": "basic_auth_users: {a: plain}\n",
		"mtls.yml": fmt.Sprintf("tls_server_config: {cert_file: %q, key_file: %q, client_auth_type: Sometimes}\n", pair.Cert, pair.Key),
	} {
		file := filepath.Join(t.TempDir(), name)
		write(t, file, "%s", content)
		require.ErrorContains(t, web.Check(file), file)
		ln, err := net.Listen("tcp", "127.0.0.1:0")
		require.NoError(t, err)
		err = web.Serve(t.Context(), &http.Server{Handler: ok, ReadHeaderTimeout: time.Second}, ln, file, slog.New(slog.DiscardHandler))
		require.ErrorContains(t, err, file)
		_, err = ln.Accept()
		require.ErrorIs(t, err, net.ErrClosed, "the address is free again")
	}
	require.ErrorContains(t, web.Check(filepath.Join(t.TempDir(), "absent.yml")), "absent.yml")
	require.NoError(t, web.Check(""))
}

func TestAStopLetsRequestsFinish(t *testing.T) {
	t.Parallel()
	for _, content := range []string{"", "http_server_config: {http2: true}\n"} {
		file := ""
		if content != "" {
			file = filepath.Join(t.TempDir(), "web.yml")
			write(t, file, "%s", content)
		}
		began, goOn := make(chan struct{}), make(chan struct{})
		s := serve(t, file, http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
			close(began)
			<-goOn
			w.WriteHeader(http.StatusOK)
		}))
		code := make(chan int, 1)
		go func() {
			c, err := s.get(t.Context(), "http", nil, nil)
			assert.NoError(t, err)
			code <- c
		}()
		<-began
		stopped := make(chan error, 1)
		go func() { stopped <- s.stop() }()
		require.Eventually(t, func() bool {
			conn, err := net.Dial("tcp", s.addr)
			if err == nil {
				_ = conn.Close()
			}
			return err != nil
		}, time.Minute, 10*time.Millisecond, "nothing new is taken")
		close(goOn)
		assert.Equal(t, http.StatusOK, <-code)
		require.NoError(t, <-stopped)
	}
}

func TestBearerTokens(t *testing.T) {
	t.Parallel()
	content, failed := "old-token\n\n  new-token \r\n", error(nil)
	h := web.Bearer(func() (string, error) { return content, failed }, ok)
	ask := func(header string) *httptest.ResponseRecorder {
		w := httptest.NewRecorder()
		r := httptest.NewRequest(http.MethodPost, "/", http.NoBody)
		if header != "" {
			r.Header.Set("Authorization", header)
		}
		h.ServeHTTP(w, r)
		return w
	}
	for header, want := range map[string]int{
		"Bearer old-token": 200, "bearer new-token": 200, "Bearer  new-token": 200, "": 401, "Bearer": 401, "Bearer ": 401, "Bearer old": 401,
		"Bearer old-token\nnew-token": 401, "Bearer old-tokens": 401, "Basic old-token": 401, "old-token": 401,
		"Bearer old-token new-token": 401,
	} {
		w := ask(header)
		assert.Equal(t, want, w.Code, "%q", header)
		if want == http.StatusUnauthorized {
			assert.Contains(t, w.Header().Get("WWW-Authenticate"), `Bearer realm="lifeboat"`, "%q", header)
			assert.NotContains(t, w.Body.String(), "-token")
		}
	}
	content = "new-token"
	assert.Equal(t, http.StatusUnauthorized, ask("Bearer old-token").Code, "a token that was taken away")
	content = " \n"
	assert.Equal(t, http.StatusServiceUnavailable, ask("Bearer ").Code, "no tokens let nobody in")
	content, failed = "new-token", errors.New("reading secret file /run/tokens: gone")
	w := ask("Bearer new-token")
	assert.Equal(t, http.StatusServiceUnavailable, w.Code)
	assert.NotContains(t, w.Body.String(), "/run/tokens")
}

// Alertmanager drops what is answered with 401, so the log must say that it happens.
func TestTheLogSaysWhatWasRefusedAndNoToken(t *testing.T) {
	t.Parallel()
	var failed atomic.Bool
	s := serve(t, "", web.Bearer(func() (string, error) {
		if failed.Load() {
			return "", errors.New("reading secret file /run/tokens: gone")
		}
		return "right-token", nil
	}, ok))
	ask := func(token string) int {
		code, err := s.get(t.Context(), "http", nil, func(r *http.Request) { r.Header.Set("Authorization", "Bearer "+token) })
		require.NoError(t, err)
		return code
	}
	assert.Equal(t, http.StatusOK, ask("right-token"))
	assert.Empty(t, s.logs.String())
	assert.Equal(t, http.StatusUnauthorized, ask("wrong-token"))
	assert.Contains(t, s.logs.String(), "refused a request from 127.0.0.1:")
	failed.Store(true)
	assert.Equal(t, http.StatusServiceUnavailable, ask("right-token"))
	assert.Contains(t, s.logs.String(), "/run/tokens: gone")
	assert.NotContains(t, s.logs.String(), "-token")
}
