package page

import (
	"context"
	"sync"
	"time"

	"github.com/lifeboat-fleet/lifeboat/fleet/config"
)

const (
	// Pages are written anew at most so often, however much changes, and at least so often while somebody looks: ages grow.
	writeAtMost, writeAtLeast = 250 * time.Millisecond, 5 * time.Second
	// restFor is how many times as long as it takes to look at the fleet it is then let be: a very large one must not take a processor.
	restFor = 5
	// maxViewers is how many open pages are kept up to date as things happen; others are shown how it is now and then, see againAfter.
	maxViewers = 256
	// maxKept is how many different pages (languages, searches, pages of the list) are kept between two writings.
	maxKept = 64
)

// hub writes each page once for all who look at it, and tells them when there is another one.
type hub struct {
	fleet   *fleet
	config  func() *config.Config
	file    string
	render  *renderer
	now     func() time.Time
	metrics *metrics

	mu      sync.Mutex
	view    *view
	kept    map[request]*rendered
	viewers map[chan struct{}]struct{}
	kick    chan struct{}
	// took is how long the last view took to make.
	took time.Duration
}

func newHub(f *fleet, cfg func() *config.Config, file string, r *renderer, now func() time.Time, m *metrics) *hub {
	return &hub{
		fleet: f, config: cfg, file: file, render: r, now: now, metrics: m, viewers: map[chan struct{}]struct{}{}, kick: make(chan struct{}, 1),
	}
}

// changed asks for another writing.
func (h *hub) changed() {
	select {
	case h.kick <- struct{}{}:
	default:
	}
}

// watched says whether somebody looks.
func (h *hub) watched() bool {
	h.mu.Lock()
	defer h.mu.Unlock()
	return len(h.viewers) > 0
}

// join adds a viewer, who is told by the channel. It returns nil when there are too many.
func (h *hub) join() chan struct{} {
	h.mu.Lock()
	defer h.mu.Unlock()
	if len(h.viewers) >= maxViewers {
		h.metrics.refused.Inc()
		return nil
	}
	if len(h.viewers) == 0 && h.view != nil && h.now().Sub(h.view.now) >= writeAtMost { // nobody kept it up to date
		h.view = nil
	}
	c := make(chan struct{}, 1)
	h.viewers[c] = struct{}{}
	h.metrics.viewers.Set(float64(len(h.viewers)))
	return c
}

func (h *hub) leave(c chan struct{}) {
	h.mu.Lock()
	defer h.mu.Unlock()
	delete(h.viewers, c)
	h.metrics.viewers.Set(float64(len(h.viewers)))
}

// run tells viewers of what is new until the context ends.
func (h *hub) run(ctx context.Context) error {
	regular := time.NewTicker(writeAtLeast)
	defer regular.Stop()
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-h.kick:
		case <-regular.C:
		}
		if !h.watched() {
			continue
		}
		h.mu.Lock()
		h.look()
		for c := range h.viewers {
			select {
			case c <- struct{}{}:
			default: // it has not even taken the one before
			}
		}
		took := h.took
		h.mu.Unlock()
		pause(ctx, max(writeAtMost, restFor*took))
	}
}

// look makes a new view; what was written of the old one is thrown away.
func (h *hub) look() {
	began := time.Now()
	h.view, h.kept = h.fleet.build(h.config(), h.file, h.now()), map[request]*rendered{}
	h.took = time.Since(began)
	h.metrics.renders.Inc()
	h.metrics.seconds.Observe(h.took.Seconds())
}

// fresh makes a new view when there is none that is young enough.
func (h *hub) fresh() {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.view == nil || h.now().Sub(h.view.now) >= writeAtMost || h.view.now.After(h.now()) {
		h.look()
	}
}

// parts are those of a page, as the newest view has them.
func (h *hub) parts(q request) (*rendered, *view, error) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.view == nil {
		h.look()
	}
	if r := h.kept[q]; r != nil {
		return r, h.view, nil
	}
	began := time.Now()
	r, err := h.render.parts(h.view, q)
	if err != nil {
		return nil, nil, err
	}
	h.metrics.seconds.Observe(time.Since(began).Seconds())
	if len(h.kept) < maxKept {
		h.kept[q] = r
	}
	return r, h.view, nil
}
