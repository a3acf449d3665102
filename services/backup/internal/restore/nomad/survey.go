package nomad

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"slices"
	"strings"

	"github.com/lifeboat-fleet/lifeboat/services/backup/internal/restore"
)

// inventory is what of one kind the destination has.
type inventory struct {
	// absent is why there can be none of the kind.
	absent string
	// unknown: not all names are known, so that each thing must be asked for.
	unknown bool
	names   map[name]presence
}

// presence is one thing that is at the destination.
type presence struct {
	ask     name // what it is asked for by
	label   string
	builtin bool // Nomad made it
	planned bool // it is not there yet: the plan makes it
}

// has says whether a thing is there, or may be.
func (i *inventory) has(n name) bool {
	_, ok := i.names[n]
	return ok || i.unknown
}

// survey lists what the destination has, of what matters.
func (r *run) survey(ctx context.Context) error {
	r.there = make(map[*kind]*inventory, len(r.kinds))
	r.skipped = make(map[*kind]map[name]bool, len(r.kinds))
	r.failed = make(map[*kind]map[name]bool, len(r.kinds))
	r.same = make(map[*kind]map[name]string, len(r.kinds))
	for _, k := range r.kinds {
		r.same[k] = make(map[name]string)
		r.skipped[k], r.failed[k] = make(map[name]bool), make(map[name]bool)
		inv := &inventory{unknown: !r.dest.seesAll, names: make(map[name]presence)}
		r.there[k] = inv
		switch {
		case k.list == "", k.parallel && len(r.sel.Jobs) > 0:
			inv.unknown = true
			continue
		case !r.sel.whole() && !k.needable && !k.spaced:
			continue
		}
		err := r.known(ctx, k)
		if err == nil {
			err = r.take(ctx, k, inv)
		}
		switch status := statusOf(err); {
		case status == http.StatusForbidden:
			inv.unknown = true
		case k.aclOnly && status == http.StatusBadRequest:
			inv.absent = "ACLs are off at the destination: turn them on, acl { enabled = true }, bootstrap them, and run this again"
		case status == http.StatusNotFound, status == http.StatusNotImplemented:
			inv.absent = fmt.Sprintf("the destination's Nomad knows no %s: it is older, or not Enterprise", k.title)
		case err != nil: // one that is no answer is neither of these
			return r.dest.failed("listing each "+k.title, err)
		}
	}
	return nil
}

// known says whether the destination's edition of Nomad has a kind. It is not asked for what it does not have: that would be an
// error in its log, at each restore.
func (r *run) known(ctx context.Context, k *kind) error {
	if k.id != kindQuota {
		return nil
	}
	var self struct {
		Config struct {
			Version struct{ VersionMetadata string }
		} `json:"config"`
	}
	err := r.dest.patiently(ctx, func() error { return r.dest.get(ctx, "/v1/agent/self", "", &self) })
	switch {
	case statusOf(err) != 0 && !errors.Is(err, errGone):
		return nil // the token may not ask
	case err == nil && !strings.Contains(self.Config.Version.VersionMetadata, "ent"):
		return &refusedError{status: http.StatusNotImplemented}
	}
	return err
}

// take lists one kind.
func (r *run) take(ctx context.Context, k *kind, inv *inventory) error {
	same := make(map[name]int)
	return r.dest.pages(ctx, k.list, k.params, func(o object) error {
		if k.ignored != nil && k.ignored(o) && k.id != kindToken {
			return nil
		}
		n := name{id: o.text(k.key)}
		if k.spaced {
			n.space = o.text("Namespace")
		}
		p := presence{ask: n, label: n.String(), builtin: k.builtin != nil && k.builtin(o)}
		if k.naming != nil {
			whole, err := r.whole(ctx, k, n, o)
			if whole == nil || err != nil {
				return err
			}
			p.label = k.label(n, whole)
			n = numbered(same, k.naming(whole))
		}
		inv.names[n] = p
		return nil
	})
}

// whole is what a list's entry stands for, if that says too little.
func (r *run) whole(ctx context.Context, k *kind, n name, o object) (object, error) {
	if k.id != kindRule {
		return o, nil
	}
	err := r.dest.patiently(ctx, func() (err error) {
		o, err = r.dest.read(ctx, k, n)
		return err
	})
	return o, err
}

// extra tells what is only at the destination, within what is restored.
func (r *run) extra(k *kind, rec *restore.Recorder) {
	if len(r.sel.Jobs) > 0 || k.id == kindToken || !r.sel.whole() && !k.spaced {
		return
	}
	var all []name
	for n, p := range r.there[k].names {
		if !p.builtin && !p.planned && !r.contents.names[k][n] && (!k.spaced || r.sel.hasNamespace(n.space)) {
			all = append(all, n)
		}
	}
	slices.SortFunc(all, name.compare)
	for _, n := range all {
		rec.Item(restore.Item{
			Kind: k.title, Name: r.there[k].names[n].label, Action: restore.Extra, Detail: "only at the destination",
		})
	}
}

// missing is a need that is not met; skipped says that it was left out on purpose.
func (r *run) missing(k *kind, n name, o object, m mode) (err error) {
	if k.needs == nil || m == modeCheck {
		return nil
	}
	for _, need := range k.needs(n, o) {
		on := r.kinds[slices.IndexFunc(r.kinds, func(k *kind) bool { return k.id == need.kind })]
		inv, id := r.there[on], name{id: need.id}
		switch {
		case r.skipped[on][id]:
			return skipError(fmt.Sprintf("it needs the %s %q, which was left out: run this again once that is there", on.title, need.id))
		case inv.absent != "":
			return errors.New(inv.absent)
		case r.failed[on][id]:
			return fmt.Errorf("it needs the %s %q, which could not be restored", on.title, need.id)
		case !inv.has(id):
			return fmt.Errorf("it needs the %s %q, which is neither in the snapshot nor at the destination", on.title, need.id)
		}
	}
	return nil
}
