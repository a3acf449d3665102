package etcd

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"sync"
	"time"

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
	survey         *survey
	body           io.Reader
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

// SizeHint is at most how many bytes will come, as far as can be foreseen: the size of the member's database when it was
// chosen, which etcd counts anew only every 100 ms, and an eighth and a MiB for what was written since.
func (s *stream) SizeHint() int64 {
	size := s.member.status.DbSize
	return size + size/8 + 1<<20
}

// Digest is the length and the sha256 of all that Read gave, the checksum at its end included; valid after io.EOF. The
// stream has hashed all of it anyway.
func (s *stream) Digest() (bytes int64, sum [sha256.Size]byte) { return s.check.length, s.check.digest }

// Close implements source.Stream.
func (s *stream) Close() error {
	s.closing.Do(func() {
		s.stop()
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

// infoTimeout bounds the questions about what was read. To hash the keys of the largest database that etcd recommends, of
// 8 GiB, takes seconds; whoever needs longer would hold up a snapshot that is whole.
const infoTimeout = 2 * time.Minute

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
			"cluster_id": memberID(m.status.Header.GetClusterId()),
			"member_id":  memberID(m.id()),
			"endpoint":   source.Endpoint(m.endpoint),
		},
		Revision: found.Revision,
		Counts: map[string]int64{
			"revisions": found.Revisions, "leases": found.Leases, "auth_users": found.Users, "auth_roles": found.Roles,
			"auth_enabled": oneIf(found.AuthEnabled),
		},
	}
	if s.storageVersion != "" {
		info.Identity["storage_version"] = s.storageVersion
	}
	if name := m.name(ctx); name != "" {
		info.Identity["member_name"] = name
	}
	asked, cancel := context.WithTimeout(ctx, infoTimeout)
	defer cancel()
	s.countKeys(asked, info)
	s.survey.tell(info, m)
	s.recordHash(asked, info)
	// Without its counts a snapshot is whole all the same; but whoever canceled wants no half answer.
	if ctx.Err() != nil {
		return nil, m.failed(ctx, "asking about the snapshot", ctx.Err())
	}
	s.info = info
	return info, nil
}

func oneIf(b bool) int64 {
	if b {
		return 1
	}
	return 0
}

// countKeys asks how many keys live at the revision of the data. The data itself does not tell that in bounded memory: it
// is a list of revisions, of which several may be of one key, and which ones the first compaction has left is known only
// after the last page, as pages come in no order. The member counts at exactly that revision, so the answer is about the
// data and not about the moment of the question.
func (s *stream) countKeys(ctx context.Context, info *lifeboatv1.SourceInfo) {
	keys, err := s.member.client.Get(ctx, "", clientv3.WithPrefix(), clientv3.WithRev(info.GetRevision()),
		clientv3.WithCountOnly(), clientv3.WithSerializable())
	if err != nil {
		info.Missing = append(info.Missing, "keys: "+err.Error())
		return
	}
	info.Counts["keys"] = keys.Count
}

// recordHash asks for the member's hash of the keys, with which a restored copy can be compared.
func (s *stream) recordHash(ctx context.Context, info *lifeboatv1.SourceInfo) {
	resp, err := s.hashKV(ctx, info.GetRevision())
	if err != nil {
		info.Missing = append(info.Missing, "hash_kv: "+err.Error())
		info.Worries = append(info.Worries, fmt.Sprintf("the hash of the keys was not recorded, and a drill cannot compare it: %v; "+
			"if that is so every time, schedule snapshots apart from etcd's compactions", err))
		return
	}
	info.HashKv = &lifeboatv1.HashKV{
		Hash: resp.Hash, Revision: info.GetRevision(), CompactRevision: resp.CompactRevision,
	}
}

// hashKV asks for a hash at a revision that is about what the data holds. etcd hashes what compactions have left, so it is
// only while the member is compacted up to where the data is. And a member that was compacted up to this very revision, as
// every quiet cluster is after a while, answers with a hash that it remembers from before that compaction; asked for its
// newest revision, which then often is the same, it hashes anew (HashByRev in storage/mvcc/hash.go).
func (s *stream) hashKV(ctx context.Context, revision int64) (*clientv3.HashKVResponse, error) {
	want := s.check.found.CompactRevision
	resp, err := s.member.client.HashKV(ctx, s.member.endpoint, revision)
	if err == nil && want == revision && resp.CompactRevision < want {
		resp, err = s.member.client.HashKV(ctx, s.member.endpoint, 0)
		if err == nil && resp.Header.GetRevision() != revision {
			err = fmt.Errorf("the source went on to revision %d meanwhile", resp.Header.GetRevision())
		}
	}
	if err != nil {
		return nil, err
	}
	// A member that was never compacted says -1.
	if max(resp.CompactRevision, 0) != want {
		return nil, fmt.Errorf("the source was compacted at revision %d meanwhile, and the data at %d", resp.CompactRevision, want)
	}
	return resp, nil
}
