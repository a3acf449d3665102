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
	return store.Capabilities{ConditionalWrites: true, Endpoint: "memory", Bucket: "memory"}, nil
}

// Ping implements store.Store.
func (*Store) Ping(context.Context) error { return nil }
