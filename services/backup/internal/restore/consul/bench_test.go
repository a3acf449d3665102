package consul_test

import (
	"bytes"
	"encoding/json"
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/lifeboat-fleet/lifeboat/fleet/config"
	"github.com/lifeboat-fleet/lifeboat/fleet/fleettest/bintest"
	"github.com/lifeboat-fleet/lifeboat/services/backup/internal/restore"
	"github.com/lifeboat-fleet/lifeboat/services/backup/internal/restore/consul"
)

// benchKeys is how many keys a benchmark restores, as the figure of the project has them.
const benchKeys = 100_000

// generated is a snapshot of n keys, in order, whose values have size(i) bytes.
func generated(tb testing.TB, n int, size func(i int) int) []byte {
	tb.Helper()
	random := rand.New(rand.NewPCG(1, 2))
	var out bytes.Buffer
	sep := "["
	for i := range n {
		value := make([]byte, size(i))
		for j := range value {
			value[j] = byte(random.Uint32())
		}
		text, err := json.Marshal(value)
		require.NoError(tb, err)
		_, _ = fmt.Fprintf(&out, "%s\n{\"key\":\"config/service-%02d/key-%07d\",\"flags\":%d,\"value\":%s}", sep, i*64/n, i, i%3, text)
		sep = ","
	}
	out.WriteString("\n]\n")
	return out.Bytes()
}

// BenchmarkRestore restores the same keys with this package, by several numbers of transactions at once, and with the stock tool:
//
//	go test -run '^$' -bench Restore -benchtime 1x -count 3
func BenchmarkRestore(b *testing.B) {
	bin, err := bintest.Find("consul")
	require.NoError(b, err)
	for _, kind := range []struct {
		name string
		size func(i int) int
	}{
		{"100B", func(int) int { return 100 }},
		{"mixed", func(i int) int { return []int{8, 100, 100, 400, 2000}[i%5] }},
	} {
		data := generated(b, benchKeys, kind.size)
		file := filepath.Join(b.TempDir(), "kv.json")
		require.NoError(b, os.WriteFile(file, data, 0o600))
		fresh := func(b *testing.B, do func(address string)) {
			b.Helper()
			for range b.N {
				b.StopTimer()
				c := run(b, bintest.ConsulOptions{})
				b.StartTimer()
				do(c.Address)
				b.StopTimer()
				require.NoError(b, c.Kill())
			}
			b.ReportMetric(benchKeys*float64(b.N)/b.Elapsed().Seconds(), "keys/s")
		}
		for _, n := range []int{1, 4, 8, 16} {
			b.Run(kind.name+"/lifeboat-"+strconv.Itoa(n), func(b *testing.B) {
				fresh(b, func(address string) {
					sum, err := consul.RestoreWith(b.Context(), n, 0, 0, config.Consul{Address: address}, whole(data), consul.Selection{},
						restore.Options{Apply: true})
					require.NoError(b, err)
					require.EqualValues(b, benchKeys, sum.Created)
				})
			})
		}
		b.Run(kind.name+"/stock", func(b *testing.B) {
			fresh(b, func(address string) {
				out, err := exec.CommandContext(b.Context(), bin, "kv", "import", "-http-addr="+address, "@"+file).CombinedOutput()
				require.NoError(b, err, "%.1000s", out)
			})
		})
	}
}
