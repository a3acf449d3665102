// Package memstore is a store in memory, for tests of what stands above a store. It passes the conformance suite.
package memstore

import (
	"bytes"
	"context"
	"crypto/md5" //nolint:gosec // an ETag, as S3 computes it; not a security measure
	"encoding/hex"
	"fmt"
	"io"
	"maps"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/lifeboat-fleet/lifeboat/services/backup/internal/store"
)

type object struct {
	data     []byte
	modified time.Time
}

// Store keeps objects in a map.
type Store struct {
	mu      sync.Mutex
	objects map[string]object
}

// New returns an empty store.
func New() *Store { return &Store{objects: map[string]object{}} }

func describe(key string, o object) store.Object {
	sum := md5.Sum(o.data) //nolint:gosec // see the import
	return store.Object{Key: key, Size: int64(len(o.data)), ETag: `"` + hex.EncodeToString(sum[:]) + `"`, Modified: o.modified}
}

// Put implements store.Store.
func (s *Store) Put(ctx context.Context, key string, r io.Reader, _ int64, c store.Condition) (store.Object, error) {
	data, err := io.ReadAll(r)
	if err != nil {
		return store.Object{}, fmt.Errorf("storing %s: %w", key, err)
	}
	if ctx.Err() != nil {
		return store.Object{}, fmt.Errorf("storing %s: %w", key, ctx.Err())
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	old, exists := s.objects[key]
	if (c.Absent && exists) || (c.ETag != "" && (!exists || describe(key, old).ETag != c.ETag)) {
		return store.Object{}, fmt.Errorf("storing %s: %w", key, store.ErrPrecondition)
	}
	s.objects[key] = object{data, time.Now()}
	return describe(key, s.objects[key]), nil
}

// Get implements store.Store.
func (s *Store) Get(_ context.Context, key string) (io.ReadCloser, store.Object, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	o, ok := s.objects[key]
	if !ok {
		return nil, store.Object{}, fmt.Errorf("reading %s: %w", key, store.ErrNotFound)
	}
	return io.NopCloser(bytes.NewReader(o.data)), describe(key, o), nil
}

// GetRange implements store.Store.
func (s *Store) GetRange(ctx context.Context, key string, offset, length int64, etag string) (io.ReadCloser, store.Object, error) {
	if offset < 0 {
		return nil, store.Object{}, fmt.Errorf("reading %s: the offset %d is negative", key, offset)
	}
	r, o, err := s.Get(ctx, key)
	if err != nil {
		return nil, store.Object{}, err
	}
	if etag != "" && o.ETag != etag {
		return nil, store.Object{}, fmt.Errorf("reading %s: %w", key, store.ErrPrecondition)
	}
	if length < 0 {
		length = o.Size
	}
	data, err := io.ReadAll(r)
	if err != nil {
		return nil, store.Object{}, fmt.Errorf("reading %s: %w", key, err)
	}
	return io.NopCloser(io.NewSectionReader(bytes.NewReader(data), offset, length)), o, nil
}

// Head implements store.Store.
func (s *Store) Head(_ context.Context, key string) (store.Object, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	o, ok := s.objects[key]
	if !ok {
		return store.Object{}, fmt.Errorf("looking up %s: %w", key, store.ErrNotFound)
	}
	return describe(key, o), nil
}

// List implements store.Store.
func (s *Store) List(ctx context.Context, prefix string, fn func(store.Object) error) error {
	s.mu.Lock()
	keys := slices.Sorted(maps.Keys(s.objects))
	s.mu.Unlock()
	for _, k := range keys {
		if ctx.Err() != nil {
			return fmt.Errorf("listing %s: %w", prefix, ctx.Err())
		}
		if !strings.HasPrefix(k, prefix) {
			continue
		}
		o, err := s.Head(ctx, k)
		if err != nil {
			continue // removed since
		}
		if err := fn(o); err != nil {
			return err
		}
	}
	return nil
}

// Probe implements store.Store.
func (*Store) Probe(context.Context, string) (store.Capabilities, error) {
	return store.Capabilities{
		Endpoint: "memory", Bucket: "memory", ConditionalWrites: true, Versioning: "off", ObjectLock: "off", MultipartAbort: true,
	}, nil
}

// Ping implements store.Store.
func (*Store) Ping(context.Context) error { return nil }

// Versions implements store.Store: every object is one version.
func (s *Store) Versions(ctx context.Context, prefix string, fn func(store.Version) error) error {
	return s.List(ctx, prefix, func(o store.Object) error { return fn(store.Version{Object: o, Latest: true}) })
}

// Lock implements store.Store: nothing is locked here.
func (*Store) Lock(context.Context, store.Version) (store.Lock, error) { return store.Lock{}, nil }

// Remove implements store.Store.
func (s *Store) Remove(_ context.Context, v store.Version) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	delete(s.objects, v.Key)
	return nil
}

// Uploads implements store.Store: a Put here is one step, so none is ever unfinished.
func (*Store) Uploads(context.Context, string, func(store.Upload) error) error { return nil }

// Abort implements store.Store.
func (*Store) Abort(context.Context, store.Upload) error { return nil }
