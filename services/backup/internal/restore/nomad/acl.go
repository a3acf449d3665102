package nomad

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/url"
	"slices"
	"strings"
)

// redacted is what Nomad shows instead of a secret.
const redacted = `"redacted"`

func acls() []*kind {
	all := []*kind{policies(), roles(), authMethods(), bindingRules(), tokens()}
	for _, k := range all {
		k.aclOnly, k.rights = true, needManagement
	}
	return all
}

func policies() *kind {
	return named(kind{
		id: kindPolicy, dir: "acl/policies/", key: "Name", list: "/v1/acl/policies", strip: indexes("RulesJSON"),
		write: func(ctx context.Context, d *destination, w *writing) error {
			return d.put(ctx, "/v1/acl/policy/"+url.PathEscape(w.thing.name.id), "", w.want, nil)
		},
	}, "/v1/acl/policy/")
}

func roles() *kind {
	return named(kind{
		id: kindRole, dir: "acl/roles/", key: "Name", list: "/v1/acl/roles", strip: indexes("ID"),
		needs: func(_ name, o object) (all []need) {
			for _, policy := range names(o["Policies"]) {
				all = append(all, need{kindPolicy, policy})
			}
			return all
		},
		write: func(ctx context.Context, d *destination, w *writing) error {
			if w.seen != nil {
				o := w.want.without()
				o["ID"] = w.seen["ID"]
				return d.put(ctx, "/v1/acl/role/"+url.PathEscape(w.seen.text("ID")), "", o, nil)
			}
			err := d.put(ctx, "/v1/acl/role", "", w.want, nil)
			if refused, ok := errors.AsType[*refusedError](err); ok && strings.Contains(refused.text, "already exists") {
				return errChanged
			}
			return err
		},
	}, "/v1/acl/role/name/")
}

func authMethods() *kind {
	return named(kind{
		id: kindMethod, dir: "acl/auth_methods/", key: "Name", list: "/v1/acl/auth-methods",
		strip: indexes("CreateTime", "ModifyTime"),
		refuse: func(_ context.Context, _ *destination, w *writing, _ mode) error {
			if !hasSecret(w.want) {
				return nil
			}
			file := "acl/auth_methods/" + escape(w.thing.name.id) + ".json"
			if w.seen == nil {
				return skipError("its secret is in no snapshot: make it from " + file +
					", with the secret, by nomad acl auth-method create; or restore the operator snapshot. Then run this again")
			}
			if slices.ContainsFunc(w.diff, func(f string) bool { return strings.HasPrefix(f, "Config") }) {
				return fmt.Errorf("its configuration differs in %s, and to replace it is to lose its secret, which is in no snapshot: "+
					"change it by nomad acl auth-method update, see %s", list(w.diff), file)
			}
			return nil
		},
		write: func(ctx context.Context, d *destination, w *writing) error {
			path, o := "/v1/acl/auth-method", w.want
			if w.seen != nil {
				path += "/" + url.PathEscape(w.thing.name.id)
			}
			if hasSecret(o) {
				o = o.without("Config") // Nomad keeps the one that it has
			}
			return d.put(ctx, path, "", o, nil)
		},
	}, "/v1/acl/auth-method/")
}

// bindingRules have no names, and get a new id whenever they are created: one with the same content is the same.
func bindingRules() *kind {
	strip := indexes("ID", "CreateTime", "ModifyTime")
	return named(kind{
		id: kindRule, dir: "acl/binding_rules/", key: "ID", list: "/v1/acl/binding-rules", strip: strip,
		naming: func(o object) name { return name{id: digest(o.without(strip...))} },
		label: func(n name, o object) string {
			return strings.TrimSuffix(o.text("AuthMethod")+"/"+n.id, "/")
		},
		identity: func(name, object) bool { return true },
		needs:    func(_ name, o object) []need { return []need{{kindMethod, o.text("AuthMethod")}} },
		write:    put("/v1/acl/binding-rule"),
	}, "/v1/acl/binding-rule/")
}

// tokens are there to know what there was.
func tokens() *kind {
	return named(kind{
		id: kindToken, dir: "acl/tokens/", key: "AccessorID", list: "/v1/acl/tokens", strip: indexes(),
		ignored: func(object) bool { return true },
		skip: func(o object) string {
			how := []string{"-type=" + o.text("Type")}
			if n := o.text("Name"); n != "" {
				how = append(how, fmt.Sprintf("-name=%q", n))
			}
			for _, p := range names(o["Policies"]) {
				how = append(how, fmt.Sprintf("-policy=%q", p))
			}
			unknown := ""
			for _, role := range names(o["Roles"]) {
				if role == "" { // snapshots of older versions hold its id only, and that was another region's
					unknown = ", with its roles, whose names this snapshot does not hold"
					continue
				}
				how = append(how, fmt.Sprintf("-role-name=%q", role))
			}
			if o.flag("Global") {
				how = append(how, "-global")
			}
			return "its secret is in no snapshot: make a new one by nomad acl token create " + strings.Join(how, " ") + unknown +
				", or restore the operator snapshot"
		},
	}, "/v1/acl/token/")
}

// hasSecret says whether an auth method has a secret that no snapshot holds.
func hasSecret(o object) bool { return strings.Contains(string(o["Config"]), redacted) }

// names are those in a list of names, or of links by name.
func names(raw json.RawMessage) (all []string) {
	if json.Unmarshal(raw, &all) == nil {
		return all
	}
	var links []struct{ Name string }
	if json.Unmarshal(raw, &links) != nil {
		return nil
	}
	all = nil // a list that did not fit left empty names
	for _, l := range links {
		all = append(all, l.Name)
	}
	return all
}
