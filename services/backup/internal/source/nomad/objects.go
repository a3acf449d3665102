package nomad

import (
	"archive/tar"
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"net/url"
	"slices"
	"strings"

	"github.com/hashicorp/nomad/api"
)

// kind is one kind of what a region holds besides jobs, all of it in the form that Nomad's own commands take.
type kind struct {
	count string // its name among the counts
	title string // of one, in messages
	list  string // the path that lists all
	one   string // the path of one, before its key; empty when the list says everything
	key   string // the field that one is asked for by
	file  string // the field that the file is named for
	dir   string
	strip []string
	need  string
	only  edition
	skip  func(r *reader, o object) bool
	note  func(r *reader, o object) // is given what a list says, before any of it is left out
	also  func(r *reader, tw *tar.Writer, file string, o object) error
}

// edition is what a Nomad must be to have a kind at all. To the others the question would be an error in their log.
type edition int

const (
	every edition = iota
	withACLs
	enterprise
)

func indexes(more ...string) []string { return append(more, "CreateIndex", "ModifyIndex", "Hash") }

// lists are the kinds whose list says everything.
func lists() []kind {
	return []kind{
		{
			count: "namespaces", title: "namespace", list: "/v1/namespaces", key: "Name", file: "Name", dir: "namespaces/",
			strip: indexes(), need: needNamespace,
			skip: func(r *reader, o object) bool {
				return len(r.wanted) > 0 && !slices.Contains(r.wanted, o.text("Name"))
			},
		},
		{
			count: "node_pools", title: "node pool", list: "/v1/node/pools", key: "Name", file: "Name", dir: "node_pools/",
			strip: indexes(), need: needNodePool,
			// Every region has these two, and they cannot be changed.
			skip: func(_ *reader, o object) bool {
				return o.text("Name") == api.NodePoolAll || o.text("Name") == api.NodePoolDefault
			},
		},
		{
			count: "quotas", title: "quota", list: "/v1/quotas", key: "Name", file: "Name", dir: "quotas/",
			strip: indexes(), need: needQuota, only: enterprise,
		},
		{
			count: "acl_roles", title: "ACL role", list: "/v1/acl/roles", key: "Name", file: "Name", dir: "acl/roles/",
			// A role that is created may not bring its id.
			strip: indexes("ID"), need: needManagement, only: withACLs,
			note: func(r *reader, o object) { r.roles[o.text("ID")] = o.text("Name") },
		},
		{
			count: "acl_tokens", title: "ACL token", list: "/v1/acl/tokens", key: "AccessorID", file: "AccessorID",
			dir: "acl/tokens/", strip: indexes(), need: needManagement, only: withACLs, note: nameRoles,
			// Those that expire come from a login and go by themselves; the next login makes them anew.
			skip: func(_ *reader, o object) bool {
				expires, ok := o["ExpirationTime"]
				return ok && string(expires) != "null"
			},
		},
	}
}

// nameRoles gives the roles of a token their names. Nomad's list of tokens has the ids only, and those are gone with the region.
func nameRoles(r *reader, o object) {
	var links []struct{ ID, Name string }
	if json.Unmarshal(o["Roles"], &links) != nil || len(links) == 0 {
		return
	}
	for i, l := range links {
		links[i].Name = cmp.Or(l.Name, r.roles[l.ID])
	}
	if b, err := json.Marshal(links); err == nil {
		o["Roles"] = b
	}
}

// details are the kinds that are read one by one.
func details() []kind {
	return []kind{
		{
			count: "acl_policies", title: "ACL policy", list: "/v1/acl/policies", one: "/v1/acl/policy/", key: "Name",
			file: "Name", dir: "acl/policies/", strip: indexes("RulesJSON"), need: needManagement, only: withACLs,
			// The rules alone are what `nomad acl policy apply` takes.
			also: func(_ *reader, tw *tar.Writer, file string, o object) error {
				return addBytes(tw, file+".hcl", []byte(o.text("Rules")))
			},
		},
		{
			count: "acl_auth_methods", title: "ACL auth method", list: "/v1/acl/auth-methods", one: "/v1/acl/auth-method/",
			key: "Name", file: "Name", dir: "acl/auth_methods/", strip: indexes("CreateTime", "ModifyTime"),
			need: needManagement, only: withACLs,
			also: func(r *reader, _ *tar.Writer, _ string, o object) error {
				if strings.Contains(string(o["Config"]), `"redacted"`) {
					r.miss("secrets of ACL auth method "+o.text("Name"),
						"Nomad tells nobody; only the operator snapshot (full: true) holds them")
				}
				return nil
			},
		},
		{
			count: "acl_binding_rules", title: "ACL binding rule", list: "/v1/acl/binding-rules",
			one: "/v1/acl/binding-rule/", key: "ID", file: "ID", dir: "acl/binding_rules/",
			strip: indexes("ID", "CreateTime", "ModifyTime"), need: needManagement, only: withACLs,
		},
	}
}

