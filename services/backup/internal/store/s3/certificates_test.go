package s3_test

import (
	"context"
	"os"
	"strings"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/lifeboat-fleet/lifeboat/fleet/config"
	"github.com/lifeboat-fleet/lifeboat/fleet/fleettest/certtest"
	"github.com/lifeboat-fleet/lifeboat/fleet/fleettest/s3test"
)

// behindTLS is the configuration of a server through an address that asks for a certificate.
func behindTLS(server *s3test.Server, addr string, files config.TLS) config.ObjectStore {
	cfg := server.Config
	cfg.Endpoint = "https://" + addr
	cfg.CAFile, cfg.CertFile, cfg.KeyFile = files.CAFile, files.CertFile, files.KeyFile
	return cfg
}

func TestClientCertificates(t *testing.T) {
	server := s3test.New(t)
	behind := strings.TrimPrefix(server.Endpoint, "http://")
	connect := func(t *testing.T, addr string, files config.TLS) func(context.Context) error {
		t.Helper()
		return open(t, behindTLS(server, addr, files)).Ping
	}
	t.Run("the store", func(t *testing.T) {
		t.Setenv("AWS_CA_BUNDLE", "")
		certtest.TryClient(t, behind, connect)
	})
	// With it the SDK takes no HTTP client but its own, and believes the bundle besides what ca_file has.
	t.Run("with AWS_CA_BUNDLE", func(t *testing.T) {
		ca := certtest.New(t, "the bundle's")
		mine := ca.Client(t, "lifeboat")
		front := certtest.NewFront(t, behind, ca.Mutual(t, ca.Server(t)))
		t.Setenv("AWS_CA_BUNDLE", ca.File)
		files := config.TLS{CertFile: mine.Cert, KeyFile: config.SecretFile(mine.Key)}
		require.NoError(t, connect(t, front.Addr, files)(t.Context()), "no ca_file")
		files.CAFile = certtest.New(t, "the store's").File
		require.NoError(t, connect(t, front.Addr, files)(t.Context()), "ca_file beside it")
		require.Error(t, connect(t, front.Addr, config.TLS{CAFile: ca.File})(t.Context()), "no certificate")
		t.Setenv("AWS_CA_BUNDLE", certtest.New(t, "another").File)
		certtest.TryClient(t, behind, func(t *testing.T, addr string, files config.TLS) func(context.Context) error {
			t.Helper()
			return connect(t, addr, files)
		})
	})
}

// Objects go up and come down while the client's certificate is replaced, also where each request has a connection of its own.
func TestACertificateIsRotatedUnderTheStore(t *testing.T) {
	server := s3test.New(t)
	ca := certtest.New(t, "ca")
	front := certtest.NewFront(t, strings.TrimPrefix(server.Endpoint, "http://"), ca.Mutual(t, ca.Server(t)))
	mine, next := ca.Client(t, "lifeboat"), ca.Client(t, "lifeboat")
	s := open(t, behindTLS(server, front.Addr, config.TLS{CAFile: ca.File, CertFile: mine.Cert, KeyFile: config.SecretFile(mine.Key)}))
	require.NoError(t, s.Ping(t.Context()))
	before := front.Passed()
	require.NoError(t, s.Ping(t.Context()))
	assert.Equal(t, before, front.Passed(), "connections are kept")
	require.NoError(t, os.Rename(next.Cert, mine.Cert))
	require.NoError(t, s.Ping(t.Context()), "between the two files")
	require.NoError(t, os.Rename(next.Key, mine.Key))
	require.NoError(t, s.Ping(t.Context()))
	assert.Greater(t, front.Passed(), before, "the new certificate is shown")
}
