package app

import (
	"context"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"google.golang.org/protobuf/types/known/timestamppb"

	"github.com/lifeboat-fleet/lifeboat/fleet/config"
	"github.com/lifeboat-fleet/lifeboat/fleet/fleettest/bintest"
	"github.com/lifeboat-fleet/lifeboat/fleet/service"
	lifeboatv1 "github.com/lifeboat-fleet/lifeboat/proto/lifeboat/v1"
	"github.com/lifeboat-fleet/lifeboat/services/backup/internal/catalog"
	"github.com/lifeboat-fleet/lifeboat/services/backup/internal/source"
	"github.com/lifeboat-fleet/lifeboat/services/backup/internal/source/consul"
	"github.com/lifeboat-fleet/lifeboat/services/backup/internal/source/nomad"
)

// secret is in every value of these tests, and in nothing that a command prints.
const secret = "hunter2"

func startConsul(t *testing.T, o bintest.ConsulOptions) *bintest.Consul {
	t.Helper()
	c, err := bintest.StartConsulWith(t.Context(), t.TempDir(), o)
	require.NoError(t, err)
	t.Cleanup(func() { assert.NoError(t, c.Kill()) })
	return c
}

// export is what the Consul source gives: the JSON of `consul kv export`.
func export(t *testing.T, keys map[string]string) []byte {
	t.Helper()
	all := []map[string]any{}
	for _, k := range sortedKeys(keys) {
		all = append(all, map[string]any{"key": k, "flags": 42, "value": base64.StdEncoding.EncodeToString([]byte(keys[k]))})
	}
	b, err := json.MarshalIndent(all, "", "\t")
	require.NoError(t, err)
	return b
}

func someKeys(n int) map[string]string {
	keys := map[string]string{}
	for i := range n {
		keys[fmt.Sprintf("config/app-%05d", i)] = fmt.Sprintf("%s-%d", secret, i)
	}
	return keys
}

// request sends to a server and gives what it answers.
func request(t *testing.T, method, address, body string) string {
	t.Helper()
	req, err := http.NewRequestWithContext(t.Context(), method, address, strings.NewReader(body))
	require.NoError(t, err)
	resp, err := http.DefaultClient.Do(req)
	require.NoError(t, err)
	b, err := io.ReadAll(resp.Body)
	require.NoError(t, err)
	require.NoError(t, resp.Body.Close())
	if resp.StatusCode != http.StatusNotFound {
		require.Equal(t, http.StatusOK, resp.StatusCode, "%s %s: %s", method, address, b)
	}
	return string(b)
}

// keysOf are all that a Consul holds.
func keysOf(t *testing.T, address string) map[string]string {
	t.Helper()
	var all []struct {
		Key   string
		Flags uint64
		Value []byte
	}
	body := request(t, http.MethodGet, address+"/v1/kv/?recurse", "")
	if body != "" {
		require.NoError(t, json.Unmarshal([]byte(body), &all))
	}
	keys := map[string]string{}
	for _, k := range all {
		keys[k.Key] = string(k.Value)
	}
	return keys
}

// document is what --output json prints.
type document struct {
	Target      string         `json:"target"`
	SnapshotID  string         `json:"snapshot_id"`
	Destination string         `json:"destination"`
	Mode        string         `json:"mode"`
	Items       []restoredItem `json:"items"`
	Summary     struct {
		Created, Changed, Same, Differs, Extra, Skipped, Failed, Bytes int64
	} `json:"summary"`
	Complete bool   `json:"complete"`
	Error    string `json:"error"`
}

func parse(t *testing.T, stdout string) document {
	t.Helper()
	var d document
	require.NoError(t, json.Unmarshal([]byte(stdout), &d), stdout)
	return d
}

// restores runs `lifeboat restore`, and sees that no value is shown.
func (l *lab) restores(t *testing.T, args ...string) (stdout, stderr string, code int) {
	t.Helper()
	stdout, stderr, code = l.lifeboat(t, append([]string{"restore"}, append(args, "--work-dir", l.dir+"/work")...)...)
	assert.NotContains(t, stdout+stderr, secret)
	left, err := os.ReadDir(l.dir + "/work")
	if !os.IsNotExist(err) {
		require.NoError(t, err)
	}
	assert.Empty(t, left, "nothing of the snapshot stays")
	return stdout, stderr, code
}

