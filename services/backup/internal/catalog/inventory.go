package catalog

import (
	"cmp"
	"context"
	"fmt"
	"slices"
	"strings"
	"time"

	lifeboatv1 "github.com/lifeboat-fleet/lifeboat/proto/lifeboat/v1"
	"github.com/lifeboat-fleet/lifeboat/services/backup/internal/store"
)

// Versions is what an inventory needs of a store: the listings that only those may see who may delete.
type Versions interface {
	Versions(ctx context.Context, prefix string, fn func(store.Version) error) error
	Uploads(ctx context.Context, prefix string, fn func(store.Upload) error) error
}

// Stored is one key with all its versions and delete markers, newest first.
type Stored struct {
	Key      string
	Versions []store.Version
}

// Live is what Get returns; false when there is nothing or a delete marker hides it.
func (s Stored) Live() (store.Version, bool) {
	if len(s.Versions) == 0 || s.Versions[0].Marker {
		return store.Version{}, false
	}
	return s.Versions[0], true
}

// Removal is the order in which versions are removed: what is visible last, so that no earlier version becomes visible.
func (s Stored) Removal() []store.Version {
	all := slices.Clone(s.Versions)
	slices.Reverse(all)
	return all
}

// Folder is everything that is stored below one snapshot's folder, committed or not.
type Folder struct {
	ID      string
	Objects []Stored
	Uploads []store.Upload
}

// Inventory is everything that is stored of a target, and who refers to it.
type Inventory struct {
	Target string
	// Snapshots are the committed ones, oldest first.
	Snapshots []Snapshot
	// Folders are in the order of their ids.
	Folders []*Folder

	layout  Layout
	folders map[string]*Folder
	objects map[string]Stored
	refs    map[string]int
	// hides: a delete marker hides a manifest.
	hides bool
}

// Inventory lists everything below a target's snapshots: their manifests, and with one listing each the versions of all
// objects and the unfinished uploads.
//
// The manifests are read first: the data of each of them was stored before it, and so is in the listing.
func (c *Catalog) Inventory(ctx context.Context, v Versions, target string) (*Inventory, error) {
	snapshots, err := c.List(ctx, target)
	if err != nil {
		return nil, err
	}
	inv := &Inventory{
		Target: target, Snapshots: snapshots, layout: c.Layout,
		folders: map[string]*Folder{}, objects: map[string]Stored{}, refs: map[string]int{},
	}
	for _, s := range snapshots {
		inv.Refer(s.DataKeys()...)
	}
	err = v.Versions(ctx, c.snapshots(target), func(v store.Version) error {
		f := inv.folder(v.Key)
		if f == nil {
			return nil
		}
		if n := len(f.Objects); n > 0 && f.Objects[n-1].Key == v.Key {
			f.Objects[n-1].Versions = append(f.Objects[n-1].Versions, v)
		} else {
			f.Objects = append(f.Objects, Stored{Key: v.Key, Versions: []store.Version{v}})
		}
		return nil
	})
	if err != nil {
		return nil, fmt.Errorf("listing what is stored of %s: %w", target, err)
	}
	err = v.Uploads(ctx, c.snapshots(target), func(u store.Upload) error {
		if f := inv.folder(u.Key); f != nil {
			f.Uploads = append(f.Uploads, u)
		}
		return nil
	})
	if err != nil {
		return nil, fmt.Errorf("listing the unfinished uploads of %s: %w", target, err)
	}
	slices.SortFunc(inv.Folders, func(a, b *Folder) int { return cmp.Compare(a.ID, b.ID) })
	for _, f := range inv.Folders {
		for _, o := range f.Objects {
			inv.objects[o.Key] = o
		}
		manifest := inv.Manifest(f.ID)
		if _, live := manifest.Live(); !live && slices.ContainsFunc(manifest.Versions, func(v store.Version) bool { return !v.Marker }) {
			inv.hides = true
		}
	}
	return inv, nil
}

// folder is the folder that a key lies in; nil for a key that is in none, and so is not ours.
func (inv *Inventory) folder(key string) *Folder {
	id, rest := inv.layout.parse(inv.Target, key)
	if id == "" || rest == "" {
		return nil
	}
	f := inv.folders[id]
	if f == nil {
		f = &Folder{ID: id}
		inv.folders[id] = f
		inv.Folders = append(inv.Folders, f)
	}
	return f
}

