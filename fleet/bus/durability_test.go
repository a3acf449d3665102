package bus_test

import (
	"bytes"
	"context"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/testutil"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/lifeboat-fleet/lifeboat/fleet/bus"
	"github.com/lifeboat-fleet/lifeboat/fleet/config"
	"github.com/lifeboat-fleet/lifeboat/fleet/fleettest/bintest"
	"github.com/lifeboat-fleet/lifeboat/fleet/fleettest/certtest"
	"github.com/lifeboat-fleet/lifeboat/fleet/fleettest/rolestest"
)

// observed connects with a registry and a log that can be looked at.
func observed(t *testing.T, cfg config.NATS) (*bus.Bus, *prometheus.Registry, *logBuffer) {
	t.Helper()
	log, reg := &logBuffer{}, prometheus.NewRegistry()
	b, err := bus.Connect(bus.Options{Config: cfg, Actor: "test", Logger: slog.New(slog.NewTextHandler(log, nil)), Registerer: reg})
	require.NoError(t, err)
	t.Cleanup(func() { assert.NoError(t, b.Close()) })
	return b, reg, log
}

// durable compares the metric. An aspect that is not known is left out.
func durable(t *testing.T, reg *prometheus.Registry, want string) {
	t.Helper()
	const head = "# HELP lifeboat_nats_durable 1 if what NATS acknowledged outlives its servers, 0 if not, by aspect: replicas (three of " +
		"every stream), sync (written to disk before it is acknowledged). An aspect that is not known is absent.\n" +
		"# TYPE lifeboat_nats_durable gauge\n"
	require.NoError(t, testutil.GatherAndCompare(reg, strings.NewReader(head+want), "lifeboat_nats_durable"))
}

func TestAServerAloneIsNotDurable(t *testing.T) {
	s, err := bintest.StartNATSWith(t.Context(), t.TempDir(), bintest.NATSOptions{Name: "alone"})
	require.NoError(t, err)
	t.Cleanup(func() { assert.NoError(t, s.Kill()) })

	b, reg, log := observed(t, config.NATS{URL: s.URL})
	require.NoError(t, b.EnsureStreams(t.Context()))
	reasons, err := b.Durability(t.Context())
	require.NoError(t, err)
	require.Len(t, reasons, 2)
	assert.Equal(t, "LIFEBOAT_JOBS, LIFEBOAT_EVENTS, LIFEBOAT_ALERTS, LIFEBOAT_DEAD: 1 replica only; three keep what was acknowledged when "+
		"one is lost: run three servers and set nats.replicas to 3", reasons[0])
	assert.Equal(t, "whether server alone writes to disk before acknowledging is not known, because NATS does not tell its clients: "+
		"name the monitoring address of every server in nats.monitor_urls", reasons[1])
	for range 3 {
		require.NoError(t, b.ReportDurability(t.Context()))
	}
	durable(t, reg, "lifeboat_nats_durable{aspect=\"replicas\"} 0\n")
	assert.Equal(t, 2, strings.Count(log.String(), "NATS could lose what it acknowledged"), "each reason once")

	b, reg, _ = observed(t, config.NATS{URL: s.URL, MonitorURLs: []string{s.Monitor + "/"}})
	reasons, err = b.Durability(t.Context())
	require.NoError(t, err)
	require.Len(t, reasons, 2)
	assert.Contains(t, reasons[1], "server alone writes to disk every 2m0s, and has acknowledged before")
	require.NoError(t, b.ReportDurability(t.Context()))
	durable(t, reg, "lifeboat_nats_durable{aspect=\"replicas\"} 0\nlifeboat_nats_durable{aspect=\"sync\"} 0\n")

	require.NoError(t, s.Kill())
	require.NoError(t, s.Configure("jetstream { sync_interval: always }"))
	require.NoError(t, s.Restart(t.Context()))
	require.Eventually(t, func() bool {
		reasons, err = b.Durability(t.Context())
		return err == nil && len(reasons) == 1
	}, time.Minute, 50*time.Millisecond, "%v %v", &reasons, &err)
	require.NoError(t, b.ReportDurability(t.Context()))
	durable(t, reg, "lifeboat_nats_durable{aspect=\"replicas\"} 0\nlifeboat_nats_durable{aspect=\"sync\"} 1\n")

	b, reg, _ = observed(t, config.NATS{URL: s.URL, MonitorURLs: []string{"http://127.0.0.1:1"}})
	reasons, err = b.Durability(t.Context())
	require.NoError(t, err, "a monitoring address that does not answer is one of the reasons")
	assert.Contains(t, reasons[1], "http://127.0.0.1:1 (nats.monitor_urls) does not tell")
	require.NoError(t, b.ReportDurability(t.Context()))
	durable(t, reg, "lifeboat_nats_durable{aspect=\"replicas\"} 0\n")
}

