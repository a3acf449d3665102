package consul_test

import (
	"encoding/base64"
	"encoding/json"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/lifeboat-fleet/lifeboat/fleet/config"
	"github.com/lifeboat-fleet/lifeboat/fleet/fleettest/bintest"
	"github.com/lifeboat-fleet/lifeboat/services/backup/internal/source"
	"github.com/lifeboat-fleet/lifeboat/services/backup/internal/source/consul"
	"github.com/lifeboat-fleet/lifeboat/services/backup/internal/source/sourcetest"
)

var _ sourcetest.Opener = (*consul.Raft)(nil)

// noise is what does not compress.
func noise(size int) []byte {
	b := make([]byte, size)
	_, _ = rand.NewChaCha8([32]byte{byte(size)}).Read(b) // it never fails
	return b
}

func openRaft(address string, idle time.Duration) sourcetest.Opener {
	return consul.NewRaft(config.Consul{Address: address}, consul.Options{Idle: idle})
}

// restore gives a snapshot to Consul's own tool.
func restore(t *testing.T, c *bintest.Consul, data []byte) {
	t.Helper()
	file := filepath.Join(t.TempDir(), "backup.snap")
	require.NoError(t, os.WriteFile(file, data, 0o600))
	bin, err := bintest.Find("consul")
	require.NoError(t, err)
	out, err := exec.CommandContext(t.Context(), bin, "snapshot", "restore", "-http-addr="+c.Address, file).CombinedOutput()
	require.NoError(t, err, "%s", out)
}

// TestRaftConformance restores every snapshot that the suite takes to a server of its own, and reads its keys.
func TestRaftConformance(t *testing.T) {
	srv := serve(run(t, bintest.ConsulOptions{}), noise)
	drill := run(t, bintest.ConsulOptions{})
	sourcetest.RunOpaque(t, sourcetest.Harness{
		Format: "snap", New: openRaft, Server: srv, Items: "bytes", Huge: 512 << 10, Mutate: mutate(srv.Address),
		Victim: func(t *testing.T) *sourcetest.Server {
			t.Helper()
			return serve(run(t, bintest.ConsulOptions{}), noise)
		},
		Decode: func(t *testing.T, data []byte) map[string]string {
			t.Helper()
			restore(t, drill, data)
			return decode(t, read(t, drill.Address))
		},
	})
}

// TestRaftRights gives a snapshot to a management token only, and says so to others.
func TestRaftRights(t *testing.T) {
	c := run(t, bintest.ConsulOptions{Management: root})
	doAs(t, root, "PUT", c.Address+"/v1/kv/a", []byte("x"))
	reader := newToken(t, c, `key_prefix "" { policy = "read" } operator = "read" acl = "read"`)
	for name, secret := range map[string]string{"too few": reader, "unknown": unknown, "none": ""} {
		_, err := consul.NewRaft(withToken(t, c, secret), consul.Options{}).Open(t.Context())
		var typed *source.Error
		require.ErrorAs(t, err, &typed, name)
		assert.Equal(t, source.Denied, typed.Reason)
		assert.False(t, typed.Retryable())
		if secret != "" {
			assert.NotContains(t, err.Error(), secret)
		}
		if name != "unknown" {
			require.ErrorContains(t, err, `needs a management token, or one with: acl = "write"`, name)
		}
	}
	for _, secret := range []string{root, newToken(t, c, `acl = "write"`)} {
		data := readRaft(t, withToken(t, c, secret))
		fresh := run(t, bintest.ConsulOptions{Management: unknown})
		doAs(t, unknown, "PUT", fresh.Address+"/v1/snapshot", data)
		// The restore brought the old tokens, too.
		var got []struct{ Value string }
		require.NoError(t, json.Unmarshal(doAs(t, root, "GET", fresh.Address+"/v1/kv/a", nil), &got))
		assert.Equal(t, base64.StdEncoding.EncodeToString([]byte("x")), got[0].Value)
	}
}
