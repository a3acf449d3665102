package drill_test

import (
	"bytes"
	"crypto/sha256"
	"math/rand/v2"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"

	"github.com/lifeboat-fleet/lifeboat/services/backup/internal/drill"
)

// TestSealedDamage changes a few bytes anywhere behind the meta pages and puts the right checksum behind them, as
// an etcd whose own disk went bad would. What it must show is that every one ends in a report: bbolt and etcd panic and
// exit on much of this.
func TestSealedDamage(t *testing.T) {
	seed := uint64(time.Now().UnixNano())
	t.Logf("seed %d", seed)
	r := rand.New(rand.NewPCG(seed, 0))
	c := startEtcd(t)
	put(t, c, 200)
	put(t, c, 50)
	data, manifest := take(t, c)
	body := data[:len(data)-sha256.Size]
	failed := 0
	for range 20 {
		bad := bytes.Clone(body)
		for range 1 + r.IntN(20) {
			bad[8192+r.IntN(len(bad)-8192)] = byte(r.IntN(256))
		}
		in := input(t, manifest, sealed(bad))
		// It may pass: not every byte of a database is in use.
		if rep := drill.Run(t.Context(), in); !rep.GetPassed() {
			assert.NotEmpty(t, rep.GetFailure())
			failed++
		}
		requireEmpty(t, in.Dir)
	}
	assert.Positive(t, failed)
}
