package catalog_test

import (
	"context"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	lifeboatv1 "github.com/lifeboat-fleet/lifeboat/proto/lifeboat/v1"
	"github.com/lifeboat-fleet/lifeboat/services/backup/internal/catalog"
	"github.com/lifeboat-fleet/lifeboat/services/backup/internal/store"
	"github.com/lifeboat-fleet/lifeboat/services/backup/internal/store/memstore"
)

const target = "consul-kv"

// listing is what a versioned bucket lists, newest version of a key first, as lines: "key age" for a version of 10 bytes,
// "key age marker", "key age upload". The version's id is the line's number.
type listing []string

func (l listing) each(t *testing.T, fn func(words []string, age time.Duration, n int)) {
	t.Helper()
	for n, line := range l {
		words := strings.Fields(line)
		age, err := time.ParseDuration(words[1])
		require.NoError(t, err, line)
		fn(words, age, n)
	}
}

// listed gives the listing's times: ages before now.
type listed struct {
	t   *testing.T
	now time.Time
	listing
}

func (l listed) Versions(_ context.Context, prefix string, fn func(store.Version) error) (err error) {
	seen := map[string]bool{}
	l.each(l.t, func(words []string, age time.Duration, n int) {
		key := prefix + words[0]
		if err != nil || len(words) > 2 && words[2] == "upload" {
			return
		}
		v := store.Version{Object: store.Object{Key: key, Modified: l.now.Add(-age)}, ID: fmt.Sprint(n), Latest: !seen[key]}
		if len(words) > 2 {
			v.Marker = true
		} else {
			v.Size = 10
		}
		seen[key] = true
		err = fn(v)
	})
	return err
}

func (l listed) Uploads(_ context.Context, prefix string, fn func(store.Upload) error) (err error) {
	l.each(l.t, func(words []string, age time.Duration, n int) {
		if err == nil && len(words) > 2 && words[2] == "upload" {
			err = fn(store.Upload{Key: prefix + words[0], ID: fmt.Sprint(n), Begun: l.now.Add(-age)})
		}
	})
	return err
}

// commit writes a manifest whose data lies under keys below the target's snapshots.
func commit(t *testing.T, c *catalog.Catalog, id string, keys ...string) {
	t.Helper()
	m := &lifeboatv1.Manifest{Format: catalog.Format, Id: id, Target: target}
	for i, key := range keys {
		d := &lifeboatv1.Data{Key: "p/consul-kv/snapshots/" + key, Stored: &lifeboatv1.Digest{Bytes: 10}}
		if i == 0 {
			m.Data = d
		} else {
			m.Parts = append(m.Parts, d)
		}
	}
	require.NoError(t, c.Commit(t.Context(), m))
}

func TestOrphans(t *testing.T) {
	for _, c := range []struct {
		name string
		// snapshots are lines of an id and its data's keys.
		snapshots []string
		have      listing
		// want are lines of a key and the versions in the order of their removal, or "upload".
		want   []string
		hidden []string
	}{
		{
			name: "a snapshot and what belongs to it", snapshots: []string{"s1 s1/data.json.zst"},
			have: listing{"s1/data.json.zst 90h", "s1/drills/d1.json 90h", "s1/manifest.json 90h", "s1/marks/pin.json 90h"},
		},
		{
			name: "data without a manifest, once it is old", have: listing{"s1/data.json.zst 90h", "s2/data.json.zst 23h"},
			want: []string{"s1/data.json.zst 0"},
		},
		{
			name: "one young thing keeps its folder", have: listing{"s1/data.json.zst 90h", "s1/marks/pin.json 1h", "s2/data.json.zst 90h", "s2/data.snap.zst 1h upload"},
		},
		{
			name: "what a snapshot left that was deleted half way", have: listing{"s1/data.json.zst 90h", "s1/drills/d1.json 90h", "s1/marks/verified.json 90h"},
			want: []string{"s1/data.json.zst 0", "s1/drills/d1.json 1", "s1/marks/verified.json 2"},
		},
		{
			name: "data that another snapshot points to", snapshots: []string{"s2 s1/data.tar.zst s2/data.snap.zst"},
			have: listing{"s1/data.tar.zst 90h", "s1/marks/verified.json 90h", "s2/data.snap.zst 90h", "s2/manifest.json 90h"},
			want: []string{"s1/marks/verified.json 1"},
		},
		{
			name: "data that no manifest names", snapshots: []string{"s1 s1/data.json.zst.age"},
			have: listing{"s1/data.json.zst 90h", "s1/data.json.zst.age 89h", "s1/manifest.json 89h"},
			want: []string{"s1/data.json.zst 0"},
		},
		{
			name: "a manifest that was written since the manifests were read", have: listing{"s1/data.json.zst 90h", "s1/manifest.json 1s"},
		},
		{
			name: "earlier versions, since they were replaced", snapshots: []string{"s1 s1/data.json.zst"},
			have: listing{
				"s1/data.json.zst 1h", "s1/data.json.zst 30h", "s1/data.json.zst 90h", "s1/data.json.zst 95h", "s1/manifest.json 1h",
				"s1/marks/pin.json 40h", "s1/marks/pin.json 50h",
			},
			want: []string{"s1/data.json.zst 3 2", "s1/marks/pin.json 6"},
		},
		{
			name: "markers, and what they hide for long", snapshots: []string{"s1 s1/data.json.zst"},
			have: listing{
				"s1/data.json.zst 80h", "s1/manifest.json 80h", "s1/marks/pin.json 30h marker", "s1/marks/pin.json 50h",
				"s1/marks/verified.json 1h marker", "s1/marks/verified.json 90h", "s0/data.json.zst 50h marker",
			},
			want: []string{"s0/data.json.zst 6", "s1/marks/pin.json 3 2"},
		},
		{
			name: "never the data of a manifest, even if somebody hid it", snapshots: []string{"s1 s1/data.json.zst"},
			have: listing{"s1/data.json.zst 90h marker", "s1/data.json.zst 95h marker", "s1/data.json.zst 96h", "s1/data.json.zst 97h", "s1/manifest.json 90h"},
			want: []string{"s1/data.json.zst 3"},
		},
		{
			name: "a snapshot that somebody hid is left, to be taken back",
			have: listing{
				"s1/data.json.zst 90h marker", "s1/data.json.zst 95h", "s1/manifest.json 90h marker", "s1/manifest.json 95h",
				"s1/data.json.zst 95h upload",
			},
			hidden: []string{"s1"},
		},
		{
			name: "uploads", snapshots: []string{"s1 s1/data.json.zst"},
			have: listing{
				"s1/data.json.zst 80h", "s1/manifest.json 80h", "s1/data.json.zst 90h upload", "s1/data.json.zst 1h upload",
				"s2/data.json.zst 25h upload",
			},
			want: []string{"s1/data.json.zst upload", "s2/data.json.zst upload"},
		},
		{name: "what is in no folder is not ours", have: listing{"README 900h", "/x 900h"}},
	} {
		t.Run(c.name, func(t *testing.T) {
			cat := catalog.New(memstore.New(), "p")
			for _, line := range c.snapshots {
				words := strings.Fields(line)
				commit(t, cat, words[0], words[1:]...)
			}
			now := time.Now()
			inv, err := cat.Inventory(t.Context(), listed{t, now, c.have}, target)
			require.NoError(t, err)
			orphans, hidden := inv.Orphans(now.Add(-24 * time.Hour))
			var got []string
			for _, o := range orphans {
				line := strings.TrimPrefix(o.Key, "p/consul-kv/snapshots/")
				bytes := int64(0)
				for _, v := range o.Versions {
					line += " " + v.ID
					if !v.Marker {
						bytes += 10
					}
				}
				if len(o.Versions) == 0 {
					line += " upload"
				}
				assert.Equal(t, bytes, o.Bytes)
				assert.NotEmpty(t, o.Why)
				assert.True(t, o.Since.Before(now.Add(-24*time.Hour)), "%s since %s", line, o.Since)
				got = append(got, line)
			}
			assert.Equal(t, c.want, got)
			assert.Equal(t, c.hidden, hidden)
		})
	}
}

