package tests

import (
	"encoding/json"
	"fmt"
	"maps"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"filippo.io/age"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	clientv3 "go.etcd.io/etcd/client/v3"

	"github.com/lifeboat-fleet/lifeboat/fleet/fleettest/bintest"
	"github.com/lifeboat-fleet/lifeboat/fleet/fleettest/s3test"
)

// The disaster pages are followed word for word: whoever reads them has no time to find out what was meant. Only what a page tells
// to fill in, the lines that begin with export, is filled in by the test.

const (
	// everything is the part of a section that brings back a server's whole state instead of what stands before.
	everything = "/everything"
	// stock is the part of a section that does it without Lifeboat.
	stock = "/stock"
)

// runbook gives a page's commands by section. Those that run a server are by themselves.
func runbook(t *testing.T, name string) (commands map[string][]string, servers map[string][]string) {
	t.Helper()
	b, err := os.ReadFile(filepath.Join(os.Getenv("PWD"), "../docs/runbooks", name)) // the embedded S3 server changes the working folder
	require.NoError(t, err)
	commands, servers = map[string][]string{}, map[string][]string{}
	section, goesOn, into := "", false, commands
	for line := range strings.Lines(string(b)) {
		if title, ok := strings.CutPrefix(line, "## "); ok {
			section = strings.TrimSpace(title)
		}
		if strings.HasPrefix(line, "**Or everything**") {
			section += everything
		}
		if strings.HasPrefix(line, "Without Lifeboat") {
			section += stock
		}
		code, ok := strings.CutPrefix(line, "    ")
		switch {
		case !ok:
			continue
		case goesOn:
		case strings.HasPrefix(code, "export "):
			continue
		case strings.HasPrefix(code, "etcd "):
			into = servers
		default:
			into = commands
		}
		into[section] = append(into[section], strings.TrimSuffix(code, "\n"))
		goesOn = strings.HasSuffix(code, "\\\n")
	}
	return commands, servers
}

// filled is what every page wants to be filled in.
func (f *fleet) filled(target, identityFile string) []string {
	return []string{
		"CONFIG=" + f.config, "TARGET=" + target, "IDENTITY_FILE=" + identityFile, "BUCKET=" + s3test.Bucket, "PREFIX=", "ENDPOINT=" + f.s3.Endpoint,
	}
}

// encrypted has all snapshots encrypted, for an identity that is in a file.
func (f *fleet) encrypted() (identityFile string) {
	f.t.Helper()
	identity, err := age.GenerateX25519Identity()
	require.NoError(f.t, err)
	f.append("encryption: {recipients: [" + identity.Recipient().String() + "]}\n")
	return f.write("identity", identity.String()+"\n")
}

// sub runs a test within the test, with the same servers.
func (f *fleet) sub(name string, test func(t *testing.T, f *fleet)) {
	f.t.Helper()
	f.t.Run(name, func(t *testing.T) {
		sub := *f
		sub.t = t
		test(t, &sub)
	})
}

// do follows a section. A page that has lost it is a failure.
func (f *fleet) do(dir string, page map[string][]string, section string, env []string) string {
	f.t.Helper()
	require.NotEmpty(f.t, page[section], "%s: there is %q", section, slices.Collect(maps.Keys(page)))
	out, err := f.shell(dir, page[section], env...)
	require.NoError(f.t, err)
	return out
}

