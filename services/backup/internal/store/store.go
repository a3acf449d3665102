// Package store is the contract of the place where snapshots are kept: an object store with conditional writes. Its
// implementations are store/s3 and, for tests, store/memstore; both pass store/storetest.
package store

import (
	"context"
	"errors"
	"io"
	"time"
)

// ErrNotFound means that no object has the key.
var ErrNotFound = errors.New("no such object")

// ErrPrecondition means that the object is not as the condition requires it; nothing was written.
var ErrPrecondition = errors.New("the object exists or was changed by somebody else")

// Object describes a stored object.
type Object struct {
	Key      string
	Size     int64
	ETag     string
	Modified time.Time
}

// Condition limits a write. The zero value always writes.
type Condition struct {
	// Absent: write only if no object has the key (If-None-Match: *).
	Absent bool
	// ETag: write only if the object has this ETag (If-Match).
	ETag string
}

// As is the condition that an object is still as Head saw it, or still absent when Head returned ErrNotFound.
func As(o Object, err error) (Condition, error) {
	switch {
	case errors.Is(err, ErrNotFound):
		return Condition{Absent: true}, nil
	case err != nil:
		return Condition{}, err
	}
	return Condition{ETag: o.ETag}, nil
}

// Capabilities is what the store was seen to do.
type Capabilities struct {
	ConditionalWrites bool
	Endpoint          string
	Bucket            string
}

// Store keeps objects. It is safe for concurrent use. Errors wrap ErrNotFound and ErrPrecondition where they apply; any
// other error may be tried again. Calls retry short failures by themselves and end when the context ends.
type Store interface {
	// Put stores what r gives until io.EOF. Nothing is visible under the key before all of it is stored; when r fails or
	// the context ends, nothing is left behind. sizeHint is about how many bytes will come, 0 if unknown. Memory does
	// not grow with the object.
	Put(ctx context.Context, key string, r io.Reader, sizeHint int64, c Condition) (Object, error)
	// Get opens an object. The caller closes it.
	Get(ctx context.Context, key string) (io.ReadCloser, Object, error)
	// Head describes an object without reading it.
	Head(ctx context.Context, key string) (Object, error)
	// List calls fn for each object whose key starts with prefix, in the order of keys, until fn returns an error.
	List(ctx context.Context, prefix string, fn func(Object) error) error
	// Probe writes to a scratch key below prefix and says what the store does with it.
	Probe(ctx context.Context, prefix string) (Capabilities, error)
	// Ping says whether the bucket answers.
	Ping(ctx context.Context) error
}
