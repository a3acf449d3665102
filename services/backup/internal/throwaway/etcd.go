package throwaway

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"net/url"
	"runtime"
	"strings"
	"sync"
	"time"

	"go.etcd.io/etcd/api/v3/etcdserverpb"
	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"
	clientv3 "go.etcd.io/etcd/client/v3"
	"go.etcd.io/etcd/server/v3/embed"
	"go.etcd.io/etcd/server/v3/etcdserver"
	"go.etcd.io/etcd/server/v3/etcdserver/api/v3client"
	"go.etcd.io/etcd/server/v3/storage/mvcc"
	"go.etcd.io/etcd/server/v3/storage/schema"
	"go.uber.org/zap"
	"go.uber.org/zap/zapcore"
)

// EtcdName and EtcdPeerURL are the member that data must be restored for. The system picks the port.
const (
	EtcdName    = "drill"
	EtcdPeerURL = "http://127.0.0.1:0"
)

const (
	// startTimeout is how long the server may need from its start to its first answer, on top of loading its data.
	startTimeout = 2 * time.Minute
	// stopTimeout is how long it may need to end.
	stopTimeout = time.Minute
	// quotaHeadroom is room above the size of the data, so that no alarm of the copy gets in the way.
	quotaHeadroom = 512 << 20
)

// Etcd is an etcd server in this process that serves restored data, on loopback.
type Etcd struct {
	etcd *embed.Etcd
	dir  string
	log  *serverLog
	// revision is where the data was at when it was loaded. Leases that expire later move the server on.
	revision int64
	leases   int64
}

// Revision is where the data was at when it was loaded.
func (s *Etcd) Revision() int64 { return s.revision }

// Server is for what the API tells only to a user of the restored data, where authentication is on.
func (s *Etcd) Server() *etcdserver.EtcdServer { return s.etcd.Server }

// StartEtcd starts an etcd on a data directory and waits until it has answered.
func StartEtcd(ctx context.Context, dir string, size int64) (*Etcd, error) {
	listen, err := url.Parse(EtcdPeerURL)
	if err != nil {
		return nil, fmt.Errorf("parsing the server's address: %w", err)
	}
	s := &Etcd{log: newServerLog(), dir: dir}
	cfg := embed.NewConfig()
	cfg.Name, cfg.Dir = EtcdName, dir
	cfg.ListenClientUrls, cfg.AdvertiseClientUrls = []url.URL{*listen}, []url.URL{*listen}
	cfg.ListenPeerUrls, cfg.AdvertisePeerUrls = []url.URL{*listen}, []url.URL{*listen}
	cfg.InitialCluster = cfg.InitialClusterFromName(EtcdName)
	cfg.ClusterState = embed.ClusterStateFlagExisting
	cfg.EnableGRPCGateway = false
	// Nothing here needs to survive a power failure.
	cfg.UnsafeNoFsync = true
	cfg.QuotaBackendBytes = 2*size + quotaHeadroom
	// Nobody else is asked for a vote, so there is nothing to wait for.
	cfg.TickMs, cfg.ElectionMs = 10, 50
	cfg.ZapLoggerBuilder = embed.NewZapLoggerBuilder(s.log.zap())
	started := make(chan *embed.Etcd, 1)
	err = s.log.within(ctx, func() error {
		e, serr := embed.StartEtcd(cfg)
		if serr == nil {
			started <- e
		}
		return serr
	})
	if err != nil {
		err = fmt.Errorf("starting etcd: %w", err)
		select {
		case s.etcd = <-started: // it came up after nobody waited for it any more
			return nil, errors.Join(err, s.Stop())
		default:
			return nil, err
		}
	}
	s.etcd = <-started
	s.revision = s.etcd.Server.KV().Rev()
	if err := Guard(s.countLeases); err != nil {
		return nil, errors.Join(fmt.Errorf("counting the leases: %w", err), s.Stop())
	}
	if err := s.answer(ctx); err != nil {
		return nil, errors.Join(fmt.Errorf("waiting for etcd to answer: %w%s", err, s.log.said()), s.Stop())
	}
	return s, nil
}

