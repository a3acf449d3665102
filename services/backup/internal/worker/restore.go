package worker

import (
	"fmt"
	"path"
	"slices"
	"strings"

	lifeboatv1 "github.com/lifeboat-fleet/lifeboat/proto/lifeboat/v1"
)

// restoreCommands are what a person types to restore this snapshot when no Lifeboat is left, for a POSIX shell with GNU's tools.
// IDENTITY_FILE and DATA_DIR are to be replaced, or are such files in the working folder. They are ready to paste, and stop at
// what fails when a shell with -e reads them.
func restoreCommands(m *lifeboatv1.Manifest) []string {
	commands := fetchCommands(m, m.GetData())
	plain := plainName(m, m.GetData())
	switch m.GetKind() {
	case lifeboatv1.Kind_KIND_ETCD:
		commands = append(commands, etcdCommands(plain)...)
	case lifeboatv1.Kind_KIND_CONSUL:
		commands = append(commands, consulCommands(m, plain)...)
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

// etcdCommands make the data directory of a cluster of one member, which is named "default". What another cluster needs is said,
// for the commands themselves know nothing of it.
func etcdCommands(plain string) []string {
	return []string{
		"# of several members, each with its own name and URL: add --name NAME --initial-cluster NAME=PEER_URL,NAME=PEER_URL,... " +
			"--initial-cluster-token NEW_TOKEN --initial-advertise-peer-urls PEER_URL",
		"# for clients that cache what they watch, as Kubernetes: add --bump-revision 1000000000 --mark-compacted",
		fmt.Sprintf("etcdutl snapshot restore %s --data-dir DATA_DIR", plain),
	}
}

// consulCommands write all keys. `consul kv import` takes a name for a file's path: it makes "a/b" of "a//b", and stops at others.
// In a transaction any name goes.
func consulCommands(m *lifeboatv1.Manifest, plain string) []string {
	unwritable := func(worry string) bool { return strings.Contains(worry, "consul kv import") }
	if !slices.ContainsFunc(m.GetSource().GetWorries(), unwritable) {
		return []string{"consul kv import @" + plain}
	}
	// A transaction holds at most 64 operations and 512 KB (https://developer.hashicorp.com/consul/api-docs/txn). jq would do as
	// well, but it rounds flags above 2^53, as those of locks are.
	return []string{
		"# some names are changed or refused by consul kv import, so everything is written in transactions:",
		fmt.Sprintf(`sed -n 's/^{"key":\(.*\),"flags":\([0-9]*\),"value":"\(.*\)"},\{0,1\}$/`+
			`{"KV":{"Verb":"set","Key":\1,"Flags":\2,"Value":"\3"}}/p' %s`+
			` | awk '{ if (n == 64 || n && size + length($0) > 400000) { print "]"; n = size = 0 }`+
			` printf "%%s%%s", n ? "," : "[", $0; n++; size += length($0) } END { if (n) print "]" }'`+
			` | split -l 1 --filter='curl -fsS -o /dev/null ${CONSUL_CACERT:+--cacert "$CONSUL_CACERT"} -X PUT`+
			` -H "X-Consul-Token: $CONSUL_HTTP_TOKEN" --data-binary @- "${CONSUL_HTTP_ADDR:-http://127.0.0.1:8500}/v1/txn"'`, plain),
	}
}

// nomadCommands unpack the archive and bring everything back in the order in which one thing needs the other.
func nomadCommands(plain string) []string {
	each := func(pattern, command string) string {
		return fmt.Sprintf("find . -path './%s' | sort | xargs -r -d '\\n' -I{} %s", pattern, command)
	}
	put := func(folder, path string) string {
		return fmt.Sprintf("find . -path './%s/*.json' | sort | while read -r f; do put \"%s\" \"$f\"; done", folder, path)
	}
	return []string{
		fmt.Sprintf("mkdir restore && tar -xf %s -C restore && cd restore", plain),
		// `nomad operator api` ends well even when the server refuses; only -verbose tells the status, and the token as well.
		`put() { nomad operator api -verbose -X PUT "$1" < "$2" 2>&1 | grep -v '^[*>]' > ../answer; ` +
			`grep -q '^< HTTP[^ ]* 2' ../answer || { cat ../answer; echo "NOT RESTORED: $2"; false; } >&2; }`,
		each("node_pools/*.json", "nomad node pool apply -json {}"),
		put("quotas", "/v1/quota"),
		each("namespaces/*.json", "nomad namespace apply -json {}"),
		put("acl/policies", "/v1/acl/policy/$(basename \"$f\" .json)"),
		put("acl/roles", "/v1/acl/role"),
		put("acl/auth_methods", "/v1/acl/auth-method"),
		put("acl/binding_rules", "/v1/acl/binding-rule"),
		each("variables/*.json", "nomad var put -out=none @{}"),
		put("volumes/csi", "/v1/volume/csi/$(basename \"$f\" .json)/register"),
		"# set NodeID in volumes/host/*/*.json to a node of the new cluster first",
		put("volumes/host", "/v1/volume/host/register"),
		// From standard input: as an argument a name would be taken for a URL, and what is escaped in it undone.
		"find . -path './jobs/*/job.json' | sort | while read -r f; do nomad job run -json -detach - < \"$f\"; done",
		"[ ! -e scheduler_configuration.json ] || put /v1/operator/scheduler/configuration scheduler_configuration.json",
		"cd ..",
	}
}

func plainName(m *lifeboatv1.Manifest, d *lifeboatv1.Data) string {
	return m.GetTarget() + "." + d.GetFormat()
}

// fetchCommands fetch one object, check it, undo its encryption and compression, and check what came out: a pipe's status is that
// of its last command.
func fetchCommands(m *lifeboatv1.Manifest, d *lifeboatv1.Data) []string {
	object, plain := path.Base(d.GetKey()), plainName(m, d)
	s3 := "aws s3 cp"
	if e := m.GetStore().GetEndpoint(); strings.HasPrefix(e, "http") {
		s3 = "aws --endpoint-url " + e + " s3 cp"
	}
	// -f: it may be run again.
	decode := fmt.Sprintf("zstd -d -f %s -o %s", object, plain)
	if len(d.GetRecipients()) > 0 {
		decode = fmt.Sprintf("age -d -i IDENTITY_FILE %s | zstd -d -f -o %s", object, plain)
	}
	check := func(sum, file string) string { return fmt.Sprintf("echo '%s  %s' | sha256sum -c", sum, file) }
	return []string{
		fmt.Sprintf("%s %s %s", s3, quoted("s3://"+m.GetStore().GetBucket()+"/"+d.GetKey()), object),
		check(d.GetStored().GetSha256(), object),
		decode,
		check(d.GetRaw().GetSha256(), plain),
	}
}

// quoted makes one word of a text for a shell.
func quoted(s string) string {
	safe := func(r rune) bool {
		return r >= 'a' && r <= 'z' || r >= 'A' && r <= 'Z' || r >= '0' && r <= '9' || strings.ContainsRune("-_./:=@+,", r)
	}
	if strings.IndexFunc(s, func(r rune) bool { return !safe(r) }) < 0 {
		return s
	}
	return "'" + strings.ReplaceAll(s, "'", `'\''`) + "'"
}