func TestRestoreConsul(t *testing.T) {
	l, c := labFor(t), startConsul(t, bintest.ConsulOptions{})
	keys := map[string]string{"config/a": secret, "config/b": secret + "b", "certs/c": secret + "c"}
	m := l.mustCommit(t, plan{target: consulTarget, raw: export(t, keys), encrypted: true, keys: 3})
	to := []string{consulTarget, "--to", c.Address, "--identity-file", l.dir + "/lifeboat.key"}
	with := func(more ...string) []string { return append(slices.Clone(to), more...) }

	// Without --apply it plans.
	out, errs, code := l.restores(t, to...)
	assert.Zero(t, code, errs)
	assert.Contains(t, out, m.GetId()+" of consul-kv, taken ")
	assert.Regexp(t, `(?m)^create   key          config/a +`, out)
	assert.Contains(t, out, "\n3 to create\ndo it with --apply\n")
	assert.Empty(t, keysOf(t, c.Address), "a plan writes nothing")

	// As JSON: one document, with the same.
	out, _, code = l.restores(t, with("--plan", "--output", "json", "--prefix", "config/")...)
	assert.Zero(t, code)
	d := parse(t, out)
	assert.Equal(t, "plan", d.Mode)
	assert.Equal(t, m.GetId(), d.SnapshotID)
	assert.Equal(t, c.Address, d.Destination)
	assert.True(t, d.Complete)
	assert.Len(t, d.Items, 2)
	assert.Equal(t, int64(2), d.Summary.Created)

	// All of it, and again: then everything is the same.
	out, errs, code = l.restores(t, with("--apply")...)
	assert.Zero(t, code, errs)
	assert.Contains(t, out, "3 created; ")
	assert.Equal(t, keys, keysOf(t, c.Address))
	assert.Contains(t, errs, "no record of this restore is in the audit log", "no NATS runs here, and it must do without")
	out, _, code = l.restores(t, with("--apply")...)
	assert.Zero(t, code)
	assert.Contains(t, out, "0 created, 3 were the same; ")
	out, _, code = l.restores(t, with("--plan", "--all")...)
	assert.Zero(t, code)
	assert.Regexp(t, `(?m)^same     key          certs/c`, out)
	assert.Contains(t, out, "nothing is to be done")

	// What differs may be newer: a part leaves it and says so, all of it is refused, --force replaces it.
	request(t, http.MethodPut, c.Address+"/v1/kv/config/a", "newer-"+secret)
	request(t, http.MethodPut, c.Address+"/v1/kv/config/mine", "only here")
	request(t, http.MethodDelete, c.Address+"/v1/kv/config/b", "")
	out, errs, code = l.restores(t, with("--apply", "--prefix", "config/")...)
	assert.Equal(t, service.ExitFailed, code)
	assert.Regexp(t, `(?m)^not restored: differs  key          config/a`, errs)
	assert.Contains(t, errs, "1 differ at the destination and may be newer there: compare with --plan, replace them with --force")
	assert.Contains(t, out, "1 created")
	assert.Equal(t, keys["config/b"], keysOf(t, c.Address)["config/b"])
	before := keysOf(t, c.Address)
	out, errs, code = l.restores(t, with("--apply", "--output", "json")...)
	assert.Equal(t, service.ExitFailed, code)
	assert.Contains(t, errs, "nothing was written")
	assert.Contains(t, errs, "With --force what is missing is created, the 1 that differ are replaced, and the 1 that are only there left. "+
		"Or restore a part: --prefix")
	d = parse(t, out)
	assert.False(t, d.Complete)
	assert.Contains(t, d.Error, "not empty")
	assert.Equal(t, before, keysOf(t, c.Address))
	_, errs, code = l.restores(t, with("--apply", "--force")...)
	assert.Zero(t, code, errs)
	after := keysOf(t, c.Address)
	assert.Equal(t, secret, after["config/a"])
	assert.Equal(t, "only here", after["config/mine"], "what only the destination has is never touched")

	// A prefix that was mistyped restores nothing, and that is no success.
	for _, mode := range []string{"--plan", "--apply"} {
		_, errs, code = l.restores(t, with(mode, "--prefix", "confg/")...)
		assert.Equal(t, service.ExitFailed, code)
		assert.Contains(t, errs, "nothing was restored: ")
		assert.Contains(t, errs, `no key begins with the prefix "confg/" (snapshot `+m.GetId()+")")
	}

	// Nor does a mistyped rename bring keys back under the names that they have.
	request(t, http.MethodPut, c.Address+"/v1/kv/config/a", "newer")
	_, errs, code = l.restores(t, with("--apply", "--force", "--rename", "confg/=old/")...)
	assert.Equal(t, service.ExitFailed, code)
	assert.Contains(t, errs, `nothing was restored: a part of the selection fits nothing in the snapshot: no selected key begins with "confg/"`)
	assert.NotContains(t, errs, "so far")
	assert.Equal(t, "newer", keysOf(t, c.Address)["config/a"])

	// Under another name.
	_, errs, code = l.restores(t, with("--apply", "--prefix", "config/", "--rename", "config/=old/config/")...)
	assert.Zero(t, code, errs)
	assert.Equal(t, secret, keysOf(t, c.Address)["old/config/a"])
}

