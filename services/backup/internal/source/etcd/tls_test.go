package etcd_test

import (
	"context"
	"fmt"
	"io"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	clientv3 "go.etcd.io/etcd/client/v3"
	"go.etcd.io/etcd/server/v3/embed"
	"go.uber.org/zap"

	"github.com/lifeboat-fleet/lifeboat/fleet/config"
	"github.com/lifeboat-fleet/lifeboat/fleet/fleettest/certtest"
	"github.com/lifeboat-fleet/lifeboat/services/backup/internal/source"
	"github.com/lifeboat-fleet/lifeboat/services/backup/internal/source/etcd"
)

// secured has a member serve with TLS; with clients, only to whom that CA has signed.
func secured(server certtest.Pair, clients *certtest.CA) func(*embed.Config) {
	return func(cfg *embed.Config) {
		local := []url.URL{{Scheme: "https", Host: "127.0.0.1:0"}}
		cfg.ListenClientUrls, cfg.AdvertiseClientUrls = local, local
		cfg.ClientTLSInfo.CertFile, cfg.ClientTLSInfo.KeyFile = server.Cert, server.Key
		if clients != nil {
			cfg.ClientTLSInfo.TrustedCAFile, cfg.ClientTLSInfo.ClientCertAuth = clients.File, true
		}
	}
}

func trust(ca *certtest.CA) config.TLS { return config.TLS{CAFile: ca.File} }

func present(ca *certtest.CA, p certtest.Pair) config.TLS {
	return config.TLS{CAFile: ca.File, CertFile: p.Cert, KeyFile: config.SecretFile(p.Key)}
}

// refusal is a source that must fail at once, and say why and where.
type refusal struct {
	address string
	tls     config.TLS
	want    source.Reason
	why     string
}

// requireRefused tries all of them, and waits for them together: each is tried again for a second.
func requireRefused(t *testing.T, cases map[string]refusal) {
	t.Helper()
	t.Run("refused", func(t *testing.T) {
		for name, c := range cases {
			t.Run(name, func(t *testing.T) {
				t.Parallel()
				began := time.Now()
				src := etcd.New(config.Etcd{Endpoints: []string{c.address}, TLS: c.tls}, etcd.Options{})
				_, err := src.Open(t.Context())
				var typed *source.Error
				require.ErrorAs(t, err, &typed)
				assert.Equal(t, c.want, typed.Reason, err)
				assert.Equal(t, c.address, typed.Endpoint)
				require.ErrorContains(t, err, c.why)
				require.Error(t, src.Ping(t.Context()))
				require.Less(t, time.Since(began), 20*time.Second, "it must not hang: %v", err)
			})
		}
	})
}

// TestTLS reads over TLS, and not from a server that cannot prove who it is.
func TestTLS(t *testing.T) {
	ca, other := certtest.New(t, "etcd"), certtest.New(t, "another")
	serve := func(server certtest.Pair) string {
		return clientURL(startWith(t, t.TempDir(), secured(server, nil)))
	}
	address, plain := serve(ca.Server(t)), clientURL(startWith(t, t.TempDir()))
	data, info := readFrom(t, etcd.New(config.Etcd{Endpoints: []string{address}, TLS: trust(ca)}, etcd.Options{}))
	assert.NotEmpty(t, data)
	assert.Empty(t, info.GetMissing())
	assert.Empty(t, info.GetWorries())

	inClear, overTLS := strings.Replace(address, "https:", "http:", 1), strings.Replace(plain, "http:", "https:", 1)
	requireRefused(t, map[string]refusal{
		"the wrong CA":            {address, trust(other), source.Misconfigured, "unknown authority"},
		"no CA":                   {address, config.TLS{}, source.Misconfigured, "unknown authority"},
		"a CA file that is none":  {address, config.TLS{CAFile: filepath.Join(t.TempDir(), "none")}, source.Misconfigured, "CA file"},
		"in clear to TLS":         {inClear, config.TLS{}, source.Unreachable, "connection"},
		"in clear with settings":  {inClear, trust(ca), source.Misconfigured, "https://"},
		"TLS to a server without": {overTLS, trust(ca), source.Unreachable, "handshake"},
		"for another host": {
			serve(ca.Server(t, certtest.For("etcd.example.org"))), trust(ca), source.Misconfigured, "127.0.0.1",
		},
		"expired": {serve(ca.Server(t, certtest.Expired())), trust(ca), source.Misconfigured, "expired"},
	})
}

