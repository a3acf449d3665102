package nomad

import (
	"context"
	"encoding/json"
	"fmt"
	"net/url"
)

// csiStrip is what source/nomad leaves out of a volume: claims, the plugin's health, secrets.
func csiStrip() []string {
	return []string{
		"AccessMode", "AttachmentMode", "ReadAllocs", "WriteAllocs", "Allocations", "Schedulable", "Provider", "ProviderVersion",
		"ControllerRequired", "ControllersHealthy", "ControllersExpected", "NodesHealthy", "NodesExpected", "ResourceExhausted",
		"Secrets", "CreateTime", "ModifyTime", "CreateIndex", "ModifyIndex",
	}
}

func csiVolumes() *kind {
	return named(kind{
		id: kindCSI, dir: "volumes/csi/", key: "ID", list: "/v1/volumes", params: map[string]string{"type": "csi"}, spaced: true,
		wrapped: "Volumes", strip: csiStrip(), rights: `namespace "*" { capabilities = ["csi-write-volume"] } and plugin { policy = "read" }`,
		identity: func(n name, o object) bool { return o.text("ID") == n.id && o.text("Namespace") == n.space },
		needs:    inNamespace,
		differ: func(_ context.Context, _ *destination, w *writing) ([]string, error) {
			seen := w.seen.without(csiStrip()...)
			var mount object
			if json.Unmarshal(seen["MountOptions"], &mount) == nil && mount != nil {
				seen.set("MountOptions", mount.without("MountFlags"))
			}
			return differences(w.want, seen), nil
		},
		refuse: func(ctx context.Context, d *destination, w *writing, _ mode) error {
			plugin := w.want.text("PluginID")
			var p object
			err := d.get(ctx, "/v1/plugin/csi/"+url.PathEscape(plugin), "", &p)
			if statusOf(err) == statusNotFound || err == nil && p.flag("ControllerRequired") && p.number("ControllersHealthy") == 0 {
				return skipError(fmt.Sprintf("its plugin %q does not run at the destination: run this again once it does", plugin))
			}
			return err
		},
		write: func(ctx context.Context, d *destination, w *writing) error {
			w.warns = "secrets and mount flags, if it had any, are in no snapshot"
			path := "/v1/volume/csi/" + url.PathEscape(w.thing.name.id) + "/register"
			return d.put(ctx, path, w.thing.name.space, map[string]any{"Volumes": []object{w.want}}, nil)
		},
	}, "/v1/volume/csi/")
}

// hostVolumes are on one node each, and get a new id when they are registered: the same name on the same node is the same.
func hostVolumes() *kind {
	strip := []string{"ID", "State", "Allocations", "CreateTime", "ModifyTime", "CreateIndex", "ModifyIndex"}
	label := func(o object) name {
		return name{o.text("Namespace"), o.text("Name") + " on node " + o.text("NodeID")}
	}
	return named(kind{
		id: kindHost, dir: "volumes/host/", key: "ID", list: "/v1/volumes", params: map[string]string{"type": "host"}, spaced: true,
		wrapped: "Volume", strip: strip, rights: `namespace "*" { capabilities = ["host-volume-register"] } and node { policy = "read" }`,
		naming:   label,
		label:    func(_ name, o object) string { return label(o).String() },
		identity: func(n name, o object) bool { return o.text("Namespace") == n.space },
		needs:    inNamespace,
		refuse: func(ctx context.Context, d *destination, w *writing, _ mode) error {
			node := w.want.text("NodeID")
			err := d.get(ctx, "/v1/node/"+url.PathEscape(node), "", nil)
			// A node that is not there is a 404, or a 500 of older versions that says so.
			if status := statusOf(err); status == statusNotFound || status != 0 && refusal(err, "node not found", "Unknown node") {
				return skipError("its data is on node " + node + ", which is not at the destination: make it on another one " +
					"by nomad volume create, see volumes/host/ in the archive, and bring its data there")
			}
			return err
		},
		write: func(ctx context.Context, d *destination, w *writing) error {
			o := w.want
			if w.seen != nil {
				o = o.without()
				o["ID"] = w.seen["ID"]
			}
			return d.put(ctx, "/v1/volume/host/register", w.thing.name.space, map[string]any{"Volume": o}, nil)
		},
	}, "/v1/volume/host/")
}
