package web_test

import (
	"context"
	"io"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/lifeboat-fleet/lifeboat/fleet/config"
	"github.com/lifeboat-fleet/lifeboat/fleet/fleettest/certtest"
	"github.com/lifeboat-fleet/lifeboat/fleet/web"
)

// plain is a server in clear, as host:port.
func plain(t *testing.T) string {
	t.Helper()
	s := httptest.NewServer(ok)
	t.Cleanup(s.Close)
	return strings.TrimPrefix(s.URL, "http://")
}

func ask(ctx context.Context, c *http.Client, url string, body io.Reader) error {
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, url, body)
	if err != nil {
		return err
	}
	resp, err := c.Do(req)
	if err != nil {
		return err
	}
	return resp.Body.Close()
}

func client(t *testing.T, files func() config.TLS) *http.Client {
	t.Helper()
	c := &http.Client{Transport: web.NewTransport(&http.Transport{ForceAttemptHTTP2: true}, files)}
	t.Cleanup(c.CloseIdleConnections)
	return c
}

func TestTransport(t *testing.T) {
	t.Parallel()
	certtest.TryClient(t, plain(t), func(t *testing.T, addr string, files config.TLS) func(context.Context) error {
		t.Helper()
		c := client(t, func() config.TLS { return files })
		return func(ctx context.Context) error { return ask(ctx, c, "https://"+addr, http.NoBody) }
	})
}

// Without rotation all requests share a connection; after one of it there is a new one.
func TestTransportKeepsItsConnections(t *testing.T) {
	t.Parallel()
	ca := certtest.New(t, "ca")
	front := certtest.NewFront(t, plain(t), ca.Mutual(t, ca.Server(t)))
	mine := ca.Client(t, "lifeboat")
	c := client(t, func() config.TLS {
		return config.TLS{CAFile: ca.File, CertFile: mine.Cert, KeyFile: config.SecretFile(mine.Key)}
	})
	for range 3 {
		require.NoError(t, ask(t.Context(), c, "https://"+front.Addr, http.NoBody))
	}
	assert.EqualValues(t, 1, front.Passed())
	next := ca.Client(t, "lifeboat")
	for from, to := range map[string]string{next.Cert: mine.Cert, next.Key: mine.Key} {
		require.NoError(t, os.Rename(from, to))
	}
	require.NoError(t, ask(t.Context(), c, "https://"+front.Addr, http.NoBody))
	assert.EqualValues(t, 2, front.Passed(), "the new certificate is shown at once")
}

// A certificate and its key are two files, and a rotation replaces one after the other: requests in between go on with what fits. Files
// that were never right are an error that names them, and other files of the configuration are not waited for.
func TestWhileTheFilesCannotBeRead(t *testing.T) {
	t.Parallel()
	ca := certtest.New(t, "ca")
	front := certtest.NewFront(t, plain(t), ca.Mutual(t, ca.Server(t)))
	mine, next := ca.Client(t, "lifeboat"), ca.Client(t, "lifeboat")
	var files atomic.Pointer[config.TLS]
	files.Store(&config.TLS{CAFile: ca.File, CertFile: mine.Cert, KeyFile: config.SecretFile(mine.Key)})
	c := client(t, func() config.TLS { return *files.Load() })
	do := func() error { return ask(t.Context(), c, "https://"+front.Addr, strings.NewReader("{}")) }
	require.NoError(t, do())
	require.NoError(t, os.Rename(next.Cert, mine.Cert))
	require.NoError(t, do(), "half of a pair is there")
	require.NoError(t, os.Remove(mine.Key))
	require.NoError(t, do(), "and half of it is gone")
	require.NoError(t, os.Rename(next.Key, mine.Key))
	require.NoError(t, do())

	gone := filepath.Join(t.TempDir(), "gone.pem")
	files.Store(&config.TLS{CAFile: gone})
	err := do()
	require.ErrorContains(t, err, gone)
	require.ErrorContains(t, err, "TLS settings")
	files.Store(&config.TLS{CAFile: ca.File, CertFile: mine.Cert, KeyFile: config.SecretFile(ca.Client(t, "another").Key)})
	err = do()
	require.ErrorContains(t, err, "client certificate")
	assert.NotContains(t, err.Error(), "PRIVATE KEY")
}

// A certificate is for one host. Others neither see it nor are believed for its CA.
func TestAHostOfItsOwn(t *testing.T) {
	t.Parallel()
	ca := certtest.New(t, "ca")
	mutual := ca.Mutual(t, ca.Server(t))
	ours, theirs := certtest.NewFront(t, plain(t), mutual), certtest.NewFront(t, plain(t), mutual)
	mine := ca.Client(t, "lifeboat")
	transport := web.NewHostTransport(&http.Transport{DisableKeepAlives: true}, func() string { return ours.Addr }, func() config.TLS {
		return config.TLS{CAFile: ca.File, CertFile: mine.Cert, KeyFile: config.SecretFile(mine.Key)}
	})
	c := &http.Client{Transport: transport, Timeout: 10 * time.Second}
	require.NoError(t, ask(t.Context(), c, "https://"+ours.Addr, http.NoBody))
	require.ErrorContains(t, ask(t.Context(), c, "https://"+theirs.Addr, http.NoBody), "unknown authority")
	require.NoError(t, ask(t.Context(), c, "http://"+plain(t), http.NoBody))
	assert.Zero(t, theirs.Passed())
}
