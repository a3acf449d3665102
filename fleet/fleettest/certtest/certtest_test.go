package certtest_test

import (
	"crypto/tls"
	"io"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/lifeboat-fleet/lifeboat/fleet/config"
	"github.com/lifeboat-fleet/lifeboat/fleet/fleettest/certtest"
)

// greet has a client and a server shake hands, and returns both of their opinions.
func greet(t *testing.T, server certtest.Pair, clients string, client config.TLS) (clientErr, serverErr error) {
	t.Helper()
	pair, err := tls.LoadX509KeyPair(server.Cert, server.Key)
	require.NoError(t, err)
	pool, err := config.CertPool(clients)
	require.NoError(t, err)
	ln, err := tls.Listen("tcp", "127.0.0.1:0", &tls.Config{
		MinVersion: tls.VersionTLS12, Certificates: []tls.Certificate{pair},
		ClientAuth: tls.RequireAndVerifyClientCert, ClientCAs: pool,
	})
	require.NoError(t, err)
	defer ln.Close()
	done := make(chan error, 1)
	go func() {
		conn, aerr := ln.Accept()
		if aerr != nil {
			done <- aerr
			return
		}
		defer conn.Close()
		_, cerr := io.Copy(conn, conn)
		done <- cerr
	}()
	cfg, err := client.Client()
	require.NoError(t, err)
	conn, clientErr := (&tls.Dialer{Config: cfg}).DialContext(t.Context(), "tcp", ln.Addr().String())
	if clientErr == nil {
		_ = conn.Close() // fails when the server was faster to end it
	}
	return clientErr, <-done
}

// TestPairs shakes hands with what is signed by the CA, and refuses what is not.
func TestPairs(t *testing.T) {
	ca, other := certtest.New(t, "ours"), certtest.New(t, "theirs")
	good := ca.Client(t, "someone")
	trusting := func(ca *certtest.CA, p certtest.Pair) config.TLS {
		return config.TLS{CAFile: ca.File, CertFile: p.Cert, KeyFile: config.SecretFile(p.Key)}
	}
	clientErr, serverErr := greet(t, ca.Server(t), ca.File, trusting(ca, good))
	require.NoError(t, clientErr)
	require.NoError(t, serverErr)

	clientErr, _ = greet(t, ca.Server(t), ca.File, trusting(other, good))
	require.ErrorContains(t, clientErr, "unknown authority")
	clientErr, _ = greet(t, ca.Server(t, certtest.For("example.org")), ca.File, trusting(ca, good))
	require.ErrorContains(t, clientErr, "127.0.0.1")
	clientErr, _ = greet(t, ca.Server(t, certtest.Expired()), ca.File, trusting(ca, good))
	require.ErrorContains(t, clientErr, "expired")
	_, serverErr = greet(t, ca.Server(t), ca.File, trusting(ca, other.Client(t, "someone")))
	require.ErrorContains(t, serverErr, "unknown authority")
	_, serverErr = greet(t, ca.Server(t), ca.File, trusting(ca, ca.Client(t, "someone", certtest.Expired())))
	require.ErrorContains(t, serverErr, "expired")
}
