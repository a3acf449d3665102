package drill

import (
	"context"
	"fmt"
	"maps"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	"github.com/lifeboat-fleet/lifeboat/fleet/config"
	lifeboatv1 "github.com/lifeboat-fleet/lifeboat/proto/lifeboat/v1"
	"github.com/lifeboat-fleet/lifeboat/services/backup/internal/restore"
	nomadrestore "github.com/lifeboat-fleet/lifeboat/services/backup/internal/restore/nomad"
	"github.com/lifeboat-fleet/lifeboat/services/backup/internal/throwaway"
)

// nomad registers everything in a throwaway server without clients, in which no job ever runs, asks for the plan of each job, and
// reads everything back with the code that took the snapshot.
func (r *run) nomad(ctx context.Context, s *scratch) error {
	d := &nomadDrill{run: r, file: filepath.Join(s.Dir(), "snapshot.tar"), skipped: map[string]*skipped{}}
	srv, err := s.serve(ctx, r.in.Manifest.GetData(), d.file, throwaway.StartNomad, throwaway.Options{Binary: r.in.Servers.NomadBinary})
	if err != nil {
		return err
	}
	dest := config.Nomad{Address: srv.Address, TLS: srv.TLS, TokenFile: secretFile(srv.TokenFile)}
	err = s.with(ctx, srv, func() error {
		return r.rehearse(ctx, func() error { return d.restore(ctx, dest) }, func() error { return d.compare(ctx, dest) }, nomadData{dest})
	})
	for i, part := range r.in.Manifest.GetParts() {
		if err == nil {
			err = d.operator(ctx, s, part, i)
		}
	}
	return err
}

// nomadDrill is what the phases of one drill hand to each other.
type nomadDrill struct {
	*run
	file    string
	skipped map[string]*skipped // by the kind's name in restores
}

// skipped is what was left out of one kind on purpose.
type skipped struct {
	n     int64
	why   []string // each reason once, the first few
	names map[string]bool
}

// maxReasons is how many reasons are told for one kind.
const maxReasons = 3

// reasons are why it was left out.
func (s *skipped) reasons() string {
	if len(s.why) > maxReasons {
		return strings.Join(s.why[:maxReasons], "; ") + "; and other reasons"
	}
	return strings.Join(s.why, "; ")
}

// titles are how a restore calls what the manifest counts.
func titles() map[string]string {
	return map[string]string{
		"jobs": "job", "namespaces": "namespace", "node_pools": "node pool", "quotas": "quota", "variables": "variable",
		"acl_policies": "ACL policy", "acl_roles": "ACL role", "acl_auth_methods": "ACL auth method",
		"acl_binding_rules": "ACL binding rule", "acl_tokens": "ACL token", "csi_volumes": "CSI volume", "host_volumes": "host volume",
	}
}

func (d *nomadDrill) restore(ctx context.Context, dest config.Nomad) error {
	var f failures
	_, err := nomadrestore.Restore(ctx, dest, fromFile(d.file), nomadrestore.Selection{}, restore.Options{
		Apply: true, Item: func(i restore.Item) {
			f.item(i)
			if i.Action == restore.Skip {
				d.skip(i)
			}
		},
	})
	if named := f.err(); named != nil {
		return named
	}
	return err
}

func (d *nomadDrill) skip(i restore.Item) {
	s := d.skipped[i.Kind]
	if s == nil {
		s = &skipped{names: map[string]bool{}}
		d.skipped[i.Kind] = s
	}
	// What follows is what to do about this very thing, which whoever restores is told.
	if why, _, _ := strings.Cut(i.Detail, ": "); len(s.why) <= maxReasons && !slices.Contains(s.why, why) {
		s.why = append(s.why, why)
	}
	s.n++
	s.names[i.Name] = true
}

// compare reads everything back, plans every job, and looks whether anything was started.
func (d *nomadDrill) compare(ctx context.Context, dest config.Nomad) error {
	d.rto()
	want, got, err := d.inventories(ctx, dest)
	if err != nil {
		return err
	}
	for _, name := range kindsCompared() {
		d.compareKind(name, want, got)
	}
	d.leftOut()
	d.compareFields(want, got)
	if err = d.comparePlans(ctx, dest); err != nil {
		return err
	}
	n, err := nomadData{dest}.allocations(ctx)
	if err != nil {
		return err
	}
	d.number("running allocations", 0, n)
	return nil
}

// kindsCompared are the manifest's counts, in the order of the report.
func kindsCompared() []string {
	return []string{
		"namespaces", "node_pools", "quotas", "acl_policies", "acl_roles", "acl_auth_methods", "acl_binding_rules", "acl_tokens",
		"variables", "csi_volumes", "host_volumes", "jobs", "submissions", "versions", "version_submissions",
	}
}

// compareKind compares how many things of one kind there are. What the restore left out on purpose, and said why, is not held against
// the snapshot, and is no proof of it either.
func (d *nomadDrill) compareKind(name string, want, got inventory) {
	said, known := d.in.Manifest.GetSource().GetCounts()[name]
	there := got.count(name, want)
	d.keep(name, there)
	left := d.skipped[titles()[name]]
	switch {
	case !known && want.counts[name] == 0:
		return // a kind that was not kept when this snapshot was taken
	case name == "versions" || name == "version_submissions":
		if said > 0 {
			d.incomparable(name, strconv.FormatInt(want.counts[name], 10)+" in the archive", "a restored job begins a new history")
		}
	case left != nil:
		if !known {
			said = want.counts[name]
		}
		if name == "jobs" && left.n == said {
			// It is jobs that a region is for, and none was restored.
			d.note(&lifeboatv1.Comparison{What: "jobs that can be restored", Want: atLeastText(1), Got: "0"})
		}
		if said != left.n || there != 0 {
			d.number(name+" that can be restored", said-left.n, there)
		}
		d.incomparable(name+" left out", strconv.FormatInt(left.n, 10), left.reasons())
	default:
		d.count(name, there)
	}
}