func TestWhatGoesWithASnapshot(t *testing.T) {
	cat := catalog.New(memstore.New(), "p")
	commit(t, cat, "s1", "s1/data.tar.zst", "s1/data.snap.zst")
	commit(t, cat, "s2", "s1/data.tar.zst", "s2/data.snap.zst")
	now := time.Now()
	inv, err := cat.Inventory(t.Context(), listed{t, now, listing{
		"s1/data.snap.zst 9h", "s1/data.tar.zst 9h", "s1/drills/d.json 9h", "s1/manifest.json 9h", "s1/marks/pin.json 8h", "s1/marks/pin.json 9h",
		"s2/data.snap.zst 7h", "s2/manifest.json 7h",
	}}, target)
	require.NoError(t, err)
	keys := func(all []catalog.Stored) (out []string) {
		for _, o := range all {
			out = append(out, strings.TrimPrefix(o.Key, "p/consul-kv/snapshots/"))
		}
		return out
	}
	inv.Release(inv.Snapshots[0])
	assert.Equal(t, []string{"s1/drills/d.json", "s1/marks/pin.json", "s1/data.snap.zst"}, keys(inv.Rest(inv.Snapshots[0])), "not what s2 points to")
	inv.Release(inv.Snapshots[1])
	assert.Equal(t, []string{"s2/data.snap.zst", "s1/data.tar.zst"}, keys(inv.Rest(inv.Snapshots[1])), "the data goes with the last reference")

	pin := inv.Rest(inv.Snapshots[0])[1]
	var ids []string
	for _, v := range pin.Removal() {
		ids = append(ids, v.ID)
	}
	assert.Equal(t, []string{"5", "4"}, ids, "what is visible goes last")
}

func TestWhatTheListingShowsToBeWrong(t *testing.T) {
	cat := catalog.New(memstore.New(), "p")
	for _, id := range []string{"cut", "gone", "hidden", "whole"} {
		commit(t, cat, id, id+"/data.json.zst")
	}
	inv, err := cat.Inventory(t.Context(), listed{t, time.Now(), listing{
		"hidden/data.json.zst 1h marker", "hidden/data.json.zst 2h", "whole/data.json.zst 1h", "cut/data.json.zst 1h",
	}}, target)
	require.NoError(t, err)
	inv.Snapshots[0].Data.Stored.Bytes = 11
	var wrong []string
	for _, s := range inv.Snapshots {
		wrong = append(wrong, strings.ReplaceAll(inv.Wrong(s), "p/consul-kv/snapshots/", ""))
	}
	assert.Equal(t, []string{
		"cut/data.json.zst has 10 bytes, not 11", "gone/data.json.zst is not there", "hidden/data.json.zst is not there", "",
	}, wrong)
}
