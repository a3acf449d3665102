package catalog_test

import (
	"strings"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	lifeboatv1 "github.com/lifeboat-fleet/lifeboat/proto/lifeboat/v1"
	"github.com/lifeboat-fleet/lifeboat/services/backup/internal/catalog"
	"github.com/lifeboat-fleet/lifeboat/services/backup/internal/store"
	"github.com/lifeboat-fleet/lifeboat/services/backup/internal/store/memstore"
)

func TestChoose(t *testing.T) {
	c := catalog.New(memstore.New(), "p")
	pick := func(n int) int { return n / 2 }
	for _, selector := range []string{"", "latest", "oldest", "random"} {
		_, err := c.Choose(t.Context(), target, selector, pick)
		require.ErrorIs(t, err, catalog.ErrNoSnapshot, selector)
	}
	for _, id := range []string{"1", "2", "3"} {
		require.NoError(t, c.Commit(t.Context(), &lifeboatv1.Manifest{Format: catalog.Format, Id: id, Target: target}))
	}
	for selector, want := range map[string]string{"": "3", "latest": "3", "oldest": "1", "random": "2", "1": "1", "no such id": "no such id"} {
		got, err := c.Choose(t.Context(), target, selector, pick)
		require.NoError(t, err)
		assert.Equal(t, want, got, selector)
	}
}

// A manifest that is there and cannot be used is told from one that could not be reached.
func TestADamagedManifestIsSaidToBe(t *testing.T) {
	o := memstore.New()
	c := catalog.New(o, "p")
	for name, text := range map[string]string{
		"garbage": "garbage", "empty": "", "another target's": `{"format":1,"id":"1","target":"other"}`,
		"another id": `{"format":1,"id":"2","target":"` + target + `"}`, "the future": `{"format":2,"id":"1","target":"` + target + `"}`,
		"too long": `{"format":1,"id":"` + strings.Repeat("x", 5<<20) + `"}`,
	} {
		_, err := o.Put(t.Context(), c.Layout.Manifest(target, "1"), strings.NewReader(text), 0, store.Condition{})
		require.NoError(t, err)
		_, err = c.Manifest(t.Context(), target, "1")
		require.ErrorIs(t, err, catalog.ErrDamaged, name)
		require.NotErrorIs(t, err, catalog.ErrNoSnapshot, name)
	}
	_, err := c.Manifest(t.Context(), target, "3")
	require.ErrorIs(t, err, catalog.ErrNoSnapshot)
	require.NotErrorIs(t, err, catalog.ErrDamaged)
}
