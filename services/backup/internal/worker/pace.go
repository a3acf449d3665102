package worker

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"sync"
	"sync/atomic"
	"time"

	"github.com/lifeboat-fleet/lifeboat/services/backup/internal/pipeline"
	"github.com/lifeboat-fleet/lifeboat/services/backup/internal/source"
)

// paceWindow is over how long the pace of a read is judged.
const paceWindow = time.Minute

// errCrawls is why a read is given up that goes on, but too slowly.
var errCrawls = errors.New("the snapshot crawls")

// paced is a stream whose reader must keep a pace. It passes on what the stream can do besides.
type paced struct {
	source.Stream
	read  atomic.Int64
	ended atomic.Bool
	quit  chan struct{}
	once  sync.Once
}

// watchPace gives a read up when less than kib KiB/s of it passed in any one window; a negative kib never does. The source
// holds a read transaction open for as long as it is read: with etcd the database grows meanwhile, whoever is slow.
func watchPace(s source.Stream, kib int, window time.Duration, giveUp context.CancelCauseFunc) *paced {
	p := &paced{Stream: s, quit: make(chan struct{})}
	if window == 0 {
		window = paceWindow
	}
	if kib < 0 {
		return p
	}
	least := int64(float64(kib<<10) * window.Seconds())
	go func() {
		tick := time.NewTicker(window)
		defer tick.Stop()
		for last := int64(0); ; {
			select {
			case <-tick.C:
			case <-p.quit:
				return
			}
			now := p.read.Load()
			if !p.ended.Load() && now-last < least {
				giveUp(fmt.Errorf("%w: %d KiB in %s, and min_kib_per_second is %d", errCrawls, (now-last)>>10, window, kib))
				return
			}
			last = now
		}
	}()
	return p
}

func (p *paced) stop() { p.once.Do(func() { close(p.quit) }) }

// Read implements source.Stream.
func (p *paced) Read(b []byte) (int, error) {
	n, err := p.Stream.Read(b)
	p.read.Add(int64(n))
	if err != nil {
		p.ended.Store(true)
	}
	return n, err
}

// Index passes on indexed; -1 is no index.
func (p *paced) Index() int64 {
	if i, ok := p.Stream.(indexed); ok {
		return i.Index()
	}
	return -1
}

// SizeHint passes on sized; 0 is unknown.
func (p *paced) SizeHint() int64 {
	if s, ok := p.Stream.(sized); ok {
		return s.SizeHint()
	}
	return 0
}

// digestedPace is a paced stream that hashes what it sends.
type digestedPace struct {
	*paced
	d pipeline.Digested
}

// Digest implements pipeline.Digested.
func (p digestedPace) Digest() (int64, [sha256.Size]byte) { return p.d.Digest() }
