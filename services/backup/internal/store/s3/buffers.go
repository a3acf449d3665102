package s3

import (
	"context"
	"fmt"

	"golang.org/x/sync/semaphore"
)

const (
	// S3 takes at most 10,000 parts of at least 5 MiB.
	minPart  = 8 * mib
	maxParts = 10_000
	// partMemory bounds the parts of all uploads of a process together. A part that is larger than that is alone.
	partMemory = 4 * minPart
	// What is smaller goes without a part's buffer: manifests, reports and marks.
	smallObject = 64 << 10
)

// partSize keeps an object of about size bytes below the limit of parts, with a tenth to spare.
func partSize(size int64) int64 { return max(minPart, size/(maxParts*9/10)+1) }

// buffers lends the memory of parts. The usual size is kept for the next upload instead of being left to the collector.
type buffers struct {
	room *semaphore.Weighted
	idle chan []byte
}

func newBuffers() *buffers {
	return &buffers{room: semaphore.NewWeighted(partMemory), idle: make(chan []byte, partMemory/minPart)}
}

func (b *buffers) take(ctx context.Context, size int64) ([]byte, error) {
	if err := b.room.Acquire(ctx, min(size, partMemory)); err != nil {
		return nil, fmt.Errorf("waiting for the memory of a part: %w", err)
	}
	if size == minPart {
		select {
		case p := <-b.idle:
			return p, nil
		default:
		}
	}
	return make([]byte, size), nil
}

func (b *buffers) give(p []byte) {
	if len(p) == minPart {
		select {
		case b.idle <- p:
		default:
		}
	}
	b.room.Release(min(int64(len(p)), partMemory))
}
