package bintest

import (
	"context"
	"fmt"
	"io"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"time"
)

// Nomad is a server-only agent, whose jobs register but never run, unless NomadOptions.Client is set.
type Nomad struct {
	*Process
	Address string
}

// NomadOptions are what a test may want otherwise.
type NomadOptions struct {
	// HCL is appended to the configuration, as `acl { enabled = true }`.
	HCL string
	// Client makes the agent a client too, which runs jobs as processes (raw_exec; a build without cgo has no exec). They outlive the agent:
	// stop the jobs before it. It needs root.
	Client bool
	// Consul is the address of the Consul that services are registered in, and that templates read; none when empty.
	Consul string
	// TLS is for a client whose configuration's tls block is in HCL; nil for plain HTTP.
	TLS *http.Client
}

// StartNomad runs a nomad server on random loopback ports and waits for its leader.
func StartNomad(ctx context.Context, dir string) (*Nomad, error) {
	return StartNomadWith(ctx, dir, NomadOptions{})
}

// StartNomadWith is StartNomad with options.
func StartNomadWith(ctx context.Context, dir string, opts NomadOptions) (*Nomad, error) {
	path, err := Find("nomad")
	if err != nil {
		return nil, err
	}
	ports, err := FreePorts(3)
	if err != nil {
		return nil, err
	}
	conf, err := nomadConfig(dir, ports, opts)
	if err != nil {
		return nil, err
	}
	p, err := Start(path, filepath.Join(dir, "nomad.log"), nil, "agent", "-config="+conf)
	if err != nil {
		return nil, err
	}
	scheme, client := "http", http.DefaultClient
	if opts.TLS != nil {
		scheme, client = "https", opts.TLS
	}
	n := &Nomad{Process: p, Address: fmt.Sprintf("%s://127.0.0.1:%d", scheme, ports[0])}
	ctx, cancel := context.WithTimeout(ctx, startTimeout)
	defer cancel()
	err = n.waitLeader(ctx, client)
	if err == nil && opts.Client {
		err = p.WaitHTTP(ctx, n.Address+"/v1/nodes", func(body string) bool { return strings.Contains(body, `"Status":"ready"`) })
	}
	if err != nil {
		return nil, fmt.Errorf("%w (log: %s); %w", err, filepath.Join(dir, "nomad.log"), p.Kill())
	}
	return n, nil
}

// nomadClient is a client that does not look for a cloud around it, which may end it. Its tasks get ports of loopback, which neither
// FreePorts nor the system gives to others: Nomad does not look whether anybody has them.
const nomadClient = `
client {
  enabled           = true
  network_interface = "lo"
  cpu_total_compute = 40000
  min_dynamic_port  = 32001
  max_dynamic_port  = 32767
  options           = { "fingerprint.denylist" = "env_aws,env_gce,env_azure,env_digitalocean" }
}
plugin "raw_exec" {
  config {
    enabled = true
  }
}
`

func nomadConfig(dir string, ports []int, opts NomadOptions) (string, error) {
	if err := os.MkdirAll(dir, 0o750); err != nil {
		return "", fmt.Errorf("making nomad's folder: %w", err)
	}
	client, consul := "client { enabled = false }", "consul { auto_advertise = false }"
	if opts.Client {
		client = nomadClient
	}
	if opts.Consul != "" {
		consul = fmt.Sprintf("consul { address = %q }", opts.Consul)
	}
	conf := filepath.Join(dir, "nomad.hcl")
	err := os.WriteFile(conf, fmt.Appendf(nil, `
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
%s
%s
%s
`, filepath.Join(dir, "data"), ports[0], ports[1], ports[2], client, consul, opts.HCL), 0o600)
	if err != nil {
		return "", fmt.Errorf("writing nomad's configuration: %w", err)
	}
	return conf, nil
}

// waitLeader waits until the server knows a leader.
func (n *Nomad) waitLeader(ctx context.Context, client *http.Client) error {
	tick := time.NewTicker(50 * time.Millisecond)
	defer tick.Stop()
	for {
		leader, err := askLeader(ctx, client, n.Address+"/v1/status/leader")
		if err == nil && leader != "" {
			return nil
		}
		select {
		case <-n.Done():
			return fmt.Errorf("nomad ended before it answered: %w", n.err)
		case <-ctx.Done():
			return fmt.Errorf("nomad at %s found no leader: %w", n.Address, err)
		case <-tick.C:
		}
	}
}

func askLeader(ctx context.Context, client *http.Client, url string) (string, error) {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, url, nil)
	if err != nil {
		return "", err
	}
	resp, err := client.Do(req)
	if err != nil {
		return "", err
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(io.LimitReader(resp.Body, 1<<10))
	if err != nil {
		return "", err
	}
	if resp.StatusCode != http.StatusOK {
		return "", fmt.Errorf("status %s", resp.Status)
	}
	return strings.Trim(string(body), "\"\n "), nil
}
