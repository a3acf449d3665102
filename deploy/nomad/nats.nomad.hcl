# A cluster of three NATS servers with JetStream, each with its own data, mutual TLS, and a user for every role of Lifeboat.
#
#   nomad job run deploy/nomad/nats.nomad.hcl
#
# Run it from the folder above deploy: the permissions are those of deploy/nats, and read from there. Before it the secrets must be
# there: deploy/nomad/secrets puts them into Nomad variables.

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

variable "nats_image" {
  description = "image for docker"
  default     = "nats:2.15.2"
}

variable "nats_binary" {
  description = "nats-server on the node, or below the task's folder when nats_artifact is set, for exec and raw_exec"
  default     = "/usr/local/bin/nats-server"
}

variable "nats_artifact" {
  description = "where the node fetches an archive or a binary from, for exec and raw_exec; put local/nats-server into nats_binary"
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

variable "replicas" {
  description = "servers, and copies of each stream: 3, or 1 for a trial"
  type        = number
  default     = 3
  validation {
    condition     = contains([1, 3, 5], var.replicas)
    error_message = "A cluster has 1, 3 or 5 servers."
  }
}

variable "distinct_hosts" {
  description = "each server on a node of its own; false for a trial on one node"
  type        = bool
  default     = true
}

variable "dynamic_ports" {
  description = "ports that Nomad chooses, instead of 4222, 6222 and 8222: several servers then fit on one node"
  type        = bool
  default     = false
}

variable "host_volume" {
  description = "a host volume of the nodes for the data, which outlives the job (docker and exec). Empty: the allocation's own disk, which an update keeps and `nomad job stop` loses"
  default     = ""
}

variable "disk_mib" {
  type    = number
  default = 10240
}

variable "secrets_source" {
  description = "nomad: variables below nomad/jobs/lifeboat-nats; vault: the same below vault_path"
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
  default     = "lifeboat-nats-GROUP"
}

variable "tls" {
  description = "mutual TLS for clients and between servers. false only where nobody else reaches the network"
  type        = bool
  default     = true
}

variable "cpu" {
  type    = number
  default = 500
}

variable "memory" {
  type    = number
  default = 512
}

variable "memory_max" {
  type    = number
  default = 1024
}

variable "log_level" {
  description = "info or debug"
  default     = "info"
}

locals {
  static = !var.dynamic_ports
  # In a container only this reaches the ports that Docker forwards; elsewhere the addresses of the node's network are all.
  any = var.driver == "docker"
  # Who the process is. Images run as nobody's user; exec has no other choice than a user of the node.
  uid  = { docker = 65532, exec = 65534, raw_exec = null }[var.driver]
  data = var.host_volume == "" ? "{{ env \"NOMAD_ALLOC_DIR\" }}/data" : "/data"

  secret = {
    nomad = "{{ with nomadVar \"nomad/jobs/lifeboat-nats/nats\" }}{{ index . \"ITEM\" }}{{ end }}"
    vault = "{{ with secret \"${var.vault_path}/lifeboat-nats/nats\" }}{{ index .Data.data \"ITEM\" }}{{ end }}"
  }[var.secrets_source]
  secrets = var.tls ? ["ca.pem", "server.pem", "server-key.pem"] : []

  tls = <<-EOT
    tls {
      cert_file: {{ env "NOMAD_SECRETS_DIR" }}/server.pem
      key_file: {{ env "NOMAD_SECRETS_DIR" }}/server-key.pem
      ca_file: {{ env "NOMAD_SECRETS_DIR" }}/ca.pem
      verify: true
    }
  EOT
}

job "lifeboat-nats" {
  datacenters = var.datacenters
  namespace   = var.namespace
  node_pool   = var.node_pool
  type        = "service"

  # One after the other, and each only when the one before it has all of its streams again: /healthz says so.
  update {
    max_parallel      = 1
    health_check      = "checks"
    min_healthy_time  = "5s"
    healthy_deadline  = "10m"
    progress_deadline = "30m"
    auto_revert       = true
  }

  group "nats" {
    count = var.replicas

    dynamic "constraint" {
      for_each = var.distinct_hosts ? [1] : []
      content {
        operator = "distinct_hosts"
        value    = "true"
      }
    }

    spread {
      attribute = "${node.datacenter}"
    }

    # Its data is on its node: a new one elsewhere would begin empty, and the other two go on meanwhile.
    disconnect {
      lost_after = "6h"
      replace    = false
      reconcile  = "keep_original"
    }
    restart {
      attempts = 5
      interval = "5m"
      delay    = "5s"
      mode     = "delay"
    }

    ephemeral_disk {
      sticky  = true
      migrate = true
      size    = var.disk_mib
    }

    dynamic "volume" {
      for_each = var.host_volume == "" ? [] : [var.host_volume]
      labels   = ["data"]
      content {
        type   = "host"
        source = volume.value
      }
    }

    network {
      port "client" {
        static = local.static ? 4222 : 0
      }
      port "cluster" {
        static = local.static ? 6222 : 0
      }
      port "monitor" {
        static = local.static ? 8222 : 0
      }
    }

    service {
      name = "lifeboat-nats"
      port = "client"
      tags = ["jetstream"]
      check {
        name            = "streams are current"
        type            = "http"
        port            = "monitor"
        protocol        = var.tls ? "https" : "http"
        tls_skip_verify = true
        path            = "/healthz"
        interval        = "5s"
        timeout         = "4s"
      }
    }
    service {
      name = "lifeboat-nats-cluster"
      port = "cluster"
    }
    service {
      name = "lifeboat-nats-monitor"
      port = "monitor"
    }

    task "nats" {
      driver = var.driver
      user   = { docker = "65532:65532", exec = "nobody", raw_exec = "" }[var.driver]
      # A server that is asked to end hands its streams' leadership over first, and clients go to another one at once. Lame duck mode
      # (SIGUSR2) takes 30 seconds at least, which is all that a node's max_kill_timeout allows by default.
      kill_signal  = "SIGTERM"
      kill_timeout = "25s"

      dynamic "config" {
        for_each = var.driver == "docker" ? [1] : []
        content {
          image           = var.nats_image
          args            = ["--config", "/local/nats.conf"]
          ports           = ["client", "cluster", "monitor"]
          readonly_rootfs = true
          cap_drop        = ["all"]
          security_opt    = ["no-new-privileges"]
        }
      }
      dynamic "config" {
        for_each = var.driver == "docker" ? [] : [1]
        content {
          command = var.nats_binary
          args    = ["--config", "$${NOMAD_TASK_DIR}/nats.conf"]
        }
      }

      dynamic "artifact" {
        for_each = var.nats_artifact == "" ? [] : [var.nats_artifact]
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

      dynamic "volume_mount" {
        for_each = var.host_volume == "" ? [] : [1]
        content {
          volume      = "data"
          destination = "/data"
        }
      }

      # Nomad logs in, with the task's identity, and renders what the templates name. The task itself gets no token.
      dynamic "vault" {
        for_each = var.secrets_source == "vault" ? [1] : []
        content {
          role         = replace(var.vault_role, "GROUP", "nats")
          env          = false
          disable_file = true
          change_mode  = "noop"
        }
      }

      template {
        destination   = "local/nats.conf"
        change_mode   = "signal"
        change_signal = "SIGHUP" # routes, keys and certificates are read again
        splay         = "1s"
        data          = <<-EOT
          # Of an index, so that it is the same server after an update; its data has the same name.
          server_name: nats-{{ env "NOMAD_ALLOC_INDEX" }}
          listen: "${local.any ? "0.0.0.0" : "{{ env \"NOMAD_IP_client\" }}"}:{{ env "NOMAD_PORT_client" }}"
          client_advertise: "{{ env "NOMAD_HOST_ADDR_client" }}"
          ${var.tls ? "https" : "http"}: "${local.any ? "0.0.0.0" : "{{ env \"NOMAD_IP_monitor\" }}"}:{{ env "NOMAD_PORT_monitor" }}"
          debug: ${var.log_level == "debug"}

          jetstream {
            store_dir: "${local.data}/nats-{{ env "NOMAD_ALLOC_INDEX" }}"
            sync_interval: always
          }

          %{if var.replicas > 1~}
          cluster {
            name: lifeboat
            listen: "${local.any ? "0.0.0.0" : "{{ env \"NOMAD_IP_cluster\" }}"}:{{ env "NOMAD_PORT_cluster" }}"
            advertise: "{{ env "NOMAD_HOST_ADDR_cluster" }}"
            routes: [
              {{- range service "lifeboat-nats-cluster|any" }}
              "nats-route://{{ .Address }}:{{ .Port }}"
              {{- end }}
            ]
            ${var.tls ? indent(2, replace(local.tls, "verify: true", "verify_and_map: true")) : ""}
            %{if var.tls~}
            # Only a server may be a route, because no permissions hold for routes: its certificate has this name, which those of clients have not.
            authorization { user: "nats-server.lifeboat" }
            %{endif~}
          }
          %{endif~}

          ${var.tls ? local.tls : ""}
          include ./lifeboat.conf
        EOT
      }

      # As they stand in deploy/nats: accounts, users, and what each role may do.
      template {
        destination = "local/lifeboat.conf"
        data        = file("${var.deploy}/nats/lifeboat.conf")
        change_mode = "noop" # whoever changes it runs the job again
      }
      dynamic "template" {
        for_each = fileset("${var.deploy}/nats/roles", "*.conf")
        content {
          destination = "local/roles/${template.value}"
          data        = file("${var.deploy}/nats/roles/${template.value}")
          change_mode = "noop"
        }
      }

      # The public keys of the roles.
      template {
        destination   = "local/keys.conf"
        data          = replace(local.secret, "ITEM", "keys.conf")
        change_mode   = "signal"
        change_signal = "SIGHUP"
      }
      dynamic "template" {
        for_each = local.secrets
        content {
          destination   = "secrets/${template.value}"
          data          = replace(local.secret, "ITEM", template.value)
          perms         = "0600"
          uid           = local.uid
          gid           = local.uid
          change_mode   = "signal"
          change_signal = "SIGHUP"
        }
      }

      resources {
        cpu        = var.cpu
        memory     = var.memory
        memory_max = var.memory_max
      }
    }
  }
}
