// Package nomad tests deploy/nomad: that Nomad takes the job files with every choice of their variables, and, with the build tag e2e,
// what they do on a real Nomad.
package nomad

import (
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/lifeboat-fleet/lifeboat/fleet/fleettest/bintest"
)

// Jobs in the order in which they are started.
func jobs() []string { return []string{"nats", "scheduler", "backup", "notifier"} }

// all are these, and the status page, which nothing else needs.
func all() []string { return append(jobs(), "page") }

// root is the project's folder. The embedded S3 server changes the working directory, so it is found by PWD.
func root() string { return filepath.Join(os.Getenv("PWD"), "..", "..") }

// withVault lets a server take jobs with secrets of Vault. It is not asked for any before a task starts.
const withVault = `
vault {
  enabled = true
  address = "http://127.0.0.1:1"
  default_identity {
    aud = ["vault.io"]
  }
}
`

// Nomad's server takes every job with every driver, and every source of configuration and secrets.
func TestNomadTakesTheJobs(t *testing.T) {
	dir := root()
	server, err := bintest.StartNomadWith(t.Context(), t.TempDir(), bintest.NomadOptions{HCL: withVault})
	require.NoError(t, err)
	t.Cleanup(func() { assert.NoError(t, server.Stop()) })
	nomad, err := bintest.Find("nomad")
	require.NoError(t, err)
	for _, driver := range []string{"docker", "exec", "raw_exec"} {
		for _, sources := range [][2]string{{"consul", "nomad"}, {"nomad", "vault"}} {
			for _, name := range all() {
				t.Run(fmt.Sprintf("%s %s %s", name, driver, sources), func(t *testing.T) {
					for _, command := range [][]string{{"validate"}, {"run", "-output"}} {
						args := append([]string{"job"}, command...)
						args = append(args, "-hcl2-strict=false", "-var=driver="+driver, "-var=config_source="+sources[0], "-var=secrets_source="+sources[1],
							"deploy/nomad/"+name+".nomad.hcl")
						cmd := exec.CommandContext(t.Context(), nomad, args...)
						cmd.Dir, cmd.Env = dir, append(os.Environ(), "NOMAD_ADDR="+server.Address)
						out, err := cmd.Output()
						require.NoError(t, err, "%s", out)
						if command[0] == "run" {
							check(t, out, driver, sources)
						}
					}
				})
			}
		}
	}
}

// everything is every variable that is empty by default, and those that change what a job is made of.
const everything = `
artifact          = "https://example.com/lifeboat.tar.gz"
nats_artifact     = "https://example.com/nats-server.tar.gz"
artifact_checksum = "sha256:e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"
binary            = "local/lifeboat"
nats_binary       = "local/nats-server"
datacenters       = ["beijing", "seoul"]
node_pool         = "all"
host_volume       = "nats"
vault_role        = "lifeboat"
webhook_port      = 9095
webhook_host      = "alerts.example.com"
pages_host        = "silence.example.com"
page_host         = "lifeboat.example.com"
page_port         = 9089
page_tls          = true
backend_tls       = ["webhooks", "pages"]
zone              = "beijing"
consul_binary     = "/usr/local/bin/consul"
nomad_binary      = "/usr/local/bin/nomad"
store_secrets     = []
role_secrets      = {snapshot = ["etcd-key.pem"], verify = [], drill = [], prune = []}
tls               = false
web_tls           = true
`

func TestNomadTakesTheJobsWithEveryVariable(t *testing.T) {
	dir := root()
	server, err := bintest.StartNomadWith(t.Context(), t.TempDir(), bintest.NomadOptions{HCL: withVault})
	require.NoError(t, err)
	t.Cleanup(func() { assert.NoError(t, server.Stop()) })
	nomad, err := bintest.Find("nomad")
	require.NoError(t, err)
	file := filepath.Join(t.TempDir(), "all.vars.hcl")
	require.NoError(t, os.WriteFile(file, []byte(everything), 0o600))
	for _, name := range all() {
		for _, driver := range []string{"docker", "exec"} {
			cmd := exec.CommandContext(t.Context(), nomad, "job", "validate", "-hcl2-strict=false", "-var-file="+file, "-var=driver="+driver,
				"deploy/nomad/"+name+".nomad.hcl")
			cmd.Dir, cmd.Env = dir, append(os.Environ(), "NOMAD_ADDR="+server.Address)
			out, err := cmd.CombinedOutput()
			require.NoError(t, err, "%s %s: %s", name, driver, out)
		}
	}
}

