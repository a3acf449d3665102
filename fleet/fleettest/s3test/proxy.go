package s3test

import (
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"slices"
	"strconv"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"              //nolint:depguard // to sign what a fault has changed
	v4 "github.com/aws/aws-sdk-go-v2/aws/signer/v4" //nolint:depguard // to sign what a fault has changed
	"github.com/stretchr/testify/require"

	"github.com/lifeboat-fleet/lifeboat/fleet/config"
)

// Proxy stands between a client and an S3 server, counts what passes and makes faults. Signatures stay valid: the server
// is sent the Host that the client signed.
type Proxy struct {
	// Endpoint is the proxy's URL.
	Endpoint string
	// Config is the server's, through the proxy.
	Config config.ObjectStore

	server *Server
	http   *http.Server
	client *http.Transport
	wg     sync.WaitGroup
	quit   chan struct{}
	// hanging counts what waits for Release.
	hanging atomic.Int64

	mu       sync.Mutex
	handle   func(*http.Request) Fault
	release  chan struct{}
	requests []*Request
}

// Request is one that the proxy has seen.
type Request struct {
	// Op is the S3 operation, as Op says it.
	Op     string
	Method string
	Host   string
	Key    string
	Query  string
	Header http.Header
	// Fault is what the proxy did to it.
	Fault Fault
	// Sent is how many bytes of body the client sent so far.
	Sent int64
}

// NewProxy starts a proxy in front of a server. It ends with the test.
func NewProxy(t *testing.T, server *Server) *Proxy {
	t.Helper()
	p, err := StartProxy(server)
	require.NoError(t, err)
	t.Cleanup(p.Close)
	return p
}

// StartProxy starts a proxy in front of a server; Close ends it.
func StartProxy(server *Server) (*Proxy, error) {
	ln, err := net.Listen("tcp", "127.0.0.1:0") //nolint:noctx // listening on loopback does not wait
	if err != nil {
		return nil, fmt.Errorf("listening for the proxy: %w", err)
	}
	p := &Proxy{
		Endpoint: "http://" + ln.Addr().String(), Config: server.Config, server: server,
		quit: make(chan struct{}), release: make(chan struct{}),
		client: &http.Transport{DisableCompression: true, MaxIdleConnsPerHost: 64},
	}
	if server.Config.CAFile != "" {
		pool, err := config.CertPool(server.Config.CAFile)
		if err != nil {
			return nil, errors.Join(err, ln.Close())
		}
		p.client.TLSClientConfig = &tls.Config{MinVersion: tls.VersionTLS12, RootCAs: pool}
	}
	p.Config.Endpoint, p.Config.CAFile = p.Endpoint, ""
	p.http = &http.Server{Handler: p, ReadHeaderTimeout: time.Minute}
	p.wg.Go(func() { _ = p.http.Serve(ln) })
	return p, nil
}

// Close ends the proxy and everything that hangs in it.
func (p *Proxy) Close() {
	p.mu.Lock()
	select {
	case <-p.quit:
	default:
		close(p.quit)
	}
	p.mu.Unlock()
	_ = p.http.Close() // the listener may be closed already
	p.wg.Wait()
	p.client.CloseIdleConnections()
}

// Handle sets what decides each request's fault from now on; nil passes everything. It is called from many goroutines at
// once, before anything of the request is forwarded, and may block.
func (p *Proxy) Handle(fn func(*http.Request) Fault) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.handle = fn
}

// Hanging is how many requests, or answers to them, hang now.
func (p *Proxy) Hanging() int { return int(p.hanging.Load()) }

// Release lets go of every request that hangs at this moment: it is forwarded or answered after all.
func (p *Proxy) Release() {
	p.mu.Lock()
	defer p.mu.Unlock()
	close(p.release)
	p.release = make(chan struct{})
}

// Requests returns copies of all that were seen, in the order in which they came.
func (p *Proxy) Requests() []Request {
	p.mu.Lock()
	defer p.mu.Unlock()
	all := make([]Request, len(p.requests))
	for i, r := range p.requests {
		all[i] = *r
	}
	return all
}

// Count says how many requests of an operation were seen; of all of them for "".
func (p *Proxy) Count(op string) int {
	n := 0
	for _, r := range p.Requests() {
		if op == "" || r.Op == op {
			n++
		}
	}
	return n
}

// Sent is how many bytes of PUT and POST bodies came from the client.
func (p *Proxy) Sent() int64 {
	var n int64
	for _, r := range p.Requests() {
		if r.Method == http.MethodPut || r.Method == http.MethodPost {
			n += r.Sent
		}
	}
	return n
}

// Forget empties what Requests, Count and Sent know.
func (p *Proxy) Forget() {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.requests = nil
}

// ServeHTTP implements http.Handler.
func (p *Proxy) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	p.mu.Lock()
	handle := p.handle
	seen := &Request{
		Op: Op(r), Method: r.Method, Host: r.Host, Key: Key(r), Query: r.URL.RawQuery, Header: r.Header.Clone(),
	}
	p.requests = append(p.requests, seen)
	p.mu.Unlock()
	var f Fault
	if handle != nil {
		f = handle(r)
	}
	p.mu.Lock()
	seen.Fault = f
	p.mu.Unlock()
	body := &counted{ReadCloser: r.Body, add: func(n int) {
		p.mu.Lock()
		defer p.mu.Unlock()
		seen.Sent += int64(n)
	}}
	r.Body = body
	switch f.kind {
	case answer:
		_, _ = io.Copy(io.Discard, body) // a client that stops sending gets its answer all the same
		writeError(w, f)
		return
	case resetBefore:
		reset(w)
		return
	case hang:
		if !p.hang(r) {
			reset(w)
			return
		}
	}
	p.forward(w, r, f)
}