// A cluster of three is restored, with Lifeboat and without, and then some keys of it.
func TestDisasterPageOfEtcd(t *testing.T) {
	page, servers := runbook(t, "disaster-etcd.md")
	f := start(t)
	identity := f.encrypted()
	f.run("backup", "--roles", "snapshot")
	m := f.snapshot("etcd-prod")
	want, err := f.client.Get(t.Context(), "\x00", clientv3.WithFromKey())
	require.NoError(t, err)
	for _, way := range []string{"Mitigation", "Without Lifeboat"} {
		f.sub(way, func(t *testing.T, f *fleet) {
			t.Helper()
			ports, err := bintest.FreePorts(6)
			require.NoError(t, err)
			members := make([][]string, 3)
			var cluster []string
			for i := range members {
				cluster = append(cluster, fmt.Sprintf("m%d=http://127.0.0.1:%d", i, ports[i]))
			}
			for i := range members {
				dir := t.TempDir()
				members[i] = append(f.filled("etcd-prod", identity), "SNAPSHOT="+m.GetId(), "DATA_DIR="+filepath.Join(dir, "data"),
					"CLUSTER="+strings.Join(cluster, ","), "TOKEN=restored-1", fmt.Sprintf("NAME=m%d", i),
					fmt.Sprintf("PEER_URL=http://127.0.0.1:%d", ports[i]), fmt.Sprintf("CLIENT_URL=http://127.0.0.1:%d", ports[3+i]))
				f.do(dir, page, way, members[i])
			}
			for _, env := range members {
				f.background(strings.Join(servers["Mitigation"], "\n"), env)
			}
			c, err := clientv3.New(clientv3.Config{Endpoints: []string{fmt.Sprintf("http://127.0.0.1:%d", ports[3])}})
			require.NoError(t, err)
			defer c.Close()
			var got *clientv3.GetResponse
			require.EventuallyWithT(t, func(col *assert.CollectT) {
				got, err = c.Get(t.Context(), "\x00", clientv3.WithFromKey())
				require.NoError(col, err)
				list, lerr := c.MemberList(t.Context())
				require.NoError(col, lerr)
				require.Len(col, list.Members, 3)
			}, 60*time.Second, 100*time.Millisecond)
			assert.Equal(t, want.Header.GetRevision()+1_000_000_000, got.Header.GetRevision())
			require.Len(t, got.Kvs, len(want.Kvs))
			for i, kv := range got.Kvs {
				require.Equal(t, want.Kvs[i].String(), kv.String())
			}
			_, err = c.Get(t.Context(), "\x00", clientv3.WithRev(want.Header.GetRevision()))
			require.ErrorContains(t, err, "compacted")
			assert.Contains(t, f.do(t.TempDir(), page, "Check", members[0]), fmt.Sprintf("\"Count\" : %d", len(want.Kvs)))

			if way != "Mitigation" {
				return
			}
			gone, err := c.Delete(t.Context(), "/registry/pods/default/app-1", clientv3.WithPrefix())
			require.NoError(t, err)
			require.EqualValues(t, 11, gone.Deleted)
			f.do(t.TempDir(), page, "Some keys", append(members[0], "KEYS=/registry/pods/default/app-1"))
			got, err = c.Get(t.Context(), "\x00", clientv3.WithFromKey())
			require.NoError(t, err)
			assert.Len(t, got.Kvs, len(want.Kvs))
		})
	}
}

// background runs a server from a page until the test ends.
func (f *fleet) background(command string, env []string) {
	f.t.Helper()
	bin, err := bintest.Find("etcd")
	require.NoError(f.t, err)
	p, err := bintest.Start("/bin/sh", f.path("server.log"), append(env, "PATH="+filepath.Dir(bin)+":"+os.Getenv("PATH")), "-c", "exec "+command)
	require.NoError(f.t, err)
	f.t.Cleanup(func() { assert.NoError(f.t, p.Kill()) })
}

// Keys, and then the whole raft state with its ACLs, with Lifeboat and without, and then some keys.
func TestDisasterPageOfConsul(t *testing.T) {
	const oldToken, newToken = "11111111-1111-4111-8111-111111111111", "22222222-2222-4222-8222-222222222222"
	page, _ := runbook(t, "disaster-consul.md")
	f := start(t)
	identity := f.encrypted()
	old := startConsulWith(t, f.path("consul-old"), oldToken)
	var ops []any
	for i := range 60 {
		ops = append(ops, consulSet(fmt.Sprintf("config/payments/%02d", i), []byte{byte(i)}, lockFlags+uint64(i)))
	}
	ops = append(ops, consulSet("other", []byte("value"), 0))
	b, err := json.Marshal(ops)
	require.NoError(t, err)
	request(t, http.MethodPut, old.Address+"/v1/txn?token="+oldToken, string(b))
	f.edit("notifier:\n", fmt.Sprintf("  - {name: consul-kv, consul: {address: %q, token_file: %q, full: true}}\nnotifier:\n", old.Address,
		f.write("old-token", oldToken)))
	f.run("backup", "--roles", "snapshot")
	m := f.snapshot("consul-kv")
	want := consulKeys(t, old.Address, "", oldToken)
	require.Len(t, want, 61)
	for _, way := range []string{"Mitigation", "Without Lifeboat"} {
		f.sub(way, func(t *testing.T, f *fleet) {
			t.Helper()
			fresh := startConsulWith(t, t.TempDir(), newToken)
			dir := t.TempDir()
			env := append(f.filled("consul-kv", identity), "SNAPSHOT="+m.GetId(), "CONSUL_HTTP_ADDR="+fresh.Address,
				"TOKEN_FILE="+f.write("new-token", newToken), "CONSUL_HTTP_TOKEN="+newToken)
			f.do(dir, page, way, env)
			assert.Equal(t, want, consulKeys(t, fresh.Address, "", newToken))
			assert.Contains(t, f.do(dir, page, "Check", env), "\n61\n")
			if env = append(env, "KEYS=config/payments/"); way == "Mitigation" {
				f.do(dir, page, "Some keys", env)
				assert.Len(t, consulKeys(t, fresh.Address, "restored/config/payments/", newToken), 60)
			} else {
				request(t, http.MethodDelete, fresh.Address+"/v1/kv/config/?recurse&token="+newToken, "")
				f.do(dir, page, "Some keys"+stock, env)
				assert.Equal(t, want, consulKeys(t, fresh.Address, "", newToken))
			}
			f.do(dir, page, way+everything, env)
			assert.Equal(t, want, consulKeys(t, fresh.Address, "", oldToken))
		})
	}
}

