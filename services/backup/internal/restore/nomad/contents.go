package nomad

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"maps"
	"path"
	"slices"
	"strings"

	"github.com/lifeboat-fleet/lifeboat/services/backup/internal/restore"
)

const (
	// maxKept is how much of an archive is kept in memory, so that a small one is read once only.
	maxKept = 8 << 20
	// maxUnknown is how many folders of unknown files are named.
	maxUnknown = 20
)

// contents is what the snapshot holds of what was selected.
type contents struct {
	open  restore.Open
	kinds []*kind
	sel   Selection

	names   map[*kind]map[name]bool
	kept    map[*kind][]thing
	bytes   map[*kind]int
	total   int // of what is kept
	again   map[*kind]bool
	needed  map[*kind]map[name]bool // by what was selected
	quotas  map[string]string       // by namespace
	strange map[string]int          // files by folder
	found   map[string]bool         // namespaces and jobs that were selected
}

func newContents(open restore.Open, kinds []*kind, sel Selection) *contents {
	c := &contents{
		open: open, kinds: kinds, sel: sel,
		names: make(map[*kind]map[name]bool), kept: make(map[*kind][]thing), bytes: make(map[*kind]int),
		again: make(map[*kind]bool), needed: make(map[*kind]map[name]bool), quotas: make(map[string]string),
		strange: make(map[string]int), found: make(map[string]bool),
	}
	for _, k := range kinds {
		c.names[k], c.needed[k] = make(map[name]bool), make(map[name]bool)
	}
	return c
}

// read goes through all of the archive and checks it.
func (c *contents) read(ctx context.Context) error {
	a := newAssembler(c.learn)
	err := pass(ctx, c.open, c.kinds, func(file) bool { return true }, func(f file, body []byte) error {
		switch f.role {
		case roleUnknown:
			c.strange[folder(f.path)]++
		case roleHistory:
			if !json.Valid(body) {
				return damaged(ctx, "the archive's file "+f.path, fmt.Errorf("it is no JSON"))
			}
		case roleText:
		default:
			return a.add(f, body)
		}
		return nil
	})
	if err != nil {
		return err
	}
	if err := a.flush(); err != nil {
		return err
	}
	c.needQuotas()
	return nil
}

// folder is what an unknown file is told by.
func folder(p string) string {
	if dir := path.Dir(p); dir != "." {
		return strings.SplitN(dir, "/", 3)[0] + "/"
	}
	return p
}

// learn notes one thing.
func (c *contents) learn(t thing) error {
	o, err := t.object()
	if err != nil {
		return fmt.Errorf("reading %s %s: %w", t.kind.title, t.label, err)
	}
	if t.name.space != "" && c.sel.hasNamespace(t.name.space) {
		c.found[kindNamespace.key(t.name.space)] = true
	}
	if t.kind.id == kindNamespace {
		c.found[kindNamespace.key(t.name.id)] = true
		c.quotas[t.name.id] = o.text("Quota")
	}
	selected := c.sel.has(t.kind, t.name)
	if !selected && !t.kind.needable {
		return nil
	}
	if c.names[t.kind][t.name] {
		return fmt.Errorf("reading the archive: %s %s is in it twice, or its files do not stand together", t.kind.title, t.label)
	}
	c.names[t.kind][t.name] = true
	if selected && t.kind.id == kindJob {
		c.found[kindJob.key(t.name.id)] = true
	}
	if selected && !c.sel.whole() && t.kind.needs != nil {
		for _, n := range t.kind.needs(t.name, o) {
			c.need(n)
		}
	}
	c.keep(t)
	return nil
}

func (c *contents) need(n need) {
	for _, k := range c.kinds {
		if k.id == n.kind {
			c.needed[k][name{id: n.id}] = true
		}
	}
}

// needQuotas adds what the namespaces that are restored need.
func (c *contents) needQuotas() {
	spaces := c.kinds[slices.IndexFunc(c.kinds, func(k *kind) bool { return k.id == kindNamespace })]
	for ns, quota := range c.quotas {
		if quota != "" && !c.sel.whole() && c.wanted(spaces, name{id: ns}) {
			c.need(need{kindQuota, quota})
		}
	}
}