// Guarantee: what is damaged is never written, not even the part before the damage.
func TestRestoreOfDamagedDataWritesNothing(t *testing.T) {
	l, c := labFor(t), startConsul(t, bintest.ConsulOptions{})
	m := l.mustCommit(t, plan{target: consulTarget, raw: export(t, someKeys(2000)), keys: 2000})
	require.NoError(t, l.copyTo(t.Context(), m, "copies", "elsewhere"))
	require.NoError(t, l.flip(m.GetData().GetKey()))
	_, errs, code := l.restores(t, consulTarget, "--to", c.Address, "--apply")
	assert.Equal(t, service.ExitFailed, code)
	assert.Contains(t, errs, "nothing was written; try another snapshot (lifeboat snapshot list consul-kv), or the second bucket with --store copy")
	assert.Empty(t, keysOf(t, c.Address))
	_, errs, code = l.restores(t, consulTarget, "--to", c.Address, "--apply", "--store", "copy")
	assert.Zero(t, code, errs)
	assert.Len(t, keysOf(t, c.Address), 2000)
}

// A server that does not answer, and one that lets nobody in, are said as such.
func TestRestoreCredentials(t *testing.T) {
	const token = "7f1c3d5e-0000-4000-8000-5ec4e7000001"
	c := startConsul(t, bintest.ConsulOptions{Management: token})
	l := labFor(t)
	require.NoError(t, os.WriteFile(filepath.Join(l.dir, "token"), []byte(token+"\n"), 0o600))
	yaml := strings.ReplaceAll(l.yaml(l.server.Config), `consul: {address: "http://127.0.0.1:1"}`,
		fmt.Sprintf(`consul: {address: %q, token_file: token}`, c.Address))
	require.NoError(t, os.WriteFile(filepath.Join(l.dir, "lifeboat.yaml"), []byte(yaml), 0o600))
	l.mustCommit(t, plan{target: consulTarget, raw: export(t, someKeys(3)), keys: 3})

	// The target's own address: the configuration's token.
	_, errs, code := l.restores(t, consulTarget, "--to", c.Address+"/", "--apply")
	assert.Zero(t, code, errs)
	// Another address of the same server: nobody said which token is for that.
	elsewhere := strings.Replace(c.Address, "127.0.0.1", "localhost", 1)
	t.Setenv("CONSUL_HTTP_TOKEN", token)
	_, errs, code = l.restores(t, consulTarget, "--to", elsewhere)
	assert.Equal(t, service.ExitFailed, code, "the environment's token is not used")
	assert.NotContains(t, errs, token)
	out, errs, code := l.restores(t, consulTarget, "--to", elsewhere, "--token-file", filepath.Join(l.dir, "token"))
	assert.Zero(t, code, errs)
	assert.Contains(t, out, "3 the same")
	_, errs, code = l.restores(t, consulTarget, "--to", "http://127.0.0.1:1", "--token-file", filepath.Join(l.dir, "none"))
	assert.Equal(t, service.ExitFailed, code)
	assert.Contains(t, errs, "none")
}

