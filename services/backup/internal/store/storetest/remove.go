package storetest

import (
	"errors"
	"io"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/lifeboat-fleet/lifeboat/services/backup/internal/store"
)

func ranges(t *testing.T, s store.Store) {
	t.Helper()
	const data = "0123456789"
	require.NoError(t, put(t, s, "ranged", data, store.Condition{}))
	head, err := s.Head(t.Context(), "ranged")
	require.NoError(t, err)
	for _, c := range []struct {
		offset, length int64
		want           string
	}{
		{0, -1, data},
		{0, 10, data},
		{0, 3, "012"},
		{4, 3, "456"},
		{4, -1, "456789"},
		{9, 1, "9"},
		{8, 100, "89"},
		{0, 100, data},
		{10, -1, ""},
		{10, 5, ""},
		{99, 5, ""},
		{99, -1, ""},
		{3, 0, ""},
	} {
		r, o, opened := s.GetRange(t.Context(), "ranged", c.offset, c.length, head.ETag)
		require.NoError(t, opened, "%d bytes from %d", c.length, c.offset)
		got, broke := io.ReadAll(r)
		require.NoError(t, broke, "%d bytes from %d", c.length, c.offset)
		require.NoError(t, r.Close())
		assert.Equal(t, c.want, string(got), "%d bytes from %d", c.length, c.offset)
		assert.Equal(t, int64(len(data)), o.Size, "the size is that of the whole object")
		assert.Equal(t, head.ETag, o.ETag)
	}
	_, _, err = s.GetRange(t.Context(), "ranged", -1, 5, "")
	require.Error(t, err)
	_, _, err = s.GetRange(t.Context(), "no/such", 1, 5, "")
	require.ErrorIs(t, err, store.ErrNotFound)

	require.NoError(t, put(t, s, "ranged", "another", store.Condition{}))
	for _, at := range [][2]int64{{0, -1}, {2, 3}, {2, -1}, {3, 0}, {50, -1}} {
		_, _, err = s.GetRange(t.Context(), "ranged", at[0], at[1], head.ETag)
		require.ErrorIs(t, err, store.ErrPrecondition, "%v of what is another object by now", at)
	}
}

func versionsOf(t *testing.T, s store.Store, prefix string) []store.Version {
	t.Helper()
	var all []store.Version
	require.NoError(t, s.Versions(t.Context(), prefix, func(v store.Version) error {
		all = append(all, v)
		return nil
	}))
	return all
}

func removal(t *testing.T, s store.Store) {
	t.Helper()
	for _, k := range []string{"gone/b", "gone/a", "gone-not"} {
		require.NoError(t, put(t, s, k, k, store.Condition{}))
	}
	all := versionsOf(t, s, "gone/")
	require.Len(t, all, 2)
	for i, key := range []string{"gone/a", "gone/b"} {
		assert.Equal(t, key, all[i].Key)
		assert.Equal(t, int64(len(key)), all[i].Size)
		assert.NotEmpty(t, all[i].ETag)
		assert.WithinDuration(t, time.Now(), all[i].Modified, time.Minute)
		assert.True(t, all[i].Latest)
		assert.False(t, all[i].Marker)
		lock, err := s.Lock(t.Context(), all[i])
		require.NoError(t, err)
		assert.False(t, lock.Held(time.Now()))
	}
	stop := errors.New("enough")
	require.ErrorIs(t, s.Versions(t.Context(), "gone/", func(store.Version) error { return stop }), stop)

	require.NoError(t, s.Remove(t.Context(), all[0]))
	require.NoError(t, s.Remove(t.Context(), all[0]), "removing what is gone is no error")
	_, err := s.Head(t.Context(), "gone/a")
	require.ErrorIs(t, err, store.ErrNotFound)
	left := versionsOf(t, s, "gone/")
	require.Len(t, left, 1, "what was removed is gone, without a marker")
	assert.Equal(t, "gone/b", left[0].Key)
	assert.Equal(t, "gone-not", string(get(t, s, "gone-not")))
}

func uploads(t *testing.T, s store.Store) {
	t.Helper()
	require.NoError(t, s.Uploads(t.Context(), "", func(u store.Upload) error {
		return errors.New("left behind: " + u.Key)
	}), "nothing that failed before left an upload")
	require.NoError(t, s.Abort(t.Context(), store.Upload{Key: "no/such", ID: "00000000-0000-0000-0000-000000000000"}),
		"aborting what is gone is no error")
}
