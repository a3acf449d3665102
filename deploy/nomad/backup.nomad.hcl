# The workers: a group for each kind of work, with a NATS user and an S3 key of its own, so that a stolen one does little.
#
#   nomad job run deploy/nomad/backup.nomad.hcl
#   nomad action -job lifeboat-backup -alloc 1f2e3d4c -task worker drain    # before a node is taken away
#
# Run it from the folder above deploy. Secrets of each group (deploy/nomad/secrets): nats.nk, ca.pem, client.pem, client-key.pem,
# s3-key-id, s3-secret; for drills age-identity; and what role_secrets names besides, as etcd's client key or a token.

variable "deploy" {
  description = "the folder deploy, from the folder that `nomad job run` runs in"
  default     = "deploy"
}

variable "driver" {
  description = "docker, exec or raw_exec"
  default     = "docker"
  validation {
    condition     = contains(["docker", "exec", "raw_exec"], var.driver)
    error_message = "The driver is docker, exec or raw_exec."
  }
}

variable "image" {
  description = "image for docker, as `make images` made it: name its version"
  default     = "lifeboat-fleet/lifeboat:dev"
}

variable "binary" {
  description = "lifeboat on the node, or below the task's folder when artifact is set, for exec and raw_exec"
  default     = "/usr/local/bin/lifeboat"
}

variable "artifact" {
  description = "where the node fetches an archive or a binary from, for exec and raw_exec; put local/lifeboat into binary"
  default     = ""
}

variable "artifact_checksum" {
  description = "of the artifact, as sha256:..."
  default     = ""
}

variable "datacenters" {
  type    = list(string)
  default = ["*"]
}

variable "namespace" {
  default = "default"
}

variable "node_pool" {
  default = "default"
}

variable "config_source" {
  description = "of lifeboat.yaml without its section nats. consul: the key config_key; nomad: the item lifeboat.yaml of the variable nomad/jobs"
  default     = "consul"
  validation {
    condition     = contains(["consul", "nomad"], var.config_source)
    error_message = "The configuration comes from consul or from nomad."
  }
}

variable "config_key" {
  default = "lifeboat/lifeboat.yaml"
}

variable "secrets_source" {
  description = "nomad: variables below nomad/jobs/lifeboat-backup; vault: the same below vault_path"
  default     = "nomad"
  validation {
    condition     = contains(["nomad", "vault"], var.secrets_source)
    error_message = "Secrets come from nomad or from vault."
  }
}

variable "vault_path" {
  description = "of a KV version 2 engine, with data in it"
  default     = "secret/data/lifeboat"
}

variable "vault_role" {
  description = "the role that a group's task logs in with, GROUP being the group's name, as deploy/nomad/vault makes it; empty: the cluster's default"
  default     = "lifeboat-backup-GROUP"
}

variable "replicas" {
  description = "copies of each stream in NATS"
  type        = number
  default     = 3
}

variable "tls" {
  description = "mutual TLS with NATS. false only where nobody else reaches the network"
  type        = bool
  default     = true
}

variable "web_tls" {
  description = "health and metrics over TLS, with web.pem and web-key.pem among the secrets of each group"
  type        = bool
  default     = false
}

variable "log_level" {
  description = "debug, info, warn or error"
  default     = "info"
}

variable "counts" {
  description = "workers of each kind"
  type        = map(number)
  default     = { snapshot = 2, verify = 1, drill = 1, prune = 1 }
}

variable "concurrency" {
  description = "jobs of its kind that a worker does at once"
  type        = map(number)
  default     = { snapshot = 2, verify = 1, drill = 1, prune = 2 }
}

variable "worker_cpu" {
  type    = map(number)
  default = { snapshot = 500, verify = 300, drill = 1000, prune = 100 }
}

variable "worker_memory" {
  description = "MiB of each kind. A drill of an etcd holds all of it"
  type        = map(number)
  default     = { snapshot = 256, verify = 128, drill = 1024, prune = 128 }
}

variable "scratch_mib" {
  description = "disk for drills: the largest target and its snapshot fit"
  type        = number
  default     = 4096
}

variable "store_secrets" {
  description = "files of the S3 key, as lifeboat.yaml names them; none where the node's own role is the key"
  type        = list(string)
  default     = ["s3-key-id", "s3-secret"]
}

variable "role_secrets" {
  description = "further files of each group, as lifeboat.yaml names them"
  type        = map(list(string))
  default     = { snapshot = [], verify = [], drill = ["age-identity"], prune = [] }
}

