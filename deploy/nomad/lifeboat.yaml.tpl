{{- /*
  What lifeboat.yaml is for a task: how to reach NATS, which is the deployment's to know, and then the file that people write, which has
  no section `nats`. A job puts its own values for the words in capitals.

  While nobody offers lifeboat-nats, the template waits for a key that does not exist: a task begins when there is a NATS to talk to, and
  one that runs keeps what it has. Addresses that change are no restart: a client hears of new servers from those that it is connected to.
*/ -}}
nats:
  url: "
  {{- range $i, $s := service "lifeboat-nats|any" }}{{ if $i }},{{ end }}NATS_SCHEME://{{ $s.Address }}:{{ $s.Port }}
  {{- else }}{{ key "lifeboat/until-lifeboat-nats-is-there" }}{{ end }}"
  monitor_urls: [
  {{- range $i, $s := service "lifeboat-nats-monitor|any" }}{{ if $i }}, {{ end }}"MONITOR_SCHEME://{{ $s.Address }}:{{ $s.Port }}"{{ end }}]
  nkey_file: nats.nk
  inbox_prefix: _INBOX_ROLE
  replicas: REPLICAS
  tls: NATS_TLS

PEOPLES_FILE
