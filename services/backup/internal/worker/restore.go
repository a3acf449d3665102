package worker

import (
	"fmt"
	"path"
	"strings"

	lifeboatv1 "github.com/lifeboat-fleet/lifeboat/proto/lifeboat/v1"
)

// restoreCommands are what a person types to restore this snapshot when no Lifeboat is left.
func restoreCommands(m *lifeboatv1.Manifest) []string {
	commands := fetchCommands(m, m.GetData())
	plain := plainName(m, m.GetData())
	switch m.GetKind() {
	case lifeboatv1.Kind_KIND_ETCD:
		commands = append(commands, fmt.Sprintf("etcdutl snapshot restore %s --data-dir DATA_DIR", plain))
	case lifeboatv1.Kind_KIND_CONSUL:
		commands = append(commands, fmt.Sprintf("consul kv import @%s", plain))
	case lifeboatv1.Kind_KIND_NOMAD:
		commands = append(commands, nomadCommands(plain)...)
	case lifeboatv1.Kind_KIND_UNSPECIFIED:
	}
	for _, d := range m.GetParts() {
		commands = append(commands, "# or all of the cluster's raft state at once, instead of the above:")
		commands = append(commands, fetchCommands(m, d)...)
		switch m.GetKind() {
		case lifeboatv1.Kind_KIND_CONSUL:
			commands = append(commands, "consul snapshot restore "+plainName(m, d))
		case lifeboatv1.Kind_KIND_NOMAD:
			commands = append(commands, "nomad operator snapshot restore "+plainName(m, d))
		case lifeboatv1.Kind_KIND_ETCD, lifeboatv1.Kind_KIND_UNSPECIFIED:
		}
	}
	return commands
}

// nomadCommands unpack the archive and bring everything back in the order in which one thing needs the other. `nomad operator
// api` ends well even when the server refuses, so its answers are to be read.
func nomadCommands(plain string) []string {
	each := func(pattern, command string) string {
		return fmt.Sprintf("find . -path './%s' | sort | xargs -r -d '\\n' -I{} %s", pattern, command)
	}
	put := func(folder, path string) string {
		return fmt.Sprintf("find . -path './%s/*.json' | sort | while read -r f; do nomad operator api -X PUT \"%s\" < \"$f\"; done", folder, path)
	}
	return []string{
		fmt.Sprintf("mkdir restore && tar -xf %s -C restore && cd restore", plain),
		each("namespaces/*.json", "nomad namespace apply -json {}"),
		each("node_pools/*.json", "nomad node pool apply -json {}"),
		put("quotas", "/v1/quota"),
		put("acl/policies", "/v1/acl/policy/$(basename \"$f\" .json)"),
		put("acl/roles", "/v1/acl/role"),
		put("acl/auth_methods", "/v1/acl/auth-method"),
		put("acl/binding_rules", "/v1/acl/binding-rule"),
		each("variables/*.json", "nomad var put -out=none @{}"),
		put("volumes/csi", "/v1/volume/csi/$(basename \"$f\" .json)/register"),
		put("volumes/host", "/v1/volume/host/register") + " # set NodeID to a node of the new cluster first",
		// From standard input: as an argument a name would be taken for a URL, and what is escaped in it undone.
		"find . -path './jobs/*/job.json' | sort | while read -r f; do nomad job run -json -detach - < \"$f\"; done",
		"nomad operator api -X PUT /v1/operator/scheduler/configuration < scheduler_configuration.json",
	}
}

func plainName(m *lifeboatv1.Manifest, d *lifeboatv1.Data) string {
	return m.GetTarget() + "." + d.GetFormat()
}

// fetchCommands fetch one object, check it, and undo its encryption and compression.
func fetchCommands(m *lifeboatv1.Manifest, d *lifeboatv1.Data) []string {
	object, plain := path.Base(d.GetKey()), plainName(m, d)
	s3 := "aws s3 cp"
	if e := m.GetStore().GetEndpoint(); strings.HasPrefix(e, "http") {
		s3 = "aws --endpoint-url " + e + " s3 cp"
	}
	decode := fmt.Sprintf("zstd -d %s -o %s", object, plain)
	if len(d.GetRecipients()) > 0 {
		decode = fmt.Sprintf("age -d -i IDENTITY_FILE %s | zstd -d -o %s", object, plain)
	}
	return []string{
		fmt.Sprintf("%s s3://%s/%s %s", s3, m.GetStore().GetBucket(), d.GetKey(), object),
		fmt.Sprintf("echo '%s  %s' | sha256sum -c", d.GetStored().GetSha256(), object),
		decode,
	}
}
