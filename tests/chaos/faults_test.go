//go:build chaos

package chaos

import (
	"context"
	"errors"
	"fmt"
	"math"
	"math/rand/v2"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/lifeboat-fleet/lifeboat/fleet/fleettest/s3test"
)

// faults makes them until its context ends, and counts them.
type faults struct {
	*fleet
	seed uint64

	mu    sync.Mutex
	done  map[string]int
	begin time.Time
	log   *os.File
}

// rand is a sequence of its own for each that makes faults, so that a seed means the same whatever the others take.
func (f *faults) rand(stream uint64) *rand.Rand { return rand.New(rand.NewPCG(f.seed, stream)) }

func (f *faults) note(kind, format string, args ...any) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if kind != "" {
		f.done[kind]++
	}
	fmt.Fprintf(f.log, "%s %6.1fs %s: %s\n", time.Now().UTC().Format("15:04:05.000"), time.Since(f.begin).Seconds(), kind, fmt.Sprintf(format, args...))
}

// run makes faults of all kinds at once until the context ends, and undoes the last ones. An error is one of the test, or a
// cluster that does not recover.
func (f *faults) run(ctx context.Context) error {
	f.proxy.Handle(f.breakStore(ctx, f.rand(5)))
	defer f.proxy.Handle(nil)
	var g errgroup.Group
	g.Go(func() error { return f.breakServers(ctx, f.rand(1)) })
	g.Go(func() error { return f.breakServices(ctx, f.rand(2), "scheduler", f.schedulers, 8) })
	g.Go(func() error {
		return f.breakServices(ctx, f.rand(3), "worker", f.workers, (ackWait + 4*time.Second).Seconds())
	})
	g.Go(func() error { return f.stepClocks(ctx, f.rand(4)) })
	return g.Wait()
}

// recovery is how long the cluster may take to be whole again after a fault.
const recovery = 90 * time.Second

// breakServers breaks one NATS server after the other, each only when the cluster is whole: with two of three down, or one down
// and another without its data, nothing could be asked of it. Every kind comes once before any comes again.
func (f *faults) breakServers(ctx context.Context, r *rand.Rand) error {
	type fault struct {
		kind   string
		leader bool
	}
	all := []fault{{"kill", true}, {"stop", true}, {"wipe", true}, {"kill", false}, {"stop", false}, {"wipe", false}}
	for i := 0; ; i = (i + 1) % len(all) {
		if i == 0 {
			r.Shuffle(len(all), func(a, b int) { all[a], all[b] = all[b], all[a] })
		}
		if !rest(ctx, seconds(r, 1, 4)) {
			return nil
		}
		leader, err := f.leader(context.WithoutCancel(ctx))
		if err != nil {
			return fmt.Errorf("before a fault: %w", err)
		}
		n, role := leader, "leader"
		if !all[i].leader {
			n, role = (leader+1+r.IntN(servers-1))%servers, "follower"
		}
		f.note("NATS "+all[i].kind+" "+role, "%s", f.nats[n].Name)
		// What was begun is ended, so that it does not depend on where in the run the last fault falls.
		if err := f.breakServer(context.WithoutCancel(ctx), r, n, all[i].kind); err != nil {
			return fmt.Errorf("%s of %s: %w", all[i].kind, f.nats[n].Name, err)
		}
		f.note("", "%s is back", f.nats[n].Name)
	}
}

func (f *faults) breakServer(ctx context.Context, r *rand.Rand, n int, kind string) error {
	server := f.nats[n]
	switch kind {
	case "stop":
		// An election takes four to nine seconds, and jobs are given to others after AckWait.
		err := server.Signal(syscall.SIGSTOP)
		rest(ctx, seconds(r, 10, 14))
		if err = errors.Join(err, server.Signal(syscall.SIGCONT)); err != nil {
			return err
		}
	default:
		if err := server.Kill(); err != nil {
			return err
		}
		if kind == "wipe" {
			if err := os.RemoveAll(filepath.Join(filepath.Dir(server.Log()), "data")); err != nil {
				return err
			}
		}
		rest(ctx, seconds(r, 0.5, 5))
		if err := server.Restart(ctx); err != nil {
			return err
		}
	}
	return f.whole(ctx)
}

// whole waits until the cluster is healthy.
func (f *faults) whole(ctx context.Context) error {
	bounded, cancel := context.WithTimeout(ctx, recovery)
	defer cancel()
	for {
		err := f.healthy(bounded)
		if err == nil {
			return nil
		}
		if bounded.Err() != nil {
			return fmt.Errorf("the cluster is not whole after %s: %w", recovery, err)
		}
		rest(bounded, 200*time.Millisecond)
	}
}

