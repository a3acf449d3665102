# What every Nomad agent needs besides its own configuration when secrets come from Vault: put it beside that, as /etc/nomad.d/lifeboat.hcl,
# with Vault's address, and start the agent again. A cluster that has Vault by `nomad setup vault` has the first block already.

vault {
  enabled = true
  address = "https://vault.example.com:8200"
  # ca_file = "/etc/nomad.d/vault-ca.pem"

  # Servers sign it for each task, and nodes log in with it.
  default_identity {
    aud = ["vault.io"]
    ttl = "1h"
  }
}

client {
  # By default a node gives up after twelve tries, some five minutes, and then ends every task that reads from what does not answer: with
  # Vault, Consul or Nomad's servers away it would end the whole fleet, which goes on very well with the files that it has. 0 is no end.
  template {
    vault_retry {
      attempts = 0
    }
    consul_retry {
      attempts = 0
    }
    nomad_retry {
      attempts = 0
    }
  }
}
