// Command drill measures a drill of an etcd snapshot against a script of the stock tools that do the same, and a restore of Consul
// KV against `consul kv import`, all in one run with S3 in this process and all data in memory. `make bench-drill SIZE_MIB=n` runs
// it; its last line is JSON.
//
// What is compared, in each round one after the other:
//
//   - drill_s is from the beginning of the drill's phase "fetch" to the end of "compare", as the drill's own report has it: the
//     snapshot fetched, decrypted, decompressed and restored, a server that answers, and its content compared with the source's.
//   - script_s is how long script.sh takes: rclone copy, age -d into zstd -d, etcdutl snapshot restore, and the start of etcd until
//     it answers. It compares nothing.
//   - rss_mib is how much more memory the drill takes than etcd itself: the most that is resident of the worker's process during a
//     drill (VmHWM, set back before each one), less the most that was resident of the script's etcd process, which serves the same
//     data, until it answered. Both have the whole database mapped into memory, and both count that. It may be below zero.
//   - consul_restore_vs_stock is `lifeboat restore --to --apply` of a snapshot, from its start as a process to its end, with the
//     fetching and decrypting, over `consul kv import` of the file that came out of the same snapshot, each into a fresh server.
package main

import (
	"context"
	"encoding/json"
	"flag"
	"fmt"
	"os"
	"os/signal"
	"path/filepath"
	"text/tabwriter"

	"github.com/lifeboat-fleet/lifeboat/tests/bench/internal/testbed"
)

func main() {
	size := flag.Int("size-mib", 1024, "size of the etcd database, in MiB")
	rounds := flag.Int("rounds", 3, "how many times each thing is measured; the median counts")
	keys := flag.Int("consul-keys", 100_000, "how many keys the Consul holds; 0 leaves Consul out")
	binary := flag.String("lifeboat", ".bin/lifeboat", "the lifeboat `binary` to measure")
	scratch := flag.String("scratch", "/dev/shm", "`folder` in memory for all data")
	flag.Parse()
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt)
	defer stop()
	if err := run(ctx, *size, *rounds, *keys, *binary, *scratch); err != nil {
		fmt.Fprintln(os.Stderr, "bench-drill:", err)
		os.Exit(1)
	}
}

// figures are what is measured; the last line of the output.
type figures struct {
	DrillS        float64 `json:"drill_s"`
	ScriptS       float64 `json:"script_s"`
	VsScript      float64 `json:"vs_script"`
	RSSMiB        float64 `json:"rss_mib"`
	ConsulVsStock float64 `json:"consul_restore_vs_stock"`
}

// What must be reached.
const (
	maxVsScript      = 0.8
	maxRSS           = 128
	maxConsulVsStock = 0.25
)

func run(ctx context.Context, size, rounds, keys int, binary, scratch string) error {
	binary, err := filepath.Abs(binary)
	if err != nil {
		return err
	}
	dir, err := os.MkdirTemp(scratch, "lifeboat-bench-")
	if err != nil {
		return fmt.Errorf("making a folder for the data: %w", err)
	}
	defer os.RemoveAll(dir)
	bed, err := testbed.New(ctx, os.Stdout, dir, binary, "rclone", "age", "zstd", "curl", "etcdutl", "consul")
	if err != nil {
		return err
	}
	defer bed.Stop()
	b := &bench{bed}
	if err = b.Fill(ctx, size); err != nil {
		return err
	}
	var f figures
	if err = b.etcd(ctx, rounds, &f); err != nil {
		return err
	}
	if keys > 0 {
		if err = b.consul(ctx, rounds, keys, &f); err != nil {
			return err
		}
	}
	return report(f, size, keys)
}

func report(f figures, size, keys int) error {
	reached := func(value, limit float64) string {
		if value <= limit {
			return "reached"
		}
		return "MISSED"
	}
	t := tabwriter.NewWriter(os.Stdout, 0, 0, 2, ' ', 0)
	fmt.Fprintf(t, "\nFIGURE\tMEASURED\tMUST REACH\t\n")
	fmt.Fprintf(t, "drill / script of the stock tools, %d MiB\t%.2f\t<= %.2f\t%s\n", size, f.VsScript, maxVsScript, reached(f.VsScript, maxVsScript))
	fmt.Fprintf(t, "peak memory beyond etcd's own\t%.0f MiB\t<= %d MiB\t%s\n", f.RSSMiB, maxRSS, reached(f.RSSMiB, maxRSS))
	if keys > 0 {
		fmt.Fprintf(t, "restore / consul kv import, %d keys\t%.3f\t<= %.2f\t%s\n", keys, f.ConsulVsStock, maxConsulVsStock,
			reached(f.ConsulVsStock, maxConsulVsStock))
	}
	fmt.Fprintln(t)
	if err := t.Flush(); err != nil {
		return err
	}
	return json.NewEncoder(os.Stdout).Encode(f)
}