// keep holds a thing in memory while there is room. Then the kind that takes the most must be read again.
func (c *contents) keep(t thing) {
	if c.again[t.kind] {
		return
	}
	c.kept[t.kind] = append(c.kept[t.kind], t)
	c.bytes[t.kind] += t.size()
	c.total += t.size()
	for c.total > maxKept {
		most := slices.MaxFunc(c.kinds, func(a, b *kind) int { return c.bytes[a] - c.bytes[b] })
		c.again[most] = true
		c.total -= c.bytes[most]
		c.kept[most], c.bytes[most] = nil, 0
	}
}

// wanted says whether a thing is restored, and is true too for what is needed only.
func (c *contents) wanted(k *kind, n name) bool { return c.sel.has(k, n) || c.needed[k][n] }

// count is how many things of a kind are wanted.
func (c *contents) count(k *kind) (n int64) {
	for nm := range c.names[k] {
		if c.wanted(k, nm) {
			n++
		}
	}
	return n
}

// each gives everything of a kind that is wanted, in the order of the archive.
func (c *contents) each(ctx context.Context, k *kind, do func(thing) error) error {
	if !c.again[k] {
		for _, t := range c.kept[k] {
			if c.wanted(k, t.name) {
				if err := do(t); err != nil {
					return err
				}
			}
		}
		return nil
	}
	var given int64
	a := newAssembler(func(t thing) error {
		switch {
		case !c.names[k][t.name] && c.sel.has(k, t.name):
			return fmt.Errorf("reading the archive again: %s %s was not in it the first time", k.title, t.label)
		case !c.wanted(k, t.name):
			return nil
		}
		given++
		return do(t)
	})
	want := func(f file) bool { return f.kind == k && (f.role == roleObject || f.role == roleSubmission) }
	if err := pass(ctx, c.open, c.kinds, want, a.add); err != nil {
		return err
	}
	if err := a.flush(); err != nil {
		return err
	}
	if n := c.count(k); given != n {
		return fmt.Errorf("reading the archive again: it holds %d of %d %ss that it held the first time", given, n, k.title)
	}
	return nil
}

// checkSelection fails when something was selected that is not there: a name that was mistyped would else restore nothing.
func (c *contents) checkSelection() error {
	missing := func(k kindID, names []string) (none []string) {
		for _, n := range names {
			if !c.found[k.key(n)] {
				none = append(none, n)
			}
		}
		return none
	}
	if none := missing(kindNamespace, c.sel.Namespaces); len(none) > 0 {
		return notInSnapshot("namespace", none)
	}
	if none := missing(kindJob, c.sel.Jobs); len(none) > 0 {
		where := ""
		if len(c.sel.Namespaces) > 0 {
			where = " of namespace " + strings.Join(c.sel.Namespaces, ", ")
		}
		return notInSnapshot("job"+where, none)
	}
	return nil
}

// unknown are the files that this version does not know, by folder.
func (c *contents) unknown() (items []restore.Item) {
	for _, dir := range slices.Sorted(maps.Keys(c.strange)) {
		if len(items) == maxUnknown {
			items = append(items, restore.Item{
				Kind: "file", Name: "and more", Action: restore.Skip,
				Detail: fmt.Sprintf("unknown files in %d more folders", len(c.strange)-maxUnknown),
			})
			break
		}
		items = append(items, restore.Item{
			Kind: "file", Name: dir, Action: restore.Skip,
			Detail: fmt.Sprintf("unknown files: %d; restore with the version that made the snapshot, or by hand", c.strange[dir]),
		})
	}
	return items
}

// tree decodes JSON without losing digits.
func tree(b []byte) (v any, err error) {
	dec := json.NewDecoder(bytes.NewReader(b))
	dec.UseNumber()
	err = dec.Decode(&v)
	return v, err
}
