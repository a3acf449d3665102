package bintest

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"time"
)

const startTimeout = 60 * time.Second

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
