package app

import (
	"bytes"
	"encoding/json"
	"fmt"
	"maps"
	"slices"

	"google.golang.org/protobuf/encoding/protojson"

	lifeboatv1 "github.com/lifeboat-fleet/lifeboat/proto/lifeboat/v1"
	"github.com/lifeboat-fleet/lifeboat/services/backup/internal/catalog"
)

// snapshotJSON is a manifest with two more fields: "marks" and "drills".
func snapshotJSON(s catalog.Snapshot) (json.RawMessage, error) {
	manifest, err := protojson.Marshal(s.Manifest)
	if err != nil {
		return nil, fmt.Errorf("encoding the manifest: %w", err)
	}
	var marks, drills []json.RawMessage
	for _, k := range markKinds() {
		if m, ok := s.Marks[k]; ok {
			b, err := protojson.Marshal(m)
			if err != nil {
				return nil, fmt.Errorf("encoding a mark: %w", err)
			}
			marks = append(marks, b)
		}
	}
	for _, d := range s.Drills {
		b, err := protojson.Marshal(d)
		if err != nil {
			return nil, fmt.Errorf("encoding a drill: %w", err)
		}
		drills = append(drills, b)
	}
	list := func(all []json.RawMessage) []byte {
		joined := []byte("[")
		for i, b := range all {
			if i > 0 {
				joined = append(joined, ',')
			}
			joined = append(joined, b...)
		}
		return append(joined, ']')
	}
	b := bytes.TrimSuffix(bytes.TrimSpace(manifest), []byte("}"))
	b = append(append(append(b, `,"marks":`...), list(marks)...), `,"drills":`...)
	return append(append(b, list(drills)...), '}'), nil
}

// markKinds are the kinds of marks in the order in which they are shown.
func markKinds() []lifeboatv1.Mark_Kind {
	return []lifeboatv1.Mark_Kind{
		lifeboatv1.Mark_KIND_PIN, lifeboatv1.Mark_KIND_SHRINK_CONFIRMED, lifeboatv1.Mark_KIND_VERIFIED,
	}
}

// flags are what a person should know of a snapshot at a glance.
func flags(s catalog.Snapshot) []string {
	var f []string
	if s.Damaged() {
		f = append(f, "DAMAGED")
	}
	if s.Pinned() {
		f = append(f, "PINNED")
	}
	if s.GetData().GetUnchangedSince() != "" {
		f = append(f, "UNCHANGED")
	}
	if s.Marks[lifeboatv1.Mark_KIND_SHRINK_CONFIRMED].GetHolds() {
		f = append(f, "SHRINK-CONFIRMED")
	}
	return f
}

// counted is the count that a person asks for first.
func counted(k lifeboatv1.Kind, s *lifeboatv1.SourceInfo) string {
	what := "keys"
	if k == lifeboatv1.Kind_KIND_NOMAD {
		what = "jobs"
	}
	n, ok := s.GetCounts()[what]
	if !ok {
		return "-"
	}
	return fmt.Sprintf("%d %s", n, what)
}

func size(n int64) string {
	const unit = 1024
	if n < unit {
		return fmt.Sprintf("%d B", n)
	}
	f, suffix := float64(n), ""
	for _, suffix = range []string{"KiB", "MiB", "GiB", "TiB"} {
		f /= unit
		if f < unit {
			break
		}
	}
	return fmt.Sprintf("%.1f %s", f, suffix)
}

func sortedKeys[V any](m map[string]V) []string { return slices.Sorted(maps.Keys(m)) }
