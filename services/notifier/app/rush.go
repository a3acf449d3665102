package app

import (
	"context"
	"net/http"
	"sync"
	"time"
)

const (
	// So many webhooks at once are a rush, which is over when so few are left. An Alertmanager has one for each group, and few of them at
	// a time.
	rushBegins = 6
	rushEnds   = 1
	// rushWait is how long one delivery gives way: what was taken is still told, faster than any chat takes it.
	rushWait = 100 * time.Millisecond
	// What lasts longer than this is no rush, but how things are.
	rushLasts = 10 * time.Second
)

// rush makes deliveries give way while many webhooks come at once: what is not stored yet can be lost, what is stored only comes
// later. An Alertmanager that is not answered in time sends everything again, which makes a rush worse.
type rush struct {
	mu    sync.Mutex
	count int
	// over is closed when a rush ends; nil while there is none. It began at since.
	over  chan struct{}
	since time.Time
}

// watch counts the webhooks that are being taken.
func (r *rush) watch(next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, req *http.Request) {
		r.enter()
		defer r.leave()
		next.ServeHTTP(w, req)
	})
}

func (r *rush) enter() {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.count++; r.count >= rushBegins && r.over == nil {
		r.over, r.since = make(chan struct{}), time.Now()
	}
}

func (r *rush) leave() {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.count--; r.count <= rushEnds && r.over != nil {
		close(r.over)
		r.over = nil
	}
}

// giveWay returns when there is no rush, or when it has been given way for long enough.
func (r *rush) giveWay(ctx context.Context) {
	r.mu.Lock()
	over, since := r.over, r.since
	r.mu.Unlock()
	if over == nil || time.Since(since) > rushLasts {
		return
	}
	t := time.NewTimer(rushWait)
	defer t.Stop()
	select {
	case <-over:
	case <-t.C:
	case <-ctx.Done():
	}
}
