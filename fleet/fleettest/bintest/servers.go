package bintest

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"
)

const startTimeout = 60 * time.Second

// Consul is a single server with a data directory.
type Consul struct {
	*Process
	Address string
}

// StartConsul runs a consul server on random loopback ports and waits for its leader.
func StartConsul(ctx context.Context, dir string) (*Consul, error) {
	path, err := Find("consul")
	if err != nil {
		return nil, err
	}
	ports, err := FreePorts(5)
	if err != nil {
		return nil, err
	}
	return runConsul(ctx, path, dir, ports)
}

func runConsul(ctx context.Context, path, dir string, ports []int) (*Consul, error) {
	if err := os.MkdirAll(dir, 0o750); err != nil {
		return nil, fmt.Errorf("making consul's folder: %w", err)
	}
	p, err := Start(path, filepath.Join(dir, "consul.log"), nil, "agent", "-server", "-bootstrap-expect=1",
		"-data-dir="+filepath.Join(dir, "data"), "-bind=127.0.0.1", "-client=127.0.0.1", "-node=lifeboat-test",
		"-http-port="+strconv.Itoa(ports[0]), "-server-port="+strconv.Itoa(ports[1]),
		"-serf-lan-port="+strconv.Itoa(ports[2]), "-serf-wan-port="+strconv.Itoa(ports[3]),
		"-dns-port=-1", "-grpc-port=-1", "-grpc-tls-port=-1", "-disable-host-node-id",
		"-hcl=connect { enabled = false }", "-hcl=performance { raft_multiplier = 1 }",
		"-hcl=disable_update_check = true",
		"-hcl=limits { http_max_conns_per_client = 2000 }")
	if err != nil {
		return nil, err
	}
	c := &Consul{Process: p, Address: fmt.Sprintf("http://127.0.0.1:%d", ports[0])}
	ctx, cancel := context.WithTimeout(ctx, startTimeout)
	defer cancel()
	leader := func(body string) bool { return len(strings.Trim(body, "\"\n ")) > 0 }
	if err := p.WaitHTTP(ctx, c.Address+"/v1/status/leader", leader); err != nil {
		return nil, fmt.Errorf("%w (log: %s); %w", err, filepath.Join(dir, "consul.log"), p.Kill())
	}
	return c, nil
}

// Nomad is a server-only agent: jobs register but never run.
type Nomad struct {
	*Process
	Address string
}

// StartNomad runs a nomad server on random loopback ports and waits for its leader.
func StartNomad(ctx context.Context, dir string) (*Nomad, error) {
	path, err := Find("nomad")
	if err != nil {
		return nil, err
	}
	ports, err := FreePorts(3)
	if err != nil {
		return nil, err
	}
	if err = os.MkdirAll(dir, 0o750); err != nil {
		return nil, fmt.Errorf("making nomad's folder: %w", err)
	}
	conf := filepath.Join(dir, "nomad.hcl")
	err = os.WriteFile(conf, fmt.Appendf(nil, `
name      = "lifeboat-test"
data_dir  = %q
bind_addr = "127.0.0.1"
disable_update_check = true
ports {
  http = %d
  rpc  = %d
  serf = %d
}
addresses {
  http = "127.0.0.1"
  rpc  = "127.0.0.1"
  serf = "127.0.0.1"
}
advertise {
  http = "127.0.0.1"
  rpc  = "127.0.0.1"
  serf = "127.0.0.1"
}
server {
  enabled          = true
  bootstrap_expect = 1
  raft_multiplier  = 1
}
client { enabled = false }
consul { auto_advertise = false }
`, filepath.Join(dir, "data"), ports[0], ports[1], ports[2]), 0o600)
	if err != nil {
		return nil, fmt.Errorf("writing nomad's configuration: %w", err)
	}
	p, err := Start(path, filepath.Join(dir, "nomad.log"), nil, "agent", "-config="+conf)
	if err != nil {
		return nil, err
	}
	n := &Nomad{Process: p, Address: fmt.Sprintf("http://127.0.0.1:%d", ports[0])}
	ctx, cancel := context.WithTimeout(ctx, startTimeout)
	defer cancel()
	leader := func(body string) bool { return len(strings.Trim(body, "\"\n ")) > 0 }
	if err := p.WaitHTTP(ctx, n.Address+"/v1/status/leader", leader); err != nil {
		return nil, fmt.Errorf("%w (log: %s); %w", err, filepath.Join(dir, "nomad.log"), p.Kill())
	}
	return n, nil
}

