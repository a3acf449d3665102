package sourcetest

import (
	"io"
	"net"
	"net/url"
	"sync"
	"testing"

	"github.com/stretchr/testify/require"
)

// Fault is what a Proxy does once its limit is reached.
type Fault int

const (
	// Cut ends all connections, and every new one.
	Cut Fault = iota
	// Stall holds them open and passes nothing more.
	Stall
)

// Proxy passes bytes between a client and a server until the server has sent a number of them.
type Proxy struct {
	// Address is the proxy's, in the form of the server's.
	Address string

	ln     net.Listener
	target string
	fault  Fault
	full   chan struct{}
	quit   chan struct{}
	wg     sync.WaitGroup

	mu     sync.Mutex
	left   int64
	passed int64
	conns  []net.Conn
}

// NewProxy starts a proxy in front of address, which is a URL. It ends with the test.
func NewProxy(t *testing.T, address string, limit int64, fault Fault) *Proxy {
	t.Helper()
	u, err := url.Parse(address)
	require.NoError(t, err)
	ln, err := (&net.ListenConfig{}).Listen(t.Context(), "tcp", "127.0.0.1:0")
	require.NoError(t, err)
	p := &Proxy{
		Address: u.Scheme + "://" + ln.Addr().String(), ln: ln, target: u.Host, fault: fault, left: limit,
		full: make(chan struct{}), quit: make(chan struct{}),
	}
	p.wg.Go(p.accept)
	t.Cleanup(p.Close)
	return p
}

// Full is closed when the limit was reached.
func (p *Proxy) Full() <-chan struct{} { return p.full }

// Passed is how many bytes the server sent so far.
func (p *Proxy) Passed() int64 {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.passed
}

// Close ends the proxy and all of its connections.
func (p *Proxy) Close() {
	p.mu.Lock()
	select {
	case <-p.quit:
	default:
		close(p.quit)
	}
	p.mu.Unlock()
	_ = p.ln.Close()
	p.cut()
	p.wg.Wait()
}

func (p *Proxy) cut() {
	p.mu.Lock()
	defer p.mu.Unlock()
	for _, c := range p.conns {
		_ = c.Close()
	}
}

func (p *Proxy) accept() {
	for {
		down, err := p.ln.Accept()
		if err != nil {
			return
		}
		up, err := (&net.Dialer{}).Dial("tcp", p.target)
		if err != nil {
			_ = down.Close()
			continue
		}
		p.mu.Lock()
		p.conns = append(p.conns, down, up)
		p.mu.Unlock()
		p.wg.Go(func() {
			_, _ = io.Copy(up, down)
			_ = up.Close()
		})
		p.wg.Go(func() {
			p.pass(down, up)
			_ = down.Close()
		})
		select {
		case <-p.quit:
			p.cut()
		default:
		}
	}
}

// pass copies what the server sends.
func (p *Proxy) pass(down io.Writer, up io.Reader) {
	buf := make([]byte, 16<<10)
	for {
		n, err := up.Read(buf)
		p.mu.Lock()
		n = int(min(int64(n), p.left))
		p.left -= int64(n)
		p.passed += int64(n)
		full := p.left == 0
		if full {
			select {
			case <-p.full:
			default:
				close(p.full)
			}
		}
		p.mu.Unlock()
		if _, werr := down.Write(buf[:n]); werr != nil || err != nil {
			return
		}
		if full {
			if p.fault == Stall {
				<-p.quit
			} else {
				p.cut()
			}
			return
		}
	}
}
