package app

import (
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	clientv3 "go.etcd.io/etcd/client/v3"

	"github.com/lifeboat-fleet/lifeboat/fleet/config"
	"github.com/lifeboat-fleet/lifeboat/fleet/fleettest/bintest"
	"github.com/lifeboat-fleet/lifeboat/fleet/service"
	"github.com/lifeboat-fleet/lifeboat/services/backup/internal/source/etcd"
)

// startEtcd runs the stock etcd and gives a client of it.
func startEtcd(t *testing.T, args ...string) (*bintest.Etcd, *clientv3.Client) {
	t.Helper()
	e, err := bintest.StartEtcd(t.Context(), t.TempDir(), args...)
	require.NoError(t, err)
	t.Cleanup(func() { assert.NoError(t, e.Kill()) })
	c, err := clientv3.New(clientv3.Config{Endpoints: []string{e.Endpoint}, DialTimeout: 10 * time.Second})
	require.NoError(t, err)
	t.Cleanup(func() { assert.NoError(t, c.Close()) })
	return e, c
}

func etcdKeys(t *testing.T, c *clientv3.Client) map[string]string {
	t.Helper()
	got, err := c.Get(t.Context(), "\x00", clientv3.WithFromKey())
	require.NoError(t, err)
	keys := map[string]string{}
	for _, kv := range got.Kvs {
		keys[string(kv.Key)] = string(kv.Value)
	}
	return keys
}

// etcdSnapshot commits a real snapshot of an etcd with a few keys.
func etcdSnapshot(t *testing.T, l *lab) map[string]string {
	t.Helper()
	e, c := startEtcd(t)
	keys := map[string]string{}
	for i := range 300 {
		key := fmt.Sprintf("/registry/secrets/app-%03d", i)
		keys[key] = fmt.Sprintf("%s-%d", secret, i)
		_, err := c.Put(t.Context(), key, keys[key])
		require.NoError(t, err)
	}
	raw := read(t, etcd.New(config.Etcd{Endpoints: []string{e.Endpoint}}, etcd.Options{}))
	l.mustCommit(t, plan{raw: raw, encrypted: true, keys: 300})
	return keys
}

func TestRestoreEtcdIntoADataDirectory(t *testing.T) {
	l := labFor(t)
	keys := etcdSnapshot(t, l)
	dir := filepath.Join(t.TempDir(), "var", "etcd")
	args := []string{"restore", etcdTarget, "--data-dir", dir, "--identity-file", l.dir + "/lifeboat.key"}
	with := func(more ...string) []string { return append(slices.Clone(args), more...) }

	out, errs, code := l.lifeboat(t, with("--apply")...)
	assert.Zero(t, code, errs)
	assert.Contains(t, out, "etcd --name default --data-dir "+dir+" --initial-cluster default=http://localhost:2380 "+
		"--initial-cluster-token etcd-cluster --initial-advertise-peer-urls http://localhost:2380")
	left, err := os.ReadDir(filepath.Dir(dir))
	require.NoError(t, err)
	assert.Len(t, left, 1, "nothing but the data directory is there: %v", left)
	running, c := startEtcd(t, "--data-dir="+dir)
	assert.Equal(t, keys, etcdKeys(t, c), "the stock etcd has every key")

	// What is there is not replaced, and said; with --force it is moved aside, but not from under a running etcd.
	out, _, code = l.lifeboat(t, with("--plan")...)
	assert.Zero(t, code)
	assert.Regexp(t, `(?m)^differs  member +.*; in place of what is there: member$`, out)
	_, errs, code = l.lifeboat(t, with("--apply")...)
	assert.Equal(t, service.ExitFailed, code)
	assert.Contains(t, errs, "not empty")
	assert.Contains(t, errs, "--force")
	_, errs, code = l.lifeboat(t, with("--apply", "--force")...)
	assert.Equal(t, service.ExitFailed, code)
	assert.Contains(t, errs, "stop it first")
	require.NoError(t, running.Kill())
	bumped := []string{
		"--name", "m1", "--initial-advertise-peer-urls", "http://127.0.0.1:2380",
		"--initial-cluster", "m1=http://127.0.0.1:2380,m2=http://127.0.0.1:2390", "--bump-revision", "1000", "--mark-compacted",
	}
	out, errs, code = l.lifeboat(t, with(append(bumped, "--apply", "--force")...)...)
	assert.Zero(t, code, errs)
	assert.Contains(t, errs, "what was there is now "+dir+".before-")
	assert.Regexp(t, `Make the other members first, .* and all with --snapshot 2026\S+\.\n`, out, "latest may be another one a minute later")
	there, err := os.ReadDir(filepath.Dir(dir))
	require.NoError(t, err)
	assert.Len(t, there, 2)
}

