package consul_test

import (
	"errors"
	"fmt"
	"maps"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/lifeboat-fleet/lifeboat/fleet/config"
	"github.com/lifeboat-fleet/lifeboat/fleet/fleettest/bintest"
	"github.com/lifeboat-fleet/lifeboat/services/backup/internal/restore"
	"github.com/lifeboat-fleet/lifeboat/services/backup/internal/restore/consul"
)

// renamed is what a selection makes of a name, said in another way.
func renamed(sel consul.Selection, name string) (string, bool) {
	in := func(p string) bool { return strings.HasPrefix(name, p) }
	if len(sel.Prefixes) > 0 && !slices.ContainsFunc(sel.Prefixes, in) {
		return "", false
	}
	best := restore.Rename{}
	for _, r := range sel.Rename {
		if in(r.Old) && len(r.Old) >= len(best.Old) {
			best = r
		}
	}
	return best.New + name[len(best.Old):], true
}

// idle says whether a part of a selection is about none of the keys.
func idle(sel consul.Selection, keys map[string]kv) bool {
	fits := func(beginning string) bool {
		for name := range keys {
			if _, ok := renamed(sel, name); ok && strings.HasPrefix(name, beginning) {
				return true
			}
		}
		return beginning == ""
	}
	return slices.ContainsFunc(sel.Prefixes, func(p string) bool { return !fits(p) }) ||
		slices.ContainsFunc(sel.Rename, func(r restore.Rename) bool { return !fits(r.Old) })
}

// TestSelections compares restores of random parts, under random names, into random destinations, with what a map would say.
func TestSelections(t *testing.T) {
	seed := rand.Uint64()
	t.Logf("seed %d", seed)
	random := rand.New(rand.NewPCG(seed, 0))
	c := run(t, bintest.ConsulOptions{})
	cfg := config.Consul{Address: c.Address}
	text := func(least int) string {
		var out strings.Builder
		for range least + random.IntN(4) {
			out.WriteString([]string{"a", "b", "/", "ä", "c/"}[random.IntN(5)])
		}
		return out.String()
	}
	keys := func(n int) map[string]kv {
		all := make(map[string]kv)
		for range n {
			k := kv{text(1), uint64(random.IntN(2)), []byte{byte(random.IntN(2))}}
			all[k.Key] = k
		}
		return all
	}
	list := func(m map[string]kv) (out []kv) {
		for _, k := range m {
			out = append(out, k)
		}
		return out
	}
	var refused, unfit, done, renames int
	for i := range 800 {
		snap, there := keys(random.IntN(60)), keys(random.IntN(60))
		var sel consul.Selection
		for range random.IntN(3) {
			sel.Prefixes = append(sel.Prefixes, text(0))
		}
		for range random.IntN(3) {
			sel.Rename = append(sel.Rename, restore.Rename{Old: text(0), New: text(0)})
		}
		what := fmt.Sprintf("round %d of seed %d: %+v", i, seed, sel)
		want, from := make(map[string]kv), make(map[string]string)
		var clash bool
		for name, k := range snap {
			if to, ok := renamed(sel, name); ok && to != "" {
				clash = clash || from[to] != ""
				from[to] = name
				k.Key = to
				want[to] = k
			} else if ok {
				clash = true // nothing can be named so; the restore says so in its own way
			}
		}
		reset(t, c)
		write(t, c, list(there)...)
		got, sum, err := bring(t, cfg, snapshot(t, list(snap)...), sel, restore.Options{Apply: true, Force: true})
		if err != nil {
			refused++
			same(t, snapshot(t, list(there)...), read(t, cfg))
			if errors.Is(err, restore.ErrNothingSelected) {
				unfit++
				require.True(t, idle(sel, snap), "%s: %v", what, err)
				require.Zero(t, sum, what)
				continue
			}
			require.Regexp(t, "would .*come to|is renamed twice", err.Error(), what)
			continue
		}
		require.False(t, idle(sel, snap), what)
		if clash {
			require.Positive(t, sum.Failed, what)
			continue
		}
		done++
		if len(sel.Rename) > 0 {
			renames++
		}
		end := make(map[string]kv)
		var created, changed, equal int64
		maps.Copy(end, there)
		for name, k := range want {
			switch before, ok := there[name]; {
			case !ok:
				created++
			case before.Flags == k.Flags && before.Value[0] == k.Value[0]:
				equal++
			default:
				changed++
			}
			end[name] = k
		}
		same(t, snapshot(t, list(end)...), read(t, cfg))
		assert.Equal(t, []int64{created, changed, equal}, []int64{sum.Created, sum.Changed, sum.Same}, what)
		if len(sel.Rename) == 0 {
			var extra []string
			for name := range there {
				if _, ok := renamed(sel, name); ok && want[name].Key == "" {
					extra = append(extra, name)
				}
			}
			slices.Sort(extra)
			assert.Equal(t, extra, got.of(restore.Extra), what)
		}
		if t.Failed() {
			return
		}
	}
	t.Logf("%d restored, %d of them renamed, %d refused, %d of them because a part fits nothing", done, renames, refused, unfit)
	assert.Greater(t, unfit, 30)
	assert.Greater(t, done, 100)
	assert.Greater(t, renames, 30)
}

