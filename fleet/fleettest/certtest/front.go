package certtest

import (
	"crypto/tls"
	"crypto/x509"
	"io"
	"net"
	"os"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
)

// handshakeTimeout is more than a handshake on loopback takes on a busy machine.
const handshakeTimeout = 10 * time.Second

// Front speaks TLS, asks clients for a certificate, and passes what they say on to a server that does neither. It is for servers that
// cannot ask for one themselves.
type Front struct {
	// Addr is where it listens, as host:port.
	Addr string

	ln     net.Listener
	behind string
	config atomic.Pointer[tls.Config]
	passed atomic.Int64
	wg     sync.WaitGroup

	mu    sync.Mutex
	conns map[net.Conn]bool // nil once it is closed
}

// NewFront listens on a free loopback port in front of behind, as host:port. It ends with the test.
func NewFront(tb testing.TB, behind string, config *tls.Config) *Front {
	tb.Helper()
	ln, err := net.Listen("tcp", "127.0.0.1:0") //nolint:noctx // listening on loopback does not wait
	require.NoError(tb, err)
	f := &Front{Addr: ln.Addr().String(), ln: ln, behind: behind, conns: map[net.Conn]bool{}}
	f.config.Store(config)
	f.wg.Go(func() {
		for {
			c, err := ln.Accept()
			if err != nil {
				return // closed
			}
			f.wg.Go(func() { f.serve(c) })
		}
	})
	tb.Cleanup(f.close)
	return f
}

// Mutual are the settings of a server with a certificate, which takes only clients that ca has signed.
func (ca *CA) Mutual(tb testing.TB, server Pair) *tls.Config {
	tb.Helper()
	pair, err := tls.LoadX509KeyPair(server.Cert, server.Key)
	require.NoError(tb, err)
	return &tls.Config{
		Certificates: []tls.Certificate{pair}, ClientCAs: ca.Pool(tb), ClientAuth: tls.RequireAndVerifyClientCert, MinVersion: tls.VersionTLS12,
	}
}

// Trust are the settings of a client that believes whom ca has signed, with certificates of its own or without.
func (ca *CA) Trust(tb testing.TB, own ...Pair) *tls.Config {
	tb.Helper()
	c := &tls.Config{RootCAs: ca.Pool(tb), MinVersion: tls.VersionTLS12}
	for _, p := range own {
		pair, err := tls.LoadX509KeyPair(p.Cert, p.Key)
		require.NoError(tb, err)
		// Not Certificates: of those none is shown that the server does not ask for, and it is to be refused.
		c.GetClientCertificate = func(*tls.CertificateRequestInfo) (*tls.Certificate, error) { return &pair, nil }
	}
	return c
}

// Pool holds the CA.
func (ca *CA) Pool(tb testing.TB) *x509.CertPool {
	tb.Helper()
	pem, err := os.ReadFile(ca.File)
	require.NoError(tb, err)
	pool := x509.NewCertPool()
	require.True(tb, pool.AppendCertsFromPEM(pem))
	return pool
}

// Use takes other settings from the next connection on, and cuts those that there are.
func (f *Front) Use(config *tls.Config) {
	f.config.Store(config)
	f.mu.Lock()
	defer f.mu.Unlock()
	for c := range f.conns {
		_ = c.Close() // it may be closed already
	}
}

// Passed is how many clients were let in.
func (f *Front) Passed() int64 { return f.passed.Load() }

func (f *Front) serve(raw net.Conn) {
	if !f.keep(raw) {
		return
	}
	defer f.drop(raw)
	_ = raw.SetDeadline(time.Now().Add(handshakeTimeout)) // a closed connection fails below
	client := tls.Server(raw, f.config.Load())
	if client.Handshake() != nil { //nolint:noctx // the deadline bounds it
		return
	}
	_ = raw.SetDeadline(time.Time{}) // as above
	f.passed.Add(1)
	server, err := net.Dial("tcp", f.behind) //nolint:noctx // loopback
	if err != nil || !f.keep(server) {
		return
	}
	defer f.drop(server)
	// Either side's end ends both: HTTP has no use for half a connection.
	done := make(chan struct{}, 2)
	for _, pair := range [][2]net.Conn{{server, client}, {client, server}} {
		f.wg.Go(func() {
			_, _ = io.Copy(pair[0], pair[1]) // an error is an end
			done <- struct{}{}
		})
	}
	<-done
}

// keep remembers a connection, or closes it when the front is closed.
func (f *Front) keep(c net.Conn) bool {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.conns == nil {
		_ = c.Close() // nobody waits for it
		return false
	}
	f.conns[c] = true
	return true
}

func (f *Front) drop(c net.Conn) {
	f.mu.Lock()
	defer f.mu.Unlock()
	delete(f.conns, c)
	_ = c.Close() // it may be closed already
}

func (f *Front) close() {
	_ = f.ln.Close() // it may be closed already
	f.mu.Lock()
	for c := range f.conns {
		_ = c.Close() // it may be closed already
	}
	f.conns = nil
	f.mu.Unlock()
	f.wg.Wait()
}
