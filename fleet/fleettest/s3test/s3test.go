// Package s3test runs a real S3 server (VersityGW with its posix backend) inside the process, on a loopback port, and a
// proxy that makes the faults of a store. The library allows one server per process.
package s3test

import (
	"context"
	"crypto/rand"
	"crypto/tls"
	"errors"
	"fmt"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"github.com/versity/versitygw/auth"
	"github.com/versity/versitygw/embedgw"

	"github.com/lifeboat-fleet/lifeboat/fleet/config"
	"github.com/lifeboat-fleet/lifeboat/fleet/fleettest/bintest"
)

// Bucket exists in every server from the start.
const Bucket = "lifeboat"

// Server is a running S3 server. Its keys are made at start.
type Server struct {
	// Endpoint is its URL.
	Endpoint string
	// Dir holds the objects as files: <Dir>/<bucket>/<key>, for a test that corrupts one.
	Dir string
	// VersionsDir holds the earlier versions of objects, with WithVersioning.
	VersionsDir string
	// Config reaches it: endpoint, bucket and the files that hold the keys.
	Config config.ObjectStore

	addr   string
	front  *front
	dir    string
	space  *space
	iam    auth.IAMService
	cancel context.CancelFunc
	done   chan error
}

type options struct {
	buckets       []string
	versioning    bool
	lock          bool
	tls           bool
	virtualDomain string
}

// Option changes how a server starts.
type Option func(*options)

// WithBuckets makes further buckets, which are like Bucket.
func WithBuckets(names ...string) Option {
	return func(o *options) { o.buckets = append(o.buckets, names...) }
}

// WithVersioning keeps earlier versions in every bucket.
func WithVersioning() Option { return func(o *options) { o.versioning = true } }

// WithObjectLock makes every bucket one with object lock, which includes versioning. No object is locked by default.
func WithObjectLock() Option { return func(o *options) { o.versioning, o.lock = true, true } }

// WithTLS serves https, with a certificate of a CA that is made at start; Config.CAFile names it.
func WithTLS() Option { return func(o *options) { o.tls = true } }

// WithVirtualDomain also answers at <bucket>.<domain>.
func WithVirtualDomain(domain string) Option { return func(o *options) { o.virtualDomain = domain } }

// Start runs a server that keeps everything in dir. An empty addr picks a free loopback port.
func Start(dir, addr string, opts ...Option) (*Server, error) {
	o := options{buckets: []string{Bucket}}
	for _, opt := range opts {
		opt(&o)
	}
	if addr == "" {
		var err error
		if addr, err = freeAddr(); err != nil {
			return nil, err
		}
	}
	s := &Server{
		Endpoint: "http://" + addr, Dir: filepath.Join(dir, "objects"), addr: addr, dir: dir, done: make(chan error, 1),
	}
	keys, err := makeKeys(dir)
	if err != nil {
		return nil, err
	}
	s.Config = config.ObjectStore{
		Bucket: Bucket, Region: "us-east-1", PathStyle: true,
		AccessKeyIDFile:     config.SecretFile(filepath.Join(dir, "access-key-id")),
		SecretAccessKeyFile: config.SecretFile(filepath.Join(dir, "secret-access-key")),
	}
	behind, err := freeAddr()
	if err != nil {
		return nil, err
	}
	cfg := &embedgw.Config{
		RootUserAccess: keys[0], RootUserSecret: keys[1], Region: "us-east-1", Ports: []string{behind},
		MaxConnections: 4096, MaxRequests: 1024, MultipartMaxParts: 10000, Quiet: true, KeepAlive: true,
		HealthPath: "/healthz", VirtualDomain: o.virtualDomain,
	}
	if o.tls {
		if cfg.CertFile, cfg.KeyFile, s.Config.CAFile, err = makeCertificate(dir); err != nil {
			return nil, err
		}
		s.Endpoint = "https://" + addr
	}
	s.Config.Endpoint = s.Endpoint
	if cfg.IAMService, err = s.accounts(keys); err != nil {
		return nil, err
	}
	return s, s.run(o, cfg)
}

func makeKeys(dir string) (keys [2]string, err error) {
	if err := os.MkdirAll(dir, 0o750); err != nil {
		return keys, fmt.Errorf("making the S3 server's folder: %w", err)
	}
	for i, name := range []string{"access-key-id", "secret-access-key"} {
		path := filepath.Join(dir, name)
		b, err := os.ReadFile(path)
		if errors.Is(err, os.ErrNotExist) {
			b = []byte(rand.Text())
			err = os.WriteFile(path, b, 0o600)
		}
		if err != nil {
			return keys, fmt.Errorf("keeping the S3 server's keys: %w", err)
		}
		keys[i] = string(b)
	}
	return keys, nil
}

