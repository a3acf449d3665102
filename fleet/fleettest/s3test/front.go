package s3test

import (
	"fmt"
	"io"
	"net"
	"sync"
)

// front passes connections on to the gateway behind it, and cuts them before the gateway is stopped: left alone, that waits
// ten seconds for a connection which a client opened and never used.
type front struct {
	ln     net.Listener
	behind string
	wg     sync.WaitGroup

	mu    sync.Mutex
	conns map[net.Conn]bool // nil once it is closed
}

// newFront listens on addr, for a gateway that will listen on behind.
func newFront(addr, behind string) (*front, error) {
	ln, err := net.Listen("tcp", addr) //nolint:noctx // listening on loopback does not wait
	if err != nil {
		return nil, fmt.Errorf("listening for the S3 server: %w", err)
	}
	f := &front{ln: ln, behind: behind, conns: map[net.Conn]bool{}}
	f.wg.Go(func() {
		for {
			c, err := ln.Accept()
			if err != nil {
				return // closed
			}
			f.wg.Go(func() { f.pass(c) })
		}
	})
	return f, nil
}

// keep remembers a connection, or closes it when the front is closed.
func (f *front) keep(c net.Conn) bool {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.conns == nil {
		_ = c.Close() // nobody waits for it
		return false
	}
	f.conns[c] = true
	return true
}

func (f *front) drop(c net.Conn) {
	f.mu.Lock()
	defer f.mu.Unlock()
	delete(f.conns, c)
	_ = c.Close() // it may be closed already
}

func (f *front) pass(client net.Conn) {
	if !f.keep(client) {
		return
	}
	defer f.drop(client)
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

// close cuts every connection and waits until all are gone.
func (f *front) close() {
	_ = f.ln.Close() // it may be closed already
	f.mu.Lock()
	for c := range f.conns {
		_ = c.Close() // see drop
	}
	f.conns = nil
	f.mu.Unlock()
	f.wg.Wait()
}
