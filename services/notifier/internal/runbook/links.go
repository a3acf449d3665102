package runbook

import (
	"context"
	"net"
	"net/http"
	"net/url"
	"sync"
	"sync/atomic"
	"time"

	"github.com/lifeboat-fleet/lifeboat/fleet/config"
	"github.com/lifeboat-fleet/lifeboat/services/notifier/internal/notice"
)

const (
	goodFor = time.Hour
	deadFor = 10 * time.Minute
	// maxAsked bounds how many links are asked for at once.
	maxAsked = 8
	// patience is how long messages wait for answers altogether within patienceEvery: a message has many alerts, and when links
	// answer slowly all of them do.
	patience      = 500 * time.Millisecond
	patienceEvery = 10 * time.Second
)

// question is what is asked about a link.
type question struct {
	link string
	// base is the address below which a page in plain markdown is trusted for its steps; empty when none is.
	base string
	// private lets it lead to private addresses.
	private bool
}

// answer is what is known of a link.
type answer struct {
	// dead says why the link is dead in a few words; empty when it is good or nothing is known.
	dead string
	// gone says that the page itself is not there, rather than that its server is in trouble.
	gone bool
	// unsure says why nothing is known; empty when something is.
	unsure string
	steps  []notice.Step
	until  time.Time
}

// links asks for links in the background and remembers the answers.
type links struct {
	now             func() time.Time
	public, private *http.Client
	// site is whom our certificate is for.
	site atomic.Pointer[ownHost]

	mu     sync.Mutex
	known  map[question]answer
	asked  map[question]*asking
	closed bool
	wg     sync.WaitGroup
	// spent of the patience since began.
	spent time.Duration
	began time.Time
}

// asking is a request on its way; done is closed when its answer is known.
type asking struct {
	done   chan struct{}
	cancel context.CancelFunc
}

// ownHost is the host of base_url, as a URL has it, and the files for its TLS.
type ownHost struct {
	host  string
	files config.TLS
}

func newLinks(now func() time.Time, names *net.Resolver) *links {
	l := &links{now: now, known: map[question]answer{}, asked: map[question]*asking{}}
	l.site.Store(&ownHost{})
	host, files := func() string { return l.site.Load().host }, func() config.TLS { return l.site.Load().files }
	l.public, l.private = newClient(names, false, host, files), newClient(names, true, host, files)
	return l
}

// trust takes up the configuration in force.
func (l *links) trust(cfg config.Runbooks) {
	s := ownHost{files: cfg.TLS}
	if u, err := url.Parse(cfg.BaseURL); err == nil {
		s.host = u.Host
	}
	if *l.site.Load() != s {
		l.site.Store(&s)
	}
}

// close cancels what is on its way and waits for it.
func (l *links) close() {
	l.mu.Lock()
	l.closed = true
	for _, a := range l.asked {
		a.cancel()
	}
	l.mu.Unlock()
	l.wg.Wait()
}

// status is what is known of a link. It begins to ask when nothing is, and waits for the answer as long as there is patience left.
func (l *links) status(ctx context.Context, q question) answer {
	known, on, room := l.begin(ctx, q)
	if on == nil {
		return known
	}
	if room > 0 {
		from := time.Now()
		timer := time.NewTimer(room)
		defer timer.Stop()
		select {
		case <-on.done:
		case <-timer.C:
		case <-ctx.Done():
		}
		l.mu.Lock()
		l.spent += time.Since(from)
		l.mu.Unlock()
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.fresh(q)
}

// fresh is what is known and still counts. The lock is held.
func (l *links) fresh(q question) answer {
	if a, ok := l.known[q]; ok && l.now().Before(a.until) {
		return a
	}
	return answer{unsure: "no answer yet"}
}

// begin returns what is known, or the request that is on its way and how long it may be waited for.
func (l *links) begin(ctx context.Context, q question) (known answer, on *asking, room time.Duration) {
	l.mu.Lock()
	defer l.mu.Unlock()
	now := l.now()
	if a := l.fresh(q); !a.until.IsZero() {
		return a, nil, 0
	}
	on = l.asked[q]
	if on == nil {
		if l.closed || len(l.asked) >= maxAsked {
			return answer{unsure: "too many links are asked for"}, nil, 0
		}
		on = l.start(ctx, q)
	}
	if now.Sub(l.began) >= patienceEvery {
		l.began, l.spent = now, 0
	}
	return answer{}, on, patience - l.spent
}

// start asks in the background, for longer than the message waits. The lock is held.
func (l *links) start(ctx context.Context, q question) *asking {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), askWithin)
	on := &asking{done: make(chan struct{}), cancel: cancel}
	l.asked[q] = on
	l.wg.Go(func() {
		defer cancel()
		a := l.ask(ctx, q)
		l.mu.Lock()
		defer l.mu.Unlock()
		delete(l.asked, q)
		if !l.closed {
			l.remember(q, a)
		}
		close(on.done)
	})
	return on
}

// remember keeps an answer. The lock is held.
func (l *links) remember(q question, a answer) {
	now := l.now()
	a.until = now.Add(deadFor)
	if a.dead == "" && a.unsure == "" {
		a.until = now.Add(goodFor)
	}
	if len(l.known) >= maxKnown {
		var oldest question
		for k, other := range l.known {
			if oldest.link == "" || other.until.Before(l.known[oldest].until) {
				oldest = k
			}
		}
		delete(l.known, oldest)
	}
	l.known[q] = a
}
