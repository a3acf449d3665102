package worker

import (
	"errors"
	"sync"

	"github.com/lifeboat-fleet/lifeboat/fleet/bus"
)

// drain is what becomes of the jobs at hand when the service stops.
type drain struct {
	on chan struct{}

	mu      sync.Mutex
	begun   bool
	running int
	totals  Drained
}

// Drained counts what became of the jobs that were at hand when the service began to stop.
type Drained struct {
	// Finished ended within the time of grace, or were cancelled; Failed did too, and are tried again or are dead letters.
	Finished, Failed int
	// HandedBack were given to another worker.
	HandedBack int
}

func newDrain() *drain { return &drain{on: make(chan struct{})} }

// Drain says that the service begins to stop. What has begun goes on until its context ends; what waits for its turn is handed back
// now. It returns how many jobs are at hand, and may be called more than once.
func (w *Worker) Drain() (jobs int) {
	w.drain.mu.Lock()
	defer w.drain.mu.Unlock()
	if !w.drain.begun {
		w.drain.begun = true
		close(w.drain.on)
	}
	return w.drain.running
}

// Running is how many jobs are at hand, also those that wait for their turn.
func (w *Worker) Running() int {
	w.drain.mu.Lock()
	defer w.drain.mu.Unlock()
	return w.drain.running
}

// Drained says what became of the jobs since Drain.
func (w *Worker) Drained() Drained {
	w.drain.mu.Lock()
	defer w.drain.mu.Unlock()
	return w.drain.totals
}

func (d *drain) isOn() bool {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.begun
}

func (d *drain) began() {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.running++
}

// ended counts a job that ended. One that is handed back may be quicker than Drain.
func (d *drain) ended(err error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.running--
	switch {
	case bus.IsHandBack(err):
		d.totals.HandedBack++
	case !d.begun:
	case err == nil, errors.Is(err, bus.ErrCancelled):
		d.totals.Finished++
	default:
		d.totals.Failed++
	}
}
