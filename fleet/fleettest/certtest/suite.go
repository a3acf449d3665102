package certtest

import (
	"context"
	"crypto/tls"
	"io"
	"net/http"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/lifeboat-fleet/lifeboat/fleet/config"
)

// askWithin bounds one question of the suites; a client that tries again by itself needs most of it to fail.
const askWithin = 30 * time.Second

// Connect makes a client of the server at https://addr, with files for TLS. What it returns asks that server anything, and says why that
// was not possible.
type Connect func(t *testing.T, addr string, files config.TLS) (ask func(context.Context) error)

// TryClient has a client talk to the server at behind (host:port, in clear) through a Front, which takes it with its certificate and
// not otherwise; has it refuse servers that it cannot believe; and replaces all certificates under it. protocols are those that the
// server offers besides TLS itself (ALPN): "h2" for gRPC.
func TryClient(t *testing.T, behind string, connect Connect, protocols ...string) {
	t.Helper()
	ca, stranger := New(t, "ours"), New(t, "stranger")
	mine := ca.Client(t, "lifeboat")
	present := func(p Pair) config.TLS {
		return config.TLS{CAFile: ca.File, CertFile: p.Cert, KeyFile: config.SecretFile(p.Key)}
	}
	ask := func(t *testing.T, addr string, files config.TLS) error {
		t.Helper()
		ctx, cancel := context.WithTimeout(t.Context(), askWithin)
		defer cancel()
		return connect(t, addr, files)(ctx)
	}
	mutual := func(t *testing.T, server Pair) *tls.Config {
		t.Helper()
		c := ca.Mutual(t, server)
		c.NextProtos = protocols
		return c
	}
	front := NewFront(t, behind, mutual(t, ca.Server(t)))
	t.Run("accepted with its certificate", func(t *testing.T) {
		require.NoError(t, ask(t, front.Addr, present(mine)))
		require.Positive(t, front.Passed())
	})
	for name, files := range map[string]config.TLS{
		"refused without a certificate":        {CAFile: ca.File},
		"refused with a foreign CA's":          present(stranger.Client(t, "lifeboat")),
		"refused with one that has expired":    present(ca.Client(t, "lifeboat", Expired())),
		"believes no CA but the one it is for": {CertFile: mine.Cert, KeyFile: config.SecretFile(mine.Key)},
	} {
		t.Run(name, func(t *testing.T) {
			before := front.Passed()
			require.Error(t, ask(t, front.Addr, files))
			assert.Equal(t, before, front.Passed(), "it was let in")
		})
	}
	old := mutual(t, ca.Server(t))
	old.MinVersion, old.MaxVersion = tls.VersionTLS10, tls.VersionTLS11
	for name, server := range map[string]*tls.Config{
		"refuses a server of a foreign CA":     mutual(t, stranger.Server(t)),
		"refuses a server that has expired":    mutual(t, ca.Server(t, Expired())),
		"refuses a server of another name":     mutual(t, ca.Server(t, For("elsewhere.example.org"))),
		"refuses a server of TLS 1.1 and less": old,
	} {
		t.Run(name, func(t *testing.T) {
			require.Error(t, ask(t, NewFront(t, behind, server).Addr, present(mine)))
		})
	}
	t.Run("takes up what is rotated", func(t *testing.T) { tryRotation(t, behind, connect, protocols) })
}

