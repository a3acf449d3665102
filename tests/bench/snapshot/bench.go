package main

import (
	"context"
	"fmt"
	"io"
	"os"
	"os/exec"
	"strconv"
	"time"

	"github.com/lifeboat-fleet/lifeboat/fleet/fleettest/bintest"
	"github.com/lifeboat-fleet/lifeboat/fleet/fleettest/s3test"
	lifeboatv1 "github.com/lifeboat-fleet/lifeboat/proto/lifeboat/v1"
	"github.com/lifeboat-fleet/lifeboat/tests/bench/internal/testbed"
)

// bench measures on a test bed.
type bench struct {
	*testbed.Bed
	// stored is the newest snapshot's data.
	stored *lifeboatv1.Data
}

// etcdWorker starts a worker that takes snapshots of the etcd.
func (b *bench) etcdWorker(ctx context.Context) (*testbed.Worker, error) {
	return b.worker(ctx, b.S3.Endpoint, "etcd: {endpoints: ["+strconv.Quote(b.Etcd.Endpoint)+"]}")
}

func (b *bench) worker(ctx context.Context, endpoint, source string) (*testbed.Worker, error) {
	t, err := b.NewTarget(endpoint, source)
	if err != nil {
		return nil, err
	}
	return b.StartWorker(ctx, t, "snapshot")
}

// memory is the peak of a fresh worker's resident memory, in MiB, over two snapshots.
func (b *bench) memory(ctx context.Context) (float64, error) {
	w, err := b.etcdWorker(ctx)
	if err != nil {
		return 0, err
	}
	defer w.Stop()
	for range 2 {
		if _, err = b.snapshot(ctx, w); err != nil {
			return 0, err
		}
	}
	rss, err := testbed.PeakRSS(w.PID())
	fmt.Fprintf(b.Out, "peak memory of the worker: %.1f MiB\n", rss)
	return rss, err
}

// times measures the raw stream, the stock tools and a snapshot in turn, so that a noisy neighbour meets all of them.
func (b *bench) times(ctx context.Context, rounds int, f *figures) error {
	w, err := b.etcdWorker(ctx)
	if err != nil {
		return err
	}
	defer w.Stop()
	var raws, snapshots, stocks []time.Duration
	for i := range rounds {
		spent := b.cpu(w)
		raw, n, err := b.raw(ctx)
		if err != nil {
			return err
		}
		spent("raw stream")
		spent = b.cpu(w)
		took, err := b.snapshot(ctx, w)
		if err != nil {
			return err
		}
		spent("snapshot, with its read-back")
		stock, err := b.stock(ctx)
		if err != nil {
			return err
		}
		fmt.Fprintf(b.Out, "round %d: raw %.2f s (%.0f MiB/s), snapshot %.2f s, stock tools %.2f s\n", i+1, raw.Seconds(),
			float64(n>>20)/raw.Seconds(), took.Seconds(), stock.Seconds())
		raws, snapshots, stocks = append(raws, raw), append(snapshots, took), append(stocks, stock)
	}
	fmt.Fprintf(b.Out, "%d MiB of etcd are %d MiB in S3\n", b.stored.GetRaw().GetBytes()>>20, b.stored.GetStored().GetBytes()>>20)
	f.RawS, f.SnapshotS, f.StockS = testbed.Median(raws).Seconds(), testbed.Median(snapshots).Seconds(), testbed.Median(stocks).Seconds()
	f.Ratio, f.Speedup = f.SnapshotS/f.RawS, f.StockS/f.SnapshotS
	return nil
}

// cpu starts to count the processor time of everybody involved; what it returns prints it.
func (b *bench) cpu(w *testbed.Worker) func(what string) {
	names := []string{"etcd", "worker", "this process (raw reader and S3)"}
	pids := []int{b.Etcd.PID(), w.PID(), os.Getpid()}
	var before [3]float64
	for i, pid := range pids {
		before[i] = testbed.CPUSeconds(pid)
	}
	return func(what string) {
		fmt.Fprintf(b.Out, "  processor time of the %s:", what)
		for i, pid := range pids {
			fmt.Fprintf(b.Out, " %s %.2f s", names[i], testbed.CPUSeconds(pid)-before[i])
		}
		fmt.Fprintln(b.Out)
	}
}

// raw reads a snapshot to nowhere.
func (b *bench) raw(ctx context.Context) (time.Duration, int64, error) {
	start := time.Now()
	s, err := b.Client.SnapshotWithVersion(ctx)
	if err != nil {
		return 0, 0, fmt.Errorf("opening the raw stream: %w", err)
	}
	defer s.Snapshot.Close()
	n, err := io.Copy(io.Discard, s.Snapshot)
	if err != nil {
		return 0, n, fmt.Errorf("reading the raw stream: %w", err)
	}
	return time.Since(start), n, nil
}

// stock does with the stock tools what a cron script does: save, compress, upload.
func (b *bench) stock(ctx context.Context) (time.Duration, error) {
	env, err := b.RcloneEnv()
	if err != nil {
		return 0, err
	}
	file := b.Path("stock.db")
	defer os.Remove(file + ".zst")
	defer os.Remove(file)
	start := time.Now()
	for _, command := range [][]string{
		{"etcdctl", "--endpoints", b.Etcd.Endpoint, "snapshot", "save", file},
		{"zstd", "-q", "-T2", file, "-o", file + ".zst"},
		{"rclone", "copyto", "--expect-continue-timeout", "0", "--s3-no-check-bucket", file + ".zst", "s3:" + s3test.Bucket + "/stock.db.zst"},
	} {
		path, err := bintest.Find(command[0])
		if err != nil {
			return 0, err
		}
		cmd := exec.CommandContext(ctx, path, command[1:]...)
		cmd.Env = env
		if out, err := cmd.CombinedOutput(); err != nil {
			return 0, fmt.Errorf("%s: %w\n%s", command[0], err, out)
		}
	}
	return time.Since(start), nil
}

// snapshot asks for one and gives the time from its start to its commit, without reading back.
func (b *bench) snapshot(ctx context.Context, w *testbed.Worker) (time.Duration, error) {
	// Something changes, or there would be nothing to store.
	if _, err := b.Client.Put(ctx, "/registry/changed", time.Now().String()); err != nil {
		return 0, fmt.Errorf("changing a key: %w", err)
	}
	m, err := b.Snapshot(ctx, w)
	if err != nil {
		return 0, err
	}
	b.stored = m.GetData()
	return m.GetUploadedAt().AsTime().Sub(m.GetStartedAt().AsTime()) + m.GetCommittedAt().AsTime().Sub(m.GetVerification().GetAt().AsTime()), nil
}