// read takes a real snapshot.
func read(t *testing.T, src interface {
	Open(context.Context) (source.Stream, error)
},
) []byte {
	t.Helper()
	s, err := src.Open(t.Context())
	require.NoError(t, err)
	b, err := io.ReadAll(s)
	require.NoError(t, err)
	require.NoError(t, s.Close())
	return b
}

func TestRestoreOfARaftSnapshotIsAllOrNothing(t *testing.T) {
	from, to := startConsul(t, bintest.ConsulOptions{}), startConsul(t, bintest.ConsulOptions{})
	request(t, http.MethodPut, from.Address+"/v1/kv/a", secret)
	l := labFor(t)
	l.mustCommit(t, plan{
		target: consulTarget, raw: export(t, map[string]string{"a": secret}), keys: 1,
		snap: read(t, consul.NewRaft(config.Consul{Address: from.Address}, consul.Options{})),
	})
	request(t, http.MethodPut, to.Address+"/v1/kv/later", "gone after it")
	out, errs, code := l.restores(t, consulTarget, "--to", to.Address, "--part", "snap")
	assert.Zero(t, code, errs)
	assert.Regexp(t, `(?m)^change   datacenter   http.* all keys, ACLs, sessions, services and configuration become those of raft index 7`, out)
	assert.Contains(t, keysOf(t, to.Address), "later")
	_, errs, code = l.restores(t, consulTarget, "--to", to.Address, "--part", "snap", "--apply", "--force")
	assert.Zero(t, code, errs)
	assert.Equal(t, map[string]string{"a": secret}, keysOf(t, to.Address))

	// One that was refused has changed nothing, and does not say so.
	const token = "7f1c3d5e-0000-4000-8000-5ec4e7000001"
	guarded := startConsul(t, bintest.ConsulOptions{Management: token})
	out, errs, code = l.restores(t, consulTarget, "--to", guarded.Address, "--part", "snap", "--apply", "--force", "--output", "json")
	assert.Equal(t, service.ExitFailed, code)
	assert.Zero(t, parse(t, out).Summary.Changed)
	assert.Empty(t, parse(t, out).Items)
	assert.NotContains(t, errs, "so far")
}

func TestRestoreOfNomadsOperatorSnapshot(t *testing.T) {
	from, to := startNomad(t), startNomad(t)
	request(t, http.MethodPut, from.Address+"/v1/namespace/platform", `{"Name":"platform"}`)
	cfg := config.Nomad{Address: from.Address}
	l := labFor(t)
	l.mustCommit(t, plan{
		target: nomadTarget, raw: read(t, nomad.New(cfg, nomad.Options{})), snap: read(t, nomad.NewOperator(cfg, nomad.Options{})), encrypted: true,
	})
	request(t, http.MethodPut, to.Address+"/v1/namespace/later", `{"Name":"later"}`)
	args := []string{nomadTarget, "--to", to.Address, "--part", "snap", "--identity-file", l.dir + "/lifeboat.key"}
	out, errs, code := l.restores(t, args...)
	assert.Zero(t, code, errs)
	assert.Regexp(t, `(?m)^change   region       http.* all namespaces, .* become those of raft index 7, the tokens too; what came later is lost`, out)
	assert.NotContains(t, errs, "lacks", "that is what the other part lacks")
	assert.Contains(t, out, "do it with --apply --force\n", "it is refused without")
	namespaces := func() string { return request(t, http.MethodGet, to.Address+"/v1/namespaces", "") }
	assert.Contains(t, namespaces(), `"later"`, "a plan writes nothing")
	out, errs, code = l.restores(t, append(args, "--apply", "--force")...)
	assert.Zero(t, code, errs)
	assert.Contains(t, out, "0 created, 1 changed; ")
	assert.Contains(t, namespaces(), `"platform"`)
	assert.NotContains(t, namespaces(), `"later"`)
}

