package etcd

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"sync"

	"go.etcd.io/etcd/api/v3/etcdserverpb"
	clientv3 "go.etcd.io/etcd/client/v3"

	"github.com/lifeboat-fleet/lifeboat/services/backup/internal/source"
)

// member is one endpoint that answered.
type member struct {
	endpoint string
	client   *clientv3.Client
	status   *clientv3.StatusResponse
}

// close releases the connection. A client that was closed before gives an error that tells nothing.
func (m *member) close() { _ = m.client.Close() }

func closeAll(members []*member) {
	for _, m := range members {
		m.close()
	}
}

func (m *member) failed(ctx context.Context, doing string, err error) error {
	return source.Classify(ctx, reasonOf(err), source.Endpoint(m.endpoint), doing, err)
}

// members asks every endpoint how it is and returns those that can be read, the fittest first. The caller closes them.
func (s *Source) members(ctx context.Context) ([]*member, error) {
	found := make([]*member, len(s.cfg.Endpoints))
	errs := make([]error, len(s.cfg.Endpoints))
	var wg sync.WaitGroup
	for i, endpoint := range s.cfg.Endpoints {
		wg.Go(func() { found[i], errs[i] = s.ask(ctx, endpoint) })
	}
	wg.Wait()
	answered := slices.DeleteFunc(found, func(m *member) bool { return m == nil })
	if err := sameCluster(answered); err != nil {
		closeAll(answered)
		return nil, err
	}
	corrupt := corruptMembers(ctx, answered)
	var fit []*member
	var refused []error
	for _, m := range answered {
		if why := unfit(m, corrupt); why != "" {
			refused = append(refused, &source.Error{
				Reason: source.Stale, Endpoint: source.Endpoint(m.endpoint), Doing: "choosing a member",
				Err: errors.New(why),
			})
			m.close()
			continue
		}
		fit = append(fit, m)
	}
	if len(fit) == 0 {
		return nil, fmt.Errorf("no member of the cluster can be read: %w", errors.Join(append(refused, errs...)...))
	}
	// A follower first: a snapshot is work, and the leader has its own.
	slices.SortStableFunc(fit, func(a, b *member) int {
		return cmp.Or(cmp.Compare(leads(a), leads(b)),
			cmp.Compare(b.status.RaftAppliedIndex, a.status.RaftAppliedIndex))
	})
	return fit, nil
}

func leads(m *member) int {
	if m.status.Leader == m.status.Header.GetMemberId() {
		return 1
	}
	return 0
}

// ask connects to one endpoint and asks how it is.
func (s *Source) ask(ctx context.Context, endpoint string) (*member, error) {
	client, err := s.dial(ctx, endpoint)
	if err != nil {
		return nil, err
	}
	m := &member{endpoint: endpoint, client: client}
	askCtx, cancel := context.WithTimeout(ctx, statusTimeout)
	defer cancel()
	if m.status, err = client.Status(askCtx, endpoint); err != nil {
		m.close()
		return nil, m.failed(ctx, "asking for the status", err)
	}
	return m, nil
}

// sameCluster guards against a list of endpoints that mixes two clusters: which one were backed up would be chance.
func sameCluster(members []*member) error {
	for _, m := range members[min(1, len(members)):] {
		a, b := members[0].status.Header.GetClusterId(), m.status.Header.GetClusterId()
		if a != b {
			return &source.Error{
				Reason: source.Misconfigured, Endpoint: source.Endpoint(m.endpoint), Doing: "choosing a member",
				Err: fmt.Errorf("it belongs to cluster %x, and %s to cluster %x", b,
					source.Endpoint(members[0].endpoint), a),
			}
		}
	}
	return nil
}

// corruptMembers lists the members that the cluster has marked as corrupt. Listing may be denied; each member's own
// status then still tells of the marks that it knows.
func corruptMembers(ctx context.Context, members []*member) map[uint64]bool {
	corrupt := make(map[uint64]bool)
	for _, m := range members {
		askCtx, cancel := context.WithTimeout(ctx, statusTimeout)
		resp, err := m.client.AlarmList(askCtx)
		cancel()
		if err == nil {
			for _, a := range resp.Alarms {
				if a.Alarm == etcdserverpb.AlarmType_CORRUPT {
					corrupt[a.MemberID] = true
				}
			}
			return corrupt
		}
		id := m.status.Header.GetMemberId()
		for _, e := range m.status.Errors {
			if strings.Contains(e, "CORRUPT") && strings.Contains(e, strconv.FormatUint(id, 10)) {
				corrupt[id] = true
			}
		}
	}
	return corrupt
}

// unfit says why a member must not be read; empty when it may. Other alarms are no reason: a cluster that ran out of
// space is one that needs its backup.
func unfit(m *member, corrupt map[uint64]bool) string {
	switch {
	case m.status.IsLearner:
		return "it is a learner, which has not caught up"
	case m.status.Leader == 0:
		return "it has no leader"
	case corrupt[m.status.Header.GetMemberId()]:
		return "it has a CORRUPT alarm"
	}
	return ""
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
		if x.ID == m.status.Header.GetMemberId() {
			return x.Name
		}
	}
	return ""
}
