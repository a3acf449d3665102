package bintest

import (
	"context"
	"fmt"
	"net/url"
	"os"
	"path/filepath"
	"strconv"
	"strings"
)

// Consul is a single server with a data directory.
type Consul struct {
	*Process
	Address string
	// HTTPS is the address with TLS; empty without ConsulOptions.CAFile.
	HTTPS string

	dir        string
	management string
	args       []string
}

// ConsulOptions is what a test may want otherwise.
type ConsulOptions struct {
	// Management turns ACLs on, with this UUID as the management token's secret. Without it there are none.
	Management string
	// DefaultPolicy is what ACLs allow where no rule applies: "deny" when empty, or "allow".
	DefaultPolicy string
	// CAFile, CertFile and KeyFile open a port with TLS, which takes only clients with a certificate of that CA.
	CAFile, CertFile, KeyFile string
	// HCL is further configuration, in Consul's own words, and outranks the rest.
	HCL string
}

func (o ConsulOptions) config(https int) string {
	conf := `
connect { enabled = false }
performance { raft_multiplier = 1 }
disable_update_check = true
limits { http_max_conns_per_client = 2000 }
`
	if o.Management != "" {
		policy := o.DefaultPolicy
		if policy == "" {
			policy = "deny"
		}
		conf += fmt.Sprintf(`
acl {
  enabled        = true
  default_policy = %q
  tokens { initial_management = %q }
}
`, policy, o.Management)
	}
	if o.CAFile != "" {
		conf += fmt.Sprintf(`
ports { https = %d }
tls {
  https {
    ca_file         = %q
    cert_file       = %q
    key_file        = %q
    verify_incoming = true
  }
}
`, https, o.CAFile, o.CertFile, o.KeyFile)
	}
	return conf
}

// StartConsul runs a consul server on random loopback ports and waits for its leader.
func StartConsul(ctx context.Context, dir string) (*Consul, error) {
	return StartConsulWith(ctx, dir, ConsulOptions{})
}

// StartConsulWith runs a consul server on random loopback ports and waits for its leader and its ACLs.
func StartConsulWith(ctx context.Context, dir string, opts ConsulOptions) (*Consul, error) {
	ports, err := FreePorts(5)
	if err != nil {
		return nil, err
	}
	conf := filepath.Join(dir, "conf")
	if err = os.MkdirAll(conf, 0o750); err != nil {
		return nil, fmt.Errorf("making consul's folder: %w", err)
	}
	// Two files: Consul merges their blocks, and refuses a block that one file has twice.
	for name, text := range map[string]string{"1.hcl": opts.config(ports[4]), "2.hcl": opts.HCL} {
		if err = os.WriteFile(filepath.Join(conf, name), []byte(text), 0o600); err != nil {
			return nil, fmt.Errorf("writing consul's configuration: %w", err)
		}
	}
	c := &Consul{Address: fmt.Sprintf("http://127.0.0.1:%d", ports[0]), dir: dir, management: opts.Management, args: []string{
		"agent", "-server", "-bootstrap-expect=1",
		"-data-dir=" + filepath.Join(dir, "data"), "-bind=127.0.0.1", "-client=127.0.0.1", "-node=lifeboat-test",
		"-http-port=" + strconv.Itoa(ports[0]), "-server-port=" + strconv.Itoa(ports[1]),
		"-serf-lan-port=" + strconv.Itoa(ports[2]), "-serf-wan-port=" + strconv.Itoa(ports[3]),
		"-dns-port=-1", "-grpc-port=-1", "-grpc-tls-port=-1", "-disable-host-node-id", "-config-dir=" + conf,
	}}
	if opts.CAFile != "" {
		c.HTTPS = fmt.Sprintf("https://127.0.0.1:%d", ports[4])
	}
	return c, c.Restart(ctx)
}

// Restart starts the server again, on the same ports and data, after it was killed, and waits as at first.
func (c *Consul) Restart(ctx context.Context) error {
	path, err := Find("consul")
	if err != nil {
		return err
	}
	log := filepath.Join(c.dir, "consul.log")
	if c.Process, err = Start(path, log, nil, c.args...); err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(ctx, startTimeout)
	defer cancel()
	leader := func(body string) bool { return len(strings.Trim(body, "\"\n ")) > 0 }
	err = c.WaitHTTP(ctx, c.Address+"/v1/status/leader", leader)
	if err == nil && c.management != "" {
		err = c.WaitHTTP(ctx, c.Address+"/v1/acl/token/self?token="+url.QueryEscape(c.management), nil)
	}
	if err != nil {
		return fmt.Errorf("%w (log: %s); %w", err, log, c.Kill())
	}
	return nil
}