// DataKeys are the objects that the snapshot's data is in. They may lie below another snapshot's folder, when the source
// had not changed since then.
func (s Snapshot) DataKeys() []string {
	keys := []string{s.GetData().GetKey()}
	for _, d := range s.GetParts() {
		keys = append(keys, d.GetKey())
	}
	return keys
}

// Refer says that the objects with these keys are needed.
func (inv *Inventory) Refer(keys ...string) {
	for _, key := range keys {
		inv.refs[key]++
	}
}

// Release takes back what a snapshot refers to: it is about to be deleted.
func (inv *Inventory) Release(s Snapshot) {
	for _, key := range s.DataKeys() {
		inv.refs[key]--
	}
}

// Referenced says whether a snapshot needs the object.
//
// While a snapshot's manifest is hidden by a delete marker, any data may be what it needs: its manifest cannot be read, and
// somebody may take the marker back.
func (inv *Inventory) Referenced(key string) bool {
	return inv.refs[key] > 0 || (inv.hides && inv.isData(key))
}

// Wrong says what the listing alone shows to be wrong with a snapshot's data, in a few words: an object that is not there,
// or that is not as long as the manifest says. It is empty for a snapshot that looks whole.
func (inv *Inventory) Wrong(s Snapshot) string {
	for _, d := range append([]*lifeboatv1.Data{s.GetData()}, s.GetParts()...) {
		live, ok := inv.objects[d.GetKey()].Live()
		if !ok {
			return d.GetKey() + " is not there"
		}
		if want := d.GetStored().GetBytes(); want > 0 && live.Size != want {
			return fmt.Sprintf("%s has %d bytes, not %d", d.GetKey(), live.Size, want)
		}
	}
	return ""
}

// Manifest is everything that is stored under a snapshot's manifest key.
func (inv *Inventory) Manifest(id string) Stored {
	return inv.objects[inv.layout.Manifest(inv.Target, id)]
}

// Data is everything that is stored under the keys of a snapshot's data.
func (inv *Inventory) Data(s Snapshot) []Stored {
	var all []Stored
	for _, key := range s.DataKeys() {
		if o, ok := inv.objects[key]; ok {
			all = append(all, o)
		}
	}
	return all
}

// Rest is what goes with a snapshot besides its manifest, once it is released: everything in its folder, marks and reports
// first, and its data wherever it lies, except what another snapshot still needs.
func (inv *Inventory) Rest(s Snapshot) []Stored {
	manifest := inv.layout.Manifest(inv.Target, s.GetId())
	var beside, data []Stored
	seen := map[string]bool{manifest: true}
	add := func(o Stored) {
		if seen[o.Key] || inv.Referenced(o.Key) {
			return
		}
		seen[o.Key] = true
		if inv.isData(o.Key) {
			data = append(data, o)
		} else {
			beside = append(beside, o)
		}
	}
	if f := inv.folders[s.GetId()]; f != nil {
		for _, o := range f.Objects {
			add(o)
		}
	}
	for _, o := range inv.Data(s) {
		add(o)
	}
	return append(beside, data...)
}

func (inv *Inventory) isData(key string) bool {
	_, rest := inv.layout.parse(inv.Target, key)
	return strings.HasPrefix(rest, "data.")
}

// Orphan is something stored that no snapshot needs.
type Orphan struct {
	// ID is the snapshot below whose folder it lies.
	ID  string
	Key string
	// Versions are to be removed in this order. Empty: it is an upload.
	Versions []store.Version
	Upload   store.Upload
	// Bytes is how much is freed; 0 for an upload, of which it is not known.
	Bytes int64
	// Since is when it became what it is.
	Since time.Time
	// Why it is an orphan, in a few words.
	Why string
	// Uncommitted: it is in a folder without a manifest, which a worker may still be about to write.
	Uncommitted bool
}

