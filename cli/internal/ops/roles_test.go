package ops

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/lifeboat-fleet/lifeboat/fleet/config"
	"github.com/lifeboat-fleet/lifeboat/fleet/fleettest/bintest"
	"github.com/lifeboat-fleet/lifeboat/fleet/fleettest/rolestest"
	lifeboatv1 "github.com/lifeboat-fleet/lifeboat/proto/lifeboat/v1"
	backup "github.com/lifeboat-fleet/lifeboat/services/backup/app"
)

// Every command does all of its work with the permissions that deploy/nats gives to people, beside a worker with its own.
func TestThePermissionsOfPeopleAreEnough(t *testing.T) {
	dir := t.TempDir()
	seeds := rolestest.Deploy(t, "../../../deploy/nats", dir)
	server, err := bintest.StartNATSWith(t.Context(), dir, bintest.NATSOptions{Conf: "include ./lifeboat.conf"})
	require.NoError(t, err)
	t.Cleanup(func() { assert.NoError(t, server.Kill()) })
	settings := func(role string) string {
		return fmt.Sprintf("{url: %q, nkey_file: %q, inbox_prefix: \"_INBOX_{role}\"}", server.URL, seeds[role])
	}
	l := labOn(t, config.NATS{
		URL: server.URL, NkeyFile: config.SecretFile(seeds["scheduler"]), InboxPrefix: "_INBOX_{role}",
	}, settings("snapshot")).withServers()
	l.worker(backup.Options{Roles: []string{"snapshot"}})
	l.settings = settings("cli")
	// The worker has its file open no more; it looks at it for changes, so that people get one of their own.
	l.dir = t.TempDir()
	l.configure("    schedule: \"0 4 * * *\"\n")

	assert.Contains(t, l.ok("snapshot", "run", etcdTarget, "--wait"), "snapshot.committed")
	id := strings.TrimSpace(l.ok("snapshot", "run", hungTarget))
	l.event("snapshot", "started", hungTarget)
	assert.Contains(t, l.ok("jobs", "list"), "running on lifeboat-backup")
	assert.Contains(t, l.ok("jobs", "cancel", id, "--wait"), "which stops within seconds")

	worker := as(t, server.URL, seeds["snapshot"], "snapshot")
	require.NoError(t, worker.DeadLetter(t.Context(), "test", &lifeboatv1.DeadLetter{Id: "a", Subject: "lifeboat.job.snapshot." + etcdTarget}))
	assert.Contains(t, l.ok("dead", "list"), "lifeboat.job.snapshot.etcd-prod")
	assert.Contains(t, l.ok("dead", "show", "a"), "empty: a job with defaults")
	l.ok("dead", "replay", "a", "--yes")
	assert.Equal(t, "no dead letters\n", l.ok("dead", "list"))

	p := l.why(etcdTarget)
	assert.Empty(t, p.Unknown)
	require.NotNil(t, p.Job)
	out, _, _ := l.lifeboat("status")
	assert.Contains(t, out, "workers of no zone: 1 (snapshot 1)")
	assert.NotContains(t, out, "denied")

	teller := as(t, server.URL, seeds["notifier"], "notifier")
	require.NoError(t, teller.Emit(t.Context(), endOf("delivered", "one", "", "", "receiver", "ops-slack", "lag_seconds", "1")))
	require.NoError(t, teller.DeadLetter(t.Context(), "test", &lifeboatv1.DeadLetter{
		Id: "alert", Subject: "lifeboat.alert.delivery.ops-slack", Payload: delivery(t, "ops-slack", "A"),
	}))
	var v deliveriesView
	l.json(&v, "notify", "deliveries")
	assert.Len(t, v.Deliveries, 1)
	assert.Empty(t, v.Unknown)
	assert.Contains(t, l.ok("notify", "dead"), "ops-slack")
	l.ok("notify", "replay", "--all", "--yes")
	assert.Empty(t, l.deadView())
	l.json(&v, "notify", "deliveries")
	assert.Equal(t, uint64(1), v.Waiting.Receivers["ops-slack"].Waiting)

	text, err := os.ReadFile(server.Log())
	require.NoError(t, err)
	assert.NotContains(t, string(text), "Violation", filepath.Base(server.Log()))
}
