// Command snapshot measures a snapshot against the raw stream that it reads and against the stock tools that do the same,
// all in one run on one etcd, with S3 in memory. `make bench-snapshot SIZE_MIB=n` runs it; its last line is JSON.
package main

import (
	"context"
	"encoding/json"
	"flag"
	"fmt"
	"os"
	"os/signal"
	"path/filepath"
	"slices"
	"text/tabwriter"

	"github.com/lifeboat-fleet/lifeboat/tests/bench/internal/testbed"
)

func main() {
	size := flag.Int("size-mib", 1024, "size of the etcd database, in MiB, that the times are measured at")
	rounds := flag.Int("rounds", 3, "how many times each thing is measured; the median counts")
	binary := flag.String("lifeboat", ".bin/lifeboat", "the lifeboat `binary` to measure")
	scratch := flag.String("scratch", "/dev/shm", "`folder` in memory for all data")
	flag.Parse()
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt)
	defer stop()
	if err := run(ctx, *size, *rounds, *binary, *scratch); err != nil {
		fmt.Fprintln(os.Stderr, "bench-snapshot:", err)
		os.Exit(1)
	}
}

// figures are what is measured; the last line of the output.
type figures struct {
	RawS      float64 `json:"raw_s"`
	SnapshotS float64 `json:"snapshot_s"`
	Ratio     float64 `json:"ratio"`
	StockS    float64 `json:"stock_s"`
	Speedup   float64 `json:"speedup"`
	RSSSmall  float64 `json:"rss_mib_small"`
	RSSLarge  float64 `json:"rss_mib_large"`
	Unchanged int64   `json:"unchanged_bytes"`
}

// The sizes, in MiB, that memory is compared at.
const (
	smallMiB = 256
	largeMiB = 2048
)

func run(ctx context.Context, size, rounds int, binary, scratch string) error {
	binary, err := filepath.Abs(binary)
	if err != nil {
		return err
	}
	dir, err := os.MkdirTemp(scratch, "lifeboat-bench-")
	if err != nil {
		return fmt.Errorf("making a folder for the data: %w", err)
	}
	defer os.RemoveAll(dir)
	bed, err := testbed.New(ctx, os.Stdout, dir, binary, "etcdctl", "zstd", "rclone")
	if err != nil {
		return err
	}
	defer bed.Stop()
	b := &bench{Bed: bed}
	var f figures
	steps := []struct {
		mib  int
		work func() error
	}{
		{smallMiB, func() (err error) { f.RSSSmall, err = b.memory(ctx); return err }},
		{size, func() error { return b.times(ctx, rounds, &f) }},
		{largeMiB, func() (err error) { f.RSSLarge, err = b.memory(ctx); return err }},
	}
	slices.SortStableFunc(steps, func(a, b struct {
		mib  int
		work func() error
	},
	) int {
		return a.mib - b.mib
	})
	for _, s := range steps {
		if err = b.Fill(ctx, s.mib); err != nil {
			return err
		}
		if err = s.work(); err != nil {
			return err
		}
	}
	if f.Unchanged, err = b.unchanged(ctx); err != nil {
		return err
	}
	return report(f, size)
}

func report(f figures, size int) error {
	t := tabwriter.NewWriter(os.Stdout, 0, 0, 2, ' ', 0)
	fmt.Fprintf(t, "\nFIGURE\tMEASURED\tMUST REACH\n")
	fmt.Fprintf(t, "snapshot / raw stream, %d MiB\t%.2f\t<= 1.35\n", size, f.Ratio)
	fmt.Fprintf(t, "stock tools / snapshot\t%.2f\t>= 1.8\n", f.Speedup)
	fmt.Fprintf(t, "peak memory at %d MiB and %d MiB\t%.0f and %.0f MiB\tboth <= 128, within 10 %%\n", smallMiB, largeMiB, f.RSSSmall, f.RSSLarge)
	fmt.Fprintf(t, "bytes written for an unchanged Consul KV of %d keys\t%d\t<= 8192\n\n", consulKeys, f.Unchanged)
	if err := t.Flush(); err != nil {
		return err
	}
	return json.NewEncoder(os.Stdout).Encode(f)
}
