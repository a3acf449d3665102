package etcd

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"slices"
	"strconv"
	"sync"

	clientv3 "go.etcd.io/etcd/client/v3"

	"github.com/lifeboat-fleet/lifeboat/services/backup/internal/source"
)

// maxBehind is how many raft entries a member may have left to apply and still be chosen like any other. It is etcd's own
// maxGapBetweenApplyAndCommitIndex (etcdserver/v3_server.go), from where on a member takes no more requests. It is not
// smaller because the members are asked one by one, and a busy cluster applies thousands of entries in between.
const maxBehind = 5000

// member is one endpoint that answered.
type member struct {
	endpoint string
	client   *clientv3.Client
	tls      *handshake
	status   *clientv3.StatusResponse // nil until it has answered
}

// close releases the connection. A client that was closed before gives an error that tells nothing.
func (m *member) close() { _ = m.client.Close() }

func closeAll(members []*member) {
	for _, m := range members {
		m.close()
	}
}

func (m *member) id() uint64 { return m.status.Header.GetMemberId() }

// String names it for a person.
func (m *member) String() string {
	return "member " + memberID(m.id()) + " at " + source.Endpoint(m.endpoint)
}

// memberID is a member's id as etcd's own tools show it.
func memberID(id uint64) string { return strconv.FormatUint(id, 16) }

func (m *member) leads() bool { return m.status.Leader == m.id() }

func (m *member) failed(ctx context.Context, doing string, err error) error {
	reason := reasonOf(err)
	if m.status == nil && (reason == source.Unreachable || refusedByTLS(err)) {
		if refusal := m.tls.expected(); refusal != nil {
			reason, err = source.Denied, fmt.Errorf("%w: %w", refusal, err)
		}
	}
	return source.Classify(ctx, reason, source.Endpoint(m.endpoint), doing, err)
}

func (m *member) unfit(reason source.Reason, why error) error {
	return &source.Error{
		Reason: reason, Endpoint: source.Endpoint(m.endpoint), Doing: "choosing a member", Err: why,
	}
}

// members asks every endpoint how it is and returns those that can be read, the fittest first, and what was learned of
// the cluster. The caller closes them.
func (s *Source) members(ctx context.Context) ([]*member, *survey, error) {
	answered, failed := s.askAll(ctx)
	if err := sameCluster(answered); err != nil {
		closeAll(answered)
		return nil, nil, err
	}
	v := newSurvey(ctx, answered)
	var fit []*member
	for _, m := range answered {
		if err := v.refuse(m); err != nil {
			failed = append(failed, err)
			m.close()
			continue
		}
		fit = append(fit, m)
	}
	if len(fit) == 0 {
		return nil, nil, fmt.Errorf("no member of the cluster can be read: %w", errors.Join(failed...))
	}
	for _, err := range failed {
		v.left(err)
	}
	v.sort(fit)
	return fit, v, nil
}

// askAll asks all endpoints at once.
func (s *Source) askAll(ctx context.Context) (answered []*member, failed []error) {
	found := make([]*member, len(s.cfg.Endpoints))
	errs := make([]error, len(s.cfg.Endpoints))
	var wg sync.WaitGroup
	for i, endpoint := range s.cfg.Endpoints {
		wg.Go(func() { found[i], errs[i] = s.ask(ctx, endpoint) })
	}
	wg.Wait()
	for i, m := range found {
		if m != nil {
			answered = append(answered, m)
		} else {
			failed = append(failed, errs[i])
		}
	}
	return answered, failed
}

// ask connects to one endpoint and asks how it is.
func (s *Source) ask(ctx context.Context, endpoint string) (*member, error) {
	m, err := s.connect(ctx, endpoint)
	if err != nil {
		return nil, err
	}
	askCtx, cancel := context.WithTimeout(ctx, statusTimeout)
	defer cancel()
	status, err := m.client.Status(askCtx, endpoint)
	if err != nil {
		m.close()
		return nil, m.failed(ctx, "asking for the status", err)
	}
	m.status = status
	return m, nil
}

// sameCluster guards against a list of endpoints that mixes two clusters: which one were backed up would be chance.
func sameCluster(members []*member) error {
	for _, m := range members[min(1, len(members)):] {
		a, b := members[0].status.Header.GetClusterId(), m.status.Header.GetClusterId()
		if a != b {
			return m.unfit(source.Misconfigured, fmt.Errorf("it belongs to cluster %x, and %s to cluster %x", b,
				source.Endpoint(members[0].endpoint), a))
		}
	}
	return nil
}

// refuse says why a member must not be read, whatever the others are like; nil when it may.
func (v *survey) refuse(m *member) error {
	switch {
	case m.status.IsLearner:
		return m.unfit(source.Stale, errors.New("it is a learner, which has not caught up"))
	case m.status.Leader == 0:
		return m.unfit(source.Stale, errors.New("it has no leader"))
	case v.alarmed(m.id(), corrupt):
		return m.unfit(source.Stale, errors.New("it has a CORRUPT alarm"))
	}
	return nil
}

// behind is how many raft entries a member has not applied, of those that it or another one knows of.
func (v *survey) behind(m *member) uint64 {
	head := max(m.status.RaftIndex, m.status.RaftAppliedIndex)
	for _, other := range v.answered {
		head = max(head, other.status.RaftAppliedIndex)
	}
	return head - m.status.RaftAppliedIndex
}

// sort puts the fittest member first.
//
// One that lags, or has an alarm that leaves its data whole, comes last and is not left out: a cluster of which every member
// ran out of space needs its backup, and a linearizable read before the snapshot makes sure that the member has caught up.
// A follower comes before the leader: a snapshot is work, and the leader has its own.
//
// Among equals the order is random. A member can break while it sends, for instance because a part of its disk cannot be
// read; the next attempt, which may be that of another worker, must not begin with the same one for ever.
func (v *survey) sort(fit []*member) {
	rand.Shuffle(len(fit), func(i, j int) { fit[i], fit[j] = fit[j], fit[i] }) //nolint:gosec // nobody gains by guessing it
	slices.SortStableFunc(fit, func(a, b *member) int {
		return cmp.Or(
			falseFirst(v.behind(a) > maxBehind, v.behind(b) > maxBehind),
			falseFirst(v.alarmed(a.id()), v.alarmed(b.id())),
			falseFirst(a.leads(), b.leads()))
	})
}

func falseFirst(a, b bool) int {
	switch {
	case a == b:
		return 0
	case a:
		return 1
	}
	return -1
}

// name asks for the member's name; empty when it cannot be had.
func (m *member) name(ctx context.Context) string {
	ctx, cancel := context.WithTimeout(ctx, statusTimeout)
	defer cancel()
	resp, err := m.client.MemberList(ctx)
	if err != nil {
		return ""
	}
	for _, x := range resp.Members {
		if x.ID == m.id() {
			return x.Name
		}
	}
	return ""
}
