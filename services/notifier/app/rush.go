package app

import (
	"context"
	"net/http"
	"sync"
	"time"
)

const (
	// rushBegins is how many webhooks at once are a rush. An Alertmanager has one for each group, and few of them at a time.
	rushBegins = 6
	// rushEnds is how long there must have been fewer. Between two that come one after the other there may be none for a moment.
	rushEnds = 20 * time.Millisecond
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
	// began and latest are when there were first and last so many at once.
	began, latest time.Time
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
	if r.count++; r.count < rushBegins {
		return
	}
	now := time.Now()
	if now.Sub(r.latest) > rushEnds {
		r.began = now
	}
	r.latest = now
}

func (r *rush) leave() {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.count--
}

// left is how long to wait until the rush may be over; 0 when there is none, or when it has lasted for too long.
func (r *rush) left() time.Duration {
	r.mu.Lock()
	defer r.mu.Unlock()
	now := time.Now()
	if r.latest.Sub(r.began) > rushLasts {
		return 0
	}
	return max(rushEnds-now.Sub(r.latest), 0)
}

// giveWay returns when there is no rush, or when it has been given way for long enough.
func (r *rush) giveWay(ctx context.Context) {
	for until := time.Now().Add(rushWait); ; {
		wait := min(r.left(), time.Until(until))
		if wait <= 0 {
			return
		}
		t := time.NewTimer(wait)
		select {
		case <-t.C:
		case <-ctx.Done():
			t.Stop()
			return
		}
	}
}