// NATS is a nats-server process with JetStream, for tests that kill it.
type NATS struct {
	*Process
	URL   string
	dir   string
	ports []int
}

// StartNATS runs a nats-server that keeps its data in dir, on random loopback ports.
func StartNATS(ctx context.Context, dir string) (*NATS, error) {
	ports, err := FreePorts(2)
	if err != nil {
		return nil, err
	}
	n := &NATS{URL: fmt.Sprintf("nats://127.0.0.1:%d", ports[0]), dir: dir, ports: ports}
	return n, n.Restart(ctx)
}

// Restart starts the server again, on the same ports and data, after it was killed.
func (n *NATS) Restart(ctx context.Context) error {
	path, err := Find("nats-server")
	if err != nil {
		return err
	}
	n.Process, err = Start(path, filepath.Join(n.dir, "nats.log"), nil, "-a", "127.0.0.1", "-p", strconv.Itoa(n.ports[0]),
		"-m", strconv.Itoa(n.ports[1]), "-js", "-sd", filepath.Join(n.dir, "data"))
	if err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(ctx, startTimeout)
	defer cancel()
	return n.WaitHTTP(ctx, fmt.Sprintf("http://127.0.0.1:%d/healthz", n.ports[1]), nil)
}

// Alertmanager is a single real Alertmanager.
type Alertmanager struct {
	*Process
	URL string
}

// StartAlertmanager runs an alertmanager that sends everything to one webhook, quickly. addr may be empty for a random
// loopback port.
func StartAlertmanager(ctx context.Context, dir, webhook string) (*Alertmanager, error) {
	path, err := Find("alertmanager")
	if err != nil {
		return nil, err
	}
	ports, err := FreePorts(1)
	if err != nil {
		return nil, err
	}
	if err = os.MkdirAll(dir, 0o750); err != nil {
		return nil, fmt.Errorf("making alertmanager's folder: %w", err)
	}
	conf := filepath.Join(dir, "alertmanager.yml")
	err = os.WriteFile(conf, fmt.Appendf(nil, `
route:
  receiver: lifeboat
  group_by: [alertname, target]
  group_wait: 1s
  group_interval: 5s
  repeat_interval: 4h
receivers:
  - name: lifeboat
    webhook_configs:
      - url: %s
        send_resolved: true
`, webhook), 0o600)
	if err != nil {
		return nil, fmt.Errorf("writing alertmanager's configuration: %w", err)
	}
	p, err := Start(path, filepath.Join(dir, "alertmanager.log"), nil,
		"--config.file="+conf, "--storage.path="+filepath.Join(dir, "data"), "--cluster.listen-address=",
		fmt.Sprintf("--web.listen-address=127.0.0.1:%d", ports[0]), "--data.retention=1h")
	if err != nil {
		return nil, err
	}
	a := &Alertmanager{Process: p, URL: fmt.Sprintf("http://127.0.0.1:%d", ports[0])}
	ctx, cancel := context.WithTimeout(ctx, startTimeout)
	defer cancel()
	if err := p.WaitHTTP(ctx, a.URL+"/-/ready", nil); err != nil {
		return nil, fmt.Errorf("%w (log: %s); %w", err, filepath.Join(dir, "alertmanager.log"), p.Kill())
	}
	return a, nil
}
