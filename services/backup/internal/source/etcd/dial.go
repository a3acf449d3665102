package etcd

import (
	"context"
	"errors"
	"fmt"
	"math"

	clientv3 "go.etcd.io/etcd/client/v3"

	"github.com/lifeboat-fleet/lifeboat/fleet/config"
	"github.com/lifeboat-fleet/lifeboat/services/backup/internal/source"
)

// Dial connects to a cluster that is to be written to, by those of its endpoints that answer and are no learners. All must be of
// one cluster. A request to members that are down fails at once, with the reason. The caller closes the client.
func Dial(ctx context.Context, cfg config.Etcd) (*clientv3.Client, error) {
	s := New(cfg, Options{})
	answered, failed := s.askAll(ctx)
	defer closeAll(answered)
	if err := sameCluster(answered); err != nil {
		return nil, err
	}
	var endpoints []string
	for _, m := range answered {
		if m.status.IsLearner {
			failed = append(failed, m.unfit(source.Stale, errors.New("it is a learner, which takes no writes")))
			continue
		}
		endpoints = append(endpoints, m.endpoint)
	}
	if len(endpoints) == 0 {
		return nil, fmt.Errorf("no member of the cluster can be written to: %w", errors.Join(failed...))
	}
	// A key that is too large is refused by the cluster, whose limit is its own.
	m, err := s.connectTo(ctx, endpoints, math.MaxInt32)
	if err != nil {
		return nil, err
	}
	return m.client, nil
}
