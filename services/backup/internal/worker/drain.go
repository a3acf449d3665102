package worker

import (
	"cmp"
	"errors"
	"slices"
	"sync"
	"time"

	"github.com/lifeboat-fleet/lifeboat/fleet/bus"
	"github.com/lifeboat-fleet/lifeboat/fleet/config"
)

// drain is what becomes of the jobs at hand when the service stops.
type drain struct {
	on chan struct{}

	mu      sync.Mutex
	begun   bool
	running map[*bus.Message]Running
	totals  Drained
	changed chan struct{}
}

// Running is a job at hand, also one that waits for its turn.
type Running struct {
	Work   config.Work `json:"work"`
	Target string      `json:"target"`
	JobID  string      `json:"job_id"`
	// Since is when this worker got it.
	Since time.Time `json:"since"`
}

// Drained counts what became of the jobs that were at hand when the service began to stop.
type Drained struct {
	// Finished ended within the time of grace, or were cancelled; Failed did too, and are tried again or are dead letters.
	Finished, Failed int
	// HandedBack were given to another worker.
	HandedBack int
}

func newDrain() *drain {
	return &drain{on: make(chan struct{}), running: map[*bus.Message]Running{}, changed: make(chan struct{}, 1)}
}

// Drain says that the service begins to stop. What has begun goes on until its context ends; what waits for its turn is handed back
// now. It returns how many jobs are at hand, and may be called more than once.
func (w *Worker) Drain() (jobs int) {
	w.drain.mu.Lock()
	defer w.drain.mu.Unlock()
	if !w.drain.begun {
		w.drain.begun = true
		close(w.drain.on)
	}
	return len(w.drain.running)
}

// Running is how many jobs are at hand, also those that wait for their turn.
func (w *Worker) Running() int {
	w.drain.mu.Lock()
	defer w.drain.mu.Unlock()
	return len(w.drain.running)
}

// Jobs are those at hand, the oldest first.
func (w *Worker) Jobs() []Running {
	w.drain.mu.Lock()
	defer w.drain.mu.Unlock()
	all := make([]Running, 0, len(w.drain.running))
	for _, r := range w.drain.running {
		all = append(all, r)
	}
	slices.SortFunc(all, func(a, b Running) int { return cmp.Or(a.Since.Compare(b.Since), cmp.Compare(a.JobID, b.JobID)) })
	return all
}

// Changed gets a value after Jobs has changed; several changes may be one value. It is for one reader.
func (w *Worker) Changed() <-chan struct{} { return w.drain.changed }

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

func (d *drain) began(j job, at time.Time) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.running[j.msg] = Running{Work: j.work, Target: j.target.Name, JobID: j.id, Since: at}
	d.tell()
}

// ended counts a job that ended. One that is handed back may be quicker than Drain.
func (d *drain) ended(j job, err error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	delete(d.running, j.msg)
	d.tell()
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

func (d *drain) tell() {
	select {
	case d.changed <- struct{}{}:
	default:
	}
}