// hang waits until Release; false means that the client or the test is gone.
func (p *Proxy) hang(r *http.Request) bool {
	p.mu.Lock()
	release := p.release
	p.mu.Unlock()
	p.hanging.Add(1)
	defer p.hanging.Add(-1)
	select {
	case <-release:
		return true
	case <-r.Context().Done():
	case <-p.quit:
	}
	return false
}

func (p *Proxy) forward(w http.ResponseWriter, r *http.Request, f Fault) {
	out := r.Clone(r.Context())
	out.URL.Scheme, out.URL.Host = "http", p.server.addr
	if p.server.Config.CAFile != "" {
		out.URL.Scheme = "https"
	}
	out.Body = http.NoBody
	if r.ContentLength != 0 {
		out.Body = r.Body
	}
	if f.kind == flipRequest {
		out.Body = &flipped{ReadCloser: r.Body, at: r.ContentLength / 2}
	}
	if f.kind == strip {
		for _, h := range f.headers {
			out.Header.Del(h)
		}
		if err := p.sign(out); err != nil {
			http.Error(w, err.Error(), http.StatusBadGateway)
			return
		}
	}
	resp, err := p.client.RoundTrip(out)
	if err != nil { // the client or the server is gone
		reset(w)
		return
	}
	defer resp.Body.Close()
	// A server that answers before it has read everything leaves the rest to us, and the client must be rid of it. What
	// goes wrong there is the client's own affair: it gets the answer all the same.
	_, _ = io.Copy(io.Discard, r.Body)
	p.reply(w, r, resp, f)
}

func (p *Proxy) reply(w http.ResponseWriter, r *http.Request, resp *http.Response, f Fault) {
	switch f.kind {
	case resetAfter:
		_, _ = io.Copy(io.Discard, resp.Body) // nobody gets it
		reset(w)
		return
	case hangAfter:
		_, _ = io.Copy(io.Discard, r.Body)
		if !p.hang(r) {
			reset(w)
			return
		}
	case flipAnswer:
		resp.Body = &flipped{ReadCloser: resp.Body, at: resp.ContentLength / 2}
	}
	for k, v := range resp.Header {
		w.Header()[k] = slices.Clone(v)
	}
	if resp.ContentLength >= 0 {
		w.Header().Set("Content-Length", strconv.FormatInt(resp.ContentLength, 10))
	}
	w.WriteHeader(resp.StatusCode)
	if f.kind == truncate || f.kind == stall {
		_, _ = io.CopyN(w, resp.Body, resp.ContentLength/2)
		_ = http.NewResponseController(w).Flush()
		if f.kind == truncate || !p.hang(r) {
			reset(w)
			return
		}
	}
	_, _ = io.Copy(w, resp.Body)
}

// sign signs a changed request anew with the server's own keys.
func (p *Proxy) sign(r *http.Request) error {
	id, err := p.server.Config.AccessKeyIDFile.Read()
	if err != nil {
		return fmt.Errorf("signing a request anew: %w", err)
	}
	secret, err := p.server.Config.SecretAccessKeyFile.Read()
	if err != nil {
		return fmt.Errorf("signing a request anew: %w", err)
	}
	for _, h := range []string{"Authorization", "X-Amz-Date", "X-Amz-Security-Token"} {
		r.Header.Del(h)
	}
	r.URL.Host, r.URL.Scheme = r.Host, "http"
	err = v4.NewSigner(func(o *v4.SignerOptions) { o.DisableURIPathEscaping = true }).SignHTTP(r.Context(),
		aws.Credentials{AccessKeyID: id, SecretAccessKey: secret}, r, r.Header.Get("X-Amz-Content-Sha256"), "s3",
		p.server.Config.Region, time.Now())
	if err != nil {
		return fmt.Errorf("signing a request anew: %w", err)
	}
	r.URL.Host = p.server.addr
	return nil
}

// reset ends the connection without an orderly close, so that the client sees "connection reset by peer".
func reset(w http.ResponseWriter) {
	conn, _, err := http.NewResponseController(w).Hijack()
	if err != nil {
		panic(http.ErrAbortHandler)
	}
	if tcp, ok := conn.(*net.TCPConn); ok {
		_ = tcp.SetLinger(0)
	}
	_ = conn.Close()
}

// counted counts a request's body. The transport may still read it after the server has answered.
type counted struct {
	io.ReadCloser
	add func(int)
	mu  sync.Mutex
}

func (c *counted) Read(p []byte) (int, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	n, err := c.ReadCloser.Read(p)
	c.add(n)
	return n, err //nolint:wrapcheck // a reader passes io.EOF as it is
}

// flipped changes one bit of the byte at an offset.
type flipped struct {
	io.ReadCloser
	at, read int64
}

func (f *flipped) Read(p []byte) (int, error) {
	n, err := f.ReadCloser.Read(p)
	if i := f.at - f.read; i >= 0 && i < int64(n) {
		p[i] ^= 1
	}
	f.read += int64(n)
	return n, err //nolint:wrapcheck // a reader passes io.EOF as it is
}
