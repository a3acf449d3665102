package nomad_test

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/hashicorp/nomad/api"
	"github.com/stretchr/testify/require"
)

// oddID is a job's id that has to be escaped wherever it stands.
const oddID = `odd"id"&%üé+?#/../x//y`

func job(id, namespace string) *api.Job {
	j := api.NewServiceJob(id, id, "global", 50)
	j.Namespace = &namespace
	j.Datacenters = []string{"dc1"}
	task := api.NewTask("t", "raw_exec").SetConfig("command", "/bin/true")
	j.AddTaskGroup(api.NewTaskGroup("g", 1).AddTask(task))
	return j
}

func (r *region) register(t *testing.T, j *api.Job) {
	t.Helper()
	_, _, err := r.api.Jobs().Register(j, &api.WriteOptions{Namespace: *j.Namespace})
	require.NoError(t, err)
}

func (r *region) variable(t *testing.T, namespace, path string, items map[string]string) {
	t.Helper()
	v := &api.Variable{Namespace: namespace, Path: path, Items: items}
	require.Eventually(t, func() bool { // the leader makes a key for variables a moment after it leads
		_, _, err := r.api.Variables().Create(v, &api.WriteOptions{Namespace: namespace})
		return err == nil
	}, time.Minute, 50*time.Millisecond)
}

// fill makes some of everything.
func (r *region) fill(t *testing.T) {
	t.Helper()
	_, err := r.api.NodePools().Register(&api.NodePool{Name: "gpu", Description: "cards", Meta: map[string]string{"k": "v"}}, nil)
	require.NoError(t, err)
	for _, ns := range []string{"apps", "secret"} {
		_, err = r.api.Namespaces().Register(&api.Namespace{
			Name: ns, Description: "what we run in " + ns, Meta: map[string]string{"a": "1", "b": "2"},
			Capabilities: &api.NamespaceCapabilities{EnabledTaskDrivers: []string{"raw_exec", "docker"}},
		}, nil)
		require.NoError(t, err)
		r.variable(t, ns, "nomad/jobs/web", map[string]string{"password": "<p&ss>" + ns, "user": "üser"})
		r.register(t, job("web", ns))
	}
	_, err = r.api.Namespaces().Register(&api.Namespace{Name: "default", Description: "ours", Meta: map[string]string{"x": "y"}}, nil)
	require.NoError(t, err)
	for _, path := range []string{"a", "a/b", "a/b/c", "long~path_1/x"} {
		r.variable(t, "default", path, map[string]string{"k": path, "key with spaces": strings.Repeat("v", 1000)})
	}
	r.pause(t, true) // no deployment may forbid to scale
	r.fillJobs(t)
	r.pause(t, false)
	if r.root != "" {
		r.fillACL(t)
	}
	conf, _, err := r.api.Operator().SchedulerGetConfiguration(nil)
	require.NoError(t, err)
	conf.SchedulerConfig.SchedulerAlgorithm = api.SchedulerAlgorithmSpread
	conf.SchedulerConfig.MemoryOversubscriptionEnabled = true
	_, _, err = r.api.Operator().SchedulerSetConfiguration(conf.SchedulerConfig, nil)
	require.NoError(t, err)
}

// pause has the eval broker stop, or go on.
func (r *region) pause(t *testing.T, paused bool) {
	t.Helper()
	require.Eventually(t, func() bool { // the leader may be known before it has taken over
		conf, _, err := r.api.Operator().SchedulerGetConfiguration(nil)
		if err != nil {
			return false
		}
		conf.SchedulerConfig.PauseEvalBroker = paused
		_, _, err = r.api.Operator().SchedulerSetConfiguration(conf.SchedulerConfig, nil)
		return err == nil
	}, time.Minute, 50*time.Millisecond)
}

func (r *region) fillACL(t *testing.T) {
	t.Helper()
	for _, p := range []*api.ACLPolicy{
		{Name: "ops", Description: "for operators", Rules: "# why\nnamespace \"apps\" { policy = \"write\" }\n"},
		{Name: "web", Rules: `namespace "apps" { policy = "read" }`, JobACL: &api.JobACL{Namespace: "apps", JobID: "web"}},
	} {
		_, err := r.api.ACLPolicies().Upsert(p, nil)
		require.NoError(t, err)
	}
	_, _, err := r.api.ACLRoles().Create(&api.ACLRole{
		Name: "operator", Description: "on call", Policies: []*api.ACLRolePolicyLink{{Name: "ops"}, {Name: "web"}},
	}, nil)
	require.NoError(t, err)
	for _, m := range []*api.ACLAuthMethod{
		{
			Name: "sso", Type: "OIDC", TokenLocality: "local", MaxTokenTTL: time.Hour, Default: true,
			Config: &api.ACLAuthMethodConfig{
				OIDCDiscoveryURL: "https://sso.example.com", OIDCClientID: "nomad", OIDCClientSecret: "s3cr3t-of-sso",
				AllowedRedirectURIs: []string{"http://localhost:4649/oidc/callback"}, ClaimMappings: map[string]string{"a": "b"},
			},
		},
		{
			Name: "ci", Type: "JWT", TokenLocality: "local", MaxTokenTTL: time.Hour,
			Config: &api.ACLAuthMethodConfig{
				JWKSURL: "https://ci.example.com/keys", BoundIssuer: []string{"ci"}, ClaimMappings: map[string]string{"c": "d"},
			},
		},
	} {
		_, _, err = r.api.ACLAuthMethods().Create(m, nil)
		require.NoError(t, err)
	}
	for _, rule := range []*api.ACLBindingRule{
		{Description: "all", AuthMethod: "sso", BindType: "role", BindName: "operator", Selector: "value.a == x"},
		{AuthMethod: "ci", BindType: "policy", BindName: "web"},
		{AuthMethod: "ci", BindType: "policy", BindName: "web"}, // Nomad takes it twice
		{AuthMethod: "ci", BindType: "management", Selector: "value.c == root"},
	} {
		_, _, err = r.api.ACLBindingRules().Create(rule, nil)
		require.NoError(t, err)
	}
	_, _, err = r.api.ACLTokens().Create(&api.ACLToken{Name: "robot", Type: "client", Policies: []string{"ops", "web"}}, nil)
	require.NoError(t, err)
}

