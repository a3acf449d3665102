package throwaway

import (
	"errors"
	"fmt"
	"net/http"
	"sync"

	"github.com/lifeboat-fleet/lifeboat/fleet/config"
)

// ErrNoBinary means that the server to restore into is not installed.
var ErrNoBinary = errors.New("no such program")

// What a Server's Isolation may be.
const (
	// IsolatedByNamespace: the server has a network namespace with nothing but a loopback of its own. It can reach nothing.
	IsolatedByNamespace = "network namespace"
	// IsolatedByConfiguration: it is told to reach nothing.
	IsolatedByConfiguration = "configuration"
)

// Options of a throwaway server.
type Options struct {
	// Binary is the path of the program; "consul" or "nomad" on PATH when empty.
	Binary string
	// Confine is a command of this program that ends with Confined(its further arguments), as [/path/lifeboat-backup confine].
	// Empty: no namespace.
	Confine []string
	// RequireIsolation makes it an error when the server cannot have a namespace.
	RequireIsolation bool
	// Region is the Nomad server's; "global" when empty. Jobs carry their region, and a server takes those of its own.
	Region string

	// ports finds free ports; freePorts when nil.
	ports func(n int) ([]int, error)
}

// Server is a real server that runs for one drill, with its data in the drill's scratch folder.
type Server struct {
	// Address, TLS and TokenFile are for the configuration of a client. Address is unix:///path or https://127.0.0.1:port; TLS is
	// empty with the former.
	Address string
	TLS     config.TLS
	// Token may do everything; TokenFile holds it. Both are empty where no token is asked for.
	Token     string
	TokenFile string
	// Version is what the server says of itself: "1.22.5".
	Version string
	// Isolation is IsolatedByNamespace or IsolatedByConfiguration.
	Isolation string

	process *process
	inner   procID   // the server, where process is what confines it
	sockets *Scratch // holds the socket where its path would be too long otherwise
	client  *http.Client
	base    string // what stands before the path of a request
	ready   int64  // where its log was when it was ready: what went wrong until then did not matter

	stop    sync.Once
	stopErr error
}

// PID is the id of the process to measure: the server, or what confines it and has it as its child.
func (s *Server) PID() int { return s.process.cmd.Process.Pid }

// Done is closed when the server has ended, by Stop or by itself.
func (s *Server) Done() <-chan struct{} { return s.process.done }

// Err is why the server ended by itself, with the end of its log; nil while it runs, and when it was stopped.
func (s *Server) Err() error {
	select {
	case <-s.process.done:
	default:
		return nil
	}
	if s.process.stopped.Load() {
		return nil
	}
	return s.process.ended()
}

// Said is what the end of the server's log tells of errors since its start, in brackets, for the error of what was done with it; empty when that is
// nothing. What may be a secret is masked.
func (s *Server) Said() string { return quoteTail(s.process.log, s.ready, false) }

// Stop ends the server and waits until it is gone. Its files stay. It may be called again, and after the server died.
func (s *Server) Stop() error {
	s.stop.Do(func() {
		var errs []error
		if s.client != nil {
			s.client.CloseIdleConnections()
		}
		if s.process != nil {
			errs = append(errs, s.process.stop())
		}
		if s.inner.pid != 0 {
			errs = append(errs, s.inner.kill())
		}
		if s.sockets != nil {
			errs = append(errs, s.sockets.Remove())
		}
		if err := errors.Join(errs...); err != nil {
			s.stopErr = fmt.Errorf("stopping a throwaway server: %w", err)
		}
	})
	return s.stopErr
}