// answer waits for the first answer.
func (s *Etcd) answer(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, startTimeout)
	defer cancel()
	select {
	case <-s.etcd.Server.ReadyNotify():
	case err := <-s.etcd.Err():
		return err
	case <-s.etcd.Server.StopNotify():
		return errors.New("it stopped by itself")
	case <-s.log.gaveUp:
		return errGaveUp
	case <-ctx.Done():
		return ctx.Err()
	}
	client := v3client.New(s.etcd.Server)
	defer client.Close()
	// A linearizable read passes through raft. Where the source has authentication on, so has its copy, and the answer
	// is a refusal; it comes after raft all the same.
	_, err := client.Get(ctx, "\x00", clientv3.WithCountOnly())
	if err != nil && !errors.Is(rpctypes.Error(err), rpctypes.ErrUserEmpty) {
		return err
	}
	return nil
}

// Keys counts the keys at a revision. It and Hash go past the API, whose answers need a user where authentication is on.
func (s *Etcd) Keys(ctx context.Context, rev int64) (int64, error) {
	all, err := s.etcd.Server.KV().Range(ctx, []byte{0}, []byte{}, mvcc.RangeOptions{Rev: rev, CountOnly: true})
	if err != nil {
		return 0, err
	}
	return int64(all.Count), nil
}

// Hash is HashKV at a revision.
func (s *Etcd) Hash(rev int64) (mvcc.KeyValueHash, error) {
	h, _, err := s.etcd.Server.KV().HashStorage().HashByRev(rev)
	return h, err
}

// countLeases goes past the API, which lists them only to a user where authentication is on.
func (s *Etcd) countLeases() error {
	tx := s.etcd.Server.Backend().ReadTx()
	tx.RLock()
	defer tx.RUnlock()
	s.leases = int64(len(schema.MustUnsafeGetAllLeases(tx)))
	return nil
}

// Leases is how many leases there were when the data was loaded. They come back with all of their time, and expire then.
func (s *Etcd) Leases() (int64, error) { return s.leases, nil }

// Auth says whether requests need a user, and how many users and roles there are.
func (s *Etcd) Auth() (enabled bool, users, roles int64, err error) {
	store := s.etcd.Server.AuthStore()
	u, err := store.UserList(&etcdserverpb.AuthUserListRequest{})
	if err != nil {
		return false, 0, 0, fmt.Errorf("listing the users: %w", err)
	}
	r, err := store.RoleList(&etcdserverpb.AuthRoleListRequest{})
	if err != nil {
		return false, 0, 0, fmt.Errorf("listing the roles: %w", err)
	}
	return store.IsAuthEnabled(), int64(len(u.GetUsers())), int64(len(r.GetRoles())), nil
}

// Stop ends the server.
func (s *Etcd) Stop() error {
	done := make(chan struct{})
	go func() {
		defer close(done)
		s.etcd.Close()
	}()
	timer := time.NewTimer(stopTimeout)
	defer timer.Stop()
	select {
	case <-done:
		_ = forget(s.dir) // on a full disk it fails, and what stays is memory, until the next server is loaded
		return nil
	case <-timer.C:
		return fmt.Errorf("etcd did not stop within %s%s", stopTimeout, s.log.said())
	}
}

// serverLog keeps what etcd says when something is wrong. It is also what keeps etcd from ending this process: where it
// can go no further, etcd logs at level fatal or panic, and then only the goroutine that did so ends.
type serverLog struct {
	gaveUp chan struct{} // closed by the first such message

	mu    sync.Mutex
	lines []string
}

const (
	// maxLines is how many messages are kept: the first, which is about the cause, and few that follow.
	maxLines = 5
	// abandonAfter is how long etcd may take to come back once nobody waits for its answer any more.
	abandonAfter = 10 * time.Second
)

var errGaveUp = errors.New("etcd gave up")

