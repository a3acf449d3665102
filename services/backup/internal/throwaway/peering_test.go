package throwaway

import (
	"bytes"
	"context"
	"io"
	"net/http"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"
)

// peerIP is where a cluster of production is that another one peers with.
const peerIP = "203.0.113.77"

// peering is a Consul that peers with others, as production may.
func peering() kind {
	k := consul()
	k.ports++
	configure := k.configure
	k.configure = func(p place) (conf, newer map[string]any) {
		conf, newer = configure(p)
		conf["connect"] = map[string]any{"enabled": true}
		conf["peering"] = map[string]any{"enabled": true}
		conf["addresses"] = map[string]any{"http": "unix://" + p.socket, "grpc_tls": peerIP}
		conf["ports"].(map[string]any)["grpc_tls"] = p.ports[3] //nolint:errcheck,forcetypeassert // it is one
		return conf, newer
	}
	return k
}

// TestGuarantee10RaftSnapshotWithPeers restores the whole state of a datacenter that peers with another one. Its servers' addresses
// are in that state, and a Consul that took it at its word would call them.
func TestGuarantee10RaftSnapshotWithPeers(t *testing.T) {
	if !alone(t, syscall.CLONE_NEWNET) {
		return
	}
	out := newOutside(t)
	trap := newTraps(t)
	address(t, unix.RTM_NEWADDR, "lo", peerIP)
	s := scratch(t)
	startKind := func(k kind) *Server {
		return started(t, func(ctx context.Context, s *Scratch, o Options) (*Server, error) { return start(ctx, s, o, k) },
			s, Options{Binary: program(t, "consul")})
	}
	accepts := startKind(peering())
	external := peerIP + ":" + peerPort(t)
	dials := startKind(peering())
	var token struct{ PeeringToken string }
	require.EventuallyWithT(t, func(c *assert.CollectT) { // its certificates take a while
		require.NoError(c, accepts.call(t.Context(), "POST", "/v1/peering/token",
			map[string]any{"PeerName": "dials", "ServerExternalAddresses": []string{external}}, &token))
	}, time.Minute, 50*time.Millisecond)
	require.EventuallyWithT(t, func(c *assert.CollectT) {
		require.NoError(c, dials.call(t.Context(), "POST", "/v1/peering/establish",
			map[string]any{"PeerName": "accepts", "PeeringToken": token.PeeringToken}, nil))
	}, time.Minute, 50*time.Millisecond)
	state := dials.raw(t, http.MethodGet, "/v1/snapshot", nil)
	require.NoError(t, accepts.Stop())
	require.NoError(t, dials.Stop())

	// From here on that address is outside. The control: a Consul with its usual settings calls it.
	control := startKind(peering())
	address(t, unix.RTM_DELADDR, "lo", peerIP)
	out.packets()
	control.raw(t, http.MethodPut, "/v1/snapshot", state)
	require.Eventually(t, func() bool {
		return slices.ContainsFunc(out.packets(), func(p string) bool { return strings.HasPrefix(p, "protocol 6 to "+peerIP) })
	}, time.Minute, 50*time.Millisecond)
	require.NoError(t, control.Stop())
	out.packets()

	srv := startKind(consul())
	srv.raw(t, http.MethodPut, "/v1/snapshot", state)
	assertQuiet(t, out, trap)
}

// peerPort is the port at which a Consul takes peers.
func peerPort(t *testing.T) string {
	t.Helper()
	for _, a := range listeners(t) {
		if host, port, _ := strings.Cut(a, ":"); host == peerIP {
			return port
		}
	}
	require.Fail(t, "it listens for no peers")
	return ""
}

// raw sends a body as it is and returns the answer's.
func (s *Server) raw(t *testing.T, method, path string, body []byte) []byte {
	t.Helper()
	req, err := http.NewRequestWithContext(t.Context(), method, s.base+path, bytes.NewReader(body))
	require.NoError(t, err)
	resp, err := s.client.Do(req)
	require.NoError(t, err)
	defer s.client.CloseIdleConnections()
	defer resp.Body.Close()
	answer, err := io.ReadAll(resp.Body)
	require.NoError(t, err)
	require.Equal(t, http.StatusOK, resp.StatusCode, "%s %s", path, answer)
	return answer
}