// breakServices kills, stops and ends services at random, one at a time, and starts them again.
func (f *faults) breakServices(ctx context.Context, r *rand.Rand, what string, all []*service, longestStop float64) error {
	ways := []string{"kill -9", "SIGTERM", "SIGSTOP"}
	for i := 0; ; i++ {
		if !rest(ctx, seconds(r, 0.5, 5)) {
			return nil
		}
		s, kind := all[r.IntN(len(all))], ways[r.IntN(len(ways))]
		if i < len(ways) {
			kind = ways[i]
		}
		f.note(what+" "+kind, "%s", s.name)
		var err error
		switch kind {
		case "kill -9":
			err = s.kill()
			rest(ctx, seconds(r, 0, 4))
			err = errors.Join(err, s.start())
		case "SIGTERM":
			end, cancel := context.WithTimeout(context.WithoutCancel(ctx), 60*time.Second)
			err = errors.Join(s.terminate(end), s.start())
			cancel()
		default:
			err = s.signal(syscall.SIGSTOP)
			rest(ctx, seconds(r, 1, longestStop))
			err = errors.Join(err, s.signal(syscall.SIGCONT))
		}
		if err != nil {
			return fmt.Errorf("%s of %s: %w", kind, s.name, err)
		}
	}
}

// stepClocks sets the clock of one scheduler at a time up to 90 seconds wrong, and right again.
func (f *faults) stepClocks(ctx context.Context, r *rand.Rand) error {
	for i := 0; ; i++ {
		if !rest(ctx, seconds(r, 2, 8)) {
			return nil
		}
		kind, offset := "clock behind", -seconds(r, 1, 90)
		if i == 1 || (i > 1 && r.IntN(2) == 0) {
			// Mostly small steps, and one large one: after a step ahead the fleet has nothing to do for as long.
			kind, offset = "clock ahead", seconds(r, 1, 1+89*math.Pow(r.Float64(), 3))
			if i == 1 {
				offset = seconds(r, 30, 90)
			}
		}
		offset = offset.Round(time.Millisecond)
		s := f.schedulers[r.IntN(len(f.schedulers))]
		f.note(kind, "%s by %s", s.name, offset)
		err := s.step(offset)
		rest(ctx, seconds(r, 2, 8))
		if err = errors.Join(err, s.step(0)); err != nil {
			return err
		}
	}
}

// kinds are all faults.
func kinds() []string {
	return []string{
		"NATS kill leader", "NATS kill follower", "NATS stop leader", "NATS stop follower", "NATS wipe leader", "NATS wipe follower",
		"scheduler kill -9", "scheduler SIGTERM", "scheduler SIGSTOP", "worker kill -9", "worker SIGTERM", "worker SIGSTOP",
		"clock ahead", "clock behind", "S3 slow", "S3 answer lost", "S3 503",
	}
}

// enough says that each kind of fault was made, and the last server that was broken is back.
func (f *faults) enough() bool {
	f.mu.Lock()
	defer f.mu.Unlock()
	return !slices.ContainsFunc(kinds(), func(kind string) bool { return f.done[kind] == 0 })
}

// breakStore makes some requests to S3 slow, so that services are killed in the middle of jobs, and some fail. Requests come in
// no certain order, so here a seed means how many, and not which.
func (f *faults) breakStore(ctx context.Context, r *rand.Rand) func(*http.Request) s3test.Fault {
	var mu sync.Mutex
	return func(req *http.Request) s3test.Fault {
		mu.Lock()
		dice, delay := r.IntN(400), seconds(r, 0.2, 4)
		mu.Unlock()
		if ctx.Err() != nil {
			return s3test.Pass()
		}
		switch {
		case dice < 12:
			f.note("S3 slow", "%s by %s", s3test.Op(req), delay)
			rest(ctx, delay)
		case dice == 12:
			f.note("S3 answer lost", "%s", s3test.Op(req))
			return s3test.ResetAfter()
		case dice == 13:
			f.note("S3 503", "%s", s3test.Op(req))
			return s3test.SlowDown()
		}
		return s3test.Pass()
	}
}

// table is what was done, for the report.
func (f *faults) table() string {
	f.mu.Lock()
	defer f.mu.Unlock()
	var b strings.Builder
	for _, kind := range kinds() {
		fmt.Fprintf(&b, "  %-44s %6d\n", kind, f.done[kind])
	}
	return b.String()
}
