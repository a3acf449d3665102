# The notifiers: they take Alertmanager's webhooks and tell people. Any number may run; each alert is told once.
#
#   nomad job run deploy/nomad/notifier.nomad.hcl
#
# Run it from the folder above deploy. Secrets (deploy/nomad/secrets): nats.nk, ca.pem, client.pem, client-key.pem, webhook-tokens,
# link-secret, and what lifeboat.yaml names besides: put those into chat_secrets.

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
  description = "nomad: variables below nomad/jobs/lifeboat-notifier; vault: the same below vault_path"
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
  default     = "lifeboat-notifier-GROUP"
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
  description = "health and metrics over TLS, with web.pem and web-key.pem among the secrets of each group; lifeboat.yaml may name web.yml as notifier.web_config_file, for the webhooks"
  type        = bool
  default     = false
}

variable "log_level" {
  description = "debug, info, warn or error"
  default     = "info"
}

variable "count" {
  type    = number
  default = 2
}

variable "webhook_port" {
  description = "where Alertmanager posts to, on each node. 0: Nomad chooses one, and Traefik or Consul know it; an update then never waits for the port"
  type        = number
  default     = 0
}

variable "webhook_host" {
  description = "Traefik's host name of the webhooks; empty: no router"
  default     = ""
}

variable "pages_host" {
  description = "Traefik's host name of the pages behind buttons and links, and of Slack's requests (notifier.interactions.external_url); empty: no router"
  default     = ""
}

variable "backend_tls" {
  description = "Traefik speaks https to them, because lifeboat.yaml gives them a web configuration file: of webhooks, pages"
  type        = list(string)
  default     = []
}

variable "entrypoints" {
  description = "Traefik's entry points"
  default     = "websecure"
}

variable "chat_secrets" {
  description = "files, as lifeboat.yaml names them: of chats, and who may post webhooks"
  type        = list(string)
  default     = ["webhook-tokens", "link-secret"]
}

variable "cpu" {
  type    = number
  default = 200
}

variable "memory" {
  type    = number
  default = 192
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
    nomad = "{{ with nomadVar \"nomad/jobs/lifeboat-notifier/GROUP\" }}{{ index . \"ITEM\" }}{{ end }}"
    vault = "{{ with secret \"${var.vault_path}/lifeboat-notifier/GROUP\" }}{{ index .Data.data \"ITEM\" }}{{ end }}"
  }[var.secrets_source]
  own_secrets = concat(["nats.nk"], var.tls ? ["ca.pem", "client.pem", "client-key.pem"] : [], var.web_tls ? ["web.pem", "web-key.pem"] : [])
  web_args    = var.web_tls ? ["--web-config-file", "$${NOMAD_SECRETS_DIR}/web.yml"] : []
}

locals {
  args = concat(["notifier", "--config", "$${NOMAD_SECRETS_DIR}/lifeboat.yaml", "--http-addr", "${local.ip}:$${NOMAD_PORT_http}",
  "--listen", "${local.ip}:$${NOMAD_PORT_webhooks}", "--interactions-listen", "${local.ip}:$${NOMAD_PORT_pages}", "--log-level", var.log_level], local.web_args)
  # What others reach, with Traefik's tags where it has a host name.
  routers = { for name, host in { webhooks = var.webhook_host, pages = var.pages_host } : "lifeboat-notifier-${name}" => {
    port = name
    tags = host == "" ? [] : concat([
      "traefik.enable=true",
      "traefik.http.routers.lifeboat-${name}.rule=Host(`${host}`)",
      "traefik.http.routers.lifeboat-${name}.entrypoints=${var.entrypoints}",
      "traefik.http.routers.lifeboat-${name}.tls=true",
    ], contains(var.backend_tls, name) ? ["traefik.http.services.lifeboat-notifier-${name}.loadbalancer.server.scheme=https"] : [])
  } }
}

job "lifeboat-notifier" {
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

  group "notifier" {
    count = var.count

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

    # Whoever sends webhooks has a moment to hear that this one goes.
    shutdown_delay = "5s"

    network {
      port "http" {}
      port "webhooks" {
        static = var.webhook_port
      }
      port "pages" {}
    }

    service {
      name = "lifeboat-notifier"
      port = "http"
      tags = ["metrics"]
      check {
        type            = "http"
        path            = "/readyz"
        protocol        = var.web_tls ? "https" : "http"
        tls_skip_verify = true
        interval        = "5s"
        timeout         = "4s"
      }
    }
    dynamic "service" {
      for_each = local.routers
      content {
        name = service.key
        port = service.value.port
        tags = service.value.tags
        check {
          type            = "http"
          port            = "http"
          path            = "/readyz"
          protocol        = var.web_tls ? "https" : "http"
          tls_skip_verify = true
          interval        = "5s"
          timeout         = "4s"
        }
      }
    }

    task "notifier" {
      driver       = var.driver
      user         = local.user
      kill_signal  = "SIGTERM"
      kill_timeout = "20s"

      dynamic "config" {
        for_each = var.driver == "docker" ? [1] : []
        content {
          image           = var.image
          args            = local.args
          ports           = ["http", "webhooks", "pages"]
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
          args    = local.args
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
          role         = replace(var.vault_role, "GROUP", "notifier")
          env          = false
          disable_file = true
          change_mode  = "noop"
        }
      }

      # A new configuration is taken up live; one that is not good is refused, and the old one stays in force.
      template {
        destination   = "secrets/lifeboat.yaml"
        data          = replace(local.config, "ROLE", "notifier")
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
        for_each = concat(local.own_secrets, var.chat_secrets)
        content {
          destination = "secrets/${template.value}"
          data        = replace(replace(local.secret, "GROUP", "notifier"), "ITEM", template.value)
          perms       = "0600"
          uid         = local.uid
          gid         = local.uid
          change_mode = "noop"
        }
      }

      resources {
        cpu    = var.cpu
        memory = var.memory
      }
    }
  }
}
