//go:build e2e

package nomad

import (
	"bytes"
	"context"
	"fmt"
	"log/slog"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	clientv3 "go.etcd.io/etcd/client/v3"
	"google.golang.org/protobuf/proto"

	"github.com/lifeboat-fleet/lifeboat/fleet/bus"
	"github.com/lifeboat-fleet/lifeboat/fleet/config"
	"github.com/lifeboat-fleet/lifeboat/fleet/fleettest/bintest"
	"github.com/lifeboat-fleet/lifeboat/fleet/fleettest/chattest"
	"github.com/lifeboat-fleet/lifeboat/fleet/fleettest/etcdtest"
	"github.com/lifeboat-fleet/lifeboat/fleet/fleettest/s3test"
	lifeboatv1 "github.com/lifeboat-fleet/lifeboat/proto/lifeboat/v1"
)

// site is a platform as a team has one: Consul, Nomad with a node, S3, an etcd, Alertmanager and chats. Lifeboat is deployed to it by
// the job files and the scripts alone.
type site struct {
	t    *testing.T
	root string
	dir  string

	consul       *bintest.Consul
	nomad        *bintest.Nomad
	s3           *s3test.Server
	proxy        *s3test.Proxy
	etcd         *etcdtest.Server
	client       *clientv3.Client
	chat         *chattest.Server
	vault        *vault
	traefik      *traefik
	alertmanager *bintest.Alertmanager
	bus          *bus.Bus
	rotation     *rotation
	// vars are the variables of the last run of every job.
	vars []string
}

// options are what a site has besides.
type options struct {
	// vault for the secrets: Nomad's agent has deploy/nomad/agent.hcl then.
	vault bool
}

// start starts the platform, and nothing of Lifeboat.
func start(t *testing.T, opts options) *site {
	t.Helper()
	s := &site{t: t, root: root(), dir: t.TempDir()}
	s.buildLifeboat()
	// A certificate of a CA of its own, for what is not Lifeboat's NATS: the key of that one's server certificate is NATS's alone.
	s.run("lifeboat", "keys", "--out", s.path("web"), "--host", pageHost)
	var err error
	agent := ""
	if opts.vault {
		agent = s.startVault()
	}
	s.consul, err = bintest.StartConsul(t.Context(), s.path("consul"))
	require.NoError(t, err)
	t.Cleanup(func() { assert.NoError(t, s.consul.Stop()) })
	s.nomad, err = bintest.StartNomadWith(t.Context(), s.path("nomad"), bintest.NomadOptions{
		Client: true, Consul: strings.TrimPrefix(s.consul.Address, "http://"), HCL: agent,
	})
	require.NoError(t, err)
	t.Cleanup(func() { assert.NoError(t, s.nomad.Stop()) })
	t.Cleanup(s.stopJobs) // before Nomad: a task outlives its agent
	s.s3 = s3test.New(t)
	s.proxy = s3test.NewProxy(t, s.s3)
	s.chat = chattest.NewWith(t, chattest.Options{NoLimits: true})
	s.etcd = etcdtest.New(t, s.path("etcd"))
	s.client, err = clientv3.New(clientv3.Config{Endpoints: []string{s.etcd.Endpoint}})
	require.NoError(t, err)
	t.Cleanup(func() { assert.NoError(t, s.client.Close()) })
	for i := range 50 {
		_, err = s.client.Put(t.Context(), fmt.Sprintf("/registry/pods/default/app-%d", i), strings.Repeat("x", 500))
		require.NoError(t, err)
	}
	return s
}

func (s *site) path(name string) string { return filepath.Join(s.dir, name) }

func (s *site) write(name, content string) string {
	s.t.Helper()
	path := s.path(name)
	require.NoError(s.t, os.MkdirAll(filepath.Dir(path), 0o700))
	require.NoError(s.t, os.WriteFile(path, []byte(content), 0o600))
	return path
}

func (s *site) read(name string) string {
	s.t.Helper()
	b, err := os.ReadFile(s.path(name))
	require.NoError(s.t, err)
	return strings.TrimSpace(string(b))
}

// buildLifeboat builds the binary, unless LIFEBOAT names one that is there.
func (s *site) buildLifeboat() {
	s.t.Helper()
	if ready := os.Getenv("LIFEBOAT"); ready != "" {
		require.NoError(s.t, os.Symlink(ready, s.path("lifeboat")))
		return
	}
	cmd := exec.CommandContext(s.t.Context(), "go", "build", "-o", s.path("lifeboat"), ".")
	cmd.Dir = filepath.Join(s.root, "cli")
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0")
	out, err := cmd.CombinedOutput()
	require.NoError(s.t, err, "building lifeboat: %s", out)
}

// environment has the commands of the platform, and where its servers are.
func (s *site) environment() []string {
	env := append(os.Environ(), "PATH="+filepath.Join(s.root, ".bin")+":"+s.dir+":"+os.Getenv("PATH"))
	if s.consul != nil {
		env = append(env, "CONSUL_HTTP_ADDR="+s.consul.Address)
	}
	if s.nomad != nil {
		env = append(env, "NOMAD_ADDR="+s.nomad.Address)
	}
	if s.vault != nil {
		env = append(env, "VAULT_ADDR="+s.vault.URL, "VAULT_CACERT="+s.path("web/tls/ca.pem"), "VAULT_TOKEN="+s.vault.token)
	}
	return env
}

