package nomad

import (
	"archive/tar"
	"context"
	"encoding/json"
	"net/http"
	"net/url"
	"slices"

	"github.com/hashicorp/nomad/api"
)

// spaced is one kind of what belongs to a namespace and is listed by name and read one by one.
type spaced struct {
	count, title, list, one, dir string
	params                       map[string]string
	id                           func(o object) string
	need                         string
	// form makes a file's content of an answer.
	form func(o object) any
}

// variables writes every variable with its values. A lock is not kept: whoever held it is gone. Nor are times and indexes,
// so that each lock that is taken and given back does not look like a change.
func (r *reader) variables(ctx context.Context, tw *tar.Writer) error {
	return r.spaced(ctx, tw, spaced{
		count: "variables", title: "variable", list: "/v1/vars", one: "/v1/var/", dir: "variables/",
		id: func(o object) string { return o.text("Path") }, need: needVariables,
		form: func(o object) any { return o.without("Lock", "CreateTime", "ModifyTime", "CreateIndex", "ModifyIndex") },
	})
}

// volumes writes the volumes in the form that their register API takes.
func (r *reader) volumes(ctx context.Context, tw *tar.Writer) error {
	id := func(o object) string { return o.text("ID") }
	err := r.spaced(ctx, tw, spaced{
		count: "csi_volumes", title: "CSI volume", list: "/v1/volumes", one: "/v1/volume/csi/", dir: "volumes/csi/",
		params: map[string]string{"type": "csi"}, id: id, need: needNamespace, form: csiVolume,
	})
	if err != nil {
		return err
	}
	if r.counts["csi_volumes"] > 0 {
		r.miss("secrets and mount flags of CSI volumes",
			"Nomad tells nobody whether there are any; only the operator snapshot (full: true) holds them")
	}
	return r.spaced(ctx, tw, spaced{
		count: "host_volumes", title: "host volume", list: "/v1/volumes", one: "/v1/volume/host/", dir: "volumes/host/",
		params: map[string]string{"type": "host"}, id: id, need: needNamespace,
		form: func(o object) any {
			// A volume that is registered anew may not bring its id, and its state is the client's.
			return map[string]any{"Volume": o.without(
				"ID", "State", "Allocations", "CreateTime", "ModifyTime", "CreateIndex", "ModifyIndex")}
		},
	})
}

// csiVolume leaves out who has claimed the volume and how its plugin is.
func csiVolume(o object) any {
	o.without("AccessMode", "AttachmentMode", "ReadAllocs", "WriteAllocs", "Allocations", "Schedulable", "Provider",
		"ProviderVersion", "ControllerRequired", "ControllersHealthy", "ControllersExpected", "NodesHealthy",
		"NodesExpected", "ResourceExhausted", "Secrets", "CreateTime", "ModifyTime", "CreateIndex", "ModifyIndex")
	var mount object
	if json.Unmarshal(o["MountOptions"], &mount) == nil && mount != nil {
		// What stands there instead of them would be passed to mount.
		if b, err := json.Marshal(mount.without("MountFlags")); err == nil {
			o["MountOptions"] = b
		}
	}
	return map[string]any{"Volumes": []object{o}}
}

// spaced writes everything of a kind.
func (r *reader) spaced(ctx context.Context, tw *tar.Writer, k spaced) error {
	var names []name
	for _, ns := range r.spaces() {
		q := api.QueryOptions{Namespace: ns, Params: k.params}
		_, err := pages(ctx, r, k.list, q, func(o object) error {
			names = append(names, name{o.text("Namespace"), k.id(o)})
			return nil
		})
		switch {
		case statusOf(err) == http.StatusForbidden:
			r.deny("all "+k.title+"s of namespace", ns, k.need)
		case statusOf(err) == http.StatusNotFound: // a version before there were any
		case err != nil:
			return r.broken(ctx, "listing "+k.dir, err)
		}
	}
	slices.SortFunc(names, name.compare)
	for _, name := range slices.Compact(names) {
		var o object
		_, err := r.get(ctx, k.one+url.PathEscape(name.id), &api.QueryOptions{Namespace: name.namespace}, &o)
		switch {
		case statusOf(err) == http.StatusForbidden:
			r.deny(k.title, name.String(), k.need)
			continue
		case statusOf(err) == http.StatusNotFound:
			r.miss(k.title+" "+name.String(), "removed while the region was read")
			continue
		case err != nil:
			return r.client.failed(ctx, "reading "+k.title+" "+name.String(), err)
		}
		file := k.dir + escape(name.namespace) + "/" + escape(name.id) + ".json"
		if err := add(tw, file, k.form(o)); err != nil {
			return err
		}
		r.counts[k.count]++
	}
	return nil
}
