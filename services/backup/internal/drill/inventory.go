package drill

import (
	"archive/tar"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"os"
	"slices"
	"strings"

	"github.com/lifeboat-fleet/lifeboat/fleet/config"
	lifeboatv1 "github.com/lifeboat-fleet/lifeboat/proto/lifeboat/v1"
	"github.com/lifeboat-fleet/lifeboat/services/backup/internal/restore"
	nomadsource "github.com/lifeboat-fleet/lifeboat/services/backup/internal/source/nomad"
	"github.com/lifeboat-fleet/lifeboat/services/backup/internal/source/raftsnap"
)

// inventory is what an archive of a Nomad region holds, by the names of its files.
type inventory struct {
	files map[string]thing
	// counts is how many things there are of each kind, by the manifest's names.
	counts map[string]int64
}

// thing is one file.
type thing struct {
	kind string
	// fields is what it says, for the kinds that are compared field by field; nil for the others.
	fields any
}

// readBack opens a read of a server, in the form of a snapshot.
func readBack(dest config.Nomad) restore.Open {
	return func(ctx context.Context) (io.ReadCloser, error) {
		return nomadsource.New(dest, nomadsource.Options{}).Open(ctx)
	}
}

// inventoryOf reads an archive.
func inventoryOf(ctx context.Context, open restore.Open) (inventory, error) {
	inv := inventory{files: map[string]thing{}, counts: map[string]int64{}}
	src, err := open(ctx)
	if err != nil {
		return inv, err
	}
	defer src.Close()
	tr := tar.NewReader(&ctxReader{ctx: ctx, r: src})
	for {
		h, err := tr.Next()
		if errors.Is(err, io.EOF) {
			return inv, nil
		}
		if err != nil {
			return inv, err
		}
		t := thing{kind: kindOfFile(h.Name)}
		if t.kind == "" {
			continue // a job's source, a policy's rules; what was added by a later version
		}
		if byFields(t.kind) {
			if err := json.NewDecoder(tr).Decode(&t.fields); err != nil {
				// The decoder's words may hold a piece of what it read.
				return inv, fmt.Errorf("%s does not hold JSON", h.Name)
			}
		}
		inv.files[h.Name] = t
		inv.counts[t.kind]++
	}
}

// byFields says whether things of a kind are compared field by field. Jobs have their plans; secrets are in no archive; Nomad gives
// binding rules new ids.
func byFields(kind string) bool {
	switch kind {
	case "namespaces", "node_pools", "quotas", "acl_policies", "acl_roles", "variables", "scheduler_configuration":
		return true
	}
	return false
}

// count is how many things of a kind that want has are here. A server has some of its own, as the namespace default. Where names are
// made anew, all of them count.
func (i inventory) count(kind string, want inventory) int64 {
	if kind == "acl_binding_rules" {
		return i.counts[kind]
	}
	var n int64
	for name, t := range want.files {
		if _, ok := i.files[name]; ok && t.kind == kind {
			n++
		}
	}
	return n
}

func (i inventory) sorted() []string { return slices.Sorted(maps.Keys(i.files)) }

func sortedKeys(m map[string]any) []string { return slices.Sorted(maps.Keys(m)) }

// kindOfFile says under which name the manifest counts a file of the archive; empty for one that is not counted.
func kindOfFile(name string) string {
	name, ok := strings.CutSuffix(name, ".json")
	if !ok {
		return ""
	}
	parts := strings.Split(name, "/")
	switch {
	case parts[0] == "jobs":
		return kindOfJobFile(parts[1:])
	case len(parts) == 1 && name == "scheduler_configuration":
		return name
	case len(parts) == 2:
		switch parts[0] {
		case "namespaces", "node_pools", "quotas":
			return parts[0]
		}
	case len(parts) == 3 && parts[0] == "acl":
		switch parts[1] {
		case "policies", "roles", "auth_methods", "binding_rules", "tokens":
			return "acl_" + parts[1]
		}
	case len(parts) == 3 && parts[0] == "variables":
		return parts[0]
	case len(parts) == 4 && parts[0] == "volumes" && (parts[1] == "csi" || parts[1] == "host"):
		return parts[1] + "_volumes"
	}
	return ""
}

// kindOfJobFile is kindOfFile for what follows jobs/: a namespace, an id, and the file without its ending, which a source that
// was JSON has too.
func kindOfJobFile(parts []string) string {
	switch file := strings.Join(parts[min(2, len(parts)):], "/"); {
	case file == "job":
		return "jobs"
	case file == "submission":
		return "submissions"
	case !strings.HasPrefix(file, "versions/") || strings.HasSuffix(file, ".nomad"):
		return ""
	case strings.HasSuffix(file, ".submission"):
		return "version_submissions"
	}
	return "versions"
}

// archive reads a raft snapshot to its end and compares what it says of itself with what its source said.
func (r *run) archive(file string, part *lifeboatv1.Data, name string) error {
	f, err := os.Open(file)
	if err != nil {
		return err
	}
	defer f.Close()
	archive := raftsnap.NewReader(f)
	if _, err := io.Copy(io.Discard, archive); err != nil {
		return fmt.Errorf("reading the %s: %w", name, err)
	}
	meta, src := archive.Meta(), part.GetSource()
	if src == nil {
		return nil
	}
	r.number(name+": index", src.GetRevision(), meta.Index)
	if want, known := src.GetCounts()["bytes"]; known {
		r.number(name+": bytes", want, meta.StateBytes)
	}
	return nil
}
