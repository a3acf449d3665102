package deliver

import (
	"context"
	"sync"
	"time"

	"golang.org/x/time/rate"

	"github.com/lifeboat-fleet/lifeboat/fleet/config"
)

// limits keep our own traffic below what the chats allow, so that they do not throttle us.
type limits struct {
	mu sync.Mutex
	by map[string]*rate.Limiter
}

func newLimits() *limits { return &limits{by: map[string]*rate.Limiter{}} }

// wait returns when a message may be sent to a receiver.
func (l *limits) wait(ctx context.Context, r config.Receiver) error {
	key, limit, burst := "slack/"+r.Name, rate.Limit(1), 1
	if r.DingTalk != nil {
		// 20 in any minute, and being blocked for ten minutes above that: a burst of 5 and 15 more in the minute that
		// it begins.
		key, limit, burst = "dingtalk/"+r.Name, rate.Every(4*time.Second), 5
	}
	l.mu.Lock()
	limiter := l.by[key]
	if limiter == nil {
		limiter = rate.NewLimiter(limit, burst)
		l.by[key] = limiter
	}
	l.mu.Unlock()
	return limiter.Wait(ctx)
}
