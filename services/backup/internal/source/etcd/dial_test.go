package etcd_test

import (
	"testing"

	"github.com/stretchr/testify/require"
	"go.etcd.io/etcd/server/v3/embed"

	"github.com/lifeboat-fleet/lifeboat/fleet/config"
	"github.com/lifeboat-fleet/lifeboat/services/backup/internal/source/etcd"
)

// TestDial connects by the endpoints that answer, takes requests larger than the client's own limit to the cluster, which is the one
// to refuse them, and never writes to two clusters.
func TestDial(t *testing.T) {
	one := clientURL(startWith(t, t.TempDir()))
	other := clientURL(startWith(t, t.TempDir(), func(c *embed.Config) { c.InitialClusterToken = "another cluster" }))
	dead := "http://127.0.0.1:1"
	c, err := etcd.Dial(t.Context(), config.Etcd{Endpoints: []string{dead, one}})
	require.NoError(t, err)
	defer c.Close()
	require.Equal(t, []string{one}, c.Endpoints())
	_, err = c.Put(t.Context(), "k", string(make([]byte, 5<<20)))
	require.ErrorContains(t, err, "received message larger than max")
	_, err = etcd.Dial(t.Context(), config.Etcd{Endpoints: []string{one, other}})
	require.ErrorContains(t, err, "belongs to cluster")
	_, err = etcd.Dial(t.Context(), config.Etcd{Endpoints: []string{dead}})
	require.ErrorContains(t, err, "no member of the cluster can be written to")
	require.ErrorContains(t, err, "connection refused")
	_, err = etcd.Dial(t.Context(), config.Etcd{Endpoints: []string{one}, Username: "somebody", PasswordFile: "absent"})
	require.ErrorContains(t, err, "reading the password")
}
