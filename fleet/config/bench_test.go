package config_test

import (
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/lifeboat-fleet/lifeboat/fleet/config"
)

// fleet is a configuration of n targets that differ in everything that differs in a real fleet.
func fleet(n int) []byte {
	var b strings.Builder
	b.WriteString("nats: {url: 'nats://127.0.0.1:4222'}\nstore: {bucket: backups, endpoint: 'http://127.0.0.1:9000'}\ntargets:\n")
	zones := []string{"", "    time_zone: Asia/Shanghai\n", "    time_zone: America/New_York\n"}
	for i := range n {
		fmt.Fprintf(&b, "  - name: etcd-%06d\n    etcd: {endpoints: ['http://10.%d.%d.%d:2379']}\n    schedule: '%d */6 * * *'\n%s    rpo: 12h\n",
			i, i>>16, i>>8&255, i&255, i%60, zones[i%len(zones)])
	}
	return []byte(b.String())
}

// BenchmarkLoad100k is what a scheduler of 100,000 targets does first. live-MiB is what stays of it.
func BenchmarkLoad100k(b *testing.B) {
	path := filepath.Join(b.TempDir(), "lifeboat.yaml")
	require.NoError(b, os.WriteFile(path, fleet(100_000), 0o600))
	b.ReportAllocs()
	var before, after runtime.MemStats
	runtime.GC()
	runtime.ReadMemStats(&before)
	var cfg *config.Config
	for b.Loop() {
		var err error
		cfg, err = config.Load(path)
		require.NoError(b, err)
		require.Len(b, cfg.Targets, 100_000)
	}
	runtime.GC()
	runtime.ReadMemStats(&after)
	b.ReportMetric(float64(after.HeapAlloc-before.HeapAlloc)/(1<<20), "live-MiB")
	runtime.KeepAlive(cfg)
}

// BenchmarkTargetByName is what a worker does for every job.
func BenchmarkTargetByName(b *testing.B) {
	cfg, err := config.Parse("lifeboat.yaml", fleet(10_000))
	require.NoError(b, err)
	for b.Loop() {
		_, ok := cfg.Target("etcd-009999")
		require.True(b, ok)
	}
}