func startConsulWith(t *testing.T, dir, token string) *bintest.Consul {
	t.Helper()
	c, err := bintest.StartConsulWith(t.Context(), dir, bintest.ConsulOptions{Management: token})
	require.NoError(t, err)
	t.Cleanup(func() { assert.NoError(t, c.Kill()) })
	return c
}

// What an archive and an operator snapshot bring back, with Lifeboat and without, and then one job.
func TestDisasterPageOfNomad(t *testing.T) {
	page, _ := runbook(t, "disaster-nomad.md")
	f := start(t)
	identity := f.encrypted()
	old := startRegion(t, f.path("nomad-old"))
	old.put("/v1/namespace", `{"Name": "platform"}`)
	old.put("/v1/var/nomad/jobs/loki?namespace=platform", `{"Items": {"k": "v"}}`)
	for _, id := range []string{"loki", "web"} {
		old.put("/v1/jobs", fmt.Sprintf(`{"Job": {"ID": %q, "Namespace": "platform", "Datacenters": ["dc1"], "TaskGroups": [{"Name": "g",
			"Count": 3, "Tasks": [{"Name": "t", "Driver": "raw_exec", "Config": {"command": "/bin/true"}}]}]}}`, id))
	}
	f.edit("notifier:\n", fmt.Sprintf("  - {name: nomad-jobs, nomad: {address: %q, token_file: %q, full: true}}\nnotifier:\n",
		old.Address, f.write("old-token", old.token)))
	f.run("backup", "--roles", "snapshot")
	m := f.snapshot("nomad-jobs")
	want := old.content()
	for _, way := range []string{"Mitigation", "Without Lifeboat"} {
		f.sub(way, func(t *testing.T, f *fleet) {
			t.Helper()
			fresh := startRegion(t, t.TempDir())
			dir := t.TempDir()
			env := append(f.filled("nomad-jobs", identity), "SNAPSHOT="+m.GetId(), "NOMAD_ADDR="+fresh.Address,
				"TOKEN_FILE="+f.write("new-token", fresh.token), "NOMAD_TOKEN="+fresh.token, "NAMESPACE=platform", "JOB=loki")
			if way == "Mitigation" {
				fresh.put("/v1/namespace", `{"Name": "platform"}`)
				f.do(dir, page, "Some jobs", env)
				jobs := request(t, http.MethodGet, fresh.Address+"/v1/jobs?namespace=*", "", fresh.token)
				assert.Contains(t, jobs, `"ID":"loki"`)
				assert.NotContains(t, jobs, `"ID":"web"`)
			}
			if way == "Mitigation" {
				require.NotEmpty(t, page[way])
				_, err := f.shell(dir, page[way], env...)
				require.ErrorContains(t, err, "exit status 1")
				require.ErrorContains(t, err, "its secret is in no snapshot", "the page says that tokens do not come back")
			} else {
				f.do(dir, page, way, env)
				f.do(dir, page, "Some jobs"+stock, env)
			}
			assert.Contains(t, f.do(dir, page, "Check", env), "\n2\n")
			fresh.holds(t, want)
			f.do(dir, page, way+everything, env)
			fresh.token = old.token
			fresh.holds(t, want)
		})
	}
}
