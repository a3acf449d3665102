//go:build e2e

package compose

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"google.golang.org/protobuf/encoding/protojson"

	"github.com/lifeboat-fleet/lifeboat/fleet/fleettest/chattest"
	lifeboatv1 "github.com/lifeboat-fleet/lifeboat/proto/lifeboat/v1"
)

// README's chapter, as it is written: it deploys the fleet, triggers a restore drill by publishing a subject, and sees a routed alert arrive
// in both chats with its runbook. Then everything that the deployment promises is looked at.
func TestWithCompose(t *testing.T) {
	s := newSite(t)
	blocks := s.chapter("With compose")
	require.Len(t, blocks, 3)
	s.standIns()
	s.walk(blocks[0])
	s.chats()
	page := "# DiskFull\n\n## Mitigation\n\n1. Remove what is old:\n\n       find /var/log -mtime +7 -delete\n"
	require.NoError(t, os.WriteFile(s.path("deploy/compose/run/etc/runbooks/disk-full.md"), []byte(page), 0o644))
	s.downAtEnd()
	s.walk(blocks[1])
	s.walk(blocks[2])

	js := s.nats()
	assert.Equal(t, "consul", s.event(js, "lifeboat.event.drill.passed.consul").GetTarget())
	s.inBothChats("DiskFull", "https://runbooks.example.com/disk-full", "find /var/log -mtime +7 -delete")

	t.Run("every container is healthy", s.healthy)
	t.Run("every kind is backed up and drilled", func(t *testing.T) {
		out := s.compose("run", "--rm", "lifeboat", "drill", "run", "nomad", "--wait", "--timeout", "2m")
		assert.Contains(t, out, "drill.passed")
		for _, work := range []string{"verify", "prune"} {
			_, err := js.Publish(t.Context(), "lifeboat.job."+work+".etcd", nil)
			require.NoError(t, err)
			s.event(js, "lifeboat.event."+work+".passed.etcd")
		}
	})
	t.Run("an alert of the fleet itself arrives", func(t *testing.T) {
		_, err := js.Publish(t.Context(), "lifeboat.job.snapshot.no-such-target", nil)
		require.NoError(t, err)
		s.inBothChats("LifeboatJobRejected", "https://runbooks.example.com/lifeboat-job-rejected")
	})
	t.Run("a changed configuration is live", func(t *testing.T) { s.reconfigured(t, js) })
	t.Run("the page shows it", s.onePage)
	t.Run("Prometheus scrapes the fleet", s.scraped)
	t.Run("nothing is published outside loopback", s.loopbackOnly)
	t.Run("containers are confined", s.confined)
	t.Run("no secret is where it does not belong", s.secretsStay)
	t.Run("the bucket's users have the rights of their roles only", s.leastPrivilege)
	t.Run("the profile observe is valid", s.observe)
}

// Three servers, by the same file: every stream has three replicas, and the fleet works on when one server is gone.
func TestClusterProfile(t *testing.T) {
	s := newSite(t)
	s.standIns()
	s.walk([]string{"make images", "cd deploy/compose", "./prepare --cluster"})
	s.chats()
	s.downAtEnd()
	s.walk([]string{"docker compose up --detach --wait --build"})
	js := s.nats()
	for _, name := range []string{"LIFEBOAT_JOBS", "LIFEBOAT_EVENTS", "LIFEBOAT_ALERTS", "LIFEBOAT_DEAD"} {
		stream, err := js.Stream(t.Context(), name)
		require.NoError(t, err)
		assert.Equal(t, 3, stream.CachedInfo().Config.Replicas, name)
	}
	s.compose("run", "--rm", "lifeboat", "snapshot", "run", "etcd", "--wait", "--timeout", "1m")
	s.compose("kill", "nats-2")
	s.compose("run", "--rm", "lifeboat", "snapshot", "run", "etcd", "--wait", "--timeout", "1m")
	s.compose("run", "--rm", "lifeboat", "drill", "run", "etcd", "--wait", "--timeout", "1m")
}

// nats connects as README's reader does: from outside, with the operator's key and a certificate.
func (s *site) nats() jetstream.JetStream {
	s.t.Helper()
	run := s.path("deploy/compose/run")
	key, err := nats.NkeyOptionFromSeed(filepath.Join(run, "nats/cli.nk"))
	require.NoError(s.t, err)
	nc, err := nats.Connect("tls://127.0.0.1:4222", key, nats.CustomInboxPrefix("_INBOX_cli"), nats.RootCAs(filepath.Join(run, "tls/ca.pem")),
		nats.ClientCert(filepath.Join(run, "tls/client.pem"), filepath.Join(run, "tls/client-key.pem")))
	require.NoError(s.t, err)
	s.t.Cleanup(nc.Close)
	js, err := jetstream.New(nc)
	require.NoError(s.t, err)
	return js
}

// event waits for the last event of a subject.
func (s *site) event(js jetstream.JetStream, subject string) *lifeboatv1.Event {
	s.t.Helper()
	var e lifeboatv1.Event
	require.Eventually(s.t, func() bool {
		stream, err := js.Stream(s.t.Context(), "LIFEBOAT_EVENTS")
		if err != nil {
			return false
		}
		m, err := stream.GetLastMsgForSubject(s.t.Context(), subject)
		return err == nil && protojson.UnmarshalOptions{DiscardUnknown: true}.Unmarshal(m.Data, &e) == nil
	}, time.Minute, 100*time.Millisecond, subject)
	return &e
}

