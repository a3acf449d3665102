package app

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"sync"
	"time"

	"github.com/lifeboat-fleet/lifeboat/fleet/config"
	"github.com/lifeboat-fleet/lifeboat/fleet/service"
	"github.com/lifeboat-fleet/lifeboat/services/backup/internal/source/consul"
	"github.com/lifeboat-fleet/lifeboat/services/backup/internal/source/etcd"
	"github.com/lifeboat-fleet/lifeboat/services/backup/internal/source/nomad"
	"github.com/lifeboat-fleet/lifeboat/services/backup/internal/worker"
)

// pingable is a source that can say whether it answers.
type pingable interface {
	worker.Source
	Ping(ctx context.Context) error
}

func openSource(t config.Target) (pingable, error) {
	switch {
	case t.Etcd != nil:
		return etcd.New(*t.Etcd, etcd.Options{}), nil
	case t.Consul != nil:
		return consul.New(*t.Consul, consul.Options{}), nil
	case t.Nomad != nil:
		return nomad.New(*t.Nomad, nomad.Options{}), nil
	}
	return nil, fmt.Errorf("target %s has no source", t.Name)
}

// newSources are the sources of all parts of a target's snapshot, the one of its data first.
func newSources(t config.Target) ([]worker.Source, error) {
	first, err := openSource(t)
	if err != nil {
		return nil, err
	}
	all := []worker.Source{first}
	switch {
	case t.Consul != nil && t.Consul.Full:
		all = append(all, consul.NewRaft(*t.Consul, consul.Options{}))
	case t.Nomad != nil && t.Nomad.Full:
		all = append(all, nomad.NewOperator(*t.Nomad, nomad.Options{}))
	}
	return all, nil
}

// A little more than a source's own timeouts, so that the source can say the reason.
const pingTimeout = 8 * time.Second

// reachability holds the service unready until every target of its zone was asked and one has answered, once: a new version that reaches
// nothing must not take the old one's place, and one target's outage must not keep a fleet from being updated. Outages are a target's
// alert, not a reason to take the worker out: the other targets still need it.
type reachability struct {
	base *service.Base
	zone string

	mu sync.Mutex
	// waiting are the targets that have not answered yet, and why; errNotAsked before.
	waiting  map[string]error
	answered bool
}

var errNotAsked = errors.New("not asked yet")

func newReachability(base *service.Base, zone string) *reachability {
	r := &reachability{base: base, zone: zone, waiting: map[string]error{}}
	for _, t := range base.Config().Targets {
		if r.here(t) {
			r.waiting[t.Name] = errNotAsked
		}
	}
	return r
}

// here says whether a target's jobs are for this worker.
func (r *reachability) here(t config.Target) bool { return t.Zone == "" || t.Zone == r.zone }

func (r *reachability) check(context.Context) error {
	r.mu.Lock()
	defer r.mu.Unlock()
	for _, err := range r.waiting {
		if !r.answered || errors.Is(err, errNotAsked) {
			return r.silent()
		}
	}
	return nil
}

// silent names the targets that have not answered, and why.
func (r *reachability) silent() error {
	var errs []error
	for _, name := range slices.Sorted(maps.Keys(r.waiting)) {
		errs = append(errs, fmt.Errorf("target %s: %w", name, r.waiting[name]))
	}
	return errors.Join(errs...)
}

func (r *reachability) run(ctx context.Context) error {
	r.base.Until(ctx, "targets that do not answer", func(ctx context.Context) error {
		r.forget()
		for _, t := range r.base.Config().Targets {
			r.ping(ctx, t)
		}
		r.mu.Lock()
		defer r.mu.Unlock()
		return r.silent() // of each, also when one is enough to be ready
	})
	return nil
}

// forget drops targets that a reload took away, or moved to another zone.
func (r *reachability) forget() {
	r.mu.Lock()
	defer r.mu.Unlock()
	for name := range r.waiting {
		if t, ok := r.base.Config().Target(name); !ok || !r.here(t) {
			delete(r.waiting, name)
		}
	}
}

func (r *reachability) ping(ctx context.Context, t config.Target) {
	r.mu.Lock()
	_, waiting := r.waiting[t.Name]
	r.mu.Unlock()
	if !waiting {
		return
	}
	ctx, cancel := context.WithTimeout(ctx, pingTimeout)
	defer cancel()
	src, err := openSource(t)
	if err == nil {
		err = src.Ping(ctx)
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	if err != nil {
		r.waiting[t.Name] = err
		return
	}
	r.answered = true
	delete(r.waiting, t.Name)
}
