// Package storetest is the conformance suite that every implementation of store.Store passes.
package storetest

import (
	"bytes"
	"context"
	crand "crypto/rand"
	"errors"
	"io"
	"math/rand/v2"
	"strings"
	"testing"
	"testing/iotest"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/lifeboat-fleet/lifeboat/services/backup/internal/store"
)

// Run checks a store that is empty at the start.
func Run(t *testing.T, s store.Store) {
	t.Helper()
	t.Run("what was put is read back", func(t *testing.T) { roundTrip(t, s) })
	t.Run("absent objects are not found", func(t *testing.T) { notFound(t, s) })
	t.Run("conditions", func(t *testing.T) { conditions(t, s) })
	t.Run("a failed reader leaves nothing", func(t *testing.T) { failedReader(t, s) })
	t.Run("a cancelled put leaves nothing", func(t *testing.T) { cancelled(t, s) })
	t.Run("list", func(t *testing.T) { list(t, s) })
	t.Run("ranges", func(t *testing.T) { ranges(t, s) })
	t.Run("versions and removal", func(t *testing.T) { removal(t, s) })
	t.Run("uploads", func(t *testing.T) { uploads(t, s) })
	t.Run("probe and ping", func(t *testing.T) { probe(t, s) })
}

func put(t *testing.T, s store.Store, key, data string, c store.Condition) error {
	t.Helper()
	_, err := s.Put(t.Context(), key, strings.NewReader(data), int64(len(data)), c)
	return err
}

func get(t *testing.T, s store.Store, key string) []byte {
	t.Helper()
	r, _, err := s.Get(t.Context(), key)
	require.NoError(t, err)
	b, err := io.ReadAll(r)
	require.NoError(t, err)
	require.NoError(t, r.Close())
	return b
}

// onlyReader hides everything but Read, as a pipeline does.
type onlyReader struct{ io.Reader }

func roundTrip(t *testing.T, s store.Store) {
	t.Helper()
	var seed [32]byte
	_, err := crand.Read(seed[:])
	require.NoError(t, err)
	t.Logf("seed %x", seed)
	chacha := rand.NewChaCha8(seed)
	for _, size := range []int{0, 1, 4096, 8 << 20, 8<<20 + 1, 21 << 20} {
		data := make([]byte, size)
		_, err := chacha.Read(data)
		require.NoError(t, err)
		o, err := s.Put(t.Context(), "round/trip", onlyReader{bytes.NewReader(data)}, 0, store.Condition{})
		require.NoError(t, err, "size %d", size)
		assert.True(t, bytes.Equal(data, get(t, s, "round/trip")), "size %d differs", size)
		head, err := s.Head(t.Context(), "round/trip")
		require.NoError(t, err)
		assert.Equal(t, int64(size), head.Size)
		assert.Equal(t, o.ETag, head.ETag)
	}
}

func notFound(t *testing.T, s store.Store) {
	t.Helper()
	_, err := s.Head(t.Context(), "no/such")
	require.ErrorIs(t, err, store.ErrNotFound)
	_, _, err = s.Get(t.Context(), "no/such")
	require.ErrorIs(t, err, store.ErrNotFound)
}

func conditions(t *testing.T, s store.Store) {
	t.Helper()
	require.NoError(t, put(t, s, "cond", "one", store.Condition{Absent: true}))
	require.ErrorIs(t, put(t, s, "cond", "two", store.Condition{Absent: true}), store.ErrPrecondition)
	assert.Equal(t, "one", string(get(t, s, "cond")), "a refused put changes nothing")

	seen, err := store.As(s.Head(t.Context(), "cond"))
	require.NoError(t, err)
	require.NoError(t, put(t, s, "cond", "three", seen))
	require.ErrorIs(t, put(t, s, "cond", "four", seen), store.ErrPrecondition, "it was changed since")
	assert.Equal(t, "three", string(get(t, s, "cond")))

	seen, err = store.As(s.Head(t.Context(), "cond-absent"))
	require.NoError(t, err)
	assert.Equal(t, store.Condition{Absent: true}, seen)

	// The same for an object of several parts, whose condition is checked when it is completed.
	big := strings.Repeat("x", 20<<20)
	require.NoError(t, put(t, s, "cond-big", big, store.Condition{Absent: true}))
	require.ErrorIs(t, put(t, s, "cond-big", big, store.Condition{Absent: true}), store.ErrPrecondition)
	seen, err = store.As(s.Head(t.Context(), "cond-big"))
	require.NoError(t, err)
	require.NoError(t, put(t, s, "cond-big", "y"+big, seen))
	require.ErrorIs(t, put(t, s, "cond-big", big, seen), store.ErrPrecondition)
}

func failedReader(t *testing.T, s store.Store) {
	t.Helper()
	boom := errors.New("the source died")
	for _, size := range []int{0, 100, 20 << 20} {
		r := io.MultiReader(bytes.NewReader(make([]byte, size)), iotest.ErrReader(boom))
		_, err := s.Put(t.Context(), "failed", r, 0, store.Condition{})
		require.ErrorIs(t, err, boom, "after %d bytes", size)
		_, err = s.Head(t.Context(), "failed")
		require.ErrorIs(t, err, store.ErrNotFound, "after %d bytes", size)
	}
}

func cancelled(t *testing.T, s store.Store) {
	t.Helper()
	ctx, cancel := context.WithCancel(t.Context())
	r := io.MultiReader(bytes.NewReader(make([]byte, 20<<20)), readerFunc(func(p []byte) (int, error) {
		cancel()
		return len(p), nil
	}))
	_, err := s.Put(ctx, "cancelled", io.LimitReader(r, 60<<20), 0, store.Condition{})
	require.ErrorIs(t, err, context.Canceled)
	_, err = s.Head(t.Context(), "cancelled")
	require.ErrorIs(t, err, store.ErrNotFound)
}

type readerFunc func([]byte) (int, error)

func (f readerFunc) Read(p []byte) (int, error) { return f(p) }

func list(t *testing.T, s store.Store) {
	t.Helper()
	want := []string{"list/a/1", "list/a/2", "list/b/1"}
	for _, k := range []string{"list/b/1", "list/a/2", "list/a/1", "listing"} {
		require.NoError(t, put(t, s, k, k, store.Condition{}))
	}
	var got []string
	require.NoError(t, s.List(t.Context(), "list/", func(o store.Object) error {
		got = append(got, o.Key)
		assert.Equal(t, int64(len(o.Key)), o.Size)
		return nil
	}))
	assert.Equal(t, want, got)
	stop := errors.New("enough")
	require.ErrorIs(t, s.List(t.Context(), "list/", func(store.Object) error { return stop }), stop)
}

func probe(t *testing.T, s store.Store) {
	t.Helper()
	require.NoError(t, s.Ping(t.Context()))
	for range 2 { // the second finds the first one's scratch object
		caps, err := s.Probe(t.Context(), "some/prefix")
		require.NoError(t, err)
		assert.True(t, caps.ConditionalWrites)
	}
}