// The three servers that deploy/nats/server.conf describes, in which only addresses, names and the paths of certificates were
// filled in, are durable, take mutual TLS with NKeys, and tell when one of them is gone.
func TestTheServersOfTheExampleAreDurable(t *testing.T) {
	dir := t.TempDir()
	ca := certtest.New(t, "nats")
	p := ca.Server(t, certtest.For("127.0.0.1", "::1", "localhost", "nats-server.lifeboat"))
	seeds := map[string]string{}
	servers, err := bintest.StartNATSCluster(t.Context(), dir, 3, func(n *bintest.NATS, port int, routes []string) (string, error) {
		text, err := os.ReadFile(filepath.Join(deployFolder, "server.conf"))
		if err != nil {
			return "", err
		}
		if len(seeds) == 0 { // the same keys for all of them
			seeds = rolestest.Deploy(t, deployFolder, filepath.Join(dir, "shared"))
		}
		for i, route := range routes {
			text = replaceOnce(t, text, fmt.Sprintf("nats-route://nats-%d:6222", i+1), route)
		}
		text = replaceOnce(t, text, "listen: 0.0.0.0:6222", fmt.Sprintf("listen: \"127.0.0.1:%d\"", port))
		text = replaceOnce(t, text, "store_dir: /var/lib/nats", "") // a flag says where
		text = replaceOnce(t, text, "server_name: nats-1", "server_name: "+n.Name)
		text = replaceOnce(t, text, "include ./lifeboat.conf", "include ../shared/lifeboat.conf")
		return strings.NewReplacer("/etc/nats/server.pem", p.Cert, "/etc/nats/server-key.pem", p.Key, "/etc/nats/ca.pem", ca.File).Replace(string(text)), nil
	})
	t.Cleanup(func() {
		for _, s := range servers {
			assert.NoError(t, s.Kill())
			if t.Failed() {
				text, unread := os.ReadFile(s.Log())
				t.Logf("%v %s", unread, text)
			}
		}
	})
	require.NoError(t, err)
	client := ca.Client(t, "lifeboat")
	var urls, monitors []string
	for _, s := range servers {
		urls = append(urls, strings.Replace(s.URL, "nats://", "tls://", 1))
		monitors = append(monitors, s.Monitor)
	}
	cfg := config.NATS{
		URL: strings.Join(urls, ","), NkeyFile: config.SecretFile(seeds[scheduler]), InboxPrefix: "_INBOX_{role}", Replicas: 3, MonitorURLs: monitors,
		TLS: config.TLS{CAFile: ca.File, CertFile: client.Cert, KeyFile: config.SecretFile(client.Key)},
	}
	log, reg := &logBuffer{}, prometheus.NewRegistry()
	b, err := bus.Connect(bus.Options{
		Config: cfg, Actor: "lifeboat-scheduler@test", Logger: slog.New(slog.NewTextHandler(log, nil)), Registerer: reg,
	})
	require.NoError(t, err)
	t.Cleanup(func() { assert.NoError(t, b.Close()) })
	require.Eventually(t, func() bool { return b.EnsureStreams(t.Context()) == nil }, 60*time.Second, 50*time.Millisecond)
	var reasons []string
	settled := func(want string, count int) {
		t.Helper()
		require.Eventually(t, func() bool {
			ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
			defer cancel()
			reasons, err = b.Durability(ctx)
			return err == nil && len(reasons) == count && strings.Contains(strings.Join(reasons, "\n"), want)
		}, 60*time.Second, 100*time.Millisecond, "%q %d: %v %v", want, count, &reasons, &err)
		require.NoError(t, b.ReportDurability(t.Context()))
	}
	settled("", 0)
	durable(t, reg, "lifeboat_nats_durable{aspect=\"replicas\"} 1\nlifeboat_nats_durable{aspect=\"sync\"} 1\n")

	// One of them is gone: each of the four streams lacks a replica, and its disk cannot be asked.
	require.NoError(t, servers[2].Kill())
	settled("its replica on server n3 is not there", 5)
	durable(t, reg, "lifeboat_nats_durable{aspect=\"replicas\"} 0\n")
	require.NoError(t, servers[2].Restart(t.Context()))
	settled("", 0)
	durable(t, reg, "lifeboat_nats_durable{aspect=\"replicas\"} 1\nlifeboat_nats_durable{aspect=\"sync\"} 1\n")
	assert.Contains(t, log.String(), "NATS is durable again")

	// Somebody who does not name all of them is told which are not known.
	cfg.MonitorURLs = monitors[:2]
	some, err := bus.Connect(bus.Options{
		Config: cfg, Actor: "lifeboat-scheduler@test", Logger: slog.New(slog.DiscardHandler), Registerer: prometheus.NewRegistry(),
	})
	require.NoError(t, err)
	t.Cleanup(func() { assert.NoError(t, some.Close()) })
	reasons, err = some.Durability(t.Context())
	require.NoError(t, err)
	require.Len(t, reasons, 1)
	assert.Contains(t, reasons[0], "whether server n3 writes to disk before acknowledging is not known")
}

func replaceOnce(t *testing.T, text []byte, old, now string) []byte {
	t.Helper()
	require.Equal(t, 1, bytes.Count(text, []byte(old)), old)
	return bytes.Replace(text, []byte(old), []byte(now), 1)
}
