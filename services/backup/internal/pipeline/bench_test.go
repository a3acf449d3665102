package pipeline_test

import (
	"bytes"
	"io"
	"math/rand/v2"
	"testing"

	"filippo.io/age"
	"github.com/klauspost/compress/zstd"

	"github.com/lifeboat-fleet/lifeboat/services/backup/internal/pipeline"
)

const benchSize = 64 << 20

// BenchmarkEncode is the pipeline as a worker runs it, beside the raw limit: zstd alone at the same level.
func BenchmarkEncode(b *testing.B) {
	raw := text(rand.New(rand.NewPCG(1, 1)), benchSize)
	id, err := age.GenerateX25519Identity()
	if err != nil {
		b.Fatal(err)
	}
	b.Run("zstd-alone", func(b *testing.B) {
		b.SetBytes(benchSize)
		for b.Loop() {
			z, err := zstd.NewWriter(io.Discard, zstd.WithEncoderConcurrency(2))
			if err != nil {
				b.Fatal(err)
			}
			if _, err := io.Copy(z, bytes.NewReader(raw)); err != nil {
				b.Fatal(err)
			}
			if err := z.Close(); err != nil {
				b.Fatal(err)
			}
		}
	})
	for name, recipients := range map[string][]age.Recipient{"clear": nil, "encrypted": {id.Recipient()}} {
		b.Run(name, func(b *testing.B) {
			b.SetBytes(benchSize)
			for b.Loop() {
				e := pipeline.Encode(bytes.NewReader(raw), recipients)
				if _, err := io.Copy(io.Discard, e); err != nil {
					b.Fatal(err)
				}
				if err := e.Close(); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}
