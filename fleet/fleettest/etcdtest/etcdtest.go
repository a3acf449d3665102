// Package etcdtest runs a real etcd member inside the process, on random loopback ports.
package etcdtest

import (
	"context"
	"errors"
	"fmt"
	"net/url"
	"os"
	"path/filepath"
	"sync"
	"testing"

	"github.com/stretchr/testify/require"
	"go.etcd.io/etcd/server/v3/embed"
)

// Server is a single member.
type Server struct {
	*embed.Etcd
	// Endpoint is the address for clients.
	Endpoint string
	stop     func()
}

// Start runs a member whose data is, or will be, in dir/data and waits until it answers. Its log is dir/etcd.log.
func Start(ctx context.Context, dir string) (*Server, error) {
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, fmt.Errorf("making etcd's folder: %w", err)
	}
	local := url.URL{Scheme: "http", Host: "127.0.0.1:0"}
	cfg := embed.NewConfig()
	cfg.Dir = filepath.Join(dir, "data")
	cfg.ListenClientUrls, cfg.AdvertiseClientUrls = []url.URL{local}, []url.URL{local}
	cfg.ListenPeerUrls, cfg.AdvertisePeerUrls = []url.URL{local}, []url.URL{local}
	cfg.InitialCluster = cfg.InitialClusterFromName(cfg.Name)
	cfg.LogLevel, cfg.LogOutputs = "error", []string{filepath.Join(dir, "etcd.log")}
	e, err := embed.StartEtcd(cfg)
	if err != nil {
		return nil, fmt.Errorf("starting etcd: %w", err)
	}
	s := &Server{Etcd: e, stop: sync.OnceFunc(e.Close)}
	select {
	case <-e.Server.ReadyNotify():
	case err = <-e.Err():
	case <-ctx.Done():
		err = ctx.Err()
	}
	if err == nil && len(e.Clients) == 0 {
		err = errors.New("it has no listener for clients")
	}
	if err != nil {
		s.Stop()
		return nil, fmt.Errorf("waiting for etcd: %w", err)
	}
	s.Endpoint = "http://" + e.Clients[0].Addr().String()
	return s, nil
}

// Stop ends the member; also twice.
func (s *Server) Stop() { s.stop() }

// New runs a member for one test.
func New(t *testing.T, dir string) *Server {
	t.Helper()
	s, err := Start(t.Context(), dir)
	require.NoError(t, err)
	t.Cleanup(s.Stop)
	return s
}
