package tests

import (
	"encoding/json"
	"fmt"
	"io"
	"maps"
	"net/http"
	"net/url"
	"os"
	"os/exec"
	"path"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"filippo.io/age"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	clientv3 "go.etcd.io/etcd/client/v3"
	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/proto"

	"github.com/lifeboat-fleet/lifeboat/fleet/fleettest/bintest"
	lifeboatv1 "github.com/lifeboat-fleet/lifeboat/proto/lifeboat/v1"
)

// Guarantee 5: the commands that a manifest holds are run as they stand, all of them, in a shell with the stock tools, and what
// comes of it is compared with the source.

// An encrypted snapshot of etcd becomes a member that holds every key as it was, by a worker that could not decrypt it itself.
func TestGuarantee5TheManifestsCommandsRestoreEtcd(t *testing.T) {
	f := start(t)
	identity, err := age.GenerateX25519Identity()
	require.NoError(t, err)
	f.append("encryption: {recipients: [" + identity.Recipient().String() + "]}\n")
	for i := range 20 { // history, and something deleted
		_, err = f.client.Put(t.Context(), fmt.Sprintf("/registry/pods/default/app-%d", i%3), strings.Repeat("y", i))
		require.NoError(t, err)
	}
	_, err = f.client.Delete(t.Context(), "/registry/pods/default/app-7")
	require.NoError(t, err)
	f.run("backup", "--roles", "snapshot")
	m := f.snapshot("etcd-prod")
	assert.Equal(t, "stored", m.GetVerification().GetMethod(), "compared as stored: nobody here can decrypt it")
	stored, err := os.ReadFile(f.s3.Path(m.GetData().GetKey()))
	require.NoError(t, err)
	assert.NotContains(t, string(stored), "/registry/pods")

	dir := t.TempDir()
	// The words that a person would replace are the names of files here.
	require.NoError(t, os.WriteFile(filepath.Join(dir, "IDENTITY_FILE"), []byte(identity.String()+"\n"), 0o600))
	f.follow(dir, m.GetRestoreCommands())
	e, err := bintest.StartEtcd(t.Context(), t.TempDir(), "--data-dir="+filepath.Join(dir, "DATA_DIR"))
	require.NoError(t, err)
	t.Cleanup(func() { assert.NoError(t, e.Kill()) })
	c, err := clientv3.New(clientv3.Config{Endpoints: []string{e.Endpoint}})
	require.NoError(t, err)
	defer c.Close()
	want, err := f.client.Get(t.Context(), "\x00", clientv3.WithFromKey())
	require.NoError(t, err)
	got, err := c.Get(t.Context(), "\x00", clientv3.WithFromKey())
	require.NoError(t, err)
	assert.Equal(t, want.Header.GetRevision(), got.Header.GetRevision())
	assert.Equal(t, m.GetSource().GetRevision(), got.Header.GetRevision())
	require.Len(t, got.Kvs, 49)
	require.Len(t, want.Kvs, 49)
	for i, kv := range got.Kvs {
		assert.True(t, proto.Equal(want.Kvs[i], kv), "%s: key, value or a revision differs", kv.Key)
	}
}

// lockFlags are what Consul's own lock command sets: above 2^53, so that whatever takes it for a float changes it.
const lockFlags = 3304740253564472344