variable "consul_binary" {
  description = "consul that drills restore into; empty: on PATH. With docker: in an image that holds it"
  default     = ""
}

variable "nomad_binary" {
  description = "nomad that drills restore into; empty: on PATH. With docker: in an image that holds it"
  default     = ""
}

variable "zone" {
  description = "where these workers are; empty: they take the jobs of targets without a zone"
  default     = ""
}

variable "grace" {
  description = "how long jobs may go on when a worker is to end; shorter than kill_timeout, which the node's max_kill_timeout (30s) caps"
  default     = "22s"
}

variable "kill_timeout" {
  default = "30s"
}

locals {
  # Who the process is. Images run as nobody's user; exec has no other choice than a user of the node.
  uid    = { docker = 65532, exec = 65534, raw_exec = null }[var.driver]
  user   = { docker = "65532:65532", exec = "nobody", raw_exec = "" }[var.driver]
  binary = var.driver == "docker" ? "/usr/local/bin/lifeboat" : var.binary
  # Of the node's network. In a container only this reaches the port that Docker forwards.
  ip = var.driver == "docker" ? "0.0.0.0" : "$${NOMAD_IP_http}"

  peoples_file = {
    consul = "{{ key \"${var.config_key}\" }}"
    nomad  = "{{ with nomadVar \"nomad/jobs\" }}{{ index . \"lifeboat.yaml\" }}{{ end }}"
  }[var.config_source]
  config = replace(replace(replace(replace(replace(file("${var.deploy}/nomad/lifeboat.yaml.tpl"),
    "PEOPLES_FILE", local.peoples_file),
    "REPLICAS", "${var.replicas}"),
    "NATS_SCHEME", var.tls ? "tls" : "nats"),
    "MONITOR_SCHEME", var.tls ? "https" : "http"),
  "NATS_TLS", var.tls ? "{ca_file: ca.pem, cert_file: client.pem, key_file: client-key.pem}" : "{}")

  secret = {
    nomad = "{{ with nomadVar \"nomad/jobs/lifeboat-backup/GROUP\" }}{{ index . \"ITEM\" }}{{ end }}"
    vault = "{{ with secret \"${var.vault_path}/lifeboat-backup/GROUP\" }}{{ index .Data.data \"ITEM\" }}{{ end }}"
  }[var.secrets_source]
  own_secrets = concat(["nats.nk"], var.tls ? ["ca.pem", "client.pem", "client-key.pem"] : [], var.web_tls ? ["web.pem", "web-key.pem"] : [])
  web_args    = var.web_tls ? ["--web-config-file", "$${NOMAD_SECRETS_DIR}/web.yml"] : []
}

locals {
  more = {
    snapshot = []
    verify   = []
    drill = concat(
      contains(var.role_secrets["drill"], "age-identity") ? ["--identity-file", "$${NOMAD_SECRETS_DIR}/age-identity"] : [],
      var.consul_binary == "" ? [] : ["--consul-binary", var.consul_binary],
    var.nomad_binary == "" ? [] : ["--nomad-binary", var.nomad_binary])
    prune = []
  }
  args = { for role, count in var.counts : role => concat([
    "backup", "--roles", role, "--config", "$${NOMAD_SECRETS_DIR}/lifeboat.yaml", "--http-addr", "${local.ip}:$${NOMAD_PORT_http}",
    "--concurrency", "${var.concurrency[role]}", "--grace", var.grace, "--pid-file", "$${NOMAD_TASK_DIR}/worker.pid",
    "--scratch-dir", "$${NOMAD_ALLOC_DIR}/data/scratch",
  "--log-level", var.log_level], var.zone == "" ? [] : ["--zone", var.zone], local.web_args, local.more[role]) }
}

