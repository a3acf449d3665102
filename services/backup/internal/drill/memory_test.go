package drill_test

import (
	"fmt"
	"runtime"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	clientv3 "go.etcd.io/etcd/client/v3"
)

// TestAnEtcdDrillLeavesNoMemory: etcd's own variables would keep the index of every key of the last server until the next one is loaded,
// which then takes twice the memory.
func TestAnEtcdDrillLeavesNoMemory(t *testing.T) {
	const keys = 100_000
	s := func() *shelf {
		c := startEtcd(t)
		for i := 0; i < keys; {
			var ops []clientv3.Op
			for range 100 {
				ops = append(ops, clientv3.OpPut(fmt.Sprintf("a-key-of-some-length/%d", i), ""))
				i++
			}
			_, err := c.Txn(t.Context()).Then(ops...).Commit()
			require.NoError(t, err)
		}
		return takeEtcd(t, c, "")
	}()
	heap := func() int64 {
		var m runtime.MemStats
		runtime.GC()
		runtime.GC()
		runtime.ReadMemStats(&m)
		return int64(m.HeapAlloc)
	}
	before := heap()
	requirePassed(t, s.input(t))
	grown := heap() - before
	t.Logf("%d MiB before, grown by %d KiB", before>>20, grown>>10)
	assert.Less(t, grown, int64(keys*50), "an index takes more than a hundred bytes for each key")
	runtime.KeepAlive(s)
}
