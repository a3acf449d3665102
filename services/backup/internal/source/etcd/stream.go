package etcd

import (
	"context"
	"errors"
	"fmt"
	"io"
	"strconv"
	"sync"

	clientv3 "go.etcd.io/etcd/client/v3"

	lifeboatv1 "github.com/lifeboat-fleet/lifeboat/proto/lifeboat/v1"
	"github.com/lifeboat-fleet/lifeboat/services/backup/internal/source"
)

// stream is a snapshot on its way. It implements source.Stream.
type stream struct {
	ctx            context.Context //nolint:containedctx // an io.Reader is given none; this one ends the read
	stop           context.CancelFunc
	idle           *source.Idle
	member         *member
	body           io.ReadCloser
	storageVersion string
	// atLeast is the cluster's revision before the snapshot was opened.
	atLeast int64
	check   *check
	err     error // sticky; io.EOF once all was checked

	closing sync.Once
	info    *lifeboatv1.SourceInfo
}

// Read implements source.Stream.
func (s *stream) Read(p []byte) (int, error) {
	if s.err != nil {
		return 0, s.err
	}
	if s.ctx.Err() != nil {
		s.err = s.member.failed(s.ctx, "reading the snapshot", s.ctx.Err())
		return 0, s.err
	}
	s.idle.Begin()
	n, err := s.body.Read(p)
	s.idle.End()
	s.check.Write(p[:n])
	switch {
	case err == nil:
		return n, nil
	case errors.Is(err, io.EOF) && s.ctx.Err() == nil:
		s.err = s.finish()
	default:
		s.err = s.member.failed(s.ctx, "reading the snapshot", err)
	}
	return n, s.err
}

// finish decides whether the end is one.
func (s *stream) finish() error {
	if err := s.check.finish(); err != nil {
		return &source.Error{
			Reason: source.Damaged, Endpoint: source.Endpoint(s.member.endpoint), Doing: "checking the snapshot",
			Err: err,
		}
	}
	if got := s.check.found.Revision; got < s.atLeast {
		return &source.Error{
			Reason: source.Stale, Endpoint: source.Endpoint(s.member.endpoint), Doing: "checking the snapshot",
			Err: fmt.Errorf("it is at revision %d, and the cluster was at %d before", got, s.atLeast),
		}
	}
	return io.EOF
}

// Close implements source.Stream.
func (s *stream) Close() error {
	s.closing.Do(func() {
		s.stop()
		// Without this the client's goroutine would wait for ever for somebody to take what it received. Its error is
		// the one that Read gave, or none.
		_ = s.body.Close()
		s.member.close()
	})
	return nil
}

// ended is why nothing more can be asked; nil while it can.
func (s *stream) ended() error {
	if s.ctx.Err() == nil {
		return nil
	}
	return fmt.Errorf("asking about the snapshot: %w", context.Cause(s.ctx))
}

// Info implements source.Stream. The member is asked at the revision that the data has, so that the answers are about
// the same keys although the cluster has moved on.
func (s *stream) Info(ctx context.Context) (*lifeboatv1.SourceInfo, error) {
	switch {
	case s.info != nil:
		return s.info, nil
	case !errors.Is(s.err, io.EOF):
		return nil, source.ErrUnfinished
	case s.ended() != nil:
		return nil, s.ended()
	}
	m, found := s.member, s.check.found
	info := &lifeboatv1.SourceInfo{
		Version: m.status.Version,
		Identity: map[string]string{
			"cluster_id": strconv.FormatUint(m.status.Header.GetClusterId(), 16),
			"member_id":  strconv.FormatUint(m.status.Header.GetMemberId(), 16),
			"endpoint":   source.Endpoint(m.endpoint),
		},
		Revision: found.Revision,
		Counts:   map[string]int64{"revisions": found.Revisions},
	}
	if s.storageVersion != "" {
		info.Identity["storage_version"] = s.storageVersion
	}
	if name := m.name(ctx); name != "" {
		info.Identity["member_name"] = name
	}
	keys, err := m.client.Get(ctx, "", clientv3.WithPrefix(), clientv3.WithRev(found.Revision),
		clientv3.WithCountOnly(), clientv3.WithSerializable())
	if err != nil {
		info.Missing = append(info.Missing, "keys: "+err.Error())
	} else {
		info.Counts["keys"] = keys.Count
	}
	hash, err := m.client.HashKV(ctx, m.endpoint, found.Revision)
	if err != nil {
		info.Missing = append(info.Missing, "hash_kv: "+err.Error())
	} else {
		info.HashKv = &lifeboatv1.HashKV{
			Hash: hash.Hash, Revision: found.Revision, CompactRevision: hash.CompactRevision,
		}
	}
	// Without its counts a snapshot is whole all the same; but whoever canceled wants no half answer.
	if ctx.Err() != nil {
		return nil, m.failed(ctx, "asking about the snapshot", ctx.Err())
	}
	s.info = info
	return info, nil
}
