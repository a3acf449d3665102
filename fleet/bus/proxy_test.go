package bus_test

import (
	"net"
	"strings"
	"sync"
	"sync/atomic"
	"testing"

	"github.com/stretchr/testify/require"
)

// proxy stands before a server, and cuts connections.
type proxy struct {
	listener net.Listener
	target   string
	mu       sync.Mutex
	conns    map[net.Conn]struct{}
	// left is how many bytes the server may still send before the connection is cut; negative: as many as it wants.
	left atomic.Int64
	cut  atomic.Int64
}

func newProxy(t *testing.T, url string) *proxy {
	t.Helper()
	var lc net.ListenConfig
	l, err := lc.Listen(t.Context(), "tcp", "127.0.0.1:0")
	require.NoError(t, err)
	p := &proxy{listener: l, target: strings.TrimPrefix(url, "nats://"), conns: map[net.Conn]struct{}{}}
	p.left.Store(-1)
	var wg sync.WaitGroup
	wg.Go(func() {
		for {
			client, err := l.Accept()
			if err != nil {
				return
			}
			var d net.Dialer
			server, err := d.DialContext(t.Context(), "tcp", p.target)
			if err != nil {
				client.Close()
				continue
			}
			p.mu.Lock()
			p.conns[client], p.conns[server] = struct{}{}, struct{}{}
			p.mu.Unlock()
			wg.Go(func() { p.copy(server, client, false) })
			wg.Go(func() { p.copy(client, server, true) })
		}
	})
	t.Cleanup(func() {
		l.Close()
		p.cutAll()
		wg.Wait()
	})
	return p
}

func (p *proxy) url() string { return "nats://" + p.listener.Addr().String() }

func (p *proxy) copy(to, from net.Conn, counted bool) {
	defer to.Close()
	defer from.Close()
	buffer := make([]byte, 16<<10)
	for {
		n, err := from.Read(buffer)
		if counted && p.left.Load() >= 0 && p.left.Add(-int64(n)) < 0 {
			p.left.Store(-1)
			p.cut.Add(1)
			return
		}
		if _, werr := to.Write(buffer[:n]); werr != nil || err != nil {
			return
		}
	}
}

// cutAfter cuts the connection when the server has sent so many more bytes.
func (p *proxy) cutAfter(bytes int64) { p.left.Store(bytes) }

func (p *proxy) cuts() int64 { return p.cut.Load() }

// cutAll cuts every connection now.
func (p *proxy) cutAll() {
	p.mu.Lock()
	defer p.mu.Unlock()
	for c := range p.conns {
		c.Close()
	}
	clear(p.conns)
}
