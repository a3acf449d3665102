// Package catalog knows what exists: which snapshots a target has and which drills were run of them. The bucket is the
// truth; nothing here is kept anywhere else.
package catalog

import (
	"path"
	"strings"

	lifeboatv1 "github.com/lifeboat-fleet/lifeboat/proto/lifeboat/v1"
)

// Layout gives the object keys of the design, section 4.
type Layout struct{ Prefix string }

func (l Layout) snapshots(target string) string {
	return path.Join(l.Prefix, target, "snapshots") + "/"
}

func (l Layout) snapshot(target, id string) string { return l.snapshots(target) + id + "/" }

// Data is the key of a snapshot's data. format is "db", "json" or "tar".
func (l Layout) Data(target, id, format string, encrypted bool) string {
	key := l.snapshot(target, id) + "data." + format + ".zst"
	if encrypted {
		key += ".age"
	}
	return key
}

// Manifest is the key of a snapshot's commit point.
func (l Layout) Manifest(target, id string) string { return l.snapshot(target, id) + "manifest.json" }

// Drill is the key of a drill's report.
func (l Layout) Drill(target, id, drill string) string {
	return l.snapshot(target, id) + "drills/" + drill + ".json"
}

// Rebase gives the key that an object of another layout has in this one.
func (l Layout) Rebase(other Layout, key string) string {
	return path.Join(l.Prefix, strings.TrimPrefix(strings.TrimPrefix(key, other.Prefix), "/"))
}

// Mark is the key of a mark. Its name is the kind in lower case with dashes.
func (l Layout) Mark(target, id string, k lifeboatv1.Mark_Kind) string {
	return l.snapshot(target, id) + "marks/" + markName(k) + ".json"
}

func markName(k lifeboatv1.Mark_Kind) string {
	return strings.ReplaceAll(strings.ToLower(strings.TrimPrefix(k.String(), "KIND_")), "_", "-")
}

// parse splits a key below a target's snapshots into the snapshot's id and the rest.
func (l Layout) parse(target, key string) (id, rest string) {
	id, rest, _ = strings.Cut(strings.TrimPrefix(key, l.snapshots(target)), "/")
	return id, rest
}
