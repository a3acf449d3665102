package app_test

import (
	"fmt"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/lifeboat-fleet/lifeboat/fleet/fleettest/bintest"
	"github.com/lifeboat-fleet/lifeboat/fleet/fleettest/chattest"
)

func TestFleetAlertGoesThroughARealAlertmanager(t *testing.T) {
	t.Parallel()
	ports, err := bintest.FreePorts(1)
	require.NoError(t, err)
	am, err := bintest.StartAlertmanager(t.Context(), t.TempDir(), fmt.Sprintf("http://127.0.0.1:%d/api/v1/alertmanager", ports[0]))
	require.NoError(t, err)
	t.Cleanup(func() { require.NoError(t, am.Stop()) })
	f := newFleet(t, settings{port: ports[0], alertmanagers: []string{am.URL}})

	f.emit("snapshot", "failed", "etcd-prod", "the source closed the stream")
	f.waitChat(func(ms []chattest.Message) bool {
		return len(of(ms, chattest.Slack, "FIRING", "LifeboatSnapshotFailed")) == 1 &&
			len(of(ms, chattest.DingTalk, "FIRING", "LifeboatSnapshotFailed")) == 1
	})
	m := of(f.chat.Messages(), chattest.Slack)[0]
	assert.Contains(t, m.Text, "the source closed the stream")
	assert.Contains(t, m.Text, "from alertmanager")
	assert.Contains(t, m.Text, "https://runbooks.example.com/lifeboat/lifeboat-snapshot-failed.md")

	f.emit("snapshot", "committed", "etcd-prod", "done")
	f.waitChat(func(ms []chattest.Message) bool {
		return len(of(ms, chattest.Slack, "RESOLVED", "LifeboatSnapshotFailed")) == 1
	})
	assert.Len(t, of(f.chat.Messages(), chattest.Slack), 2)
}

func TestFleetAlertReachesChatWithoutAlertmanager(t *testing.T) {
	t.Parallel()
	ports, err := bintest.FreePorts(1)
	require.NoError(t, err)
	f := newFleet(t, settings{alertmanagers: []string{fmt.Sprintf("http://127.0.0.1:%d", ports[0])}})
	f.emit("drill", "passed", "consul-kv", "fine")
	f.emit("drill", "failed", "consul-kv", "3 keys are missing")
	f.emit("rpo", "exceeded", "etcd-prod", "no snapshot for 13h")
	f.emit("rpo", "met", "etcd-prod", "again")
	f.emit("job", "rejected", "no-such-target", "no target is named no-such-target")
	f.waitChat(func(ms []chattest.Message) bool {
		return len(of(ms, chattest.Slack, "FIRING", "LifeboatDrillFailed", "3 keys are missing")) == 1 &&
			len(of(ms, chattest.Slack, "RESOLVED", "LifeboatRPOExceeded")) == 1 &&
			len(of(ms, chattest.Slack, "FIRING", "LifeboatJobRejected", "no-such-target")) == 1
	})
	assert.Contains(t, of(f.chat.Messages(), chattest.Slack, "LifeboatDrillFailed")[0].Text, "no Alertmanager took it")

	// What fires is derived from the events: a restart neither forgets it nor tells it again.
	f.stop()
	f.start()
	f.emit("drill", "passed", "consul-kv", "fine again")
	f.waitChat(func(ms []chattest.Message) bool {
		return len(of(ms, chattest.Slack, "RESOLVED", "LifeboatDrillFailed")) == 1
	})
	assert.Len(t, of(f.chat.Messages(), chattest.Slack, "FIRING", "LifeboatDrillFailed"), 1)
	assert.Len(t, of(f.chat.Messages(), chattest.Slack, "FIRING", "LifeboatJobRejected"), 1)
}