// try runs a command in the project's folder, with the commands of the platform on its PATH, and returns what it prints.
func (s *site) try(name string, args ...string) (string, error) {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(s.t.Context()), 10*time.Minute) // also when the test has ended
	defer cancel()
	cmd := exec.CommandContext(ctx, name, args...)
	if own := s.path(name); name == "lifeboat" {
		cmd = exec.CommandContext(ctx, own, args...)
	}
	cmd.Dir = s.root
	cmd.Env = s.environment()
	if bin := filepath.Join(s.root, ".bin", name); name == "nomad" || name == "consul" || name == "vault" {
		cmd.Path, cmd.Err = bin, nil
	}
	var out, errs bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &errs
	if err := cmd.Run(); err != nil {
		return out.String(), fmt.Errorf("%s %s: %w\n%s%s", name, strings.Join(args, " "), err, out.String(), errs.String())
	}
	return out.String(), nil
}

func (s *site) run(name string, args ...string) string {
	s.t.Helper()
	out, err := s.try(name, args...)
	require.NoError(s.t, err)
	return out
}

// secrets makes all keys with `lifeboat keys`, a user of the bucket for each role, and puts all of it where the jobs read it.
func (s *site) secrets() {
	s.t.Helper()
	s.run("lifeboat", "keys", "--out", s.path("keys"))
	for _, role := range []string{"snapshot", "verify", "drill", "prune", "operator"} {
		id, secret := "lifeboat-"+role, rand()
		require.NoError(s.t, s.s3.AddPlainUser(id, secret))
		s.write("keys/"+role+"/s3-key-id", id)
		s.write("keys/"+role+"/s3-secret", secret)
	}
	s.write("keys/notifier/slack-url", s.chat.SlackURL())
	s.write("keys/notifier/dingtalk-url", s.chat.DingTalkURL())
	s.write("keys/notifier/dingtalk-secret", s.chat.DingTalkSecret())
	// For health, metrics and the page.
	for _, group := range []string{"scheduler", "snapshot", "verify", "drill", "prune", "notifier", "page"} {
		s.write("keys/"+group+"/web.pem", s.read("web/tls/server.pem"))
		s.write("keys/"+group+"/web-key.pem", s.read("web/tls/server-key.pem"))
	}
	owner := s.write("owner/lifeboat.yaml", fmt.Sprintf("store: {bucket: %s, endpoint: %q, region: %s, path_style: true, "+
		"access_key_id_file: %s, secret_access_key_file: %s}\n", s.s3.Config.Bucket, s.s3.Endpoint, s.s3.Config.Region,
		s.s3.Config.AccessKeyIDFile, s.s3.Config.SecretAccessKeyFile))
	s.run("lifeboat", "store", "init", "--policies", "deploy/s3", "--principal", "lifeboat-{role}", "-c", owner)
	if s.vault != nil {
		s.readmesVault()
		return
	}
	s.t.Log(s.run("deploy/nomad/secrets", s.path("keys")))
}

// configure writes lifeboat.yaml into Consul's KV, where the jobs read it, with these targets.
func (s *site) configure(targets string) {
	s.t.Helper()
	file := s.config(targets)
	s.run("consul", "kv", "put", "lifeboat/lifeboat.yaml", "@"+file)
}

// configureByNomad writes it into a Nomad variable, which the jobs read with config_source = "nomad".
func (s *site) configureByNomad(targets string) {
	s.t.Helper()
	s.run("nomad", "var", "put", "-force", "-out=none", "nomad/jobs", "lifeboat.yaml=@"+s.config(targets))
}

func (s *site) config(targets string) string {
	s.t.Helper()
	return s.write("lifeboat.yaml", fmt.Sprintf(`store:
  bucket: %s
  endpoint: %q
  region: %s
  path_style: true
  access_key_id_file: s3-key-id
  secret_access_key_file: s3-secret
encryption:
  recipients: [%s]
targets:
%s
alertmanager: {urls: [%q]}
notifier:
  bearer_tokens_file: webhook-tokens
  receivers:
    - {name: ops-slack, slack: {webhook_url_file: slack-url}, limit: {messages: 50, per: 1s, reserve: 1}}
    - {name: ops-dingtalk, dingtalk: {webhook_url_file: dingtalk-url, secret_file: dingtalk-secret}, limit: {messages: 50, per: 1s, reserve: 1}}
  route:
    receiver: ops-slack
    routes:
      - {receiver: ops-slack, matchers: ['severity="critical"'], continue: true}
      - {receiver: ops-dingtalk, matchers: ['severity="critical"']}
  runbooks: {base_url: "https://runbooks.example.com"}
page: {web_config_file: web.yml, title: Our lifeboats}
`, s.s3.Config.Bucket, s.proxy.Endpoint, s.s3.Config.Region, strings.Join(strings.Fields(s.read("keys/age/recipients")), ", "),
		targets, s.alertmanager.URL))
}