// A variable that would make a deployment that cannot work is refused before it begins.
func TestJobsRefuseWhatCannotWork(t *testing.T) {
	dir := root()
	nomad, err := bintest.Find("nomad")
	require.NoError(t, err)
	for name, variable := range map[string]string{
		"nats": "replicas=2", "scheduler": "config_source=etcd", "backup": "secrets_source=files", "notifier": "driver=podman", "page": "driver=podman",
	} {
		cmd := exec.CommandContext(t.Context(), nomad, "job", "run", "-output", "-var="+variable, "deploy/nomad/"+name+".nomad.hcl")
		cmd.Dir = dir
		out, err := cmd.CombinedOutput()
		require.Error(t, err, "%s %s", name, variable)
		assert.Contains(t, string(out), "This was checked by the validation rule", name)
	}
}

// job is what is looked at of one.
type job struct {
	Job struct {
		ID         string
		TaskGroups []struct {
			Name  string
			Tasks []struct {
				Name, Driver string
				Config       map[string]any
				KillTimeout  time.Duration
				KillSignal   string
				Vault        *struct {
					Role             string
					Env, DisableFile bool
				}
				Templates []template
			}
		}
	}
}

type template struct {
	EmbeddedTmpl, DestPath, ChangeMode, ChangeSignal, Perms string
	Uid                                                     *int //nolint:revive // the API's name
}

// check holds a job against what a deployment must be.
func check(t *testing.T, out []byte, driver string, sources [2]string) {
	t.Helper()
	var j job
	require.NoError(t, json.Unmarshal(out, &j))
	require.NotEmpty(t, j.Job.TaskGroups)
	for _, g := range j.Job.TaskGroups {
		for _, task := range g.Tasks {
			at := g.Name + "/" + task.Name
			assert.Equal(t, driver, task.Driver, at)
			assert.Equal(t, "SIGTERM", task.KillSignal, at)
			if v := task.Vault; assert.Equal(t, sources[1] == "vault", v != nil, at) && v != nil {
				assert.Equal(t, j.Job.ID+"-"+g.Name, v.Role, at)
				assert.True(t, v.DisableFile && !v.Env, "%s: the task has no token of Vault", at)
			}
			// A node caps it at 30 s by default; what is longer would be cut short.
			assert.LessOrEqual(t, task.KillTimeout, 30*time.Second, at)
			if args := fmt.Sprint(task.Config["args"]); strings.HasPrefix(args, "[backup ") {
				// Every worker makes the folder, and a container's own file system is read-only.
				assert.Contains(t, args, "--scratch-dir ${NOMAD_ALLOC_DIR}/", at)
			}
			if driver == "docker" {
				assert.Equal(t, true, task.Config["readonly_rootfs"], at)
				assert.Equal(t, []any{"all"}, task.Config["cap_drop"], at)
			}
			if args := fmt.Sprint(task.Config["args"]); strings.Contains(args, "--grace") {
				grace, err := time.ParseDuration(strings.Fields(args[strings.Index(args, "--grace")+len("--grace"):])[0])
				require.NoError(t, err)
				assert.Greater(t, task.KillTimeout, grace+5*time.Second, "%s has time to hand back", at)
			}
			checkTemplates(t, at, task.Templates, driver)
		}
	}
}

func checkTemplates(t *testing.T, at string, all []template, driver string) {
	t.Helper()
	require.NotEmpty(t, all, at)
	for _, tm := range all {
		where := at + " " + tm.DestPath
		assert.NotContains(t, []string{"restart", ""}, tm.ChangeMode, where)
		if !strings.HasPrefix(tm.DestPath, "secrets/") {
			continue
		}
		assert.Equal(t, "0600", tm.Perms, where)
		if driver == "docker" { // or the image's user could not read it
			require.NotNil(t, tm.Uid, where)
			assert.Equal(t, 65532, *tm.Uid, where)
		}
		if tm.DestPath == "secrets/lifeboat.yaml" {
			assert.Equal(t, "SIGHUP", tm.ChangeSignal, where)
			for _, word := range []string{"PEOPLES_FILE", "ROLE", "REPLICAS", "SCHEME", "NATS_TLS"} {
				assert.NotContains(t, tm.EmbeddedTmpl, word, where)
			}
		}
	}
}
