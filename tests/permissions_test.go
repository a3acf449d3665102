package tests

import (
	"fmt"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/lifeboat-fleet/lifeboat/fleet/fleettest/bintest"
	"github.com/lifeboat-fleet/lifeboat/fleet/fleettest/rolestest"
	lifeboatv1 "github.com/lifeboat-fleet/lifeboat/proto/lifeboat/v1"
)

// The services do all of their work, each as a process with the permissions that deploy/nats gives its role, and the server
// denies nothing: who uses another subject must add it there.
func TestTheDeployedPermissionsAreEnough(t *testing.T) {
	dir := t.TempDir()
	// Not the working directory: the embedded S3 server moves that.
	seeds := rolestest.Deploy(t, filepath.Join(os.Getenv("PWD"), "..", "deploy", "nats"), dir)
	f := start(t)
	open := f.nats.URL
	server, err := bintest.StartNATSWith(t.Context(), dir, bintest.NATSOptions{Conf: "include ./lifeboat.conf"})
	require.NoError(t, err)
	t.Cleanup(func() { assert.NoError(t, server.Kill()) })
	b, err := os.ReadFile(f.config)
	require.NoError(t, err)
	yaml := strings.Replace(string(b), "    timeout: 5m\n", "    timeout: 5m\n    schedule: \"@every 2s\"\n    rpo: 1h\n    retention: {last: 1}\n", 1)
	as := func(role string) {
		f.config = f.write("lifeboat-"+role+".yaml", strings.Replace(yaml, fmt.Sprintf("nats: {url: %q}", open),
			fmt.Sprintf("nats: {url: %q, nkey_file: %q, inbox_prefix: \"_INBOX_{role}\"}", server.URL, seeds[role]), 1))
	}
	key, err := nats.NkeyOptionFromSeed(seeds["cli"])
	require.NoError(t, err)
	nc, err := nats.Connect(server.URL, key, nats.CustomInboxPrefix("_INBOX_cli"))
	require.NoError(t, err)
	t.Cleanup(nc.Close)
	f.js, err = jetstream.New(nc)
	require.NoError(t, err)

	as("scheduler")
	f.run("scheduler").logged(t, "created stream")
	for _, role := range []string{"snapshot", "verify", "drill", "prune"} {
		as(role)
		f.run("backup", "--roles", role)
	}
	as("notifier")
	f.run("notifier")
	assert.Equal(t, "scheduler", f.event("lifeboat.event.snapshot.committed.etcd-prod").GetRequestedBy())
	as("cli")
	for _, command := range [][]string{
		{"snapshot", "run", "etcd-prod"}, {"drill", "run", "etcd-prod"},
	} {
		var out string
		require.Eventually(t, func() bool { // the scheduler's own may be waiting
			var exit int
			out, exit = f.command(append(command, "--wait", "--timeout", "1m", "-c", f.config)...)
			return exit == 0
		}, 90*time.Second, 50*time.Millisecond, "%v: %s", command, &out)
	}
	f.publish("lifeboat.job.verify.etcd-prod")
	f.event("lifeboat.event.verify.passed.etcd-prod")
	require.Eventually(t, func() bool { // until there is something to delete
		_, _ = f.js.Publish(t.Context(), "lifeboat.job.prune.etcd-prod", nil) // refused while one runs
		return f.last("LIFEBOAT_EVENTS", "lifeboat.event.snapshot.deleted.etcd-prod", &lifeboatv1.Event{})
	}, 60*time.Second, time.Second)
	f.event("lifeboat.event.prune.passed.etcd-prod")
	f.publish("lifeboat.job.snapshot.no-such-target")
	require.Eventually(t, func() bool {
		return f.last("LIFEBOAT_DEAD", "lifeboat.dead.job.snapshot.no-such-target", &lifeboatv1.DeadLetter{})
	}, 60*time.Second, 20*time.Millisecond)
	f.event("lifeboat.event.job.rejected.no-such-target")
	require.Eventually(t, func() bool {
		return f.post(webhook(map[string]string{"alertname": "CheckoutSlow", "severity": "critical"})) == http.StatusOK
	}, time.Minute, 50*time.Millisecond)
	f.inBothChats("CheckoutSlow")
	f.inBothChats("LifeboatJobRejected")
	assert.Equal(t, http.StatusBadRequest, f.post([]byte("{")))
	require.Eventually(t, func() bool {
		return f.last("LIFEBOAT_DEAD", "lifeboat.dead.webhook", &lifeboatv1.DeadLetter{})
	}, time.Minute, 20*time.Millisecond)
	out, exit := f.command("status", "-c", f.config)
	assert.Zero(t, exit, out)

	log, err := os.ReadFile(server.Log())
	require.NoError(t, err)
	for line := range strings.Lines(string(log)) {
		assert.NotContains(t, line, "Violation")
	}
}
