// Package webhook posts JSON to an address that is itself a secret: it never appears in an error, and is not sent
// anywhere in clear.
package webhook

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"time"
)

const (
	// timeout of one attempt.
	timeout = 15 * time.Second
	// maxAnswer is more than any chat answers.
	maxAnswer = 64 << 10
)

// Client posts. It is safe for concurrent use.
type Client struct{ http *http.Client }

// New makes a client with its own connections.
func New() *Client {
	transport := &http.Transport{
		Proxy: http.ProxyFromEnvironment, TLSHandshakeTimeout: 10 * time.Second, IdleConnTimeout: time.Minute,
		MaxIdleConnsPerHost: 2, ForceAttemptHTTP2: true,
		DialContext: (&net.Dialer{Timeout: 10 * time.Second}).DialContext,
	}
	return &Client{http: &http.Client{
		Transport: transport, Timeout: timeout,
		// A redirect would carry the message, and on some answers the secret, to somebody else.
		CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
	}}
}

// Close closes idle connections.
func (c *Client) Close() { c.http.CloseIdleConnections() }

// Post sends a JSON body and returns the answer, whatever its status. The address must be https, or http on a loopback
// host. An error is one of settings or network, and worth another attempt: the address is read anew for each.
func (c *Client) Post(ctx context.Context, address string, body []byte) (status int, header http.Header, answer []byte, err error) {
	u, err := url.Parse(address)
	if err != nil {
		return 0, nil, nil, errors.New("the webhook's URL cannot be parsed")
	}
	if u.Host == "" || u.Scheme != "https" && (u.Scheme != "http" || !loopback(u.Hostname())) {
		return 0, nil, nil, errors.New("the webhook's URL must be https, or http to a loopback host")
	}
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, address, bytes.NewReader(body))
	if err != nil {
		return 0, nil, nil, errors.New("the webhook's URL cannot be used")
	}
	req.Header.Set("Content-Type", "application/json; charset=utf-8")
	req.Header.Set("User-Agent", "lifeboat-notifier")
	resp, err := c.http.Do(req)
	if err != nil {
		return 0, nil, nil, fmt.Errorf("posting to the webhook: %w", bare(err))
	}
	defer resp.Body.Close()
	answer, err = io.ReadAll(io.LimitReader(resp.Body, maxAnswer))
	if err != nil {
		return 0, nil, nil, fmt.Errorf("reading the webhook's answer: %w", bare(err))
	}
	return resp.StatusCode, resp.Header, answer, nil
}

// bare takes the URL off an HTTP client's error.
func bare(err error) error {
	var ue *url.Error
	for errors.As(err, &ue) {
		err = ue.Err
	}
	return err
}

func loopback(host string) bool {
	if host == "localhost" {
		return true
	}
	ip := net.ParseIP(host)
	return ip != nil && ip.IsLoopback()
}
