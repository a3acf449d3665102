package bus

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"maps"
	"net/http"
	"slices"
	"strings"
	"time"

	"github.com/nats-io/nats.go/jetstream"

	"github.com/lifeboat-fleet/lifeboat/fleet/config"
	"github.com/lifeboat-fleet/lifeboat/fleet/web"
)

// enoughReplicas survive the loss of one server without losing what was acknowledged.
const enoughReplicas = 3

// What lifeboat_nats_durable tells of, each by itself.
const (
	aspectReplicas = "replicas"
	aspectSync     = "sync"
)

// Durability says in sentences why what NATS has acknowledged could be lost with a server's disk or with the power, and what
// to do about it. None: by what the servers tell, it could not. The error is that NATS could not be asked.
//
// Whether a server writes to disk before it acknowledges (sync_interval: always) is told on its monitoring address only, so
// without nats.monitor_urls one of the sentences is that this is not known.
func (b *Bus) Durability(ctx context.Context) (reasons []string, err error) {
	d, err := b.durability(ctx)
	return slices.Concat(d.replicas, d.sync, d.unknown), err
}

// ReportDurability sets lifeboat_nats_durable and logs the reasons against it, those that were logged last only once.
func (b *Bus) ReportDurability(ctx context.Context) error {
	d, err := b.durability(ctx)
	if err != nil {
		return err
	}
	b.metrics.durable.WithLabelValues(aspectReplicas).Set(truth(len(d.replicas) == 0))
	if len(d.sync) == 0 && len(d.unknown) > 0 {
		b.metrics.durable.DeleteLabelValues(aspectSync)
	} else {
		b.metrics.durable.WithLabelValues(aspectSync).Set(truth(len(d.sync) == 0))
	}
	reasons := slices.Concat(d.replicas, d.sync, d.unknown)
	text := strings.Join(reasons, "\n")
	b.mu.Lock()
	defer b.mu.Unlock()
	if text == b.told {
		return nil
	}
	b.told = text
	if len(reasons) == 0 {
		b.log.InfoContext(ctx, "NATS is durable again")
	}
	for _, r := range reasons {
		b.log.WarnContext(ctx, "NATS could lose what it acknowledged", slog.String("reason", r))
	}
	return nil
}

func truth(yes bool) float64 {
	if yes {
		return 1
	}
	return 0
}

// durability are the reasons against it, by aspect.
type durability struct{ replicas, sync, unknown []string }

func (b *Bus) durability(ctx context.Context) (d durability, err error) {
	few := map[int][]string{}
	servers := map[string]bool{}
	for _, name := range streams() {
		s, err := b.stream(ctx, name)
		if err != nil {
			return d, err
		}
		info := s.CachedInfo()
		if n := max(info.Config.Replicas, 1); n < enoughReplicas {
			few[n] = append(few[n], name)
		}
		maps.Copy(servers, holders(info, b.nc.ConnectedServerName()))
		d.replicas = append(d.replicas, missing(name, info)...)
	}
	for _, n := range slices.Sorted(maps.Keys(few)) {
		d.replicas = append(d.replicas, fmt.Sprintf("%s: %s only; three keep what was acknowledged when one is lost: run three servers "+
			"and set nats.replicas to 3", strings.Join(few[n], ", "), plural(n, "replica")))
	}
	for _, url := range b.monitor.urls {
		v, err := b.monitor.ask(ctx, url)
		switch {
		case err != nil:
			d.unknown = append(d.unknown, fmt.Sprintf("%s (nats.monitor_urls) does not tell whether it writes to disk before it acknowledges: %v", url, err))
		case !v.JetStream.Config.SyncAlways:
			d.sync = append(d.sync, fmt.Sprintf("server %s writes to disk every %s, and has acknowledged before: what came since is lost with "+
				"the power; set sync_interval: always in its jetstream block", v.ServerName, v.JetStream.Config.SyncInterval))
		}
		delete(servers, v.ServerName)
	}
	if len(servers) > 0 && len(b.monitor.urls) == 0 {
		d.unknown = append(d.unknown, fmt.Sprintf("whether %s to disk before acknowledging is not known, because NATS does not tell "+
			"its clients: name the monitoring address of every server in nats.monitor_urls", writes(servers)))
	} else if len(servers) > 0 && len(d.unknown) == 0 {
		d.unknown = append(d.unknown, fmt.Sprintf("whether %s to disk before acknowledging is not known: nats.monitor_urls does not name "+
			"the monitoring address", writes(servers)))
	}
	return d, nil
}

// holders are the servers that have a replica of a stream. A server that is alone does not say so in the stream.
func holders(info *jetstream.StreamInfo, alone string) map[string]bool {
	all := map[string]bool{}
	if c := info.Cluster; c != nil && c.Leader != "" {
		all[c.Leader] = true
		for _, p := range c.Replicas {
			all[p.Name] = true
		}
		return all
	}
	all[alone] = true
	return all
}

// unseen is how long the servers themselves wait before they take one for gone that did not say goodbye (nats-server,
// server/raft.go, lostQuorumInterval).
const unseen = 10 * time.Second

// missing are the replicas that are not there now.
func missing(stream string, info *jetstream.StreamInfo) []string {
	var all []string
	if info.Cluster == nil {
		return nil
	}
	for _, p := range info.Cluster.Replicas {
		// A leader that was elected since has never seen it, and says 0.
		if p.Offline || (!p.Current && (p.Active == 0 || p.Active > unseen)) {
			all = append(all, fmt.Sprintf("%s: its replica on server %s is not there", stream, p.Name))
		}
	}
	return all
}

func writes(servers map[string]bool) string {
	names := slices.Sorted(maps.Keys(servers))
	if len(names) == 1 {
		return "server " + names[0] + " writes"
	}
	return "servers " + strings.Join(names, ", ") + " write"
}

func plural(n int, noun string) string {
	if n == 1 {
		return "1 " + noun
	}
	return fmt.Sprintf("%d %ss", n, noun)
}

// monitorTimeout bounds one question to a monitoring address.
const monitorTimeout = 3 * time.Second

// monitor asks the servers' monitoring addresses.
type monitor struct {
	urls   []string
	client *http.Client
}

func newMonitor(c config.NATS) *monitor {
	transport := web.NewTransport(&http.Transport{Proxy: http.ProxyFromEnvironment, DisableKeepAlives: true}, func() config.TLS { return c.TLS })
	return &monitor{urls: c.MonitorURLs, client: &http.Client{Transport: transport, Timeout: monitorTimeout}}
}

// varz is what matters here of /varz (nats-server, server/monitor.go, Varz).
type varz struct {
	ServerName string `json:"server_name"`
	JetStream  struct {
		Config *struct {
			SyncInterval time.Duration `json:"sync_interval"`
			SyncAlways   bool          `json:"sync_always"`
		} `json:"config"`
	} `json:"jetstream"`
}

func (m *monitor) ask(ctx context.Context, url string) (v varz, err error) {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, strings.TrimSuffix(url, "/")+"/varz", nil)
	if err != nil {
		return v, err
	}
	resp, err := m.client.Do(req)
	if err != nil {
		return v, err
	}
	defer resp.Body.Close()
	if resp.StatusCode != http.StatusOK {
		return v, fmt.Errorf("it answers %s", resp.Status)
	}
	if err := json.NewDecoder(io.LimitReader(resp.Body, 1<<20)).Decode(&v); err != nil {
		return v, fmt.Errorf("reading its answer: %w", err)
	}
	if v.JetStream.Config == nil {
		return v, errors.New("it has no JetStream")
	}
	return v, nil
}
