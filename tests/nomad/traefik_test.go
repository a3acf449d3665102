//go:build e2e

package nomad

import (
	"context"
	crand "crypto/rand"
	"fmt"
	"io"
	"net"
	"net/http"
	"regexp"
	"strings"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/lifeboat-fleet/lifeboat/fleet/fleettest/bintest"
)

// The names in the tags. Alertmanager looks its one up, so that has to be a name that every machine knows.
const (
	webhookHost = "localhost"
	pageHost    = "lifeboat.example.com"
)

// rand is a secret for one test.
func rand() string { return crand.Text() }

// traefik is a Traefik as a team has one: TLS in front, and Consul's catalog behind, of which it offers what has its tags.
type traefik struct {
	*bintest.Process
	// URL is where Alertmanager posts to.
	URL string
	// admin is where its own metrics are.
	admin  string
	client *http.Client
}

func (s *site) startTraefik() {
	s.t.Helper()
	path, err := bintest.Find("traefik")
	require.NoError(s.t, err)
	ports, err := bintest.FreePorts(2)
	require.NoError(s.t, err)
	file := s.write("traefik/file.yaml", fmt.Sprintf("tls: {certificates: [{certFile: %s, keyFile: %s}]}\n",
		s.path("web/tls/server.pem"), s.path("web/tls/server-key.pem")))
	conf := s.write("traefik/traefik.yaml", fmt.Sprintf(`
entryPoints:
  websecure: {address: "127.0.0.1:%d"}
  traefik: {address: "127.0.0.1:%d"}
providers:
  consulCatalog:
    endpoint: {address: %q}
    exposedByDefault: false
    watch: true
  file: {filename: %s}
# For what is offered over TLS itself: page_tls and backend_tls.
serversTransport: {rootCAs: [%s]}
ping: {}
metrics: {prometheus: {}}
log: {level: DEBUG}
global: {checkNewVersion: false, sendAnonymousUsage: false}
`, ports[0], ports[1], strings.TrimPrefix(s.consul.Address, "http://"), file, s.path("web/tls/ca.pem")))
	process, err := bintest.Start(path, s.path("traefik/traefik.log"), nil, "--configFile="+conf)
	require.NoError(s.t, err)
	s.t.Cleanup(func() { assert.NoError(s.t, process.Stop()) })
	client := s.httpsClient()
	addr := fmt.Sprintf("127.0.0.1:%d", ports[0])
	transport, ok := client.Transport.(*http.Transport)
	require.True(s.t, ok)
	transport.DialContext = func(ctx context.Context, network, _ string) (net.Conn, error) {
		return (&net.Dialer{}).DialContext(ctx, network, addr)
	}
	s.traefik = &traefik{
		Process: process, URL: fmt.Sprintf("https://%s:%d", webhookHost, ports[0]), admin: fmt.Sprintf("http://127.0.0.1:%d", ports[1]), client: client,
	}
	ctx, cancel := context.WithTimeout(s.t.Context(), time.Minute)
	defer cancel()
	require.NoError(s.t, process.WaitHTTP(ctx, s.traefik.admin+"/ping", nil))
}

// get asks for a page of a host by Traefik.
func (k *traefik) get(ctx context.Context, url string) (status int, body string, err error) {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, url, nil)
	if err != nil {
		return 0, "", err
	}
	resp, err := k.client.Do(req)
	if err != nil {
		return 0, "", err
	}
	defer resp.Body.Close()
	b, err := io.ReadAll(resp.Body)
	return resp.StatusCode, string(b), err
}

// answers are how often Traefik answered each status at its entry point, by its own metrics.
func (k *traefik) answers(ctx context.Context) (map[string]string, error) {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, k.admin+"/metrics", nil)
	if err != nil {
		return nil, err
	}
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		return nil, err
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(resp.Body)
	if err != nil {
		return nil, err
	}
	all := map[string]string{}
	for _, m := range regexp.MustCompile(`(?m)^traefik_entrypoint_requests_total\{code="(\d+)",entrypoint="websecure",method="POST".* (\S+)$`).FindAllStringSubmatch(string(body), -1) {
		all[m[1]] = m[2]
	}
	return all, nil
}

// The status page by its tags: TLS in front and behind. Of other names Traefik knows nothing, and the webhooks ask for their token there too.
func (s *site) pageByTraefik() {
	t := s.t
	status, body, err := s.traefik.get(t.Context(), "https://"+pageHost+"/")
	require.NoError(t, err)
	require.Equal(t, http.StatusNotFound, status, "there is no page yet")
	s.deploy("page", "-var=web_tls=true")
	assert.Eventually(t, func() bool {
		status, body, err = s.traefik.get(t.Context(), "https://"+pageHost+"/")
		return err == nil && status == http.StatusOK
	}, time.Minute, 200*time.Millisecond)
	require.NoError(t, err)
	require.Equal(t, http.StatusOK, status, body)
	assert.Contains(t, body, "Our lifeboats")
	assert.Contains(t, body, "etcd-prod")
	status, _, err = s.traefik.get(t.Context(), "https://127.0.0.1/")
	require.NoError(t, err)
	assert.Equal(t, http.StatusNotFound, status, "no job has this name")
	req, err := http.NewRequestWithContext(t.Context(), http.MethodPost, "https://"+webhookHost+"/api/v1/alertmanager", strings.NewReader("{}"))
	require.NoError(t, err)
	resp, err := s.traefik.client.Do(req)
	require.NoError(t, err)
	require.NoError(t, resp.Body.Close())
	assert.Equal(t, http.StatusUnauthorized, resp.StatusCode)
}