job "lifeboat-backup" {
  datacenters = var.datacenters
  namespace   = var.namespace
  node_pool   = var.node_pool
  type        = "service"

  # A new one first, and the old one ends when that is ready; a version that does not get ready is taken back.
  update {
    canary            = 1
    max_parallel      = 1
    auto_promote      = true
    auto_revert       = true
    health_check      = "checks"
    min_healthy_time  = "5s"
    healthy_deadline  = "3m"
    progress_deadline = "10m"
  }

  dynamic "group" {
    for_each = var.counts
    labels   = [group.key]
    content {
      count = group.value

      spread {
        attribute = "${node.datacenter}"
      }
      spread {
        attribute = "${node.unique.id}"
      }

      # On a node that nobody hears of it goes on, and another one begins elsewhere: two bear each other.
      disconnect {
        lost_after = "1h"
        replace    = true
        reconcile  = "best_score"
      }
      restart {
        attempts = 3
        interval = "2m"
        delay    = "5s"
        mode     = "fail"
      }
      reschedule {
        delay          = "10s"
        delay_function = "exponential"
        max_delay      = "10m"
        unlimited      = true
      }

      ephemeral_disk {
        size = group.key == "drill" ? var.scratch_mib : 300
      }

      network {
        port "http" {}
      }

      service {
        name = "lifeboat-backup"
        port = "http"
        tags = ["metrics", group.key]
        check {
          type            = "http"
          path            = "/readyz"
          protocol        = var.web_tls ? "https" : "http"
          tls_skip_verify = true
          interval        = "5s"
          timeout         = "4s"
        }
      }

      task "worker" {
        driver = var.driver
        user   = local.user
        # It takes no more jobs, lets those at hand go on for --grace, and hands the rest back, which another worker takes at once.
        kill_signal  = "SIGTERM"
        kill_timeout = var.kill_timeout

        dynamic "config" {
          for_each = var.driver == "docker" ? [1] : []
          content {
            image           = var.image
            args            = local.args[group.key]
            ports           = ["http"]
            work_dir        = "/"
            readonly_rootfs = true
            cap_drop        = ["all"]
            security_opt    = ["no-new-privileges"]
          }
        }
        dynamic "config" {
          for_each = var.driver == "docker" ? [] : [1]
          content {
            command = var.binary
            args    = local.args[group.key]
          }
        }

        # A container has no other place to write to. Elsewhere the folder's name would be too long for the sockets of a drill.
        dynamic "env" {
          for_each = var.driver == "docker" ? [1] : []
          content {
            TMPDIR = "${NOMAD_ALLOC_DIR}/tmp"
          }
        }

        # No more jobs for this one, and what it does may take as long as it takes; it stays, idle, until it is stopped.
        action "drain" {
          command = local.binary
          args    = ["backup", "drain", "--pid-file", "local/worker.pid"]
        }

        # nomad_token beside the other secrets, for a target that is this Nomad (token_file: nomad_token), with a policy of this group alone:
        #   nomad acl policy apply -job lifeboat-backup -group snapshot lifeboat-snapshot policy.hcl
        dynamic "identity" {
          for_each = group.key == "snapshot" ? [1] : []
          content {
            file = true
          }
        }

        dynamic "artifact" {
          for_each = var.artifact == "" ? [] : [var.artifact]
          content {
            source = artifact.value
            dynamic "options" {
              for_each = var.artifact_checksum == "" ? [] : [var.artifact_checksum]
              content {
                checksum = options.value
              }
            }
          }
        }

        # Nomad logs in, with the task's identity, and renders what the templates name. The task itself gets no token.
        dynamic "vault" {
          for_each = var.secrets_source == "vault" ? [1] : []
          content {
            role         = replace(var.vault_role, "GROUP", group.key)
            env          = false
            disable_file = true
            change_mode  = "noop"
          }
        }

        # A new configuration is taken up live; one that is not good is refused, and the old one stays in force.
        template {
          destination   = "secrets/lifeboat.yaml"
          data          = replace(local.config, "ROLE", "${group.key}")
          perms         = "0600"
          uid           = local.uid
          gid           = local.uid
          change_mode   = "signal"
          change_signal = "SIGHUP"
          splay         = "0s" # at once, and it is read once
        }

        dynamic "template" {
          for_each = var.web_tls ? [1] : []
          content {
            destination = "secrets/web.yml"
            data        = "tls_server_config: {cert_file: web.pem, key_file: web-key.pem}\n"
            perms       = "0600"
            uid         = local.uid
            gid         = local.uid
            change_mode = "noop"
          }
        }

        # lifeboat.yaml names them without a folder. They are read again whenever they are used.
        dynamic "template" {
          for_each = concat(local.own_secrets, var.store_secrets, var.role_secrets[group.key])
          content {
            destination = "secrets/${template.value}"
            data        = replace(replace(local.secret, "GROUP", "${group.key}"), "ITEM", template.value)
            perms       = "0600"
            uid         = local.uid
            gid         = local.uid
            change_mode = "noop"
          }
        }

        resources {
          cpu    = var.worker_cpu[group.key]
          memory = var.worker_memory[group.key]
        }
      }
    }
  }
}