// leftOut tells of what was left out of kinds that nobody counts.
func (d *nomadDrill) leftOut() {
	counted := slices.Collect(maps.Values(titles()))
	for _, kind := range slices.Sorted(maps.Keys(d.skipped)) {
		if left := d.skipped[kind]; !slices.Contains(counted, kind) {
			d.incomparable(kind+" left out", strings.Join(capped(slices.Sorted(maps.Keys(left.names))), ", "), left.reasons())
		}
	}
}

// compareFields compares each thing with what the snapshot says about it. Jobs are left to their plans.
func (d *nomadDrill) compareFields(want, got inventory) {
	differ := 0
	for _, name := range want.sorted() {
		have, ok := got.files[name]
		w := want.files[name]
		if !ok || w.fields == nil || have.fields == nil {
			continue // counted already
		}
		if field := lacks(w.fields, have.fields, ""); field != "" {
			if differ++; differ <= maxNamed {
				d.note(&lifeboatv1.Comparison{What: field + " of " + name, Want: "as the snapshot has it", Got: "another"})
			}
		}
	}
	d.number("things whose fields differ", 0, int64(differ))
}

// comparePlans has Nomad plan each job of the snapshot: a plan that is not empty says that the job is not what was registered.
func (d *nomadDrill) comparePlans(ctx context.Context, dest config.Nomad) error {
	var planned, differ int64
	left := d.skipped[titles()["jobs"]]
	err := nomadrestore.Plans(ctx, dest, fromFile(d.file), func(job, difference string) {
		if left != nil && left.names[job] {
			return
		}
		if planned++; difference == "" {
			return
		}
		if differ++; differ <= maxNamed {
			d.note(&lifeboatv1.Comparison{What: "the plan of job " + strconv.Quote(job), Want: "empty", Got: difference})
		}
	})
	if err != nil {
		return fmt.Errorf("planning the jobs: %w", err)
	}
	d.number("jobs whose plan is empty", planned, planned-differ)
	return nil
}

// operator looks at the operator snapshot, which holds the keyring and every secret. It is not restored: it restores as a whole, and
// everything but secrets was restored from the archive.
func (d *nomadDrill) operator(ctx context.Context, s *scratch, part *lifeboatv1.Data, i int) error {
	file := filepath.Join(s.Dir(), fmt.Sprintf("part-%d.%s", i, part.GetFormat()))
	if err := failed(phaseFetch, throwaway.Guard(func() error { return d.receive(ctx, part, file) })); err != nil {
		return err
	}
	return d.phase(ctx, phaseCompare, func() error {
		if err := d.archive(file, part, "operator snapshot"); err != nil {
			return err
		}
		d.incomparable("operator snapshot: its restore", "read to its end", "it restores only as a whole, with `nomad operator snapshot restore`")
		return nil
	})
}

// inventories are what the snapshot holds and what was restored.
func (d *nomadDrill) inventories(ctx context.Context, dest config.Nomad) (want, got inventory, err error) {
	if want, err = inventoryOf(ctx, fromFile(d.file)); err != nil {
		return want, got, fmt.Errorf("reading the snapshot: %w", err)
	}
	if got, err = inventoryOf(ctx, readBack(dest)); err != nil {
		return want, got, fmt.Errorf("reading what was restored: %w", err)
	}
	return want, got, nil
}

// lacks is the path of the first field that is set in want and not the same in have; empty when there is none. A newer server has
// more fields, and an older one leaves out what is not set.
func lacks(want, have any, path string) string {
	switch w := want.(type) {
	case map[string]any:
		h, ok := have.(map[string]any)
		if !ok {
			return unlessUnset(want, path)
		}
		for _, k := range sortedKeys(w) {
			if field := lacks(w[k], h[k], path+"."+k); field != "" {
				return field
			}
		}
		return ""
	case []any:
		h, ok := have.([]any)
		if !ok || len(h) != len(w) {
			return unlessUnset(want, path)
		}
		for i := range w {
			if field := lacks(w[i], h[i], path); field != "" {
				return field
			}
		}
		return ""
	}
	if want == have {
		return ""
	}
	if have == nil {
		return unlessUnset(want, path)
	}
	return fieldName(path)
}

// unlessUnset is the field, unless it holds nothing.
func unlessUnset(want any, path string) string {
	if unset(want) {
		return ""
	}
	return fieldName(path)
}

func fieldName(path string) string {
	if path == "" {
		return "the content"
	}
	return "field " + path[1:]
}

func unset(v any) bool {
	switch v := v.(type) {
	case nil:
		return true
	case string:
		return v == ""
	case bool:
		return !v
	case float64:
		return v == 0
	case map[string]any:
		return !slices.ContainsFunc(sortedKeys(v), func(k string) bool { return !unset(v[k]) })
	case []any:
		return len(v) == 0
	}
	return false
}