// What is known to be wrong with a snapshot is said before it is restored.
func TestRestoreSaysWhatIsKnownOfTheSnapshot(t *testing.T) {
	l, c := labFor(t), startConsul(t, bintest.ConsulOptions{})
	m := l.mustCommit(t, plan{target: consulTarget, raw: export(t, someKeys(3)), keys: 3})
	require.NoError(t, l.drilled(t.Context(), m, false))
	out, errs, _ := l.restores(t, consulTarget, "--to", c.Address)
	assert.Contains(t, out, ", not proven by any drill into ")
	assert.NotContains(t, errs, "DAMAGED")
	assert.Contains(t, errs, "the snapshot lacks users: not allowed to list them\n")

	require.NoError(t, l.catalog.SetMark(t.Context(), &lifeboatv1.Mark{
		Format: catalog.Format, Target: consulTarget, SnapshotId: m.GetId(), Kind: lifeboatv1.Mark_KIND_VERIFIED, Reason: "another sum",
		At: timestamppb.Now(),
	}))
	out, errs, code := l.restores(t, consulTarget, "--to", c.Address, "--output", "json")
	assert.Zero(t, code)
	parse(t, out)
	assert.Contains(t, errs, "a verification found it DAMAGED at ")
	assert.Contains(t, errs, ": another sum; take another one: lifeboat snapshot list consul-kv")

	// It is restored all the same when that cannot be read.
	mark := l.server.Path(l.catalog.Mark(consulTarget, m.GetId(), lifeboatv1.Mark_KIND_VERIFIED))
	require.NoError(t, os.WriteFile(mark, []byte("{"), 0o600))
	_, errs, code = l.restores(t, consulTarget, "--to", c.Address, "--apply")
	assert.Zero(t, code, errs)
	assert.Contains(t, errs, "whether it was proven or found damaged cannot be read: ")
}

func startNomad(t *testing.T) *bintest.Nomad {
	t.Helper()
	n, err := bintest.StartNomad(t.Context(), t.TempDir())
	require.NoError(t, err)
	t.Cleanup(func() { assert.NoError(t, n.Kill()) })
	return n
}

func TestRestoreNomad(t *testing.T) {
	from, to := startNomad(t), startNomad(t)
	request(t, http.MethodPut, from.Address+"/v1/namespace/platform", `{"Name":"platform"}`)
	for _, name := range []string{"loki", "tempo"} {
		request(t, http.MethodPut, from.Address+"/v1/jobs?namespace=platform", fmt.Sprintf(`{"Job":{"ID":%q,"Name":%q,"Namespace":"platform",
			"Type":"service","Datacenters":["dc1"],"TaskGroups":[{"Name":"g","Count":1,"Tasks":[{"Name":"t","Driver":"docker",
			"Config":{"image":"i"},"Env":{"PASSWORD":%q}}]}]}}`, name, name, secret))
	}
	l := labFor(t)
	l.mustCommit(t, plan{target: nomadTarget, raw: read(t, nomad.New(config.Nomad{Address: from.Address}, nomad.Options{}))})

	out, errs, code := l.restores(t, nomadTarget, "--to", to.Address, "--namespace", "platform", "--job", "loki", "--output", "json")
	assert.Zero(t, code, errs)
	d := parse(t, out)
	assert.True(t, d.Complete)
	assert.Contains(t, d.Items, restoredItem{Action: "create", Kind: "job", Name: "platform/loki", Detail: itemOf(d, "platform/loki").Detail})
	assert.Empty(t, itemOf(d, "platform/tempo").Kind)
	_, errs, code = l.restores(t, nomadTarget, "--to", to.Address, "--namespace", "platform", "--job", "loki", "--apply")
	assert.Zero(t, code, errs)
	jobs := func() string { return request(t, http.MethodGet, to.Address+"/v1/jobs?namespace=*", "") }
	assert.Contains(t, jobs(), `"loki"`)
	assert.NotContains(t, jobs(), `"tempo"`)
	_, errs, code = l.restores(t, nomadTarget, "--to", to.Address, "--job", "none-such", "--apply")
	assert.Equal(t, service.ExitFailed, code)
	assert.Contains(t, errs, "none-such")
	_, errs, code = l.restores(t, nomadTarget, "--to", to.Address, "--apply")
	assert.Zero(t, code, errs)
	assert.Contains(t, jobs(), `"tempo"`)
	out, _, code = l.restores(t, nomadTarget, "--to", to.Address)
	assert.Zero(t, code)
	assert.Contains(t, out, "nothing is to be done")
}

func itemOf(d document, name string) restoredItem {
	for _, i := range d.Items {
		if i.Name == name {
			return i
		}
	}
	return restoredItem{}
}