// TestRenamed tells what is extra where renamed keys come to, and nothing of where they came from.
func TestRenamed(t *testing.T) {
	c := run(t, bintest.ConsulOptions{})
	cfg := config.Consul{Address: c.Address}
	data := snapshot(t, named("config/a", "config/b", "config/db/x", "other", "zone/1")...)
	write(t, c, named("config/a", "config/old", "restored/a", "restored/stray", "other", "stray")...)
	for name, v := range map[string]struct {
		sel  consul.Selection
		want []string
	}{
		"a part": {
			consul.Selection{Prefixes: []string{"config/"}, Rename: []restore.Rename{{Old: "config/", New: "restored/"}}},
			[]string{"differs restored/a", "create restored/b", "create restored/db/x", "extra restored/stray"},
		},
		"all": {
			consul.Selection{Rename: []restore.Rename{{Old: "config/", New: "restored/"}}},
			[]string{"differs restored/a", "create restored/b", "create restored/db/x", "extra restored/stray", "same other", "extra stray", "create zone/1"},
		},
		"one within another": {
			consul.Selection{Prefixes: []string{"config/"}, Rename: []restore.Rename{{Old: "config/", New: "restored/"}, {Old: "config/db/", New: "db/"}}},
			[]string{"differs restored/a", "create restored/b", "create db/x", "extra restored/stray"},
		},
		"exchanged": {
			consul.Selection{Prefixes: []string{"config/", "zone/"}, Rename: []restore.Rename{{Old: "config/", New: "zone/"}, {Old: "zone/", New: "config/"}}},
			[]string{"create zone/a", "create zone/b", "create zone/db/x", "create config/1", "extra config/a", "extra config/old"},
		},
		"a prefix within a rename": {
			consul.Selection{Prefixes: []string{"config/d"}, Rename: []restore.Rename{{Old: "config/", New: "restored/"}}},
			[]string{"create restored/db/x"},
		},
	} {
		t.Run(name, func(t *testing.T) {
			got, _, err := bring(t, cfg, data, v.sel, restore.Options{})
			require.NoError(t, err)
			var short []string
			for _, i := range got.items {
				short = append(short, string(i.Action)+" "+i.Name)
			}
			assert.Equal(t, v.want, short)
		})
	}
	_, _, err := bring(t, cfg, data, consul.Selection{Rename: []restore.Rename{{Old: "zone/", New: "config/"}}}, restore.Options{Apply: true, Force: true})
	require.ErrorContains(t, err, `the key "config/a" would come to "config/a", among the names that "zone/" is renamed to`)
	assert.Len(t, parse(t, read(t, cfg)), 6, "nothing was written")
}

// TestNothingSelected names what of a selection was mistyped, before anything is written under a name that was not meant.
func TestNothingSelected(t *testing.T) {
	c := run(t, bintest.ConsulOptions{})
	cfg := config.Consul{Address: c.Address}
	data := snapshot(t, named("config/a", "config/b", "other")...)
	there := []kv{{"config/a", 7, []byte("newer")}}
	write(t, c, there...)
	mistyped := []restore.Rename{{Old: "confg/", New: "x/"}}
	for name, v := range map[string]struct {
		sel  consul.Selection
		want string
	}{
		"a rename of all":        {consul.Selection{Rename: mistyped}, `no selected key begins with "confg/", which is to be renamed to "x/"`},
		"one of two renames":     {consul.Selection{Rename: append([]restore.Rename{{Old: "config/", New: "y/"}}, mistyped...)}, `"confg/"`},
		"a rename within a part": {consul.Selection{Prefixes: []string{"config/"}, Rename: []restore.Rename{{Old: "config/c", New: "x"}}}, `"config/c"`},
		"a rename of another part": {
			consul.Selection{Prefixes: []string{"config/"}, Rename: []restore.Rename{{Old: "other", New: "x"}}}, `no selected key begins with "other"`,
		},
		"a prefix":           {consul.Selection{Prefixes: []string{"confg/"}}, `no key begins with the prefix "confg/"`},
		"one of two":         {consul.Selection{Prefixes: []string{"config/", "othr"}}, `no key begins with the prefix "othr"`},
		"one within another": {consul.Selection{Prefixes: []string{"config/", "config/c"}}, `"config/c"`},
		"one besides all":    {consul.Selection{Prefixes: []string{"", "confg/"}}, `"confg/"`},
		"two":                {consul.Selection{Prefixes: []string{"confg/", "othr"}}, `"confg/"; no key begins with the prefix "othr"`},
	} {
		t.Run(name, func(t *testing.T) {
			for _, o := range []restore.Options{{}, {Apply: true}, {Apply: true, Force: true}} {
				_, sum, err := bring(t, cfg, data, v.sel, o)
				require.ErrorIs(t, err, restore.ErrNothingSelected)
				require.ErrorContains(t, err, v.want)
				if o.Apply {
					assert.Zero(t, sum, "nothing was done")
				}
			}
			same(t, snapshot(t, there...), read(t, cfg))
		})
	}
	_, _, err := bring(t, cfg, snapshot(t), consul.Selection{Prefixes: []string{""}}, restore.Options{})
	require.NoError(t, err, "everything fits a snapshot that is empty")
}
