package consul

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"strings"
	"time"

	"github.com/lifeboat-fleet/lifeboat/fleet/config"
	lifeboatv1 "github.com/lifeboat-fleet/lifeboat/proto/lifeboat/v1"
	"github.com/lifeboat-fleet/lifeboat/services/backup/internal/source"
	"github.com/lifeboat-fleet/lifeboat/services/backup/internal/source/consulkv"
	"github.com/lifeboat-fleet/lifeboat/services/backup/internal/source/raftsnap"
)

// snapshotWait is how long the leader may take before the first byte: it writes the whole archive to a file of its own first.
const snapshotWait = 10 * time.Minute

// Raft is the raft snapshot of a Consul datacenter: keys, catalog, configuration entries, sessions, prepared queries and every
// ACL token with its secret. It restores as a whole, with `consul snapshot restore`.
type Raft struct{ src *Source }

// NewRaft makes a source. Nothing is contacted and no file is read until Open or Ping. It needs a management token, or one with
// acl = "write"; prefixes do not apply.
func NewRaft(cfg config.Consul, opts Options) *Raft { return &Raft{src: New(cfg, opts)} }

// Format is the extension of what Open gives.
func (r *Raft) Format() string { return "snap" }

// Ping says whether the agent answers and knows a leader.
func (r *Raft) Ping(ctx context.Context) error { return r.src.Ping(ctx) }

// Open has the leader take a snapshot. The archive passes as it is, and is checked on the way: when the connection between the
// agent and the leader breaks, the agent ends its answer as if that were all.
func (r *Raft) Open(ctx context.Context) (source.Stream, error) {
	wait := r.src.opts.Idle
	if wait == 0 {
		wait = snapshotWait
	}
	c, err := consulkv.NewClient(r.src.cfg, wait)
	if err != nil {
		return nil, err
	}
	readCtx, stop, idle := source.WatchIdle(ctx, r.src.opts.Idle)
	st := &raftStream{reading: reading{ctx: readCtx, stop: stop, client: c, doing: "taking a raft snapshot"}}
	if err := st.begin(idle); err != nil {
		_ = st.Close() // the first error tells more
		return nil, err
	}
	return st, nil
}

// raftStream implements source.Stream.
type raftStream struct {
	reading
	check *raftsnap.Reader
}

func (s *raftStream) begin(idle *source.Idle) (err error) {
	s.token = s.client.WhoAmI(s.ctx)
	s.resp, err = s.client.Get(s.ctx, "/v1/snapshot") //nolint:bodyclose // Close does
	if err != nil {
		return s.failed(source.Unreachable, err)
	}
	if s.resp.StatusCode != http.StatusOK {
		status := source.NewStatusError(s.resp)
		err = status
		if strings.HasPrefix(status.Body, "Permission denied") {
			err = fmt.Errorf(`%w; it needs a management token, or one with: acl = "write"`, status)
		}
		return s.failed(source.ReasonOfStatus(status.Status), err)
	}
	s.check = raftsnap.NewReader(body{r: s.resp.Body, idle: idle})
	return nil
}

// Read implements source.Stream.
func (s *raftStream) Read(p []byte) (int, error) {
	if s.err != nil || len(p) == 0 {
		return 0, s.err
	}
	if s.ctx.Err() != nil {
		s.err = s.failed(source.Canceled, s.ctx.Err())
		return 0, s.err
	}
	n, err := s.check.Read(p)
	switch {
	case errors.Is(err, raftsnap.ErrDamaged): // may wrap an io.EOF
		s.err = s.failed(source.Damaged, err)
	case err != nil && !errors.Is(err, io.EOF):
		s.err = s.failed(source.Unreachable, err)
	default:
		s.err = err
	}
	return n, s.err
}

// Info implements source.Stream.
func (s *raftStream) Info(ctx context.Context) (*lifeboatv1.SourceInfo, error) {
	switch {
	case s.info != nil:
		return s.info, nil
	case !errors.Is(s.err, io.EOF):
		return nil, source.ErrUnfinished
	case s.ended() != nil:
		return nil, s.ended()
	}
	meta := s.check.Meta()
	info := &lifeboatv1.SourceInfo{Revision: meta.Index, Counts: map[string]int64{"bytes": meta.StateBytes}}
	if err := describe(ctx, s.client, s.token, info); err != nil {
		return nil, err
	}
	s.info = info
	return info, nil
}
