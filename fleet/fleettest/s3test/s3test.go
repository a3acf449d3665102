// Package s3test runs a real S3 server (VersityGW with its posix backend) inside the process, on a loopback port. The
// library allows one per process.
package s3test

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"github.com/versity/versitygw/backend/meta"
	"github.com/versity/versitygw/backend/posix"
	"github.com/versity/versitygw/embedgw"

	"github.com/lifeboat-fleet/lifeboat/fleet/config"
)

// Bucket exists in every server from the start.
const Bucket = "lifeboat"

// Server is a running S3 server. Its keys are made at start.
type Server struct {
	// Endpoint is its URL.
	Endpoint string
	// Dir holds the objects as files: <Dir>/<bucket>/<key>, for a test that corrupts one.
	Dir string
	// Config reaches it: endpoint, bucket and the files that hold the keys.
	Config config.ObjectStore
	cancel context.CancelFunc
	done   chan error
}

// Start runs a server that keeps everything in dir. An empty addr picks a free loopback port.
func Start(dir, addr string) (*Server, error) {
	if addr == "" {
		var err error
		if addr, err = freeAddr(); err != nil {
			return nil, err
		}
	}
	s := &Server{Endpoint: "http://" + addr, Dir: filepath.Join(dir, "objects"), done: make(chan error, 1)}
	sidecar := filepath.Join(dir, "metadata")
	for _, d := range []string{filepath.Join(s.Dir, Bucket), sidecar} {
		if err := os.MkdirAll(d, 0o750); err != nil {
			return nil, fmt.Errorf("making the S3 server's folder: %w", err)
		}
	}
	keys := [2]string{}
	for i, name := range []string{"access-key-id", "secret-access-key"} {
		path := filepath.Join(dir, name)
		b, err := os.ReadFile(path)
		if errors.Is(err, os.ErrNotExist) {
			b = []byte(rand.Text())
			err = os.WriteFile(path, b, 0o600)
		}
		if err != nil {
			return nil, fmt.Errorf("keeping the S3 server's keys: %w", err)
		}
		keys[i] = string(b)
	}
	s.Config = config.ObjectStore{
		Bucket: Bucket, Endpoint: s.Endpoint, Region: "us-east-1", PathStyle: true,
		AccessKeyIDFile:     config.SecretFile(filepath.Join(dir, "access-key-id")),
		SecretAccessKeyFile: config.SecretFile(filepath.Join(dir, "secret-access-key")),
	}
	// A sidecar, because extended attributes are missing on some file systems.
	store, err := meta.NewSideCar(sidecar)
	if err != nil {
		return nil, fmt.Errorf("opening the S3 server's metadata: %w", err)
	}
	be, err := posix.New(s.Dir, store, posix.PosixOpts{SideCarDir: sidecar, Concurrency: 256})
	if err != nil {
		return nil, fmt.Errorf("opening the S3 server's folder: %w", err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	s.cancel = cancel
	go func() {
		s.done <- embedgw.RunVersityGW(ctx, be, &embedgw.Config{
			RootUserAccess: keys[0], RootUserSecret: keys[1], Region: "us-east-1", Ports: []string{addr},
			MaxConnections: 4096, MaxRequests: 1024, MultipartMaxParts: 10000, Quiet: true, KeepAlive: true,
			HealthPath: "/healthz",
		})
	}()
	if err := s.waitUp(); err != nil {
		cancel()
		return nil, err
	}
	return s, nil
}

func (s *Server) waitUp() error {
	deadline := time.After(20 * time.Second)
	tick := time.NewTicker(20 * time.Millisecond)
	defer tick.Stop()
	for {
		select {
		case err := <-s.done:
			return fmt.Errorf("the S3 server ended at start: %w", err)
		case <-deadline:
			return errors.New("the S3 server did not come up within 20 s")
		case <-tick.C:
		}
		resp, err := http.Get(s.Endpoint + "/healthz") //nolint:noctx // bounded by the deadline above, on loopback
		if err != nil {
			continue
		}
		if err := resp.Body.Close(); err != nil {
			return fmt.Errorf("closing the health check: %w", err)
		}
		if resp.StatusCode == http.StatusOK {
			return nil
		}
	}
}

// Stop ends the server and waits until it is gone. Its data stays.
func (s *Server) Stop() error {
	s.cancel()
	if err := <-s.done; err != nil && !errors.Is(err, context.Canceled) {
		return fmt.Errorf("stopping the S3 server: %w", err)
	}
	return nil
}

// Path is where an object lies as a file.
func (s *Server) Path(key string) string {
	return filepath.Join(s.Dir, Bucket, filepath.FromSlash(key))
}

// New runs a server for one test. Tests that use it cannot run in parallel with each other.
func New(t *testing.T) *Server {
	t.Helper()
	s, err := Start(t.TempDir(), "")
	require.NoError(t, err)
	t.Cleanup(func() { require.NoError(t, s.Stop()) })
	return s
}

func freeAddr() (string, error) {
	ln, err := net.Listen("tcp", "127.0.0.1:0") //nolint:noctx // only to learn a free port
	if err != nil {
		return "", fmt.Errorf("finding a free port: %w", err)
	}
	defer ln.Close()
	return ln.Addr().String(), nil
}
