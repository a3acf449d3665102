package app

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/promauto"

	"github.com/lifeboat-fleet/lifeboat/fleet/bus"
	"github.com/lifeboat-fleet/lifeboat/fleet/config"
	"github.com/lifeboat-fleet/lifeboat/services/backup/internal/catalog"
	"github.com/lifeboat-fleet/lifeboat/services/backup/internal/store"
	"github.com/lifeboat-fleet/lifeboat/services/backup/internal/store/s3"
)

// place is a bucket that snapshots are kept in.
type place struct {
	objects *s3.Store
	catalog *catalog.Catalog
	cfg     config.ObjectStore

	mu   sync.Mutex
	done bool
	caps store.Capabilities
}

func newRetries(reg prometheus.Registerer) *prometheus.CounterVec {
	return promauto.With(reg).NewCounterVec(prometheus.CounterOpts{
		Name: "lifeboat_store_retries_total", Help: "Requests to a store that were tried again, by bucket and the store's reason.",
	}, []string{"bucket", "reason"})
}

// openPlace prepares to use a bucket; it does not talk to the store.
func openPlace(ctx context.Context, cfg config.ObjectStore, retries *prometheus.CounterVec) (*place, error) {
	objects, err := s3.New(ctx, cfg, s3.OnRetry(func(reason string) { retries.WithLabelValues(cfg.Bucket, reason).Inc() }))
	if err != nil {
		return nil, err
	}
	return &place{objects: objects, catalog: catalog.New(objects, cfg.Prefix), cfg: cfg}, nil
}

// capabilities asks the store once what it does. A store that would not be safe is refused, and no retry helps.
func (p *place) capabilities(ctx context.Context) (store.Capabilities, error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if !p.done {
		caps, err := p.objects.Probe(ctx, p.cfg.Prefix)
		if err != nil {
			return caps, err
		}
		p.caps, p.done = caps, true
	}
	if lacks := p.caps.Unsafe(p.cfg); len(lacks) > 0 {
		return p.caps, bus.Terminal("unsafe_store", fmt.Errorf("bucket %s at %s is not safe to keep snapshots in: %w",
			p.caps.Bucket, p.caps.Endpoint, errors.New(strings.Join(lacks, "; "))))
	}
	return p.caps, nil
}

// usable is the check of a worker that takes snapshots.
func (p *place) usable(ctx context.Context) error {
	if err := p.objects.Ping(ctx); err != nil {
		return err
	}
	_, err := p.capabilities(ctx)
	return err
}

// remover is what may delete: nothing but the prune role, whatever the keys of this process would allow.
func (p *place) remover(roles []config.Work) store.Remover {
	if !slices.Contains(roles, config.WorkPrune) {
		return nil
	}
	return p.objects
}
