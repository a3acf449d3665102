//go:build e2e

package nomad

import (
	"bytes"
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"fmt"
	"net/http"
	"os"
	"os/exec"
	"slices"
	"strings"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/lifeboat-fleet/lifeboat/fleet/config"
	"github.com/lifeboat-fleet/lifeboat/fleet/fleettest/bintest"
	"github.com/lifeboat-fleet/lifeboat/fleet/fleettest/chattest"
)

// vault is a Vault as a team has one: a server with TLS and a storage of its own, which was initialized and unsealed.
type vault struct {
	*bintest.Process
	URL string
	// token is the root's.
	token  string
	client *http.Client
}

// startVault starts it, and returns what Nomad's agent needs besides its own configuration, from deploy/nomad.
func (s *site) startVault() (agent string) {
	s.t.Helper()
	path, err := bintest.Find("vault")
	require.NoError(s.t, err)
	ports, err := bintest.FreePorts(2)
	require.NoError(s.t, err)
	require.NoError(s.t, os.MkdirAll(s.path("vault/data"), 0o700))
	v := &vault{URL: fmt.Sprintf("https://127.0.0.1:%d", ports[0]), client: s.httpsClient()}
	conf := s.write("vault/vault.hcl", fmt.Sprintf(`
listener "tcp" {
  address         = "127.0.0.1:%d"
  cluster_address = "127.0.0.1:%d"
  tls_cert_file   = %q
  tls_key_file    = %q
}
storage "raft" {
  path    = %q
  node_id = "one"
}
api_addr      = %q
cluster_addr  = "https://127.0.0.1:%d"
disable_mlock = true
`, ports[0], ports[1], s.path("web/tls/server.pem"), s.path("web/tls/server-key.pem"), s.path("vault/data"), v.URL, ports[1]))
	v.Process, err = bintest.Start(path, s.path("vault/vault.log"), nil, "server", "-config="+conf)
	require.NoError(s.t, err)
	s.t.Cleanup(func() { assert.NoError(s.t, v.Stop()) })
	s.vault = v
	var keys struct {
		Keys []string `json:"keys_base64"`
		Root string   `json:"root_token"`
	}
	s.vaultAnswers(http.MethodPut, "sys/init", `{"secret_shares": 1, "secret_threshold": 1}`, &keys)
	v.token = keys.Root
	s.vaultAnswers(http.MethodPut, "sys/unseal", fmt.Sprintf(`{"key": %q}`, keys.Keys[0]), nil)
	s.vaultAnswers(http.MethodGet, "sys/health", "", nil) // 200 when it is unsealed and active
	b, err := os.ReadFile(s.root + "/deploy/nomad/agent.hcl")
	require.NoError(s.t, err)
	agent = string(b)
	for old, own := range map[string]string{
		`"https://vault.example.com:8200"`: fmt.Sprintf("%q", v.URL), `# ca_file = "/etc/nomad.d/vault-ca.pem"`: fmt.Sprintf("ca_file = %q", s.path("web/tls/ca.pem")),
	} {
		require.Equal(s.t, 1, strings.Count(agent, old), old)
		agent = strings.Replace(agent, old, own, 1)
	}
	return agent
}

// httpsClient trusts the CA of the platform's certificates.
func (s *site) httpsClient() *http.Client {
	s.t.Helper()
	pool := x509.NewCertPool()
	require.True(s.t, pool.AppendCertsFromPEM([]byte(s.read("web/tls/ca.pem"))))
	t := &http.Transport{TLSClientConfig: &tls.Config{RootCAs: pool, MinVersion: tls.VersionTLS13}}
	s.t.Cleanup(t.CloseIdleConnections)
	return &http.Client{Transport: t, Timeout: 10 * time.Second}
}

// vaultAnswers asks Vault as the root until it answers 200.
func (s *site) vaultAnswers(method, path, body string, into any) {
	s.t.Helper()
	var status int
	var err error
	require.Eventually(s.t, func() bool {
		status, err = s.vault.ask(s.t.Context(), s.vault.token, method, path, body, into)
		return err == nil && status == http.StatusOK
	}, 30*time.Second, 200*time.Millisecond, "Vault's %s", path)
	require.NoError(s.t, err)
}

// ask asks Vault's API, and returns the status of the answer.
func (v *vault) ask(ctx context.Context, token, method, path, body string, into any) (int, error) {
	req, err := http.NewRequestWithContext(ctx, method, v.URL+"/v1/"+path, strings.NewReader(body))
	if err != nil {
		return 0, err
	}
	req.Header.Set("X-Vault-Token", token)
	resp, err := v.client.Do(req)
	if err != nil {
		return 0, err
	}
	defer resp.Body.Close()
	if into != nil && resp.StatusCode == http.StatusOK {
		err = json.NewDecoder(resp.Body).Decode(into)
	}
	return resp.StatusCode, err
}

