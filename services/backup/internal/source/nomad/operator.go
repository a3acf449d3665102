package nomad

import (
	"context"
	"crypto/sha256"
	"encoding/base64"
	"errors"
	"fmt"
	"hash"
	"io"
	"net/http"
	"strings"
	"sync"
	"time"

	"github.com/hashicorp/nomad/api"

	"github.com/lifeboat-fleet/lifeboat/fleet/config"
	lifeboatv1 "github.com/lifeboat-fleet/lifeboat/proto/lifeboat/v1"
	"github.com/lifeboat-fleet/lifeboat/services/backup/internal/source"
	"github.com/lifeboat-fleet/lifeboat/services/backup/internal/source/raftsnap"
)

// snapshotWait is how long the leader may take before the first byte: it writes the whole archive to a file first.
const snapshotWait = 10 * time.Minute

const savingSnapshot = "taking an operator snapshot"

// Operator is the operator snapshot of a Nomad region: its whole raft state with the keyring, in clear unless it is kept in
// a KMS, and every ACL token with its secret. It restores as a whole, with `nomad operator snapshot restore`.
type Operator struct{ src *Source }

// NewOperator makes a source. Nothing is contacted and no file is read until Open or Ping. It needs a management token, or
// one with operator { capabilities = ["snapshot-save"] } in versions that know it; namespaces do not apply.
func NewOperator(cfg config.Nomad, opts Options) *Operator { return &Operator{src: New(cfg, opts)} }

// Format is the extension of what Open gives.
func (o *Operator) Format() string { return "snap" }

// Ping says whether the agent answers and knows a leader.
func (o *Operator) Ping(ctx context.Context) error { return o.src.Ping(ctx) }

// Open has the leader take a snapshot. The archive passes as it is and is checked on the way, by itself and against the
// digest that Nomad sends with it: when the connection between the agent and the leader breaks, the agent ends its answer
// as if that were all.
func (o *Operator) Open(ctx context.Context) (source.Stream, error) {
	wait := o.src.opts.Idle
	if wait == 0 {
		wait = snapshotWait
	}
	c, err := o.src.client(wait)
	if err != nil {
		return nil, err
	}
	readCtx, stop, idle := source.WatchIdle(ctx, o.src.opts.Idle)
	st := &snapStream{ctx: readCtx, stop: stop, client: c, sum: sha256.New()}
	if err := st.begin(idle); err != nil {
		_ = st.Close() // the first error tells more
		return nil, err
	}
	return st, nil
}

// snapStream implements source.Stream.
type snapStream struct {
	ctx    context.Context //nolint:containedctx // an io.Reader is given none; this one ends the read
	stop   context.CancelFunc
	client *client
	token  token
	body   io.ReadCloser
	check  *raftsnap.Reader
	sum    hash.Hash // of the archive
	digest string    // of the archive, as Nomad says; empty when it does not
	err    error     // sticky

	closing sync.Once
	info    *lifeboatv1.SourceInfo
}

func (s *snapStream) begin(idle *source.Idle) (err error) {
	ask := func(ctx context.Context, path string, q *api.QueryOptions, out any) (*api.QueryMeta, error) {
		idle.Begin()
		defer idle.End()
		return s.client.query(ctx, path, q, out)
	}
	if s.token, err = s.client.whoami(s.ctx, ask); err != nil {
		return err
	}
	resp, err := s.client.open(s.ctx, "/v1/operator/snapshot")
	switch {
	case errors.Is(err, context.DeadlineExceeded): // net/http's own, for the start of an answer
		return s.failed(source.Stalled, err)
	case err != nil:
		return s.failed(source.Unreachable, err)
	case resp.StatusCode != http.StatusOK:
		defer resp.Body.Close()
		return s.refused(source.NewStatusError(resp))
	}
	s.body = resp.Body
	s.digest = resp.Header.Get("Digest")
	s.check = raftsnap.NewReader(watched{r: resp.Body, idle: idle})
	return nil
}

func (s *snapStream) refused(status *source.StatusError) error {
	reason := source.ReasonOfStatus(status.Status)
	var err error = status
	if reason == source.Denied {
		err = fmt.Errorf(`%w; the token needs %s, or operator { capabilities = ["snapshot-save"] }`, status, needManagement)
	}
	return s.failed(reason, err)
}

// open asks for an answer that is not JSON.
func (c *client) open(ctx context.Context, path string) (*http.Response, error) {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, c.address+path, nil)
	if err != nil {
		return nil, fmt.Errorf("making the request: %w", err)
	}
	if c.secret != "" {
		req.Header.Set("X-Nomad-Token", c.secret)
	}
	return c.http.Do(req)
}

// watched counts how long each read waits.
type watched struct {
	r    io.Reader
	idle *source.Idle
}

func (w watched) Read(p []byte) (int, error) {
	w.idle.Begin()
	defer w.idle.End()
	return w.r.Read(p)
}

// Read implements source.Stream.
func (s *snapStream) Read(p []byte) (int, error) {
	if s.err != nil || len(p) == 0 {
		return 0, s.err
	}
	if s.ctx.Err() != nil {
		s.err = s.failed(source.Canceled, s.ctx.Err())
		return 0, s.err
	}
	n, err := s.check.Read(p)
	_, _ = s.sum.Write(p[:n]) // a hash never fails
	switch {
	case errors.Is(err, raftsnap.ErrDamaged): // it may wrap an io.EOF
		s.err = s.failed(source.Damaged, err)
	case errors.Is(err, io.EOF):
		s.err = s.compare()
	case err != nil:
		s.err = s.failed(source.Unreachable, err)
	}
	return n, s.err
}

// compare returns io.EOF if the archive is the one that Nomad made the digest of.
func (s *snapStream) compare() error {
	const prefix = "sha-256="
	got := prefix + base64.StdEncoding.EncodeToString(s.sum.Sum(nil))
	if strings.HasPrefix(s.digest, prefix) && s.digest != got {
		return s.failed(source.Damaged, fmt.Errorf("its digest is %s, and Nomad says %s", got, s.digest))
	}
	return io.EOF
}

func (s *snapStream) failed(reason source.Reason, err error) error {
	return source.Classify(s.ctx, reason, s.client.shown, savingSnapshot, err)
}

// Close implements source.Stream.
func (s *snapStream) Close() error {
	s.closing.Do(func() {
		s.stop()
		if s.body != nil {
			_ = s.body.Close() // what was read was checked
		}
		s.client.close()
	})
	return nil
}

// ended is why nothing more can be asked; nil while it can.
func (s *snapStream) ended() error {
	if s.ctx.Err() == nil {
		return nil
	}
	return fmt.Errorf("asking about the region: %w", context.Cause(s.ctx))
}

// Info implements source.Stream.
func (s *snapStream) Info(ctx context.Context) (*lifeboatv1.SourceInfo, error) {
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
	if err := s.client.describe(ctx, &s.token, info); err != nil {
		return nil, err
	}
	s.info = info
	return info, nil
}
