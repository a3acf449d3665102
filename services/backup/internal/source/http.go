package source

import (
	"context"
	"fmt"
	"io"
	"net"
	"net/http"
	"strings"
	"time"

	"github.com/lifeboat-fleet/lifeboat/fleet/config"
)

const (
	dialTimeout = 10 * time.Second
	// maxErrorBody is how much of an error's page is shown.
	maxErrorBody = 512
)

// unixScheme begins the address of a server that listens on a socket in the file system, as a drill's throwaway one does.
const unixScheme = "unix://"

// NewHTTPClient is an HTTP client for one server, with connections of its own: nothing is shared, so that
// CloseIdleConnections leaves nothing behind, and certificates are read anew each time. address is http://, https:// or
// unix:///path/of/a/socket; base is what stands before the path of a request to it. header bounds the wait for the start of an
// answer; DefaultIdle when zero. Redirects are not followed: a token must not be carried to a place that nobody configured.
func NewHTTPClient(address string, files config.TLS, header time.Duration) (c *http.Client, base string, err error) {
	tlsConfig, err := files.Client()
	if err != nil {
		return nil, "", fmt.Errorf("setting up TLS: %w", err)
	}
	if header == 0 {
		header = DefaultIdle
	}
	dialer := &net.Dialer{Timeout: dialTimeout, KeepAlive: 15 * time.Second}
	t := &http.Transport{
		Proxy:                 http.ProxyFromEnvironment,
		DialContext:           dialer.DialContext,
		TLSClientConfig:       tlsConfig,
		TLSHandshakeTimeout:   dialTimeout,
		ResponseHeaderTimeout: header,
		ForceAttemptHTTP2:     true,
		MaxIdleConnsPerHost:   2,
		// On a large store compression would be the server's main work, for a short way.
		DisableCompression: true,
	}
	base = strings.TrimSuffix(address, "/")
	if socket, ok := strings.CutPrefix(address, unixScheme); ok {
		base, t.Proxy = "http://localhost", nil
		t.DialContext = func(ctx context.Context, _, _ string) (net.Conn, error) {
			return dialer.DialContext(ctx, "unix", socket)
		}
	}
	return &http.Client{
		Transport: t, CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
	}, base, nil
}

// StatusError is an answer other than 200. Body is the start of what the server said.
type StatusError struct {
	Status int
	Body   string
}

// NewStatusError reads the start of an answer's body. It does not close it.
func NewStatusError(resp *http.Response) *StatusError {
	body, err := io.ReadAll(io.LimitReader(resp.Body, maxErrorBody))
	if err != nil {
		body = append(body, " (cut)"...)
	}
	return &StatusError{Status: resp.StatusCode, Body: string(body)}
}

// Error gives the status and what the server said.
func (e *StatusError) Error() string {
	return fmt.Sprintf("answered %d %s: %q", e.Status, http.StatusText(e.Status), e.Body)
}

// ReasonOfStatus sorts an HTTP status.
func ReasonOfStatus(status int) Reason {
	if status == http.StatusForbidden || status == http.StatusUnauthorized {
		return Denied
	}
	return Unreachable
}