// Two snapshots of one Consul, and its raft state: all keys, whose names `consul kv import` cannot write, and a prefix of clean ones.
func TestGuarantee5TheManifestsCommandsRestoreConsul(t *testing.T) {
	f := start(t)
	old := startConsul(t, f.path("consul-old"))
	var ops []any
	for i, key := range []string{
		"config/a", "config/empty", "config/dir/", `config/quo"ted\`, "config/ü", "config/50%25",
		"a//b", "/leading", " blank ", "a/../b", "tab\t",
	} {
		value := []byte(strings.Repeat(key+"\x00\xff", i))
		ops = append(ops, consulSet(key, value, lockFlags+uint64(i)))
	}
	for i := range 200 { // several transactions
		ops = append(ops, consulSet(fmt.Sprintf("config/many/%03d", i), []byte{byte(i)}, uint64(i)))
	}
	for some := range slices.Chunk(ops, 64) {
		b, err := json.Marshal(some)
		require.NoError(t, err)
		request(t, http.MethodPut, old.Address+"/v1/txn", string(b))
	}
	large := strings.Repeat("x", 300<<10) // two of them are more than a transaction takes
	request(t, http.MethodPut, old.Address+"/v1/kv/config/large-1", large)
	request(t, http.MethodPut, old.Address+"/v1/kv/config/large-2", large)
	f.edit("path_style: true,", `path_style: true, prefix: "it's a prefix",`)
	f.edit("notifier:\n", fmt.Sprintf("  - {name: whole, consul: {address: %q, full: true}}\n"+
		"  - {name: clean, consul: {address: %[1]q, prefixes: [config/]}}\nnotifier:\n", old.Address))
	f.run("backup", "--roles", "snapshot")

	whole, clean := f.snapshot("whole"), f.snapshot("clean")
	data, raft := alternatives(t, whole)
	assert.Contains(t, strings.Join(data, "\n"), "/v1/txn")
	assert.Contains(t, strings.Join(clean.GetRestoreCommands(), "\n"), "consul kv import @clean.json")
	for name, r := range map[string]struct {
		prefix   string
		commands []string
	}{
		"transactions": {"", data}, "kv import": {"config/", clean.GetRestoreCommands()}, "raft": {"", raft},
	} {
		fresh := startConsul(t, t.TempDir())
		f.follow(t.TempDir(), r.commands, "CONSUL_HTTP_ADDR="+fresh.Address)
		want := consulKeys(t, old.Address, r.prefix, "")
		require.Greater(t, len(want), 200)
		assert.Equal(t, want, consulKeys(t, fresh.Address, "", ""), name)
	}
}

type consulKey struct {
	Key, Value string
	Flags      uint64
}

func consulSet(key string, value []byte, flags uint64) any {
	return map[string]any{"KV": map[string]any{"Verb": "set", "Key": key, "Value": value, "Flags": flags}}
}

// consulKeys is all that counts of the keys under a prefix, for a token.
func consulKeys(t *testing.T, address, prefix, token string) (keys []consulKey) {
	t.Helper()
	answer := request(t, http.MethodGet, address+"/v1/kv/"+prefix+"?recurse&token="+token, "")
	require.NoError(t, json.Unmarshal([]byte(answer), &keys))
	return keys
}

func startConsul(t *testing.T, dir string) *bintest.Consul {
	t.Helper()
	c, err := bintest.StartConsul(t.Context(), dir)
	require.NoError(t, err)
	t.Cleanup(func() { assert.NoError(t, c.Kill()) })
	return c
}

// A Nomad with ACLs, restored piece by piece and, on another server, by its operator snapshot, with all that no API tells.
func TestGuarantee5TheManifestsCommandsRestoreNomad(t *testing.T) {
	f := start(t)
	old := startRegion(t, f.path("nomad-old"))
	old.put("/v1/namespace", `{"Name": "team", "Description": "a team"}`)
	old.put("/v1/node/pool/gpu", `{"Name": "gpu", "Description": "cards"}`)
	old.put("/v1/var/nomad/jobs/web?namespace=team", `{"Items": {"password": "it's \"quoted\""}}`)
	old.put("/v1/var/plain", `{"Items": {"k": "v"}}`)
	old.put("/v1/acl/policy/ops", `{"Name": "ops", "Description": "on call", "Rules": "namespace \"team\" { policy = \"write\" }"}`)
	old.put("/v1/acl/role", `{"Name": "operators", "Policies": [{"Name": "ops"}]}`)
	old.put("/v1/operator/scheduler/configuration", `{"SchedulerAlgorithm": "spread"}`)
	for _, id := range []string{"web-it's", `odd"id"&%2Füé+?#/x//y`, "https://a/b"} {
		b, err := json.Marshal(id)
		require.NoError(t, err)
		old.put("/v1/jobs", fmt.Sprintf(`{"Job": {"ID": %s, "Name": "web", "Namespace": "team", "NodePool": "gpu", "Datacenters": ["dc1"], "Meta": {"k": "v"},
			"TaskGroups": [{"Name": "g", "Count": 3, "Tasks": [{"Name": "t", "Driver": "raw_exec", "Config": {"command": "/bin/true"}}]}]}}`, b))
	}
	f.edit("notifier:\n", fmt.Sprintf("  - {name: nomad-jobs, nomad: {address: %q, token_file: %q, full: true}}\nnotifier:\n",
		old.Address, f.write("nomad-token", old.token)))
	f.run("backup", "--roles", "snapshot")
	archive, raft := alternatives(t, f.snapshot("nomad-jobs"))
	want := old.content()
	require.Len(t, want, 3+1+2+1+2+2+1)

	piecemeal := startRegion(t, t.TempDir())
	f.follow(t.TempDir(), archive, "NOMAD_ADDR="+piecemeal.Address, "NOMAD_TOKEN="+piecemeal.token)
	piecemeal.holds(t, want)

	whole := startRegion(t, t.TempDir())
	f.follow(t.TempDir(), raft, "NOMAD_ADDR="+whole.Address, "NOMAD_TOKEN="+whole.token)
	whole.token = old.token // the secrets of the tokens came back with it
	whole.holds(t, want)

	// What the server refuses ends the commands instead of passing unseen.
	_, err := f.shell(t.TempDir(), archive, "NOMAD_ADDR="+piecemeal.Address, "NOMAD_TOKEN="+piecemeal.token)
	require.ErrorContains(t, err, "NOT RESTORED: ./acl/roles/operators.json", "a role of that name is there")
	assert.NotContains(t, err.Error(), piecemeal.token)
}