// TestClientCertificates has the server ask for one, and take it for the user when it may.
func TestClientCertificates(t *testing.T) {
	ca, other := certtest.New(t, "etcd"), certtest.New(t, "another")
	address := clientURL(startWith(t, t.TempDir(), secured(ca.Server(t), ca)))
	at := func(tls config.TLS) config.Etcd { return config.Etcd{Endpoints: []string{address}, TLS: tls} }
	as := func(name string) config.TLS { return present(ca, ca.Client(t, name)) }

	_, info := readFrom(t, etcd.New(at(as("backup")), etcd.Options{}))
	assert.Empty(t, info.GetMissing())

	lost := as("backup")
	require.NoError(t, os.Remove(string(lost.KeyFile)))
	cases := map[string]refusal{
		"the server is not trusted": {address, present(other, ca.Client(t, "backup")), source.Misconfigured, "unknown authority"},
		"the key is gone":           {address, lost, source.Misconfigured, "client certificate"},
	}
	cases["one that has expired"] = refusal{
		address, present(ca, ca.Client(t, "backup", certtest.Expired())), source.Denied, "expired",
	}
	// Which of the alert and the end of the connection arrives first differs from time to time.
	for i := range 2 {
		cases[fmt.Sprint("none ", i)] = refusal{address, trust(ca), source.Denied, "none is configured"}
		cases[fmt.Sprint("of another CA ", i)] = refusal{
			address, present(ca, other.Client(t, "backup")), source.Denied, "acceptable CA",
		}
	}
	requireRefused(t, cases)

	t.Run("as the user", func(t *testing.T) {
		tlsConfig, err := as("root").Client()
		require.NoError(t, err)
		c, err := clientv3.New(clientv3.Config{Endpoints: []string{address}, TLS: tlsConfig, Logger: zap.NewNop()})
		require.NoError(t, err)
		defer c.Close()
		enableAuth(t, c, "c0rrecthorse")
		_, info := readFrom(t, etcd.New(at(as("root")), etcd.Options{}))
		assert.Empty(t, info.GetMissing())
		for _, name := range []string{"reader", "nobody"} {
			err := readThrough(t, etcd.New(at(as(name)), etcd.Options{}))
			var typed *source.Error
			require.ErrorAs(t, err, &typed, name)
			assert.Equal(t, source.Denied, typed.Reason, "%s: %v", name, err)
		}
	})
}

// TestRotation replaces the certificates under a source.
func TestRotation(t *testing.T) {
	plain := clientURL(startWith(t, t.TempDir()))
	certtest.TryClient(t, strings.TrimPrefix(plain, "http://"), func(_ *testing.T, addr string, files config.TLS) func(context.Context) error {
		return etcd.New(config.Etcd{Endpoints: []string{"https://" + addr}, TLS: files}, etcd.Options{}).Ping
	}, "h2")
}

// TestSecretsStaySecret looks for a password and a key in what is said of a member that breaks at any point.
func TestSecretsStaySecret(t *testing.T) {
	const password = "c0rrecthorse"
	ca := certtest.New(t, "etcd")
	address := clientURL(startWith(t, t.TempDir(), secured(ca.Server(t), nil)))
	tlsConfig, err := trust(ca).Client()
	require.NoError(t, err)
	c, err := clientv3.New(clientv3.Config{Endpoints: []string{address}, TLS: tlsConfig, Logger: zap.NewNop()})
	require.NoError(t, err)
	enableAuth(t, c, password)
	require.NoError(t, c.Close())
	file := filepath.Join(t.TempDir(), "password")
	require.NoError(t, os.WriteFile(file, []byte(password), 0o600))
	src := func(address string) *etcd.Source {
		return etcd.New(config.Etcd{
			Endpoints: []string{address}, Username: "root", PasswordFile: config.SecretFile(file), TLS: trust(ca),
		}, etcd.Options{})
	}
	_, info := readFrom(t, src(address))
	assert.Empty(t, info.GetMissing())
	said := info.String()
	for limit := int64(0); limit < 12_000; limit += 1500 {
		if err := readThrough(t, src(cut(t, address, limit))); err != nil {
			said += err.Error()
		}
	}
	assert.NotContains(t, said, password)
	assert.NotContains(t, said, "PRIVATE KEY")
}

// readThrough reads a source to its end, and gives the error that ended it before.
func readThrough(t *testing.T, src *etcd.Source) error {
	t.Helper()
	st, err := src.Open(t.Context())
	if err != nil {
		return err
	}
	defer st.Close()
	if _, err = io.Copy(io.Discard, st); err != nil {
		return err
	}
	_, err = st.Info(t.Context())
	return err
}
