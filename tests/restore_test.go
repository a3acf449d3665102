package tests

import (
	"os"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
)

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