// patient holds that the agent took the other part of deploy/nomad/agent.hcl too: it tries for ever, and ends no task because a server is away.
func (s *site) patient() {
	s.t.Helper()
	var agent struct {
		Config struct {
			Client struct {
				TemplateConfig map[string]json.RawMessage
			}
		} `json:"config"`
	}
	require.NoError(s.t, s.ask(http.MethodGet, s.nomad.Address+"/v1/agent/self", &agent))
	for _, of := range []string{"ConsulRetry", "NomadRetry", "VaultRetry"} {
		retry := struct{ Attempts int }{-1}
		require.NoError(s.t, json.Unmarshal(agent.Config.Client.TemplateConfig[of], &retry), of)
		assert.Zero(s.t, retry.Attempts, of)
	}
}

// readmesVault runs the README's commands for Vault as they are written, in a folder with keys and deploy.
func (s *site) readmesVault() {
	s.t.Helper()
	readme, err := os.ReadFile(s.root + "/README.md")
	require.NoError(s.t, err)
	script := commands(s.t, string(readme), "### Secrets in Vault")
	require.NoError(s.t, os.Symlink(s.root+"/deploy", s.path("deploy")))
	cmd := exec.CommandContext(s.t.Context(), "bash", "-euxo", "pipefail", "-c", script)
	cmd.Dir, cmd.Env = s.dir, s.environment()
	out, err := cmd.CombinedOutput()
	require.NoError(s.t, err, "%s", out)
	s.t.Logf("%s", out)
	for _, secret := range []string{"PRIVATE KEY", s.vault.token, s.read("keys/nats/drill.nk"), s.read("keys/drill/s3-secret"), s.read("keys/webhook-tokens")} {
		assert.NotContains(s.t, string(out), secret)
	}
}

// groups are those that have secrets, by job.
func groups() map[string][]string {
	return map[string][]string{
		"lifeboat-nats": {"nats"}, "lifeboat-scheduler": {"scheduler"}, "lifeboat-backup": {"snapshot", "verify", "drill", "prune"},
		"lifeboat-page": {"page"}, "lifeboat-notifier": {"notifier"},
	}
}

// probe is a job with the names of the workers', whose tasks show the identity with which Nomad logs in to Vault for them.
func probe(name string, groups []string) string {
	var b strings.Builder
	fmt.Fprintf(&b, "job %q {\n", name)
	for _, group := range groups {
		fmt.Fprintf(&b, `
  group %q {
    task "worker" {
      driver = "raw_exec"
      config {
        command = "/bin/sleep"
        args    = ["3600"]
      }
      identity {
        name = "vault_default"
        aud  = ["vault.io"]
        file = true
        ttl  = "1h"
      }
      resources {
        cpu    = 10
        memory = 10
      }
    }
  }
`, group)
	}
	return b.String() + "}\n"
}

// identities runs a probe, and returns what its groups have to log in with.
func (s *site) identities(name string, groups []string) map[string]string {
	s.t.Helper()
	s.run("nomad", "job", "run", "-detach", s.write("probe.hcl", probe(name, groups)))
	jwt := map[string]string{}
	require.Eventually(s.t, func() bool {
		all, err := s.allocations(name)
		if err != nil {
			return false
		}
		for _, a := range all {
			if b, err := os.ReadFile(s.secretOf(a, "worker", "nomad_vault_default.jwt")); err == nil && a.ClientStatus == "running" {
				jwt[a.TaskGroup] = string(b)
			}
		}
		return len(jwt) == len(groups)
	}, time.Minute, 200*time.Millisecond, "the identities of %s", name)
	return jwt
}

// A group's identity opens its own role, and that opens its own secrets: not those of another group of the same job, and no other job's. A job
// with the same groups and another name opens nothing.
func (s *site) leastPrivilege() {
	t := s.t
	workers := groups()["lifeboat-backup"]
	mine, strangers := s.identities("lifeboat-backup", workers), s.identities("stranger", workers)
	for _, role := range workers {
		for _, group := range workers {
			_, status := s.login("lifeboat-backup-"+role, strangers[group])
			assert.Equal(t, http.StatusBadRequest, status, "stranger/%s as %s", group, role)
			token, status := s.login("lifeboat-backup-"+role, mine[group])
			if role != group {
				assert.Equal(t, http.StatusBadRequest, status, "%s as %s", group, role)
				continue
			}
			require.Equal(t, http.StatusOK, status, group)
			s.readsOnly(token, "lifeboat-backup", group)
		}
	}
	require.NoError(t, s.purge("stranger"))
	require.NoError(t, s.purge("lifeboat-backup"))
	// The four others by their policies: their roles are made by the same lines.
	for job, of := range groups() {
		if job == "lifeboat-backup" {
			continue
		}
		token := strings.TrimSpace(s.run("vault", "token", "create", "-field=token", "-ttl=5m", "-policy="+job+"-"+of[0]))
		s.readsOnly(token, job, of[0])
	}
}