// inBothChats waits until Slack and DingTalk each have a message with all of these texts.
func (s *site) inBothChats(texts ...string) {
	s.t.Helper()
	has := func(messages []chattest.Message, kind chattest.Kind) bool {
		return slices.ContainsFunc(messages, func(m chattest.Message) bool {
			return m.Kind == kind && !slices.ContainsFunc(texts, func(text string) bool { return !strings.Contains(m.Title+m.Text+string(m.Raw), text) })
		})
	}
	if !assert.Eventually(s.t, func() bool {
		m := s.chat.Messages()
		return has(m, chattest.Slack) && has(m, chattest.DingTalk)
	}, 90*time.Second, 100*time.Millisecond) {
		for _, m := range s.chat.Messages() {
			s.t.Logf("%s: %s", m.Kind, m.Raw)
		}
		require.FailNow(s.t, fmt.Sprintf("both chats should have a message with %q", texts))
	}
}

// observe only looks at what Compose makes of the profile: Grafana, Loki, Tempo and the collector cannot be built here.
func (s *site) observe(t *testing.T) {
	s.walk([]string{"./prepare --cluster --observe"})
	services := strings.Fields(s.compose("config", "--services"))
	assert.Subset(t, services, []string{"nats-2", "nats-3", "grafana", "loki", "tempo", "collector"})
	root := strings.TrimSpace(s.docker("info", "--format", "{{.DockerRootDir}}"))
	config := s.compose("config")
	assert.Contains(t, config, root+"/containers", "where the engine keeps the containers' logs")
	assert.Contains(t, config, "OTEL_EXPORTER_OTLP_ENDPOINT: http://tempo:4318")
}

func (s *site) healthy(t *testing.T) {
	once := map[string]bool{"s3-users": true, "s3-rights": true}
	for _, c := range s.containers() {
		if once[c.service()] {
			assert.Equal(t, "exited", c.State.Status, c.Name)
			continue
		}
		if assert.NotNil(t, c.State.Health, "%s has no health check", c.Name) {
			assert.Equal(t, "healthy", c.State.Health.Status, c.Name)
		}
	}
}

// reconfigured edits run/etc/lifeboat.yaml as an editor does, which writes another file and puts it in place of the first.
func (s *site) reconfigured(t *testing.T, js jetstream.JetStream) {
	t.Helper()
	path := s.path("deploy/compose/run/etc/lifeboat.yaml")
	b, err := os.ReadFile(path)
	require.NoError(t, err)
	text := strings.Replace(string(b), "  - name: nomad\n", "  - name: etcd-again\n    etcd:\n      endpoints: [\"https://etcd:2379\"]\n"+
		"      tls: {ca_file: /run/secrets/etcd-ca.pem, cert_file: /run/secrets/etcd-client.pem, key_file: /run/secrets/etcd-client-key.pem}\n"+
		"    schedule: \"@every 2s\"\n  - name: nomad\n", 1)
	require.NotEqual(t, string(b), text)
	require.NoError(t, os.WriteFile(path+".new", []byte(text), 0o644))
	before := s.startedAt()
	require.NoError(t, os.Rename(path+".new", path))
	assert.Equal(t, "scheduler", s.event(js, "lifeboat.event.snapshot.committed.etcd-again").GetRequestedBy())
	assert.Equal(t, before, s.startedAt(), "nothing was restarted")
}

func (s *site) startedAt() string {
	return s.docker(append([]string{"inspect", "--format", "{{.Name}} {{.State.StartedAt}}"}, strings.Fields(s.compose("ps", "--quiet"))...)...)
}

func get(t *testing.T, url string) ([]byte, error) {
	t.Helper()
	req, err := http.NewRequestWithContext(t.Context(), http.MethodGet, url, nil)
	if err != nil {
		return nil, err
	}
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		return nil, err
	}
	defer resp.Body.Close()
	return io.ReadAll(resp.Body)
}

func (s *site) onePage(t *testing.T) {
	b, err := get(t, "http://127.0.0.1:9089/")
	require.NoError(t, err)
	assert.Contains(t, string(b), "etcd-again", "also the target that has just been added")
}

func (s *site) scraped(t *testing.T) {
	var problems error
	require.Eventually(t, func() bool {
		problems = s.targets(t)
		return problems == nil
	}, time.Minute, time.Second, "%v", &problems)
}

// targets says which of Prometheus' targets are not up.
func (s *site) targets(t *testing.T) error {
	t.Helper()
	b, err := get(t, "http://127.0.0.1:9090/api/v1/targets")
	if err != nil {
		return err
	}
	var answer struct {
		Data struct {
			ActiveTargets []struct {
				ScrapeURL, Health, LastError string
			}
		}
	}
	if err = json.Unmarshal(b, &answer); err != nil {
		return err
	}
	if n := len(answer.Data.ActiveTargets); n < 9 {
		err = fmt.Errorf("only %d targets", n)
	}
	for _, target := range answer.Data.ActiveTargets {
		if target.Health != "up" {
			err = errors.Join(err, fmt.Errorf("%s is %s: %s", target.ScrapeURL, target.Health, target.LastError))
		}
	}
	return err
}