func (s *Server) accounts(keys [2]string) (auth.IAMService, error) {
	dir := filepath.Join(s.dir, "accounts")
	if err := os.MkdirAll(dir, 0o750); err != nil {
		return nil, fmt.Errorf("making the S3 server's folder: %w", err)
	}
	iam, err := auth.NewInternal(auth.Account{Access: keys[0], Secret: keys[1], Role: auth.RoleAdmin}, dir)
	if err != nil {
		return nil, fmt.Errorf("opening the S3 server's accounts: %w", err)
	}
	s.iam = iam
	return iam, nil
}

func (s *Server) run(o options, cfg *embedgw.Config) error {
	ctx, cancel := context.WithCancel(context.Background())
	s.cancel = cancel
	be, err := s.backend(ctx, o)
	if err != nil {
		cancel()
		return err
	}
	if s.front, err = newFront(s.addr, cfg.Ports[0]); err != nil {
		cancel()
		return err
	}
	go func() { s.done <- embedgw.RunVersityGW(ctx, be, cfg) }()
	if err := s.waitUp(); err != nil {
		s.front.close()
		cancel()
		return err
	}
	return nil
}

func (s *Server) waitUp() error {
	client := &http.Client{Timeout: 5 * time.Second, Transport: &http.Transport{DisableKeepAlives: true}}
	if s.Config.CAFile != "" {
		pool, err := config.CertPool(s.Config.CAFile)
		if err != nil {
			return fmt.Errorf("waiting for the S3 server: %w", err)
		}
		client.Transport = &http.Transport{
			DisableKeepAlives: true, TLSClientConfig: &tls.Config{MinVersion: tls.VersionTLS12, RootCAs: pool},
		}
	}
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
		resp, err := client.Get(s.Endpoint + "/healthz") //nolint:noctx // bounded by the deadline above, on loopback
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
	s.front.close()
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

// AddUser makes an account beside the first one, with all rights.
func (s *Server) AddUser(id, secret string) error {
	return s.addAccount(auth.Account{Access: id, Secret: secret, Role: auth.RoleAdmin})
}

// AddPlainUser makes an account that may do only what a bucket's policy lets it.
func (s *Server) AddPlainUser(id, secret string) error {
	return s.addAccount(auth.Account{Access: id, Secret: secret, Role: auth.RoleUser})
}

func (s *Server) addAccount(a auth.Account) error {
	if err := s.iam.CreateAccount(a); err != nil {
		return fmt.Errorf("adding a user to the S3 server: %w", err)
	}
	return nil
}

// RemoveUser ends an account: its next request is refused.
func (s *Server) RemoveUser(id string) error {
	if err := s.iam.DeleteUserAccount(id); err != nil {
		return fmt.Errorf("removing a user of the S3 server: %w", err)
	}
	return nil
}

// Used is how many bytes the objects, their earlier versions and the parts of unfinished uploads take, without metadata.
func (s *Server) Used() (int64, error) {
	var n int64
	for _, dir := range []string{s.Dir, s.VersionsDir} {
		if dir == "" {
			continue
		}
		err := filepath.WalkDir(dir, func(path string, d os.DirEntry, err error) error {
			if errors.Is(err, os.ErrNotExist) { // removed meanwhile
				return nil
			}
			if err != nil || d.IsDir() || strings.HasSuffix(path, ".lock") {
				return err
			}
			info, err := d.Info()
			if err == nil {
				n += info.Size()
			}
			return nil // or removed meanwhile
		})
		if err != nil {
			return 0, fmt.Errorf("measuring the S3 server's folder: %w", err)
		}
	}
	return n, nil
}

// New runs a server for one test. Tests that use it cannot run in parallel with each other.
func New(t *testing.T, opts ...Option) *Server {
	t.Helper()
	s, err := Start(t.TempDir(), "", opts...)
	require.NoError(t, err)
	t.Cleanup(func() { require.NoError(t, s.Stop()) })
	return s
}

func freeAddr() (string, error) {
	ports, err := bintest.FreePorts(1)
	if err != nil {
		return "", err
	}
	return fmt.Sprintf("127.0.0.1:%d", ports[0]), nil
}
