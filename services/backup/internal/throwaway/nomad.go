package throwaway

import (
	"context"
	"fmt"
	"net/http"
	"os"
	"path/filepath"

	"github.com/google/uuid"
)

// StartNomad runs a Nomad server with its data in the scratch folder, and returns once it takes writes, variables included. It has
// no client, so that no job can start. ACLs are on, and Token is a management token. ErrNoBinary means that there is no nomad.
func StartNomad(ctx context.Context, scratch *Scratch, o Options) (*Server, error) {
	return start(ctx, scratch, o, nomad())
}

func nomad() kind {
	return kind{
		name: "nomad", flag: "nomad-binary", configFlag: "-config=", ports: 3,
		domain:    func(region string) string { return "server." + region + ".nomad" },
		configure: nomadConfig, ready: nomadReady,
	}
}

// nomadConfig has a word for everything that Nomad could reach out with. newer has limits, all above their defaults: what the
// source's own let in must be let in here.
func nomadConfig(p place) (conf, newer map[string]any) {
	const here = "127.0.0.1"
	everywhere := map[string]any{"http": here, "rpc": here, "serf": here}
	conf = map[string]any{
		"name": "drill", "region": p.region, "log_level": "warn",
		"data_dir": filepath.Join(p.dir, "data"), "plugin_dir": filepath.Join(p.dir, "plugins"),
		"bind_addr": here, "addresses": everywhere, "advertise": everywhere,
		"ports": map[string]any{"http": p.ports[0], "rpc": p.ports[1], "serf": p.ports[2]},
		"server": map[string]any{
			"enabled": true, "bootstrap_expect": 1, "raft_multiplier": 1, "encrypt": gossipKey(),
			// Evaluations stay where they are: nothing is ever placed, not even on a client that came from somewhere.
			"num_schedulers": 0,
			"retry_join":     []string{}, "rejoin_after_leave": false,
		},
		"client": map[string]any{"enabled": false},
		// An auth method whose tokens live longer than this lets them is refused.
		"acl": map[string]any{"enabled": true, "token_min_expiration_ttl": "1ns", "token_max_expiration_ttl": "876000h"},
		// Peers need a certificate that nobody else has; without a namespace, so do clients.
		"tls": map[string]any{
			"rpc": true, "http": p.socket == "", "verify_server_hostname": true, "verify_https_client": true,
			"ca_file": p.tls.CAFile, "cert_file": p.tls.CertFile, "key_file": string(p.tls.KeyFile),
		},
		// Nomad always looks for a Consul agent, by default where the machine's own listens. It would join the servers and remove
		// the services that it finds there.
		"consul": map[string]any{
			"address": "unix://" + filepath.Join(p.dir, "none"), "auto_advertise": false,
			"server_auto_join": false, "client_auto_join": false, "checks_use_advertise": false,
		},
		// Jobs with a vault block are refused where Vault is off. A server never talks to it.
		"vault": map[string]any{"enabled": true, "address": "http://127.0.0.1:1"},
		"ui":    map[string]any{"enabled": false},

		"disable_update_check": true, "leave_on_terminate": false, "leave_on_interrupt": false,
		"limits": map[string]any{"http_max_conns_per_client": 0, "rpc_max_conns_per_client": 0},
	}
	newer = map[string]any{
		"server": map[string]any{"job_max_priority": 32766, "job_max_count": 1 << 30, "job_max_source_size": "64M"},
	}
	return conf, newer
}

// nomadReady waits until there is a leader that has settled, makes the management token, and waits for the keyring: until that is
// there, no variable can be written.
func nomadReady(ctx context.Context, s *Server, p place) error {
	err := s.until(ctx, "its leader", func() error {
		return s.call(ctx, http.MethodGet, "/v1/status/leader?consistent", nil, nil)
	})
	if err != nil {
		return err
	}
	token := uuid.NewString()
	err = s.until(ctx, "its first token", func() error {
		return s.call(ctx, http.MethodPost, "/v1/acl/bootstrap", map[string]any{"BootstrapSecret": token}, nil)
	})
	if err != nil {
		return err
	}
	s.Token, s.TokenFile = token, filepath.Join(p.dir, "token")
	if err = os.WriteFile(s.TokenFile, []byte(token), 0o600); err != nil {
		return fmt.Errorf("writing its token: %w", err)
	}
	const variable = "/v1/var/" + probe
	err = s.until(ctx, "its keyring", func() error {
		if cerr := s.call(ctx, http.MethodGet, "/v1/namespaces?consistent", nil, nil); cerr != nil {
			return cerr
		}
		item := map[string]any{"Items": map[string]string{"probe": "1"}}
		if cerr := s.call(ctx, http.MethodPut, variable, item, nil); cerr != nil {
			return cerr
		}
		return s.call(ctx, http.MethodDelete, variable, nil, nil, http.StatusNoContent)
	})
	if err != nil {
		return err
	}
	var self struct {
		Config struct {
			Version struct{ Version string }
		} `json:"config"`
	}
	err = s.call(ctx, http.MethodGet, "/v1/agent/self", nil, &self)
	s.Version = self.Config.Version.Version
	return err
}