// region is a Nomad with ACLs on.
type region struct {
	*bintest.Nomad
	t     *testing.T
	token string
}

func startRegion(t *testing.T, dir string) *region {
	t.Helper()
	n, err := bintest.StartNomadWith(t.Context(), dir, bintest.NomadOptions{HCL: "acl { enabled = true }"})
	require.NoError(t, err)
	t.Cleanup(func() { assert.NoError(t, n.Kill()) })
	r := &region{Nomad: n, t: t}
	var made struct{ SecretID string }
	require.NoError(t, json.Unmarshal([]byte(request(t, http.MethodPut, n.Address+"/v1/acl/bootstrap", "")), &made))
	r.token = made.SecretID
	r.put("/v1/var/ready", `{"Items": {"k": "v"}}`) // the key for variables comes after the leader
	request(t, http.MethodDelete, n.Address+"/v1/var/ready", "", r.token)
	return r
}

func (r *region) put(to, body string) {
	r.t.Helper()
	request(r.t, http.MethodPut, r.Address+to, body, r.token)
}

// content is all that a restore is to bring back, by path, without what a server adds to it.
func (r *region) content() map[string]string {
	r.t.Helper()
	all := map[string]string{}
	get := func(from string) {
		var object map[string]any
		require.NoError(r.t, json.Unmarshal([]byte(request(r.t, http.MethodGet, r.Address+from, "", r.token)), &object))
		b, err := json.Marshal(stripped(object))
		require.NoError(r.t, err)
		all[from] = string(b)
	}
	for _, l := range []struct{ list, one, key string }{
		{"/v1/jobs?namespace=*", "/v1/job/", "ID"},
		{"/v1/node/pools", "/v1/node/pool/", "Name"},
		{"/v1/namespaces", "/v1/namespace/", "Name"},
		{"/v1/acl/policies", "/v1/acl/policy/", "Name"},
		{"/v1/acl/roles", "/v1/acl/role/name/", "Name"},
		{"/v1/vars?namespace=*", "/v1/var/", "Path"},
	} {
		var items []map[string]any
		require.NoError(r.t, json.Unmarshal([]byte(request(r.t, http.MethodGet, r.Address+l.list, "", r.token)), &items))
		for _, i := range items {
			if i["Name"] == "all" { // a pool that is always there, and cannot be changed
				continue
			}
			id, ok := i[l.key].(string)
			require.True(r.t, ok, "%s: %v", l.list, i)
			one := l.one + url.PathEscape(id)
			if namespace, ok := i["Namespace"].(string); ok {
				one += "?namespace=" + namespace
			}
			get(one)
		}
	}
	get("/v1/operator/scheduler/configuration")
	return all
}

// holds compares the content.
func (r *region) holds(t *testing.T, want map[string]string) {
	t.Helper()
	got := r.content()
	assert.Equal(t, slices.Sorted(maps.Keys(want)), slices.Sorted(maps.Keys(got)))
	for name, text := range want {
		assert.Equal(t, text, got[name], name)
	}
}

// stripped is an object without what each server gives it anew.
func stripped(object map[string]any) map[string]any {
	for _, field := range []string{
		"CreateIndex", "ModifyIndex", "JobModifyIndex", "CreateTime", "ModifyTime", "SubmitTime", "Hash", "ID", "Status", "StatusDescription",
		"Stable", "Version", "NomadTokenID", "Index", "LastContact", "KnownLeader", "NextToken",
	} {
		if field != "ID" || object["Policies"] != nil { // a role's; a job's id is its name
			delete(object, field)
		}
	}
	if inner, ok := object["SchedulerConfig"].(map[string]any); ok {
		stripped(inner)
	}
	return object
}

