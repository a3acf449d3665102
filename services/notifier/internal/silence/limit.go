package silence

import (
	"net"
	"net/netip"
	"sync"
	"time"

	"golang.org/x/time/rate"
)

const (
	// perSecond and burst are requests of one address. A team behind one proxy is one address, so it is enough for a team.
	perSecond, burst = 5, 60
	// maxAddresses bounds memory; the rest share one limit.
	maxAddresses = 10_000
	// sweep is how often the memory is looked through at most when it is full, or whoever fills it would make each request dear.
	sweep = 10 * time.Second
)

// limiter limits requests by address.
type limiter struct {
	mu    sync.Mutex
	all   map[netip.Prefix]*rate.Limiter
	rest  *rate.Limiter
	swept time.Time
}

func newLimiter() *limiter {
	return &limiter{all: map[netip.Prefix]*rate.Limiter{}, rest: rate.NewLimiter(perSecond, burst)}
}

// allow says whether the client with this host:port may be answered now.
func (l *limiter) allow(remote string, now time.Time) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	key := network(remote)
	one, ok := l.all[key]
	if !ok {
		if len(l.all) >= maxAddresses && now.Sub(l.swept) >= sweep {
			l.forget(now)
		}
		if len(l.all) >= maxAddresses {
			return l.rest.AllowN(now, 1)
		}
		one = rate.NewLimiter(perSecond, burst)
		l.all[key] = one
	}
	return one.AllowN(now, 1)
}

// forget drops the addresses that have all their tokens back: they are as if they had never come.
func (l *limiter) forget(now time.Time) {
	l.swept = now
	for key, one := range l.all {
		if one.TokensAt(now) >= burst {
			delete(l.all, key)
		}
	}
}

// network is an IPv4 address or the /64 of an IPv6 one, which is what one client has.
func network(remote string) netip.Prefix {
	host, _, err := net.SplitHostPort(remote)
	if err != nil {
		host = remote
	}
	addr, err := netip.ParseAddr(host)
	if err != nil {
		return netip.Prefix{}
	}
	addr = addr.Unmap().WithZone("")
	bits := 64
	if addr.Is4() {
		bits = 32
	}
	prefix, err := addr.Prefix(bits)
	if err != nil {
		return netip.Prefix{}
	}
	return prefix
}

const (
	// seenFor is twice as long as a signature of Slack's is good for, because a timestamp may lie as far ahead as behind.
	seenFor = 10 * time.Minute
	maxSeen = 10_000
)

// seen remembers which requests were accepted, so that a copy of one does nothing.
type seen struct {
	mu    sync.Mutex
	all   map[string]time.Time
	swept time.Time
}

func newSeen() *seen { return &seen{all: map[string]time.Time{}} }

// first says whether this is the first time, and remembers it.
func (s *seen) first(key string, now time.Time) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	if at, ok := s.all[key]; ok && now.Sub(at) < seenFor {
		return false
	}
	if len(s.all) >= maxSeen && now.Sub(s.swept) >= sweep {
		s.swept = now
		for k, at := range s.all {
			if now.Sub(at) >= seenFor {
				delete(s.all, k)
			}
		}
	}
	if len(s.all) < maxSeen {
		s.all[key] = now
	}
	return true
}

// forget takes a request back that was not accepted in the end.
func (s *seen) forget(key string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	delete(s.all, key)
}
