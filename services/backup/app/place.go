package app

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"time"

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

	probing sync.Mutex

	mu    sync.Mutex
	known bool
	caps  store.Capabilities
	err   error // why the store cannot be used yet
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

// probeTimeout bounds a probe: some ten requests.
const probeTimeout = 2 * time.Minute

var errNotProbed = errors.New("the store has not been probed yet")

// capabilities asks the store once what it does. A store that would not be safe is refused, and asked again the next time: its
// owner may have mended it. The probe does not end with the context of whoever happens to ask first.
func (p *place) capabilities(ctx context.Context) (store.Capabilities, error) {
	p.probing.Lock()
	defer p.probing.Unlock()
	if p.known {
		return p.caps, nil
	}
	probe, cancel := context.WithTimeout(context.WithoutCancel(ctx), probeTimeout)
	defer cancel()
	caps, err := p.objects.Probe(probe, p.cfg.Prefix)
	if err == nil {
		if lacks := caps.Unsafe(p.cfg); len(lacks) > 0 {
			err = bus.Terminal("unsafe_store", fmt.Errorf("bucket %s at %s is not safe to keep snapshots in: %w",
				caps.Bucket, caps.Endpoint, errors.New(strings.Join(lacks, "; "))))
		}
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	p.caps, p.err, p.known = caps, err, err == nil
	return caps, err
}

// prepare reaches the store and probes it, for a worker that takes snapshots.
func (p *place) prepare(ctx context.Context) error {
	if err := p.objects.Ping(ctx); err != nil {
		return err
	}
	_, err := p.capabilities(ctx)
	return err
}

// usable is the check of a worker that takes snapshots: what the last probe said.
func (p *place) usable(ctx context.Context) error {
	if err := p.objects.Ping(ctx); err != nil {
		return err
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	if !p.known && p.err == nil {
		return errNotProbed
	}
	return p.err
}

// remover is what may delete: nothing but the prune role, whatever the keys of this process would allow.
func (p *place) remover(roles []config.Work) store.Remover {
	if !slices.Contains(roles, config.WorkPrune) {
		return nil
	}
	return p.objects
}