// variables writes the variables of this site, which is one node without docker.
func (s *site) variables() {
	s.t.Helper()
	file := s.write("site.vars.hcl", fmt.Sprintf(`
driver         = "raw_exec"
binary         = %q
nats_binary    = %q
consul_binary  = %q
nomad_binary   = %q
distinct_hosts = false
dynamic_ports  = true
disk_mib       = 300
scratch_mib    = 300
webhook_host   = %q
page_host      = %q
page_tls       = true
secrets_source = "vault"
chat_secrets   = ["webhook-tokens", "slack-url", "dingtalk-url", "dingtalk-secret"]
`, s.path("lifeboat"), s.bin("nats-server"), s.bin("consul"), s.bin("nomad"), webhookHost, pageHost))
	s.vars = []string{"-hcl2-strict=false", "-var-file=" + file}
}

func (s *site) bin(name string) string { return filepath.Join(s.root, ".bin", name) }

// deploy runs one of the job files, and waits until its deployment has succeeded.
func (s *site) deploy(job string, more ...string) {
	s.t.Helper()
	began := time.Now()
	args := slices.Concat([]string{"job", "run"}, s.vars, more, []string{"deploy/nomad/" + job + ".nomad.hcl"})
	if out, err := s.try("nomad", args...); err != nil {
		require.NoError(s.t, err, "%s\n%s", out, s.trouble("lifeboat-"+job))
	}
	s.t.Logf("%s is deployed, after %s", job, time.Since(began).Round(time.Second))
}

// connect connects to the cluster as a person does, with the user `cli`.
func (s *site) connect() {
	s.t.Helper()
	var services []struct {
		ServiceAddress string
		ServicePort    int
	}
	require.NoError(s.t, s.ask(http.MethodGet, s.consul.Address+"/v1/catalog/service/lifeboat-nats", &services))
	urls := make([]string, len(services))
	for i, n := range services {
		urls[i] = fmt.Sprintf("tls://%s:%d", n.ServiceAddress, n.ServicePort)
	}
	require.NotEmpty(s.t, urls)
	keys := s.path("keys")
	nats := config.NATS{
		URL: strings.Join(urls, ","), NkeyFile: config.SecretFile(keys + "/nats/cli.nk"), InboxPrefix: "_INBOX_cli", Replicas: 3,
		TLS: config.TLS{CAFile: keys + "/tls/ca.pem", CertFile: keys + "/tls/client.pem", KeyFile: config.SecretFile(keys + "/tls/client-key.pem")},
	}
	var err error
	s.bus, err = bus.Connect(bus.Options{
		Config: nats, Actor: "test", Role: "cli", Logger: slog.New(slog.DiscardHandler), Registerer: prometheus.NewRegistry(),
	})
	require.NoError(s.t, err)
	s.t.Cleanup(func() { assert.NoError(s.t, s.bus.Close()) })
	// For commands that a person runs.
	s.write("person.yaml", fmt.Sprintf("nats:\n  url: %q\n  nkey_file: %s\n  inbox_prefix: _INBOX_{role}\n  replicas: 3\n  tls: {ca_file: %s, cert_file: %s, key_file: %s}\n",
		nats.URL, nats.NkeyFile, nats.TLS.CAFile, nats.TLS.CertFile, nats.TLS.KeyFile))
}

// publish publishes a job, as `nats pub` does.
func (s *site) publish(work config.Work, target string) {
	s.t.Helper()
	require.Eventually(s.t, func() bool {
		_, err := s.bus.Publish(s.t.Context(), bus.Outgoing{Subject: bus.JobSubject(work, target), Message: &lifeboatv1.Job{}})
		return err == nil
	}, time.Minute, 200*time.Millisecond, "publishing a %s of %s", work, target)
}

// events are all of a kind so far, in order. "*" is any.
func (s *site) events(noun, verb, target string) (all []*lifeboatv1.Event) {
	s.t.Helper()
	read := func() error {
		all = nil
		return s.bus.Scan(s.t.Context(), bus.StreamEvents, bus.EventSubject(noun, verb, target), func(m *bus.Message) error {
			e := &lifeboatv1.Event{}
			if err := bus.Decode(m.Data, e); err != nil {
				return err
			}
			all = append(all, e)
			return nil
		})
	}
	var err error
	require.Eventually(s.t, func() bool { err = read(); return err == nil }, time.Minute, 200*time.Millisecond, "reading events: %v", err)
	return all
}

// event waits for an event that is as it should be, and returns the first.
func (s *site) event(noun, verb, target string, within time.Duration, good func(*lifeboatv1.Event) bool) (found *lifeboatv1.Event) {
	s.t.Helper()
	require.Eventually(s.t, func() bool {
		for _, e := range s.events(noun, verb, target) {
			if good == nil || good(e) {
				found = proto.CloneOf(e)
				return true
			}
		}
		return false
	}, within, 250*time.Millisecond, "no event %s.%s of %s", noun, verb, target)
	return found
}
