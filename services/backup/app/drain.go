package app

import (
	"context"
	"log/slog"
	"os"
	"os/signal"
	"sync"
	"sync/atomic"
	"syscall"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/promauto"

	"github.com/lifeboat-fleet/lifeboat/fleet/service"
	"github.com/lifeboat-fleet/lifeboat/services/backup/internal/worker"
)

// drainer makes a worker take no more jobs at SIGUSR1, while what it has goes on for as long as it needs. It stays up, ready and idle,
// until it is stopped: a supervisor would start what ends by itself anew, and that would take jobs again.
//
//	up --SIGUSR1--> draining --the last job ends--> drained --SIGTERM--> ended
//	                draining --SIGTERM--> ends as without a drain: --grace, and what is left is handed back
//
// There is no way back but another start. What the state is stands beside the pid file, for the command that waits for it.
type drainer struct {
	// begun is closed when it begins, for all who take jobs.
	begun chan struct{}
	came  chan os.Signal
	// pulls are the consumers that may still be given a job; ended tells that one of them is not any more.
	pulls atomic.Int32
	ended chan struct{}
	log   *slog.Logger
	w     *worker.Worker
	file  *pidFile
	gauge prometheus.Gauge
}

// newDrainer listens for the signal from now on.
func newDrainer() *drainer {
	d := &drainer{begun: make(chan struct{}), came: make(chan os.Signal, 1), ended: make(chan struct{}, 1)}
	signal.Notify(d.came, syscall.SIGUSR1)
	return d
}

// pulling notes that a consumer begins; it is to call ended when it takes no more jobs and has none.
func (d *drainer) pulling() (ended func()) {
	d.pulls.Add(1)
	return func() {
		d.pulls.Add(-1)
		select {
		case d.ended <- struct{}{}:
		default: // that something ended is known already
		}
	}
}

// start heeds the signal until stop. That is after the service's context has ended, so that it tells of the end of its jobs as well; and
// before there is a connection to NATS, because a worker without one has nothing to do.
func (d *drainer) start(ctx context.Context, base *service.Base, w *worker.Worker, file *pidFile) (stop func()) {
	d.log, d.w, d.file = base.Logger, w, file
	d.gauge = promauto.With(base.Registry).NewGauge(prometheus.GaugeOpts{
		Name: "lifeboat_worker_draining",
		Help: "Whether this worker was told to drain: 1 means that it takes no more jobs, until it is started anew.",
	})
	ctx, cancel := context.WithCancel(context.WithoutCancel(ctx))
	var wg sync.WaitGroup
	wg.Go(func() { d.run(ctx) })
	return func() {
		signal.Stop(d.came)
		cancel()
		wg.Wait()
	}
}

func (d *drainer) run(ctx context.Context) {
	select {
	case <-ctx.Done():
		return
	case <-d.came:
	}
	close(d.begun)
	d.gauge.Set(1)
	before := d.w.Drained().HandedBack
	d.log.InfoContext(ctx, "draining: no more jobs are taken until this worker is started anew, and those at hand go on for as long as they need",
		slog.Int("jobs", d.w.Running()))
	for idle := false; ; {
		s := d.tell(ctx, before)
		if s.idle() && !idle {
			d.log.InfoContext(ctx, "drained: nothing runs any more, and this worker may be stopped", slog.Int("handed_back", s.HandedBack))
		}
		idle = s.idle()
		select {
		case <-ctx.Done():
			d.tell(ctx, before)
			return
		case <-d.w.Changed():
		case <-d.ended:
		case <-d.came: // once more: there is nothing new, but whoever asks finds the state written
		}
	}
}

// tell writes what the worker still does. before are the jobs that were handed back before the drain.
func (d *drainer) tell(ctx context.Context, before int) drainState {
	pulling := d.pulls.Load() > 0 // before the jobs: what it was given last is among them
	s := drainState{Draining: true, Pulling: pulling, Jobs: d.w.Jobs(), HandedBack: d.w.Drained().HandedBack - before}
	if err := d.file.tell(s); err != nil {
		d.log.WarnContext(ctx, "could not write what this worker still does, which whoever drains it waits for", slog.Any("err", err))
	}
	return s
}
