package ingest

import (
	"fmt"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
)

// BenchmarkCost is what a webhook takes without HTTP and NATS: reading, checking, naming, writing.
func BenchmarkCost(b *testing.B) {
	for _, alerts := range []int{1, 5, 20} {
		data := Payload(alerts, 0)
		b.Run(fmt.Sprintf("alerts=%d", alerts), func(b *testing.B) {
			b.SetBytes(int64(len(data)))
			b.ReportAllocs()
			for b.Loop() {
				n, err := parse(data)
				require.NoError(b, err)
				n.receivedAt = time.Now()
				split(n)
			}
		})
	}
}
