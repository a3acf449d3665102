//go:build e2e

package nomad

import (
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/lifeboat-fleet/lifeboat/fleet/config"
	"github.com/lifeboat-fleet/lifeboat/fleet/fleettest/bintest"
	"github.com/lifeboat-fleet/lifeboat/fleet/fleettest/chattest"
	lifeboatv1 "github.com/lifeboat-fleet/lifeboat/proto/lifeboat/v1"
)

// The fleet as Nomad jobs, on real servers, by the job files as they stand: what its owner wants of it, and then what must not go wrong
// while it is changed under way. The steps build on each other.
func TestTheFleetAsNomadJobs(t *testing.T) {
	s := start(t, options{vault: true})
	s.startTraefik()
	s.secrets()
	s.startAlertmanager()
	s.patient()
	s.leastPrivilege()
	s.configure(s.targets(""))
	s.variables()
	for _, job := range jobs() {
		s.deploy(job)
	}
	s.connect()
	for _, step := range []struct {
		name string
		run  func()
	}{
		{"a restore drill by publishing a subject", s.drillBySubject},
		{"a routed alert in chat with its runbook", s.alertInChat},
		{"secrets rotated in Vault", s.rotate},
		{"the status page by Traefik", s.pageByTraefik},
		{"actions", s.actions},
		{"configuration changed in Consul", s.configurationIsLive},
		{"a worker's allocation stopped in the middle of a snapshot", s.workerStopped},
		{"the rotated secrets arrive", s.rotationArrives},
		{"a rolling update of every job", s.rollingUpdate},
	} {
		s.t = t
		if !t.Run(step.name, func(t *testing.T) { s.t = t; step.run() }) {
			return
		}
	}
	s.t = t
}

// targets are the three kinds, in the form of lifeboat.yaml, and more.
func (s *site) targets(more string) string {
	return fmt.Sprintf(`  - {name: etcd-prod, etcd: {endpoints: [%q]}, rpo: 1h}
  - {name: consul-kv, consul: {address: %q}}
  - {name: nomad-jobs, nomad: {address: %q}}
%s`, s.etcd.Endpoint, s.consul.Address, s.nomad.Address, more)
}

func (s *site) startAlertmanager() {
	s.t.Helper()
	token := s.write("alertmanager-token", s.read("keys/webhook-tokens"))
	var err error
	s.alertmanager, err = bintest.StartAlertmanagerWith(s.t.Context(), s.path("alertmanager"), fmt.Sprintf(`
route: {receiver: lifeboat, group_by: [alertname, target], group_wait: 1s, group_interval: 2s, repeat_interval: 4h}
receivers:
  - name: lifeboat
    webhook_configs:
      - url: %s/api/v1/alertmanager
        send_resolved: false
        http_config: {authorization: {credentials_file: %s}, tls_config: {ca_file: %s}}
`, s.traefik.URL, token, s.path("web/tls/ca.pem")))
	require.NoError(s.t, err)
	s.t.Cleanup(func() { assert.NoError(s.t, s.alertmanager.Stop()) })
}

// The first two sentences: it runs as Nomad jobs, and a drill is a publish.
func (s *site) drillBySubject() {
	t := s.t
	for _, target := range []string{"etcd-prod", "consul-kv", "nomad-jobs"} {
		s.publish(config.WorkSnapshot, target)
	}
	for _, target := range []string{"etcd-prod", "consul-kv", "nomad-jobs"} {
		s.event("snapshot", "committed", target, time.Minute, nil)
	}
	s.publish(config.WorkDrill, "etcd-prod")
	report := s.event("drill", "passed", "etcd-prod", 2*time.Minute, nil).GetDrill()
	assert.Equal(t, lifeboatv1.DrillReport_LEVEL_RESTORED, report.GetLevel())
	for _, target := range []string{"consul-kv", "nomad-jobs"} {
		s.publish(config.WorkDrill, target)
		s.event("drill", "passed", target, 3*time.Minute, nil)
	}
}

// The third: an alert goes through Alertmanager and the notifier into the chats that its route says, with its runbook.
func (s *site) alertInChat() {
	s.fire("CheckoutLatencyHigh", "critical")
	s.inChat(chattest.Slack, "CheckoutLatencyHigh", "https://runbooks.example.com/checkout-latency-high")
	s.inChat(chattest.DingTalk, "CheckoutLatencyHigh", "https://runbooks.example.com/checkout-latency-high")
}

// inChat waits for a message that says all of it.
func (s *site) inChat(kind chattest.Kind, texts ...string) {
	s.t.Helper()
	require.Eventually(s.t, func() bool {
		for _, m := range s.chat.Messages() {
			said := m.Kind == kind
			for _, text := range texts {
				said = said && strings.Contains(m.Title+m.Text+string(m.Raw), text)
			}
			if said {
				return true
			}
		}
		return false
	}, time.Minute, 100*time.Millisecond, "%s does not hear of %s", kind, texts)
}
