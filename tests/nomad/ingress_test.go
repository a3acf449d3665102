//go:build e2e

package nomad

import (
	"context"
	crand "crypto/rand"
	"encoding/json"
	"net"
	"net/http"
	"net/http/httputil"
	"net/url"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
)

// rand is a secret for one test.
func rand() string { return crand.Text() }

// ingress stands where Traefik does: it passes requests on to the notifiers that Consul calls healthy and that carry Traefik's tags for
// its host name. Without one it answers 503, as Traefik does.
type ingress struct {
	// host is the name in the tags; URL is where Alertmanager posts to.
	host, URL string

	mu     sync.Mutex
	consul string
	next   int
	// answers are the statuses that were sent back, by how often.
	answers map[int]int
}

func newIngress(t *testing.T, consul string) *ingress {
	t.Helper()
	g := &ingress{host: "alerts.example.com", consul: consul, answers: map[int]int{}}
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	require.NoError(t, err)
	g.URL = "http://" + ln.Addr().String()
	proxy := &httputil.ReverseProxy{
		Rewrite: func(r *httputil.ProxyRequest) {
			to, _ := r.In.Context().Value(upstream{}).(string)
			r.SetURL(&url.URL{Scheme: "http", Host: to})
		},
		ModifyResponse: func(r *http.Response) error { g.count(r.StatusCode); return nil },
		ErrorHandler: func(w http.ResponseWriter, _ *http.Request, _ error) {
			g.count(http.StatusBadGateway)
			w.WriteHeader(http.StatusBadGateway)
		},
	}
	srv := &http.Server{ReadHeaderTimeout: time.Minute, Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		to := g.choose(r.Context())
		if to == "" {
			g.count(http.StatusServiceUnavailable)
			w.WriteHeader(http.StatusServiceUnavailable)
			return
		}
		proxy.ServeHTTP(w, r.WithContext(context.WithValue(r.Context(), upstream{}, to)))
	})}
	done := make(chan struct{})
	go func() {
		defer close(done)
		_ = srv.Serve(ln) // until it is closed
	}()
	t.Cleanup(func() { assert.NoError(t, srv.Close()); <-done })
	return g
}

// upstream is the key of the address that a request goes to.
type upstream struct{}

func (g *ingress) count(status int) {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.answers[status]++
}

// choose takes the healthy notifiers in turn.
func (g *ingress) choose(ctx context.Context) string {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, g.consul+"/v1/health/service/lifeboat-notifier-webhooks?passing", nil)
	if err != nil {
		return ""
	}
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		return ""
	}
	defer resp.Body.Close()
	var all []struct {
		Service struct {
			Address string
			Port    json.Number
			Tags    []string
		}
	}
	if json.NewDecoder(resp.Body).Decode(&all) != nil {
		return ""
	}
	var addrs []string
	for _, s := range all {
		mine := slices.ContainsFunc(s.Service.Tags, func(tag string) bool { return strings.HasSuffix(tag, ".rule=Host(`"+g.host+"`)") })
		if mine && slices.Contains(s.Service.Tags, "traefik.enable=true") {
			addrs = append(addrs, net.JoinHostPort(s.Service.Address, s.Service.Port.String()))
		}
	}
	if len(addrs) == 0 {
		return ""
	}
	g.mu.Lock()
	defer g.mu.Unlock()
	g.next++
	return addrs[g.next%len(addrs)]
}
