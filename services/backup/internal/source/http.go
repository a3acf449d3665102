package source

import (
	"fmt"
	"io"
	"net"
	"net/http"
	"time"

	"github.com/lifeboat-fleet/lifeboat/fleet/config"
)

const (
	dialTimeout = 10 * time.Second
	// maxErrorBody is how much of an error's page is shown.
	maxErrorBody = 512
)

// NewHTTPClient is an HTTP client for one read, with connections of its own: nothing is shared, so that
// CloseIdleConnections leaves nothing behind, and certificates are read anew each time. header bounds the wait for the
// start of an answer; DefaultIdle when zero. Redirects are not followed: a token must not be carried to a place that
// nobody configured.
func NewHTTPClient(files config.TLS, header time.Duration) (*http.Client, error) {
	tlsConfig, err := files.Client()
	if err != nil {
		return nil, fmt.Errorf("setting up TLS: %w", err)
	}
	if header == 0 {
		header = DefaultIdle
	}
	return &http.Client{
		Transport: &http.Transport{
			Proxy:                 http.ProxyFromEnvironment,
			DialContext:           (&net.Dialer{Timeout: dialTimeout, KeepAlive: 15 * time.Second}).DialContext,
			TLSClientConfig:       tlsConfig,
			TLSHandshakeTimeout:   dialTimeout,
			ResponseHeaderTimeout: header,
			ForceAttemptHTTP2:     true,
			MaxIdleConnsPerHost:   2,
			// On a large store compression would be the server's main work, for a short way.
			DisableCompression: true,
		},
		CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
	}, nil
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
