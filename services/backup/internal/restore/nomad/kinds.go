package nomad

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"net/url"
	"slices"
	"strings"

	"github.com/hashicorp/nomad/api"
)

// object is a thing of which only some fields matter here. The others pass as they are, those of later versions too.
type object map[string]json.RawMessage

// text is a field's string; empty when there is none.
func (o object) text(field string) string {
	var s string
	if json.Unmarshal(o[field], &s) != nil {
		return ""
	}
	return s
}

// number is a field's number; zero when there is none.
func (o object) number(field string) (n uint64) {
	if json.Unmarshal(o[field], &n) != nil {
		return 0
	}
	return n
}

// flag is a field's truth; false when there is none.
func (o object) flag(field string) (b bool) {
	return json.Unmarshal(o[field], &b) == nil && b
}

// set gives a field a value. What is set here are strings, numbers and truths, which always encode.
func (o object) set(field string, v any) {
	if b, err := json.Marshal(v); err == nil {
		o[field] = b
	}
}

// without is a copy that lacks fields.
func (o object) without(fields ...string) object {
	c := make(object, len(o))
	for f, v := range o {
		if !slices.Contains(fields, f) {
			c[f] = v
		}
	}
	return c
}

// kindID is what an item's kind is called.
type kindID string

const (
	kindPool      kindID = "node pool"
	kindQuota     kindID = "quota"
	kindNamespace kindID = "namespace"
	kindPolicy    kindID = "ACL policy"
	kindRole      kindID = "ACL role"
	kindMethod    kindID = "ACL auth method"
	kindRule      kindID = "ACL binding rule"
	kindToken     kindID = "ACL token"
	kindVariable  kindID = "variable"
	kindCSI       kindID = "CSI volume"
	kindHost      kindID = "host volume"
	kindJob       kindID = "job"
	kindScheduler kindID = "scheduler configuration"
)

// key is a name among those of several kinds.
func (k kindID) key(n string) string { return string(k) + " " + n }

// need is something that must be at the destination before what needs it.
type need struct {
	kind kindID
	id   string
}

// kind is one kind of what a region holds.
type kind struct {
	id    kindID
	title string
	dir   string // where its files are; the file itself when there is one only
	// spaced: it belongs to a namespace.
	spaced bool
	// needable: others need it, so that a selection of those may bring it along.
	needable bool
	// aclOnly: it exists only where ACLs are on.
	aclOnly bool
	// guarded: a write is refused when somebody else wrote meanwhile. The others are read right before.
	guarded bool
	// parallel: there may be many, and their order does not matter.
	parallel bool
	// rights are what a token needs, in words that follow "the token needs".
	rights string

	// wrapped is the field of a file, or of a list in it, that holds the object.
	wrapped string
	// strip are the fields that say nothing of what was configured.
	strip []string
	// key is the field that names it.
	key string
	// naming makes a name of the content, and label one for a person, where Nomad makes ids anew.
	naming func(o object) name
	label  func(n name, o object) string
	// identity says whether a file's object is the one that its path names.
	identity func(n name, o object) bool

	// list is the path that lists all; path that of one.
	list   string
	params map[string]string
	path   func(n name) string
	// inside is the field of the answer that holds the object.
	inside string
	// index is the field that a guarded write is compared with.
	index string
	// builtin says whether it is what Nomad makes by itself.
	builtin func(o object) bool
	// ignored: it is at the destination and not part of any snapshot.
	ignored func(o object) bool

	// skip is why a thing is never restored; empty when it is.
	skip func(o object) string
	// needs is what must be there first.
	needs func(n name, o object) []need
	// differ names the fields that differ, if that is not just any.
	differ func(ctx context.Context, d *destination, w *writing) ([]string, error)
	// refuse is why it cannot be written, asked before it is, and for a plan instead of it.
	refuse func(ctx context.Context, d *destination, w *writing, m mode) error
	// write writes it.
	write func(ctx context.Context, d *destination, w *writing) error
}

// writing is one thing on its way.
type writing struct {
	thing thing
	want  object   // as the snapshot has it
	seen  object   // as the destination has it; nil when it does not
	diff  []string // the fields in which these differ
	warns string   // what Nomad said about it
}

// index is what a guarded write is compared with: 0 for only if it is absent.
func (w *writing) index() uint64 {
	if w.seen == nil || w.thing.kind.index == "" {
		return 0
	}
	return w.seen.number(w.thing.kind.index)
}

// owns says whether a file is of the kind.
func (k *kind) owns(path string) bool {
	if strings.HasSuffix(k.dir, "/") {
		return strings.HasPrefix(path, k.dir)
	}
	return path == k.dir
}

// decode takes the object out of a file.
func (k *kind) decode(body []byte) (object, error) {
	var o object
	if err := json.Unmarshal(body, &o); err != nil {
		return nil, err
	}
	if k.wrapped != "" {
		raw := o[k.wrapped]
		o = nil
		var all []object
		if json.Unmarshal(raw, &all) == nil && len(all) == 1 {
			o = all[0]
		} else if err := json.Unmarshal(raw, &o); err != nil {
			return nil, err
		}
	}
	if o == nil {
		return nil, errors.New("it holds nothing")
	}
	return o, nil
}

func indexes(more ...string) []string { return append(more, "CreateIndex", "ModifyIndex", "Hash") }

