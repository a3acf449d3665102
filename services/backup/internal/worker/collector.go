package worker

import (
	"runtime/debug"
	"sync"
)

// goDefault is how much a heap may grow before it is collected, in percent, unless somebody says otherwise. An etcd of its own has that.
const goDefault = 100

// collector has the garbage collector work as it does in an etcd of its own while a drill loads one into this process. The service
// collects much more often, which costs nothing when all that it holds are the parts of an upload. An etcd that reads its database
// makes as much garbage as there is data, beside an index that grows: loading it then takes three times as long.
type collector struct {
	mu      sync.Mutex
	running int
	before  int
}

// relax lasts until restore is called.
func (c *collector) relax() (restore func()) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.running++; c.running == 1 {
		c.before = debug.SetGCPercent(goDefault)
		if c.before < 0 || c.before > goDefault {
			debug.SetGCPercent(c.before)
		}
	}
	return sync.OnceFunc(func() {
		c.mu.Lock()
		defer c.mu.Unlock()
		if c.running--; c.running == 0 {
			debug.SetGCPercent(c.before)
			debug.FreeOSMemory() // an etcd's worth of garbage
		}
	})
}
