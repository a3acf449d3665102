package bintest

import (
	"context"
	"fmt"
	"net/http"
	"os"
	"path/filepath"
	"time"
)

const startTimeout = 60 * time.Second

// Alertmanager is a single real Alertmanager.
type Alertmanager struct {
	*Process
	URL string
}

// StartAlertmanager runs an alertmanager that sends everything to one webhook, quickly. addr may be empty for a random
// loopback port.
func StartAlertmanager(ctx context.Context, dir, webhook string) (*Alertmanager, error) {
	return StartAlertmanagerWith(ctx, dir, fmt.Sprintf(`
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
`, webhook))
}

// StartAlertmanagerWith runs an alertmanager with a configuration of one's own, in its own words.
func StartAlertmanagerWith(ctx context.Context, dir, config string) (*Alertmanager, error) {
	return startAlertmanager(ctx, dir, config, http.DefaultClient, "http")
}

// StartAlertmanagerTLS is StartAlertmanagerWith a web configuration file that makes it serve TLS. client is one that it lets in.
func StartAlertmanagerTLS(ctx context.Context, dir, config, webConfigFile string, client *http.Client) (*Alertmanager, error) {
	return startAlertmanager(ctx, dir, config, client, "https", "--web.config.file="+webConfigFile)
}

func startAlertmanager(ctx context.Context, dir, config string, client *http.Client, scheme string, flags ...string) (*Alertmanager, error) {
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
	if err = os.WriteFile(conf, []byte(config), 0o600); err != nil {
		return nil, fmt.Errorf("writing alertmanager's configuration: %w", err)
	}
	p, err := Start(path, filepath.Join(dir, "alertmanager.log"), nil, append([]string{
		"--config.file=" + conf, "--storage.path=" + filepath.Join(dir, "data"), "--cluster.listen-address=",
		fmt.Sprintf("--web.listen-address=127.0.0.1:%d", ports[0]), "--data.retention=1h",
	}, flags...)...)
	if err != nil {
		return nil, err
	}
	a := &Alertmanager{Process: p, URL: fmt.Sprintf("%s://127.0.0.1:%d", scheme, ports[0])}
	ctx, cancel := context.WithTimeout(ctx, startTimeout)
	defer cancel()
	if err := p.waitHTTP(ctx, client, a.URL+"/-/ready", nil); err != nil {
		return nil, fmt.Errorf("%w (log: %s); %w", err, filepath.Join(dir, "alertmanager.log"), p.Kill())
	}
	return a, nil
}