const needManagement = "to be a management token"

// kinds are all, in the order in which they are restored.
func kinds() []*kind {
	return slices.Concat(basics(), acls(), []*kind{variables(), csiVolumes(), hostVolumes(), jobs(), schedulerConfiguration()})
}

// named fills in what is the same for what is named by one field and read by that name.
func named(k kind, one string) *kind {
	k.title = string(k.id)
	key := k.key
	if k.identity == nil {
		k.identity = func(n name, o object) bool { return o.text(key) == n.id }
	}
	if k.path == nil {
		k.path = func(n name) string { return one + url.PathEscape(n.id) }
	}
	return &k
}

// put writes an object as it is, to one path for all of the kind.
func put(path string) func(context.Context, *destination, *writing) error {
	return func(ctx context.Context, d *destination, w *writing) error {
		return d.put(ctx, path, w.thing.name.space, w.want, nil)
	}
}

func basics() []*kind {
	return []*kind{
		named(kind{
			id: kindPool, dir: "node_pools/", key: "Name", list: "/v1/node/pools", strip: indexes(), needable: true,
			rights: `node_pool "*" { policy = "write" }`, write: put("/v1/node/pools"),
			builtin: func(o object) bool {
				return o.text("Name") == api.NodePoolAll || o.text("Name") == api.NodePoolDefault
			},
		}, "/v1/node/pool/"),
		named(kind{
			id: kindQuota, dir: "quotas/", key: "Name", list: "/v1/quotas", strip: indexes(), needable: true,
			rights: `quota { policy = "write" }`, write: put("/v1/quota"),
		}, "/v1/quota/"),
		named(kind{
			id: kindNamespace, dir: "namespaces/", key: "Name", list: "/v1/namespaces", strip: indexes(), needable: true,
			rights: needManagement, write: put("/v1/namespace"),
			builtin: func(o object) bool {
				return o.text("Name") == api.DefaultNamespace &&
					same(o.without(indexes()...), map[string]any{"Name": "default", "Description": "Default shared namespace"})
			},
			needs: func(_ name, o object) []need {
				if quota := o.text("Quota"); quota != "" {
					return []need{{kindQuota, quota}}
				}
				return nil
			},
		}, "/v1/namespace/"),
	}
}

// digest is a name for an object's content.
func digest(o object) string {
	b, err := json.Marshal(value(o))
	if err != nil {
		return ""
	}
	sum := sha256.Sum256(b)
	return hex.EncodeToString(sum[:])
}

func variables() *kind {
	return named(kind{
		id: kindVariable, dir: "variables/", key: "Path", list: "/v1/vars", spaced: true, guarded: true, parallel: true,
		strip:    []string{"Lock", "CreateTime", "ModifyTime", "CreateIndex", "ModifyIndex"},
		index:    "ModifyIndex",
		rights:   `namespace "*" { variables { path "*" { capabilities = ["list", "read", "write"] } } }`,
		identity: func(n name, o object) bool { return o.text("Path") == n.id && o.text("Namespace") == n.space },
		needs:    inNamespace,
		write: func(ctx context.Context, d *destination, w *writing) error {
			path := "/v1/var/" + url.PathEscape(w.thing.name.id) + "?cas=" + decimal(w.index())
			err := d.put(ctx, path, w.thing.name.space, w.want, nil)
			if refused, ok := errors.AsType[*refusedError](err); ok {
				if refused.status == statusConflict { // its words are the other's value
					return errChanged
				}
				return refused.masking(w.want["Items"])
			}
			return err
		},
	}, "/v1/var/")
}

func inNamespace(n name, _ object) []need { return []need{{kindNamespace, n.space}} }

// schedulerConfiguration is one object, which every region has.
func schedulerConfiguration() *kind {
	only := func(name) string { return "/v1/operator/scheduler/configuration" }
	return named(kind{
		id: kindScheduler, dir: "scheduler_configuration.json", guarded: true, inside: "SchedulerConfig", index: "ModifyIndex",
		strip: []string{"CreateIndex", "ModifyIndex"}, rights: `operator { policy = "write" }`, path: only,
		identity: func(name, object) bool { return true },
		builtin: func(o object) bool {
			// What the broker does is no configuration, as long as it does nothing.
			return same(o.without("CreateIndex", "ModifyIndex", pauseBroker), map[string]any{
				"SchedulerAlgorithm": "binpack", "PreemptionConfig": map[string]any{"SystemSchedulerEnabled": true},
			})
		},
		differ: func(_ context.Context, _ *destination, w *writing) ([]string, error) {
			if w.seen.flag(pauseBroker) && !w.want.flag(pauseBroker) {
				w.want.set(pauseBroker, true)
				w.warns = "evaluations stay paused, as they are here: nomad operator scheduler set-config -pause-eval-broker=false"
			}
			return differences(w.want, w.seen.without("CreateIndex", "ModifyIndex")), nil
		},
		write: func(ctx context.Context, d *destination, w *writing) error {
			var answer struct{ Updated bool }
			if err := d.put(ctx, only(name{})+"?cas="+decimal(w.index()), "", w.want, &answer); err != nil {
				return err
			}
			if !answer.Updated {
				return errChanged
			}
			return nil
		},
	}, "")
}

const pauseBroker = "PauseEvalBroker"