// specs are jobs as people write them.
var specs = []string{
	`variable "count" { default = 1 }
job "api" {
  namespace = "apps"
  node_pool = "gpu"
  priority  = 70
  meta { team = "core" }
  constraint {
    attribute = "${attr.kernel.name}"
    value     = "linux"
  }
  affinity {
    attribute = "${meta.rack}"
    value     = "r1"
    weight    = 50
  }
  spread { attribute = "${node.datacenter}" }
  update {
    max_parallel = 2
    canary       = 1
    auto_revert  = true
  }
  ui {
    description = "the API"
    link {
      label = "docs"
      url   = "https://example.com"
    }
  }
  group "g" {
    count = var.count
    network {
      mode = "bridge"
      port "http" { to = 8080 }
    }
    service {
      name     = "api"
      port     = "http"
      provider = "nomad"
      tags     = ["a", "b"]
      check {
        type     = "http"
        path     = "/"
        interval = "10s"
        timeout  = "2s"
      }
    }
    scaling {
      min = 1
      max = 9
      policy { cooldown = "1m" }
    }
    disconnect { lost_after = "1h" }
    restart {
      attempts = 3
      mode     = "delay"
    }
    task "init" {
      driver = "raw_exec"
      lifecycle { hook = "prestart" }
      config { command = "/bin/true" }
    }
    task "t" {
      driver      = "raw_exec"
      kill_signal = "SIGTERM"
      config {
        command = "/bin/sleep"
        args    = ["1"]
      }
      env { SECRET = "s3cr3t-env" }
      template {
        data        = "{{ with nomadVar \"nomad/jobs/api\" }}{{ .a }}{{ end }}"
        destination = "local/x"
        change_mode = "signal"
        change_signal = "SIGHUP"
      }
      artifact { source = "https://example.com/a.tgz" }
      identity {
        name = "aws"
        aud  = ["sts"]
        ttl  = "1h"
      }
      resources {
        cpu    = 500
        memory = 300
        memory_max = 600
      }
      logs { max_files = 3 }
    }
  }
}`,
	`job "with/slash" {
  namespace = "apps"
  type      = "batch"
  periodic {
    crons            = ["0 0 1 1 *", "0 0 2 1 *"]
    prohibit_overlap = true
    time_zone        = "Asia/Shanghai"
  }
  group "g" {
    task "t" {
      driver = "raw_exec"
      config { command = "/bin/true" }
    }
  }
}`,
	`job "dispatched" {
  type = "batch"
  parameterized {
    payload       = "required"
    meta_required = ["who"]
    meta_optional = ["why"]
  }
  group "g" {
    task "t" {
      driver = "raw_exec"
      config { command = "/bin/true" }
      dispatch_payload { file = "in" }
    }
  }
}`,
	`job "everywhere" {
  type = "system"
  group "g" {
    task "t" {
      driver = "raw_exec"
      config { command = "/bin/true" }
    }
  }
}`,
	`job "once-everywhere" {
  type = "sysbatch"
  group "g" {
    volume "data" {
      type      = "host"
      source    = "data"
      read_only = true
    }
    task "t" {
      driver = "raw_exec"
      config { command = "/bin/true" }
      volume_mount {
        volume      = "data"
        destination = "/data"
      }
    }
  }
}`,
	`job "mesh" {
  group "g" {
    network { mode = "bridge" }
    service {
      name = "mesh"
      port = "9000"
      connect {
        sidecar_service {
          proxy {
            upstreams {
              destination_name = "api"
              local_bind_port  = 8080
            }
          }
        }
      }
    }
    task "t" {
      driver = "docker"
      config { image = "x" }
    }
  }
}`,
}

func (r *region) fillJobs(t *testing.T) {
	t.Helper()
	dir := t.TempDir()
	for i, text := range specs {
		file := filepath.Join(dir, "job.nomad.hcl")
		require.NoError(t, os.WriteFile(file, []byte(text), 0o600))
		args := []string{"job", "run", "-detach"}
		if i == 0 {
			args = append(args, "-var", "count=2")
		}
		r.run(t, dir, append(args, file)...)
	}
	// The first has a history now, and was scaled after it was submitted.
	r.run(t, dir, "job", "tag", "apply", "-namespace=apps", "-version=0", "-name=golden", "api")
	r.run(t, dir, "job", "scale", "-detach", "-namespace=apps", "api", "g", "5")
	_, _, err := r.api.Jobs().Dispatch("dispatched", map[string]string{"who": "me"}, []byte("in"), "", nil)
	require.NoError(t, err)

	r.register(t, job(oddID, "default"))
	none := job("none", "default")
	none.TaskGroups[0].Count = new(int)
	r.register(t, none)
	r.register(t, job("stopped", "default"))
	_, _, err = r.api.Jobs().Deregister("stopped", false, nil)
	require.NoError(t, err)
}