// WithinEtcd runs f, which calls into etcd's libraries, so that their giving up, which would end this process, is an error that
// says what they logged. f is left behind when it does not come back soon after ctx has ended.
func WithinEtcd(ctx context.Context, f func(*zap.Logger) error) error {
	log := newServerLog()
	return log.within(ctx, func() error { return f(log.zap()) })
}

func newServerLog() *serverLog { return &serverLog{gaveUp: make(chan struct{})} }

func (l *serverLog) zap() *zap.Logger {
	return zap.New(&logCore{log: l}, zap.WithFatalHook(l), zap.WithPanicHook(l))
}

// OnWrite implements zapcore.CheckWriteHook for messages after which etcd does not go on.
func (l *serverLog) OnWrite(*zapcore.CheckedEntry, []zapcore.Field) {
	l.mu.Lock()
	select {
	case <-l.gaveUp:
	default:
		close(l.gaveUp)
	}
	l.mu.Unlock()
	runtime.Goexit()
}

// within runs f, which calls into etcd, so that etcd's giving up is an error. etcd's loading cannot be canceled, and
// waits for ever when it gives up in a goroutine of its own; f is then left behind.
func (l *serverLog) within(ctx context.Context, f func() error) error {
	return l.until(ctx.Done(), ctx.Err, f)
}

// until is within for what ends otherwise: when over is closed, why says why nobody waits any more.
func (l *serverLog) until(over <-chan struct{}, why func() error, f func() error) error {
	done := make(chan error, 1)
	go func() {
		err := errGaveUp
		defer func() { done <- err }() // also when this goroutine is ended by a fatal message
		err = Guard(f)
	}()
	var err error
	select {
	case err = <-done:
	case <-over:
		err = l.abandon(done, why())
	case <-l.gaveUp:
		err = l.abandon(done, errGaveUp)
	}
	if err != nil {
		return fmt.Errorf("%w%s", err, l.said())
	}
	return nil
}

// abandon gives f the time to come back, and the error why nobody waits for it.
func (l *serverLog) abandon(done <-chan error, why error) error {
	timer := time.NewTimer(abandonAfter)
	defer timer.Stop()
	select {
	case err := <-done:
		return cmp.Or(err, why)
	case <-timer.C:
		return why
	}
}

func (l *serverLog) said() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	if len(l.lines) == 0 {
		return ""
	}
	return " (etcd said: " + strings.Join(l.lines, "; ") + ")"
}

// logCore implements zapcore.Core.
type logCore struct{ log *serverLog }

// Enabled is for zapcore.
func (*logCore) Enabled(l zapcore.Level) bool { return l >= zapcore.ErrorLevel }

// With is for zapcore. What is added there is who speaks, which is known.
func (c *logCore) With([]zapcore.Field) zapcore.Core { return c }

// Check is for zapcore.
func (c *logCore) Check(e zapcore.Entry, ce *zapcore.CheckedEntry) *zapcore.CheckedEntry {
	if c.Enabled(e.Level) {
		return ce.AddCore(e, c)
	}
	return ce
}

// Write is for zapcore.
func (c *logCore) Write(e zapcore.Entry, fields []zapcore.Field) error {
	line := []string{e.Message}
	for _, f := range fields {
		if err, ok := f.Interface.(error); ok && f.Type == zapcore.ErrorType {
			line = append(line, err.Error())
		}
	}
	c.log.mu.Lock()
	defer c.log.mu.Unlock()
	if len(c.log.lines) < maxLines {
		c.log.lines = append(c.log.lines, strings.Join(line, ": "))
	}
	return nil
}

// Sync is for zapcore.
func (*logCore) Sync() error { return nil }

// Guard turns a panic into an error. The libraries that read restored data panic on some that is damaged, and a worker must live
// to report that.
func Guard(f func() error) (err error) {
	defer func() {
		if p := recover(); p != nil {
			err = fmt.Errorf("it panicked: %v", p)
		}
	}()
	return f()
}
