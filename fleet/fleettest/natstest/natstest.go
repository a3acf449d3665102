// Package natstest runs a real NATS server with JetStream inside the process, on a loopback port.
package natstest

import (
	"errors"
	"fmt"
	"testing"
	"time"

	"github.com/nats-io/nats-server/v2/server"
	"github.com/stretchr/testify/require"
)

// Server is a NATS server that can be stopped and started again on the same port and data.
type Server struct {
	dir  string
	port int
	srv  *server.Server
}

// Start runs a server that keeps its data in dir. port -1 picks a free one.
func Start(dir string, port int) (*Server, error) {
	s := &Server{dir: dir, port: port}
	return s, s.start()
}

func (s *Server) start() error {
	srv, err := server.NewServer(&server.Options{
		Host: "127.0.0.1", Port: s.port, JetStream: true, StoreDir: s.dir, NoSigs: true, NoLog: true,
		SyncInterval: 10 * time.Second, DontListen: false,
	})
	if err != nil {
		return fmt.Errorf("configuring NATS: %w", err)
	}
	srv.Start()
	if !srv.ReadyForConnections(20 * time.Second) {
		srv.Shutdown()
		return errors.New("the NATS server did not come up within 20 s")
	}
	s.srv = srv
	if addr := srv.Addr(); addr != nil && s.port <= 0 {
		if _, err := fmt.Sscanf(addr.String(), "127.0.0.1:%d", &s.port); err != nil {
			return fmt.Errorf("reading the port of %s: %w", addr, err)
		}
	}
	return nil
}

// URL is the address for clients.
func (s *Server) URL() string { return fmt.Sprintf("nats://127.0.0.1:%d", s.port) }

// Port is where it listens, also after a restart.
func (s *Server) Port() int { return s.port }

// Stop ends the server and waits until it is gone. Its data stays.
func (s *Server) Stop() {
	s.srv.Shutdown()
	s.srv.WaitForShutdown()
}

// Restart stops the server and starts it again on the same port and data.
func (s *Server) Restart() error {
	s.Stop()
	return s.start()
}

// New runs a server for one test.
func New(t *testing.T) *Server {
	t.Helper()
	s, err := Start(t.TempDir(), -1)
	require.NoError(t, err)
	t.Cleanup(s.Stop)
	return s
}
