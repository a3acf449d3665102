package consul_test

import (
	"context"
	"net/http"
	"strings"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/lifeboat-fleet/lifeboat/fleet/config"
	"github.com/lifeboat-fleet/lifeboat/fleet/fleettest/bintest"
	"github.com/lifeboat-fleet/lifeboat/fleet/fleettest/certtest"
	"github.com/lifeboat-fleet/lifeboat/services/backup/internal/source"
	"github.com/lifeboat-fleet/lifeboat/services/backup/internal/source/consul"
)

// TestTLS reads a server that takes only clients of its CA, and does not read one that somebody else vouches for.
func TestTLS(t *testing.T) {
	ca, stranger := certtest.New(t, "consul"), certtest.New(t, "consul")
	server := ca.Server(t)
	c := run(t, bintest.ConsulOptions{CAFile: ca.File, CertFile: server.Cert, KeyFile: server.Key})
	do(t, http.MethodPut, c.Address+"/v1/kv/a", []byte("x"))
	client, foreign, old := ca.Client(t, "lifeboat"), stranger.Client(t, "lifeboat"), ca.Client(t, "lifeboat", certtest.Expired())
	files := func(caFile string, pair certtest.Pair) config.TLS {
		return config.TLS{CAFile: caFile, CertFile: pair.Cert, KeyFile: config.SecretFile(pair.Key)}
	}
	cfg := config.Consul{Address: c.HTTPS, TLS: files(ca.File, client)}
	data, info := readAll(t, cfg)
	assert.Len(t, decode(t, data), 1)
	assert.Empty(t, info.GetMissing())
	require.NoError(t, consul.New(cfg, consul.Options{}).Ping(t.Context()))
	assert.NotEmpty(t, readRaft(t, cfg))

	for name, tt := range map[string]struct {
		tls    config.TLS
		reason source.Reason
	}{
		"no certificate":         {files(ca.File, certtest.Pair{}), source.Unreachable},
		"another CA's":           {files(ca.File, foreign), source.Unreachable},
		"expired":                {files(ca.File, old), source.Unreachable},
		"the server is unknown":  {files(stranger.File, client), source.Unreachable},
		"no CA":                  {files("", client), source.Unreachable},
		"no such file":           {files(ca.File, certtest.Pair{Cert: "/nonexistent", Key: "/nonexistent"}), source.Misconfigured},
		"a key is no CA":         {files(server.Key, client), source.Misconfigured},
		"key and certificate do": {files(ca.File, certtest.Pair{Cert: client.Cert, Key: foreign.Key}), source.Misconfigured},
	} {
		t.Run(name, func(t *testing.T) {
			err := openErr(t, config.Consul{Address: c.HTTPS, TLS: tt.tls})
			assert.Equal(t, tt.reason, err.Reason, "%v", err)
			require.ErrorContains(t, err, c.HTTPS)
			require.ErrorContains(t, consul.New(config.Consul{Address: c.HTTPS, TLS: tt.tls}, consul.Options{}).Ping(t.Context()), c.HTTPS)
		})
	}
}

// TestRotation replaces the certificates under a source.
func TestRotation(t *testing.T) {
	c := run(t, bintest.ConsulOptions{})
	certtest.TryClient(t, strings.TrimPrefix(c.Address, "http://"), func(_ *testing.T, addr string, files config.TLS) func(context.Context) error {
		return consul.New(config.Consul{Address: "https://" + addr, TLS: files}, consul.Options{}).Ping
	})
}
