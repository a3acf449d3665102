package up

import (
	"context"
	"errors"
	"fmt"
	"net/url"

	"go.etcd.io/etcd/server/v3/embed"
)

// startEtcd runs a single etcd member on random loopback ports.
func (f *Fleet) startEtcd(ctx context.Context) error {
	if !f.wants(Etcd) {
		return nil
	}
	cfg := embed.NewConfig()
	cfg.Name, cfg.Dir = "lifeboat-demo", f.path("etcd")
	any := url.URL{Scheme: "http", Host: "127.0.0.1:0"}
	cfg.ListenClientUrls, cfg.AdvertiseClientUrls = []url.URL{any}, []url.URL{any}
	cfg.ListenPeerUrls, cfg.AdvertisePeerUrls = []url.URL{any}, []url.URL{any}
	cfg.InitialCluster = cfg.InitialClusterFromName(cfg.Name)
	cfg.LogLevel, cfg.LogOutputs = "error", []string{f.path("etcd.log")}
	e, err := embed.StartEtcd(cfg)
	if err != nil {
		return err
	}
	f.etcd = e
	f.onStop(func() error { return f.stopEtcd() })
	select {
	case <-e.Server.ReadyNotify():
	case err := <-e.Err():
		return err
	case <-ctx.Done():
		return ctx.Err()
	}
	if len(e.Clients) == 0 {
		return errors.New("etcd has no client listener")
	}
	f.EtcdEndpoint = fmt.Sprintf("http://%s", e.Clients[0].Addr())
	return nil
}

func (f *Fleet) stopEtcd() error {
	if f.etcd != nil {
		f.etcd.Close()
		f.etcd = nil
	}
	return nil
}

// Break stops one target for good, as an outage would, and says which: Consul's if it runs, else etcd's.
func (f *Fleet) Break() (target string, err error) {
	if f.Consul != nil {
		return TargetOf(Consul), f.Consul.Kill()
	}
	return TargetOf(Etcd), f.stopEtcd()
}