// Orphans lists what no snapshot needs and what has been so since before a time, and the ids of hidden snapshots: those whose
// manifest a delete marker hides. Lifeboat sets none, so somebody else did, and can still take it back: what is below a hidden
// snapshot's folder is no orphan.
//
// Orphans are: everything in a folder without a manifest, once nothing in it is younger; data in a committed snapshot's
// folder that no manifest names; earlier versions of a key, which were replaced; and unfinished uploads. What Get returns of
// a manifest or of data that a manifest names is never among them.
func (inv *Inventory) Orphans(before time.Time) (orphans []Orphan, hidden []string) {
	committed := map[string]bool{}
	for _, s := range inv.Snapshots {
		committed[s.GetId()] = true
	}
	for _, f := range inv.Folders {
		manifest := inv.Manifest(f.ID)
		_, live := manifest.Live()
		switch {
		case live || committed[f.ID]:
			orphans = append(orphans, inv.unneeded(f, committed[f.ID], before)...)
		case slices.ContainsFunc(manifest.Versions, func(v store.Version) bool { return !v.Marker }):
			hidden = append(hidden, f.ID)
			continue
		default:
			orphans = append(orphans, inv.uncommitted(f, before)...)
		}
		for _, u := range f.Uploads {
			if u.Begun.Before(before) {
				orphans = append(orphans, Orphan{
					ID: f.ID, Key: u.Key, Upload: u, Since: u.Begun, Why: "an upload that was never completed", Uncommitted: !live,
				})
			}
		}
	}
	return orphans, hidden
}

// unneeded are the orphans in the folder of a committed snapshot. Only when its manifest was read is it known which data it
// names.
func (inv *Inventory) unneeded(f *Folder, read bool, before time.Time) []Orphan {
	var all []Orphan
	for _, o := range f.Objects {
		live, ok := o.Live()
		if read && ok && inv.isData(o.Key) && !inv.Referenced(o.Key) && live.Modified.Before(before) {
			all = append(all, orphan(f.ID, o.Key, live.Modified, "data that no manifest names", o.Removal()))
			continue
		}
		all = append(all, inv.replaced(f.ID, o, before)...)
	}
	return all
}

// uncommitted are the orphans in a folder without a manifest, which may still hold what another snapshot's manifest names.
func (inv *Inventory) uncommitted(f *Folder, before time.Time) []Orphan {
	var all []Orphan
	var newest time.Time
	for _, o := range f.Objects {
		if inv.Referenced(o.Key) {
			all = append(all, inv.replaced(f.ID, o, before)...)
			continue
		}
		if o.Versions[0].Modified.After(newest) {
			newest = o.Versions[0].Modified
		}
	}
	for _, u := range f.Uploads {
		if u.Begun.After(newest) {
			newest = u.Begun
		}
	}
	if !newest.Before(before) {
		return all
	}
	for _, o := range f.Objects {
		if !inv.Referenced(o.Key) {
			left := orphan(f.ID, o.Key, o.Versions[0].Modified, "stored without a manifest", o.Removal())
			left.Uncommitted = true
			all = append(all, left)
		}
	}
	return all
}

// replaced are the earlier versions of a key, each since the version after it was written, and a marker with nothing below
// it. The newest data stays where a manifest names it, even below a marker.
func (inv *Inventory) replaced(id string, o Stored, before time.Time) []Orphan {
	if inv.Referenced(o.Key) || o.Key == inv.layout.Manifest(inv.Target, id) {
		return gone(id, o, 1+slices.IndexFunc(o.Versions, func(v store.Version) bool { return !v.Marker }), before)
	}
	if o.Versions[0].Marker && o.Versions[0].Modified.Before(before) {
		return []Orphan{orphan(id, o.Key, o.Versions[0].Modified, "a delete marker", o.Removal())}
	}
	return gone(id, o, 1, before)
}

// gone are the versions of a key from the nth on that were replaced before a time.
func gone(id string, o Stored, n int, before time.Time) []Orphan {
	for i := max(n, 1); i < len(o.Versions); i++ {
		if since := o.Versions[i-1].Modified; since.Before(before) {
			old := slices.Clone(o.Versions[i:])
			slices.Reverse(old)
			return []Orphan{orphan(id, o.Key, since, "an earlier version, which was replaced", old)}
		}
	}
	return nil
}

func orphan(id, key string, since time.Time, why string, versions []store.Version) Orphan {
	o := Orphan{ID: id, Key: key, Since: since, Why: why, Versions: versions}
	for _, v := range versions {
		o.Bytes += v.Size
	}
	return o
}