// tryRotation gives both sides certificates of another CA, one after the other, while the client lives.
func tryRotation(t *testing.T, behind string, connect Connect, protocols []string) {
	t.Helper()
	before, after := New(t, "before"), New(t, "after")
	dir := t.TempDir()
	files := config.TLS{
		CAFile: filepath.Join(dir, "ca"), CertFile: filepath.Join(dir, "cert"), KeyFile: config.SecretFile(filepath.Join(dir, "key")),
	}
	put := func(ca *CA) {
		p := ca.Client(t, "lifeboat")
		replace(t, ca.File, files.CAFile)
		replace(t, p.Cert, files.CertFile)
		replace(t, p.Key, string(files.KeyFile))
	}
	put(before)
	server := func(ca *CA) *tls.Config {
		c := ca.Mutual(t, ca.Server(t))
		c.NextProtos = protocols
		return c
	}
	front := NewFront(t, behind, server(before))
	ask := connect(t, front.Addr, files)
	within := func() error {
		ctx, cancel := context.WithTimeout(t.Context(), askWithin)
		defer cancel()
		return ask(ctx)
	}
	require.NoError(t, within())
	front.Use(server(after))
	require.Error(t, within(), "the server is another one, and the files are not yet")
	put(after)
	require.NoError(t, within())
}

// replace puts a copy of a file in another's place, as tools that rotate certificates do.
func replace(t *testing.T, from, to string) {
	t.Helper()
	b, err := os.ReadFile(from)
	require.NoError(t, err)
	require.NoError(t, os.WriteFile(to+".new", b, 0o600)) //nolint:gosec // a file of the test itself
	require.NoError(t, os.Rename(to+".new", to))
}

// WebConfig writes a web configuration file (exporter-toolkit) of a server that takes only clients that ca has signed, and returns its
// name. TryListener tries it.
func (ca *CA) WebConfig(tb testing.TB) string {
	tb.Helper()
	server := ca.Server(tb)
	name := filepath.Join(tb.TempDir(), "web.yml")
	require.NoError(tb, os.WriteFile(name, []byte("tls_server_config:\n  cert_file: "+server.Cert+"\n  key_file: "+server.Key+
		"\n  client_ca_file: "+ca.File+"\n  client_auth_type: RequireAndVerifyClientCert\n"), 0o600))
	return name
}

// TryListener asks a server with the web configuration of WebConfig for a path: it answers a client with a certificate of ca, whatever
// it answers, and nobody else.
func TryListener(t *testing.T, ca *CA, addr, path string) {
	t.Helper()
	stranger := New(t, "stranger")
	mine := ca.Client(t, "prometheus")
	ask := func(t *testing.T, scheme string, with *tls.Config) (int, error) {
		t.Helper()
		ctx, cancel := context.WithTimeout(t.Context(), askWithin)
		defer cancel()
		req, err := http.NewRequestWithContext(ctx, http.MethodGet, scheme+"://"+addr+path, http.NoBody)
		require.NoError(t, err)
		client := &http.Client{Transport: &http.Transport{TLSClientConfig: with, DisableKeepAlives: true}}
		resp, err := client.Do(req)
		if err != nil {
			return 0, err
		}
		defer resp.Body.Close()
		_, err = io.Copy(io.Discard, resp.Body)
		return resp.StatusCode, err
	}
	t.Run("answers a client with a certificate", func(t *testing.T) {
		_, err := ask(t, "https", ca.Trust(t, mine))
		require.NoError(t, err)
	})
	old := ca.Trust(t, mine)
	old.MinVersion, old.MaxVersion = tls.VersionTLS10, tls.VersionTLS11
	for name, with := range map[string]*tls.Config{
		"refuses one without":                ca.Trust(t),
		"refuses one of a foreign CA":        ca.Trust(t, stranger.Client(t, "prometheus")),
		"refuses one that has expired":       ca.Trust(t, ca.Client(t, "prometheus", Expired())),
		"refuses TLS 1.1 and less":           old,
		"is refused by who trusts another":   stranger.Trust(t, mine),
		"is refused by who has no CA for it": {MinVersion: tls.VersionTLS12},
	} {
		t.Run(name, func(t *testing.T) {
			_, err := ask(t, "https", with)
			require.Error(t, err)
		})
	}
	t.Run("says nothing in clear", func(t *testing.T) {
		status, err := ask(t, "http", nil)
		if err == nil {
			require.Equal(t, http.StatusBadRequest, status)
		}
	})
}