func TestRestoreEtcdKeyByKey(t *testing.T) {
	l := labFor(t)
	keys := etcdSnapshot(t, l)
	e, c := startEtcd(t)
	args := []string{etcdTarget, "--to", e.Endpoint, "--identity-file", l.dir + "/lifeboat.key", "--prefix", "/registry/secrets/app-00"}
	with := func(more ...string) []string { return append(slices.Clone(args), more...) }
	out, errs, code := l.restores(t, with("--output", "json")...)
	assert.Zero(t, code, errs)
	assert.Equal(t, int64(10), parse(t, out).Summary.Created)
	assert.Empty(t, etcdKeys(t, c))
	_, errs, code = l.restores(t, with("--apply")...)
	assert.Zero(t, code, errs)
	assert.Len(t, etcdKeys(t, c), 10)
	_, err := c.Put(t.Context(), "/registry/secrets/app-003", "newer")
	require.NoError(t, err)
	_, errs, code = l.restores(t, with("--apply")...)
	assert.Equal(t, service.ExitFailed, code)
	assert.Regexp(t, `(?m)^not restored: differs  key +/registry/secrets/app-003`, errs)
	_, errs, code = l.restores(t, with("--apply", "--force")...)
	assert.Zero(t, code, errs)
	assert.Equal(t, keys["/registry/secrets/app-003"], etcdKeys(t, c)["/registry/secrets/app-003"])
	_, errs, code = l.restores(t, with("--apply", "--rename", "/registry/=/old/")...)
	assert.Zero(t, code, errs)
	assert.Equal(t, keys["/registry/secrets/app-003"], etcdKeys(t, c)["/old/secrets/app-003"])

	// A plan of what cannot be done is no success: two keys would come to one name.
	clash := []string{"--rename", "/registry/secrets/app-000=/new", "--rename", "/registry/secrets/app-001=/new"}
	out, errs, code = l.restores(t, with(clash...)...)
	assert.Equal(t, service.ExitFailed, code)
	assert.Contains(t, out, "2 would fail")
	assert.Contains(t, errs, "2 would fail for the reasons above: mend those first")
	out, _, code = l.restores(t, with(append(clash, "--output", "json")...)...)
	assert.Equal(t, service.ExitFailed, code)
	assert.False(t, parse(t, out).Complete)
	_, errs, code = l.restores(t, with("--prefix", "/registry/none/")...)
	assert.Equal(t, service.ExitFailed, code)
	assert.Contains(t, errs, `no key begins with the prefix "/registry/none/"`)
}

// Names are whatever bytes their owners chose.
func TestTheViewShowsEveryNameOnItsOwnLine(t *testing.T) {
	assert.Equal(t, "config/说明", legible("config/说明"))
	assert.Equal(t, `"a\x1b[2J\n"`, legible("a\x1b[2J\n"))
	assert.Equal(t, `"\xff\x00"`, legible("\xff\x00"))
	assert.NotContains(t, strings.Join([]string{legible("a\nb"), legible("\r")}, ""), "\n")
}