// is says whether the region's Nomad is of an edition. When that cannot be told, it is.
func (r *reader) is(ctx context.Context, e edition) (bool, error) {
	switch e {
	case withACLs:
		return !r.token.off, nil
	case enterprise:
		var self struct {
			Config struct {
				Version struct{ VersionMetadata string }
			} `json:"config"`
		}
		_, err := r.get(ctx, "/v1/agent/self", &api.QueryOptions{}, &self)
		switch {
		case statusOf(err) != 0:
			return true, nil
		case err != nil:
			return false, r.client.failed(ctx, "asking the agent for its edition", err)
		}
		return strings.Contains(self.Config.Version.VersionMetadata, "ent"), nil
	default:
		return true, nil
	}
}

// all reads a list, by the field that files are named for. It is empty when the token may not, or when this Nomad has
// nothing of the kind: ACLs are off, or it is an Enterprise feature.
func (r *reader) all(ctx context.Context, k kind) (map[string]object, error) {
	found := make(map[string]object)
	if ok, err := r.is(ctx, k.only); !ok {
		return nil, err
	}
	_, err := pages(ctx, r, k.list, api.QueryOptions{}, func(o object) error {
		if o.text(k.key) == "" {
			return r.damaged(ctx, "listing "+k.dir, errors.New("one has no "+k.key))
		}
		if k.note != nil {
			k.note(r, o)
		}
		if k.skip == nil || !k.skip(r, o) {
			found[o.text(k.file)] = o
		}
		return nil
	})
	switch status := statusOf(err); {
	case status == http.StatusForbidden:
		r.deny("all of "+strings.TrimSuffix(k.dir, "/"), "", k.need)
		return nil, nil
	case aclsOff(err), status == http.StatusNotFound, status == http.StatusNotImplemented:
		return nil, nil
	}
	return found, r.broken(ctx, "listing "+k.dir, err)
}

// listed writes everything of a kind whose list says all.
func (r *reader) listed(ctx context.Context, tw *tar.Writer, k kind) error {
	found, err := r.all(ctx, k)
	if err != nil {
		return err
	}
	for _, name := range sortedKeys(found) {
		if err := add(tw, k.dir+escape(name)+".json", found[name].without(k.strip...)); err != nil {
			return err
		}
		r.counts[k.count]++
	}
	if k.count == "namespaces" {
		r.unknown(found)
	}
	return nil
}

// unknown tells of configured namespaces that there are none of: a name that was mistyped would else back up nothing.
func (r *reader) unknown(found map[string]object) {
	for _, name := range r.wanted {
		if _, ok := found[name]; !ok && !r.isDenied("all of namespaces") {
			r.miss("namespace "+name, "there is none of this name, or the token may not see it")
			r.worries = append(r.worries, fmt.Sprintf("the namespace %q is to be backed up, and Nomad shows none of this name", name))
		}
	}
}

// detailed writes everything of a kind that is read one by one.
func (r *reader) detailed(ctx context.Context, tw *tar.Writer, k kind) error {
	found, err := r.all(ctx, k)
	if err != nil {
		return err
	}
	for _, name := range sortedKeys(found) {
		var o object
		_, err := r.get(ctx, k.one+url.PathEscape(found[name].text(k.key)), &api.QueryOptions{}, &o)
		switch status := statusOf(err); {
		case status == http.StatusForbidden:
			r.deny(k.title, name, k.need)
			continue
		case status == http.StatusNotFound:
			r.miss(k.title+" "+name, "removed while the region was read")
			continue
		case err != nil:
			return r.client.failed(ctx, "reading "+k.title+" "+name, err)
		}
		file := k.dir + escape(name)
		if k.also != nil {
			if err := k.also(r, tw, file, o); err != nil {
				return err
			}
		}
		if err := add(tw, file+".json", o.without(k.strip...)); err != nil {
			return err
		}
		r.counts[k.count]++
	}
	return nil
}
