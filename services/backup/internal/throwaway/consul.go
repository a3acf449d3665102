package throwaway

import (
	"context"
	"crypto/rand"
	"encoding/base64"
	"errors"
	"net/http"
	"path/filepath"
)

const (
	// maxValue is the largest value that Consul takes here. A source may have a higher limit than the default of 512 KiB; this is
	// what one answer of it could hold, and no more than a promise: nothing is allocated for it.
	maxValue = 256 << 20
	// consulDatacenter is the name in the server's certificate. Keys know nothing of datacenters.
	consulDatacenter = "dc1"
	// probe is the key, and the variable, that is written to learn whether a server takes writes. It does not stay.
	probe = "lifeboat-drill/probe"
)

// StartConsul runs a Consul server with its data in the scratch folder, and returns once it takes writes. Its KV store is empty, and
// it has no ACLs: who may enter the folder may use it. ErrNoBinary means that there is no consul.
func StartConsul(ctx context.Context, scratch *Scratch, o Options) (*Server, error) {
	return start(ctx, scratch, o, consul())
}

func consul() kind {
	return kind{
		name: "consul", flag: "consul-binary", configFlag: "-config-file=", ports: 3, native: true,
		domain:    func(string) string { return "server." + consulDatacenter + ".consul" },
		configure: consulConfig, ready: consulReady,
	}
}

// consulConfig has a word for everything that Consul could reach out with, also where it is the default.
func consulConfig(p place) (conf, newer map[string]any) {
	return map[string]any{
		"server": true, "bootstrap_expect": 1, "node_name": "drill", "datacenter": consulDatacenter,
		"data_dir": filepath.Join(p.dir, "data"), "log_level": "warn",
		"bind_addr": "127.0.0.1", "client_addr": "127.0.0.1", "advertise_addr": "127.0.0.1", "advertise_addr_wan": "127.0.0.1",
		"addresses":    map[string]any{"http": "unix://" + p.socket},
		"unix_sockets": map[string]any{"mode": "0600"},
		"ports": map[string]any{
			"http": p.ports[0], "server": p.ports[1], "serf_lan": p.ports[2],
			"serf_wan": -1, "https": -1, "dns": -1, "grpc": -1, "grpc_tls": -1,
		},
		// Peers need a certificate that nobody else has, and a key for gossip.
		"tls": map[string]any{"internal_rpc": map[string]any{
			"ca_file": p.tls.CAFile, "cert_file": p.tls.CertFile, "key_file": string(p.tls.KeyFile),
			"verify_incoming": true, "verify_outgoing": true, "verify_server_hostname": true,
		}},
		"encrypt": gossipKey(),
		"acl":     map[string]any{"enabled": false},
		// A snapshot may hold peerings, whose servers would be dialed, and a certificate authority's account.
		"connect": map[string]any{"enabled": false}, "peering": map[string]any{"enabled": false},
		"telemetry": map[string]any{"disable_hostname": true}, "ui_config": map[string]any{"enabled": false},
		"disable_update_check": true, "disable_remote_exec": true, "enable_script_checks": false,
		"retry_join": []string{}, "disable_coordinates": true,
		"leave_on_terminate": false, "rejoin_after_leave": false,
		"performance": map[string]any{"raft_multiplier": 1, "leave_drain_time": "0s"},
		"limits": map[string]any{
			"kv_max_value_size": maxValue, "txn_max_req_len": maxValue, "http_max_conns_per_client": 0,
		},
	}, nil
}

// gossipKey is a key of 32 bytes that nobody else has.
func gossipKey() string {
	key := make([]byte, 32)
	rand.Read(key) // it never fails
	return base64.StdEncoding.EncodeToString(key)
}

// consulReady waits until there is a leader that has settled, which is when it answers consistent reads, and takes writes.
func consulReady(ctx context.Context, s *Server, _ place) error {
	// A consistent read that comes too early is held, and tried again within half a second. So first this, which is not held.
	err := s.until(ctx, "its leader", func() error {
		var leader string
		if cerr := s.call(ctx, http.MethodGet, "/v1/status/leader", nil, &leader); cerr != nil {
			return cerr
		}
		if leader == "" {
			return errors.New("it has none yet")
		}
		return nil
	})
	if err != nil {
		return err
	}
	erase := []map[string]any{{"KV": map[string]any{"Verb": "delete", "Key": probe}}}
	err = s.until(ctx, "its leader to settle", func() error {
		if cerr := s.call(ctx, http.MethodGet, "/v1/kv/?keys&consistent", nil, nil, http.StatusNotFound); cerr != nil {
			return cerr
		}
		return s.call(ctx, http.MethodPut, "/v1/txn", erase, nil)
	})
	if err != nil {
		return err
	}
	var self struct {
		Config struct{ Version string }
	}
	err = s.call(ctx, http.MethodGet, "/v1/agent/self", nil, &self)
	s.Version = self.Config.Version
	return err
}
