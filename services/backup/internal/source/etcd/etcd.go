// Package etcd reads a snapshot of an etcd cluster from one of its members: the file that `etcdctl snapshot save` would
// write, checked while it passes.
package etcd

import (
	"context"
	"errors"
	"fmt"
	"time"

	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"
	clientv3 "go.etcd.io/etcd/client/v3"
	"go.uber.org/zap"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/lifeboat-fleet/lifeboat/fleet/config"
	"github.com/lifeboat-fleet/lifeboat/services/backup/internal/source"
)

// statusTimeout bounds each question to a member before the snapshot is opened. A member that needs longer to say how
// it is, or to catch up with its leader, is not the one to read.
const statusTimeout = 5 * time.Second

// Source is an etcd cluster.
type Source struct {
	cfg  config.Etcd
	opts Options
}

// Options are what a test may want otherwise.
type Options struct {
	// Idle is how long the member may send nothing; source.DefaultIdle when zero.
	Idle time.Duration
}

// New makes a source. Nothing is contacted and no file is read until Open or Ping.
func New(cfg config.Etcd, opts Options) *Source { return &Source{cfg: cfg, opts: opts} }

// Format is the extension of what Open gives.
func (s *Source) Format() string { return "db" }

// Ping says whether a member answers that could be read.
func (s *Source) Ping(ctx context.Context) error {
	members, _, err := s.members(ctx)
	closeAll(members)
	return err
}

// Open starts a snapshot at the fittest member. When that fails it tries the next one. A stream that breaks on its way is
// not continued at another member: no two members have the same bytes. It takes a new Open, which may choose another.
func (s *Source) Open(ctx context.Context) (source.Stream, error) {
	members, v, err := s.members(ctx)
	if err != nil {
		return nil, err
	}
	var failed []error
	for i, m := range members {
		st, err := s.open(ctx, m, v)
		if err == nil {
			closeAll(members[i+1:])
			return st, nil
		}
		failed = append(failed, err)
		if ctx.Err() != nil {
			closeAll(members[i+1:])
			return nil, err
		}
		v.left(err)
	}
	if len(failed) == 1 {
		return nil, failed[0]
	}
	return nil, fmt.Errorf("no member could be read: %w", errors.Join(failed...))
}

// open starts a snapshot at one member, and owns its client from here on.
func (s *Source) open(ctx context.Context, m *member, v *survey) (_ source.Stream, err error) {
	defer func() {
		if err != nil {
			m.close()
		}
	}()
	// A snapshot holds what its member had applied, and a member may be behind without knowing. A linearizable read
	// through that member says how far the cluster is, and a snapshot opened after it must be at least that far.
	readCtx, cancel := context.WithTimeout(ctx, statusTimeout)
	resp, err := m.client.Get(readCtx, "\x00", clientv3.WithCountOnly())
	cancel()
	if n := v.behind(m); err != nil && n > maxBehind && ctx.Err() == nil {
		return nil, m.unfit(source.Stale, fmt.Errorf("it is %d raft entries behind and did not catch up: %w", n, err))
	}
	if err != nil {
		return nil, m.failed(ctx, "reading the cluster's revision", err)
	}
	snapCtx, stop, idle := source.WatchIdle(ctx, s.opts.Idle)
	idle.Begin()
	snap, err := receive(snapCtx, m.client.ActiveConnection())
	idle.End()
	if err != nil {
		err = m.failed(snapCtx, "opening a snapshot", err)
		stop()
		return nil, err
	}
	return &stream{
		ctx: snapCtx, stop: stop, idle: idle, member: m, survey: v, body: snap, storageVersion: snap.version(),
		atLeast: resp.Header.GetRevision(), check: newCheck(),
	}, nil
}

// connect makes a client with exactly one endpoint: with several, requests of one snapshot would go to different members.
func (s *Source) connect(ctx context.Context, endpoint string) (*member, error) {
	return s.connectTo(ctx, []string{endpoint}, 0)
}

// connectTo makes a client. The first endpoint is the one that errors name. A request may be largest bytes long; the client's own
// limit of 2 MiB holds when that is zero.
func (s *Source) connectTo(ctx context.Context, endpoints []string, largest int) (*member, error) {
	endpoint := endpoints[0]
	m := &member{endpoint: endpoint, tls: &handshake{}}
	tlsConfig, err := m.tls.settings(s.cfg.TLS, endpoint)
	if err != nil {
		return nil, misconfigured(endpoint, "setting up TLS", err)
	}
	cfg := clientv3.Config{
		Endpoints: endpoints, TLS: tlsConfig,
		DialTimeout: statusTimeout, DialKeepAliveTime: 15 * time.Second, DialKeepAliveTimeout: 15 * time.Second,
		MaxUnaryRetries: 10, BackoffWaitBetween: 100 * time.Millisecond,
		DialOptions: dialOptions(), MaxCallSendMsgSize: largest, Context: ctx, Logger: zap.NewNop(),
	}
	if s.cfg.Username != "" {
		cfg.Username = s.cfg.Username
		if cfg.Password, err = s.cfg.PasswordFile.Read(); err != nil {
			return nil, misconfigured(endpoint, "reading the password", err)
		}
	}
	if m.client, err = clientv3.New(cfg); err != nil {
		return nil, m.failed(ctx, "connecting", err)
	}
	return m, nil
}

func misconfigured(endpoint, doing string, err error) error {
	return &source.Error{
		Reason: source.Misconfigured, Endpoint: source.Endpoint(endpoint), Doing: doing, Err: err,
	}
}

// reasonOf sorts an error of the client.
func reasonOf(err error) source.Reason {
	switch {
	case errors.Is(err, rpctypes.ErrPermissionDenied), errors.Is(err, rpctypes.ErrAuthFailed),
		errors.Is(err, rpctypes.ErrUserEmpty), errors.Is(err, rpctypes.ErrInvalidAuthToken):
		return source.Denied
	}
	switch status.Code(err) {
	case codes.PermissionDenied, codes.Unauthenticated:
		return source.Denied
	case codes.DataLoss:
		return source.Damaged
	}
	if reason, ok := tlsReason(err); ok {
		return reason
	}
	return source.Unreachable
}