// login is what Nomad does for a task.
func (s *site) login(role, jwt string) (token string, status int) {
	s.t.Helper()
	body, err := json.Marshal(map[string]string{"role": role, "jwt": jwt})
	require.NoError(s.t, err)
	var answer struct {
		Auth struct {
			Token string `json:"client_token"`
		}
	}
	status, err = s.vault.ask(s.t.Context(), "", http.MethodPut, "auth/jwt-nomad/login", string(body), &answer)
	require.NoError(s.t, err)
	return answer.Auth.Token, status
}

// readsOnly holds that a token reads the secrets of this group, and neither reads those of others nor lists nor writes any.
func (s *site) readsOnly(token, job, group string) {
	s.t.Helper()
	status := func(method, path string) int {
		status, err := s.vault.ask(s.t.Context(), token, method, path, "", nil)
		require.NoError(s.t, err)
		return status
	}
	for other, of := range groups() {
		for _, g := range of {
			path := "secret/data/lifeboat/" + other + "/" + g
			if other == job && g == group {
				assert.Equal(s.t, http.StatusOK, status(http.MethodGet, path), path)
				assert.Equal(s.t, http.StatusForbidden, status(http.MethodPut, path), "%s writes", path)
				continue
			}
			assert.Equal(s.t, http.StatusForbidden, status(http.MethodGet, path), "%s/%s reads %s", job, group, path)
		}
	}
	assert.Equal(s.t, http.StatusForbidden, status("LIST", "secret/metadata/lifeboat"), "%s/%s lists", job, group)
}

// rotation is that of an S3 key and of a webhook token.
type rotation struct {
	began      time.Time
	token, key string
	before     map[string]map[string]uint64
}

// rotate puts new ones into Vault, as README says. The old ones are good until the new ones have arrived: nodes ask Vault every five minutes.
func (s *site) rotate() {
	t := s.t
	s.rotation = &rotation{began: time.Now(), token: rand(), key: rand(), before: map[string]map[string]uint64{}}
	for _, job := range []string{"backup", "notifier", "scheduler"} {
		s.rotation.before[job] = s.identity(job)
	}
	for _, a := range s.running("backup", "snapshot") {
		require.FileExists(t, s.secretOf(a, "worker", "s3-secret"))
		assert.NoFileExists(t, s.secretOf(a, "worker", "vault_token"), "a stolen worker has no token of Vault")
	}
	// The test's store has one key for a user, so the new one is another user's.
	require.NoError(t, s.s3.AddUser("lifeboat-snapshot-new", s.rotation.key))
	s.write("keys/snapshot/s3-key-id", "lifeboat-snapshot-new")
	s.write("keys/snapshot/s3-secret", s.rotation.key)
	s.write("keys/webhook-tokens", s.rotation.token+"\n"+s.read("keys/webhook-tokens")+"\n")
	s.run("deploy/nomad/secrets", "--vault", s.path("keys"))
}

// have says whether every running allocation of a group has a secret in a file.
func (s *site) have(job, group, task, file, secret string) bool {
	all, err := s.allocations("lifeboat-" + job)
	all = slices.DeleteFunc(all, func(a allocation) bool { return a.ClientStatus != "running" || a.TaskGroup != group })
	return err == nil && len(all) > 0 && !slices.ContainsFunc(all, func(a allocation) bool {
		b, err := os.ReadFile(s.secretOf(a, task, file))
		return err != nil || !bytes.Contains(b, []byte(secret))
	})
}

// rotationArrives waits until every task has the new ones, and takes the old ones away: nothing was started again, no job and no alert is lost.
func (s *site) rotationArrives() {
	t, r := s.t, s.rotation
	require.Eventually(t, func() bool {
		return s.have("backup", "snapshot", "worker", "s3-secret", r.key) && s.have("notifier", "notifier", "notifier", "webhook-tokens", r.token)
	}, 6*time.Minute, time.Second, "the new secrets do not arrive")
	t.Logf("the new secrets are there after %s", time.Since(r.began).Round(time.Second))
	require.NoError(t, s.s3.RemoveUser("lifeboat-snapshot"))
	s.write("alertmanager-token", r.token)
	s.run("consul", "kv", "put", "rotated", rand())
	done := s.manifests("consul-kv")
	s.publish(config.WorkSnapshot, "consul-kv")
	require.Eventually(t, func() bool { return s.manifests("consul-kv") > done }, time.Minute, 200*time.Millisecond, "with the new key")
	s.fire("Rotated", "warning")
	s.inChat(chattest.Slack, "Rotated")
	assert.Empty(t, s.dead())
	for _, e := range s.events("snapshot", "failed", "*") {
		assert.True(t, e.GetTime().AsTime().Before(r.began), "%s", e)
	}
	for job, before := range r.before {
		for id, restarts := range s.identity(job) {
			if was, there := before[id]; there {
				assert.Equal(t, was, restarts, "%s: started again", job)
			}
		}
	}
}
