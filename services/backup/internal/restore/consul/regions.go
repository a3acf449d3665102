package consul

import (
	"cmp"
	"fmt"
	"slices"
	"strings"
	"unicode/utf8"

	"github.com/lifeboat-fleet/lifeboat/services/backup/internal/restore"
)

// region is a part of the snapshot, all names that begin with from, which comes to names that begin with to. A region may have
// others within it. Names keep their order within one.
type region struct{ from, to string }

// regions are the parts that a selection makes of a snapshot.
type regions struct {
	// The longest first, so that the first that fits is the innermost.
	byFrom, byTo []*region
}

func newRegions(sel Selection) (*regions, error) {
	if err := checkText(sel); err != nil {
		return nil, err
	}
	prefixes := outermost(sel.Prefixes)
	renames := slices.Clone(sel.Rename)
	slices.SortStableFunc(renames, func(a, b restore.Rename) int { return cmp.Compare(len(b.Old), len(a.Old)) })
	var all []*region
	for i, r := range renames {
		if slices.ContainsFunc(renames[:i], func(other restore.Rename) bool { return other.Old == r.Old }) {
			return nil, fmt.Errorf("the prefix %q is renamed twice", r.Old)
		}
		within := slices.ContainsFunc(prefixes, func(p string) bool { return strings.HasPrefix(r.Old, p) })
		around := slices.ContainsFunc(prefixes, func(p string) bool { return strings.HasPrefix(p, r.Old) })
		if within {
			all = append(all, &region{r.Old, r.New})
		} else if !around {
			return nil, restore.NothingSelected(nil, renames[i:i+1])
		}
	}
	for _, p := range prefixes {
		if slices.ContainsFunc(all, func(r *region) bool { return r.from == p }) {
			continue
		}
		to := p
		for _, r := range renames {
			if rest, ok := strings.CutPrefix(p, r.Old); ok {
				to = r.New + rest
				break
			}
		}
		all = append(all, &region{p, to})
	}
	parts := &regions{byFrom: all, byTo: slices.Clone(all)}
	slices.SortFunc(parts.byFrom, func(a, b *region) int {
		return cmp.Or(cmp.Compare(len(b.from), len(a.from)), cmp.Compare(a.from, b.from))
	})
	slices.SortFunc(parts.byTo, func(a, b *region) int {
		return cmp.Or(cmp.Compare(len(b.to), len(a.to)), cmp.Compare(a.to, b.to), cmp.Compare(a.from, b.from))
	})
	for i, r := range parts.byTo[1:] {
		if before := parts.byTo[i]; before.to == r.to {
			return nil, fmt.Errorf("%q and %q would both come to %q; restore one after the other, to names of their own", before.from, r.from, r.to)
		}
	}
	return parts, nil
}

// checkText refuses what no key can begin with, since Consul's JSON has no other text.
func checkText(sel Selection) error {
	for _, p := range sel.Prefixes {
		if !utf8.ValidString(p) {
			return fmt.Errorf("the prefix %q is not UTF-8", p)
		}
	}
	for _, r := range sel.Rename {
		if !utf8.ValidString(r.Old) || !utf8.ValidString(r.New) {
			return fmt.Errorf("the rename of %q to %q is not UTF-8", r.Old, r.New)
		}
	}
	return nil
}

// outermost leaves out the prefixes that are within others; everything is the prefix "".
func outermost(prefixes []string) []string {
	if len(prefixes) == 0 {
		return []string{""}
	}
	sorted := slices.Clone(prefixes)
	slices.Sort(sorted)
	out := sorted[:1]
	for _, p := range sorted[1:] {
		if !strings.HasPrefix(p, out[len(out)-1]) {
			out = append(out, p)
		}
	}
	return out
}

// of gives the region of a snapshot's key; nil when it was not selected.
func (rs *regions) of(name string) *region {
	for _, r := range rs.byFrom {
		if strings.HasPrefix(name, r.from) {
			return r
		}
	}
	return nil
}

// at gives the region that a name at the destination belongs to: the one of the snapshot's key that would come there; nil when
// none would. Of regions whose names are within another's, the inner ones have them.
func (rs *regions) at(name string) *region {
	for _, r := range rs.byTo {
		if rest, ok := strings.CutPrefix(name, r.to); ok && rs.of(r.from+rest) == r {
			return r
		}
	}
	return nil
}

// place says under which name a snapshot's key comes back; r is its region, nil when it was not selected.
func (rs *regions) place(name string) (to string, r *region, err error) {
	if r = rs.of(name); r == nil {
		return "", nil, nil
	}
	if r.from == r.to && len(rs.byTo) == 1 {
		return name, r, nil
	}
	to = r.to + name[len(r.from):]
	if other := rs.at(to); other != r {
		return "", nil, fmt.Errorf("the key %q would come to %q, among the names that %q is renamed to; restore one after the other, by "+
			"prefix", name, to, other.from)
	}
	return to, r, nil
}

// unmet is what of a selection no key of the snapshot was found for yet.
type unmet struct {
	prefixes []string
	renames  []restore.Rename
}

// newUnmet begins with all of it. Everything fits even a snapshot that holds nothing.
func newUnmet(sel Selection) *unmet {
	u := &unmet{prefixes: slices.Clone(sel.Prefixes), renames: slices.Clone(sel.Rename)}
	u.meet("")
	return u
}

// meet takes out what a selected key fits.
func (u *unmet) meet(name string) {
	u.prefixes = slices.DeleteFunc(u.prefixes, func(p string) bool { return strings.HasPrefix(name, p) })
	u.renames = slices.DeleteFunc(u.renames, func(r restore.Rename) bool { return strings.HasPrefix(name, r.Old) })
}