func (f *fleet) append(text string) {
	f.t.Helper()
	b, err := os.ReadFile(f.config)
	require.NoError(f.t, err)
	f.write("lifeboat.yaml", string(b)+text)
}

// snapshot takes one and gives its manifest, from the bucket.
func (f *fleet) snapshot(target string) *lifeboatv1.Manifest {
	f.t.Helper()
	f.publish("lifeboat.job.snapshot." + target)
	key := f.event("lifeboat.event.snapshot.committed." + target).GetManifest().GetData().GetKey()
	b, err := os.ReadFile(f.s3.Path(path.Dir(key) + "/manifest.json"))
	require.NoError(f.t, err)
	m := &lifeboatv1.Manifest{}
	require.NoError(f.t, protojson.Unmarshal(b, m))
	return m
}

// alternatives are the two ways to restore a snapshot that has its source's raft state as well.
func alternatives(t *testing.T, m *lifeboatv1.Manifest) (data, raft []string) {
	t.Helper()
	all := m.GetRestoreCommands()
	at := slices.IndexFunc(all, func(c string) bool { return strings.HasPrefix(c, "# or all of the cluster's raft state") })
	require.Positive(t, at, protojson.Format(m))
	return all[:at], all[at:]
}

// follow runs commands in a folder, word for word, and stops at the first that fails.
func (f *fleet) follow(dir string, commands []string, env ...string) {
	f.t.Helper()
	require.NotEmpty(f.t, commands)
	out, err := f.shell(dir, commands, env...)
	require.NoError(f.t, err)
	require.Contains(f.t, out, ": OK", "sha256sum's answer")
}

// shell is follow for commands that may fail. The error holds what they said.
func (f *fleet) shell(dir string, commands []string, env ...string) (string, error) {
	f.t.Helper()
	for _, tool := range []string{"aws", "sha256sum", "age", "zstd", "jq", "curl"} {
		_, err := exec.LookPath(tool)
		require.NoError(f.t, err, "the stock tools are needed: apt-get install awscli age zstd jq curl")
	}
	folders := os.Getenv("PATH")
	for _, server := range []string{"etcdctl", "etcdutl", "consul", "nomad"} {
		bin, err := bintest.Find(server)
		require.NoError(f.t, err)
		folders = filepath.Dir(bin) + ":" + folders
	}
	key, err := f.s3.Config.AccessKeyIDFile.Read()
	require.NoError(f.t, err)
	secret, err := f.s3.Config.SecretAccessKeyFile.Read()
	require.NoError(f.t, err)
	cmd := exec.CommandContext(f.t.Context(), "/bin/sh", "-e")
	cmd.Stdin = strings.NewReader(strings.Join(commands, "\n") + "\n")
	cmd.Dir = dir
	// Nothing of this machine's own accounts and proxies.
	cmd.Env = slices.DeleteFunc(os.Environ(), func(v string) bool { return strings.HasPrefix(v, "AWS_") })
	cmd.Env = append(cmd.Env, "PATH="+filepath.Dir(binary)+":"+folders, "AWS_ACCESS_KEY_ID="+key, "AWS_SECRET_ACCESS_KEY="+secret, "AWS_DEFAULT_REGION=us-east-1",
		"AWS_CONFIG_FILE=/dev/null", "AWS_SHARED_CREDENTIALS_FILE=/dev/null", "AWS_EC2_METADATA_DISABLED=true")
	cmd.Env = append(cmd.Env, env...)
	out, err := cmd.CombinedOutput()
	if err != nil {
		err = fmt.Errorf("%w\n%s", err, out)
	}
	return string(out), err
}

// request sends one, again while a server that has just started is not ready for it. A token is a Nomad's.
func request(t *testing.T, method, url, body string, token ...string) (answer string) {
	t.Helper()
	require.EventuallyWithT(t, func(c *assert.CollectT) {
		req, err := http.NewRequestWithContext(t.Context(), method, url, strings.NewReader(body))
		require.NoError(c, err)
		req.Header["X-Nomad-Token"] = token
		resp, err := http.DefaultClient.Do(req)
		require.NoError(c, err)
		defer resp.Body.Close()
		b, err := io.ReadAll(resp.Body)
		require.NoError(c, err)
		require.Equal(c, 2, resp.StatusCode/100, "%s %s: %s: %s", method, url, resp.Status, b)
		answer = string(b)
	}, time.Minute, 100*time.Millisecond)
	return answer
}
