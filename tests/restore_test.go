package tests

import (
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"filippo.io/age"
	"github.com/klauspost/compress/zstd"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	clientv3 "go.etcd.io/etcd/client/v3"
	"go.etcd.io/etcd/etcdutl/v3/snapshot"
	"go.etcd.io/etcd/server/v3/etcdserver/api/v3client"
	"go.uber.org/zap"
	"google.golang.org/protobuf/proto"

	"github.com/lifeboat-fleet/lifeboat/fleet/fleettest/etcdtest"
)

// Guarantee 5: an encrypted snapshot restores with what `sha256sum`, `age -d`, `zstd -d` and `etcdutl snapshot restore` do and the
// manifest alone. The tools' own libraries stand for the tools, which a machine that builds Lifeboat need not have.
func TestGuarantee5EtcdRestoresWithoutLifeboat(t *testing.T) {
	f := start(t)
	identity, err := age.GenerateX25519Identity()
	require.NoError(t, err)
	b, err := os.ReadFile(f.config)
	require.NoError(t, err)
	f.write("lifeboat.yaml", string(b)+"encryption: {recipients: ["+identity.Recipient().String()+"]}\n")
	f.run("backup", "--roles", "snapshot") // it has recipients and no identity
	f.publish("lifeboat.job.snapshot.etcd-prod")
	f.event("lifeboat.event.snapshot.committed.etcd-prod")
	all := f.manifests()
	require.Len(t, all, 1)
	m := all[0]
	assert.Equal(t, "stored", m.GetVerification().GetMethod(), "compared as stored: nobody here can decrypt it")
	commands := strings.Join(m.GetRestoreCommands(), "\n")
	for _, tool := range []string{"aws ", "sha256sum -c", "age -d -i", "zstd -d", "etcdutl snapshot restore"} {
		assert.Contains(t, commands, tool)
	}

	stored, err := os.ReadFile(f.s3.Path(m.GetData().GetKey()))
	require.NoError(t, err)
	sum := sha256.Sum256(stored)
	assert.Equal(t, m.GetData().GetStored().GetSha256(), hex.EncodeToString(sum[:]))
	assert.NotContains(t, string(stored), "/registry/pods")
	compressed, err := age.Decrypt(bytes.NewReader(stored), identity)
	require.NoError(t, err)
	z, err := zstd.NewReader(compressed)
	require.NoError(t, err)
	defer z.Close()
	raw, err := io.ReadAll(z)
	require.NoError(t, err)
	db := filepath.Join(t.TempDir(), "etcd-prod.db")
	require.NoError(t, os.WriteFile(db, raw, 0o600))

	dir := t.TempDir()
	peer := "http://127.0.0.1:0"
	require.NoError(t, snapshot.NewV3(zap.NewNop()).Restore(snapshot.RestoreConfig{
		SnapshotPath: db, OutputDataDir: filepath.Join(dir, "data"), Name: "default", PeerURLs: []string{peer},
		InitialCluster: "default=" + peer, InitialClusterToken: "restored",
	}))
	e := etcdtest.New(t, dir)
	c := v3client.New(e.Server)
	defer c.Close()
	got, err := c.Get(t.Context(), "/registry/", clientv3.WithPrefix())
	require.NoError(t, err)
	want, err := f.client.Get(t.Context(), "/registry/", clientv3.WithPrefix())
	require.NoError(t, err)
	require.Len(t, got.Kvs, 50)
	for i, kv := range got.Kvs {
		assert.True(t, proto.Equal(want.Kvs[i], kv), "%s: key, value or revision differs", kv.Key)
	}
	assert.Equal(t, m.GetSource().GetRevision(), want.Header.GetRevision())
}

// Guarantee 4: NATS is lost with everything in it. The snapshots are there, and a drill on a new, empty NATS proves one.
func TestGuarantee4ADrillNeedsNothingOfNATSsPast(t *testing.T) {
	f := start(t)
	first := f.run("backup")
	f.publish("lifeboat.job.snapshot.etcd-prod")
	id := f.event("lifeboat.event.snapshot.committed.etcd-prod").GetSnapshotId()
	require.NoError(t, first.Stop())
	require.NoError(t, f.nats.Kill())
	require.NoError(t, os.RemoveAll(f.path("data")))
	out, exit := f.command("snapshot", "list", "-c", f.config)
	assert.Zero(t, exit, out)
	assert.Contains(t, out, id, "listed while NATS is away")
	require.NoError(t, f.nats.Restart(t.Context()))
	f.run("backup")
	f.publish("lifeboat.job.drill.etcd-prod")
	assert.Equal(t, id, f.event("lifeboat.event.drill.passed.etcd-prod").GetSnapshotId())
}
